"""Normal kernels that compile twice instead of once per shape.

XLA spends up to half a second on every new shape of ``jax.random.normal``; a network has dozens.
Here every kernel is cut from draws of two fixed sizes.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from facemix_jax._types import Array, RngKey

_SIZES = (1 << 14, 1 << 20)
"""Numbers per draw, for small kernels and for large ones."""


@functools.partial(jax.jit, static_argnums=1)
def _draw(rng_key: RngKey, size: int) -> Array:
    return jax.random.normal(rng_key, (size,))


def scaled_normal(scale: float, fan: str) -> Callable[[RngKey, Sequence[int], Any], Array]:
    """Initialiser of normal kernels ``[..., in, out]`` with variance ``scale / fan``.

    Args:
        scale: 2 before a ReLU (He et al., 2015), 1 otherwise.
        fan: ``in`` or ``out``.
    """

    def init(rng_key: RngKey, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        receptive_field = math.prod(shape[:-2])
        connections = receptive_field * (shape[-2] if fan == "in" else shape[-1])
        return normal(math.sqrt(scale / connections))(rng_key, shape, dtype)

    return init


def normal(deviation: float) -> Callable[[RngKey, Sequence[int], Any], Array]:
    """Initialiser of normal kernels of any shape with one standard deviation."""

    def init(rng_key: RngKey, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        count = math.prod(shape)
        size = _SIZES[0] if count <= _SIZES[0] else _SIZES[1]
        draws = [_draw(jax.random.fold_in(rng_key, i), size) for i in range(-(-count // size))]
        return (jnp.concatenate(draws)[:count].reshape(shape) * deviation).astype(dtype)

    return init
