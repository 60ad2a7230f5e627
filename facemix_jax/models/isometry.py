"""A regulariser that draws convolutions towards isometries: soft orthogonality."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from facemix_jax._types import Array


def isometry_penalty(params: Mapping[str, Any]) -> Array:
    """``sum ||W^T W - I||_F^2`` over the convolutions' kernels (Bansal et al., 2018, SO).

    ``W`` is a kernel as a matrix ``[k * k * in, out]``; with fewer rows than columns it is
    ``W W^T``, as ``W^T W`` cannot be the identity there. 0 where every kernel keeps the lengths of
    the patches that it reads, or of what it writes. BatchNorm behind a convolution gives its
    outputs another length again; what is left is that they stand at right angles.

    Args:
        params: of a segment: ``variables["main"]["params"]``. Kernels of dense layers and all other
            parameters play no part.

    Returns:
        float32 scalar.
    """
    total = jnp.zeros((), jnp.float32)
    for kernel in convolutions(params):
        matrix = kernel.reshape(-1, kernel.shape[-1]).astype(jnp.float32)
        if matrix.shape[0] < matrix.shape[1]:
            matrix = matrix.T
        gram = jnp.matmul(matrix.T, matrix, precision="highest")
        total = total + jnp.sum(jnp.square(gram - jnp.eye(gram.shape[0], dtype=gram.dtype)))
    return total


def convolutions(params: Mapping[str, Any]) -> Iterator[Any]:
    """The kernels ``[k, k, in, out]`` among a segment's parameters or their shapes."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if path[-1].key == "kernel" and leaf.ndim == 4:
            yield leaf
