"""The edge's client: pre, mixing under a fresh key, the call, unmixing and post.

Images, keys, activations and features stay here; what is sent are mixtures. **Mixing is not a
cipher**: the cloud can separate them by gradient ICA without the key (``facemix_jax.attacks``).
Every attempt draws a new request identifier and with it a new key; nothing is sent twice.

What is noticed of a wrong answer: another protocol version, model or request, another number or
shape of rows, bytes that do not fit, NaN and infinities; in transit, TLS notices every change.
**What is not**: a cloud that answers plausible numbers. It cannot be found out by sending a row
twice, as equal rows are seen to be equal, nor by sums of rows, as main is not linear. Only main
itself tells; ``spot_checks`` runs it here on a few rows of each request, chosen secretly.
"""

import asyncio
import concurrent.futures
import secrets
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import jax
import numpy as np

from facemix_jax._types import Array, HostArray
from facemix_jax._validate import UsageError
from facemix_jax.keys import RootSecret, fresh_mix_key
from facemix_jax.mixing import MixKey
from facemix_jax.serving import answers, segments, wire
from facemix_jax.serving import wire_pb2 as pb
from facemix_jax.serving.clouds import (
    Cloud,
    Connection,
    Turns,
    check_files,
    fewest_rows,
    until_answered,
)
from facemix_jax.serving.edge_types import EdgeConfig, Prediction, Timing, Work
from facemix_jax.serving.fillers import fillers
from facemix_jax.serving.refusals import CloudError, LimitError
from facemix_jax.serving.segments import Segments

_AT_ONCE = 4
"""Requests of one ``infer`` that are under way together."""

_T = TypeVar("_T")

__all__ = [
    "AsyncEdgeClient",
    "CloudError",
    "Connection",
    "EdgeClient",
    "EdgeConfig",
    "Prediction",
    "Timing",
]


class AsyncEdgeClient:
    """Split inference through clouds, for asyncio. Close it, or use it with ``async with``.

    Args:
        workdir: of a training run, the same as the clouds'; its images are not needed. Its newest
            checkpoint is read once: when the clouds have a newer one, make the client anew.
        root: the user's secret, from ``keys.load`` or ``key_ring.place(...).load()``.
        connection: the clouds.
        config: how to send.
        say: told once of every cloud that does not answer, until it does.

    Raises:
        UsageError: a file or the work directory cannot be used, or activations would be sent
            unmixed.
    """

    def __init__(
        self,
        workdir: Path,
        root: RootSecret,
        connection: Connection,
        config: EdgeConfig | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.config = config or EdgeConfig()
        check_files(connection)
        self.segments = segments.load(workdir, with_main=self.config.spot_checks > 0)
        if not self.segments.protected and not self.config.unprotected:
            raise UsageError(
                f"{workdir} was trained without a defence, so that the cloud would get activations "
                f"as they are. Train with --defense facemix, or allow it from Python: "
                f"EdgeConfig(unprotected=True)."
            )
        self._root = root
        self._connection = connection
        self._say = say
        self._max_rows: int | None = None
        self._turns: Turns | None = None

    async def __aenter__(self) -> "AsyncEdgeClient":
        """Returns itself."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the connections."""
        await self.close()

    async def close(self) -> None:
        """Closes the connections; calls that are under way end, later ones open new connections."""
        turns, self._turns, self._max_rows = self._turns, None, None
        for cloud in turns.clouds if turns else ():
            await cloud.close()

    async def predict(self, images: HostArray) -> HostArray:
        """Logits float32 ``[N, K, classes]`` of uint8 images ``[N, H, W, 3]``; see ``infer``."""
        return (await self.infer(images)).logits

    async def infer(self, images: HostArray) -> Prediction:
        """Runs images through edge and cloud.

        Groups are taken in order. An incomplete one is completed by drawn pictures, see
        ``serving.fillers``; equal images are sent once, as copies would weaken the mixing. The
        groups are spread over the clouds. Before the first call the clouds are asked how many rows
        they take.

        Args:
            images: uint8 ``[N, H, W, 3]``, ``N >= 1``, of the network's size.

        Raises:
            UsageError: images of another shape or type, a cloud takes less than a group, or the
                client was closed meanwhile.
            CloudError: all clouds refuse, or cannot be reached until time is up.
            WireError: an answer is wrong; nothing of it is used, and the error names its cloud.
        """
        images = self._checked(images)
        turns = self._open()  # once, as what close() has closed stays closed for this call
        unique, place = _unique(images)
        size = self.segments.group_size
        missing = -len(unique) % size
        if missing and self.segments.protected:
            company = fillers(self._root, unique[len(unique) - len(unique) % size :], missing)
        else:
            company = np.repeat(unique[:1], missing, axis=0)  # nothing is mixed
        groups = np.concatenate([unique, company]).reshape(-1, size, *images.shape[1:])
        work = Work(Timing())
        max_rows = await self._most_rows(turns, ask=False)
        usable = turns.usable
        try:
            parts = await self._requests(turns, groups, max_rows, work)
        except LimitError:  # perhaps of a cloud that has started anew since it was asked
            fewer = await self._most_rows(turns, ask=True)
            if fewer >= max_rows and turns.usable == usable:
                raise
            parts = await self._requests(turns, groups, fewer, work)
        return Prediction(
            logits=np.concatenate([group for part in parts for group in part])[place],
            fillers=missing if self.segments.protected else 0,
            repeated=len(images) - len(unique),
            requests=len(parts),
            retries=work.retries,
            bytes_up=work.bytes_up,
            bytes_down=work.bytes_down,
            timing=work.timing,
        )

    async def _requests(
        self, turns: Turns, groups: HostArray, max_rows: int, work: Work
    ) -> list[list[HostArray]]:
        """Of every request what ``_request`` returns."""
        at_once = max(1, min(self.config.request_rows, max_rows) // self.segments.group_size)
        count = max(-(-len(groups) // at_once), min(len(turns.usable), len(groups)))
        free = asyncio.Semaphore(_AT_ONCE)

        async def one(part: HostArray) -> list[HostArray]:
            async with free:
                return await self._request(turns, part, work)

        try:
            async with asyncio.TaskGroup() as tasks:
                parts = [tasks.create_task(one(p)) for p in np.array_split(groups, count)]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [part.result() for part in parts]

    async def _request(self, turns: Turns, groups: HostArray, work: Work) -> list[HostArray]:
        """Logits ``[M, K, classes]`` of each of some groups uint8 ``[g, M, H, W, 3]``."""
        activations = await asyncio.to_thread(self._pre, groups, work.timing)

        async def attempt(cloud: Cloud) -> list[HostArray]:
            key, request = await asyncio.to_thread(self._mixed, activations, work.timing)
            start = time.perf_counter()
            response, said = await cloud.run(request, self.config.timeout_s)
            work.called(request, response, time.perf_counter() - start, said)
            return await asyncio.to_thread(
                self._answer, cloud.address, key, request, response, work.timing
            )

        return await self._answered(turns, attempt, work)

    async def _most_rows(self, turns: Turns, *, ask: bool) -> int:
        """Rows of one request that every cloud takes which can be asked, at least a group."""
        size = self.segments.group_size

        async def fewest(cloud: Cloud) -> int:
            return await fewest_rows(cloud, turns.clouds, size, self.config.timeout_s)

        if self._max_rows is None or ask:
            max_rows = await self._answered(turns, fewest, Work(Timing()))
            if max_rows < size:
                raise UsageError(
                    f"A cloud takes {max_rows} rows in one request, but the training mixed groups "
                    f"of {size}, which are sent whole. Start facemix serve with at least "
                    f"--max-rows {size}."
                )
            self._max_rows = max_rows
        return self._max_rows

    async def _answered(
        self, turns: Turns, attempt: Callable[[Cloud], Awaitable[_T]], work: Work
    ) -> _T:
        return await until_answered(turns, attempt, self.config, work, self._say)

    def _pre(self, groups: HostArray, timing: Timing) -> list[Array]:
        with timing.measure("pre"):
            return jax.block_until_ready([self.segments.pre(group) for group in groups])

    def _mixed(
        self, activations: Sequence[Array], timing: Timing
    ) -> tuple[MixKey | None, pb.RunRequest]:
        request_id = secrets.token_bytes(wire.REQUEST_ID_BYTES)
        key = None
        with timing.measure("mix"):
            if self.segments.protected:
                key = fresh_mix_key(
                    self._root,
                    request_id,
                    len(activations),
                    self.segments.group_size,
                    shuffle=True,
                )
                activations = segments.mix(key, activations)
        with timing.measure("serialise"):
            rows = (
                np.concatenate([np.asarray(z) for z in activations])
                if key is None
                else segments.in_order(key, activations)
            )
            request = pb.RunRequest(
                version=wire.VERSION,
                model_id=self.segments.model_id,
                request_id=request_id,
                activations=wire.encode(rows, self.config.wire or self.segments.wire),
            )
        return key, request

    def _answer(
        self,
        address: str,
        key: MixKey | None,
        request: pb.RunRequest,
        response: pb.RunResponse,
        timing: Timing,
    ) -> list[HostArray]:
        responses = answers.checked_rows(
            address,
            request,
            response,
            self.segments,
            spot_checks=self.config.spot_checks,
            timing=timing,
        )
        with timing.measure("unmix"):
            if key is None:
                features: Array | HostArray = responses.reshape(
                    -1, self.segments.group_size, *responses.shape[1:]
                )
            else:
                features = segments.unmix(key, responses)
        with timing.measure("post"):
            return [np.asarray(self.segments.post(group)) for group in features]

    def _open(self) -> Turns:
        if self._turns is None:
            floats = max(self.config.request_rows, self.segments.group_size)
            largest = 4 * floats * int(np.prod(self.segments.spec.response_shape)) + 2**16
            self._turns = Turns(
                [Cloud(address, self._connection, largest) for address in self._connection.clouds]
            )
        return self._turns

    def _checked(self, images: HostArray) -> HostArray:
        images = np.asarray(images)
        expected = (*self.segments.spec.image_size, 3)
        if images.dtype != np.uint8 or images.shape[1:] != expected or not len(images):
            raise UsageError(
                f"images are {images.dtype} {list(images.shape)}, but must be uint8 "
                f"[N, {', '.join(map(str, expected))}] with at least one image (height, width, "
                f"RGB). Decode them with facemix_jax.data.decode.rgb."
            )
        return images


class EdgeClient:
    """``AsyncEdgeClient`` for programs without asyncio; several threads may use it at once.

    Args and errors are those of ``AsyncEdgeClient``; ``UsageError`` too from a client that is
    closed, which calls that still wait in other threads get at once. Close it, or use it with
    ``with``.
    """

    def __init__(
        self,
        workdir: Path,
        root: RootSecret,
        connection: Connection,
        config: EdgeConfig | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._client = AsyncEdgeClient(workdir, root, connection, config, say)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="edge", daemon=True)
        self._thread.start()
        self._closed = False
        self._lock = threading.Lock()

    @property
    def segments(self) -> Segments:
        """What runs on the edge."""
        return self._client.segments

    def __enter__(self) -> "EdgeClient":
        """Returns itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the connections."""
        self.close()

    def predict(self, images: HostArray) -> HostArray:
        """Logits float32 ``[N, K, classes]`` of uint8 images ``[N, H, W, 3]``."""
        return self.infer(images).logits

    def infer(self, images: HostArray) -> Prediction:
        """Runs images through edge and cloud; see ``AsyncEdgeClient.infer``."""
        return self._wait(self._client.infer(images))

    def close(self) -> None:
        """Closes the connections and ends the thread."""
        with self._lock:  # what begins later is refused, what began before is cancelled
            if self._closed:
                return
            self._closed = True
            closing = asyncio.run_coroutine_threadsafe(self._finish(), self._loop)
        closing.result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _finish(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._client.close()

    def _wait(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        with self._lock:
            if self._closed:
                coroutine.close()
                raise UsageError("This client is closed. Make a new one.")
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise UsageError("This client is closed. Make a new one.") from None
        except BaseException:
            future.cancel()
            raise


def _unique(images: HostArray) -> tuple[HostArray, HostArray]:
    """Images without repetition in their order, and where each of ``images`` is among them."""
    seen: dict[bytes, int] = {}
    place = [seen.setdefault(image.tobytes(), len(seen)) for image in images]
    first = np.unique(place, return_index=True)[1]
    return images[first], np.array(place)
