"""Nonnegative separation of activations after a ReLU, under orthogonal mixing.

Activations after a ReLU are nowhere negative, and at some positions one image alone is active.
An orthogonal matrix that keeps such images nonnegative can only permute them (Plumbley 2003,
"Algorithms for nonnegative independent component analysis", IEEE Transactions on Neural Networks
14(3)); since mixing is orthogonal, no whitening is needed, and images may be correlated.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from facemix_jax._types import Array, RngKey
from facemix_jax.attacks import blind
from facemix_jax.attacks.base import Target
from facemix_jax.attacks.unmixing import (
    Separation,
    apply_unmixing,
    check_options,
    iterate,
    map_groups,
    matmul,
    nearest_orthogonal,
    on_all_cores,
    prepare,
)
from facemix_jax.data import normalize

THREAT_MODEL = (
    "knows which mixtures form a group, that the mixing is orthogonal and that activations are "
    "nonnegative; no key, no other images"
)

_PROBED = 8
"""Auxiliary images that show whether activations are nonnegative."""

_BLOCK = 10
"""Iterations between looks at convergence: single ones turn by too little to judge."""


def separate_nonnegative(
    mixtures: Array,
    *,
    rng_key: RngKey,
    evidence: Array | None = None,
    restarts: int = 3,
    max_iterations: int = 500,
    tolerance: float = 1e-5,
) -> Separation:
    """Finds the orthogonal matrix that leaves least below zero.

    Alternates between setting negative values to zero and the rotation that comes closest to the
    result (orthogonal Procrustes): every step lowers the energy below zero, and there is no step
    size. Several random starts; the one that ends with the least energy is kept.

    Noise is equally strong in every direction under orthogonal mixing, so that it biases nothing:
    averaging over positions and channels (``evidence``) keeps images nonnegative and lowers it.

    Args:
        mixtures: float ``[G, M, H, W, C]``, the rows of one group together.
        rng_key: draws the starts; consumed.
        evidence: float ``[G, M, h, w, c]``, what the unmixing is estimated from: the mixtures
            after a linear filter that keeps images nonnegative. None for the mixtures.
        restarts: starts per group.
        max_iterations: limit for each start, rounded up to tens.
        tolerance: converged when 10 iterations turn every row by less: ``1 - |cos angle|``.

    Raises:
        UsageError: mixtures of another rank, fewer than 2 in a group, maps of a single position, or
            an option out of range.
        DataError: mixtures or evidence that are not finite.
    """
    check_options(restarts=restarts, max_iterations=max_iterations, tolerance=tolerance)
    arrays = prepare(mixtures, evidence, rng_key, restarts)
    options = (max_iterations, tolerance, jax.default_backend())
    return on_all_cores(lambda *some: _separate(*some, *options), *arrays)


def are_nonnegative(target: Target) -> str | None:
    """Why activations of the target cannot be separated by their sign, or None."""
    rows = target.source.splits[target.auxiliary_split][:_PROBED]
    images = normalize(target.source.images(rows))
    lowest = float(np.min(target.model.pre(target.variables["pre"], images)))
    if lowest >= 0:
        return None
    return (
        f"The activations reach down to {lowest:.3g}, so that nothing tells their sign. Attack a "
        f"cut after a ReLU."
    )


NONNEGATIVE = blind.attack(
    "nonnegative",
    THREAT_MODEL,
    lambda *_: separate_nonnegative,
    unsuitable=lambda target: blind.needs_orthogonal(target) or are_nonnegative(target),
)
"""Nonnegativity alone, grouping granted."""


@functools.partial(jax.jit, static_argnames=("backend",))
def _separate(
    mixtures: Array,
    evidence: Array,
    starts: Array,
    max_iterations: int,
    tolerance: float,
    backend: str,
) -> Separation:
    def separate_group(mixture: Array, shown: Array, group_starts: Array) -> Separation:
        """One group: ``[M, H, W, C]``, ``[M, h, w, c]`` and ``[R, M, M]``."""
        flat = shown.reshape(len(shown), -1)
        improve = _procrustes(flat)

        def try_start(start: Array) -> tuple[Array, Array, Array, Array]:
            # Images have positive means: so have sources, from the start.
            sign = jnp.where(matmul(start, flat.sum(1, keepdims=True)) < 0, -1.0, 1.0)
            rotation, steps, last = iterate(
                improve, sign * start, max_iterations, tolerance, block=_BLOCK
            )
            below = jnp.minimum(matmul(rotation, flat), 0.0)
            return rotation, steps, last, (below**2).sum()

        rotations, steps, last, below = jax.lax.map(try_start, group_starts)
        best = jnp.argmin(below)
        unmixing, sources = apply_unmixing(rotations[best], mixture, True)
        return Separation(unmixing, sources, steps[best], last[best] <= tolerance)

    return map_groups(separate_group, mixtures, evidence, starts, backend=backend)


def _procrustes(flat: Array) -> Callable[[Array], Array]:
    """One step on ``[M, N]``: negative values to zero, then the closest rotation."""

    def improve(rotation: Array) -> Array:
        above = jnp.maximum(matmul(rotation, flat), 0.0)
        return nearest_orthogonal(matmul(above, flat.T))

    return improve
