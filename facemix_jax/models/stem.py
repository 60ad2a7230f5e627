"""Two operations of ResNet-18's stem as an NVIDIA GPU computes them fastest.

The 7x7 convolution has three channels, which tensor cores take as eight: on blocks of 2x2 pixels
it has twelve. XLA scatters the gradient of a max-pool with atomic additions: here it is gathered.
``experiments/benchmarks/cuda_parts.py`` measures both; on other devices they are JAX's own. (A CPU
gathers faster too, but as XLA fuses it, a plain training step of width 64 took a quarter longer.)
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from facemix_jax._types import Array

_CHANNELS = 4
"""An image's three and one of zeros: four pixels are then the 16 that tensor cores take."""


def stem_convolution(x: Array, kernel: Array, *args: Any, **options: Any) -> Array:
    """``jax.lax.conv_general_dilated`` for 7x7, stride 2, padding 3 and three channels.

    Args:
        x: ``[B, H, W, 3]``.
        kernel: ``[7, 7, 3, C]``.
        *args: as there.
        **options: as there.

    Returns:
        ``[B, H/2, W/2, C]``, rounded up.
    """
    return jax.lax.platform_dependent(
        x,
        kernel,
        cuda=stem_on_blocks,
        default=lambda x, kernel: jax.lax.conv_general_dilated(x, kernel, *args, **options),
    )


def stem_on_blocks(x: Array, kernel: Array) -> Array:
    """7x7, stride 2, padding 3, of three channels, as 4x4 and stride 1 on blocks of 2x2 pixels.

    Args:
        x: ``[B, H, W, 3]``.
        kernel: ``[7, 7, 3, C]``.

    Returns:
        ``[B, H/2, W/2, C]``, rounded up.
    """
    batch, height, width, channels = x.shape
    down, across = -(-height // 2), -(-width // 2)
    more = _CHANNELS - channels
    # The window becomes 8x8 with zeros in its last row and column.
    ends = ((0, 0), (3, 2 * down + 3 - height), (3, 2 * across + 3 - width), (0, more))
    x = jnp.pad(x, ends).reshape(batch, down + 3, 2, across + 3, 2, _CHANNELS)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, down + 3, across + 3, 4 * _CHANNELS)
    kernel = jnp.pad(kernel, ((0, 1), (0, 1), (0, more), (0, 0)))
    kernel = kernel.reshape(4, 2, 4, 2, _CHANNELS, -1).transpose(0, 2, 1, 3, 4, 5)
    kernel = kernel.reshape(4, 4, 4 * _CHANNELS, -1)
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def max_pool(x: Array) -> Array:
    """3x3, stride 2, padding 1: ``[B, H, W, C]`` to ``[B, H/2, W/2, C]``, rounded up."""
    return jax.lax.platform_dependent(x, cuda=gathered_max_pool, default=plain_max_pool)


def plain_max_pool(x: Array) -> Array:
    """``max_pool`` as Flax computes it."""
    return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))


@jax.custom_jvp
def gathered_max_pool(x: Array) -> Array:
    """``max_pool`` with a gradient that is gathered.

    Where several entries of a window are the largest, it goes to the first.
    """
    return functools.reduce(jnp.maximum, _windows(x, -jnp.inf))


@gathered_max_pool.defjvp
def _gathered_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    largest, *others = _windows(*primals, -jnp.inf)
    which = jnp.zeros(largest.shape, jnp.int8)
    for index, entry in enumerate(others, 1):
        which = jnp.where(entry > largest, jnp.int8(index), which)
        largest = jnp.maximum(largest, entry)
    which = jax.lax.optimization_barrier(which)  # one byte is kept, not the nine entries
    slopes = _windows(*tangents, 0.0)
    chosen = [jnp.where(which == index, slope, 0) for index, slope in enumerate(slopes)]
    return largest, functools.reduce(jnp.add, chosen)


def _windows(x: Array, fill: float) -> list[Array]:
    """The nine entries of every 3x3 window, stride 2 and padding 1, each ``[B, h, w, C]``."""
    batch, height, width, channels = x.shape
    down, across = -(-height // 2), -(-width // 2)
    value = jnp.array(fill, x.dtype)
    x = jax.lax.pad(
        x, value, ((0, 0, 0), (0, 2 * down - height, 0), (0, 2 * across - width, 0), (0, 0, 0))
    )
    parts = x.reshape(batch, down, 2, across, 2, channels)

    def before(part: Array, axis: int) -> Array:
        return jax.lax.pad(part, value, [(int(i == axis), -int(i == axis), 0) for i in range(4)])

    found = []
    for rows in jax.lax.split(parts, (1, 1), axis=2):
        even, odd = (
            part.reshape(batch, down, across, channels)
            for part in jax.lax.split(rows, (1, 1), axis=4)
        )
        found.append([before(odd, 2), even, odd])
    above = [before(part, 1) for part in found[1]]
    return [*above, *found[0], *found[1]]
