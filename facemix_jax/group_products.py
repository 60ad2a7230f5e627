"""A group's matrix times its rows, flattened; on CUDA small groups in ways of their own."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from facemix_jax._types import Array

PRECISION = jax.lax.Precision.HIGHEST
"""Accelerators round float32 products to bf16 or tf32 by default; unmixing cannot undo that."""

_FEW_ROWS = 8
"""Up to this ``M`` CUDA does without ``product``. On an H200 that took .56 ms at ``M = 2`` and .17
at 8, rows added .08 and .10. Parts were timed at 8 alone: the encryption-aware step took 1.019
times the plain one's time, with rows added 1.039
(``experiments/results/nvidia-h200/mixing_ways.json``)."""


def multiply(matrix: Array, flat: Array) -> Array:
    """``matrix @ flat`` at the highest precision, differentiable once.

    Args:
        matrix: ``[M, M]``.
        flat: ``[M, N]``, of any dtype.

    Returns:
        ``[M, N]`` in the matrix's dtype.
    """
    on_cuda = product
    if len(matrix) <= _FEW_ROWS:
        by_parts = matrix.dtype == jnp.float32 and _multiplies_bfloat16()
        on_cuda = functools.partial(_few, product_of_parts if by_parts else sum_of_rows)
    return jax.lax.platform_dependent(matrix, flat, cuda=on_cuda, default=product)


def _multiplies_bfloat16() -> bool:
    """Whether the first device is an NVIDIA GPU with units for it, as those from 2020 on."""
    capability = str(getattr(jax.devices()[0], "compute_capability", ""))
    return capability[:1].isdigit() and float(capability) >= 8  # AMD's are words


def product(matrix: Array, flat: Array) -> Array:
    """``[M, M]`` times ``[M, N]`` at the highest precision, in the matrix's dtype."""
    return jnp.matmul(matrix, flat.astype(matrix.dtype), precision=PRECISION)


def sum_of_rows(matrix: Array, flat: Array) -> Array:
    """``product``, row by row: fused with what surrounds it on a GPU."""
    wide = flat.astype(matrix.dtype)
    terms = (matrix[:, i, None] * wide[None, i] for i in range(len(flat)))
    return functools.reduce(jnp.add, terms)


def product_of_parts(matrix: Array, flat: Array) -> Array:
    """``product`` as six products of bfloat16 parts in one pass over the rows.

    As exact as a product in float32 (an H200: 4.7e-8 of the result's norm, 5.4e-8 there), and
    the units for bfloat16 are the fast ones. Not on GPUs of compute capability below 8.
    """
    # What computes the rows would write them in float32 otherwise.
    narrow = jax.lax.optimization_barrier(flat)
    parts = jax.lax.DotAlgorithmPreset.BF16_BF16_F32_X6
    return jnp.matmul(matrix, narrow.astype(matrix.dtype), precision=parts)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _few(way: Callable[[Array, Array], Array], matrix: Array, flat: Array) -> Array:
    """One of the ways above, backward as well."""
    return way(matrix, flat)


def _few_forward(
    way: Callable[[Array, Array], Array], matrix: Array, flat: Array
) -> tuple[Array, tuple[Array, Array]]:
    return way(matrix, flat), (matrix, flat)


def _few_backward(
    way: Callable[[Array, Array], Array], kept: tuple[Array, Array], slope: Array
) -> tuple[Array, Array]:
    matrix, flat = kept
    # What adds up main's gradients would write them in float32 otherwise.
    narrow = jax.lax.optimization_barrier(slope.astype(flat.dtype))
    return product(slope, flat.T), way(matrix.T, narrow).astype(flat.dtype)


_few.defvjp(_few_forward, _few_backward)
