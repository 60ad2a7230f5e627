"""How attackers are trained: on their own images, protected with a fresh secret in every step."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from facemix_jax import _validate, mixing
from facemix_jax._types import Array, HostArray, RngKey, Variables
from facemix_jax.attacks.base import AttackConfig, Recording, Target, by_group
from facemix_jax.data import normalize
from facemix_jax.defenses import Defense, none, rows_of
from facemix_jax.models import SplitModel

State = TypeVar("State")

_LOOK_EVERY = 20
"""Steps between looks at the loss; a look waits for the device."""


def recovered(target: Target, *, keyless: bool = False) -> Target:
    """The same network without its mixing: what is sent is what the owner recovers.

    That are the activations themselves, unless noise, rounding or the scale of blinded rows stays
    in what the owner recovers: then the defence is played, each image with others of its batch.

    Args:
        target: the system; without a key, the activations themselves are sent.
        keyless: what an attacker has that undoes mixing, instead: blinding stays in, and where the
            matrix leaves the scale open, it is that of ``groups.unmix``.
    """
    defense = target.defense
    if defense.exact or not defense.keyed:
        return dataclasses.replace(target, defense=none())
    differs = rows_of(defense).ahead > 0 or not defense.orthogonal
    return dataclasses.replace(target, defense=_recovered(defense, keyless and differs))


@functools.cache  # a static argument of jitted functions
def _recovered(defense: Defense, keyless: bool) -> Defense:
    size, rows = defense.group_size, rows_of(defense)

    def init(rng_key: RngKey, batch_size: int, training: bool) -> object:
        return defense.init(rng_key, -(-batch_size // size) * size, training)

    def protect(secret: object, z: Array) -> Array:
        sent = defense.protect(secret, mixing.pad_groups(z, size))
        if keyless:
            sent = sent.at[len(sent) * rows.sent // (rows.sent + rows.ahead) :].set(0)
        found = defense.recover(secret, sent)[: len(z)]
        if keyless and not defense.orthogonal:
            sizes = jnp.sqrt(jnp.mean(found**2, axis=(1, 2, 3), keepdims=True))
            found *= jnp.sqrt(jnp.mean(z**2)) / jnp.where(sizes > 0, sizes, 1)
        return found

    return none()._replace(name="recovered", init=init, protect=protect)


def batch_size(config: AttackConfig, group_size: int) -> int:
    """Examples in a step: ``config.batch_size`` rounded up to whole groups."""
    return -(-config.batch_size // group_size) * group_size


def cosine(peak: float, steps: int) -> optax.Schedule:
    """Linear rise over a tenth of the steps, then a cosine to zero."""
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=peak,
        warmup_steps=steps // 10,
        decay_steps=steps,
    )


def mirrored(rng_key: RngKey, images: Array) -> Array:
    """Uint8 ``[B, H, W, 3]``, each mirrored left to right with probability 1/2."""
    flip = jax.random.bernoulli(rng_key, shape=(images.shape[0], 1, 1, 1))
    return jnp.where(flip, images[:, :, ::-1], images)


def protect(
    model: SplitModel, defense: Defense, pre: Variables, rng_key: RngKey, images: Array
) -> Array:
    """What the cloud would see of ``images``: uint8 ``[B, H, W, 3]`` to float32 ``[B, ...]``.

    Rows stay with their group and in order; the secret is a fresh one. ``pre`` are that segment's
    variables. Where a group's images are more than the rows seen of them, see ``_one_each``.
    """
    activations = model.pre(pre, normalize(images)).astype(jnp.float32)
    rows = defense.protect(defense.init(rng_key, images.shape[0], True), activations)
    if defense.rows is None:
        return rows
    num_groups = images.shape[0] // defense.group_size
    sent = mixing.group(rows[: num_groups * defense.rows.sent], defense.rows.sent)
    return _one_each(sent[:, : defense.rows.seen], defense.group_size)


def grouped_mixtures(recording: Recording) -> Array:
    """The recording's mixtures, the rows of each group together: ``[B, ...]`` as ``protect``'s."""
    groups = by_group(recording.view.mixtures, recording)
    return _one_each(groups, len(recording.activations) // len(groups))


def _one_each(groups: Array, size: int) -> Array:
    """Rows ``[G, r, ...]`` and ``size - r`` mixtures of them, in all ``[G * size, ...]``.

    To the attacker a mixture of mixtures is as good as another one: networks that take one row for
    each image lose nothing by it, and give different answers for different rows.
    """
    seen = groups.shape[1]
    if seen < size:
        weights = jax.random.normal(jax.random.key(0), (size - seen, seen))
        weights /= jnp.linalg.norm(weights, axis=1, keepdims=True)
        flat = groups.reshape(len(groups), seen, -1)
        more = jnp.matmul(weights, flat, precision=mixing.PRECISION)
        groups = jnp.concatenate([groups, more.reshape(len(groups), -1, *groups.shape[2:])], axis=1)
    return groups.reshape(-1, *groups.shape[2:])


def train(
    step: Callable[[State, Variables, RngKey, Array, Array], tuple[State, Array]],
    state: State,
    target: Target,
    rows: HostArray,
    labels: HostArray,
    *,
    size: int,
    steps: int,
    rng_key: RngKey,
) -> State:
    """Runs ``step(state, pre, rng_key, images, labels) -> (state, loss)``; returns the last state.

    Args:
        step: jitted; ``pre`` are that segment's variables, which would be compiled into it if it
            took them from ``target``.
        state: before the first step.
        target: whose pre it is, and whose source the images are of.
        rows: int ``[n]``, the attacker's own images; shuffled anew in every pass.
        labels: ``[N, ...]``, for every image of the source.
        size: examples in a step.
        steps: how many.
        rng_key: consumed.

    Raises:
        DataError: the loss is no longer finite.
    """
    order_key, step_key = jax.random.split(rng_key)
    order = batches(rows, size, np.random.default_rng(np.asarray(jax.random.key_data(order_key))))
    for index in range(steps):
        chosen = next(order)
        images = jnp.asarray(target.source.images(chosen))
        fresh_key = jax.random.fold_in(step_key, index)
        state, loss = step(
            state, target.variables["pre"], fresh_key, images, jnp.asarray(labels[chosen])
        )
        if (index + 1) % _LOOK_EVERY == 0 or index + 1 == steps:
            check_loss(float(loss), index + 1)
    return state


def check_loss(loss: float, step: int) -> None:
    """Raises ``DataError`` unless the loss is finite."""
    if not np.isfinite(loss):
        raise _validate.DataError(
            f"The attacker's training diverged: its loss is {loss} after {step} steps. Look for "
            f"NaN or huge values in the network under attack: it may have diverged itself."
        )


def batches(rows: HostArray, size: int, rng: np.random.Generator) -> Iterator[HostArray]:
    """Endless batches of ``size`` rows from one permutation after another."""
    waiting = rows[:0]
    while True:
        while len(waiting) < size:
            waiting = np.concatenate([waiting, rng.permutation(rows)])
        yield waiting[:size]
        waiting = waiting[size:]
