"""Faces from what the cloud sees, by Pix2Pix: the paper's attack (section 4, figure 5), given more.

The ``M`` mixtures of a group, stacked on channels and brought to the images' size, are the
condition; the ``M`` faces are the drawing. The paper's attacker cannot tell which rows form a
group and draws all ``M`` faces from one mixture (equation 10): this one is the stronger. The order
of faces is unknown, so the L1 loss of Pix2Pix becomes the paper's Chamfer objective, and scores are
taken after optimal matching.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from facemix_jax import metrics, mixing
from facemix_jax._types import Array, HostArray, ImageSize, RngKey, Variables
from facemix_jax.attacks import learning
from facemix_jax.attacks.base import Attack, AttackConfig, Figure, Recording, Result, Target
from facemix_jax.defenses import Defense
from facemix_jax.models import SplitModel
from facemix_jax.models.pix2pix import Network, patch_discriminator, unet

THREAT_MODEL = (
    "knows pre's weights, the defence's algorithm and which rows form a group, no key; has images "
    "of other people"
)

_LEARNING_RATE = 1e-3
_CHAMFER_WEIGHT = 100.0
"""Of ``chamfer``, a mean, against the adversarial term: Isola et al.'s (2017) of their L1 term."""

_FEATURES = 32
"""Of both networks' first level; half of the original's, for training on a CPU."""


class _State(NamedTuple):
    """Parameters and optimiser states of generator and discriminator."""

    generator: dict[str, Any]
    discriminator: dict[str, Any]
    opt_states: tuple[Any, Any]


def chamfer(x: Array, y: Array) -> Array:
    """Mean absolute error to the nearest face, both ways, averaged; of groups of one, the L1 loss.

    It is the paper's loss, which sums over faces and pixels, divided by ``2 M H W 3``.

    Args:
        x: float ``[G, M, H, W, 3]``.
        y: float ``[G, M, H, W, 3]``, in any order.
    """
    # A minimum's gradient is that of the chosen element, so choosing needs none, and no
    # [G, M, M, pixels] array has to be kept for it.
    distances = jax.lax.stop_gradient(
        jnp.stack([jnp.abs(x - y[:, i : i + 1]).mean((2, 3, 4)) for i in range(y.shape[1])], 2)
    )

    def nearest(of: Array, axis: int) -> Array:
        index = jnp.argmin(distances, axis=axis)[:, :, None, None, None]
        return jnp.take_along_axis(of, index, axis=1)

    return (jnp.abs(x - nearest(y, 2)).mean() + jnp.abs(y - nearest(x, 1)).mean()) / 2


def condition(z: Array, group_size: int, image_size: ImageSize) -> Array:
    """Activations ``[B, h, w, C]``, groups together, to ``[B / M, H, W, M C]``."""
    stacked = _stack(mixing.group(z, group_size))
    shape = (stacked.shape[0], *image_size, stacked.shape[-1])
    return jax.image.resize(stacked, shape, "bilinear")


def _stack(groups: Array) -> Array:
    """``[G, M, H, W, C]`` to ``[G, H, W, M C]``."""
    return jnp.moveaxis(groups, 1, 3).reshape(groups.shape[0], *groups.shape[2:4], -1)


def _unstack(stacked: Array, group_size: int) -> Array:
    """The inverse of ``_stack``."""
    return jnp.moveaxis(stacked.reshape(*stacked.shape[:3], group_size, -1), 3, 1)


def _draw(
    target: Target, rows: HostArray, seen: Array, rng_key: RngKey, *, steps: int, drawings: int
) -> HostArray:
    """Trains Pix2Pix for the target's defence, and draws the faces behind ``seen``.

    Args:
        target: the system; its group size is that of the drawing.
        rows: the attacker's own images.
        seen: ``[B, h, w, C]``, groups together.
        rng_key: consumed.
        steps: of training.
        drawings: groups in a step.

    Returns:
        float32 ``[B, H, W, 3]`` in [-1, 1], groups together.
    """
    group_size, image_size = target.defense.group_size, target.source.image_size
    generator, discriminator = _networks(group_size)
    optimizer = _optimizer(steps)

    def step(
        state: _State, pre: Variables, rng_key: RngKey, images: Array, labels: Array
    ) -> tuple[_State, Array]:
        faces, z = _seen(target.model, target.defense, pre, rng_key, images)
        return _improve(group_size, steps, state, faces, z)

    generator_key, discriminator_key, train_key = jax.random.split(rng_key, 3)
    channels = group_size * target.model.spec.activation_shape[-1]
    shape = jax.ShapeDtypeStruct((1, *image_size, channels), jnp.float32)
    judged = jax.ShapeDtypeStruct((1, *image_size, channels + 3 * group_size), jnp.float32)
    drawing = generator.init(generator_key, shape)
    judging = discriminator.init(discriminator_key, judged)
    size = drawings * group_size
    state = learning.train(
        step,
        _State(drawing, judging, (optimizer.init(drawing), optimizer.init(judging))),
        target,
        rows,
        np.zeros(len(target.source), np.int8),
        size=size,
        steps=steps,
        rng_key=train_key,
    )
    padded = mixing.pad_groups(seen, size)
    parts = [
        _apply(group_size, image_size, state.generator, padded[i : i + size])
        for i in range(0, len(padded), size)
    ]
    faces = np.concatenate([np.asarray(part).reshape(-1, *image_size, 3) for part in parts])
    return faces[: len(seen)]


def _networks(group_size: int) -> tuple[Network, Network]:
    """Generator and discriminator of a group's faces."""
    generator = unet(channels=3 * group_size, features=_FEATURES)
    return generator, patch_discriminator(features=_FEATURES)


def _optimizer(steps: int) -> optax.GradientTransformation:
    return optax.adam(learning.cosine(_LEARNING_RATE, steps), b1=0.5)


# What is seen is computed apart, so that the networks' step is compiled once for all defences.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _seen(
    model: SplitModel, defense: Defense, pre: Variables, rng_key: RngKey, images: Array
) -> tuple[Array, Array]:
    """Mirrored images and what the cloud sees of them."""
    flip_key, secret_key = jax.random.split(rng_key)
    images = learning.mirrored(flip_key, images)
    return images, learning.protect(model, defense, pre, secret_key, images)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _improve(
    group_size: int, steps: int, state: _State, images: Array, z: Array
) -> tuple[_State, Array]:
    """One step of ``steps`` on uint8 images ``[B, H, W, 3]`` and ``[B, h, w, C]``."""
    generator, discriminator = _networks(group_size)
    optimizer = _optimizer(steps)
    given = condition(z, group_size, (images.shape[1], images.shape[2]))
    faces = mixing.group(images.astype(jnp.float32) / 127.5 - 1.0, group_size)

    def bce(logits: Array, real: bool) -> Array:
        return optax.sigmoid_binary_cross_entropy(logits, jnp.full_like(logits, real)).mean()

    def judge(variables: dict[str, Any], drawn: Array) -> Array:
        return discriminator.apply(variables, jnp.concatenate([given, drawn], axis=-1))

    def generator_loss(variables: dict[str, Any]) -> tuple[Array, Array]:
        drawn = generator.apply(variables, given)
        loss = _CHAMFER_WEIGHT * chamfer(faces, _unstack(drawn, group_size))
        return loss + bce(judge(state.discriminator, drawn), True), drawn

    (loss, drawn), for_generator = jax.value_and_grad(generator_loss, has_aux=True)(state.generator)

    def discriminator_loss(variables: dict[str, Any]) -> Array:
        # Halved, as in the original: the discriminator is not to run ahead.
        real = bce(judge(variables, _stack(faces)), True)
        return (real + bce(judge(variables, drawn), False)) / 2

    for_discriminator = jax.grad(discriminator_loss)(state.discriminator)
    updates, first = optimizer.update(for_generator, state.opt_states[0])
    drawing = optax.apply_updates(state.generator, updates)
    updates, second = optimizer.update(for_discriminator, state.opt_states[1])
    judging = optax.apply_updates(state.discriminator, updates)
    return _State(drawing, judging, (first, second)), loss


@functools.partial(jax.jit, static_argnums=(0, 1))
def _apply(group_size: int, image_size: ImageSize, variables: dict[str, Any], z: Array) -> Array:
    """Faces ``[G, M, H, W, 3]`` behind ``[B, h, w, C]``."""
    generator, _ = _networks(group_size)
    return _unstack(generator.apply(variables, condition(z, group_size, image_size)), group_size)


def _match(drawn: HostArray, truth: HostArray, group_size: int) -> HostArray:
    """``drawn`` in the order of ``truth``, group by group; both ``[B, H, W, 3]``."""
    pairs = (x.reshape(-1, group_size, *x.shape[1:]) for x in (drawn, truth))
    matched = [d[metrics.assignment(d, t)] for d, t in zip(*pairs, strict=True)]
    return np.concatenate(matched)


def _score(drawn: HostArray, truth: HostArray) -> float:
    return -float(((drawn - truth) ** 2).mean(dtype=np.float64))


def _run(target: Target, recording: Recording, rng_key: RngKey, config: AttackConfig) -> Result:
    rows = target.source.splits[target.auxiliary_split]
    group_size = target.defense.group_size
    train_key, guess_key = jax.random.split(rng_key)
    truth = _to_unit(recording.images)
    # The owner draws faces one by one, and as many in a step as the attacker draws groups.
    draw = functools.partial(
        _draw,
        rng_key=train_key,
        steps=config.steps,
        drawings=learning.batch_size(config, group_size) // group_size,
    )

    drawn = draw(target, rows, learning.grouped_mixtures(recording))
    matched = _match(drawn, truth, group_size)
    value = _score(matched, truth)
    owner = value
    if target.defense.keyed:
        owned = learning.recovered(target)
        owner = _score(draw(owned, rows, recording.owner_activations), truth)

    rng = np.random.default_rng(np.asarray(jax.random.key_data(guess_key)))
    others = _to_unit(np.asarray(target.source.images(rng.choice(rows, len(truth)))))
    figure = Figure(
        "minus mean squared error of faces in [-1, 1], matched",
        value,
        _score(np.broadcast_to(mean_face(target), truth.shape), truth),
        owner,
        THREAT_MODEL,
        _score(_match(others, truth, group_size), truth),
    )
    return Result((figure,), (matched + 1) / 2)


def mean_face(target: Target) -> HostArray:
    """The mean of the attacker's own images, float32 ``[H, W, 3]`` in [-1, 1]."""
    rows = target.source.splits[target.auxiliary_split]
    total = np.zeros((*target.source.image_size, 3), np.float64)
    for start in range(0, len(rows), 1024):
        total += np.asarray(target.source.images(rows[start : start + 1024])).sum(0, np.float64)
    return _to_unit(total / len(rows))


def _to_unit(images: HostArray) -> HostArray:
    """[0, 255] to float32 [-1, 1]."""
    return (images / 127.5 - 1).astype(np.float32)


PIX2PIX = Attack("pix2pix", THREAT_MODEL, _run, fewer_rows=True)
