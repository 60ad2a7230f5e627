"""LFWA: the faces of LFW with 40 attributes, in its official files or with a CSV."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from facemix_jax._types import HostArray
from facemix_jax._validate import DataError
from facemix_jax.data import archives
from facemix_jax.data.files import FileSet
from facemix_jax.data.folder import files_of_type, locate, number_people, split_by_person
from facemix_jax.data.folder import read as read_folder
from facemix_jax.data.labels import no_repeats
from facemix_jax.data.matlab import read_matlab

HOME = "https://liuziwei7.github.io/projects/FaceAttributes.html"
ATTRIBUTES, INDICES = "lfw_att_40.mat", "indices_train_test.mat"
IMAGES = "lfw"


def read(data_dir: Path, *, labels: str | None = None, columns: str | None = None) -> FileSet:
    """Opens LFWA (Liu et al., ICCV 2015); nothing is decoded.

    The official files are ``lfw.zip`` or the unpacked folder ``lfw``, ``lfw_att_40.mat``, and
    ``indices_train_test.mat`` with the official split, which has no validation images. Without
    the last, people are dealt out 80/10/10. A folder without ``lfw_att_40.mat``, or any with
    ``labels`` or ``columns``, is read as images with a CSV, see ``folder.read``.

    Args:
        data_dir: the folder; only read.
        labels: its CSV file, if any.
        columns: roles of the CSV's columns.

    Raises:
        DataError: a file is missing, malformed or disagrees with another.
        UsageError: ``columns`` names an unknown role or column.
    """
    official = data_dir / ATTRIBUTES
    if has_table(data_dir, labels, columns):
        return read_folder(data_dir, labels=labels, columns=columns, name="lfwa")
    if not official.is_file():
        raise DataError(
            f"{data_dir} has neither {ATTRIBUTES} nor a CSV file with labels. {_where(ATTRIBUTES)}"
        )
    names, attribute_names, attributes = read_attributes(official)
    people = [_person(official, name) for name in names]
    indices = data_dir / INDICES
    return FileSet(
        name="lfwa",
        file_names=locate(names, images := _open_images(data_dir), labels=ATTRIBUTES),
        images=images,
        attribute_names=attribute_names,
        attributes=attributes,
        identities=number_people(people),
        splits=(read_split(indices, len(names)) if indices.exists() else split_by_person(people)),
    )


def has_table(data_dir: Path, labels: str | None, columns: str | None) -> bool:
    """Whether ``read`` takes labels from a CSV file."""
    return bool(labels or columns) or (
        not (data_dir / ATTRIBUTES).exists() and bool(files_of_type(data_dir, ".csv"))
    )


def read_attributes(path: Path) -> tuple[tuple[str, ...], tuple[str, ...], HostArray]:
    """Reads ``lfw_att_40.mat``: cells ``AttrName`` and ``name``, and the matrix ``label``.

    Returns:
        File names ``[N]`` as in ``Person/Person_0001.jpg``, attribute names ``[K]`` in CelebA's
        spelling, int8 ``[N, K]`` of 0 and 1.
    """
    texts, numbers = read_matlab(
        path, texts=("AttrName", "name"), numbers=("label",), remedy=_where(path.name)
    )
    names = tuple(name.strip().replace("\\", "/") for name in texts["name"])
    attributes = tuple("_".join(a.replace("'", " ").split()) for a in texts["AttrName"])
    label = numbers["label"]
    if not names or not attributes or label.shape != (len(names), len(attributes)):
        raise DataError(
            f"{path} has {len(names):,} names and {len(attributes)} attributes, but labels of "
            f"shape {list(label.shape)}. It is damaged. {_where(path.name)}"
        )
    if not np.isin(label, (0, 1)).all():
        row, column = np.argwhere(~np.isin(label, (0, 1)))[0]
        raise DataError(
            f"{path}: {attributes[column]} of {names[row]} is {label[row, column]}, but must be "
            f"0 or 1. {_where(path.name)}"
        )
    no_repeats(names, path, remedy=_where(path.name))
    no_repeats(attributes, path, remedy=_where(path.name))
    return names, attributes, label.astype(np.int8)


def read_split(path: Path, count: int) -> Mapping[str, HostArray]:
    """Reads ``indices_train_test.mat``: rows of ``lfw_att_40.mat``, counted from 1."""
    _, numbers = read_matlab(
        path, numbers=("indices_img_train", "indices_img_test"), remedy=_where(path.name)
    )
    train, test = (np.asarray(v, np.float64).ravel() for v in numbers.values())
    both = np.concatenate([train, test])
    if not np.isin(both, np.arange(1, count + 1)).all() or len(np.unique(both)) < len(both):
        raise DataError(
            f"{path} must hold different row numbers from 1 to {count:,}, the rows of "
            f"{ATTRIBUTES}. The two files do not belong together, or one is damaged. "
            f"{_where(path.name)}"
        )
    rows = {"train": train, "valid": np.zeros(0), "test": test}
    return {split: np.sort(values.astype(np.int64) - 1) for split, values in rows.items()}


def _person(path: Path, name: str) -> str:
    """Whom ``Person/Person_0001.jpg`` shows."""
    person, slash, _ = name.rpartition("/")
    if not slash:
        raise DataError(
            f"{path}: {name!r} is not a person's folder and an image. {_where(path.name)}"
        )
    return person


def _open_images(folder: Path) -> archives.EncodedImages:
    for path in (folder / f"{IMAGES}.zip", folder / IMAGES):
        if path.exists():
            return archives.open_images(path, folders=True, remedy=_where(path.name))
    raise DataError(
        f"{folder} has neither {IMAGES}.zip nor a folder {IMAGES}. {_where(f'{IMAGES}.zip')}"
    )


def _where(name: str) -> str:
    return f"Get {name} of LFWA from the official page, {HOME}, and put it into the data folder."
