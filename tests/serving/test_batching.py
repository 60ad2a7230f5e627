"""The queue before main."""

import asyncio
import threading

import numpy as np
import pytest

from facemix_jax.serving.batching import Batcher, QueueFullError, Runner


def test_a_cancelled_request_leaves_its_place_in_the_queue():
    gate, ran = threading.Event(), []

    class Halting(Runner):
        def __call__(self, served, requests):
            assert gate.wait(20)
            ran.extend(int(rows[0, 0]) for rows in requests)
            yield from requests

    async def go():
        batcher = Batcher(Halting(4, 4), queue_rows=12, max_wait=0.0)

        def start(number):
            return asyncio.create_task(batcher.submit(None, np.full((4, 1), number)))

        running = start(0)
        await asyncio.sleep(0.05)
        kept, gone = start(1), start(2)
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError, match="holds 12 rows and takes 12"):
            await start(3)
        for task, left in ((gone, 8), (running, 8)):  # what runs keeps its place
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert batcher.rows == left
        last = start(4)
        gate.set()
        await asyncio.gather(kept, last)
        assert ran == [0, 1, 4]
        assert batcher.rows == 0
        await batcher.close()

    asyncio.run(go())


def test_answered_rows_make_room_while_the_others_of_their_batch_run():
    gate = threading.Event()

    class Halting(Runner):
        def __call__(self, served, requests):
            yield requests[0]
            assert gate.wait(20)
            yield from requests[1:]

    async def go():
        batcher = Batcher(Halting(8, 4), queue_rows=8, max_wait=0.0)
        first, second = (
            asyncio.create_task(batcher.submit(None, np.full((n, 1), n))) for n in (4, 3)
        )
        assert len(await first) == 4
        assert batcher.rows == 3
        gate.set()
        assert len(await second) == 3
        assert batcher.rows == 0
        await batcher.close()

    asyncio.run(go())


def test_batches_fill_to_the_last_row_and_then_run_at_once():
    ran = []

    class Recording(Runner):
        def __call__(self, served, requests):
            ran.append([len(rows) for rows in requests])
            yield from requests

    async def go():
        batcher = Batcher(Recording(12, None), queue_rows=64, max_wait=60.0)
        waiting = []
        for _ in range(3):
            waiting.append(asyncio.create_task(batcher.submit(None, np.ones((4, 1)))))
            await asyncio.sleep(0.02)
        await asyncio.wait_for(asyncio.gather(*waiting), 10)
        assert ran == [[4, 4, 4]]
        await batcher.close()

    asyncio.run(go())
