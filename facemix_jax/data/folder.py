"""Any images with a table of labels."""

import functools
import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from facemix_jax._types import HostArray
from facemix_jax._validate import DataError
from facemix_jax.data import archives, tables
from facemix_jax.data.files import FileSet
from facemix_jax.data.labels import no_repeats
from facemix_jax.data.source import SPLITS
from facemix_jax.data.tables import Roles, Table

__all__ = ["Roles", "files_of_type", "locate", "number_people", "read", "roles", "split_by_person"]


def read(
    data_dir: Path,
    *,
    labels: str | None = None,
    columns: str | None = None,
    name: str = "folder",
) -> FileSet:
    """Opens images and their labels; nothing is decoded.

    Images lie in ``images.zip``, a folder ``images``, the only other zip file, or the folder
    itself, with or without folders in between; images without a row are left out.

    Args:
        data_dir: the folder; only read.
        labels: its CSV file; None for the only one there.
        columns: roles of columns, as in ``identity=person ignore=source``; None to guess all.
        name: of the data set.

    Raises:
        DataError: labels or images are missing, malformed or disagree.
        UsageError: ``columns`` names an unknown role or column.
    """
    table, found = _open(data_dir, labels, columns)
    return _labelled(table, found, _open_images(data_dir, table.path), name)


def roles(data_dir: Path, *, labels: str | None = None, columns: str | None = None) -> Roles:
    """What ``read`` takes each column for; raises the same errors, and opens no image."""
    return _open(data_dir, labels, columns)[1]


def locate(names: Sequence[str], images: archives.EncodedImages, *, labels: str) -> tuple[str, ...]:
    """The image that each name means: one whose path is, or ends in, that name.

    Paths may begin with the folder or archive, as in ``images/0.png`` or ``./images/0.png``.
    Letters with accents may be written as one character or as two.

    Raises:
        DataError: a name fits no image, or several, or an image has two names.
    """
    wanted = [PurePosixPath(name.replace("\\", "/")).as_posix() for name in names]
    paths = _paths(wanted, images, str)
    unknown = [name for name, found in paths.items() if not found]
    if unknown:  # files from macOS have an accent as a character of its own, most tables have not
        paths |= _paths(unknown, images, functools.partial(unicodedata.normalize, "NFC"))
    missing = [name for name, path in zip(names, wanted, strict=True) if not paths[path]]
    if missing:
        raise DataError(
            f"{len(missing):,} images of {labels} are not in {images.label}: "
            f"{', '.join(repr(name) for name in missing[:3])}{', ...' * (len(missing) > 3)}. "
            "Add them, or take their rows out."
        )
    for name, found in paths.items():
        if len(found) > 1:
            raise DataError(
                f"{name} of {labels} is more than one image of {images.label}: "
                f"{', '.join(found[:3])}. Write its folder into {labels}, too."
            )
    files = tuple(paths[name][0] for name in wanted)
    no_repeats(files, Path(labels), remedy="Keep one row for each image.")
    return files


def _paths(
    names: Iterable[str], images: archives.EncodedImages, form: Callable[[str], str]
) -> dict[str, list[str]]:
    """The images whose path is each name, or else ends in it, both brought into a form."""
    whole: dict[str, list[str]] = {}
    ending: dict[str, list[str]] = {}
    opened = re.sub(r"\.zip$", "", images.label.removesuffix("/"), flags=re.IGNORECASE)
    for path in images.sizes:
        whole.setdefault(form(path), []).append(path)
        parts = [opened, *path.split("/")]
        for i in range(len(parts)):
            ending.setdefault(form("/".join(parts[i:])), []).append(path)
    return {n: whole.get(form(n)) or ending.get(form(n), []) for n in names}


def files_of_type(data_dir: Path, suffix: str) -> list[Path]:
    """The files of a folder with a suffix such as ``.csv``, in capital letters, too.

    Hidden ones are left out: macOS keeps attributes of others in them.
    """
    return sorted(
        p
        for p in data_dir.iterdir()
        if p.suffix.lower() == suffix and not p.name.startswith(".") and p.is_file()
    )


def number_people(people: Sequence[str]) -> HostArray:
    """Numbers for names of people, int32 ``[N]``.

    Names that are all numbers from 0 to 2147483647 stay as they are; others count from 0 in order
    of first appearance.
    """
    if _numeric(people):
        return np.array([int(p) for p in people], np.int32)
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(p, len(numbers)) for p in people], np.int32)


def split_by_person(people: Sequence[str]) -> Mapping[str, HostArray]:
    """Deals people out to ``train``, ``valid`` and ``test``, 80/10/10 by a hash of their names.

    A person's split does not depend on who else is there.
    """
    # 7 and 007 are one person where people are numbers; each by itself, as others come and go.
    keys = [str(int(p)) if _numeric([p]) else p for p in people]
    tenths = [int(hashlib.sha256(key.encode()).hexdigest(), 16) % 10 for key in keys]
    return _by_split(np.array([max(0, tenth - 7) for tenth in tenths], np.int64))


def _numeric(people: Sequence[str]) -> bool:
    return all(p.isascii() and p.isdecimal() and len(p) < 11 and int(p) < 2**31 for p in people)


def _by_split(position: HostArray) -> Mapping[str, HostArray]:
    return {s: np.flatnonzero(position == i).astype(np.int64) for i, s in enumerate(SPLITS)}


def _open(data_dir: Path, labels: str | None, overrides: str | None) -> tuple[Table, Roles]:
    table = tables.read_table(_labels(data_dir, labels))
    return table, tables.find_roles(table, overrides)


def _labelled(table: Table, found: Roles, images: archives.EncodedImages, name: str) -> FileSet:
    kept, attributes = tables.attribute_values(table, found)
    names = [table.columns[found.file][i] for i in kept]
    if found.identity is None:
        people = names
        identities = np.arange(len(kept), dtype=np.int32)
    else:
        people = [table.columns[found.identity][i] for i in kept]
        if not all(people):
            raise DataError(
                f"{table.path}, line {table.lines[kept[people.index('')]]}: column "
                f"{found.identity} is blank. Fill it in, or treat every image as its own person "
                f"with columns='ignore={found.identity}'."
            )
        identities = number_people(people)
    if found.split is None:
        splits = split_by_person(people)
    else:
        splits = _by_split(tables.split_values(table, found.split, kept))
    return FileSet(
        name=name,
        file_names=locate(names, images, labels=table.path.name),
        images=images,
        attribute_names=found.attributes,
        attributes=attributes,
        identities=identities,
        splits=splits,
        remarks=(tables.NO_PEOPLE,) if found.identity is None else (),
    )


def _labels(data_dir: Path, labels: str | None) -> Path:
    if labels is not None:
        if not (data_dir / labels).is_file():
            raise DataError(
                f"The label file {data_dir / labels} does not exist. Give labels as the name of "
                f"a CSV file in {data_dir}."
            )
        return data_dir / labels
    found = files_of_type(data_dir, ".csv")
    if len(found) == 1:
        return found[0]
    what = f"{len(found)} CSV files ({', '.join(p.name for p in found[:3])})" if found else "no CSV"
    raise DataError(
        f"{data_dir} holds {what}. Put a single CSV file there, or name one with labels."
    )


def _open_images(data_dir: Path, table: Path) -> archives.EncodedImages:
    packed = files_of_type(data_dir, ".zip")
    whole = data_dir / "images.zip"
    unpacked = data_dir / "images"
    if whole in packed:
        path = whole
    elif unpacked.is_dir():  # before archives of other names, which may be older copies
        path = unpacked
    else:
        path = packed[0] if len(packed) == 1 else data_dir
    if path == data_dir and packed:
        raise DataError(
            f"{data_dir} holds {len(packed)} zip files and no images.zip. Name the one with the "
            "images images.zip."
        )
    remedy = f"Put the images of {table.name} into {data_dir} again."
    images = archives.open_images(path, folders=True, remedy=remedy)
    if not images.sizes:
        raise DataError(
            f"{path} holds no image ({', '.join(archives.SUFFIXES)}). Put the images of "
            f"{table.name} into images.zip, a folder images, or beside {table.name}."
        )
    return images
