"""Flax modules as pure functions of their variables."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from facemix_jax._types import Array, Variables


def wide_dtype(x: Array) -> jnp.dtype:
    """What norms compute in: float32, or float64 from that."""
    return x.dtype if x.dtype == jnp.float64 else jnp.dtype(jnp.float32)


def evaluate(module: nn.Module, variables: Variables, *inputs: Any) -> Array:
    """What a module makes of its inputs, with nothing in its variables changed.

    Args:
        module: returns one array.
        variables: of the module.
        *inputs: of its ``__call__``.
    """
    result = module.apply(variables, *inputs)
    assert not isinstance(result, tuple)  # only where variables may change
    return jnp.asarray(result)  # a module that does nothing hands NumPy's arrays back
