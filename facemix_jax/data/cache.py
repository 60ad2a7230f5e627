"""Decoded images in one memory-mapped file, so that a data set is decoded only once."""

import contextlib
import hashlib
import io
import itertools
import os
import re
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np

from facemix_jax._files import NO_SPACE, expanded, lock, sha256, write_atomically
from facemix_jax._types import HostArray
from facemix_jax._validate import DataError

_CHUNK = 16
_AHEAD = 8
_QUIET_BELOW = 640
_SYNC_BYTES = 16 * 2**20
_ABANDONED_SECONDS = 600.0
"""Where there are no locks: a running build writes all the time."""


def directory(folders: Sequence[Path]) -> Path:
    """The first of several folders that can be written, made if need be.

    Raises:
        DataError: no such folder can be made or written.
    """
    reasons = []
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError as error:
            reasons.append(f"{folder}: {error.strerror}")
    raise DataError(
        f"No folder for decoded images can be written ({'; '.join(reasons)}). "
        "Set cache_dir to a folder on a disk with room."
    )


def places(data_dir: Path, cache_dir: str | None) -> list[Path]:
    """Folders where caches may lie, which need not exist.

    ``cache_dir`` where one is given; else ``.facemix_cache`` beside the data, and
    ``$XDG_CACHE_HOME/facemix_jax`` (``~/.cache/facemix_jax``).

    Raises:
        UsageError: ``cache_dir`` begins with the folder of an unknown user.
    """
    if cache_dir is not None:
        return [expanded(cache_dir)]
    beside = data_dir / ".facemix_cache"
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a user without a home folder, as in some containers
        return [beside]
    return [beside, home / "facemix_jax"]


def verify(path: Path) -> bool | None:
    """Whether a cache still has the bytes that were written; reads all of it.

    Returns:
        None where no checksum lies beside it, as with caches of older versions.

    Raises:
        OSError: the cache or its checksum cannot be read.
    """
    try:
        expected = checksum_file(path).read_bytes()
    except FileNotFoundError:
        return None
    return expected.split()[:1] == [sha256(path).encode()]


def checksum_file(path: Path) -> Path:
    """The checksum beside a cache, in the format of ``sha256sum``."""
    return path.with_name(f"{path.name}.sha256")


def load_or_build(
    folders: Sequence[Path],
    name: str,
    shape: tuple[int, int, int, int],
    decode: Callable[[int], HostArray],
) -> HostArray:
    """Maps a cache file, building it first if it is missing or damaged in every folder.

    The file appears under its name only when it is complete, so a killed build leaves nothing
    that could be taken for a cache. Of several processes one builds and the others wait.

    Args:
        folders: where it may lie; it is built in the first of them that can be written.
        name: of an ``.npy`` file; must tell data set and size.
        shape: ``[N, H, W, 3]``.
        decode: image ``i`` as uint8 ``[H, W, 3]``; called from several threads.

    Returns:
        Read-only uint8 ``[N, H, W, 3]``, mapped from the file.

    Raises:
        DataError: the disk is full or cannot be written; whatever ``decode`` raises.
    """
    for folder in folders:
        images = _open(folder / name, shape)
        if images is not None:
            return images
    path = directory(folders) / name
    with _alone(path.parent) as alone:
        if _open(path, shape) is None:
            _remove_abandoned(path, alone=alone)
            _build(path, shape, decode)
    images = _open(path, shape)
    if images is None:
        raise DataError(
            f"The decoded images written to {path} cannot be read back. "
            "Check that disk, or set cache_dir to another one."
        )
    return images


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Waits for other processes that build in a folder; the lock ends with the process.

    Yields:
        Whether nobody else builds there. Without locks, as on some network disks, each builds
        for itself, which is as right.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield lock(descriptor, wait=True)
    finally:
        os.close(descriptor)


def _open(path: Path, shape: tuple[int, ...]) -> HostArray | None:
    """The mapped file, or None where it is missing or not what was written."""
    try:
        images: HostArray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError):
        return None
    if not isinstance(images, np.memmap) or images.dtype != np.uint8 or images.shape != shape:
        return None
    if path.stat().st_size != images.offset + images.nbytes:
        return None
    return images


def _build(
    path: Path, shape: tuple[int, int, int, int], decode: Callable[[int], HostArray]
) -> None:
    size = int(np.prod(shape))
    free = shutil.disk_usage(path.parent).free
    if size > free:
        raise _full(path, size, free)
    part = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        with part.open("wb") as file:
            digest = _write_all(file, shape, decode)
            file.flush()
            os.fsync(file.fileno())
        # The old checksum goes first and the new one comes last, so that a kill in between
        # leaves a cache without one and never a cache with a wrong one.
        checksum_file(path).unlink(missing_ok=True)
        line = f"{digest}  {path.name}\n"
        os.replace(part, path)
        write_atomically(checksum_file(path), line)
    except OSError as error:
        if error.errno in NO_SPACE:
            raise _full(path, size, shutil.disk_usage(path.parent).free) from error
        raise DataError(
            f"The decoded images cannot be written to {path}: {error.strerror or error}. "
            "Set cache_dir to a folder that can be written."
        ) from error
    finally:
        part.unlink(missing_ok=True)


def _write_all(
    file: BinaryIO, shape: tuple[int, int, int, int], decode: Callable[[int], HostArray]
) -> str:
    """Decodes in threads (Pillow lets go of the interpreter lock) and writes in order.

    Returns:
        The file's SHA-256, taken on the way: reading it again would cost a twentieth.
    """
    header = io.BytesIO()
    fields = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, fields)
    file.write(header.getvalue())
    digest = hashlib.sha256(header.getvalue())

    def work(first: int) -> HostArray:
        return np.stack([decode(i) for i in range(first, min(first + _CHUNK, shape[0]))])

    workers = _cores()
    executor = ThreadPoolExecutor(workers)
    chunks = iter(range(0, shape[0], _CHUNK))
    # A few chunks ahead, so that a slow disk does not fill the memory.
    pending = deque(
        executor.submit(work, first) for first in itertools.islice(chunks, workers + _AHEAD)
    )
    synced = 0
    try:
        size = f"{np.prod(shape) / 1e6:,.0f} MB in {Path(file.name).parent}"
        note = f"Decoding {shape[0]:,} images (once): {size}"
        with progress("Decoding", shape[0], note=note) as advance:
            while pending:
                block = pending.popleft().result()
                for first in itertools.islice(chunks, 1):
                    pending.append(executor.submit(work, first))
                file.write(block.data)
                digest.update(block.data)
                if file.tell() - synced > _SYNC_BYTES:
                    # The disk works while others decode, instead of all at the end.
                    os.fdatasync(file.fileno())
                    synced = file.tell()
                advance(len(block))
    finally:
        executor.shutdown(cancel_futures=True)
    return digest.hexdigest()


def _cores() -> int:
    """Processors that this process may use, which may be fewer than the machine has."""
    # macOS has no affinity.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def progress(
    label: str, total: int, *, show: bool = True, note: str | None = None
) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error, below a ``note`` if there is one; small jobs show none."""
    if not show or total < _QUIET_BELOW:
        yield lambda _: None
        return
    import rich.console
    import rich.progress

    console = rich.console.Console(stderr=True)
    if note is not None:
        console.print(note, highlight=False, markup=False, soft_wrap=True)  # paths stay whole
    with rich.progress.Progress(console=console) as bar:
        task = bar.add_task(label, total=total)
        yield lambda count: bar.advance(task, count)


def _remove_abandoned(path: Path, *, alone: bool) -> None:
    """Removes what killed builds of the same cache left, which may be gigabytes."""
    pattern = re.compile(re.escape(path.name) + r"\..*\.part")
    for entry in path.parent.iterdir():
        with contextlib.suppress(OSError):
            old = time.time() - entry.stat().st_mtime > _ABANDONED_SECONDS
            if (alone or old) and pattern.fullmatch(entry.name):
                entry.unlink()


def _full(path: Path, size: int, free: int) -> DataError:
    return DataError(
        f"The decoded images need {size / 1e6:,.1f} MB, but {path.parent} has only "
        f"{free / 1e6:,.1f} MB free. Free some space, set cache_dir to a larger disk, or choose "
        "a smaller image_size."
    )
