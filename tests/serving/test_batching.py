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
