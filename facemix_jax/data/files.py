"""Image files with labels, and a ``Source`` over them that decodes every image once."""

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from facemix_jax._types import HostArray, ImageSize
from facemix_jax.data import cache, decode
from facemix_jax.data.archives import EncodedImages, fingerprint
from facemix_jax.data.source import take


@dataclasses.dataclass(frozen=True)
class FileSet:
    """Labelled images as they lie on disk, checked against each other but not decoded.

    Attributes:
        name: of the data set.
        file_names: ``N`` names, in order.
        images: the encoded images by name; may hold more than ``file_names``.
        attribute_names: ``K`` names.
        attributes: int8 ``[N, K]``, 0 or 1.
        identities: int32 ``[N]``; equal numbers are the same person.
        splits: int64 indices under ``train``, ``valid`` and ``test``; they do not overlap.
        remarks: what a user should know of how the labels were taken.
    """

    name: str
    file_names: tuple[str, ...]
    images: EncodedImages
    attribute_names: tuple[str, ...]
    attributes: HostArray
    identities: HostArray
    splits: Mapping[str, HostArray]
    remarks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises ``DataError`` where an image is too large to be read."""
        for name in self.file_names:
            decode.check_bytes(self.images.sizes[name], name=self.images.where(name))


@dataclasses.dataclass(frozen=True)
class FileSource:
    """Decoded images in a memory-mapped file; the rest of the fields are those of ``Source``.

    Attributes:
        file_names: of all images, in order.
        pixels: uint8 ``[N, H, W, 3]``, mapped.
    """

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


_ALL_PLAIN = ("celeba", "lfwa")
"""Data sets of which no picture is to be turned or is transparent, so that what older versions
decoded is right."""


def pixel_mark(files: FileSet) -> str:
    """Changes with any image, their order, and with how images are decoded."""
    mark = fingerprint(files.file_names, files.images)
    return mark if files.name in _ALL_PLAIN else f"{mark}-upright-white"


def cache_prefix(files: FileSet) -> str:
    """How the names of all caches of these images begin; a size follows."""
    return f"{files.name}-{pixel_mark(files)}-"


def taken(files: FileSet, train_examples: int | None, test_examples: int | None) -> FileSet:
    """The same files with so many images in the training and test splits; None for all.

    Raises:
        UsageError: more are asked for than there are.
    """
    splits = dict(files.splits)
    splits["train"] = take(splits["train"], train_examples, option="train_examples")
    splits["test"] = take(splits["test"], test_examples, option="test_examples")
    return dataclasses.replace(files, splits=splits)


def decoded(
    files: FileSet,
    image_size: ImageSize,
    *,
    cache_dirs: Sequence[Path],
) -> FileSource:
    """Decodes all images into the cache at the first call, and maps it from then on.

    Args:
        files: the images.
        image_size: height, width of the result.
        cache_dirs: where the cache may lie; it is built in the first of these folders that can be
            written. An image takes ``3 H W`` bytes in it.

    Raises:
        DataError: an image is damaged, or the cache cannot be written.
    """
    (height, width), names, images = image_size, files.file_names, files.images
    with warnings.catch_warnings():
        # Pillow warns of large images, which are refused, and of odd metadata.
        warnings.simplefilter("ignore")
        pixels = cache.load_or_build(
            cache_dirs,
            f"{cache_prefix(files)}{height}x{width}.npy",
            (len(names), height, width, 3),
            lambda i: decode.rgb(images.read(names[i]), image_size, name=images.where(names[i])),
        )
    return FileSource(
        name=files.name,
        image_size=image_size,
        attribute_names=files.attribute_names,
        attributes=files.attributes,
        identities=files.identities,
        splits=files.splits,
        file_names=names,
        pixels=pixels,
    )
