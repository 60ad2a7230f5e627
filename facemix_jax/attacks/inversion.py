"""From activations at the cut back to images, through the public pre-model.

Two ways: optimisation of pixels until the pre-model gives the activations, kept smooth by total
variation (He, Zhang and Lee 2019), which needs nothing but the model; and a decoder trained on
the attacker's own images, which is much faster for many pictures. Before either, separation
gives the activations, in their true scale where mixing is orthogonal.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from facemix_jax import _validate
from facemix_jax._types import Array, HostArray, RngKey, Variables
from facemix_jax.attacks.base import (
    Attack,
    AttackConfig,
    Figure,
    Recording,
    Result,
    Target,
    by_group,
    truth_by_group,
)
from facemix_jax.attacks.decoder_network import decoder
from facemix_jax.attacks.groups import (
    activations,
    correlation,
    in_order,
    match,
    noise_of,
    unmix,
)
from facemix_jax.attacks.learning import protect
from facemix_jax.data import denormalize, normalize
from facemix_jax.defenses import none
from facemix_jax.metrics import psnr, ssim
from facemix_jax.models import SplitModel

THREAT_MODEL = (
    "knows which mixtures form a group, the public pre-model and defence and images of its own, on "
    "which it trains a decoder, and rehearses separations where noise, blinding or rounding stays; "
    "no key"
)

_SCALES = (0.9, 1.1)
"""Of activations in training: separation gets their length right to a few percent."""

_NOISE = 0.1
"""Largest noise in training, in standard deviations: what other images leave behind."""

_LEARNING_RATE = 2e-3
_CHUNK = 64


def invert_by_optimization(
    model: SplitModel,
    pre_variables: Variables,
    activations: Array,
    *,
    steps: int = 300,
    total_variation: float = 1.0,
    learning_rate: float = 0.2,
) -> HostArray:
    """Images whose activations are the given ones, found by gradient descent on pixels.

    Minimises ``|pre(x) - z|^2 / |z|^2 + total_variation * TV(x)`` with Adam from mid grey, where
    ``TV`` is the mean absolute difference of neighbouring pixels in [0, 1].

    Args:
        model: gives the public pre-model.
        pre_variables: its weights.
        activations: float ``[B, h, w, c]``, in true scale and sign.
        steps: of Adam.
        total_variation: weight of smoothness.
        learning_rate: of Adam on logits of pixels.

    Returns:
        float32 ``[B, H, W, 3]`` in [0, 1].

    Raises:
        UsageError: activations of another shape, or an option out of range.
    """
    _validate.positive(steps=steps, learning_rate=learning_rate)
    _validate.in_range(0.0, float("inf"), total_variation=total_variation)
    if activations.shape[1:] != model.spec.activation_shape:
        raise _validate.UsageError(
            f"activations have shape {activations.shape}, but this model's cut has "
            f"[B, {', '.join(map(str, model.spec.activation_shape))}]. Pass activations of the cut."
        )
    optimizer = optax.adam(learning_rate)
    logits = jnp.zeros((len(activations), *model.spec.image_size, 3))
    state = optimizer.init(logits)
    step = _pixel_step(model, optimizer, total_variation)
    for _ in range(steps):  # a scan over convolutions is many times slower on a CPU
        logits, state = step(pre_variables, activations.astype(jnp.float32), logits, state)
    return np.asarray(jax.nn.sigmoid(logits))


def _pixel_step(
    model: SplitModel, optimizer: Any, total_variation: float
) -> Callable[..., tuple[Array, Any]]:
    def loss(logits: Array, variables: Variables, wanted: Array) -> Array:
        x = jax.nn.sigmoid(logits)
        error = jnp.square(model.pre(variables, normalize(255.0 * x)) - wanted).sum((1, 2, 3))
        energy = jnp.maximum(jnp.square(wanted).sum((1, 2, 3)), 1e-6)
        rough = jnp.abs(jnp.diff(x, axis=1)).mean((1, 2, 3))
        rough += jnp.abs(jnp.diff(x, axis=2)).mean((1, 2, 3))
        # A sum: each image has its own problem, whatever the batch.
        return (error / energy + total_variation * rough).sum()

    @jax.jit
    def step(variables: Variables, wanted: Array, logits: Array, state: Any) -> tuple[Array, Any]:
        gradient = jax.grad(loss)(logits, variables, wanted)
        update, state = optimizer.update(gradient, state)
        return optax.apply_updates(logits, update), state

    return step


class Inverter(NamedTuple):
    """Turns activations into images.

    Attributes:
        invert: float ``[B, h, w, c]`` to float32 ``[B, H, W, 3]`` in [0, 1].
        losses: mean absolute error in training, step by step; empty where nothing was trained.
    """

    invert: Callable[[Array | HostArray], HostArray]
    losses: tuple[float, ...]


def train_decoder(
    target: Target,
    *,
    steps: int,
    batch_size: int,
    rng_key: RngKey,
    most_noise: float = _NOISE,
) -> Inverter:
    """Trains a decoder on activations of auxiliary images, slightly scaled and with noise.

    They are clean ones but for ``most_noise``, as separation gives those back, unless the defence
    has no key: then they are perturbed as it perturbs. Where pre is nothing at all (cut 0 without
    parameters), clean activations are normalised pixels and nothing needs training.

    Args:
        target: gives the public pre-model and the attacker's own images.
        steps: of Adam, with cosine decay.
        batch_size: images in a step.
        rng_key: consumed.
        most_noise: largest noise in training, in standard deviations of activations.
    """
    defense = target.defense if not target.defense.keyed else none()
    if defense.name == "none" and _sends_pixels(target):
        return Inverter(_pixels, ())
    network = decoder(target.model.spec.image_size)
    auxiliary = target.source.splits[target.auxiliary_split]
    seed_key, init_key, noise_key = jax.random.split(rng_key, 3)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(seed_key)))
    scale = activations(target, np.asarray(target.source.images(auxiliary[:_CHUNK]))).std()

    optimizer = optax.adam(optax.cosine_decay_schedule(_LEARNING_RATE, steps))
    shape = jax.ShapeDtypeStruct((1, *target.model.spec.activation_shape), jnp.float32)
    variables = network.init(init_key, shape)
    state = optimizer.init(variables)

    def loss(variables: Variables, z: Array, images: Array) -> Array:
        return jnp.abs(network.apply(variables, z) - images).mean()

    @jax.jit
    def step(
        variables: Any, state: Any, pre: Variables, images: Array, step_key: RngKey
    ) -> tuple[Any, Any, Array]:
        scale_key, level_key, draw_key, protect_key = jax.random.split(step_key, 4)
        z = protect(target.model, defense, pre, protect_key, images)
        one = (len(z), 1, 1, 1)
        z = z * jax.random.uniform(scale_key, one, minval=_SCALES[0], maxval=_SCALES[1])
        level = jax.random.uniform(level_key, one, maxval=most_noise * float(scale))
        z = z + level * jax.random.normal(draw_key, z.shape)
        value, gradient = jax.value_and_grad(loss)(variables, z, images.astype(jnp.float32) / 255.0)
        update, state = optimizer.update(gradient, state)
        return optax.apply_updates(variables, update), state, value

    losses = []
    for index in range(steps):
        rows = np.sort(rng.choice(auxiliary, min(batch_size, len(auxiliary)), replace=False))
        variables, state, value = step(
            variables,
            state,
            target.variables["pre"],
            jnp.asarray(target.source.images(rows)),
            jax.random.fold_in(noise_key, index),
        )
        losses.append(float(value))
    apply = jax.jit(network.apply)

    def invert(z: Array | HostArray) -> HostArray:
        chunks = np.array_split(np.asarray(z, np.float32), -(-len(z) // _CHUNK))
        return np.concatenate([np.asarray(apply(variables, chunk)) for chunk in chunks])

    return Inverter(invert, tuple(losses))


def _sends_pixels(target: Target) -> bool:
    return not jax.tree.leaves(target.variables["pre"])


def _pixels(z: Array | HostArray) -> HostArray:
    return np.clip(np.asarray(denormalize(z)), 0.0, 1.0)


class Inverted(NamedTuple):
    """Images float32 ``[B, H, W, 3]`` in [0, 1], in the order of the examples.

    Attributes:
        attacker: separation, then the decoder.
        floor: the decoder on the mixtures themselves, with the better sign; of images perturbed
            without a key, these themselves.
        owner: the decoder on what the owner recovers.
        blind: the mean auxiliary image, for every row: what a guess gives.
    """

    attacker: HostArray
    floor: HostArray
    owner: HostArray
    blind: HostArray


def invert_recording(
    target: Target, recording: Recording, *, rng_key: RngKey, config: AttackConfig
) -> Inverted:
    """Separates and inverts one recording.

    Args:
        target: the system.
        recording: its view and groups are attacked; its activations only order the images.
        rng_key: consumed.
        config: steps and batch size of the decoder.
    """
    unmix_key, decoder_key = jax.random.split(rng_key)
    most_noise = _NOISE
    if target.defense.keyed and not target.defense.exact:
        noise = noise_of(target, jax.random.fold_in(rng_key, 2))
        most_noise += noise / float(jnp.std(recording.activations))
    inverter = train_decoder(
        target,
        steps=config.steps,
        batch_size=config.batch_size,
        rng_key=decoder_key,
        most_noise=most_noise,
    )
    truth = truth_by_group(recording.activations, recording)
    sources = unmix(target, recording, rng_key=unmix_key).sources
    sent = by_group(recording.view.mixtures, recording)
    mixtures = in_order(sent, match(sent, truth))
    # The floor is granted the sign: a mixture alone does not show it.
    agreement = (mixtures * np.asarray(recording.activations)).sum((1, 2, 3), keepdims=True)
    as_sent = _sends_pixels(target) and not target.defense.keyed
    return Inverted(
        inverter.invert(in_order(sources, match(sources, truth))),
        (_pixels if as_sent else inverter.invert)(np.where(agreement < 0, -mixtures, mixtures)),
        inverter.invert(recording.owner_activations),
        np.broadcast_to(mean_image(target), recording.images.shape),
    )


def mean_image(target: Target) -> HostArray:
    """Of the attacker's own, float32 ``[H, W, 3]`` in [0, 1]."""
    auxiliary = target.source.splits[target.auxiliary_split][:512]
    mean = np.asarray(target.source.images(auxiliary)).mean(0, dtype=np.float64) / 255.0
    return mean.astype(np.float32)


def image_scores(images: HostArray, truth: HostArray) -> dict[str, float]:
    """Mean PSNR, SSIM and |Pearson correlation| of images in [0, 1] with the true ones."""
    return {
        "PSNR of the images [dB]": float(np.minimum(psnr(images, truth), _BEST_PSNR).mean()),
        "SSIM of the images": float(ssim(images, truth).mean()),
        "mean |correlation| of the images": float(correlation(images, truth).mean()),
    }


_BEST_PSNR = 60.0
"""Exact images have an infinite one; beyond 8 bits nothing is left to see."""


def _inversion(
    target: Target, recording: Recording, rng_key: RngKey, config: AttackConfig
) -> Result:
    """PSNR, SSIM and correlation of the pictures that the attacker, floor and owner make."""
    inverted = invert_recording(target, recording, rng_key=rng_key, config=config)
    truth = (recording.images / np.float32(255)).astype(np.float32)
    attacker, floor, owner, blind = (image_scores(images, truth) for images in inverted)
    figures = tuple(
        Figure(name, attacker[name], floor[name], owner[name], THREAT_MODEL, chance=blind[name])
        for name in attacker
    )
    return Result(figures, inverted.attacker)


INVERSION = Attack("inversion", THREAT_MODEL, _inversion, one_matrix=True)
