"""Where the error arises: mixed before any layer, unmixed after any later one."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from facemix_jax import mixing
from facemix_jax._types import Array, RngKey
from facemix_jax.linearity.end_to_end import at_least_float32, check_sizes, draw_keys

Layer = tuple[str, Callable[[Array], Array]]
"""A name and a function of a batch."""


class LayerErrors(NamedTuple):
    """Unmix errors of every stretch of layers, and each layer's part in the whole.

    With ``y_l`` the direct result of layer ``l`` (``y_0`` the input), mixing it, running the
    layers after it and unmixing gives ``t_l``; ``t_0`` is the protected result, ``t_L`` the
    direct one. ``t_{l-1} - t_l`` is the error that layer ``l`` makes by not commuting with
    mixing, as it arrives at the end; all of them add up to the end-to-end error exactly.

    Attributes:
        names: of the ``L`` layers.
        pairs: float ``[num_keys, L, L]``; ``[k, i, j]`` is the relative unmix error after layer
            ``j`` where the input of layer ``i`` was mixed. NaN for ``j < i``.
        made: float ``[num_keys, L]``, ``||t_{l-1} - t_l|| / ||t_L||``.
        shares: float ``[num_keys, L]``, the part of the end-to-end error along itself that each
            layer made, ``<t_{l-1} - t_l, t_0 - t_L> / ||t_0 - t_L||^2``; adds up to 1 for each
            key. Negative where a layer takes away error that others made.
    """

    names: tuple[str, ...]
    pairs: Array
    made: Array
    shares: Array


def layer_errors(
    layers: Sequence[Layer],
    x: Array,
    *,
    rng_key: RngKey,
    group_size: int,
    num_keys: int = 8,
    family: mixing.Family = mixing.haar,
) -> LayerErrors:
    """All pairs of layers in one pass per key: layer ``l`` runs once, on ``l + 2`` batches.

    Args:
        layers: names and functions, the output of each the input of the next; of a split
            network, ``[(n, functools.partial(f, variables["main"])) for n, f in
            model.main.layers]``.
        x: ``[B, ...]``, ``B`` a multiple of ``group_size``.
        rng_key: draws the keys, the same as in ``measure``; consumed.
        group_size: ``M``.
        num_keys: how many.
        family: of matrices.

    Raises:
        UsageError: a size is out of range, or the group size does not divide the batch.
    """
    check_sizes(x, group_size=group_size, num_keys=num_keys)
    one = jax.jit(functools.partial(_one_key, [function for _, function in layers]))
    keys = draw_keys(rng_key, x, group_size, num_keys, family)
    results = [one(mix_key, x) for mix_key in keys]
    stacked = (jnp.stack(part) for part in zip(*results, strict=True))
    return LayerErrors(tuple(name for name, _ in layers), *stacked)


def _one_key(
    functions: Sequence[Callable[[Array], Array]], mix_key: mixing.MixKey, x: Array
) -> tuple[Array, Array, Array]:
    batch = x.shape[0]
    # Row block 0 runs directly; block i + 1 was mixed before layer i.
    streams = x
    columns = []
    for function in functions:
        direct = streams[:batch]
        mixed = mixing.mix(mix_key, direct).astype(direct.dtype)
        streams = function(jnp.concatenate([streams, mixed]))
        unmixed = _unmix_streams(mix_key, streams[batch:], batch)
        unmixed, direct = at_least_float32(unmixed, streams[:batch])
        columns.append(_norms(unmixed - direct[None]) / jnp.linalg.norm(direct.ravel()))
    num_layers = len(functions)
    pairs = jnp.stack(
        [
            jnp.concatenate([column, jnp.full(num_layers - len(column), jnp.nan, column.dtype)])
            for column in columns
        ],
        axis=1,
    )
    ends = jnp.concatenate([unmixed, direct[None]])  # t_0 to t_L
    made = ends[:-1] - ends[1:]
    whole = ends[0] - ends[-1]
    along = jnp.sum(made * whole[None], axis=tuple(range(1, made.ndim)))
    shares = along / jnp.sum(jnp.square(whole))
    return pairs, _norms(made) / jnp.linalg.norm(direct.ravel()), shares


def _unmix_streams(mix_key: mixing.MixKey, streams: Array, batch: int) -> Array:
    """``[s * B, ...]`` mixed to ``[s, B, ...]`` unmixed."""
    blocks = streams.reshape(-1, batch, *streams.shape[1:])
    return jax.vmap(functools.partial(mixing.unmix, mix_key))(blocks)


def _norms(blocks: Array) -> Array:
    return jnp.linalg.norm(blocks.reshape(blocks.shape[0], -1), axis=1)
