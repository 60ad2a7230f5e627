"""Images that live on the accelerator, so that no step waits for the host."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from facemix_jax._types import Array, HostArray, ImageSize
from facemix_jax._validate import UsageError, one_of
from facemix_jax.data.source import Source

_UPLOAD = 1024


@dataclasses.dataclass(frozen=True)
class ResidentSource:
    """A ``Source`` of one split whose images are JAX arrays; see ``on_device``.

    Attributes:
        pixels: uint8 ``[n, H, W, 3]``, the split's images, on the device.
        place: int32 ``[N]``, where in ``pixels`` an image is; -1 where it is in no split.
    """

    name: str
    image_size: ImageSize
    attribute_names: tuple[str, ...]
    attributes: HostArray
    identities: HostArray
    splits: Mapping[str, HostArray]
    pixels: Array = dataclasses.field(repr=False)
    place: HostArray = dataclasses.field(repr=False)

    def __len__(self) -> int:
        """``N``, the number of images of the original source."""
        return len(self.identities)

    def images(self, indices: HostArray) -> Array:
        """Images of ``indices`` (int ``[n]``, in the split), uint8 ``[n, H, W, 3]``."""
        return _take(self.pixels, self.place[indices])


def on_device(source: Source, *, split: str = "train") -> ResidentSource:
    """Copies a split to the device once, as uint8; all of CelebA at 218x178 takes 24 GB.

    Batches of the result hold the same images in the same order, gathered on the device.

    Args:
        source: the data set.
        split: which of its splits; the result has no other.

    Raises:
        UsageError: an unknown split, or one that does not fit into the device's memory.
    """
    one_of(source.splits, split=split)
    indices = source.splits[split]
    height, width = source.image_size
    needed = len(indices) * height * width * 3
    room = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", float("inf"))
    if needed > 0.9 * room:
        raise UsageError(
            f"The split takes {needed / 1e9:.1f} GB on the device, which has {room / 1e9:.1f} GB "
            "for everything. Leave device_resident out, or use fewer or smaller images."
        )
    pixels = jnp.zeros((len(indices), height, width, 3), jnp.uint8)
    for start in range(0, len(indices), _UPLOAD):  # the host holds only a part at a time
        pixels = _put(pixels, source.images(indices[start : start + _UPLOAD]), start)
    place = np.full(len(source), -1, np.int32)
    place[indices] = np.arange(len(indices))
    return ResidentSource(
        name=source.name,
        image_size=source.image_size,
        attribute_names=source.attribute_names,
        attributes=source.attributes,
        identities=source.identities,
        splits={split: indices},
        pixels=pixels,
        place=place,
    )


def _insert(pixels: Array, part: Array, start: Array) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(pixels, part, start, 0)


_put = jax.jit(_insert, donate_argnums=0)


@jax.jit
def _take(pixels: Array, rows: Array) -> Array:
    return pixels.at[rows].get(mode="promise_in_bounds")
