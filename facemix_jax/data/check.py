"""Whether a data set on disk is whole: every image, every checksum, and what looks odd."""

import collections
import dataclasses
import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from facemix_jax import data
from facemix_jax._files import expanded
from facemix_jax._validate import DataError, UsageError
from facemix_jax.data import cache, decode, prepared
from facemix_jax.data.config import FILES, DataConfig
from facemix_jax.data.files import FileSet, cache_prefix
from facemix_jax.data.statistics import constant_attributes, shared_people

_SHOWN = 3


class Problem(NamedTuple):
    """Something that must be mended.

    Attributes:
        kind: ``files`` (they disagree or are missing), ``image``, ``cache`` or ``checksum``.
        name: of the file.
        reason: what is wrong, and what to do.
    """

    kind: str
    name: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Report:
    """What a check found.

    Attributes:
        dataset: its name.
        images: how many were decoded, damaged ones included.
        problems: what must be mended; empty for a whole data set.
        remarks: one sentence each about what is odd, but may be so: no column of people,
            identical images, people in two splits, constant attributes, caches without a checksum.
        confirmed: one sentence each about what was looked at and found good.
    """

    dataset: str
    images: int
    problems: tuple[Problem, ...]
    remarks: tuple[str, ...]
    confirmed: tuple[str, ...]


class _Read(NamedTuple):
    digest: bytes | None
    """None where the file could not even be read."""
    fault: str | None


def check(config: DataConfig) -> Report:
    """Reads and decodes every image, and compares checksums; changes nothing on disk.

    Images that cannot be decoded are found: cut short, or none at all. Bytes changed within a
    JPEG mostly decode, to other pixels; only checksums find them: a zip file's, a prepared set's.

    Args:
        config: the data set; images are decoded at its ``image_size``. Decoded caches of every
            size are checked.

    Raises:
        UsageError: a data set without files.
    """
    if config.dataset not in FILES:
        raise UsageError(
            f"dataset {config.dataset!r} is drawn and has no files to check. Use one of "
            f"{', '.join(map(repr, FILES))}."
        )
    try:
        files = data.open_files(config)
    except DataError as error:
        problems = (Problem("files", str(config.data_dir), str(error)), *_damaged_shards(config))
        return Report(config.dataset, 0, problems, (), ())
    reads = _read_all(files, config)
    found = [
        Problem("image", name, read.fault)
        for name, read in zip(files.file_names, reads, strict=True)
        if read.fault is not None
    ]
    confirmed = ["The label files agree with each other and with the names of the images."]
    remarks = [*files.remarks, *_duplicates(files, reads), *_shared(files), *_constant(files)]
    if not found:
        confirmed.append(f"All {len(reads):,} images can be decoded.")
    if config.dataset == "prepared":
        if not prepared.checksums(prepared.locate(_folder(config))):
            remarks.append("The shards are not verifiable: no checksums were written with them.")
        elif damaged := _damaged_shards(config):
            found += damaged
        else:
            confirmed.append("Every file has the checksum that was written with it.")
    for path in _caches(files, config):
        problem, remark = _cache(path)
        found += [problem] if problem else []
        remarks += [remark] if remark else []
        if not problem and not remark:
            confirmed.append(f"The decoded images {path.name} are as they were written.")
    return Report(files.name, len(reads), tuple(found), tuple(remarks), tuple(confirmed))


def _folder(config: DataConfig) -> Path:
    assert config.data_dir is not None
    return expanded(config.data_dir)


def _damaged_shards(config: DataConfig) -> list[Problem]:
    """Files of a prepared data set that are not as they were written."""
    if config.dataset != "prepared":
        return []
    from facemix_jax.data import prepare

    try:
        if not prepared.checksums(prepared.locate(_folder(config))):
            return []
        reasons = prepare.verify(_folder(config))
    except DataError:  # opening the data set has said so
        return []
    return [Problem("checksum", str(config.data_dir), reason) for reason in reasons]


def _read_all(files: FileSet, config: DataConfig) -> list[_Read]:
    """Reads every image in threads: zlib, hashing and Pillow let go of the interpreter lock."""

    def work(name: str) -> _Read:
        digest = None
        try:
            encoded = files.images.read(name)
            digest = hashlib.sha256(encoded).digest()
            decode.rgb(encoded, config.image_size, name=files.images.where(name))
        except DataError as error:
            return _Read(digest, str(error))
        return _Read(digest, None)

    reads = []
    with (
        cache.progress(f"Checking {len(files.file_names):,} images", len(files.file_names)) as step,
        ThreadPoolExecutor(os.cpu_count()) as executor,
    ):
        for read in executor.map(work, files.file_names):
            reads.append(read)
            step(1)
    return reads


def _duplicates(files: FileSet, reads: list[_Read]) -> Iterator[str]:
    groups: dict[bytes, list[int]] = collections.defaultdict(list)
    for i, read in enumerate(reads):
        if read.digest is not None:
            groups[read.digest].append(i)
    same = [group for group in groups.values() if len(group) > 1]
    if not same:
        return
    split_of = {int(i): name for name, rows in files.splits.items() for i in rows}
    across = sum(len({split_of.get(i) for i in group}) > 1 for group in same)
    people = sum(len({int(files.identities[i]) for i in group}) > 1 for group in same)
    examples = [" = ".join(files.file_names[i] for i in group[:_SHOWN]) for group in same]
    yield (
        f"Images that are there more than once, byte by byte: {len(same):,} "
        f"({_some(examples)}); in different splits: {across:,}; as different people: {people:,}."
    )


def _shared(files: FileSet) -> Iterator[str]:
    for (left, right), people in shared_people(files).items():
        numbers = _some([str(person) for person in people])
        yield f"People both in {left} and in {right}: {len(people):,} ({numbers})."


def _constant(files: FileSet) -> Iterator[str]:
    constant = constant_attributes(files)
    if constant:
        yield (
            "Attributes that are the same in all images, so that nothing can be learned of them: "
            f"{len(constant)} ({_some(constant)})."
        )


def _caches(files: FileSet, config: DataConfig) -> list[Path]:
    """Decoded images of these files in any size."""
    prefix = cache_prefix(files)
    return [
        path
        for place in cache.places(_folder(config), config.cache_dir)
        if place.is_dir()
        for path in sorted(place.iterdir())
        if path.name.startswith(prefix) and path.suffix == ".npy"
    ]


def _cache(path: Path) -> tuple[Problem | None, str | None]:
    """A problem or a remark, or neither."""
    try:
        good = cache.verify(path)
    except OSError as error:
        return Problem("cache", path.name, f"{path} cannot be read: {error.strerror}."), None
    if good is None:
        return None, (
            f"The decoded images {path.name} are not verifiable: no checksum was written with "
            "them. Remove them to have them decoded again, with one."
        )
    if not good:
        reason = f"{path} is not what was written. Remove it; it is then decoded again."
        return Problem("cache", path.name, reason), None
    return None, None


def _some(items: list[str]) -> str:
    more = len(items) - _SHOWN
    return ", ".join(items[:_SHOWN]) + (f" and {more:,} more" if more > 0 else "")
