"""Blind separation of mixed activations by independent component analysis on their gradients.

Mixtures of ``M`` images differ from the images by an ``[M, M]`` matrix. Pixels of different faces
are correlated and close to Gaussian, so that ICA on pixels fails; their first differences are
sparse and nearly uncorrelated, and mixed by the same matrix. FastICA (Hyvarinen 1999, symmetric,
log cosh contrast) on the differences finds the inverse; applied to the mixtures, it gives the
images back up to order and sign, for the cut at the image itself and for activation maps alike.

Noise added to mixtures weakens differences more than it weakens images: from about one standard
deviation of the activations on, this attack is not the strongest, and its figure no upper bound;
``facemix_jax.attacks.robust`` is stronger there.

The rows of a group are taken as given. Where mixtures were shuffled across groups,
``facemix_jax.attacks.grouping`` comes first.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from facemix_jax._types import Array, HostArray, RngKey
from facemix_jax.attacks import blind
from facemix_jax.attacks.base import Figure, Target
from facemix_jax.attacks.blind import no_attack, recovery
from facemix_jax.attacks.unmixing import (
    Separation,
    apply_unmixing,
    check_options,
    contrast,
    gradients,
    iterate,
    map_groups,
    matmul,
    nearest_orthogonal,
    on_all_cores,
    prepare,
    whiten,
)

THREAT_MODEL = (
    "knows which mixtures form a group and whether the mixing is orthogonal; no key, no weights, "
    "no other images"
)

_COARSE_SAMPLES = 500
"""Differences per source for the first pass: enough to find the basin, not the exact minimum."""

_COARSE_STEPS = 20
"""Fixed-point steps of the first pass; the second one finishes."""

Solver = Callable[[Array, Array, int, float], tuple[Array, Array, Array]]
"""``(white [M, N], start [M, M], max_iterations, tolerance) -> (rotation, steps, last turn)``."""


def fast_ica(
    white: Array, start: Array, max_iterations: int, tolerance: float
) -> tuple[Array, Array, Array]:
    """Symmetric fixed point on whitened ``[M, N]`` from the orthogonal ``[M, M]`` start.

    Returns:
        The rotation ``[M, M]``, the steps taken, and how far the last one turned.
    """

    def improve(rotation: Array) -> Array:
        # w <- E[g(w z) z] - E[g'(w z)] w with g = tanh (Hyvarinen 1999, equation 20).
        g = jnp.tanh(matmul(rotation, white))
        slope = (1 - g**2).mean(1, keepdims=True)
        return nearest_orthogonal(matmul(g, white.T) / white.shape[1] - slope * rotation)

    return iterate(improve, start, max_iterations, tolerance)


def separate(
    mixtures: Array,
    *,
    rng_key: RngKey,
    evidence: Array | None = None,
    restarts: int = 3,
    max_iterations: int = 200,
    tolerance: float = 1e-5,
    orthogonal: bool = True,
    solver: Solver = fast_ica,
) -> Separation:
    """Recovers the images of every group from its mixtures alone.

    Several random starts run on a few differences; the one with the largest contrast is finished
    on all of them. (A single start can stop at a saddle: 1 of 256 did, for pairs of faces.)

    Scale: an orthogonal mixing has an orthogonal inverse. Rows of the unmixing are brought to
    length one, and with ``orthogonal`` the whole is replaced by the nearest orthogonal matrix,
    which mends most of what the images' own correlations did to the estimate.

    Sign: the larger excursion of a source counts as positive. That is right for every map after
    a ReLU (nothing is below zero), and for about 90% of faces in ImageNet-normalised pixels, whose
    range reaches further up than down.

    Groups of fewer than ``M`` different images leave directions without any signal; these are
    left out, and the result is finite.

    Args:
        mixtures: float ``[G, M, H, W, C]``, the rows of one group together.
        rng_key: draws the starts; consumed.
        evidence: float ``[G, M, h, w, c]``, what the unmixing is estimated from: the mixtures
            after a linear filter over positions and channels, with which mixing commutes. None
            for the mixtures.
        restarts: starts per group.
        max_iterations: limit of steps on all differences.
        tolerance: converged when every row turned by less: ``1 - |cos angle|``. Float32 resolves
            about 1e-6.
        orthogonal: whether the mixing matrix is known to be orthogonal, as the paper's is.
        solver: what finishes from the best start.

    Raises:
        UsageError: mixtures of another rank, fewer than 2 in a group, maps of a single position, or
            an option out of range.
        DataError: mixtures or evidence that are not finite.

    Example:
        >>> from facemix_jax import mixing
        >>> images = jax.random.laplace(jax.random.key(0), (4, 32, 32, 3)) ** 3  # few large values
        >>> mix_key = mixing.sample_mix_key(jax.random.key(1), 1, 4, shuffle=False)
        >>> mixtures = mixing.mix(mix_key, images)[None]
        >>> found = separate(mixtures, rng_key=jax.random.key(2)).sources
        >>> bool(recovery(found, images[None]).mean() > 0.99)
        True
    """
    check_options(restarts=restarts, max_iterations=max_iterations, tolerance=tolerance)
    arrays = prepare(mixtures, evidence, rng_key, restarts)
    options = (max_iterations, tolerance, orthogonal, solver, jax.default_backend())
    return on_all_cores(lambda *some: _separate(*some, *options), *arrays)


class SeparationReport(NamedTuple):
    """What gradient ICA learnt, beside what needs no attack and what the owner gets.

    Attributes:
        figures: mean matched |correlation|, and the share of images recovered at 0.9 or more.
        attacker: float64 ``[G, M]``, matched |correlation| of every image.
        floor: float64 ``[G, M]``, the same for the mixtures themselves.
        owner: float64 ``[G, M]``, the same for what the owner recovers.
        separation: the attack's result.
    """

    figures: tuple[Figure, ...]
    attacker: HostArray
    floor: HostArray
    owner: HostArray
    separation: Separation


def evaluate_separation(
    mixtures: Array, truth: Array, owner_recovery: Array, *, rng_key: RngKey
) -> SeparationReport:
    """Attacks groups with ``separate`` and scores the result against the truth.

    Args:
        mixtures: float ``[G, M, H, W, C]``: what the cloud sees, grouped. Where the defence
            shuffles, finding the groups again is another attack.
        truth: float ``[G, M, H, W, C]``: activations before protection, for scoring.
        owner_recovery: float ``[G, M, H, W, C]``: what the owner recovers from ``mixtures``.
        rng_key: consumed.

    Raises:
        UsageError: shapes differ or do not suit ``separate``.
        DataError: as ``separate``.
    """
    separation = separate(mixtures, rng_key=rng_key)
    attacker, floor, owner = (
        recovery(s, truth) for s in (separation.sources, no_attack(mixtures), owner_recovery)
    )
    figures = blind.figures(attacker, floor, owner, THREAT_MODEL)
    return SeparationReport(figures, attacker, floor, owner, separation)


def separation_of(target: Target) -> blind.Separate:
    """``separate``, told what is public of the mixing matrix."""
    return functools.partial(separate, orthogonal=target.defense.orthogonal)


GRADIENT_ICA = blind.attack(
    "gradient_ica", THREAT_MODEL, lambda target, *_: separation_of(target), any_rows=True
)
"""FastICA on gradients, grouping granted."""


@functools.partial(jax.jit, static_argnames=("orthogonal", "solver", "backend"))
def _separate(
    mixtures: Array,
    evidence: Array,
    starts: Array,
    max_iterations: int,
    tolerance: float,
    orthogonal: bool,
    solver: Solver,
    backend: str,
) -> Separation:
    def separate_group(mixture: Array, shown: Array, group_starts: Array) -> Separation:
        """One group: ``[M, H, W, C]``, ``[M, h, w, c]`` and ``[R, M, M]``."""
        whitening, white = whiten(gradients(shown))
        stride = max(1, white.shape[1] // (_COARSE_SAMPLES * white.shape[0]))
        coarse = white[:, ::stride]

        def try_start(start: Array) -> tuple[Array, Array, Array]:
            rotation, steps, _ = fast_ica(coarse, start, _COARSE_STEPS, 10 * tolerance)
            return rotation, steps, contrast(matmul(rotation, coarse))

        rotations, coarse_steps, contrasts = jax.lax.map(try_start, group_starts)
        best = jnp.argmax(contrasts)
        rotation, steps, last = solver(white, rotations[best], max_iterations, tolerance)
        unmixing, sources = apply_unmixing(matmul(rotation, whitening), mixture, orthogonal)
        return Separation(unmixing, sources, coarse_steps[best] + steps, last <= tolerance)

    return map_groups(separate_group, mixtures, evidence, starts, backend=backend)
