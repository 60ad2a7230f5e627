"""Mixed against direct evaluation, end to end, over many keys.

For a linear main, unmixing is exact up to rounding (equation 5 of the paper); for a real one the
error says how far main is from acting linearly on the activations it gets.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from facemix_jax import _validate, mixing
from facemix_jax._types import Array, RngKey


class UnmixError(NamedTuple):
    """Relative error of mixed against direct evaluation.

    Attributes:
        per_key: float ``[num_keys]``, ``||unmix(main(mix(x))) - main(x)|| / ||main(x)||`` with
            one norm over the whole batch, for each key.
        per_group: float ``[num_keys, G]``, the same with norms over one group each: groups hold
            different images. Where ``read`` joins the rows of an image's tiles, ``G`` counts
            groups of images.
        condition: float ``[num_keys]``, ``||A||_F ||inverse(A)||_F / M``, root mean square over
            groups: 1 for orthogonal matrices, the factor by which unmixing amplifies rounding.
    """

    per_key: Array
    per_group: Array
    condition: Array

    @property
    def mean(self) -> float:
        """Over keys."""
        return float(self.per_key.mean())

    @property
    def standard_deviation(self) -> float:
        """Over keys: how much the error depends on the matrix that was drawn; NaN for one key."""
        return _deviation(self.per_key)

    @property
    def standard_deviation_over_inputs(self) -> float:
        """Of the groups' means over keys: how much the error depends on the images.

        A group whose result is zero has no relative error and is left out. NaN for one group.
        """
        means = self.per_group.mean(0)
        return _deviation(means[jnp.isfinite(means)])


def _deviation(values: Array) -> float:
    return float(values.std()) if len(values) > 1 else math.nan


def finite(value: float) -> float | None:
    """None for NaN and infinity, which JSON has not."""
    return value if math.isfinite(value) else None


def as_it_is(features: Array) -> Array:
    """Reads main's result unchanged."""
    return features


def unmix_error(
    main: Callable[[Array], Array],
    mix_key: mixing.MixKey,
    x: Array,
    *,
    read: Callable[[Array], Array] = as_it_is,
) -> Array:
    """``||unmix(main(mix(x))) - main(x)|| / ||main(x)||`` (equations 4 to 6).

    Args:
        main: any function of a batch that treats its rows alike, such as
            ``functools.partial(model.main, variables["main"])``.
        mix_key: for ``B`` examples.
        x: ``[B, ...]``.
        read: applied to both results before they are compared. With post as ``read`` only those
            errors count that the answer depends on.

    Returns:
        A scalar; 0 is exact, 1 means that nothing of main's result was recovered.

    Example:
        >>> mix_key = mixing.sample_mix_key(jax.random.key(0), num_groups=1, group_size=4)
        >>> x = jax.random.normal(jax.random.key(1), (4, 100))
        >>> bool(unmix_error(lambda z: 3 * z, mix_key, x) < 1e-6)
        True
    """
    direct = read(main(x))
    recovered = read(mixing.unmix(mix_key, main(mixing.mix(mix_key, x).astype(x.dtype))))
    difference, direct = at_least_float32(recovered, direct)
    return jnp.linalg.norm((difference - direct).ravel()) / jnp.linalg.norm(direct.ravel())


def measure(
    main: Callable[[Array], Array],
    x: Array,
    *,
    rng_key: RngKey,
    group_size: int,
    num_keys: int = 8,
    family: mixing.Family = mixing.haar,
    read: Callable[[Array], Array] = as_it_is,
    rows_at_once: int = 64,
) -> UnmixError:
    """The unmix error over several keys.

    Keys are evaluated in chunks, each as one batch of main: a main that is passed again with the
    same number of rows is not compiled again, whatever the group size or family.

    Args:
        main: see ``unmix_error``. Matrix products in it follow ``jax.default_matmul_precision``;
            those of mixing are always at the highest precision.
        x: ``[B, ...]``, ``B`` a multiple of ``group_size``. Main gets mixtures in its dtype.
        rng_key: draws the keys; consumed.
        group_size: ``M``.
        num_keys: how many.
        family: of matrices.
        read: see ``unmix_error``.
        rows_at_once: bounds memory: as many keys go through main together as give it no more
            rows than this, at least one key. Changes no result beyond rounding.

    Raises:
        UsageError: a size is out of range, or the group size does not divide the batch or the
            rows that ``read`` returns.

    Example:
        >>> x = jax.random.normal(jax.random.key(1), (8, 1000))
        >>> error = measure(jax.nn.relu, x, rng_key=jax.random.key(0), group_size=4, num_keys=16)
        >>> error.per_key.shape, error.per_group.shape, 0.9 < error.mean < 1.1
        ((16,), (16, 2), True)
    """
    check_sizes(x, group_size=group_size, num_keys=num_keys)
    chunk = max(1, min(rows_at_once // x.shape[0], num_keys))
    rng_keys = jax.random.split(rng_key, num_keys)
    # The last chunk is filled up, and the direct result computed in a whole chunk, so that main
    # is compiled for one shape only.
    rng_keys = jnp.concatenate([rng_keys, rng_keys[: -num_keys % chunk]])
    run = jax.jit(main)
    direct = run(jnp.concatenate([x] * chunk))[: x.shape[0]]
    compare = jax.jit(functools.partial(_compare, read))

    parts = []
    for start in range(0, num_keys, chunk):
        mix_keys, mixed = _mix_all(rng_keys[start : start + chunk], x, group_size, family)
        parts.append(compare(mix_keys, run(mixed), direct))
    joined = (jnp.concatenate(part)[:num_keys] for part in zip(*parts, strict=True))
    return UnmixError(*joined)


def check_sizes(x: Array, *, group_size: int, num_keys: int) -> None:
    """Raises ``UsageError`` where sizes are out of range or do not fit each other."""
    _validate.positive(num_keys=num_keys, group_size=group_size)
    _validate.divides(group_size, divisor_name="group_size", batch_size=x.shape[0])


def draw_keys(
    rng_key: RngKey, x: Array, group_size: int, num_keys: int, family: mixing.Family
) -> list[mixing.MixKey]:
    """The keys that ``measure`` draws, one after another."""
    groups = x.shape[0] // group_size
    draw = jax.jit(
        lambda k: mixing.sample_mix_key(k, groups, group_size, family=family, shuffle=False)
    )
    return [draw(k) for k in jax.random.split(rng_key, num_keys)]


def condition_of(mix_key: mixing.MixKey) -> Array:
    """``UnmixError.condition`` of one key, a scalar, or of keys stacked along a leading axis."""
    squares = (jnp.square(a).sum((-2, -1)) for a in (mix_key.matrix, mix_key.inverse))
    return jnp.sqrt(jnp.mean(functools.reduce(jnp.multiply, squares), -1)) / mix_key.group_size


def at_least_float32(*arrays: Array) -> tuple[Array, ...]:
    """All in the widest of their dtypes, and no narrower than float32: norms need it."""
    dtypes = (jnp.dtype("float32"), *(a.dtype for a in arrays))
    widest = max(dtypes, key=lambda dtype: dtype.itemsize)
    return tuple(a.astype(widest) for a in arrays)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _mix_all(
    rng_keys: RngKey, x: Array, group_size: int, family: mixing.Family
) -> tuple[mixing.MixKey, Array]:
    """Keys stacked along a leading axis ``[k]``, and all mixtures, ``[k * B, ...]``."""

    def one(rng_key: RngKey) -> tuple[mixing.MixKey, Array]:
        mix_key = mixing.sample_mix_key(
            rng_key, x.shape[0] // group_size, group_size, family=family, shuffle=False
        )
        return mix_key, mixing.mix(mix_key, x).astype(x.dtype)

    mix_keys, mixed = jax.vmap(one)(rng_keys)
    return mix_keys, mixed.reshape(-1, *x.shape[1:])


def _compare(
    read: Callable[[Array], Array], mix_keys: mixing.MixKey, responses: Array, direct: Array
) -> tuple[Array, Array, Array]:
    """Errors ``[k]`` and ``[k, G]`` and conditions ``[k]`` of one chunk."""
    num_keys, _, group_size, _ = mix_keys.matrix.shape
    responses = responses.reshape(num_keys, *direct.shape)
    # Key by key: post may join rows, of which each is one tile of an image.
    recovered = jax.vmap(read)(jax.vmap(mixing.unmix)(mix_keys, responses))
    wanted = read(direct)
    _validate.divides(group_size, divisor_name="group_size", batch_size=wanted.shape[0])
    recovered, wanted = at_least_float32(recovered, wanted)
    num_groups = wanted.shape[0] // group_size
    wanted = wanted.reshape(1, num_groups, -1)
    difference = recovered.reshape(num_keys, num_groups, -1) - wanted
    errors, sizes = (jnp.sum(jnp.square(a), axis=2) for a in (difference, wanted))
    per_key = jnp.sqrt(errors.sum(1) / sizes.sum(1))
    return per_key, jnp.sqrt(errors / sizes), condition_of(mix_keys)
