"""Blind separation of mixed activations by independent component analysis on their gradients.

Mixtures of ``M`` images differ from the images by an ``[M, M]`` matrix. Pixels of different faces
are correlated and close to Gaussian, so that ICA on pixels fails; their first differences are
sparse and nearly uncorrelated, and mixed by the same matrix. FastICA (Hyvarinen 1999, symmetric,
log cosh contrast) on the differences finds the inverse; applied to the mixtures, it gives the
images back up to order and sign, for the cut at the image itself and for activation maps alike.

Noise added to mixtures weakens differences more than it weakens images: from about one standard
deviation of the activations on, this attack is not the strongest, and its figure no upper bound.

The rows of a group are taken as given. Where mixtures were shuffled across groups, finding the
groups again is another attack that comes first.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from facemix_jax import _validate, metrics
from facemix_jax._types import Array, HostArray, RngKey
from facemix_jax.attacks.base import Figure

THREAT_MODEL = (
    "knows which mixtures form a group and that the mixing is orthogonal; no key, no weights, "
    "no other images"
)

_COARSE_SAMPLES = 500
"""Differences per source for the first pass: enough to find the basin, not the exact minimum."""

_COARSE_STEPS = 20
"""Fixed-point steps of the first pass; the second one finishes."""

_EIGENVALUE_FLOOR = 1e-6
"""Relative to the largest: float32 leaves nothing but rounding below."""

_GAUSSIAN_LOGCOSH = 0.37456721
"""``E[log cosh v]`` of a standard normal ``v``, where the contrast is zero."""


class Separation(NamedTuple):
    """What blind separation found for ``G`` groups.

    Attributes:
        unmixing: float32 ``[G, M, M]``; ``sources[g] = unmixing[g] @ mixtures[g]``.
        sources: float32 ``[G, M, H, W, C]``, in no particular order.
        iterations: int32 ``[G]``, fixed-point steps of the best start, both passes together.
        converged: bool ``[G]``. Where False, the group stopped at ``max_iterations``: the
            result is the best so far, and more iterations or restarts may improve it.
    """

    unmixing: Array
    sources: Array
    iterations: Array
    converged: Array


def separate(
    mixtures: Array,
    *,
    rng_key: RngKey,
    restarts: int = 3,
    max_iterations: int = 200,
    tolerance: float = 1e-5,
    orthogonal: bool = True,
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
        restarts: starts per group.
        max_iterations: limit of fixed-point steps on all differences.
        tolerance: converged when every row turned by less: ``1 - |cos angle|``. Float32 resolves
            about 1e-6.
        orthogonal: whether the mixing matrix is known to be orthogonal, as the paper's is.

    Raises:
        UsageError: mixtures of another rank, fewer than 2 in a group, maps of a single position,
            or an option out of range.
    """
    if mixtures.ndim != 5 or mixtures.shape[1] < 2 or mixtures.shape[2] * mixtures.shape[3] < 2:
        raise _validate.UsageError(
            f"mixtures have shape {mixtures.shape}, but separation needs [G, M, H, W, C] with at "
            f"least 2 mixtures in a group and 2 positions in a map. Group them with mixing.group."
        )
    _validate.positive(restarts=restarts, max_iterations=max_iterations)
    _validate.in_range(1e-7, 1.0, tolerance=tolerance)
    num_groups, group_size = mixtures.shape[:2]
    starts = jax.random.orthogonal(rng_key, group_size, (num_groups, restarts))
    # Loops over groups are faster on a CPU, where batches of small products are slow and every
    # group of a batch would wait for the last one to converge.
    over_groups = _loop if jax.default_backend() == "cpu" else jax.vmap
    return _separate(
        mixtures.astype(jnp.float32), starts, max_iterations, tolerance, orthogonal, over_groups
    )


def no_attack(mixtures: Array) -> Array:
    """The floor: the mixtures themselves, ``[G, M, ...]``, already resemble the images."""
    return mixtures


def recovery(sources: ArrayLike, truth: ArrayLike) -> HostArray:
    """Matched |correlation| of every image, float64 ``[G, M]``.

    Args:
        sources: ``[G, M, ...]``, recovered in any order, sign and scale.
        truth: ``[G, M, ...]``.

    Raises:
        DataError: values that are not finite.
        UsageError: different shapes.
    """
    sources, truth = np.asarray(sources), np.asarray(truth)
    if sources.shape != truth.shape:
        raise _validate.UsageError(
            f"sources have shape {sources.shape} and true images {truth.shape}, but both must be "
            f"[G, M, ...] alike. Pass the groups that were mixed."
        )
    pairs = zip(sources, truth, strict=True)
    return np.stack([metrics.matched_correlation(s, t).per_source for s, t in pairs])


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
    """
    separation = separate(mixtures, rng_key=rng_key)
    attacker, floor, owner = (
        recovery(s, truth) for s in (separation.sources, no_attack(mixtures), owner_recovery)
    )
    figures = (
        _figure("mean matched |correlation|", attacker, floor, owner),
        _figure(
            "share of images recovered at |correlation| 0.9 or more",
            *(score >= 0.9 for score in (attacker, floor, owner)),
        ),
    )
    return SeparationReport(figures, attacker, floor, owner, separation)


def _figure(name: str, attacker: HostArray, floor: HostArray, owner: HostArray) -> Figure:
    return Figure(
        name, float(attacker.mean()), float(floor.mean()), float(owner.mean()), THREAT_MODEL
    )


def _loop(function: Callable[..., Separation]) -> Callable[..., Separation]:
    return lambda *arrays: jax.lax.map(lambda each: function(*each), arrays)


@functools.partial(jax.jit, static_argnames=("orthogonal", "over_groups"))
def _separate(
    mixtures: Array,
    starts: Array,
    max_iterations: int,
    tolerance: float,
    orthogonal: bool,
    over_groups: Callable[..., Callable[..., Separation]],
) -> Separation:
    def separate_group(mixture: Array, group_starts: Array) -> Separation:
        """One group: ``[M, H, W, C]`` and ``[R, M, M]``."""
        whitening, white = _whiten(_gradients(mixture))
        stride = max(1, white.shape[1] // (_COARSE_SAMPLES * white.shape[0]))
        coarse = white[:, ::stride]

        def try_start(start: Array) -> tuple[Array, Array, Array]:
            rotation, steps, _ = _fast_ica(coarse, start, _COARSE_STEPS, 10 * tolerance)
            return rotation, steps, _contrast(coarse, rotation)

        rotations, coarse_steps, contrasts = jax.lax.map(try_start, group_starts)
        best = jnp.argmax(contrasts)
        rotation, steps, turn = _fast_ica(white, rotations[best], max_iterations, tolerance)

        unmixing = _matmul(rotation, whitening)
        length = jnp.linalg.norm(unmixing, axis=1, keepdims=True)
        unmixing = unmixing / jnp.where(length > 0, length, 1.0)
        if orthogonal:
            unmixing = _nearest_orthogonal(unmixing)
        sources = _matmul(unmixing, mixture.reshape(mixture.shape[0], -1))
        sign = jnp.where(sources.max(1) + sources.min(1) < 0, -1.0, 1.0)[:, None]
        return Separation(
            sign * unmixing,
            (sign * sources).reshape(mixture.shape),
            coarse_steps[best] + steps,
            turn <= tolerance,
        )

    return over_groups(separate_group)(mixtures, starts)


def _gradients(x: Array) -> Array:
    """First differences down and across, per channel: ``[M, H, W, C]`` to ``[M, N]``."""
    down, across = x[:, 1:] - x[:, :-1], x[:, :, 1:] - x[:, :, :-1]
    return jnp.concatenate([d.reshape(x.shape[0], -1) for d in (down, across)], axis=1)


def _whiten(x: Array) -> tuple[Array, Array]:
    """The matrix ``[M, M]`` that gives ``[M, N]`` unit covariance, and the result.

    Directions without signal (equal images, constant ones) get zeros instead of amplified
    rounding errors.
    """
    x = x - x.mean(1, keepdims=True)
    values, vectors = jnp.linalg.eigh(_matmul(x, x.T) / x.shape[1])
    has_signal = values > jnp.maximum(_EIGENVALUE_FLOOR * values[-1], jnp.finfo(x.dtype).tiny)
    scale = jnp.where(has_signal, jax.lax.rsqrt(jnp.where(has_signal, values, 1.0)), 0.0)
    whitening = scale[:, None] * vectors.T
    return whitening, _matmul(whitening, x)


def _fast_ica(
    white: Array, start: Array, max_iterations: int, tolerance: float
) -> tuple[Array, Array, Array]:
    """Symmetric fixed point on whitened ``[M, N]`` from the orthogonal ``[M, M]`` start.

    Returns:
        The rotation ``[M, M]``, the steps taken, and how far the last one turned.
    """

    def step(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        rotation, steps, _ = state
        # w <- E[g(w z) z] - E[g'(w z)] w with g = tanh (Hyvarinen 1999, equation 20).
        g = jnp.tanh(_matmul(rotation, white))
        slope = (1 - g**2).mean(1, keepdims=True)
        turned = _nearest_orthogonal(_matmul(g, white.T) / white.shape[1] - slope * rotation)
        cosines = jnp.abs((turned * rotation).sum(1))
        return turned, steps + 1, jnp.abs(1 - cosines).max()

    def unfinished(state: tuple[Array, Array, Array]) -> Array:
        return (state[2] > tolerance) & (state[1] < max_iterations)

    return jax.lax.while_loop(unfinished, step, (start, jnp.int32(0), jnp.float32(jnp.inf)))


def _contrast(white: Array, rotation: Array) -> Array:
    """Approximate negentropy, summed over sources: how far from Gaussian they are."""
    y = _matmul(rotation, white)
    logcosh = jnp.logaddexp(y, -y).mean(1) - jnp.log(jnp.float32(2.0))
    return ((logcosh - _GAUSSIAN_LOGCOSH) ** 2).sum()


def _nearest_orthogonal(matrix: Array) -> Array:
    """The orthogonal matrix closest to ``[M, M]`` (polar factor)."""
    left, _, right = jnp.linalg.svd(matrix, full_matrices=False)
    return _matmul(left, right)


def _matmul(a: Array, b: Array) -> Array:
    """Full float32: accelerators would round products to bf16 or tf32."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
