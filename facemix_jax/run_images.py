"""What a run's work directory says of the images it was trained on: ``images.json``."""

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from facemix_jax import data
from facemix_jax._types import HostArray, ImageSize
from facemix_jax._validate import DataError, FacemixError, UsageError
from facemix_jax.data import DataConfig, Source
from facemix_jax.data.archives import fingerprint
from facemix_jax.data.source import Labels

NAMES = "attribute_names"


def images_of(source: Labels, image_size: ImageSize) -> dict[str, Any]:
    """What tells a run's training images from others, wherever they lie; ready for JSON.

    Labels stand for the pictures, which are not read: other pictures under the same labels pass.
    """
    rows = source.splits["train"]
    return {
        "training_images": len(rows),
        "image_size": list(image_size),
        "labels": labels_of(source, rows),
        NAMES: list(source.attribute_names),
    }


def labels_of(source: Labels, rows: HostArray) -> str:
    """16 hexadecimal digits that change with any name, attribute or person of these rows."""
    labels = hashlib.sha256("\n".join(source.attribute_names).encode())
    labels.update(np.asarray(source.attributes[rows], np.int8).tobytes())
    labels.update(np.asarray(source.identities[rows], np.int32).tobytes())
    return labels.hexdigest()[:16]


def scored(config: DataConfig, splits: Iterable[str]) -> str:
    """16 hexadecimal digits that change with any image or label of some splits of files.

    No picture is read: size and checksum, in folders size and time, stand for it.

    Raises:
        DataError: a file is missing, malformed or disagrees with another.
        UsageError: more examples are asked for than there are.
    """
    files = data.taken(data.open_files(config), config.train_examples, config.test_examples)
    digest = hashlib.sha256()
    for split in splits:
        rows = files.splits[split]
        pictures = fingerprint([files.file_names[i] for i in rows], files.images)
        digest.update(f"{labels_of(files, rows)} {pictures}\n".encode())
    return digest.hexdigest()[:16]


def images_named(config: DataConfig) -> dict[str, Any]:
    """``images_of`` the files that a configuration names, of which no picture is decoded."""
    files = data.taken(data.open_files(config), config.train_examples, config.test_examples)
    return images_of(files, config.image_size)


def read_images(workdir: Path) -> dict[str, Any] | None:
    """``images_of`` what a run was trained on; None where nothing says.

    Raises:
        FacemixError: it cannot be read.
    """
    path = workdir / "images.json"
    if not path.exists():
        return None
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise FacemixError(
            f"{path} cannot be read: {error}. Restore it, or delete it to go on without comparing "
            f"the training images."
        ) from error


def attribute_names(workdir: Path) -> tuple[str, ...] | None:
    """The attributes a run was trained for; None for runs from before they were kept.

    Raises:
        FacemixError: as ``read_images``.
        DataError: they are no names.
    """
    names = (read_images(workdir) or {}).get(NAMES)
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(
            f"{workdir / 'images.json'} is damaged: its {NAMES} are no list of names. Restore it, "
            f"or delete it to go on without comparing the attributes."
        )
    return tuple(names)


def differences(kept: Mapping[str, Any], now: Mapping[str, Any], part: str) -> list[str]:
    """What differs between two ``images_of`` or parts of configurations, in words.

    Args:
        kept: of a run; older ones keep less of their images.
        now: the same.
        part: what they are of.
    """
    return [
        f"{part}.{name} is {value!r} there and {now.get(name)!r} here"
        for name, value in kept.items()
        if name != NAMES and now.get(name) != value  # names are part of the labels' digest
    ]


def check_drawn(workdir: Path, source: Source) -> None:
    """Raises ``UsageError`` where a run was not trained on the faces that its configuration draws.

    It was given a source of its own, of which the configuration says nothing.
    """
    drawn = images_of(source, source.image_size)
    kept = {k: v for k, v in (read_images(workdir) or {}).items() if k in drawn}
    found = differences(kept, drawn, "images")
    if found:
        raise UsageError(
            f"{workdir} was trained on other images than the faces that its configuration draws: "
            f"{'; '.join(found)}. Load it in Python with the source that it was trained on, as in "
            f"facemix_jax.runs.load(workdir, source=source)."
        )


def check_attributes(workdir: Path, source: Labels) -> None:
    """Raises ``DataError`` where images have other attributes than a run was trained for.

    Their columns may have been exchanged since, and answers would be compared with the wrong ones.
    Other images and other people are no error: an attacker or a test may have its own.
    """
    names = attribute_names(workdir)
    if names is None:
        return
    pairs = itertools.zip_longest(names, source.attribute_names, fillvalue="missing")
    for number, (there, here) in enumerate(pairs, 1):
        if there != here:
            raise DataError(
                f"{workdir} was trained for other attributes than these images have: attribute "
                f"{number} is {there!r} there and {here!r} here. Give the --data-dir of images "
                f"labelled with the attributes of {workdir / 'images.json'}, in that order."
            )
