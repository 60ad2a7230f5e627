"""What every data set offers, whatever its files look like."""

import dataclasses
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from facemix_jax._types import Array, HostArray, ImageSize
from facemix_jax._validate import UsageError

SPLITS = ("train", "valid", "test")


class Labels(Protocol):
    """What a labelled set says without showing a picture; see ``Source``."""

    @property
    def name(self) -> str:
        """``celeba``, ``synthetic``, ..."""
        ...

    @property
    def attribute_names(self) -> tuple[str, ...]:
        """``K`` names."""
        ...

    @property
    def attributes(self) -> HostArray:
        """int8 ``[N, K]``, 0 or 1."""
        ...

    @property
    def identities(self) -> HostArray:
        """int32 ``[N]``; equal numbers are the same person."""
        ...

    @property
    def splits(self) -> Mapping[str, HostArray]:
        """int64 indices under ``train``, ``valid`` and ``test``; they do not overlap."""
        ...


class Source(Labels, Protocol):
    """A labelled set of face images with random access.

    Attributes:
        name: ``celeba``, ``synthetic``, ...
        image_size: height, width of every image.
        attribute_names: ``K`` names.
        attributes: int8 ``[N, K]``, 0 or 1.
        identities: int32 ``[N]``; equal numbers are the same person.
        splits: int64 indices under ``train``, ``valid`` and ``test``; they do not overlap.
    """

    # Properties, so that a frozen dataclass fits.
    @property
    def image_size(self) -> ImageSize:
        """Height, width of every image."""
        ...

    def __len__(self) -> int:
        """``N``, the number of images."""
        ...

    def images(self, indices: HostArray) -> HostArray | Array:
        """Images of ``indices`` (int ``[n]``), uint8 ``[n, H, W, 3]``, RGB; thread-safe."""
        ...


@dataclasses.dataclass(frozen=True)
class Batch:
    """Examples.

    Attributes:
        images: uint8 ``[B, H, W, 3]``, RGB; on the host, or on the device where
            the source keeps them there (``on_device``).
        attributes: int8 ``[B, K]``, 0 or 1.
        identities: int32 ``[B]``.
        mask: bool ``[B]``; False for rows that only fill the last batch of an evaluation.
    """

    images: HostArray | Array
    attributes: HostArray
    identities: HostArray
    mask: HostArray


def take(indices: HostArray, count: int | None, *, option: str) -> HostArray:
    """The first ``count`` of ``indices`` after a fixed shuffle, sorted; all of them for None.

    A smaller ``count`` gives a subset of a larger one.

    Raises:
        UsageError: when there are fewer than ``count``.
    """
    if count is None:
        return indices
    if count > len(indices):
        raise UsageError(
            f"{option} is {count}, but the split has {len(indices)} images. "
            f"Give {option} of at most {len(indices)}, or leave it out to take all."
        )
    return np.sort(np.random.default_rng(0).permutation(indices)[:count])
