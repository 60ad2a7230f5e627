"""How far unmixing is from exact: the error that encryption-aware training reduces.

For a linear main, unmixing is exact up to rounding (equation 5 of the paper); for a real one the
error says how far main is from acting linearly on the activations it gets.
"""

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
    """

    per_key: Array

    @property
    def mean(self) -> float:
        """Over keys."""
        return float(self.per_key.mean())

    @property
    def standard_deviation(self) -> float:
        """Over keys: how much the error depends on the matrix that was drawn."""
        return float(self.per_key.std())


def _as_it_is(features: Array) -> Array:
    return features


def unmix_error(
    main: Callable[[Array], Array],
    mix_key: mixing.MixKey,
    x: Array,
    *,
    read: Callable[[Array], Array] = _as_it_is,
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
    """
    direct = read(main(x))
    recovered = read(mixing.unmix(mix_key, main(mixing.mix(mix_key, x).astype(x.dtype))))
    difference = recovered - direct.astype(recovered.dtype)
    return jnp.linalg.norm(difference.ravel()) / jnp.linalg.norm(direct.ravel())


def measure(
    main: Callable[[Array], Array],
    x: Array,
    *,
    rng_key: RngKey,
    group_size: int,
    num_keys: int = 8,
    family: mixing.Family = mixing.haar,
    read: Callable[[Array], Array] = _as_it_is,
) -> UnmixError:
    """The unmix error over several keys.

    Args:
        main: see ``unmix_error``.
        x: ``[B, ...]``, ``B`` a multiple of ``group_size``.
        rng_key: draws the keys; consumed.
        group_size: ``M``.
        num_keys: how many.
        family: of matrices.
        read: see ``unmix_error``.

    Raises:
        UsageError: a size is out of range, or the group size does not divide the batch.
    """
    _validate.positive(num_keys=num_keys, group_size=group_size)
    _validate.divides(group_size, divisor_name="group_size", batch_size=x.shape[0])

    def one(key_rng: RngKey) -> Array:
        mix_key = mixing.sample_mix_key(
            key_rng, x.shape[0] // group_size, group_size, family=family, shuffle=False
        )
        return unmix_error(main, mix_key, x, read=read)

    # One key after another: vmapping over keys would hold the activations of all of them.
    one = jax.jit(one)
    return UnmixError(jnp.stack([one(k) for k in jax.random.split(rng_key, num_keys)]))
