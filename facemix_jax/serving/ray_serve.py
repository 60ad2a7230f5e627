"""The cloud as a Ray Serve application: main in replicas behind Ray's gRPC proxy.

Calls are answered by the same ``service.Service`` as in ``facemix serve``, so the edge's client
works unchanged; several applications behind one proxy are told apart by the metadata
``application``, which it does not send. Mixing is not a cipher: whoever runs this can undo it. This
module cannot reach ``mixing``, ``keys`` or ``defenses``.

Other than ``facemix serve``, Ray's proxy listens on all addresses, in plain text, and takes
messages in whole before anything is checked: put something before it that speaks TLS and limits
sizes (or lower ``RAY_SERVE_GRPC_MAX_MESSAGE_SIZE``). Ray also keeps a request's bytes until it is
answered. Bearer tokens are checked in the replicas. Health is Ray's own service, and the counters
for Prometheus are not exported.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

import grpc
from ray import serve
from ray.serve.grpc_util import RayServegRPCContext

from facemix_jax._files import expanded
from facemix_jax._validate import UsageError, one_of
from facemix_jax.serving import wire
from facemix_jax.serving import wire_pb2 as pb
from facemix_jax.serving.cloud import MAX_CALLS, POLL_SECONDS, Cloud
from facemix_jax.serving.cloud_config import CloudConfig
from facemix_jax.serving.service import RefusedError


class Replica:
    """One process with main; Ray calls its methods with the bodies of calls.

    Args:
        config: what to serve; address, TLS and metrics are Ray's.

    Raises:
        FacemixError: something is missing or wrong.
    """

    async def __init__(self, config: CloudConfig) -> None:  # type: ignore[misc]  # Ray awaits it
        """Loads and compiles main; asynchronous, as the queue belongs to the running loop."""
        self._cloud = Cloud(config)
        await self._cloud.prepare()
        self._watching = asyncio.create_task(self._watch())

    async def run(self, body: bytes, grpc_context: RayServegRPCContext) -> Any:
        """Main's responses to a serialised ``RunRequest``, or a status in the context."""
        return await self._answer("Run", pb.RunResponse, body, grpc_context)

    async def describe(self, body: bytes, grpc_context: RayServegRPCContext) -> Any:
        """What is served, for a serialised ``DescribeRequest``, or a status in the context."""
        return await self._answer("Describe", pb.DescribeResponse, body, grpc_context)

    Run, Describe = run, describe  # the names of the calls on the wire

    async def _answer(
        self, name: str, nothing: type, body: bytes, context: RayServegRPCContext
    ) -> Any:
        try:
            return await self._cloud.service.answer(name, _Call(body, context))
        except RefusedError as error:
            context.set_code(error.status)
            context.set_details(str(error))
            return nothing()  # Ray sends the status instead

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(POLL_SECONDS)
            await self._cloud.reload()


class _Call:
    """A call that Ray's proxy took in, as ``service.Call``."""

    def __init__(self, body: bytes, context: RayServegRPCContext) -> None:
        self._body = body
        self.invocation_metadata = context.invocation_metadata
        self.auth_context = context.auth_context
        self.peer = context.peer
        self.set_trailing_metadata = context.set_trailing_metadata

    async def read(self) -> bytes:
        return self._body

    def time_remaining(self) -> None:
        """Unknown here; Ray cancels calls whose deadline has passed."""


def add_to_server(servicer: Any, server: Any) -> None:
    """Tells Ray's proxy the names of the calls; for its option ``grpc_servicer_functions``.

    Bodies are handed on as bytes, so that malformed ones get their own status in the replica.

    Args:
        servicer: stands for the replicas.
        server: the proxy's.
    """
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(getattr(servicer, name))
        for name in ("Run", "Describe")
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(wire.SERVICE, handlers),))


def app(args: Mapping[str, str]) -> serve.Application:
    """Builds the application; ``serve run`` and Serve's configuration files call it.

    Args:
        args: ``workdir``, of a training run, and optionally ``tokens``, a file as that of
            ``facemix serve``. Both lie at the same place on every machine.

    Raises:
        UsageError: an argument is missing or unknown, or in the folder of an unknown user.
    """
    for name in args:
        one_of(("workdir", "tokens"), argument=name)
    if "workdir" not in args:
        raise UsageError("No workdir is given. Give that of a training run: workdir=runs/m8")
    # Replicas may run in another folder.
    paths = {name: expanded(path).absolute() for name, path in args.items()}
    config = CloudConfig(workdir=paths["workdir"], tokens=paths.get("tokens"))
    deployment = serve.deployment(
        name="facemix",
        # Beyond these, calls wait in the proxy, and beyond those they are refused.
        max_ongoing_requests=MAX_CALLS,
        max_queued_requests=MAX_CALLS,
    )
    return deployment(Replica).bind(config)
