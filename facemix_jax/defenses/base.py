"""A defence: two pure functions around the cloud's part of a network."""

from collections.abc import Callable
from typing import Any, NamedTuple

from facemix_jax._types import Array, RngKey


class DefenseCost(NamedTuple):
    """What a defence adds on the edge, per example: multiply-accumulates."""

    protect_macs: int
    recover_macs: int


class Defense(NamedTuple):
    """Protects activations before they leave the edge and recovers what comes back.

    Attributes:
        name: registry name.
        group_size: how many examples share a secret; the batch is a multiple of it. 1 where each
            example stands alone.
        init: ``(rng_key, batch_size, training) -> secret``: a fresh secret for one request, a
            pytree that never leaves the edge. In ``training`` it may leave out what cannot
            change the result, such as the order in which rows are sent.
        protect: ``(secret, z) -> z'``: activations ``[B, H, W, C]`` to what is sent.
        recover: ``(secret, y') -> y``: responses ``[B, D]`` to features in the examples' order.
        cost: ``(activation_elements, response_elements) -> DefenseCost``, per example.
        keyed: whether ``recover`` knows something that the cloud does not. Without it, the owner
            sees what an attacker sees.
    """

    name: str
    group_size: int
    init: Callable[[RngKey, int, bool], Any]
    protect: Callable[[Any, Array], Array]
    recover: Callable[[Any, Array], Array]
    cost: Callable[[int, int], DefenseCost]
    keyed: bool = True
