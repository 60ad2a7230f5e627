"""Flax modules as pure functions of their variables."""

from typing import Any

import jax
from flax import linen as nn

from facemix_jax._types import Array, Variables


def evaluate(module: nn.Module, variables: Variables, *inputs: Any) -> Array:
    """What a module makes of its inputs, with nothing in its variables changed.

    Args:
        module: returns one array.
        variables: of the module.
        *inputs: of its ``__call__``.
    """
    result = module.apply(variables, *inputs)
    assert isinstance(result, jax.Array)  # a tuple only where variables may change
    return result
