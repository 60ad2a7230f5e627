"""Adversarial separation: unmixing trained until a discriminator takes sources for single images.

The attacker has images of its own, and the public network gives their activations. A
discriminator learns to tell patches of these from patches of the unmixed rows, and every group's
orthogonal matrix learns to deceive it (a trained ICA, after Brakel and Bengio 2017, "Learning
independent features with adversarial nets for non-linear ICA", with the prior of real single
images in place of resampled factors). It needs no assumption on sparsity or sign.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from facemix_jax._types import Array, RngKey
from facemix_jax.attacks import blind
from facemix_jax.attacks.base import AttackConfig, Recording, Target
from facemix_jax.attacks.unmixing import Separation, apply_unmixing, matmul, principal_axes
from facemix_jax.data import normalize

THREAT_MODEL = (
    "knows which mixtures form a group and that the mixing is orthogonal; the public network's "
    "edge part and own images; no key"
)

_SIDE = 3
"""Of a patch, in positions."""

_CHANNELS = 8
"""Principal channel axes that a patch holds; fewer where activations have fewer."""

_HIDDEN = 64
"""Units of the discriminator's two hidden layers."""

_PATCHES = 32
"""Of every row in a step."""

_DISCRIMINATOR_RATE, _ROTATION_RATE = 2e-3, 2e-2
"""Adam's step sizes."""

_AUXILIARY = 256
"""Images of the attacker's own, at most."""

Discriminator = tuple[tuple[Array, Array], ...]
"""Weights ``[in, out]`` and biases ``[out]`` of each layer."""


class _Players(NamedTuple):
    """What is trained.

    Attributes:
        discriminator: its weights.
        angles: float ``[G, M, M]``; a group's unmixing is the Cayley transform of the skew part,
            times its start.
    """

    discriminator: Discriminator
    angles: Array


def separate_adversarially(
    mixtures: Array, singles: Array, *, rng_key: RngKey, steps: int = 1000
) -> Separation:
    """Trains one discriminator and every group's unmixing against each other.

    Args:
        mixtures: float ``[G, M, H, W, C]``, the rows of one group together.
        singles: float ``[N, H, W, C]``, activations of other images, not mixed.
        rng_key: draws starts, weights and patches; consumed.
        steps: of both players in turn.

    Returns:
        The separation; ``converged`` is True throughout, since such a game has no end of its own.
    """
    axes = principal_axes(singles, min(_CHANNELS, singles.shape[-1]))
    mixed, single = (matmul(x.reshape(-1, x.shape[-1]), axes) for x in (mixtures, singles))
    scale = jnp.sqrt((single**2).mean())
    num_groups, group_size = mixtures.shape[:2]
    start_key, weight_key, play_key = jax.random.split(rng_key, 3)
    starts = jax.random.orthogonal(start_key, group_size, (num_groups,))
    inputs = _SIDE * _SIDE * axes.shape[1]
    players = _Players(_discriminator(weight_key, inputs), jnp.zeros_like(starts))
    unmixing = _play(
        (mixed / scale).reshape(*mixtures.shape[:-1], -1),
        (single / scale).reshape(*singles.shape[:-1], -1),
        starts,
        players,
        play_key,
        steps,
    )
    unmixing, sources = jax.vmap(lambda u, m: apply_unmixing(u, m, True))(unmixing, mixtures)
    done = jnp.full(num_groups, steps, jnp.int32)
    return Separation(unmixing, sources, done, jnp.ones(num_groups, bool))


def _prepare(
    target: Target, recording: Recording, rng_key: RngKey, config: AttackConfig
) -> blind.Separate:
    rows = target.source.splits[target.auxiliary_split]
    chosen = np.asarray(jax.random.permutation(rng_key, len(rows)))[:_AUXILIARY]
    images = normalize(target.source.images(np.sort(rows[chosen])))
    singles = target.model.pre(target.variables["pre"], images).astype(jnp.float32)

    def separate(mixtures: Array, *, rng_key: RngKey) -> Separation:
        return separate_adversarially(mixtures, singles, rng_key=rng_key, steps=config.steps)

    return separate


def _unsuitable(target: Target) -> str | None:
    height, width = target.model.spec.activation_shape[:2]
    if min(height, width) >= _SIDE:
        return blind.needs_orthogonal(target)
    return f"The maps are {height} x {width}, smaller than a patch. Attack an earlier cut."


ADVERSARIAL = blind.attack("adversarial", THREAT_MODEL, _prepare, unsuitable=_unsuitable)
"""A trained ICA, grouping granted."""


def _discriminator(rng_key: RngKey, inputs: int) -> Discriminator:
    sizes = inputs, _HIDDEN, _HIDDEN, 1
    keys = jax.random.split(rng_key, len(sizes) - 1)
    return tuple(
        (jax.random.normal(k, (a, b)) * (2 / a) ** 0.5, jnp.zeros(b))
        for k, a, b in zip(keys, sizes[:-1], sizes[1:], strict=True)
    )


def _judge(discriminator: Discriminator, patches: Array) -> Array:
    """Logits ``[N]`` of ``[N, inputs]`` being single."""
    *hidden, last = discriminator
    for weights, bias in hidden:
        patches = jax.nn.leaky_relu(matmul(patches, weights) + bias[None], 0.2)
    return (matmul(patches, last[0]) + last[1][None])[:, 0]


def _rotation(angles: Array, start: Array) -> Array:
    """The Cayley transform of the skew part of ``[M, M]``, times the orthogonal start."""
    skew, eye = angles - angles.T, jnp.eye(len(angles))
    return matmul(jnp.linalg.solve(eye + skew, eye - skew), start)


def _patches(rng_key: RngKey, x: Array, count: int) -> Array:
    """Patches at random positions, the same of all rows: ``[R, H, W, C]`` to ``[R, count, D]``."""
    top_key, left_key = jax.random.split(rng_key)
    tops = jax.random.randint(top_key, (count,), 0, x.shape[1] - _SIDE + 1)
    lefts = jax.random.randint(left_key, (count,), 0, x.shape[2] - _SIDE + 1)
    offsets = jnp.arange(_SIDE)
    rows = (tops[:, None] + offsets[None])[:, :, None]
    columns = (lefts[:, None] + offsets[None])[:, None, :]
    return x[:, rows, columns].reshape(len(x), count, -1)


@functools.partial(jax.jit, static_argnames=("steps",))
def _play(
    mixed: Array, single: Array, starts: Array, players: _Players, rng_key: RngKey, steps: int
) -> Array:
    """Both players in turn; returns the unmixing ``[G, M, M]``."""
    num_groups, size = mixed.shape[:2]
    optimisers = optax.adam(_DISCRIMINATOR_RATE, b1=0.5), optax.adam(_ROTATION_RATE, b1=0.5)

    def unmixed(angles: Array, patches: Array) -> Array:
        sources = matmul(jax.vmap(_rotation)(angles, starts), patches)
        return sources.reshape(-1, mixed.shape[-1] * _SIDE * _SIDE)

    def step(carry: tuple[_Players, Any], index: Array) -> tuple[tuple[_Players, Any], None]:
        players, states = carry
        position_key, row_key = jax.random.split(jax.random.fold_in(rng_key, index))
        patches = jax.vmap(lambda k, x: _patches(k, x, _PATCHES))(
            jax.random.split(position_key, num_groups), mixed
        ).reshape(num_groups, size, -1)
        # As many single patches at positions drawn alike, each group's from M images.
        rows = jax.random.randint(row_key, (num_groups, size), 0, len(single))
        real = jax.vmap(lambda k, r: _patches(k, single[r], _PATCHES))(
            jax.random.split(position_key, num_groups), rows
        ).reshape(-1, mixed.shape[-1] * _SIDE * _SIDE)

        def tell(discriminator: Discriminator) -> Array:
            fake = unmixed(players.angles, patches)
            on_real, on_fake = _judge(discriminator, real), _judge(discriminator, fake)
            return jax.nn.softplus(-on_real).mean() + jax.nn.softplus(on_fake).mean()

        def deceive(angles: Array, discriminator: Discriminator) -> Array:
            return jax.nn.softplus(-_judge(discriminator, unmixed(angles, patches))).mean()

        change, state = optimisers[0].update(jax.grad(tell)(players.discriminator), states[0])
        discriminator = optax.apply_updates(players.discriminator, change)
        slope = jax.grad(deceive)(players.angles, discriminator)
        turn, turn_state = optimisers[1].update(slope, states[1])
        angles = optax.apply_updates(players.angles, turn)
        return (_Players(discriminator, angles), (state, turn_state)), None

    states = optimisers[0].init(players.discriminator), optimisers[1].init(players.angles)
    (players, _), _ = jax.lax.scan(step, (players, states), jnp.arange(steps))
    return jax.vmap(_rotation)(players.angles, starts)
