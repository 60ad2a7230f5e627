"""Independent vector analysis: several mixtures of the same images, separated together.

Where one image is active, it is active in all its channels: values of one position belong
together, as a vector whose length is sparse. FastIVA (Lee, Kim and Lee 2007, "Fast fixed-point
independent vector analysis algorithms for convolutive blind source separation", Signal Processing
87(8)) with the spherical Laplace prior is symmetric FastICA with such vectors for numbers.

Mixtures of the same images may come in ``K`` sets, each with a matrix of its own, such as
channels under different keys. Each set gets its unmixing, and the common lengths see to it that
row ``i`` of every set shows the same image, which separate runs would leave open.
"""

import functools

import jax
import jax.numpy as jnp

from facemix_jax import _validate
from facemix_jax._types import Array, RngKey
from facemix_jax.attacks import blind
from facemix_jax.attacks.separation import THREAT_MODEL
from facemix_jax.attacks.unmixing import (
    Separation,
    apply_unmixing,
    check_options,
    gradient_vectors,
    iterate,
    map_groups,
    matmul,
    nearest_orthogonal,
    on_all_cores,
    whiten,
)

_SMOOTHING = 1e-3
"""Added to a vector's mean square, so that its length has a slope at zero."""


def separate_vectors(
    mixtures: Array,
    *,
    rng_key: RngKey,
    restarts: int = 3,
    max_iterations: int = 200,
    tolerance: float = 1e-5,
    orthogonal: bool = True,
) -> Separation:
    """Recovers the images of every group from ``K`` sets of mixtures of them.

    Args:
        mixtures: float ``[G, K, M, H, W, C]``; the ``K`` sets of a group are mixed by different
            matrices, the ``C`` channels of a set by the same.
        rng_key: draws the starts; consumed.
        restarts: starts per group; the one with the sparsest lengths is kept.
        max_iterations: limit of fixed-point steps.
        tolerance: converged when every row turned by less: ``1 - |cos angle|``.
        orthogonal: whether the mixing matrices are known to be orthogonal.

    Returns:
        A ``Separation`` whose ``unmixing`` is ``[G, K, M, M]`` and ``sources``
        ``[G, K, M, H, W, C]``.

    Raises:
        UsageError: mixtures of another rank, fewer than 2 in a set, maps without two positions
            in both directions, or an option out of range.
    """
    if mixtures.ndim != 6 or min(mixtures.shape[2:5]) < 2:
        raise _validate.UsageError(
            f"mixtures have shape {mixtures.shape}, but vector analysis needs [G, K, M, H, W, C] "
            f"with at least 2 mixtures and 2 x 2 positions. Put K = 1 where there is one set."
        )
    check_options(restarts=restarts, max_iterations=max_iterations, tolerance=tolerance)
    num_groups, num_sets, size = mixtures.shape[:3]
    starts = jax.random.orthogonal(rng_key, size, (num_groups, restarts, num_sets))
    options = (max_iterations, tolerance, orthogonal, jax.default_backend())
    arrays = mixtures.astype(jnp.float32), starts
    return on_all_cores(lambda *some: _separate(*some, *options), *arrays)


def separate_groups(mixtures: Array, *, rng_key: RngKey, orthogonal: bool = True) -> Separation:
    """``separate_vectors`` where all channels share one matrix: ``[G, M, H, W, C]``."""
    found = separate_vectors(mixtures[:, None], rng_key=rng_key, orthogonal=orthogonal)
    return found._replace(unmixing=found.unmixing[:, 0], sources=found.sources[:, 0])


IVA = blind.attack(
    "iva",
    THREAT_MODEL,
    lambda target, *_: functools.partial(separate_groups, orthogonal=target.defense.orthogonal),
    unsuitable=blind.needs_both_directions,
)
"""Vector analysis of gradients over channels, grouping granted."""


@functools.partial(jax.jit, static_argnames=("orthogonal", "backend"))
def _separate(
    mixtures: Array,
    starts: Array,
    max_iterations: int,
    tolerance: float,
    orthogonal: bool,
    backend: str,
) -> Separation:
    def separate_group(group: Array, group_starts: Array) -> Separation:
        """One group: ``[K, M, H, W, C]`` and ``[R, K, M, M]``."""
        num_sets, size = group.shape[:2]
        vectors = jax.vmap(gradient_vectors)(group)  # [K, M, P, D]
        whitening, white = jax.vmap(whiten)(vectors.reshape(num_sets, size, -1))
        count = num_sets * vectors.shape[3]
        smoothing = _SMOOTHING * count

        def rotate(rotation: Array) -> tuple[Array, Array]:
            """Sources ``[K, M, P, D]`` and the lengths ``[M, P]`` of their vectors."""
            y = matmul(rotation, white).reshape(vectors.shape)
            return y, jnp.sqrt((y**2).sum((0, 3)) + smoothing)

        def improve(rotation: Array) -> Array:
            y, length = rotate(rotation)
            # Per set: w <- E[y z / r] - E[D / r - |y|^2 / r^3] w, as in FastICA.
            score = (y / length[None, :, :, None]).reshape(white.shape)
            square = (y**2).sum(3)
            slope = (y.shape[3] / length[None] - square / length[None] ** 3).sum(2)
            moved = matmul(score, white.mT) - slope[..., None] * rotation
            return nearest_orthogonal(moved)

        def try_start(start: Array) -> tuple[Array, Array, Array, Array]:
            rotation, steps, last = iterate(improve, start, max_iterations, tolerance)
            return rotation, steps, last, rotate(rotation)[1].mean()

        rotations, steps, last, lengths = jax.lax.map(try_start, group_starts)
        best = jnp.argmin(lengths)  # of equal energy: the shorter on average, the sparser
        unmixing, sources = jax.vmap(lambda u, m: apply_unmixing(u, m, orthogonal))(
            matmul(rotations[best], whitening), group
        )
        return Separation(unmixing, sources, steps[best], last[best] <= tolerance)

    return map_groups(separate_group, mixtures, starts, backend=backend)
