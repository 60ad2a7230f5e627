"""What makes the error: constants, ReLUs, max-pools, rounding, each alone in the same network.

The linear twin of an operation is the same operation between unmixing and mixing: it gives main
the mixture of the direct results, as a linear operation would. With every nonlinear operation so
replaced, only rounding is left; with all but one kind replaced, that kind's error. Main's direct
result is the same throughout.

Operations are found as modules (``models.operations``). Others stay at work throughout, which shows
in what is left where only rounding should be.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from facemix_jax import mixing
from facemix_jax._types import Array, HostArray, RngKey, Variables
from facemix_jax.linearity.end_to_end import (
    at_least_float32,
    check_sizes,
    condition_of,
    draw_keys,
)
from facemix_jax.models import operations

_ROUNDING_LIMIT = 0.05
"""What rounding leaves at most, in units of the matrices' condition. ResNet-18 and VGG-16 were
measured at 7e-6 in float32 and 1.3e-2 in bfloat16; one ReLU makes about 0.7."""


class CauseErrors(NamedTuple):
    """The error with only some kinds of nonlinear operation at work.

    Attributes:
        causes: the ``C`` kinds that this network has, of ``models.operations.KINDS``.
        total: float ``[num_keys]``, the relative unmix error of the network as it is.
        alone: float ``[num_keys, C]``, with one kind at work.
        without: float ``[num_keys, C]``, with all kinds but one.
        shares: float ``[num_keys, C]``, ``<e_c, e> / ||e||^2`` for ``e_c`` the error vector of
            a kind alone and ``e`` the whole one. NaN where ``unknown``.
        interaction: float ``[num_keys]``, ``||e - sum of e_c|| / ||main(x)||``: what no kind
            does alone. NaN where ``unknown``.
        rounding: float ``[num_keys]``, with no kind at work.
        unknown: whether ``rounding`` is more than rounding makes, so that main has nonlinear
            operations of no kind, which are in every error here.
    """

    causes: tuple[str, ...]
    total: Array
    alone: Array
    without: Array
    shares: Array
    interaction: Array
    rounding: Array
    unknown: bool

    @property
    def interaction_share(self) -> Array:
        """Float ``[num_keys]``: what the shares leave of 1. NaN where ``unknown``."""
        return jnp.full_like(self.total, jnp.nan) if self.unknown else 1 - self.shares.sum(1)


def cause_errors(
    main: operations.Apply,
    variables: Variables,
    x: Array,
    *,
    rng_key: RngKey,
    group_size: int,
    num_keys: int = 8,
    family: mixing.Family = mixing.haar,
) -> CauseErrors:
    """Switches kinds of nonlinear operation off and on.

    Args:
        main: ``model.main.apply``, or any function of Flax modules whose nonlinear operations are
            modules of ``models.operations``.
        variables: ``variables["main"]``.
        x: ``[B, ...]``, ``B`` a multiple of ``group_size``.
        rng_key: draws the keys, the same as in ``measure``; consumed.
        group_size: ``M``.
        num_keys: how many.
        family: of matrices.

    Raises:
        UsageError: a size is out of range, or the group size does not divide the batch.
    """
    check_sizes(x, group_size=group_size, num_keys=num_keys)
    causes = operations.kinds_in(main, variables, x)
    # Rows of a table of which kinds are at work: all; one; all but one; none.
    single = np.eye(len(causes), dtype=bool)
    table = np.concatenate(
        [np.ones((1, len(causes)), bool), single, ~single, np.zeros((1, len(causes)), bool)]
    )
    direct = jax.jit(main)(variables, x)
    protected = jax.jit(functools.partial(_protected, main, causes))
    summary = jax.jit(functools.partial(_summary, len(causes)))
    results, limits = [], []
    for mix_key in draw_keys(rng_key, x, group_size, num_keys, family):
        recovered = [protected(variables, mix_key, x, jnp.asarray(row)) for row in table]
        results.append(summary(jnp.stack(recovered), direct))
        limits.append(_ROUNDING_LIMIT * condition_of(mix_key))
    total, alone, without, shares, interaction, rounding = (
        jnp.stack(part) for part in zip(*results, strict=True)
    )
    unknown = bool((rounding > jnp.stack(limits)).any())
    if unknown:
        shares, interaction = (jnp.full_like(part, jnp.nan) for part in (shares, interaction))
    return CauseErrors(causes, total, alone, without, shares, interaction, rounding, unknown)


def _protected(
    main: operations.Apply,
    causes: Sequence[str],
    variables: Variables,
    mix_key: mixing.MixKey,
    x: Array,
    at_work: HostArray | Array,
) -> Array:
    """The unmixed result with the kinds of ``causes`` at work where ``at_work`` is True."""

    def around(kind: str, operation: Callable[[Array], Array], value: Array) -> Array:
        acts = at_work[causes.index(kind)]
        unmixed = mixing.unmix(mix_key, value).astype(value.dtype)
        result = operation(jnp.where(acts, value, unmixed))
        return jnp.where(acts, result, mixing.mix(mix_key, result).astype(result.dtype))

    mixed = mixing.mix(mix_key, x).astype(x.dtype)
    return mixing.unmix(mix_key, operations.intercept(main, around)(variables, mixed))


def _summary(num_causes: int, recovered: Array, direct: Array) -> tuple[Array, ...]:
    recovered, direct = at_least_float32(recovered, direct)
    errors = (recovered - direct[None]).reshape(recovered.shape[0], -1)
    size = jnp.linalg.norm(direct.ravel())
    whole, alone = errors[0], errors[1 : num_causes + 1]
    relative = jnp.linalg.norm(errors, axis=1) / size
    # As sums: a float32 matrix product is less exact on some devices.
    shares = jnp.sum(alone * whole[None], axis=1) / jnp.sum(jnp.square(whole))
    interaction = jnp.linalg.norm(whole - alone.sum(0)) / size
    return (
        relative[0],
        relative[1 : num_causes + 1],
        relative[num_causes + 1 : -1],
        shares,
        interaction,
        relative[-1],
    )
