"""CelebA in its official files, read as they are."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from facemix_jax._types import HostArray
from facemix_jax._validate import DataError
from facemix_jax.data import archives
from facemix_jax.data.files import FileSet
from facemix_jax.data.labels import no_repeats, read_text, same_names, show
from facemix_jax.data.source import SPLITS

HOME = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
ATTRIBUTES, IDENTITIES, PARTITION = (
    "list_attr_celeba.txt",
    "identity_CelebA.txt",
    "list_eval_partition.txt",
)
IMAGES = "img_align_celeba"


def read(data_dir: Path) -> FileSet:
    """Opens the official files of CelebA (Liu et al., ICCV 2015).

    The folder holds ``img_align_celeba.zip`` or the unpacked folder ``img_align_celeba``, and
    ``list_attr_celeba.txt``, ``identity_CelebA.txt`` and ``list_eval_partition.txt``. Labels are
    checked against each other and against the names of the images; nothing is decoded.

    Args:
        data_dir: folder of the official files; only read.

    Raises:
        DataError: a file is missing, malformed or disagrees with another.
    """
    names, attribute_names, attributes = read_attributes(_official(data_dir, ATTRIBUTES))
    identities = read_identities(_official(data_dir, IDENTITIES), names)
    partition = read_partition(_official(data_dir, PARTITION), names)
    images = _open_images(data_dir)
    same_names(names, images.sizes, left=ATTRIBUTES, right=images.label)
    return FileSet(
        name="celeba",
        file_names=names,
        images=images,
        attribute_names=attribute_names,
        attributes=attributes,
        identities=identities,
        splits={s: np.flatnonzero(partition == i).astype(np.int64) for i, s in enumerate(SPLITS)},
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
            f"{path}, line 1: {show(count_line)} is not the number of images. " + _where(path.name)
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
    same_names(names, table, left=ATTRIBUTES, right=path.name)
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
                f"({show(line)}). {_where(path.name)}"
            )
        if not good(row):
            raise DataError(
                f"{path}, line {number}: the values of {name} must be {allowed}, "
                f"not {show(' '.join(row))}. {_where(path.name)}"
            )
        names.append(name)
        values.append(row)
    if not names:
        raise DataError(f"{path} has no rows. {_where(path.name)}")
    no_repeats(names, path, remedy=_where(path.name))
    return tuple(names), values


def _lines(path: Path) -> list[tuple[int, str]]:
    """Numbered lines without the blank ones."""
    text = read_text(path, remedy=_where(path.name))
    return [(i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]


def _open_images(folder: Path) -> archives.EncodedImages:
    for path in (folder / f"{IMAGES}.zip", folder / IMAGES):
        if path.exists():
            return archives.open_images(path, remedy=_where(path.name))
    raise DataError(
        f"{folder} has neither {IMAGES}.zip nor a folder {IMAGES}. {_where(f'{IMAGES}.zip')}"
    )


def _official(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise DataError(f"{name} is missing in {folder}. {_where(name)}")
    return path


def _where(name: str) -> str:
    return f"Get {name} from the official page, {HOME}, and put it into the data folder."
