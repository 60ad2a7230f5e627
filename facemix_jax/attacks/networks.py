"""What learned attackers put on top of main: an answer for each row, in sight of its group."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from facemix_jax._types import Array, RngKey, Variables
from facemix_jax.models.initialization import scaled_normal
from facemix_jax.models.pure import evaluate


class Head(NamedTuple):
    """Two pure functions.

    Attributes:
        init: ``(rng_key, num_features) -> variables``.
        apply: ``(variables, features) -> logits``, ``[G, M, D]`` to float32 ``[G, M, outputs]``.
    """

    init: Callable[[RngKey, int], dict[str, Any]]
    apply: Callable[[Variables, Array], Array]


class GroupHead(nn.Module):
    """One hidden layer over a row's features and the mean of its group's (Zaheer et al., 2017).

    Reordering the rows of a group reorders the answers in the same way. With groups of one it is
    a network over single rows.

    Attributes:
        outputs: numbers per row.
        hidden: units of the hidden layer.
    """

    outputs: int
    hidden: int

    @nn.compact
    def __call__(self, features: Array) -> Array:
        """``[G, M, D]`` to ``[G, M, outputs]``."""
        init = scaled_normal(2.0, "in")
        row = nn.Dense(self.hidden, kernel_init=init, name="row")(features)
        context = features.mean(axis=1, keepdims=True)
        row += nn.Dense(self.hidden, use_bias=False, kernel_init=init, name="group")(context)
        answer = nn.Dense(self.outputs, kernel_init=scaled_normal(1.0, "in"), name="answer")
        return answer(nn.relu(row))


def group_head(*, outputs: int, hidden: int = 256) -> Head:
    """The head as pure functions.

    Args:
        outputs: numbers per row.
        hidden: units of the hidden layer.
    """
    network = GroupHead(outputs=outputs, hidden=hidden)

    def init(rng_key: RngKey, num_features: int) -> dict[str, Any]:
        features = jax.ShapeDtypeStruct((1, 1, num_features), jnp.float32)
        return dict(network.lazy_init(rng_key, features))

    def apply(variables: Variables, features: Array) -> Array:
        return evaluate(network, variables, features)

    return Head(init, apply)
