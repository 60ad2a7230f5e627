"""What the edge sends to clouds that take few rows."""

import asyncio

import grpc
import numpy as np
import pytest
from cloud_support import running
from edge_support import client_of, pictures

from facemix_jax._validate import UsageError
from facemix_jax.serving import edge
from facemix_jax.serving.edge import AsyncEdgeClient, Connection, EdgeConfig


@pytest.fixture
def small(fake):
    """Starts a cloud that takes so many rows at once."""

    def start(max_rows):
        cloud = fake()
        cloud.max_rows = max_rows
        return cloud

    return start


def sizes(cloud):
    return [request.activations.shape[0] for request in cloud.requests]


@pytest.mark.parametrize(
    ("max_rows", "sent"),
    [([1024], [[32]]), ([11], [[8] * 4]), ([16, 5], [[4] * 4] * 2)],
    ids=["no limit", "whole groups", "of all clouds"],
)
def test_requests_are_as_large_as_every_cloud_takes(trained, root, small, max_rows, sent):
    clouds = [small(rows) for rows in max_rows]
    with client_of(trained, root, *(c.address for c in clouds)) as client:
        client.infer(pictures(32))
        assert [sizes(cloud) for cloud in clouds] == sent
        client.infer(pictures(4))
    assert [cloud.described for cloud in clouds] == [1] * len(clouds)


def test_a_cloud_that_cannot_be_asked_holds_nobody_up(trained, root, small):
    cloud = small(8)
    with client_of(trained, root, "127.0.0.1:1", cloud.address) as client:
        client.infer(pictures(16))
    assert sizes(cloud) == [8, 8]


def test_a_cloud_that_starts_anew_with_fewer_rows_is_asked_again(trained, root, small):
    cloud = small(16)
    with client_of(trained, root, cloud.address) as client:
        assert client.infer(pictures(16)).requests == 1
        cloud.max_rows, answer = 4, cloud.answer
        cloud.answer = lambda request: (
            answer(request)
            if request.activations.shape[0] <= 4
            else grpc.StatusCode.INVALID_ARGUMENT
        )
        assert client.infer(pictures(16)).requests == 4
        assert client.infer(pictures(16)).requests == 4
        assert cloud.described == 2
        cloud.answer = lambda request: grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(edge.CloudError, match="INVALID_ARGUMENT"):
            client.infer(pictures(4))


def test_less_than_a_group_is_refused_before_anything_is_sent(trained, root, small):
    cloud = small(3)
    with (
        client_of(trained, root, cloud.address) as client,
        pytest.raises(UsageError, match=r"takes 3 rows.*groups of 4.*--max-rows 4"),
    ):
        client.infer(pictures(4))
    assert not cloud.requests


def test_a_real_cloud_of_few_rows_answers_many_pictures(trained, root):
    async def go():
        async with running(trained[0], max_rows=8) as cloud:
            connection = Connection(clouds=(f"127.0.0.1:{cloud.port}",))
            config = EdgeConfig(give_up_s=1)
            async with AsyncEdgeClient(trained[0], root, connection, config) as client:
                return await client.infer(pictures(40))

    found = asyncio.run(go())
    assert (found.requests, found.retries) == (5, 0)
    assert np.isfinite(found.logits).all()


@pytest.mark.parametrize(
    ("details", "attempts"), [("Received message larger than max (9 vs. 8)", 1), ("full", 2)]
)
def test_a_message_that_is_too_large_is_not_sent_again(
    trained, root, small, monkeypatch, details, attempts
):
    tried = []

    async def refuse(cloud, request, timeout):
        tried.append(request)
        if len(tried) == 2:
            raise grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, None, None, "enough")
        raise grpc.aio.AioRpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, None, None, details)

    monkeypatch.setattr(edge.Cloud, "run", refuse)
    words = "larger than max.*request_rows.*--max-rows" if attempts == 1 else "INTERNAL: enough"
    with (
        client_of(trained, root, small(8).address) as client,
        pytest.raises(edge.CloudError, match=words),
    ):
        client.infer(pictures(4))
    assert len(tried) == attempts
