"""Writes a prepared data set: resized once, checked by checksums, whole or not there at all."""

import contextlib
import hashlib
import io
import json
import logging
import os
import shutil
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from facemix_jax._files import NO_SPACE, lock, sha256, write_atomically
from facemix_jax._types import HostArray, ImageSize
from facemix_jax._validate import DataError, UsageError
from facemix_jax.data import cache, decode, open_files, prepared
from facemix_jax.data.archives import EncodedImages
from facemix_jax.data.config import DataConfig
from facemix_jax.data.files import FileSet, pixel_mark

_CHUNK = 1024
_BYTES_PER_PIXEL, _BYTES_PER_IMAGE = 1.0, 2000
"""Room for a resized JPEG with its labels; real faces at 109 x 89 take 0.7 bytes a pixel."""

_Advance = Callable[[int], None]


def prepare(
    config: DataConfig, output: Path, *, store_size: ImageSize | None, show_progress: bool = True
) -> Path:
    """Writes the data set that ``config`` names as a TFDS data set of shards in ``output``.

    The folder appears under its name only when it is complete. A killed run leaves its resized
    images in a hidden folder of ``output``, and the next run goes on from there. Where the
    finished data set is there already, nothing is done.

    Args:
        config: which files; sizes and example counts in it play no role.
        output: folder for data sets; made if need be.
        store_size: height, width to store; None keeps the original files byte by byte, each
            decoded once to see that it can be.
        show_progress: whether to show bars and notes on standard error.

    Returns:
        The folder of the finished data set, ``output/<dataset>/<size>/<version>``.

    Raises:
        DataError: an image cannot be decoded or labels are damaged, the disk is full or cannot be
            written, or ``output`` holds this data set made from other files.
        UsageError: the data set is not one of files, or is prepared already.
    """
    if config.dataset in ("synthetic", "prepared"):
        raise UsageError(
            f"dataset {config.dataset!r} cannot be prepared: it needs no preparation. "
            "Prepare celeba, lfwa or folder."
        )
    # Imported here, as it takes a second.
    from facemix_jax.data import builders

    files = open_files(config)
    builder_class = builders.BUILDERS[config.dataset]
    settings = builder_class.config_for(store_size, files.attribute_names)
    target = output / builder_class.name / settings.name / str(builder_class.VERSION)
    mark = _mark(files)
    work = output / f".partial-{builder_class.name}-{mark}-{settings.name}"
    if _finished(target, mark):
        shutil.rmtree(work, ignore_errors=True)
        if show_progress:
            print(f"{target} is complete already; nothing to do.", file=sys.stderr)
        return target
    names = tuple(files.file_names[row] for row in _rows(files))
    if show_progress and len(names) < len(files.file_names):
        left_out = len(files.file_names) - len(names)
        print(f"{left_out:,} images belong to no split and are left out.", file=sys.stderr)
    if show_progress:
        for remark in files.remarks:
            print(f"note: {remark}", file=sys.stderr)
    with _disk_errors(output):
        work.mkdir(parents=True, exist_ok=True)
        with _lock(work) as alone, _tidied(work, alone=alone) as scratch:
            _check_room(files, names, store_size, output, work)
            if store_size is None:
                _check_images(files, names, show_progress)
                stored = files.images
            else:
                stored = _resized(files, names, store_size, work, show_progress)
            with _quiet():
                builder = builder_class(
                    data_dir=str(scratch), config=settings, file_format="array_record"
                )
                labels = _write_shards(builder, files, stored, show_progress)
            folder = Path(builder.data_dir)
            prepared.save_labels(folder / prepared.LABELS, labels)
            _write_checksums(folder, mark)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.rename(folder, target)
    shutil.rmtree(work, ignore_errors=True)
    return target


def verify(prepared_dir: Path) -> list[str]:
    """Compares every file of a prepared data set with its checksum.

    Args:
        prepared_dir: the folder of one version, or one above it that holds a single data set.

    Returns:
        One sentence for each problem; none where all is well.

    Raises:
        DataError: there is no data set, or the checksums themselves are damaged.
    """
    folder = prepared.locate(prepared_dir)
    entries = prepared.checksums(folder)
    if not entries:
        return [f"{folder} has no {prepared.CHECKSUMS}, so its files cannot be checked."]
    problems = []
    for name, (digest, size) in sorted(entries.items()):
        path = folder / name
        if not path.is_file():
            problems.append(f"{name} is missing.")
        elif path.stat().st_size != size:
            problems.append(f"{name} has {path.stat().st_size:,} bytes instead of {size:,}.")
        elif sha256(path) != digest:
            problems.append(f"{name} was changed: its SHA-256 is not the recorded one.")
    extra = (
        {p.name for p in folder.iterdir() if not p.name.startswith(".")}
        - set(entries)
        - {prepared.CHECKSUMS}
    )
    return problems + [f"{name} was added after preparation." for name in sorted(extra)]


def _mark(files: FileSet) -> str:
    """16 hexadecimal digits that change with any image, label, split, or how images are decoded."""
    digest = hashlib.sha256(pixel_mark(files).encode())
    digest.update(json.dumps(files.attribute_names).encode())
    for array in (files.attributes, files.identities, *files.splits.values()):
        digest.update(f"{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def _finished(target: Path, mark: str) -> bool:
    if not target.exists():
        return False
    path = target / prepared.CHECKSUMS
    try:
        found = json.loads(path.read_text())["made_from"]
    except (OSError, ValueError, KeyError, TypeError):
        found = None
    if found == mark:
        return True
    raise DataError(
        f"{target} exists already, but was made from other files (fingerprint {found}, now "
        f"{mark}). Choose another output folder, or remove that one."
    )


def _rows(files: FileSet) -> HostArray:
    """Rows of the images to store, in their order."""
    return np.concatenate([files.splits[split] for split in prepared.SPLITS])


def _check_room(
    files: FileSet, names: tuple[str, ...], size: ImageSize | None, output: Path, work: Path
) -> None:
    """Raises ``DataError`` where the disk has no room; TFDS needs every byte twice for a while."""
    if size is None:
        need = 2 * sum(files.images.sizes[name] for name in names)
    else:
        one = _BYTES_PER_IMAGE + int(size[0] * size[1] * _BYTES_PER_PIXEL)
        done = sum(path.stat().st_size for path in work.glob("*.zip"))
        need = max(3 * one * len(names) - done, 0)
    free = shutil.disk_usage(output).free
    if need > free:
        raise DataError(
            f"Preparing {len(names):,} images needs about {need / 1e6:,.1f} MB, but "
            f"{output} has only {free / 1e6:,.1f} MB free. Free some space, choose another output "
            "folder, or store a smaller size."
        )


def _check_images(files: FileSet, names: tuple[str, ...], show_progress: bool) -> None:
    """Raises ``DataError`` where an image cannot be decoded: checksums would call it good."""

    def work(name: str) -> None:
        decode.check(files.images.read(name), name=files.images.where(name))

    executor = ThreadPoolExecutor(os.cpu_count())
    try:
        with cache.progress("Checking images", len(names), show=show_progress) as advance:
            for _ in executor.map(work, names):
                advance(1)
    finally:
        executor.shutdown(cancel_futures=True)


def _resized(
    files: FileSet, names: tuple[str, ...], size: ImageSize, work: Path, show_progress: bool
) -> EncodedImages:
    """Resizes all images in chunks; chunks of an earlier run are kept."""
    chunks = [names[i : i + _CHUNK] for i in range(0, len(names), _CHUNK)]
    paths = [work / f"{i:05d}.zip" for i in range(len(chunks))]
    executor = ThreadPoolExecutor(os.cpu_count())
    try:
        with cache.progress("Resizing images", len(names), show=show_progress) as advance:
            for path, chunk in zip(paths, chunks, strict=True):
                if _is_chunk(path, len(chunk)):
                    advance(len(chunk))
                else:
                    _write_chunk(path, chunk, files, size, executor, advance)
    finally:
        executor.shutdown(cancel_futures=True)
    archives = [zipfile.ZipFile(path) for path in paths]
    index = {name: i for i, name in enumerate(names)}

    def read(name: str) -> bytes:
        row = index[name]
        path = paths[row // _CHUNK]
        try:
            return archives[row // _CHUNK].read(str(row % _CHUNK))
        except (zipfile.BadZipFile, OSError, zlib.error, KeyError) as error:
            path.unlink(missing_ok=True)
            raise DataError(
                f"The resized images in {path} are damaged ({error}). Run the command again: it "
                "makes them anew."
            ) from error

    return EncodedImages(label=str(work), sizes={}, stamps={}, read=read)


def _is_chunk(path: Path, count: int) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist() == [str(i) for i in range(count)]
    except (OSError, zipfile.BadZipFile):
        return False


def _write_chunk(
    path: Path,
    names: tuple[str, ...],
    files: FileSet,
    size: ImageSize,
    executor: ThreadPoolExecutor,
    advance: _Advance,
) -> None:
    """Resizes the images ``names`` into a zip file, which appears whole."""
    from facemix_jax.data import builders

    def work(name: str) -> bytes:
        data = files.images.read(name)
        return builders.resized_jpeg(data, size, name=files.images.where(name))

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for i, data in enumerate(executor.map(work, names)):
            archive.writestr(zipfile.ZipInfo(str(i)), data)
            advance(1)
    write_atomically(path, buffer.getvalue())


def _write_shards(
    builder: Any, files: FileSet, stored: EncodedImages, show_progress: bool
) -> prepared.Labels:
    """Lets TFDS write its shards; returns labels in their order."""
    import tensorflow_datasets as tfds

    rows = _rows(files)
    found: dict[str, tuple[int, int]] = {}
    with cache.progress("Writing shards", len(rows), show=show_progress) as advance:

        def read(name: str) -> bytes:
            data = stored.read(name)
            found[name] = len(data), zlib.crc32(data)
            advance(1)
            return data

        builder.use(files, EncodedImages(stored.label, stored.sizes, stored.stamps, read))
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(try_download_gcs=False)
        )
    names = tuple(files.file_names[row] for row in rows)
    return prepared.Labels(
        file_names=names,
        attribute_names=files.attribute_names,
        attributes=files.attributes[rows],
        identities=files.identities[rows],
        split_sizes={split: len(files.splits[split]) for split in prepared.SPLITS},
        sizes=np.array([found[name][0] for name in names], np.int64),
        crcs=np.array([found[name][1] for name in names], np.uint32),
    )


def _write_checksums(folder: Path, mark: str) -> None:
    entries = {
        path.name: {"sha256": sha256(path), "bytes": path.stat().st_size}
        for path in sorted(folder.iterdir())
    }
    text = json.dumps({"made_from": mark, "files": entries}, indent=1)
    write_atomically(folder / prepared.CHECKSUMS, text.encode())


@contextlib.contextmanager
def _lock(work: Path) -> Iterator[bool]:
    """Keeps a second run out; the system lets go of the lock when a run is killed.

    Yields:
        Whether nobody else prepares these files. Without locks, as on some network disks, that is
        unknown, and each run writes shards in a folder of its own.
    """
    with (work / "lock").open("w") as file:
        try:
            alone = lock(file, wait=False)
        except BlockingIOError as error:
            raise DataError(
                f"Another run is preparing these files in {work}. Wait for it, or choose another "
                "output folder."
            ) from error
        yield alone


@contextlib.contextmanager
def _tidied(work: Path, *, alone: bool) -> Iterator[Path]:
    """A folder for TFDS in ``work``; of a failed run only the resized images remain."""
    if alone:
        for left in work.glob("tfds-*"):
            shutil.rmtree(left, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(prefix="tfds-", dir=work))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if alone and not any(work.glob("*.zip")):
            shutil.rmtree(work, ignore_errors=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps TFDS from showing bars, printing to standard output and logging our configuration."""
    import tensorflow_datasets as tfds

    log = logging.getLogger("absl")
    level = log.level
    tfds.display_progress_bar(False)
    log.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        log.setLevel(level)
        tfds.display_progress_bar(True)


@contextlib.contextmanager
def _disk_errors(output: Path) -> Iterator[None]:
    """Turns what a full or read-only disk raises into a ``DataError``."""
    try:
        yield
    except RuntimeError as error:  # array_record's, which has no error number
        free = shutil.disk_usage(output).free
        raise DataError(
            f"The shards cannot be written to {output} ({free / 1e6:,.1f} MB free): {error}. Free "
            "some space, or choose another output folder, and run the command again."
        ) from error
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise DataError(
                f"The prepared data cannot be written to {output}: {error.strerror or error}. "
                "Choose an output folder that can be written."
            ) from error
        free = shutil.disk_usage(output).free
        raise DataError(
            f"The disk of {output} is full ({free / 1e6:,.1f} MB free). Free some space and run "
            "the command again: it goes on where it stopped. Or choose another output folder."
        ) from error
