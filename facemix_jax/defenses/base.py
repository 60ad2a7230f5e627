"""A defence: two pure functions around the cloud's part of a network."""

from collections.abc import Callable
from typing import Any, NamedTuple

from facemix_jax._types import Array, RngKey


class DefenseCost(NamedTuple):
    """What a defence costs the owner, per example.

    Attributes:
        protect_macs: multiply-accumulates on the edge before sending.
        recover_macs: likewise on what comes back.
        rows_sent: rows that travel and that main runs on: the bytes of one row and main's
            multiply-accumulates count so many times.
        rows_ahead: rows that the edge runs through main itself before the request.
    """

    protect_macs: int
    recover_macs: int
    rows_sent: float = 1.0
    rows_ahead: float = 0.0


class Rows(NamedTuple):
    """The rows of each group, where they are not one for each example.

    Attributes:
        sent: to all clouds together.
        seen: by one cloud: the first ones.
        ahead: run through main on the edge before the request, and seen by no cloud. They follow
            the sent rows of all groups in what ``protect`` returns.
        blinding: standard deviation of the noise that ``ahead`` takes out again, over that of the
            rows, which are brought to unit deviation. Public: attackers reckon with it.
    """

    sent: int
    seen: int
    ahead: int = 0
    blinding: float = 0.0


class Defense(NamedTuple):
    """Protects activations before they leave the edge and recovers what comes back.

    Attributes:
        name: registry name; ``none`` only where the cloud sees the very activations.
        group_size: how many examples share a secret; the batch is a multiple of it. 1 where each
            example stands alone.
        init: ``(rng_key, batch_size, training) -> secret``: a fresh secret for one request, a
            pytree that never leaves the edge. In ``training`` it may leave out what cannot
            change the result, such as the order in which rows are sent.
        protect: ``(secret, z) -> z'``: activations ``[B, H, W, C]`` to what main runs on, ``[R, H,
            W, C]``; ``R`` is ``B`` unless ``rows`` says otherwise.
        recover: ``(secret, y') -> y``: responses ``[R, D]`` to features ``[B, D]`` in the examples'
            order.
        cost: ``(activation_elements, response_elements) -> DefenseCost``, per example.
        keyed: whether ``recover`` knows something that the cloud does not. Without it, the owner
            sees what an attacker sees.
        rows: of each group; None for one for each example, all of them sent to one cloud.
        orthogonal: whether the rows that a cloud sees of a group are mixed by a whole orthogonal
            matrix. Public: attackers use it.
        dealt: whether images are dealt to groups anew in every tile of a map, so that no group of
            images is the same everywhere. Public.
        one_matrix: whether one matrix mixes a group's maps; each tile of whole maps has its own.
        exact: whether ``recover`` gives the very rows that were protected. If not, attackers learn
            what the owner is left with by playing the defence on images of their own.
    """

    name: str
    group_size: int
    init: Callable[[RngKey, int, bool], Any]
    protect: Callable[[Any, Array], Array]
    recover: Callable[[Any, Array], Array]
    cost: Callable[[int, int], DefenseCost]
    keyed: bool = True
    rows: Rows | None = None
    orthogonal: bool = True
    dealt: bool = False
    one_matrix: bool = True
    exact: bool = True


def rows_of(defense: Defense) -> Rows:
    """The rows of each group of any defence."""
    return defense.rows or Rows(defense.group_size, defense.group_size)


def unless_none(name: str, layer: str) -> str:
    """The name of a defence with a layer around it: what is perturbed is not unprotected.

    Scores, attackers and BatchNorm statistics of ``none`` are those of the activations themselves.
    """
    return layer if name == "none" else name
