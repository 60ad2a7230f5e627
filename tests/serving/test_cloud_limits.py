"""What the service refuses, cuts off or finishes: queues, deadlines, silent peers, stopping."""

import asyncio
import time

import grpc
import numpy as np
import pytest
from cloud_support import (
    Blocked,
    Client,
    activations,
    reference,
    request,
    running,
)
from grpc_health.v1 import health_pb2, health_pb2_grpc

from facemix_jax._validate import FacemixError
from facemix_jax.serving import cloud as cloud_module
from facemix_jax.serving import loading, wire
from facemix_jax.serving.batching import Batcher, Runner
from facemix_jax.serving.cloud import Cloud
from facemix_jax.serving.cloud_config import CloudConfig


def test_a_call_without_a_body_times_out(trained):
    workdir, model, _ = trained

    async def go():
        async with running(workdir, receive_seconds=0.3) as cloud, Client(cloud) as client:
            silent = client.channel.stream_unary(wire.RUN)(timeout=10)
            with pytest.raises(grpc.aio.AioRpcError, match=r"did not arrive within 0.3 s"):
                await silent
            empty = client.channel.stream_unary(wire.RUN)(iter([]), timeout=10)
            with pytest.raises(grpc.aio.AioRpcError, match="no message"):
                await empty
            assert len(await client.rows(request(cloud, activations(model, 1)))) == 1

    asyncio.run(go())


def test_a_full_queue_refuses_at_once_and_loses_nothing(trained, monkeypatch):
    workdir, model, variables = trained

    async def go():
        options = {"max_rows": 4, "queue_rows": 8, "client_rows": 8}
        async with running(workdir, **options) as cloud, Client(cloud) as client:
            blocked = Blocked(monkeypatch)
            x = activations(model, 4)
            waiting = [asyncio.create_task(client.rows(request(cloud, x))) for _ in range(2)]
            await blocked.until_entered()
            while cloud.rows < 8:
                await asyncio.sleep(0.01)
            cloud.service._rows._limit = 100  # the queue's own limit
            status, words = await client.refusal(request(cloud, activations(model, 1)))
            assert (status, "holds 8 rows and takes 8" in words) == ("RESOURCE_EXHAUSTED", True)
            cloud.service._rows._limit = 8
            status, words = await client.refusal(request(cloud, activations(model, 1)))
            assert (status, "8 rows in hand" in words) == ("RESOURCE_EXHAUSTED", True)
            blocked.release()
            for answer in await asyncio.gather(*waiting):
                np.testing.assert_array_equal(answer, reference(model, variables, x))
            assert cloud.rows == 0

    asyncio.run(go())


def test_too_many_open_calls_are_refused(trained, monkeypatch):
    workdir, model, _ = trained

    async def go():
        async with running(workdir) as cloud, Client(cloud) as client:
            x = activations(model, 1)
            await client.rows(request(cloud, x))  # gives back no more than it took
            blocked = Blocked(monkeypatch)
            cloud.service._all_calls, cloud.service._calls._limit = 2, 1
            waiting = asyncio.create_task(client.rows(request(cloud, x)))
            await blocked.until_entered()
            status, words = await client.refusal(request(cloud, x))
            assert (status, "1 calls in hand" in words) == ("RESOURCE_EXHAUSTED", True)
            cloud.service._all_calls = 1
            status, words = await client.refusal(request(cloud, x))
            assert (status, "1 calls open" in words) == ("RESOURCE_EXHAUSTED", True)
            blocked.release()
            await waiting

    asyncio.run(go())


def test_rows_whose_deadline_has_passed_never_run(trained):
    workdir, model, _ = trained
    served = loading.load(workdir)
    ran = []

    class Slow(Runner):
        def __call__(self, served, requests):
            ran.append([len(rows) for rows in requests])
            time.sleep(0.2)
            yield from super().__call__(served, requests)

    async def go():
        batcher = Batcher(Slow(4, 4), queue_rows=64, max_wait=0)
        x = activations(model, 4)
        first = asyncio.create_task(batcher.submit(served, x))
        await asyncio.sleep(0.05)
        late = asyncio.create_task(batcher.submit(served, x[:3], 0.01))
        gone = asyncio.create_task(batcher.submit(served, x[:2], None))
        last = asyncio.create_task(batcher.submit(served, x[:1], 20))
        await asyncio.sleep(0.01)
        gone.cancel()
        assert len(await first) == 4
        with pytest.raises(FacemixError, match="deadline passed"):
            await late
        assert len(await last) == 1
        assert ran == [[4], [1]]
        await asyncio.sleep(0.01)
        assert batcher.rows == 0
        await batcher.close()

    asyncio.run(go())


def test_stopping_finishes_open_calls_and_takes_no_new_ones(trained, monkeypatch):
    workdir, model, variables = trained

    async def go():
        cloud = Cloud(CloudConfig(workdir=workdir, port=0))
        await cloud.start()
        async with Client(cloud) as client, Client(cloud) as other:
            await other.describe()
            watch = health_pb2_grpc.HealthStub(other.channel).Watch(
                health_pb2.HealthCheckRequest(service=wire.SERVICE)
            )
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            blocked = Blocked(monkeypatch)
            x = activations(model, 4)
            waiting = asyncio.create_task(client.rows(request(cloud, x)))
            await blocked.until_entered()
            stopping = asyncio.create_task(cloud.stop(grace=10))
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            watch.cancel()
            await asyncio.sleep(0.1)
            with pytest.raises(grpc.aio.AioRpcError, match=r"UNAVAILABLE"):
                await other.describe()
            assert not stopping.done()
            blocked.release()
            np.testing.assert_array_equal(await waiting, reference(model, variables, x))
            await stopping

    asyncio.run(go())


def with_options(monkeypatch, **values):
    """Changes those of gRPC's options that a cloud has."""
    options = cloud_module._options

    def changed(*arguments):
        pairs = ((name, name.split(".")[-1], value) for name, value in options(*arguments))
        return [(name, values.get(last, value)) for name, last, value in pairs]

    monkeypatch.setattr(cloud_module, "_options", changed)


def test_a_peer_that_answers_no_ping_is_cut_off(trained, monkeypatch):
    with_options(monkeypatch, keepalive_time_ms=300, ping_timeout_ms=300)

    async def go():
        async with running(trained[0]) as cloud:
            reader, writer = await asyncio.open_connection("127.0.0.1", cloud.port)
            settings = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
            acknowledged = bytes([0, 0, 0, 4, 1, 0, 0, 0, 0])
            writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings + acknowledged)
            sent = await asyncio.wait_for(reader.read(), 10)  # to the end
            assert bytes([0, 0, 8, 6, 0, 0, 0, 0, 0]) in sent, "it was asked"
            writer.close()

    asyncio.run(go())


def test_edges_may_ask_for_signs_of_life(trained, monkeypatch):
    """As gRPC ends calls of clients that ping more often than a server says."""
    with_options(monkeypatch, min_ping_interval_without_data_ms=50)
    pings = [("grpc.keepalive_time_ms", 200), ("grpc.http2.max_pings_without_data", 0)]

    async def go():
        async with running(trained[0]) as cloud:
            blocked = Blocked(monkeypatch)
            message = request(cloud, activations(trained[1], 4)).SerializeToString()
            async with grpc.aio.insecure_channel(f"127.0.0.1:{cloud.port}", pings) as channel:
                waiting = asyncio.ensure_future(channel.unary_unary(wire.RUN)(message, timeout=20))
                await blocked.until_entered()
                await asyncio.sleep(5)  # four pings; gRPC sends one a second at most
                blocked.release()
                assert await waiting

    asyncio.run(go())
