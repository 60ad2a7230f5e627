"""Convolutions of several runs under ``jax.vmap`` as one dense convolution.

JAX turns them into a grouped one, and a group narrower than a matrix unit's tile leaves most of
the unit idle. Here the runs' channels stand side by side, and the kernel is block-diagonal: as
many times the products as there are runs, on units that had nothing to do.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from facemix_jax._types import Array

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def convolutions() -> contextlib.AbstractContextManager[None]:
    """While it is open, Flax's convolutions are traced as ``convolution``.

    Those of other than two axes, with dilation, groups or padding by name stay as they are.
    """
    return nn.intercept_methods(_interceptor)


def _interceptor(
    call: Callable[..., Array], args: tuple, options: dict, context: nn.module.InterceptorContext
) -> Array:
    module = context.module
    if (
        not isinstance(module, nn.Conv)
        or context.method_name != "__call__"
        or module.is_initializing()
        or not isinstance(module.padding, int)
        or not isinstance(module.kernel_size, tuple)
        or len(module.kernel_size) != 2
        or module.mask is not None
        or args[0].ndim != 4
        or (module.feature_group_count, module.input_dilation, module.kernel_dilation) != (1, 1, 1)
    ):
        return call(*args, **options)
    (x,) = args
    kernel: Any = module.get_variable("params", "kernel")
    bias = module.get_variable("params", "bias") if module.use_bias else None
    x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=module.dtype)
    down, across = np.broadcast_to(1 if module.strides is None else module.strides, 2).tolist()
    y = convolution(x, kernel, (down, across), ((module.padding,) * 2,) * 2)
    return y if bias is None else y + bias[None, None, None]


def plain(x: Array, kernel: Array, strides: tuple[int, int], padding: Any) -> Array:
    """JAX's own, ``[B, H, W, C]`` and ``[h, w, C, O]`` to ``[B, H', W', O]``."""
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=_LAYOUT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolution(x: Array, kernel: Array, strides: tuple[int, int], padding: Any) -> Array:
    """``plain``, which several runs compute as one dense convolution, backwards as well."""
    run = _together(lambda x, k: plain(x, k, strides, padding), (_MAPS, _KERNEL, _MAPS))
    return run(x, kernel)


def _forward(
    x: Array, kernel: Array, strides: tuple[int, int], padding: Any
) -> tuple[Array, tuple[Array, Array]]:
    return convolution(x, kernel, strides, padding), (x, kernel)


def _backward(
    strides: tuple[int, int], padding: Any, kept: tuple[Array, Array], slope: Array
) -> tuple[Array, Array]:
    x, kernel = kept

    def to_maps(k: Array, g: Array) -> Array:
        like = jax.ShapeDtypeStruct((len(g), *x.shape[1:3], k.shape[2]), x.dtype)
        return jax.linear_transpose(lambda x: plain(x, k, strides, padding), like)(g)[0]

    def to_kernel(x: Array, g: Array) -> Array:
        like = jax.ShapeDtypeStruct((*kernel.shape[:2], x.shape[3], g.shape[3]), kernel.dtype)
        return jax.linear_transpose(lambda k: plain(x, k, strides, padding), like)(g)[0]

    return (
        _together(to_maps, (_KERNEL, _MAPS, _MAPS))(kernel, slope),
        _together(to_kernel, (_MAPS, _MAPS, _KERNEL))(x, slope),
    )


convolution.defvjp(_forward, _backward)


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
        several = merged if all(batched) else jax.vmap(run, in_axes=axes)
        return several(first, second), True

    return function
