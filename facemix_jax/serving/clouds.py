"""Connections from the edge to one or several clouds: TLS, tokens, turns and failover."""

import asyncio
import dataclasses
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from facemix_jax._validate import UsageError
from facemix_jax.serving import access, wire
from facemix_jax.serving import wire_pb2 as pb
from facemix_jax.serving.edge_types import EdgeConfig, Work
from facemix_jax.serving.refusals import details, explained, is_limit, is_passing

_T = TypeVar("_T")

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.05, 2.0
_PAUSE_S = 2.0
"""For which a cloud that failed is passed over, as long as another one has not failed."""
_REFUSALS = 6
"""Of one request, after which the call is wrong, not a replica of another model behind a name."""
_REFUSED_S = 8.0
"""For which it is tried at least: a cloud looks for a newer checkpoint every 5 s and loads it."""
_KEEPALIVE_MS, _PING_TIMEOUT_MS = 10_000, 5_000
"""Of a call without a sign of life, until the cloud is asked for one, and what that may take."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Connection:
    """Where the clouds are and how they are reached.

    Attributes:
        clouds: addresses ``HOST:PORT``; requests take turns and go elsewhere when one fails.
        insecure: allow plain text to an address that is not loopback.
        ca: PEM file of the authority that signed the clouds' certificates; None for the
            system's. With it, loopback addresses use TLS as well.
        certificate: PEM file of the client's certificate chain, for mutual TLS.
        private_key: PEM file of its key.
        token: file that holds a bearer token. Without TLS it travels in plain text.
    """

    clouds: tuple[str, ...]
    insecure: bool = False
    ca: Path | None = None
    certificate: Path | None = None
    private_key: Path | None = None
    token: Path | None = None

    def __post_init__(self) -> None:
        """Checks addresses and combinations."""
        if not self.clouds:
            raise UsageError(
                "No cloud is given. Start one with facemix serve --workdir W, and give its "
                "address: --cloud HOST:PORT."
            )
        for address in self.clouds:
            host, _, port = address.rpartition(":")
            bare = ":" in host and not (host.startswith("[") and host.endswith("]"))
            if not host or bare or not port.isdecimal() or not 0 < int(port) < 65536:
                raise UsageError(
                    f"cloud is {address!r}, but must be HOST:PORT with a port from 1 to 65535. "
                    f"Give for example localhost:50051, or [::1]:50051."
                )
        if (self.certificate is None) != (self.private_key is None):
            raise UsageError(
                "Mutual TLS takes a certificate and its key: give both, certificate and "
                "private_key, or neither."
            )
        if self.insecure and (self.ca or self.certificate):
            raise UsageError("insecure contradicts ca and certificate. Give one or the other.")

    def is_plain(self, address: str) -> bool:
        """Whether an address is reached in plain text."""
        local = access.is_loopback(address.rpartition(":")[0])
        return self.insecure or (local and not self.ca and not self.certificate)


class Cloud:
    """One address with its open channel; made inside the event loop that uses it.

    Args:
        address: ``HOST:PORT``.
        connection: how it is reached.
        max_reply_bytes: the largest answer taken in.
    """

    def __init__(self, address: str, connection: Connection, max_reply_bytes: int) -> None:
        self.address = address
        self.passed_over_until = 0.0
        self.answers = True
        self.takes_groups = True
        options = [
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", max_reply_bytes),
            ("grpc.max_metadata_size", 16 * 1024),
            # gRPC would send the same bytes again; every attempt must be mixed anew.
            ("grpc.enable_retries", 0),
            ("grpc.initial_reconnect_backoff_ms", 200),
            # What connecting itself may take, TLS included; one that is refused ends at once.
            ("grpc.min_reconnect_backoff_ms", 5_000),
            ("grpc.max_reconnect_backoff_ms", 2_000),
            # A connection whose path has died is closed, so that the next attempt makes another.
            ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
            ("grpc.http2.ping_timeout_ms", _PING_TIMEOUT_MS),
            # Calls take turns among all replicas that a name leads to.
            ("grpc.lb_policy_name", "round_robin"),
            # Clouds behind one address are told apart; several channels are not shared.
            ("grpc.use_local_subchannel_pool", 1),
        ]
        self._channel = (
            grpc.aio.insecure_channel(address, options)
            if connection.is_plain(address)
            else grpc.aio.secure_channel(address, _credentials(connection), options)
        )
        self._run = self._channel.unary_unary(
            wire.RUN,
            request_serializer=pb.RunRequest.SerializeToString,
        )
        self._describe = self._channel.unary_unary(
            wire.DESCRIBE,
            request_serializer=pb.DescribeRequest.SerializeToString,
        )
        token = _token(connection)
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()

    async def run(
        self, request: pb.RunRequest, timeout: float
    ) -> tuple[pb.RunResponse, dict[str, Any]]:
        """Main's answer, and the metadata that follows it.

        Raises:
            grpc.aio.AioRpcError: the call failed.
            WireError: what came is no answer.
        """
        call = self._run(request, timeout=timeout, metadata=self._metadata)
        response: pb.RunResponse = self._parsed(pb.RunResponse, await call)
        return response, {str(key): value for key, value in await call.trailing_metadata()}

    async def max_rows(self, timeout: float) -> int:
        """The most rows that it takes in one request.

        Raises:
            grpc.aio.AioRpcError: the call failed.
            WireError: what came is no answer.
        """
        body = await self._describe(pb.DescribeRequest(), timeout=timeout, metadata=self._metadata)
        return int(self._parsed(pb.DescribeResponse, body).max_rows)

    def _parsed(self, kind: Any, body: bytes) -> Any:
        try:
            return kind.FromString(body)
        except DecodeError:
            raise wire.WireError(
                f"The {len(body)} bytes that {self.address} answers are no message of this "
                f"protocol. Check the address, and that both sides run the same release."
            ) from None

    def failed(self) -> None:
        """Passes the cloud over for a while."""
        self.passed_over_until = time.monotonic() + _PAUSE_S

    async def close(self) -> None:
        """Closes the channel."""
        await self._channel.close()


class Turns:
    """Hands out clouds in turn, those that have not failed lately first."""

    def __init__(self, clouds: list[Cloud]) -> None:
        self.clouds = clouds
        self._next = 0

    @property
    def usable(self) -> list[Cloud]:
        """Those that take a group in one request; all, where none does."""
        return [cloud for cloud in self.clouds if cloud.takes_groups] or self.clouds

    def take(self) -> Cloud:
        """The next one that is not passed over; where all are, the one that failed first."""
        now = time.monotonic()
        count = len(self.clouds)
        usable = self.usable
        turn = [self.clouds[(self._next + i) % count] for i in range(count)]
        turn = [cloud for cloud in turn if cloud in usable]
        chosen = next(
            (cloud for cloud in turn if cloud.passed_over_until <= now),
            min(turn, key=lambda cloud: cloud.passed_over_until),
        )
        self._next = (self.clouds.index(chosen) + 1) % count
        return chosen


async def until_answered(
    turns: Turns,
    attempt: Callable[[Cloud], Awaitable[_T]],
    config: EdgeConfig,
    work: Work,
    say: Callable[[str], None],
) -> _T:
    """What an attempt returns that some cloud answers before time is up.

    A cloud that serves another model may be one of several that is older or newer, or not have seen
    the newest checkpoint yet, and one name may lead to several, whose refusals look alike: the call
    is wrong only after ``_REFUSALS`` and ``_REFUSED_S``, at least one from every cloud. Clouds that
    refuse otherwise, or whose certificates cannot be trusted, would do so again: the call ends as
    soon as every cloud has, and at once where it exceeds a limit.

    Args:
        turns: the clouds.
        attempt: calls one.
        config: how long.
        work: counts attempts that failed.
        say: told once of every cloud that does not answer, serves another model or refuses, until
            it does answer.

    Raises:
        CloudError: they refuse, or cannot be reached until time is up.
        UsageError: the clouds are closed, or were meanwhile.
        WireError: from the attempt.
    """
    start = time.monotonic()
    give_up = start + config.give_up_s
    wait = _FIRST_WAIT_S
    others: set[Cloud] = set()  # of another model
    refused: set[Cloud] = set()
    refusals = 0
    while True:
        cloud = turns.take()
        try:
            answer = await attempt(cloud)
        except grpc.aio.AioRpcError as error:
            is_other = error.code() is grpc.StatusCode.FAILED_PRECONDITION
            if is_other:
                others.add(cloud)
                refusals += 1
            elif not is_passing(error):
                refused.add(cloud)
            may_change = others - refused and (
                refusals < _REFUSALS or time.monotonic() - start < _REFUSED_S
            )
            left_to_ask = set(turns.usable) - others - refused
            again = not is_limit(error) and (is_passing(error) or may_change or left_to_ask)
            pause = wait * (0.5 + secrets.randbelow(1000) / 1000)
            left = give_up - time.monotonic()
            if not again or pause > left:
                raise explained(cloud.address, error, config.timeout_s) from None
            words = f"{error.code().name}: {details(error)}"
            if cloud.answers and is_other:
                say(f"{cloud.address} serves another model; trying again.")
            elif cloud.answers and cloud in refused:
                say(f"{cloud.address} refuses ({words}); trying other clouds.")
            elif cloud.answers:
                say(
                    f"No answer from {cloud.address} yet ({words}); trying for another {left:.0f} "
                    f"s."
                )
            cloud.answers = False
            cloud.failed()
            work.retries += 1
            await asyncio.sleep(pause)
            wait = min(2 * wait, _LONGEST_WAIT_S)
        except (asyncio.CancelledError, grpc.aio.UsageError):
            # gRPC's errors of a channel that is closed, too; the task was not cancelled then.
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise UsageError(
                "The client was closed while it waited for an answer. Close it afterwards."
            ) from None
        else:
            cloud.answers = True
            return answer


def check_files(connection: Connection) -> None:
    """Reads what the connection names, so that a wrong path is an error before any work.

    Raises:
        UsageError: a file cannot be read, holds no certificate or no token, or the key is not that
            of the certificate.
    """
    _token(connection)
    _credentials(connection)
    if connection.ca is not None:
        access.check_authority(connection.ca, "ca")
    if connection.certificate is not None and connection.private_key is not None:
        access.check_pair(certificate=connection.certificate, private_key=connection.private_key)


async def fewest_rows(
    first: Cloud, clouds: Sequence[Cloud], group_size: int, timeout: float
) -> int:
    """The least of what clouds take in one request.

    Those that cannot be asked are left out, and so are those that take less than a group, which
    get no requests then, as long as another one takes more.

    Raises:
        grpc.aio.AioRpcError: none can be asked; the error is that of ``first``, one of them.
        WireError: the same.
    """
    asked = (cloud.max_rows(timeout) for cloud in clouds)
    found = await asyncio.gather(*asked, return_exceptions=True)
    taken = {
        cloud: most for cloud, most in zip(clouds, found, strict=True) if isinstance(most, int)
    }
    if not taken:
        errors = [error for error in found if isinstance(error, BaseException)]
        raise errors[clouds.index(first)]
    for cloud, most in taken.items():
        cloud.takes_groups = most >= group_size
    return min([most for cloud, most in taken.items() if cloud.takes_groups] or taken.values())


def _credentials(connection: Connection) -> grpc.ChannelCredentials:
    parts: dict[str, bytes] = {}
    for what in ("ca", "certificate", "private_key"):
        path = getattr(connection, what)
        if path is not None:
            parts[what] = access.read_pem(path, what)
    return grpc.ssl_channel_credentials(
        root_certificates=parts.get("ca"),
        private_key=parts.get("private_key"),
        certificate_chain=parts.get("certificate"),
    )


def _token(connection: Connection) -> str:
    if connection.token is None:
        return ""
    words = access.read(connection.token, "token").decode("utf-8", "replace").split()
    if len(words) != 1 or not (words[0].isascii() and words[0].isprintable()):
        raise UsageError(
            f"token {connection.token} must hold one word of printable ASCII characters, the "
            f"token. Write it there alone."
        )
    return words[0]
