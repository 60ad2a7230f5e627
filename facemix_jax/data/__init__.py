"""Data sets behind one ``Source`` protocol, and batches of them."""

import functools
import sys
from collections.abc import Callable
from pathlib import Path

from facemix_jax._files import expanded
from facemix_jax._validate import DataError
from facemix_jax.data import cache, celeba, folder, lfwa, prepared, synthetic
from facemix_jax.data.config import DATASETS, DataConfig
from facemix_jax.data.files import FileSet, decoded, taken
from facemix_jax.data.identities import IdentitySplit, identity_split
from facemix_jax.data.pipeline import (
    denormalize,
    eval_batches,
    normalize,
    train_batches,
)
from facemix_jax.data.resident import on_device
from facemix_jax.data.source import Batch, Source

__all__ = [
    "DATASETS",
    "Batch",
    "DataConfig",
    "FileSet",
    "IdentitySplit",
    "Source",
    "denormalize",
    "eval_batches",
    "identity_split",
    "load_source",
    "normalize",
    "on_device",
    "open_files",
    "taken",
    "train_batches",
]

_READERS: dict[str, Callable[[Path, DataConfig], FileSet]] = {
    "prepared": lambda path, config: prepared.read(path),
    "celeba": lambda path, config: celeba.read(path),
    "lfwa": lambda path, config: lfwa.read(path, labels=config.labels, columns=config.columns),
    "folder": lambda path, config: folder.read(path, labels=config.labels, columns=config.columns),
}


def open_files(config: DataConfig) -> FileSet:
    """The files that ``config`` names, with labels checked and nothing decoded.

    Raises:
        DataError: a file is missing, malformed or disagrees with another.
        UsageError: ``data_dir`` begins with the folder of an unknown user.
    """
    return _READERS[config.dataset](_folder(config), config)


def load_source(config: DataConfig) -> Source:
    """The data set that ``config`` names, ready for random access.

    What should be known of its labels is said on standard error, once in a process.

    Raises:
        DataError: files are missing, damaged or disagree, or the cache cannot be written.
        UsageError: more examples are asked for than there are, or a folder is in that of an
            unknown user.
    """
    if config.dataset == "synthetic":
        return synthetic.load(
            config.image_size,
            train_examples=config.train_examples,
            test_examples=config.test_examples,
        )
    files = open_files(config)
    for remark in files.remarks:
        _note(f"{config.data_dir}: {remark}")
    return decoded(
        taken(files, config.train_examples, config.test_examples),
        config.image_size,
        cache_dirs=cache.places(_folder(config), config.cache_dir),
    )


@functools.cache
def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


def _folder(config: DataConfig) -> Path:
    assert config.data_dir is not None
    path = expanded(config.data_dir)
    if not path.is_dir():
        raise DataError(
            f"The data folder {path} does not exist. Give the folder that holds the files of "
            f"dataset {config.dataset!r}."
        )
    return path
