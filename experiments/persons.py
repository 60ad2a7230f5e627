"""Pictures of persons to recognise, which are no part of the data sets that networks train on."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import report

from facemix_jax import data
from facemix_jax.data import DataConfig, tables
from facemix_jax.data.files import FileSource

_NOT_ATTRIBUTES = ("source", "n_faces", "dlib_dist", "iod_px")
_SAME_PERSON = 0.6
"""Above this distance between a picture and a person's others, a recogniser doubts the label."""


def people(identity_dir: str, cache_dir: str | None, image_size: tuple[int, int]) -> data.Source:
    """Images for recognising persons; without doubtful ones, where ``dlib_dist`` says which.

    ``labels.csv`` has columns of image names, ``identity``, ``partition`` and attributes.
    """
    table = _table(identity_dir)
    config = _data_config(table, identity_dir, cache_dir, image_size)
    source = data.load_source(config)
    if "dlib_dist" not in table.columns:
        return source
    assert isinstance(source, FileSource)
    labelled, _ = tables.attribute_values(table, tables.find_roles(table, config.columns))
    distances = np.array([float(table.columns["dlib_dist"][row] or 0) for row in labelled])
    keep = distances <= _SAME_PERSON
    splits = {split: rows[keep[rows]] for split, rows in source.splits.items()}
    return dataclasses.replace(source, splits=splits)


def images(identity_dir: str | None) -> dict[str, dict[str, Any]]:
    """``report.images_of`` all of them, doubtful ones included; empty without a folder.

    Raises:
        FacemixError: files are missing or damaged.
    """
    if identity_dir is None:
        return {}
    config = _data_config(_table(identity_dir), identity_dir, None, DataConfig.image_size)
    return {"people": report.images_of(config)}


def _data_config(
    table: tables.Table, identity_dir: str, cache_dir: str | None, image_size: tuple[int, int]
) -> DataConfig:
    ignored = ",".join(name for name in _NOT_ATTRIBUTES if name in table.columns)
    return DataConfig(
        dataset="folder",
        data_dir=identity_dir,
        cache_dir=cache_dir,
        image_size=image_size,
        labels="labels.csv",
        columns="identity=identity split=partition" + (f" ignore={ignored}" if ignored else ""),
    )


def _table(identity_dir: str) -> tables.Table:
    return tables.read_table(Path(identity_dir).expanduser() / "labels.csv")
