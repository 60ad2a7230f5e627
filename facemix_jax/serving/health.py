"""gRPC's health service, which answers before anything is read.

Anyone may ask, as orchestrators carry no token. gRPC takes a message in whole, of up to the size
that mixtures need, before its content can be checked. So what is asked is never taken in: the
answer is that of the process, whatever service is named. A question then takes no place among the
cloud's calls, and no memory but what gRPC buffers of a stream before anyone reads it. That was up
to 7 MiB a stream on loopback, which is why there are few places for ``Watch``.
"""

import asyncio
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2

WATCHERS = 16
"""Calls of ``Watch`` open at once, of all clients; beyond it they are refused."""


class Health:
    """SERVING until ``stop``, then NOT_SERVING."""

    def __init__(self) -> None:
        self._stopped = asyncio.Event()
        self._watchers = 0

    def stop(self) -> None:
        """Says NOT_SERVING from now on, also to those who watch."""
        self._stopped.set()

    def handlers(self) -> grpc.GenericRpcHandler:
        """What a server adds; streams of messages, because gRPC reads single ones by itself."""
        return grpc.method_handlers_generic_handler(
            health.SERVICE_NAME,
            {
                "Check": grpc.stream_unary_rpc_method_handler(self._check),
                "Watch": grpc.stream_stream_rpc_method_handler(self._watch),
            },
        )

    def _answer(self) -> bytes:
        response = health_pb2.HealthCheckResponse
        status = response.NOT_SERVING if self._stopped.is_set() else response.SERVING
        answer: bytes = response(status=status).SerializeToString()
        return answer

    async def _check(self, _: Any, context: Any) -> bytes:
        return self._answer()

    async def _watch(self, _: Any, context: Any) -> None:
        if self._watchers >= WATCHERS:
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"The cloud has {self._watchers} watchers and takes {WATCHERS}. Call Check.",
            )
        self._watchers += 1
        try:
            await context.write(self._answer())
            if not self._stopped.is_set():
                await self._stopped.wait()
                await context.write(self._answer())
            await asyncio.Event().wait()  # until the client or the server ends the call
        finally:
            self._watchers -= 1
