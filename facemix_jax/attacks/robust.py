"""The best of several separations, chosen in rehearsals on the attacker's own images.

Noise on mixtures is the same in all directions, faces are not: they live in few channel axes, and
neighbouring positions agree. Mixing commutes with every filter over positions and channels, so
that the unmixing can be estimated from filtered mixtures with far less noise. How much to filter,
and whether nonnegativity or sparse gradients serve better, depends on the network, the cut and
the noise, which are public: the attacker plays the defence on images of its own with fresh
secrets and takes what does best there.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from facemix_jax._types import Array, RngKey
from facemix_jax.attacks import blind, nonnegative
from facemix_jax.attacks.base import AttackConfig, Recording, Target, by_group, record
from facemix_jax.attacks.nonnegative import separate_nonnegative
from facemix_jax.attacks.separation import separation_of
from facemix_jax.attacks.unmixing import Separation, matmul, principal_axes

THREAT_MODEL = (
    "knows which mixtures form a group and whether the mixing is orthogonal; the public network "
    "and defence and own images to rehearse on; no key"
)

_REHEARSED = 4
"""Groups of the attacker's own images."""

_FILTERS = ((1, None), (1, 8), (2, 4), (2, 8), (3, 4))
"""Positions averaged in each direction, and channel axes kept; None for all."""


class Choice(NamedTuple):
    """What the rehearsals said.

    Attributes:
        separate: the best separation.
        name: what it is, such as ``nonnegative, 2 x 2 positions, 4 channel axes``.
        rehearsed: every candidate's mean matched |correlation| on the attacker's own images.
    """

    separate: blind.Separate
    name: str
    rehearsed: dict[str, float]


def filtered(mixtures: Array, positions: int, channel_axes: int | None) -> Array:
    """Averages over positions and keeps the channel axes with most energy.

    Args:
        mixtures: float ``[G, M, H, W, C]``.
        positions: side of the square that is averaged; at most the map's.
        channel_axes: how many are kept, of all groups together; None for all.

    Returns:
        ``[G, M, h, w, C]`` in the original channels, where nonnegative images stay about that.
    """
    if channel_axes is not None and channel_axes < mixtures.shape[-1]:
        axes = principal_axes(mixtures, channel_axes)
        flat = matmul(matmul(mixtures.reshape(-1, mixtures.shape[-1]), axes), axes.T)
        mixtures = flat.reshape(mixtures.shape)
    window = 1, 1, positions, positions, 1
    total = jax.lax.reduce_window(mixtures, 0.0, jax.lax.add, window, (1,) * 5, "VALID")
    return total / positions**2


def choose(target: Target, rng_key: RngKey) -> Choice:
    """Rehearses every candidate on the auxiliary images and returns the best.

    Args:
        target: the system; its auxiliary images are the attacker's own.
        rng_key: draws the rehearsal's secret and starts; consumed.
    """
    record_key, separate_key = jax.random.split(rng_key)
    group_size = target.defense.group_size
    rows = target.source.splits[target.auxiliary_split]
    count = max(1, min(_REHEARSED, len(rows) // group_size)) * group_size
    own = record(target, rows[:count], rng_key=record_key)
    candidates = _candidates(target)
    rehearsed = {}
    for name, candidate in candidates.items():
        found = candidate(by_group(own.view.mixtures, own), rng_key=separate_key)
        rehearsed[name] = blind.score(own, found.sources, THREAT_MODEL).figures[0].value
    best = max(rehearsed, key=lambda name: rehearsed[name])
    return Choice(candidates[best], best, rehearsed)


def _candidates(target: Target) -> dict[str, blind.Separate]:
    height, width, channels = target.model.spec.activation_shape
    kinds: dict[str, Callable[..., Separation]] = {"gradient ICA": separation_of(target)}
    if target.defense.orthogonal and nonnegative.are_nonnegative(target) is None:
        kinds["nonnegative"] = separate_nonnegative
    candidates: dict[str, blind.Separate] = {}
    for positions, wanted in _FILTERS:
        if positions > 1 and positions >= min(height, width):
            continue
        axes = wanted if wanted is not None and wanted < channels else None
        for kind, function in kinds.items():
            name = f"{kind}, {positions} x {positions} positions, {axes or channels} channel axes"
            candidates[name] = functools.partial(_filter_first, function, positions, axes)
    return candidates


def _filter_first(
    function: Callable[..., Separation],
    positions: int,
    channel_axes: int | None,
    mixtures: Array,
    *,
    rng_key: RngKey,
) -> Separation:
    mixtures = mixtures.astype(jnp.float32)
    evidence = filtered(mixtures, positions, channel_axes)
    return function(mixtures, rng_key=rng_key, evidence=evidence)


def _prepare(
    target: Target, recording: Recording, rng_key: RngKey, config: AttackConfig
) -> blind.Separate:
    return choose(target, rng_key).separate


ROBUST = blind.attack("robust", THREAT_MODEL, _prepare, any_rows=True)
"""The strongest separation of whole maps behind the image that is known here, grouping granted.

On tiles and on images others may be stronger: ``suite.ON_TILES``, ``suite.ON_IMAGES``.
"""
