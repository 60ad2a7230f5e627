"""Health, which anyone may ask: it takes nothing in and keeps nobody out."""

import asyncio

import grpc
import pytest
from cloud_support import Client, running, save_checkpoint
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from facemix_jax.serving import health, wire

CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
SERVING = health_pb2.HealthCheckResponse(status="SERVING").SerializeToString()


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("health") / "run"
    save_checkpoint(workdir)
    return workdir


def test_health_is_told_without_a_body_and_whatever_its_size(workdir):
    async def go():
        async with running(workdir, receive_seconds=0.3) as cloud, Client(cloud) as client:
            silent = client.channel.stream_unary(CHECK)(timeout=10)
            assert await silent == SERVING
            large = client.channel.unary_unary(CHECK)
            answers = await asyncio.gather(*(large(bytes(2**24), timeout=20) for _ in range(3)))
            assert answers == 3 * [SERVING]
            # The negative control: other calls wait for their body.
            with pytest.raises(grpc.aio.AioRpcError, match="did not arrive"):
                await client.channel.stream_unary(wire.RUN)(timeout=10)

    asyncio.run(go())


def test_watchers_are_counted_and_their_places_come_back(workdir, monkeypatch):
    monkeypatch.setattr(health, "WATCHERS", 2)

    async def go():
        async with running(workdir) as cloud, Client(cloud) as client:
            watch = client.channel.stream_stream(WATCH)
            watching = [watch() for _ in range(2)]
            for call in watching:
                assert await call.read() == SERVING
            third = watch(timeout=10)
            with pytest.raises(grpc.aio.AioRpcError, match="2 watchers and takes 2"):
                await third.read()
            assert await client.channel.stream_unary(CHECK)(timeout=10) == SERVING
            await client.describe()
            watching[0].cancel()
            while cloud._health._watchers == 2:
                await asyncio.sleep(0.01)
            assert await watch().read() == SERVING

    asyncio.run(go())


@pytest.mark.parametrize("with_tokens", [True, False])
def test_reflection_is_there_only_where_nobody_needs_a_token(workdir, tmp_path, with_tokens):
    tokens = tmp_path / "tokens"
    tokens.write_text("phone correct-horse\n")
    tokens.chmod(0o600)

    async def go():
        options = {"tokens": tokens} if with_tokens else {}
        async with running(workdir, **options) as cloud, Client(cloud) as client:
            stub = reflection_pb2_grpc.ServerReflectionStub(client.channel)
            ask = reflection_pb2.ServerReflectionRequest(list_services="")
            try:
                [answer] = [a async for a in stub.ServerReflectionInfo(iter([ask]), timeout=10)]
            except grpc.aio.AioRpcError as error:
                return error.code().name
            return {service.name for service in answer.list_services_response.service}

    found = asyncio.run(go())
    assert found == "UNIMPLEMENTED" if with_tokens else wire.SERVICE in found
