"""Picard: maximum-likelihood ICA by preconditioned L-BFGS (Ablin, Cardoso and Gramfort 2018).

"Faster independent component analysis by preconditioning with Hessian approximations", IEEE
Transactions on Signal Processing 66(15). The density is ``1 / cosh``, as in the contrast of
FastICA; unlike there, sources need not be uncorrelated in the sample.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from facemix_jax._types import Array
from facemix_jax.attacks import blind
from facemix_jax.attacks.separation import THREAT_MODEL, separate
from facemix_jax.attacks.unmixing import matmul, turn

_MEMORY = 7
"""Steps that L-BFGS remembers, as in the authors' implementation."""

_SMALLEST_EIGENVALUE = 0.01
"""Of the approximate Hessian's blocks, as in the authors' implementation."""

_HALVINGS = 10
"""Of the step on a line; the last one is taken whatever it gives."""

_SLACK = 1e-6
"""Relative rise of the loss that counts as rounding in float32."""


class _State(NamedTuple):
    """One step of L-BFGS over invertible matrices.

    Attributes:
        unmixing: ``[M, M]``.
        steps: int32, taken.
        turned: how far the last step turned the rows.
        moves: the last relative steps ``[7, M, M]``, oldest first; zeros where there are fewer.
        changes: how the relative gradient changed in them.
    """

    unmixing: Array
    steps: Array
    turned: Array
    moves: Array
    changes: Array


def picard(
    white: Array, start: Array, max_iterations: int, tolerance: float
) -> tuple[Array, Array, Array]:
    """Minimises ``E[sum_i log cosh y_i] - log |det W|`` over ``y = W white``: a ``Solver``.

    Args:
        white: ``[M, N]``, of unit covariance, or zero in directions without signal.
        start: ``[M, M]``, invertible.
        max_iterations: limit of steps.
        tolerance: of the turn of the last step.

    Returns:
        The unmixing ``[M, M]``, the steps taken, and how far the last one turned.
    """
    # A source without signal would grow for ever: noise takes its place, and its row of the
    # whitening is zero.
    noise = jax.random.normal(jax.random.key(0), white.shape)
    white = jnp.where((white**2).mean(1, keepdims=True) < 0.5, noise, white)

    def loss(unmixing: Array) -> Array:
        y = matmul(unmixing, white)
        return jnp.logaddexp(y, -y).mean(1).sum() - jnp.linalg.slogdet(unmixing)[1]

    def gradient(unmixing: Array) -> tuple[Array, Array]:
        """Relative gradient, and the Hessian's approximation H2 without its constant part."""
        y = matmul(unmixing, white)
        psi = jnp.tanh(y)
        hessian = matmul(1 - psi**2, (y**2).T) / y.shape[1]
        return matmul(psi, y.T) / y.shape[1] - jnp.eye(len(start)), _regularised(hessian)

    def step(state: _State) -> _State:
        old, (slope, hessian) = loss(state.unmixing), gradient(state.unmixing)
        direction = -_quasi_newton(slope, hessian, state.moves, state.changes)
        descends = (direction * slope).sum() < 0
        direction = jnp.where(descends, direction, -_solve(hessian, slope))

        def move(length: Array) -> Array:
            return state.unmixing + length * matmul(direction, state.unmixing)

        def too_far(trial: tuple[Array, Array]) -> Array:
            better = loss(move(trial[0])) <= old + _SLACK * jnp.abs(old)
            return ~better & (trial[1] < _HALVINGS)

        length, _ = jax.lax.while_loop(
            too_far, lambda trial: (trial[0] / 2, trial[1] + 1), (jnp.float32(1), jnp.int32(0))
        )
        unmixing = move(length)
        change = gradient(unmixing)[0] - slope
        return _State(
            unmixing,
            state.steps + 1,
            turn(_unit_rows(unmixing), _unit_rows(state.unmixing)),
            jnp.concatenate([state.moves[1:], (length * direction)[None]]),
            jnp.concatenate([state.changes[1:], change[None]]),
        )

    def unfinished(state: _State) -> Array:
        return (state.turned > tolerance) & (state.steps < max_iterations)

    none = jnp.zeros((_MEMORY, *start.shape), jnp.float32)
    first = _State(start, jnp.int32(0), jnp.float32(jnp.inf), none, none)
    last = jax.lax.while_loop(unfinished, step, first)
    return last.unmixing, last.steps, last.turned


PICARD = blind.attack("picard", THREAT_MODEL, lambda *_: functools.partial(separate, solver=picard))
"""Picard on gradients, grouping granted."""


def _quasi_newton(gradient: Array, hessian: Array, moves: Array, changes: Array) -> Array:
    """The two loops of L-BFGS; pairs without curvature, such as empty ones, are left out."""
    curvature = (moves * changes).sum((1, 2))
    weight = jnp.where(curvature > 0, 1 / jnp.where(curvature > 0, curvature, 1.0), 0.0)
    shares = []
    for index in reversed(range(_MEMORY)):
        share = weight[index] * (moves[index] * gradient).sum()
        gradient = gradient - share * changes[index]
        shares.append(share)
    direction = _solve(hessian, gradient)
    for index, share in zip(range(_MEMORY), reversed(shares), strict=True):
        back = weight[index] * (changes[index] * direction).sum()
        direction = direction + (share - back) * moves[index]
    return direction


def _regularised(hessian: Array) -> Array:
    """Lifts the eigenvalues of the blocks ``[[h_ij, 1], [1, h_ji]]`` to at least the smallest."""
    total, difference = hessian + hessian.T, hessian - hessian.T
    smallest = (total - jnp.sqrt(difference**2 + 4)) / 2
    return hessian + jnp.maximum(_SMALLEST_EIGENVALUE - smallest, 0.0)


def _solve(hessian: Array, gradient: Array) -> Array:
    """The approximate Hessian's inverse, block by block; those of the diagonal are ``h_ii + 1``."""
    pairs = (hessian.T * gradient - gradient.T) / (hessian * hessian.T - 1)
    diagonal = jnp.diag(gradient) / (jnp.diag(hessian) + 1)
    own = jnp.eye(len(gradient), dtype=bool)
    return jnp.where(own, diagonal[:, None], pairs)


def _unit_rows(matrix: Array) -> Array:
    return matrix / jnp.linalg.norm(matrix, axis=1, keepdims=True)
