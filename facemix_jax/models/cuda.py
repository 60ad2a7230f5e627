"""Parts of a network written the way an NVIDIA GPU likes them; other platforms keep JAX's own.

Same functions, same parameters, other order of summation. Each is chosen when a program is
compiled for CUDA (``jax.lax.platform_dependent``).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from facemix_jax._types import Array

Pair = tuple[int, int]
_LAYOUT = ("NHWC", "HWIO", "NHWC")
_CHANNELS = 4
"""An image's three and one of zeros: four pixels are then the 16 that tensor cores take."""
_POOL = ((3, 3), (2, 2), ((1, 1), (1, 1)))


def stem_convolution(train: bool) -> Callable[..., Array]:
    """7x7, stride 2, padding 3, of three channels, as 4x4 and stride 1 on blocks of 2x2 pixels.

    Tensor cores take 8 or 16 channels at a time and fill three up with zeros.

    Args:
        train: whether gradients will be taken, as in ``training_convolution``.

    Returns:
        What stands in the place of ``jax.lax.conv_general_dilated`` in a Flax module.
    """

    def convolve(x: Array, kernel: Array, *args: Any, **options: Any) -> Array:
        return jax.lax.platform_dependent(
            x,
            kernel,
            cuda=functools.partial(_on_blocks, convolve=_convolve if train else _plain),
            default=lambda x, kernel: jax.lax.conv_general_dilated(x, kernel, *args, **options),
        )

    return convolve


def _on_blocks(x: Array, kernel: Array, convolve: Callable[..., Array]) -> Array:
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
    return convolve(x, kernel, (1, 1), ((0, 0), (0, 0)))


def max_pool(
    x: Array,
    window: Pair,
    strides: Pair,
    padding: tuple[Pair, Pair],
    plain: Callable[[Array], Array],
) -> Array:
    """A max-pool whose gradient is gathered: ``plain`` but for 3x3, stride 2, padding 1.

    XLA scatters it with atomic additions, which took a sixth of ResNet-18's training step.

    Args:
        x: ``[B, H, W, C]``.
        window: height, width.
        strides: down, across.
        padding: top and bottom, left and right.
        plain: computes the same.

    Returns:
        ``[B, h, w, C]``. Where several entries of a window are the largest, the gradient goes to
        the first.
    """
    if (window, strides, padding) != _POOL:
        return plain(x)
    return jax.lax.platform_dependent(x, cuda=_largest_of_nine, default=plain)


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


@jax.custom_jvp
def _largest_of_nine(x: Array) -> Array:
    return functools.reduce(jnp.maximum, _windows(x, -jnp.inf))


@_largest_of_nine.defjvp
def _largest_of_nine_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    entries = _windows(*primals, -jnp.inf)
    largest = functools.reduce(jnp.maximum, entries)
    which = jnp.full(largest.shape, len(entries), jnp.int8)
    for index in reversed(range(len(entries))):
        which = jnp.where(entries[index] == largest, jnp.int8(index), which)
    which = jax.lax.optimization_barrier(which)  # one byte is kept, not the nine entries
    slopes = _windows(*tangents, 0.0)
    chosen = [jnp.where(which == index, slope, 0) for index, slope in enumerate(slopes)]
    return largest, functools.reduce(jnp.add, chosen)


def training_convolution(
    x: Array,
    kernel: Array,
    window_strides: Sequence[int],
    padding: Sequence[Pair],
    **options: Any,
) -> Array:
    """A convolution that several runs under ``jax.vmap`` compute as one dense one.

    JAX makes a grouped convolution of them, and a group narrower than a tensor core's tile leaves
    it idle. Here the runs' channels stand side by side, and the kernel is block-diagonal: as many
    times the products as there are runs, on units that had nothing to do. Forward-mode derivatives
    are not defined: use it where gradients are taken. Stands in the place of
    ``jax.lax.conv_general_dilated`` in a Flax module and takes its arguments.
    """
    return _convolve(x, kernel, tuple(window_strides), tuple(map(tuple, padding)))


def _plain(x: Array, kernel: Array, strides: Pair, padding: Any) -> Array:
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=_LAYOUT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(x: Array, kernel: Array, strides: Pair, padding: Any) -> Array:
    run = _together(lambda x, k: _plain(x, k, strides, padding), (_MAPS, _KERNEL, _MAPS))
    return run(x, kernel)


def _forward(x: Array, kernel: Array, strides: Pair, padding: Any) -> tuple[Array, tuple]:
    return _convolve(x, kernel, strides, padding), (x, kernel)


def _backward(strides: Pair, padding: Any, kept: tuple[Array, Array], slope: Array) -> tuple:
    x, kernel = kept

    def to_maps(k: Array, g: Array) -> Array:
        like = jax.ShapeDtypeStruct((len(g), *x.shape[1:3], k.shape[2]), x.dtype)
        return jax.linear_transpose(lambda x: _plain(x, k, strides, padding), like)(g)[0]

    def to_kernel(x: Array, g: Array) -> Array:
        like = jax.ShapeDtypeStruct((*kernel.shape[:2], x.shape[3], g.shape[3]), kernel.dtype)
        return jax.linear_transpose(lambda k: _plain(x, k, strides, padding), like)(g)[0]

    return (
        _together(to_maps, (_KERNEL, _MAPS, _MAPS))(kernel, slope),
        _together(to_kernel, (_MAPS, _MAPS, _KERNEL))(x, slope),
    )


_convolve.defvjp(_forward, _backward)


def _join_maps(x: Array) -> Array:
    """``[S, B, H, W, C]`` to ``[B, H, W, S * C]``."""
    return jnp.moveaxis(x, 0, 3).reshape(*x.shape[1:4], -1)


def _part_maps(x: Array, runs: int) -> Array:
    return jnp.moveaxis(x.reshape(*x.shape[:3], runs, -1), 3, 0)


def _join_kernels(kernels: Array) -> Array:
    """``[S, h, w, C, O]`` to block-diagonal ``[h, w, S * C, S * O]``."""
    runs, height, width, inputs, outputs = kernels.shape
    rows = jnp.moveaxis(kernels, 0, 2)[:, :, :, :, None]
    blocks = rows * jnp.eye(runs, dtype=kernels.dtype)[None, None, :, None, :, None]
    return blocks.reshape(height, width, runs * inputs, runs * outputs)


def _part_kernels(kernel: Array, runs: int) -> Array:
    height, width, inputs, outputs = kernel.shape
    blocks = kernel.reshape(height, width, runs, inputs // runs, runs, outputs // runs)
    return jnp.moveaxis(jnp.diagonal(blocks, axis1=2, axis2=4), -1, 0)


_MAPS = (_join_maps, _part_maps)
_KERNEL = (_join_kernels, _part_kernels)


def _together(
    run: Callable[[Array, Array], Array], kinds: tuple[tuple[Callable, Callable], ...]
) -> Callable[[Array, Array], Array]:
    """``run`` with a rule for ``jax.vmap``: how to join its two arguments and part its result."""
    (join_first, _), (join_second, _), (_, part) = kinds

    def merged(first: Array, second: Array) -> Array:
        return part(run(join_first(first), join_second(second)), len(first))

    function = jax.custom_batching.custom_vmap(run)

    @function.def_vmap
    def rule(runs: int, batched: Sequence[bool], first: Array, second: Array) -> tuple[Array, bool]:
        axes = tuple(0 if is_batched else None for is_batched in batched)
        several = jax.vmap(run, in_axes=axes)
        if not all(batched):
            return several(first, second), True
        return jax.lax.platform_dependent(first, second, cuda=merged, default=several), True

    return function
