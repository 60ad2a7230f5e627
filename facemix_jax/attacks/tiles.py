"""Networks seen with maps of another shape.

Attacks that know nothing of tiles get whole maps, every tile back in its place. As each (group,
tile) has a matrix of its own, row ``k`` of a group is another mixture in every tile. Separations
get maps of several positions in the place of a single one.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from facemix_jax._types import Array, RngKey, Variables
from facemix_jax.attacks.base import Target
from facemix_jax.defenses import Defense, rows_of
from facemix_jax.models import Segment, SplitModel
from facemix_jax.models.split import cut_tiles, put_tiles_back, side_by_side


class _Secret(NamedTuple):
    """Of all tiles; nobody who sees whole maps can make use of its parts."""

    inner: Any


def whole(target: Target) -> Target:
    """The same system with maps in the place of tiles; ``target`` itself where there are none."""
    if target.model.spec.tiles == 1:
        return target
    model, defense = _whole(target.model, target.defense)
    return dataclasses.replace(target, model=model, defense=defense)


def spread(target: Target) -> Target:
    """The same system with channels in the place of positions where maps have a single one.

    Separation takes positions for samples of one mixture, as mixing does the same to all of them:
    and so it does to all channels.
    """
    if math.prod(target.model.spec.activation_shape[:2]) > 1:
        return target
    return dataclasses.replace(target, model=_spread(target.model))


@functools.cache
def _spread(model: SplitModel) -> SplitModel:
    channels = model.spec.activation_shape[2]
    return model._replace(
        pre=_between(lambda images: images, model.pre, lambda z: z.reshape(-1, channels, 1, 1)),
        main=_between(lambda z: z.reshape(-1, 1, 1, channels), model.main, lambda y: y),
        spec=dataclasses.replace(model.spec, activation_shape=(channels, 1, 1)),
    )


@functools.cache  # the parts are static arguments of jitted functions
def _whole(model: SplitModel, defense: Defense) -> tuple[SplitModel, Defense]:
    spec = model.spec
    grid, tiles, tile = spec.grid, spec.tiles, spec.activation_shape[:2]
    map_shape = (grid[0] * tile[0], grid[1] * tile[1], spec.activation_shape[2])
    features = math.prod(spec.response_shape)
    rows = rows_of(defense)
    parts = 1 + rows.ahead // rows.sent

    def by_tile(values: Array) -> Array:
        if values.ndim == 4:
            return cut_tiles(values, (tile[0], tile[1]))
        return values.reshape(-1, tiles, features).swapaxes(0, 1).reshape(-1, features)

    def together(rows: Array) -> Array:
        return put_tiles_back(rows, grid) if rows.ndim == 4 else side_by_side(rows, tiles)

    def init(rng_key: RngKey, batch_size: int, training: bool) -> _Secret:
        return _Secret(defense.init(rng_key, tiles * batch_size, True))  # rows stay in place

    def in_parts(function: Callable[[Array], Array], values: Array) -> Array:
        """Rows that are sent and those run ahead, which follow these of all tiles."""
        return jnp.concatenate([function(part) for part in jnp.split(values, parts)])

    def protect(secret: _Secret, maps: Array) -> Array:
        return in_parts(together, defense.protect(secret.inner, by_tile(maps)))

    def recover(secret: _Secret, values: Array) -> Array:
        return together(defense.recover(secret.inner, in_parts(by_tile, values)))

    whole_model = model._replace(
        pre=_between(lambda images: images, model.pre, together),
        main=_between(by_tile, model.main, together),
        post=_between(by_tile, model.post, lambda logits: logits),
        spec=dataclasses.replace(
            spec, activation_shape=map_shape, response_shape=(tiles * features,), grid=(1, 1)
        ),
    )
    return whole_model, defense._replace(
        init=init, protect=protect, recover=recover, one_matrix=False
    )


def _between(
    before: Callable[[Array], Array], segment: Segment, after: Callable[[Array], Array]
) -> Segment:
    def apply(variables: Variables, x: Array) -> Array:
        return after(segment.apply(variables, before(x)))

    def train(variables: Variables, x: Array) -> tuple[Array, dict[str, Any]]:
        y, updated = segment.train(variables, before(x))
        return after(y), updated

    return segment._replace(apply=apply, train=train, layers=())
