"""The edge's client: right results, fresh keys, wrong answers noticed, nothing private sent."""

import asyncio
import functools
import itertools
import os
import re
import secrets
import threading
import time

import grpc
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cloud_support import reference, run_config, running, save_checkpoint
from edge_support import (
    FakeCloud,
    M,
    client_of,
    honest,
    pictures,
    sent_rows,
)

from facemix_jax import data, defenses, inference, keys, mixing
from facemix_jax._validate import UsageError
from facemix_jax.serving import clouds, edge
from facemix_jax.serving.cloud import POLL_SECONDS
from facemix_jax.serving.edge import AsyncEdgeClient, Connection
from facemix_jax.serving.fillers import fillers


class TestResults:
    def test_two_processes_give_exactly_what_one_gives(self, trained, root, process, monkeypatch):
        _, model, variables = trained
        identifiers = []

        def record(count):
            identifiers.append(os.urandom(count))
            return identifiers[-1]

        monkeypatch.setattr(secrets, "token_bytes", record)
        images = pictures(12)
        with client_of(trained, root, process.address) as client:
            found = client.predict(images)
        key = keys.fresh_mix_key(root, identifiers[-1], 3, M, shuffle=True)
        z = jax.jit(lambda v, x: model.pre(v, data.normalize(x)))(variables["pre"], images)
        sent = np.asarray(jax.jit(mixing.mix)(key, z))
        responses = jnp.asarray(reference(model, variables, sent))
        features = jax.jit(mixing.unmix)(key, responses)
        expected = jax.jit(model.post.apply)(variables["post"], features)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected)

    def test_defence_none_gives_the_network_itself(self, tmp_path, root, loop):
        config = run_config()
        plain = edge.segments.runs.RunConfig(
            model=config.model,
            defense=defenses.DefenseConfig(defense="none"),
            train=config.train,
        )
        model, variables = save_checkpoint(tmp_path / "run", config=plain)
        cloud = FakeCloud(loop, honest(model, variables, chunk=8))
        images = pictures(6)
        with pytest.raises(UsageError, match=r"without a defence.*as they are"):
            client_of((tmp_path / "run",), root, cloud.address)
        with client_of((tmp_path / "run",), root, cloud.address, unprotected=True) as client:
            found = client.infer(images)
        infer = jax.jit(functools.partial(inference.infer, model, defenses.none()))
        expected = infer(variables, jax.random.key(0), data.normalize(images))
        np.testing.assert_allclose(found.logits, expected, atol=1e-5 * np.abs(expected).max())
        assert found.fillers == 0
        cloud.stop()

    def test_asyncio_and_real_cloud_say_where_time_went(self, trained, root):
        async def go():
            async with running(trained[0]) as cloud:
                connection = Connection(clouds=(f"127.0.0.1:{cloud.port}",))
                async with AsyncEdgeClient(trained[0], root, connection) as client:
                    return await asyncio.gather(*(client.infer(pictures(8)) for _ in range(3)))

        for found in asyncio.run(go()):
            assert found.logits.shape == (8, 3, 2)
            assert min(vars(found.timing).values()) > 0
            assert (found.requests, found.retries) == (1, 0)

    def test_groups_are_spread_over_clouds(self, trained, root, fake):
        both = fake(), fake()
        images = pictures(16)
        with client_of(trained, root, *(c.address for c in both)) as client:
            spread = client.infer(images)
        assert spread.requests == 2
        assert [[r.activations.shape[0] for r in c.requests] for c in both] == [[8], [8]]
        with client_of(trained, root, both[0].address, request_rows=4) as client:
            assert client.infer(images).requests == 4


class TestFillers:
    def test_incomplete_groups_are_completed_and_equal_images_sent_once(self, trained, root, fake):
        cloud = fake()
        images = pictures(5)
        with client_of(trained, root, cloud.address) as client:
            found = client.infer(images[[0, 1, 0, 2, 3, 4]])
            alone = client.infer(images[:1])
        assert (found.fillers, found.repeated) == (3, 1)
        np.testing.assert_array_equal(found.logits[0], found.logits[2])
        assert found.logits.shape == (6, 3, 2)
        assert alone.fillers == 3
        for request in cloud.requests:
            rows = sent_rows(request)
            assert np.linalg.matrix_rank(rows) == len(rows)  # mixtures of as many pictures

    def test_one_picture_sent_twice_alone_gives_nothing_new(self, trained, root, fake):
        cloud = fake()
        with client_of(trained, root, cloud.address) as client:
            for _ in range(2):
                client.infer(pictures(1))
            z = np.asarray(client.segments.pre(pictures(4)))[0].ravel()
            # The negative control: fresh company each time.
            for start in (1, 4):
                client.infer(np.concatenate([pictures(1), pictures(3, start)]))
        ours, fresh = (
            np.concatenate([sent_rows(r) for r in pair])
            for pair in (cloud.requests[:2], cloud.requests[2:])
        )
        assert np.linalg.matrix_rank(ours, tol=1e-3) == M
        assert np.linalg.matrix_rank(fresh, tol=1e-3) == 2 * M - 1
        # The spans of the two fresh groups meet in the picture that they share.
        first, second = (np.linalg.qr(sent_rows(r).T)[0] for r in cloud.requests[2:])
        left, values, _ = np.linalg.svd(first.T @ second)
        assert values[0] > 0.9999
        shared = first @ left[:, 0]
        assert abs(shared @ z) / np.linalg.norm(z) > 0.999

    def test_a_group_sent_again_in_another_order_gives_nothing_new(self, trained, root, fake):
        cloud, images = fake(), pictures(3)
        with client_of(trained, root, cloud.address) as client:
            for order in ([0, 1, 2], [2, 0, 1], [1, 1, 0, 2]):
                client.infer(images[order])
        rows = np.concatenate([sent_rows(r) for r in cloud.requests])
        assert np.linalg.matrix_rank(rows, tol=1e-3) == M

    def test_fillers_follow_from_secret_and_pictures_alone(self, root):
        images = pictures(2)
        drawn = fillers(root, images, 3)
        assert drawn.shape == (3, 40, 36, 3)
        assert drawn.dtype == np.uint8
        for same in (images, images[::-1]):
            np.testing.assert_array_equal(drawn, fillers(root, same, 3))
        for other in (
            fillers(root, images[:1], 3),
            fillers(root, images[[0, 0, 1, 1]], 3),
            fillers(keys.RootSecret(b"x" * 32), images, 3),
        ):
            assert np.abs(other.astype(float) - drawn).mean() > 10
        flat = drawn.reshape(3, -1).astype(float)
        assert np.abs(np.corrcoef(flat) - np.eye(3)).max() < 0.5
        assert (drawn.std(axis=(1, 2, 3)) > 20).all()
        assert fillers(root, images, 0).shape == (0, 40, 36, 3)


class TestRetries:
    def test_a_retry_is_mixed_anew(self, trained, root, fake):
        answer = honest(*trained[1:])
        status = iter([grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED])
        cloud = fake(lambda request: next(status, None) or answer(request))
        with client_of(trained, root, cloud.address) as client:
            found = client.infer(pictures(8))
            post = client.segments.post
        assert found.retries == 2
        assert len({r.request_id for r in cloud.requests}) == 3
        # The answer is unmixed with the key of the attempt that it answers.
        last = cloud.requests[-1]
        key = keys.fresh_mix_key(root, last.request_id, 2, M, shuffle=True)
        rows = sent_rows(last).reshape(last.activations.shape)
        features = mixing.unmix(key, jnp.asarray(reference(*trained[1:], rows)))
        expected = np.concatenate([post(features[:M]), post(features[M:])])
        np.testing.assert_allclose(found.logits, expected, atol=1e-5)
        for a, b in itertools.combinations([sent_rows(r) for r in cloud.requests], 2):
            norms = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)
            assert np.abs(a @ b.T / norms).max() < 0.99999  # no row again, nor its negative
            # The same pictures in the same groups: nothing but the key is new.
            assert np.linalg.matrix_rank(np.concatenate([a, b]), tol=1e-3) == 8

    def test_waits_double_up_to_two_seconds(self, trained, root, fake, monkeypatch):
        answer = honest(*trained[1:])
        status = iter([grpc.StatusCode.UNAVAILABLE] * 7)
        cloud = fake(lambda request: next(status, None) or answer(request))
        waits, sleep = [], asyncio.sleep

        async def record(seconds):
            waits.append(seconds)
            await sleep(0)

        with client_of(trained, root, cloud.address) as client:
            monkeypatch.setattr(asyncio, "sleep", record)
            monkeypatch.setattr(secrets, "randbelow", lambda limit: limit // 2)  # no jitter
            assert client.infer(pictures(4)).retries == 7
            monkeypatch.undo()
        assert waits == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0])

    def test_a_deadline_that_passes_is_tried_again(self, trained, root, fake):
        answer = honest(*trained[1:])
        first = iter([5.0])
        cloud = fake(lambda request: next(first, None) or answer(request))
        with client_of(trained, root, cloud.address, timeout_s=1.0) as client:
            assert client.infer(pictures(4)).retries >= 1

    def test_the_other_cloud_takes_over(self, trained, root, fake):
        dead, alive = fake(), fake()
        dead.stop()
        with client_of(trained, root, dead.address, alive.address) as client:
            for _ in range(3):
                client.predict(pictures(8))
        assert len(alive.requests) == 6
        dead.stop = lambda: None

    @pytest.mark.parametrize(
        ("status", "words"),
        [
            (grpc.StatusCode.UNAUTHENTICATED, "token"),
            (grpc.StatusCode.INTERNAL, "operator"),
        ],
    )
    def test_refusals_are_not_tried_again(self, trained, root, fake, status, words):
        cloud = fake(lambda request: status)
        with (
            client_of(trained, root, cloud.address) as client,
            pytest.raises(edge.CloudError, match=f"{status.name}.*{words}") as caught,
        ):
            client.predict(pictures(4))
        assert ".." not in str(caught.value)
        assert len(cloud.requests) == 1

    def test_a_model_that_nobody_serves_is_refused_in_the_clouds_words(
        self, trained, root, fake, monkeypatch
    ):
        monkeypatch.setattr(clouds, "_REFUSED_S", 2.0)
        cloud = fake(lambda request: grpc.StatusCode.FAILED_PRECONDITION)
        words = r"FAILED_PRECONDITION: On purpose\. Or make the client anew"
        for give_up_s, least, most in ((10.0, 2.0, 5.0), (0.5, 0.0, 2.0)):
            cloud.requests.clear()
            start = time.monotonic()
            with (
                client_of(trained, root, cloud.address, give_up_s=give_up_s) as client,
                pytest.raises(edge.CloudError, match=words),
            ):
                client.predict(pictures(4))
            assert 3 <= len(cloud.requests) <= 10  # perhaps of several replicas, which take turns
            assert least <= time.monotonic() - start < most

    def test_a_client_waits_until_the_cloud_has_found_its_checkpoint(self, trained, root, fake):
        """Longer than the six answers at least that a call which is wrong gets."""
        assert clouds._REFUSED_S > POLL_SECONDS + 2
        answer, start = honest(*trained[1:]), time.monotonic()
        cloud = fake(
            lambda request: (
                answer(request)
                if time.monotonic() - start > 3
                else grpc.StatusCode.FAILED_PRECONDITION
            )
        )
        with client_of(trained, root, cloud.address) as client:
            assert client.infer(pictures(4)).retries >= 6

    def test_one_cloud_of_another_model_is_passed_over(self, trained, root, fake, monkeypatch):
        other = fake(lambda request: grpc.StatusCode.FAILED_PRECONDITION)
        right = fake(honest(*trained[1:]))
        for addresses in ((other.address, right.address), (right.address, other.address)):
            said = []
            with client_of(trained, root, *addresses, say=said.append) as client:
                assert client.infer(pictures(8)).requests == 2
            assert said == [f"{other.address} serves another model; trying again."]
        right.answer = other.answer
        monkeypatch.setattr(clouds, "_FIRST_WAIT_S", 0.001)
        monkeypatch.setattr(clouds, "_REFUSED_S", 0.1)
        with (
            client_of(trained, root, other.address, right.address) as client,
            pytest.raises(edge.CloudError, match="FAILED_PRECONDITION"),
        ):
            client.infer(pictures(4))

    def test_giving_up_says_why_and_waiting_says_so_once(self, trained, root):
        said = []
        with (
            client_of(trained, root, "127.0.0.1:1", give_up_s=0.5, say=said.append) as client,
            pytest.raises(edge.CloudError, match=r"127\.0\.0\.1:1 answers UNAVAILABLE.*address"),
        ):
            client.predict(pictures(4))
        (line,) = said
        assert re.match(r"No answer from 127\.0\.0\.1:1 yet \(UNAVAILABLE.*another 0 s", line)


class TestClosing:
    def test_calls_that_wait_and_later_ones_are_told(self, trained, root, fake):
        cloud = fake(lambda request: 30.0)
        client = client_of(trained, root, cloud.address, timeout_s=60.0)
        told = []

        def wait():
            with pytest.raises(UsageError, match=r"is closed\. Make a new one"):
                client.infer(pictures(4))
            told.append(True)

        threads = [threading.Thread(target=wait, daemon=True) for _ in range(2)]
        for thread in threads:
            thread.start()
        while len(cloud.requests) < 2:
            time.sleep(0.01)
        client.close()
        for thread in threads:
            thread.join(5)
        client.close()
        wait()
        assert len(told) == 3

    def test_asyncio_tells_a_closed_connection_from_a_cancelled_task(self, trained, root, fake):
        cloud = fake(lambda request: 30.0)

        async def go():
            client = AsyncEdgeClient(trained[0], root, Connection(clouds=(cloud.address,)))
            for end in ("close", "cancel"):
                task = asyncio.create_task(client.infer(pictures(4)))
                cloud.requests.clear()
                while not cloud.requests:
                    await asyncio.sleep(0.01)
                if end == "cancel":
                    task.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await task
                await client.close()
                if end == "close":
                    with pytest.raises(UsageError, match="closed while it waited"):
                        await task

        asyncio.run(go())

    def test_a_call_that_computes_when_the_client_is_closed_sends_nothing(
        self, trained, root, fake, monkeypatch
    ):
        cloud = fake()

        async def go():
            client = AsyncEdgeClient(trained[0], root, Connection(clouds=(cloud.address,)))
            computing, closed, pre = threading.Event(), threading.Event(), client._pre

            def slow(*arguments):
                computing.set()
                assert closed.wait(10)
                return pre(*arguments)

            monkeypatch.setattr(client, "_pre", slow)
            task = asyncio.create_task(client.infer(pictures(4)))
            await asyncio.to_thread(computing.wait, 10)
            await client.close()
            closed.set()
            with pytest.raises(UsageError, match="was closed"):
                await task
            assert client._turns is None  # no channel was opened again
            assert not cloud.requests
            assert (await client.infer(pictures(4))).requests == 1  # a later call opens its own
            await client.close()

        asyncio.run(go())


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((0, 40, 36, 3), np.uint8),
        np.zeros((2, 40, 36, 3), np.float32),
        np.zeros((2, 36, 40, 3), np.uint8),
    ],
)
def test_wrong_images_are_refused(trained, root, images):
    with (
        client_of(trained, root, "localhost:1") as client,
        pytest.raises(UsageError, match=r"must be uint8 \[N, 40, 36, 3\]"),
    ):
        client.predict(images)
