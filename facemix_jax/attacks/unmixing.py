"""What every blind separation shares: differences, whitening, polar factors, scale and sign."""

import concurrent.futures
import os
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from facemix_jax import _validate
from facemix_jax._types import Array, RngKey

Result = TypeVar("Result")

_GAUSSIAN_LOGCOSH = 0.37456721
"""``E[log cosh v]`` of a standard normal ``v``, where the contrast is zero."""

_EIGENVALUE_FLOOR = 1e-6
"""Relative to the largest: float32 leaves nothing but rounding below."""

_FEWEST_IN_A_THREAD = 8
"""Groups; fewer are not worth a second program."""


class Separation(NamedTuple):
    """What blind separation found for ``G`` groups.

    Attributes:
        unmixing: float32 ``[G, M, M]``; ``sources[g] = unmixing[g] @ mixtures[g]``.
        sources: float32 ``[G, M, H, W, C]``, in no particular order.
        iterations: int32 ``[G]``, steps of the start that was kept.
        converged: bool ``[G]``. Where False, the group stopped at ``max_iterations``: the
            result is the best so far, and more iterations or restarts may improve it.
    """

    unmixing: Array
    sources: Array
    iterations: Array
    converged: Array


def check_groups(mixtures: Array) -> None:
    """Raises ``UsageError`` unless ``mixtures`` are groups of at least two maps."""
    if mixtures.ndim != 5 or mixtures.shape[1] < 2 or mixtures.shape[2] * mixtures.shape[3] < 2:
        raise _validate.UsageError(
            f"mixtures have shape {mixtures.shape}, but separation needs [G, M, H, W, C] with at "
            f"least 2 mixtures in a group and 2 positions in a map. Group them with mixing.group."
        )


def prepare(
    mixtures: Array, evidence: Array | None, rng_key: RngKey, restarts: int
) -> tuple[Array, Array, Array]:
    """Checks the arguments of a separation and draws its starts.

    Args:
        mixtures: float ``[G, M, H, W, C]``.
        evidence: float ``[G, M, h, w, c]``, or None for the mixtures.
        rng_key: consumed.
        restarts: starts per group.

    Returns:
        Mixtures and evidence as float32, and orthogonal starts ``[G, R, M, M]``.

    Raises:
        UsageError: shapes that cannot be separated or do not belong together.
        DataError: values that are not finite.
    """
    check_groups(mixtures)
    evidence = mixtures if evidence is None else evidence
    check_groups(evidence)
    if evidence.shape[:2] != mixtures.shape[:2]:
        raise _validate.UsageError(
            f"evidence has shape {evidence.shape} and mixtures {mixtures.shape}, but both must "
            f"start with the same G and M. Filter positions and channels only."
        )
    traced = isinstance(mixtures, jax.core.Tracer)  # in a caller's jit, where no value is known
    if not traced and not (jnp.isfinite(mixtures).all() and jnp.isfinite(evidence).all()):
        raise _validate.DataError(
            "mixtures hold NaN or infinities, from which nothing can be separated. Look whether "
            "the network that they are from diverged."
        )
    starts = jax.random.orthogonal(rng_key, mixtures.shape[1], (len(mixtures), restarts))
    return mixtures.astype(jnp.float32), evidence.astype(jnp.float32), starts


def with_positions(maps: Array) -> Array:
    """Channels in the place of positions where there is a single one: ``[..., C, 1, 1]``.

    Mixing does the same to every channel as to every position, and separation wants many.

    Args:
        maps: ``[..., H, W, C]``; with two positions or more they stay as they are.
    """
    if maps.shape[-3] * maps.shape[-2] > 1:
        return maps
    return maps.reshape(*maps.shape[:-3], maps.shape[-1], 1, 1)


def check_options(*, restarts: int, max_iterations: int, tolerance: float) -> None:
    """Raises ``UsageError`` where an option of a separation is out of range."""
    _validate.positive(restarts=restarts, max_iterations=max_iterations)
    _validate.in_range(1e-7, 1.0, tolerance=tolerance)


def gradients(x: Array) -> Array:
    """First differences down and across, per channel: ``[M, H, W, C]`` to ``[M, N]``."""
    down, across = x[:, 1:] - x[:, :-1], x[:, :, 1:] - x[:, :, :-1]
    return jnp.concatenate([d.reshape(x.shape[0], -1) for d in (down, across)], axis=1)


def gradient_vectors(x: Array) -> Array:
    """Differences down and across at one position together: ``[B, H, W, C]`` to ``[B, P, 2 C]``."""
    corner = x[:, :-1, :-1]
    vectors = jnp.concatenate([x[:, 1:, :-1] - corner, x[:, :-1, 1:] - corner], axis=3)
    return vectors.reshape(len(x), -1, vectors.shape[3])


def principal_axes(x: Array, count: int) -> Array:
    """The ``count`` directions of largest energy among vectors ``[..., D]``: ``[D, count]``.

    Mixing acts on rows, not on positions or channels, so that the axes of mixtures are those of
    the images.
    """
    flat = x.reshape(-1, x.shape[-1])
    _, vectors = jnp.linalg.eigh(matmul(flat.T, flat))
    return vectors[:, -count:]


def whiten(x: Array) -> tuple[Array, Array]:
    """The matrix ``[M, M]`` that gives ``[M, N]`` unit covariance, and the result.

    Directions without signal (equal images, constant ones) get zeros instead of amplified
    rounding errors.
    """
    x = x - x.mean(1, keepdims=True)
    values, vectors = jnp.linalg.eigh(matmul(x, x.T) / x.shape[1])
    has_signal = values > jnp.maximum(_EIGENVALUE_FLOOR * values[-1], jnp.finfo(x.dtype).tiny)
    scale = jnp.where(has_signal, jax.lax.rsqrt(jnp.where(has_signal, values, 1.0)), 0.0)
    whitening = scale[:, None] * vectors.T
    return whitening, matmul(whitening, x)


def apply_unmixing(unmixing: Array, mixture: Array, orthogonal: bool) -> tuple[Array, Array]:
    """Settles scale and sign of ``[M, M]`` and applies it to one group ``[M, ...]``.

    Scale: an orthogonal mixing has an orthogonal inverse. Rows are brought to length one, and
    with ``orthogonal`` the whole is replaced by the nearest orthogonal matrix, which mends most
    of what the images' own correlations did to the estimate.

    Sign: the larger excursion of a source counts as positive.

    Returns:
        The unmixing ``[M, M]`` and the sources ``[M, ...]``.
    """
    length = jnp.linalg.norm(unmixing, axis=1, keepdims=True)
    unmixing = unmixing / jnp.where(length > 0, length, 1.0)
    if orthogonal:
        unmixing = nearest_orthogonal(unmixing)
    sources = matmul(unmixing, mixture.reshape(mixture.shape[0], -1))
    sign = jnp.where(sources.max(1) + sources.min(1) < 0, -1.0, 1.0)[:, None]
    return sign * unmixing, (sign * sources).reshape(mixture.shape)


def nearest_orthogonal(matrix: Array) -> Array:
    """The orthogonal matrix closest to each of ``[..., M, M]`` (polar factor)."""
    left, _, right = jnp.linalg.svd(matrix, full_matrices=False)
    return matmul(left, right)


def contrast(y: Array) -> Array:
    """Approximate negentropy of ``[M, N]`` of unit variance, summed over rows: not Gaussian."""
    logcosh = jnp.logaddexp(y, -y).mean(1) - jnp.log(jnp.float32(2.0))
    return ((logcosh - _GAUSSIAN_LOGCOSH) ** 2).sum()


def iterate(
    improve: Callable[[Array], Array],
    start: Array,
    max_iterations: int,
    tolerance: float,
    *,
    block: int = 1,
) -> tuple[Array, Array, Array]:
    """Improves rotations until ``block`` steps turn every row by at most ``tolerance``.

    Args:
        improve: one step on ``[..., M, M]``.
        start: float32 ``[..., M, M]``.
        max_iterations: limit of steps, rounded up to whole blocks.
        tolerance: of ``turn``.
        block: steps between two looks.

    Returns:
        The rotations, the steps taken, and how far the last block turned them.
    """

    def run(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        rotation, steps, _ = state
        turned = jax.lax.fori_loop(0, block, lambda _, r: improve(r), rotation)
        return turned, steps + block, turn(turned, rotation)

    def unfinished(state: tuple[Array, Array, Array]) -> Array:
        return (state[2] > tolerance) & (state[1] < max_iterations)

    return jax.lax.while_loop(unfinished, run, (start, jnp.int32(0), jnp.float32(jnp.inf)))


def turn(new: Array, old: Array) -> Array:
    """How far the row that turned most did: the largest ``1 - |cos angle|``."""
    return jnp.abs(1 - jnp.abs((new * old).sum(-1))).max()


def matmul(a: Array, b: Array) -> Array:
    """Full float32: accelerators would round products to bf16 or tf32."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def map_groups(function: Callable[..., Result], *arrays: Array, backend: str) -> Result:
    """``function`` over the leading axis, inside a jitted function.

    A loop on a CPU, where batches of small products are slow and every group of a batch would
    wait for the last one to converge; a batch on accelerators.

    Args:
        function: of one group's arrays.
        arrays: ``[G, ...]`` each.
        backend: ``jax.default_backend()``, a static argument of the caller.
    """
    if backend == "cpu":
        return jax.lax.map(lambda each: function(*each), arrays)
    return jax.vmap(function)(*arrays)


def on_all_cores(function: Callable[..., Separation], *arrays: Array) -> Separation:
    """A jitted function of groups, on a CPU with many of them in a thread for each core.

    The loop of ``map_groups`` keeps little more than one core busy. Groups do not depend on each
    other, so the result is the same, bit for bit.

    Args:
        function: of the arrays; uses ``map_groups``.
        arrays: ``[G, ...]`` each.
    """
    count, cores = arrays[0].shape[0], os.cpu_count() or 1
    # Shares of equal size, so that the function is compiled once.
    worth_it = count % cores == 0 and count // cores >= _FEWEST_IN_A_THREAD
    traced = isinstance(arrays[0], jax.core.Tracer)  # a caller's jit, which no thread may enter
    if jax.default_backend() != "cpu" or traced or not worth_it:
        return function(*arrays)
    shares = zip(*(jnp.split(array, cores) for array in arrays), strict=True)
    with concurrent.futures.ThreadPoolExecutor(cores) as threads:
        parts = threads.map(lambda share: jax.block_until_ready(function(*share)), shares)
    return Separation(*map(jnp.concatenate, zip(*parts, strict=True)))
