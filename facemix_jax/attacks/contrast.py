"""Separation by a contrast that is trained for the system under attack.

Independent component analysis maximises a guess at how single images differ from mixtures. The
network and the defence are public, so the attacker can learn the difference instead: a network
that tells from one noisy row how close it is to a single image, trained on rows mixed from its own
images at every degree. The unmixing is then the rotation whose rows look single, found by gradient
ascent from several starts.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from facemix_jax._types import Array, HostArray, RngKey
from facemix_jax.attacks import blind, learning
from facemix_jax.attacks.base import AttackConfig, Recording, Target
from facemix_jax.attacks.groups import auxiliary_by_tile, noise_of
from facemix_jax.attacks.unmixing import Separation, matmul, nearest_orthogonal, principal_axes

THREAT_MODEL = (
    "knows which mixtures form a group and that the mixing is orthogonal; trains on own images "
    "protected by the public defence; no key"
)

_AUXILIARY = 4096
"""The attacker's own images."""

_AXES = 160
"""Directions of a row, the same for all mixtures, that the network sees."""

_HIDDEN = 512
_STARTS = 6
_ASCENT_STEPS = 300
_LARGEST_TURN = 0.3
"""Of a row in the first step; falls to zero."""

_STEPS_FACTOR = 5
"""Training steps for each of ``AttackConfig.steps``: these are far cheaper than a network's."""


class Contrast(NamedTuple):
    """A trained contrast.

    Attributes:
        axes: float32 ``[T, P, D]``, directions of a tile's row.
        scale: float32 ``[T, D]``, root mean square along them.
        layers: weights and biases.
    """

    axes: Array
    scale: Array
    layers: tuple[tuple[Array, Array], ...]


def purity(contrast: Contrast, rows: Array, tile: Array) -> Array:
    """Logits ``[...]`` of rows ``[..., D]`` along the axes being one image.

    Args:
        contrast: trained.
        rows: float32.
        tile: int, which tile all of them are.
    """
    place = jnp.broadcast_to(
        jax.nn.one_hot(tile, len(contrast.axes)), (*rows.shape[:-1], len(contrast.axes))
    )
    x = jnp.concatenate([rows / contrast.scale[tile], 2 * place], axis=-1)
    first, second, last = contrast.layers
    x = jax.nn.silu(matmul(x, first[0]) + first[1])
    x = x + jax.nn.silu(matmul(x, second[0]) + second[1])
    return (matmul(x, last[0]) + last[1])[..., 0]


def train(target: Target, rng_key: RngKey, *, steps: int, batch_size: int = 1024) -> Contrast:
    """Trains the network on rows of ``M`` of the attacker's own images, mixed to any degree.

    The noise is what the public defence adds: the difference between what the owner recovers of a
    rehearsal and the truth.

    Args:
        target: the system.
        rng_key: consumed.
        steps: of training.
        batch_size: rows in a step.
    """
    record_key, init_key, step_key = jax.random.split(rng_key, 3)
    group_size, tiles = target.defense.group_size, target.model.spec.tiles
    own = auxiliary_by_tile(target, _AUXILIARY)
    count = min(_AXES, *own.shape[1:])
    axes = jnp.stack([principal_axes(jnp.asarray(rows), count) for rows in own])
    rows = jnp.einsum("tnp,tpd->tnd", jnp.asarray(own), axes, precision="highest")
    noise = noise_of(target, record_key)
    scale = jnp.sqrt((rows**2).mean(1) + noise**2)
    contrast = Contrast(axes, scale, _init(init_key, axes.shape[2] + tiles))
    optimizer = optax.adam(learning.cosine(1e-3, steps))
    state = optimizer.init(contrast.layers)
    loss = jnp.float32(0)
    for index in range(steps):
        fresh_key = jax.random.fold_in(step_key, index)
        contrast, state, loss = _step(
            contrast, state, rows, fresh_key, noise, group_size, batch_size, optimizer.update
        )
    learning.check_loss(float(loss), steps)
    return contrast


def separate_by_contrast(
    contrast: Contrast, mixtures: Array, *, tiles: HostArray, rng_key: RngKey
) -> Separation:
    """Turns every group until its rows look single.

    Args:
        contrast: trained for the system.
        mixtures: float ``[G, M, h, w, C]``.
        tiles: int ``[G]``, which tile each group is of.
        rng_key: draws the starts; consumed.
    """
    groups, size = mixtures.shape[:2]
    starts = jax.random.orthogonal(rng_key, size, (groups, _STARTS))
    flat = mixtures.astype(jnp.float32).reshape(groups, size, -1)
    unmixing = _ascend(contrast, flat, jnp.asarray(tiles), starts)
    sources = matmul(unmixing, flat)
    sign = jnp.where(sources.max(2) + sources.min(2) < 0, -1.0, 1.0)[..., None]
    steps = jnp.full(groups, _ASCENT_STEPS, jnp.int32)
    return Separation(
        sign * unmixing, (sign * sources).reshape(mixtures.shape), steps, jnp.ones(groups, bool)
    )


def tile_of_group(target: Target, groups: int) -> HostArray:
    """Int ``[G]``: which tile each group of a recording is of."""
    tiles = target.model.spec.tiles
    return np.arange(groups) // (groups // tiles)


def _prepare(
    target: Target, recording: Recording, rng_key: RngKey, config: AttackConfig
) -> blind.Separate:
    contrast = train(target, rng_key, steps=_STEPS_FACTOR * config.steps)

    def separate(mixtures: Array, *, rng_key: RngKey) -> Separation:
        tiles = tile_of_group(target, len(mixtures))
        return separate_by_contrast(contrast, mixtures, tiles=tiles, rng_key=rng_key)

    return separate


def _unsuitable(target: Target) -> str | None:
    if target.model.spec.tiles > 1:
        return blind.needs_orthogonal(target)
    return "The maps are whole and have samples enough for separation without training."


CONTRAST = blind.attack("contrast", THREAT_MODEL, _prepare, unsuitable=_unsuitable)
"""A trained contrast for each tile, grouping granted."""


def _init(rng_key: RngKey, inputs: int) -> tuple[tuple[Array, Array], ...]:
    sizes = inputs, _HIDDEN, _HIDDEN, 1
    keys = jax.random.split(rng_key, 3)
    return tuple(
        (jax.random.normal(k, (a, b)) * (2 / a) ** 0.5, jnp.zeros(b))
        for k, a, b in zip(keys, sizes[:-1], sizes[1:], strict=True)
    )


@functools.partial(jax.jit, static_argnames=("group_size", "batch_size", "update"))
def _step(
    contrast: Contrast,
    state: Any,
    rows: Array,
    rng_key: RngKey,
    noise: float | Array,
    group_size: int,
    batch_size: int,
    update: Callable[..., Any],
) -> tuple[Contrast, Any, Array]:
    tiles, count, _ = rows.shape
    who_key, tile_key, weight_key, power_key, noise_key = jax.random.split(rng_key, 5)
    who = jax.random.randint(who_key, (batch_size, group_size), 0, count)
    tile = jax.random.randint(tile_key, (batch_size,), 0, tiles)
    # Powers of Gaussian weights: from a Haar row (power 1) to almost a single image.
    drawn = jax.random.normal(weight_key, (batch_size, group_size))
    power = jax.random.uniform(power_key, (batch_size, 1), minval=1.0, maxval=8.0)
    size = power * jnp.log(jnp.abs(drawn) + 1e-6)
    norm = jax.nn.logsumexp(2 * size, axis=1, keepdims=True) / 2
    weights = jnp.sign(drawn) * jnp.exp(size - norm)
    mixed = jnp.einsum("bm,bmd->bd", weights, rows[tile[:, None], who])
    mixed = mixed + noise * jax.random.normal(noise_key, mixed.shape)
    # The fourth powers of a row of length one sum to 1 only for a single image.
    largest = jnp.take_along_axis(weights, jnp.argmax(jnp.abs(weights), 1)[:, None], 1)[:, 0]
    wanted = jnp.where(largest > 0, (weights**4).sum(1), 0.0)

    def loss_of(layers: tuple[tuple[Array, Array], ...]) -> Array:
        trained = contrast._replace(layers=layers)
        logits = jax.vmap(purity, (None, 0, 0))(trained, mixed, tile)
        return optax.sigmoid_binary_cross_entropy(logits, wanted).mean()

    loss, slope = jax.value_and_grad(loss_of)(contrast.layers)
    change, state = update(slope, state)
    return contrast._replace(layers=optax.apply_updates(contrast.layers, change)), state, loss


@jax.jit
def _ascend(contrast: Contrast, flat: Array, tiles: Array, starts: Array) -> Array:
    """The best of the starts after the ascent, ``[G, M, M]``."""
    turns = jnp.linspace(_LARGEST_TURN, 0.0, _ASCENT_STEPS, endpoint=False)

    def one_group(group: tuple[Array, Array, Array]) -> Array:
        mixture, tile, group_starts = group
        rows = matmul(mixture, contrast.axes[tile])

        def score(unmixed: Array) -> Array:
            return jax.nn.sigmoid(purity(contrast, unmixed, tile)).sum()

        def improve(carry: tuple[Array, Array], largest: Array) -> tuple[tuple[Array, Array], None]:
            rotation, momentum = carry
            unmixed = matmul(rotation, rows)
            slope = matmul(jax.grad(score)(unmixed), unmixed.T)
            momentum = 0.9 * momentum + 0.1 * (slope - slope.T) / 2
            length = jnp.sqrt((momentum**2).sum() / len(rotation)) + 1e-9
            turn = momentum / length * largest
            turned = rotation + matmul(turn, rotation) + matmul(turn, matmul(turn, rotation)) / 2
            closest = nearest_orthogonal(turned)
            # NaN came out once on a busy machine, and never again: the rotation stays as it was.
            return (jnp.where(jnp.isfinite(closest).all(), closest, rotation), momentum), None

        def ascend(start: Array) -> tuple[Array, Array]:
            first = start, jnp.zeros_like(start)
            (rotation, _), _ = jax.lax.scan(improve, first, turns)
            return rotation, score(matmul(rotation, rows))

        rotations, scores = jax.vmap(ascend)(group_starts)
        return rotations[jnp.argmax(scores)]

    return jax.lax.map(one_group, (flat, tiles, starts))
