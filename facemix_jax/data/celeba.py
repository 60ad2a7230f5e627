"""CelebA in its official files, read as they are."""

import dataclasses
import hashlib
import lzma
import struct
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from facemix_jax._types import HostArray, ImageSize
from facemix_jax._validate import DataError
from facemix_jax.data import cache, decode
from facemix_jax.data.source import SPLITS, take

HOME = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
ATTRIBUTES, IDENTITIES, PARTITION = (
    "list_attr_celeba.txt",
    "identity_CelebA.txt",
    "list_eval_partition.txt",
)
IMAGES = "img_align_celeba"
_SUFFIXES = (".jpg", ".jpeg", ".png")
# What ``zipfile`` raises for damaged, encrypted or unsupported archives.
_UNREADABLE = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, OSError, EOFError),
    *(RuntimeError, ValueError, NotImplementedError),
)


@dataclasses.dataclass(frozen=True)
class CelebA:
    """A ``Source`` over decoded CelebA images; see ``load``."""

    name: str
    image_size: ImageSize
    attribute_names: tuple[str, ...]
    attributes: HostArray
    identities: HostArray
    splits: Mapping[str, HostArray]
    file_names: tuple[str, ...]
    pixels: HostArray = dataclasses.field(repr=False)

    def __len__(self) -> int:
        """``N``, the number of images."""
        return len(self.file_names)

    def images(self, indices: HostArray) -> HostArray:
        """Images of ``indices`` (int ``[n]``), uint8 ``[n, H, W, 3]``."""
        return np.asarray(self.pixels[indices])


def load(
    data_dir: str | Path,
    image_size: ImageSize,
    *,
    train_examples: int | None = None,
    test_examples: int | None = None,
    cache_dir: str | None = None,
) -> CelebA:
    """Opens the official files of CelebA (Liu et al., ICCV 2015).

    The folder holds ``img_align_celeba.zip`` or the unpacked folder ``img_align_celeba``, and
    ``list_attr_celeba.txt``, ``identity_CelebA.txt`` and ``list_eval_partition.txt``. Labels are
    checked against each other and against the images before anything is decoded; then all images
    are decoded once into a cache (``cache.directory`` says where), 29 kB each at 109x89.

    Args:
        data_dir: folder of the official files; only read, unless the cache is put there.
        image_size: height, width; the official images have 218x178.
        train_examples: images of the training split to use; None for all.
        test_examples: images of the test split to use; None for all.
        cache_dir: folder for decoded images; None for the usual one.

    Raises:
        DataError: a file is missing, malformed or disagrees with another; an image is damaged;
            the cache cannot be written.
        UsageError: more examples are asked for than there are.
    """
    folder = Path(data_dir).expanduser()
    if not folder.is_dir():
        raise DataError(f"The data folder {folder} does not exist. {_where('the files')}")
    names, attribute_names, attributes = read_attributes(_official(folder, ATTRIBUTES))
    identities = read_identities(_official(folder, IDENTITIES), names)
    partition = read_partition(_official(folder, PARTITION), names)
    archive = _open_images(folder)
    _same_names(names, archive.sizes, left=ATTRIBUTES, right=archive.label)
    for name in names:
        decode.check_bytes(archive.sizes[name], name=f"{name} in {archive.label}")

    splits = {s: np.flatnonzero(partition == i).astype(np.int64) for i, s in enumerate(SPLITS)}
    splits["train"] = take(splits["train"], train_examples, option="train_examples")
    splits["test"] = take(splits["test"], test_examples, option="test_examples")

    height, width = image_size
    pixels = cache.load_or_build(
        cache.directory(folder, cache_dir)
        / f"celeba-{_fingerprint(names, archive)}-{height}x{width}.npy",
        (len(names), height, width, 3),
        lambda i: decode.rgb(archive.read(names[i]), image_size, name=archive.where(names[i])),
    )
    return CelebA(
        name="celeba",
        image_size=image_size,
        attribute_names=attribute_names,
        attributes=attributes,
        identities=identities,
        splits=splits,
        file_names=names,
        pixels=pixels,
    )


def read_attributes(path: Path) -> tuple[tuple[str, ...], tuple[str, ...], HostArray]:
    """Reads ``list_attr_celeba.txt``: a count, ``K`` names, then rows of a name and -1 or 1.

    Returns:
        File names ``[N]``, attribute names ``[K]``, int8 ``[N, K]`` of 0 and 1.
    """
    lines = _lines(path)
    if len(lines) < 2:
        raise DataError(
            f"{path} has {len(lines)} lines; it needs a count, names, then rows. "
            + _where(path.name)
        )
    (_, count_line), (_, header), rows = lines[0], lines[1], lines[2:]
    attribute_names = tuple(header.split())
    if not count_line.strip().isdecimal() or len(count_line) > 20:
        raise DataError(
            f"{path}, line 1: {_show(count_line)} is not the number of images. " + _where(path.name)
        )
    if int(count_line) != len(rows):
        raise DataError(
            f"{path} says {int(count_line):,} images on line 1, but {len(rows):,} rows follow. "
            f"It is cut short or edited. {_where(path.name)}"
        )
    if len(set(attribute_names)) != len(attribute_names):
        raise DataError(f"{path}, line 2: an attribute's name occurs twice. {_where(path.name)}")
    names, values = _rows(path, rows, 1 + len(attribute_names), {"-1", "1"}.issuperset, "-1 or 1")
    return names, attribute_names, np.array([[v == "1" for v in row] for row in values], np.int8)


def read_identities(path: Path, names: tuple[str, ...]) -> HostArray:
    """Reads ``identity_CelebA.txt`` in the order of ``names``; int32 ``[N]``."""
    return _numbers(path, names, str.isdecimal, "a number from 0 to 2147483647").astype(np.int32)


def read_partition(path: Path, names: tuple[str, ...]) -> HostArray:
    """Reads ``list_eval_partition.txt`` in the order of ``names``: 0 train, 1 valid, 2 test."""
    return _numbers(path, names, {"0", "1", "2"}.__contains__, "0, 1 or 2")


def _numbers(
    path: Path, names: tuple[str, ...], good: Callable[[str], bool], allowed: str
) -> HostArray:
    """One number for each of ``names``, int64 ``[N]``."""

    def all_good(values: Iterable[str]) -> bool:
        return all(v.isascii() and len(v) < 11 and good(v) and int(v) < 2**31 for v in values)

    found, values = _rows(path, _lines(path), 2, all_good, allowed)
    table = {name: int(value) for name, (value,) in zip(found, values, strict=True)}
    _same_names(names, table, left=ATTRIBUTES, right=path.name)
    return np.array([table[name] for name in names], np.int64)


def _rows(
    path: Path,
    rows: list[tuple[int, str]],
    columns: int,
    good: Callable[[list[str]], bool],
    allowed: str,
) -> tuple[tuple[str, ...], list[list[str]]]:
    """Splits rows into a file name and values, checked one by one."""
    names, values = [], []
    for number, line in rows:
        name, *row = line.split()
        if len(row) + 1 != columns:
            raise DataError(
                f"{path}, line {number}: {len(row) + 1} columns where {columns} belong "
                f"({_show(line)}). {_where(path.name)}"
            )
        if not good(row):
            raise DataError(
                f"{path}, line {number}: the values of {name} must be {allowed}, "
                f"not {_show(' '.join(row))}. {_where(path.name)}"
            )
        names.append(name)
        values.append(row)
    if not names:
        raise DataError(f"{path} has no rows. {_where(path.name)}")
    if len(set(names)) != len(names):
        seen: set[str] = set()
        twice = next(n for n in names if n in seen or seen.add(n))  # type: ignore[func-returns-value]
        raise DataError(f"{path}: {twice} occurs more than once. {_where(path.name)}")
    return tuple(names), values


def _lines(path: Path) -> list[tuple[int, str]]:
    """Numbered lines without the blank ones; any line ending, with or without a BOM."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not a text file ({error.reason} at byte {error.start}). "
            + _where(path.name)
        ) from error
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return [(i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]


@dataclasses.dataclass(frozen=True)
class _Images:
    """Encoded images by file name: ``read(name)`` may be called from several threads."""

    label: str
    sizes: Mapping[str, int]
    stamps: Mapping[str, str]
    read: Callable[[str], bytes]

    def where(self, name: str) -> str:
        return f"{name} in {self.label}"


def _open_images(folder: Path) -> _Images:
    if (folder / f"{IMAGES}.zip").is_file():
        return _open_zip(folder / f"{IMAGES}.zip")
    if (folder / IMAGES).is_dir():
        return _open_folder(folder / IMAGES)
    raise DataError(
        f"{folder} has neither {IMAGES}.zip nor a folder {IMAGES}. {_where(f'{IMAGES}.zip')}"
    )


def _open_zip(path: Path) -> _Images:
    try:
        archive = zipfile.ZipFile(path)
    except _UNREADABLE as error:
        raise DataError(
            f"{path} is not a complete zip file ({error}): the download was probably cut short. "
            + _where(path.name)
        ) from error
    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        # Only base names are used and nothing is extracted, so a path cannot lead anywhere.
        name = info.filename.rsplit("/", 1)[-1]
        if not _is_image(name) or info.filename.startswith("__MACOSX/"):
            continue
        if name in members:
            raise DataError(f"{path} holds {name} more than once. {_where(path.name)}")
        members[name] = info
    lock = threading.Lock()

    def read(name: str) -> bytes:
        try:
            with lock:
                return archive.read(members[name])
        except _UNREADABLE as error:
            raise DataError(
                f"Image {name} cannot be read from {path}: {error}. {_where(path.name)}"
            ) from error

    return _Images(
        label=path.name,
        sizes={name: info.file_size for name, info in members.items()},
        stamps={name: f"{info.file_size} {info.CRC:08x}" for name, info in members.items()},
        read=read,
    )


def _open_folder(path: Path) -> _Images:
    stats = {p.name: p.stat() for p in path.iterdir() if _is_image(p.name) and p.is_file()}

    def read(name: str) -> bytes:
        try:
            return (path / name).read_bytes()
        except OSError as error:
            raise DataError(
                f"Image {path / name} cannot be read: {error.strerror}. Check the disk and "
                "the file's permissions."
            ) from error

    return _Images(
        label=f"{path.name}/",
        sizes={name: stat.st_size for name, stat in stats.items()},
        stamps={name: f"{stat.st_size} {stat.st_mtime_ns}" for name, stat in stats.items()},
        read=read,
    )


def _is_image(name: str) -> bool:
    return name.lower().endswith(_SUFFIXES) and not name.startswith(".")


def _official(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise DataError(f"{name} is missing in {folder}. {_where(name)}")
    return path


def _where(name: str) -> str:
    return f"Get {name} from the official page, {HOME}, and put it into the data folder."


def _same_names(names: Iterable[str], others: Iterable[str], *, left: str, right: str) -> None:
    only_left, only_right = set(names) - set(others), set(others) - set(names)
    parts = [
        f"{len(only):,} only in {where} ({', '.join(sorted(only)[:3])}{', ...' * (len(only) > 3)})"
        for only, where in ((only_left, left), (only_right, right))
        if only
    ]
    if parts:
        raise DataError(
            f"{left} and {right} name different images: {'; '.join(parts)}. Use files of the same "
            "release, and cut label files and images to the same subset."
        )


def _show(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _fingerprint(names: tuple[str, ...], archive: _Images) -> str:
    """Changes with any image or their order: sizes and checksums (folder: sizes and times)."""
    digest = hashlib.sha256()
    for name in names:
        digest.update(f"{name} {archive.stamps[name]}\n".encode())
    return digest.hexdigest()[:16]
