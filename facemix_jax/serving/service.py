"""The calls that the cloud answers: Run and Describe, and one status for everything wrong.

Both calls are unary on the wire. They are handled as streams of one message, because gRPC hands
those over when a call opens: who calls is checked before the body is taken in, and a sender that
is too slow is refused.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

import grpc
from google.protobuf.message import DecodeError

from facemix_jax._validate import FacemixError
from facemix_jax.serving import wire
from facemix_jax.serving import wire_pb2 as pb
from facemix_jax.serving.access import Shares, Tokens, TooMuchError, UnauthenticatedError
from facemix_jax.serving.batching import Batcher, DeadlinePassedError, QueueFullError
from facemix_jax.serving.loading import Served
from facemix_jax.serving.telemetry import Metrics, log


class WrongModelError(FacemixError):
    """A request for another model than the one served."""


class ClosingError(FacemixError):
    """A call that came after the cloud began to stop."""


class SlowSenderError(FacemixError):
    """A request whose body does not arrive."""


class RefusedError(FacemixError):
    """A call that gets no answer.

    Attributes:
        status: what the client is told, with the error's words.
    """

    def __init__(self, status: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.status = status


_STATUS: Mapping[type[Exception], grpc.StatusCode] = {
    wire.WireError: grpc.StatusCode.INVALID_ARGUMENT,
    WrongModelError: grpc.StatusCode.FAILED_PRECONDITION,
    UnauthenticatedError: grpc.StatusCode.UNAUTHENTICATED,
    QueueFullError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    TooMuchError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ClosingError: grpc.StatusCode.UNAVAILABLE,
    DeadlinePassedError: grpc.StatusCode.DEADLINE_EXCEEDED,
    SlowSenderError: grpc.StatusCode.DEADLINE_EXCEEDED,
}

_Method = Callable[[bytes, str, "Call", dict[str, Any]], Awaitable[Any]]


class Call(Protocol):
    """What is asked of a call; the context of ``grpc.aio`` is one."""

    async def read(self) -> Any:
        """The body, bytes; anything else where there is none."""

    def invocation_metadata(self) -> Any:
        """Pairs of names and values that the client sent."""

    def auth_context(self) -> Mapping[str, Any]:
        """Of TLS."""

    def peer(self) -> str:
        """The client's address and port."""

    def time_remaining(self) -> float | None:
        """Seconds to the client's deadline; None if there is none."""

    def set_trailing_metadata(self, metadata: Any) -> None:
        """Sends pairs of names and values after the answer."""


class Service:
    """Answers calls with the model in ``served``, which may be replaced at any time.

    Args:
        served: the model.
        batcher: runs it.
        max_rows: the most rows of one request.
        tokens: who may call; None for everyone.
        client_rows: the most rows that one client may have in hand.
        client_calls: the most calls that one client may have open.
        all_calls: the most calls that all may have open; with the size of a message this bounds
            the memory.
        receive_seconds: how long a body may take to arrive.
        metrics: counts.
    """

    def __init__(
        self,
        served: Served,
        batcher: Batcher,
        *,
        max_rows: int,
        tokens: Tokens | None,
        client_rows: int,
        client_calls: int,
        all_calls: int,
        receive_seconds: float,
        metrics: Metrics,
    ) -> None:
        self.served = served
        self.tokens = tokens
        self._batcher = batcher
        self._max_rows = max_rows
        self._rows = Shares(client_rows, "rows")
        self._calls = Shares(client_calls, "calls")
        self._all_calls = all_calls
        self.closing = False
        """Whether new calls are refused; set it to stop."""
        self.open_calls = 0
        """Calls being received or answered."""
        self._receive_seconds = receive_seconds
        self._metrics = metrics
        self._methods: dict[str, _Method] = {"Run": self._run, "Describe": self._describe}

    def handlers(self) -> grpc.GenericRpcHandler:
        """What a server adds; raw bytes in and out, so that wrong ones get their own status."""

        def handler(name: str) -> grpc.RpcMethodHandler:
            async def handle(_: Any, context: Any) -> bytes:
                try:
                    response: bytes = (await self.answer(name, context)).SerializeToString()
                    return response
                except RefusedError as error:
                    await context.abort(error.status, str(error))
                    raise AssertionError("abort raises") from None

            return grpc.stream_unary_rpc_method_handler(handle)

        handlers = {name: handler(name) for name in self._methods}
        return grpc.method_handlers_generic_handler(wire.SERVICE, handlers)

    async def answer(self, name: str, call: Call) -> Any:
        """The response message to a call, which is counted and logged.

        Args:
            name: ``Run`` or ``Describe``.
            call: its body and circumstances.

        Raises:
            RefusedError: anything is wrong, with the status for the client.
        """
        start = time.perf_counter()
        client, status, message = "", grpc.StatusCode.OK, ""
        fields: dict[str, Any] = {}
        try:
            client = self._client(call)
            self._calls.take(client, 1)
            self.open_calls += 1
            try:
                # Without a name here, the body is gone as soon as it is parsed.
                return await self._methods[name](await self._receive(call), client, call, fields)
            finally:
                self.open_calls -= 1
                self._calls.give_back(client, 1)
        except FacemixError as error:
            status, message = _STATUS.get(type(error), grpc.StatusCode.INTERNAL), str(error)
        except asyncio.CancelledError:
            status = grpc.StatusCode.CANCELLED
            raise
        except Exception:
            status = grpc.StatusCode.INTERNAL
            message = "This is a fault of the cloud, not of the request. Report it to its operator."
            log("fault", level=logging.ERROR, method=name, client=client, trace=True)
        finally:
            seconds = time.perf_counter() - start
            self._metrics.request(name, status.name, seconds)
            log(
                "call",
                method=name,
                client=client,
                status=status.name,
                ms=round(1e3 * seconds, 2),
                **fields,
            )
        raise RefusedError(status, message)

    def _client(self, call: Call) -> str:
        """Who calls: the token's name, or the certificate's subject, or the peer's address."""
        if self.closing:
            raise ClosingError("This cloud is stopping. Call another replica, or try again later.")
        if self.open_calls >= self._all_calls:
            raise TooMuchError(
                f"The cloud has {self.open_calls} calls open and takes {self._all_calls}. Try "
                f"again later or at another replica."
            )
        if self.tokens is not None:
            sent = dict(call.invocation_metadata()).get("authorization")
            return self.tokens.client(sent)
        names = call.auth_context().get("x509_common_name")
        if names:
            return names[0].decode("utf-8", "replace")[:64]
        return call.peer().rpartition(":")[0]

    async def _receive(self, call: Call) -> bytes:
        try:
            body = await asyncio.wait_for(call.read(), self._receive_seconds)
        except TimeoutError:
            raise SlowSenderError(
                f"The request's body did not arrive within {self._receive_seconds:g} s. Send fewer "
                f"rows, a smaller dtype, or over a faster link."
            ) from None
        if not isinstance(body, bytes):
            raise wire.WireError("The call carries no message, but takes one. Send one.")
        return body

    async def _run(
        self, body: bytes, client: str, call: Call, fields: dict[str, Any]
    ) -> pb.RunResponse:
        served = self.served
        request = _parse(pb.RunRequest, body)
        del body
        _check_header(request, served)
        rows = wire.decode(
            request.activations, row_shape=served.spec.activation_shape, max_rows=self._max_rows
        )
        request_id = request.request_id
        del request  # while the rows wait, they alone are held
        fields |= {"rows": len(rows), "request": request_id.hex()[:8]}
        spent: dict[str, float] = {}
        self._rows.take(client, len(rows))
        try:
            responses = await self._batcher.submit(served, rows, call.time_remaining(), spent)
        finally:
            self._rows.give_back(client, len(rows))
        call.set_trailing_metadata(
            [(f"facemix-{name}-s", f"{seconds:.6f}") for name, seconds in spent.items()]
        )
        return pb.RunResponse(
            version=wire.VERSION,
            model_id=served.model_id,
            request_id=request_id,
            responses=wire.encode(responses),
        )

    async def _describe(
        self, body: bytes, client: str, call: Call, fields: dict[str, Any]
    ) -> pb.DescribeResponse:
        _parse(pb.DescribeRequest, body)
        served = self.served
        return pb.DescribeResponse(
            version=wire.VERSION,
            model_id=served.model_id,
            activation_shape=served.spec.activation_shape,
            response_shape=served.spec.response_shape,
            max_rows=self._max_rows,
            dtypes=wire.DTYPES,
        )


def _parse(kind: Any, body: bytes) -> Any:
    try:
        return kind.FromString(body)
    except DecodeError:
        raise wire.WireError(
            f"The {len(body)} bytes are no {kind.DESCRIPTOR.full_name}. Send one, serialised by "
            f"protobuf."
        ) from None


def _check_header(request: pb.RunRequest, served: Served) -> None:
    if request.version != wire.VERSION:
        raise wire.WireError(
            f"The request's protocol version is {request.version}, but this cloud speaks "
            f"{wire.VERSION}. Use the same release of facemix on both sides."
        )
    if len(request.request_id) != wire.REQUEST_ID_BYTES:
        raise wire.WireError(
            f"The request identifier has {len(request.request_id)} bytes, but must have "
            f"{wire.REQUEST_ID_BYTES}. Draw them at random, new with every attempt."
        )
    if request.model_id != served.model_id:
        raise WrongModelError(
            f"The request is for model {request.model_id[:32]!a}, but this cloud serves "
            f"{served.model_id!r} (step {served.step}). Use the work directory with that model on "
            f"the edge."
        )
