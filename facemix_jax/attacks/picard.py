"""Picard-O: the independent components of FastICA by preconditioned L-BFGS over rotations.

Ablin, Cardoso and Gramfort 2018, "Faster ICA under orthogonal constraint", ICASSP. The contrast is
that of symmetric FastICA with log cosh, with a sign for each source that says whether it is more or
less peaked than a Gaussian. Where a fixed point circles, a step on a line still descends.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from facemix_jax._types import Array
from facemix_jax.attacks import blind
from facemix_jax.attacks.separation import THREAT_MODEL, separate
from facemix_jax.attacks.unmixing import matmul, nearest_orthogonal, turn

_MEMORY = 7
"""Steps that L-BFGS remembers, as in the authors' implementation."""

_SMALLEST_CURVATURE = 0.01
"""Of the approximate Hessian, as in the authors' implementation."""

_HALVINGS = 10
"""Of the step on a line; the last one is taken whatever it gives."""

_SLACK = 1e-6
"""Relative rise of the loss that counts as rounding in float32."""


class _State(NamedTuple):
    """One step of L-BFGS over rotations.

    Attributes:
        rotation: ``[M, M]``.
        steps: int32, taken.
        turned: how far the last step turned the rows.
        moment: ``E[tanh(y) y^T]``, ``[M, M]``.
        curvature: of each source, ``[M]``; below zero for flat ones.
        moves: the last steps ``[7, M, M]``, oldest first; zeros where there are fewer.
        changes: how the gradient changed in them.
    """

    rotation: Array
    steps: Array
    turned: Array
    moment: Array
    curvature: Array
    moves: Array
    changes: Array


def picard(
    white: Array, start: Array, max_iterations: int, tolerance: float
) -> tuple[Array, Array, Array]:
    """Minimises ``sum_i sign_i E[log cosh y_i]`` over rotations ``y = W white``.

    Args:
        white: ``[M, N]``, of unit covariance, or zero in directions without signal.
        start: ``[M, M]``, orthogonal.
        max_iterations: limit of steps.
        tolerance: of the turn of the last step.

    Returns:
        The rotation ``[M, M]``, the steps taken, and how far the last one turned.
    """

    def loss(rotation: Array, signs: Array) -> Array:
        y = matmul(rotation, white)
        return (signs * jnp.logaddexp(y, -y).mean(1)).sum()

    def look(rotation: Array) -> tuple[Array, Array]:
        y = matmul(rotation, white)
        psi = jnp.tanh(y)
        moment = matmul(psi, y.T) / y.shape[1]
        return moment, (1 - psi**2).mean(1) - jnp.diag(moment)

    def step(state: _State) -> _State:
        signs = _signs(state.curvature)
        gradient = _gradient(state.moment, signs)
        size = jnp.abs(state.curvature)
        hessian = jnp.maximum((size[:, None] + size[None]) / 2, _SMALLEST_CURVATURE)
        direction = -_quasi_newton(gradient, hessian, state.moves, state.changes)
        descends = (direction * gradient).sum() < 0
        direction = jnp.where(descends, direction, -gradient / hessian)
        old = loss(state.rotation, signs)

        def move(length: Array) -> Array:
            half, one = length / 2 * direction, jnp.eye(len(start))
            return matmul(jnp.linalg.solve(one - half, one + half), state.rotation)  # Cayley

        def too_far(trial: tuple[Array, Array]) -> Array:
            better = loss(move(trial[0]), signs) <= old + _SLACK * jnp.abs(old)
            return ~better & (trial[1] < _HALVINGS)

        length, _ = jax.lax.while_loop(
            too_far, lambda trial: (trial[0] / 2, trial[1] + 1), (jnp.float32(1), jnp.int32(0))
        )
        rotation = move(length)
        moment, curvature = look(rotation)
        # Where a source changes its sign, the loss is another one and its past means nothing.
        keep = (_signs(curvature) == signs).all()
        moves = jnp.concatenate([state.moves[1:], (length * direction)[None]])
        changes = jnp.concatenate([state.changes[1:], (_gradient(moment, signs) - gradient)[None]])
        return _State(
            rotation,
            state.steps + 1,
            turn(rotation, state.rotation),
            moment,
            curvature,
            jnp.where(keep, moves, 0.0),
            jnp.where(keep, changes, 0.0),
        )

    def unfinished(state: _State) -> Array:
        return (state.turned > tolerance) & (state.steps < max_iterations)

    none = jnp.zeros((_MEMORY, *start.shape), jnp.float32)
    first = _State(start, jnp.int32(0), jnp.float32(jnp.inf), *look(start), none, none)
    last = jax.lax.while_loop(unfinished, step, first)
    return nearest_orthogonal(last.rotation), last.steps, last.turned


PICARD = blind.attack(
    "picard",
    THREAT_MODEL,
    lambda target, *_: functools.partial(
        separate, orthogonal=target.defense.orthogonal, solver=picard
    ),
)
"""Picard-O on gradients, grouping granted."""


def _signs(curvature: Array) -> Array:
    return jnp.where(curvature < 0, -1.0, 1.0)


def _gradient(moment: Array, signs: Array) -> Array:
    """Of the loss in the directions of rotations: skew-symmetric."""
    signed = signs[:, None] * moment
    return (signed - signed.T) / 2


def _quasi_newton(gradient: Array, hessian: Array, moves: Array, changes: Array) -> Array:
    """The two loops of L-BFGS; pairs without curvature, such as empty ones, are left out."""
    curvature = (moves * changes).sum((1, 2))
    weight = jnp.where(curvature > 0, 1 / jnp.where(curvature > 0, curvature, 1.0), 0.0)
    shares = []
    for index in reversed(range(_MEMORY)):
        share = weight[index] * (moves[index] * gradient).sum()
        gradient = gradient - share * changes[index]
        shares.append(share)
    direction = gradient / hessian
    for index, share in zip(range(_MEMORY), reversed(shares), strict=True):
        back = weight[index] * (changes[index] * direction).sum()
        direction = direction + (share - back) * moves[index]
    return direction
