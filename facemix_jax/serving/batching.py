"""Rows of many requests through main, in one thread, with a bounded queue.

**Which rows run together decides their last bits.** A compiled convolution adds in an order that
depends on the batch's size and, for some sizes, on a row's position in it (measured on the CPU:
differences of up to 2e-6 between sizes, and between positions at size 8). So ``Runner`` with
``chunk`` set runs every request in chunks of that many rows that start at the request's own first
row; what a request gets back then depends on its own rows alone, bit for bit, whoever else is
served, and equals ``jax.jit(main)`` on each chunk in one's own process. That costs padding where
a request is no multiple of the chunk (a group of mixtures by default, so whole groups cost
nothing), and on an accelerator the speed that larger batches would have. With ``chunk`` None,
rows of all requests are packed and padded to a power of two: faster for small requests and on
accelerators, and equal within rounding.
"""

import asyncio
import collections
import concurrent.futures
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from facemix_jax._types import HostArray
from facemix_jax._validate import FacemixError
from facemix_jax.serving.loading import Served

_LATE = (
    "The deadline passed while the rows waited for main. Allow more time, or try another replica."
)


class QueueFullError(FacemixError):
    """More rows than the queue holds."""


class DeadlinePassedError(FacemixError):
    """A request whose answer nobody waits for."""


@dataclasses.dataclass(frozen=True)
class Runner:
    """Runs main on the rows of several requests.

    Attributes:
        max_rows: the most rows of one call.
        chunk: rows that run together, see above; None packs all rows.
    """

    max_rows: int
    chunk: int | None

    @property
    def sizes(self) -> tuple[int, ...]:
        """Batch sizes that main is compiled for."""
        if self.chunk is not None:
            return (self.chunk,)
        return tuple(2**i for i in range(_power(self.max_rows).bit_length()))

    def warm_up(self, served: Served) -> None:
        """Compiles main for all sizes."""
        for size in self.sizes:
            self._apply(served, np.zeros((size, *served.spec.activation_shape), np.float32))

    def __call__(self, served: Served, requests: Sequence[HostArray]) -> Iterator[HostArray]:
        """Responses float32 ``[B_i, D]`` to activations float32 ``[B_i, H, W, C]``, in order."""
        if self.chunk is None:
            packed = self._apply(served, np.concatenate(requests))
            ends = np.cumsum([len(rows) for rows in requests])
            yield from np.split(packed, ends[:-1])
            return
        for rows in requests:
            starts = range(0, len(rows), self.chunk)
            yield np.concatenate([self._apply(served, rows[i : i + self.chunk]) for i in starts])

    def _apply(self, served: Served, rows: HostArray) -> HostArray:
        size = self.chunk if self.chunk is not None else _power(len(rows))
        padding = np.zeros((size - len(rows), *rows.shape[1:]), rows.dtype)
        padded = np.concatenate([rows, padding]) if len(padding) else rows
        return np.asarray(served.apply(served.variables, padded))[: len(rows)]


@dataclasses.dataclass(eq=False)
class _Waiting:
    served: Served
    rows: HostArray
    deadline: float | None
    arrived: float
    future: asyncio.Future[HostArray]
    spent: dict[str, float]
    left: bool = False
    """Whether it is answered or given up, and its rows no longer count."""


class Batcher:
    """A bounded first-in first-out queue before one thread that runs main.

    Args:
        runner: runs the rows.
        queue_rows: the most rows waiting or running.
        max_wait: seconds to wait for more rows before a batch that is not full runs; a runner
            that does not pack gains nothing by waiting and does not.
        observe: called after each batch with its rows and its seconds, and the seconds that its
            first request waited.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        queue_rows: int,
        max_wait: float,
        observe: Callable[[int, float, float], None] = lambda rows, seconds, waited: None,
    ) -> None:
        self._runner = runner
        self._queue_rows = queue_rows
        self._max_wait = max_wait if runner.chunk is None else 0.0
        self._observe = observe
        self._queue: collections.deque[_Waiting] = collections.deque()
        self._arrival = asyncio.Event()
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "main")
        self.rows = 0
        """Rows waiting or running."""
        self._task = asyncio.create_task(self._work())

    async def submit(
        self,
        served: Served,
        rows: HostArray,
        time_left: float | None = None,
        spent: dict[str, float] | None = None,
    ) -> HostArray:
        """Main's responses float32 ``[B, D]`` to one request's rows.

        Cancelled while the rows wait, it takes them out of the queue.

        Args:
            served: the model that runs them, even when another takes its place meanwhile.
            rows: float32 ``[B, H, W, C]``, at most the runner's ``max_rows``.
            time_left: seconds after which the answer is not wanted.
            spent: gets the seconds that the rows waited, ``queue``, and ran, ``main``.

        Raises:
            QueueFullError: the rows do not fit into the queue.
            DeadlinePassedError: the time ran out before they were run.
        """
        if self.rows + len(rows) > self._queue_rows:
            raise QueueFullError(
                f"The queue holds {self.rows} rows and takes {self._queue_rows}, so that another "
                f"{len(rows)} do not fit. Try again later or at another replica."
            )
        loop = asyncio.get_running_loop()
        deadline = None if time_left is None else loop.time() + time_left
        spent = {} if spent is None else spent
        item = _Waiting(served, rows, deadline, loop.time(), loop.create_future(), spent)
        self.rows += len(rows)
        self._queue.append(item)
        self._arrival.set()
        try:
            return await item.future
        except asyncio.CancelledError:
            # The client's share is free again, so the queue's place must be too. What already
            # runs keeps its place until main is done with it.
            if item in self._queue:
                self._queue.remove(item)
                self.rows -= len(item.rows)
            raise

    async def in_thread(self, call: Callable[..., None], *arguments: Any) -> None:
        """Runs something in main's thread."""
        await asyncio.get_running_loop().run_in_executor(self._thread, call, *arguments)

    async def close(self) -> None:
        """Stops; call it when nothing waits any more."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._thread.shutdown(wait=True)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = await self._next_batch()
            if not batch:
                continue
            waited, start = loop.time() - batch[0].arrived, time.perf_counter()
            count = sum(len(item.rows) for item in batch)
            try:
                await self.in_thread(self._run, batch, loop)
            except Exception as error:
                for item in batch:
                    if not item.left:
                        self._leave(item, error)
            self._observe(count, time.perf_counter() - start, waited)

    def _run(self, batch: list[_Waiting], loop: asyncio.AbstractEventLoop) -> None:
        """In the thread; each request gets its answer as soon as it is there."""
        responses = self._runner(batch[0].served, [item.rows for item in batch])
        start = loop.time()
        for item, response in zip(batch, responses, strict=True):
            now = loop.time()
            item.spent |= {"queue": start - item.arrived, "main": now - start}
            if self._runner.chunk is not None:  # one after the other; packed, they share the time
                start = now
            loop.call_soon_threadsafe(self._leave, item, response)

    def _leave(self, item: _Waiting, outcome: HostArray | Exception) -> None:
        """Frees the rows' place before the client can hear of it and send more."""
        item.left = True
        self.rows -= len(item.rows)
        if item.future.done():  # the client has gone
            return
        if isinstance(outcome, Exception):
            item.future.set_exception(outcome)
        else:
            item.future.set_result(outcome)

    async def _next_batch(self) -> list[_Waiting]:
        """Requests for one call, oldest first; those that nobody waits for are dropped."""
        loop = asyncio.get_running_loop()
        await self._until_something_waits(None)
        full_at = loop.time() + self._max_wait
        while sum(len(item.rows) for item in self._queue) < self._runner.max_rows:
            if not await self._until_something_waits(full_at - loop.time(), new=True):
                break
        batch: list[_Waiting] = []
        count = 0
        while self._queue:
            item = self._queue[0]
            fits = count + len(item.rows) <= self._runner.max_rows
            if batch and not (fits and item.served is batch[0].served):
                break
            self._queue.popleft()
            late = item.deadline is not None and loop.time() >= item.deadline
            if late or item.future.done():  # or the client has gone
                self._leave(item, DeadlinePassedError(_LATE))
                continue
            batch.append(item)
            count += len(item.rows)
        return batch

    async def _until_something_waits(self, timeout: float | None, *, new: bool = False) -> bool:
        """Whether something waits (``new``: something more than now) before the timeout."""
        if self._queue and not new:
            return True
        if timeout is not None and timeout <= 0:
            return False
        self._arrival.clear()
        try:
            await asyncio.wait_for(self._arrival.wait(), timeout)
        except TimeoutError:
            return False
        return True


def _power(number: int) -> int:
    """The smallest power of two that is not smaller."""
    return 1 << (number - 1).bit_length()
