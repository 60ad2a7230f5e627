"""``facemix serve``: main as a gRPC service. It sees mixtures and holds nothing to unmix them.

Mixing is not a cipher: whoever runs this service can undo it by gradient ICA, see
``facemix_jax.attacks.separation``. This module cannot reach ``mixing``, ``keys`` or ``defenses``.

Memory is bounded by ``MAX_CALLS`` messages of ``max_rows`` rows each, plus main's own and gRPC's
buffers for open connections, which are not counted. Health is told to anyone and takes no message
in, see ``serving.health``. Reflection does and asks for no token: it is there only where the cloud
has no tokens, and its messages then come on top.
"""

import asyncio
import logging
import math
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import prometheus_client
import tyro
from grpc_health.v1 import health as grpc_health
from grpc_reflection.v1alpha import reflection

from facemix_jax import checkpoint
from facemix_jax._files import explain
from facemix_jax._validate import FacemixError, UsageError
from facemix_jax.serving import access, loading, wire
from facemix_jax.serving.batching import Batcher, Runner
from facemix_jax.serving.certificates import Certificates
from facemix_jax.serving.changes import Changes
from facemix_jax.serving.cloud_config import CloudConfig
from facemix_jax.serving.health import Health
from facemix_jax.serving.loading import Served
from facemix_jax.serving.service import Service
from facemix_jax.serving.telemetry import Metrics, log, log_to_stderr

MAX_CALLS = 128
"""Calls open at once, of all clients; beyond it they are refused."""

CLIENT_CALLS = 64
"""Calls that one client may have open."""

POLL_SECONDS = 5.0
"""Between looks for a newer checkpoint, other tokens and another certificate."""

DRAIN_SECONDS = 30.0
"""What calls get to finish in after SIGTERM."""

_HEADER_BYTES = 64 * 1024
"""Of a message, beyond its rows' bytes."""

_LARGEST_BYTES = 2**31 - 1
"""Of a message; gRPC keeps the limit in 32 bits."""


class Cloud:
    """A running service.

    Attributes:
        port: where it listens.
        service: its calls; ``service.served`` is the model.
        metrics: its counters.
        hurry: whether ``stop`` no longer waits for open calls; may be set while it does.
    """

    def __init__(self, config: CloudConfig, *, receive_seconds: float = 30.0) -> None:
        """Reads the files and loads main; nothing listens yet.

        Args:
            config: what to serve and where.
            receive_seconds: how long a request's body may take to arrive.

        Raises:
            FacemixError: something is missing or wrong.
        """
        self.config = config
        self.port = 0
        self.metrics = Metrics()
        self._receive_seconds = receive_seconds
        self.hurry = False
        self._certificate_files = Changes(config.tls_cert, config.tls_key, config.client_ca)
        self._certificates = (
            Certificates(config.tls_cert, config.tls_key, config.client_ca)
            if config.tls_cert is not None and config.tls_key is not None
            else None
        )
        self._token_files = Changes(config.tokens)
        self._tokens = None if config.tokens is None else access.Tokens(config.tokens)
        self._refused: int | None = None
        self._served = loading.load(config.workdir, model_devices=config.model_devices)
        group = self._served.group_size
        self._client_rows = config.client_rows or max(config.queue_rows // 2, config.max_rows)
        for name, rows in (("max_rows", config.max_rows), ("client_rows", self._client_rows)):
            if rows < group:
                raise UsageError(
                    f"{name} is {rows}, but the training mixed groups of {group}, which arrive "
                    f"whole. Give at least --{name.replace('_', '-')} {group}."
                )
        most = (_LARGEST_BYTES - _HEADER_BYTES) // _row_bytes(self._served)
        if config.max_rows > most:
            raise UsageError(
                f"max_rows is {config.max_rows}, but gRPC takes messages below 2 GiB, which hold "
                f"{most} rows of this network. Give at most --max-rows {most}."
            )
        self._runner = Runner(config.max_rows, group if config.exact else None)

    @property
    def rows(self) -> int:
        """Rows waiting or running."""
        return self._batcher.rows

    async def prepare(self) -> None:
        """Compiles main; then ``service`` can answer."""
        config, served = self.config, self._served
        self._batcher = Batcher(
            self._runner,
            queue_rows=config.queue_rows,
            max_wait=config.max_wait_ms / 1e3,
            observe=self.metrics.batch,
        )
        await self._batcher.in_thread(self._runner.warm_up, served)
        self.service = Service(
            served,
            self._batcher,
            max_rows=min(config.max_rows, self._client_rows),
            tokens=self._tokens,
            client_rows=self._client_rows,
            client_calls=CLIENT_CALLS,
            all_calls=MAX_CALLS,
            receive_seconds=self._receive_seconds,
            metrics=self.metrics,
        )
        self.metrics.model(served.step)
        self.metrics.queue_rows.set_function(lambda: self._batcher.rows)

    async def start(self) -> None:
        """Compiles main, listens, and says SERVING.

        Raises:
            FacemixError: the address cannot be used.
        """
        await self.prepare()
        config = self.config
        self._server = grpc.aio.server(options=_options(self._served, config.max_rows))
        self._server.add_generic_rpc_handlers((self.service.handlers(),))
        self._health = Health()
        self._server.add_generic_rpc_handlers((self._health.handlers(),))
        if self._tokens is None:
            names = (wire.SERVICE, grpc_health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._server)
        host = config.host.strip("[]")
        address = f"[{host}]:{config.port}" if ":" in host else f"{host}:{config.port}"
        try:
            self.port = (
                self._server.add_insecure_port(address)
                if self._certificates is None
                else self._server.add_secure_port(address, self._certificates.credentials)
            )
            self._metrics_server = None
            if config.metrics_port is not None:
                address = f"{host}, metrics_port {config.metrics_port}"
                self._metrics_server = prometheus_client.start_http_server(
                    config.metrics_port, host, self.metrics.registry
                )
        except (RuntimeError, OSError) as error:
            await self._batcher.close()
            reason = str(error).splitlines()[0]
            raise FacemixError(
                f"The cloud cannot listen on {address}: {reason}. Choose another --host, --port or "
                f"--metrics-port, or check the certificate and its key."
            ) from error
        await self._server.start()

    async def stop(self, grace: float = DRAIN_SECONDS) -> None:
        """Says NOT_SERVING, takes no more calls, and lets open ones finish.

        Args:
            grace: seconds after which open calls are cut off.
        """
        self._health.stop()
        self.service.closing = True
        loop = asyncio.get_running_loop()
        give_up = loop.time() + grace
        while self.service.open_calls and not self.hurry and loop.time() < give_up:
            await asyncio.sleep(0.02)
        # gRPC's own stop cancels calls that have arrived and were not handed over yet; in this
        # moment they still are, and are told to go elsewhere.
        await asyncio.sleep(0.2)
        await self._server.stop(1)
        await self._batcher.close()
        if self._metrics_server is not None:
            server, thread = self._metrics_server
            server.shutdown()
            server.server_close()
            thread.join()

    async def reload(self, *, force: bool = False) -> bool:
        """Takes over tokens and certificates that changed and a newer checkpoint.

        Requests in hand keep theirs, and open connections their certificate.

        Args:
            force: read all again whether or not they are new, and a checkpoint that was refused.

        Returns:
            Whether another model is served now. What cannot be used is logged and left alone, so
            that the tokens and certificates known so far stay; nothing is raised, so that whoever
            calls this in turns goes on.
        """
        if self._token_files.found(force=force):
            self._read_again(self._read_tokens, "The tokens known so far stay valid.")
        if self._certificate_files.found(force=force):
            self._read_again(self._read_certificates, "The certificate known so far stays.")
        old = self.service.served
        try:
            step = checkpoint.newest(self.config.workdir / "checkpoints")
            if step is None or (step in (old.step, self._refused) and not force):
                return False
            new = await asyncio.to_thread(
                loading.load,
                self.config.workdir,
                step,
                model_devices=self.config.model_devices,
            )
            if new.apply is not old.apply or new.group_size != old.group_size:
                raise loading.UnusableError(
                    f"The checkpoint {step} in {self.config.workdir} is of another network than "
                    f"the one served. Start another cloud for it."
                )
        except Exception as error:  # whatever it is, later looks must not end
            if isinstance(error, loading.UnusableError):  # and it will not become usable
                self._refused = step
            self._reload_failed(error)
            return False
        self.service.served = new
        self.metrics.reload("done")
        self.metrics.model(new.step)
        log("reloaded", model=new.model_id, step=new.step)
        return new.model_id != old.model_id

    def warn_of_certificate(self) -> None:
        """Logs what an operator should know of the certificate's times, if anything."""
        if self._certificates is not None and (words := self._certificates.warning()) is not None:
            log("certificate", level=logging.WARNING, reason=words)

    def _read_again(self, read: Callable[[], None], otherwise: str) -> None:
        try:
            read()
        except Exception as error:  # never without tokens, which would let everyone in
            self._reload_failed(error, otherwise)

    def _read_tokens(self) -> None:
        path = self.config.tokens
        assert path is not None  # as it has changed
        # Without its last token, too: whoever takes that out of the file wants it to be refused.
        self.service.tokens = tokens = access.Tokens(path, may_be_empty=True)
        if tokens.count:
            log("tokens read")
        else:
            words = f"{path} holds no token any more, so that nobody can call."
            log("tokens read", level=logging.WARNING, reason=words)

    def _read_certificates(self) -> None:
        assert self._certificates is not None  # as their files have changed
        self._certificates.read()
        log("certificate read")
        self.warn_of_certificate()

    def _reload_failed(self, error: Exception, otherwise: str = "") -> None:
        expected = isinstance(error, FacemixError | OSError)
        self.metrics.reload("failed")
        reason = f"{error} {otherwise}".rstrip()
        log("reload failed", level=logging.ERROR, trace=not expected, reason=reason)


async def serve(config: CloudConfig) -> None:
    """Serves until SIGTERM or SIGINT, then drains until a second one at most.

    SIGHUP reads checkpoint, tokens and certificates again.

    Raises:
        FacemixError: it cannot start.
    """
    cloud = Cloud(config)
    loop = asyncio.get_running_loop()
    stopping, hangup = asyncio.Event(), asyncio.Event()

    def end() -> None:
        cloud.hurry = stopping.is_set()
        stopping.set()

    handled = {signal.SIGTERM: end, signal.SIGINT: end, signal.SIGHUP: hangup.set}
    for number, handle in handled.items():
        loop.add_signal_handler(number, handle)
    await cloud.start()
    log(
        "serving",
        address=f"{config.host}:{cloud.port}",
        tls=config.tls_cert is not None,
        model=cloud.service.served.model_id,
        step=cloud.service.served.step,
    )
    if config.tls_cert is None and config.tokens is not None and config.insecure:
        log("tokens travel in plain text", level=logging.WARNING)
    cloud.warn_of_certificate()

    async def watch() -> None:
        while True:
            try:
                await asyncio.wait_for(hangup.wait(), POLL_SECONDS)
            except TimeoutError:
                await cloud.reload()
            else:
                hangup.clear()
                await cloud.reload(force=True)

    watching = asyncio.create_task(watch())
    await stopping.wait()
    log("draining", rows=cloud.rows)
    watching.cancel()
    await cloud.stop()
    log("stopped")


def main(arguments: Sequence[str]) -> int:
    """The command ``facemix serve``.

    Args:
        arguments: behind ``serve``.

    Returns:
        The exit code: 0 drained, 1 failed, 2 wrong usage.
    """
    try:
        config = tyro.cli(CloudConfig, prog="facemix serve", args=arguments)
        log_to_stderr()
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        asyncio.run(serve(config))
    except UsageError as error:
        print(f"facemix: {error}", file=sys.stderr)
        return 2
    except FacemixError as error:
        print(f"facemix: {error}", file=sys.stderr)
        return 1
    except Exception as error:
        if (reason := explain(error)) is not None:
            print(f"facemix: {reason}", file=sys.stderr)
            return 1
        traceback.print_exc()
        print("This is a fault of facemix, not of your input; please report it.", file=sys.stderr)
        return 1
    return 0


def _row_bytes(served: Served) -> int:
    """The most that a row takes in a message, with the scales of int8."""
    shape = served.spec.activation_shape
    return 4 * (math.prod(shape) + shape[-1])


def _options(served: Served, max_rows: int) -> list[tuple[str, Any]]:
    return [
        ("grpc.max_receive_message_length", max_rows * _row_bytes(served) + _HEADER_BYTES),
        ("grpc.max_metadata_size", 16 * 1024),
        ("grpc.max_concurrent_streams", MAX_CALLS),
        ("grpc.so_reuseport", 0),  # a port in use is an error
        # Peers that have gone, never finish a handshake, or sit there.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.http2.ping_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        # Less than the 10 s of the edge, so that pings a little early are not held against it.
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.server_handshake_timeout_ms", 10_000),
        ("grpc.max_connection_idle_ms", 300_000),
        # Clients reconnect now and then, so that new replicas get their part.
        ("grpc.max_connection_age_ms", 3_600_000),
        ("grpc.max_connection_age_grace_ms", 60_000),
    ]
