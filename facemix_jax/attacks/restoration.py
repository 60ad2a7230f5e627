"""Undoes noise and blurring by ridge regression, learnt on the attacker's own images.

The attacker perturbs images of its own and regresses the clean activations on them. Faces lie near
few directions, so that a thousand of them already show which part of a perturbed one is face: a
closed form that takes seconds. Pix2Pix takes minutes; it does better against noise, and after short
training not against blurring (``docs/defenses.md``).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from facemix_jax import mixing
from facemix_jax._types import Array, HostArray, RngKey
from facemix_jax.attacks import blind, learning
from facemix_jax.attacks.base import (
    Attack,
    AttackConfig,
    Recording,
    Result,
    Target,
    truth_by_group,
)
from facemix_jax.attacks.groups import activations

THREAT_MODEL = "knows pre's weights and the defence's algorithm; has images of other people"

_MOST_IMAGES = 2048
_CHUNK = 64
_HELD_OUT = 8
"""One in so many images chooses the ridge."""

_RIDGES = np.geomspace(1e-4, 10, 11)
"""In units of the mean squared norm of a centred perturbed image."""


class Ridge(NamedTuple):
    """A regression in its dual form, by the eigenvectors of the examples' products.

    Attributes:
        inputs: float32 ``[n, P]``, centred.
        input_mean: float32 ``[P]``.
        directions: float32 ``[n, n]``, the eigenvectors, each over its eigenvalue and the ridge.
        outputs: float32 ``[n, Q]``, centred, along the eigenvectors.
        output_mean: float32 ``[Q]``.
    """

    inputs: Array
    input_mean: HostArray
    directions: HostArray
    outputs: Array
    output_mean: HostArray

    def __call__(self, x: HostArray) -> HostArray:
        """``[B, P]`` to ``[B, Q]``."""
        along = _product(_product(x - self.input_mean, self.inputs.T), self.directions)
        return np.asarray(_product(along, self.outputs)) + self.output_mean


def _product(left: Any, right: Any) -> Array:
    """On the accelerator where there is one, and on all cores otherwise."""
    return jnp.matmul(left, right, precision=mixing.PRECISION)


def fit_ridge(inputs: HostArray, outputs: HostArray) -> Ridge:
    """Regresses ``outputs`` float32 ``[n, Q]`` on ``inputs`` ``[n, P]``, ``n`` at least 2.

    One example in eight chooses the ridge, and none of the others is fitted to them.
    """
    chooses = np.arange(len(inputs)) % _HELD_OUT == 1
    x, y = inputs[~chooses], outputs[~chooses]
    input_mean, output_mean = x.mean(0), y.mean(0)
    x, y = jnp.asarray(x - input_mean), jnp.asarray(y - output_mean)
    values, vectors = np.linalg.eigh(np.asarray(_product(x, x.T), np.float64))
    scale = max(float(values.mean()), 1e-12)
    rotated = _product(vectors.T.astype(np.float32), y)
    held = np.asarray(_product(inputs[chooses] - input_mean, x.T)) @ vectors
    wanted = outputs[chooses] - output_mean

    def divisors(ridge: float) -> HostArray:
        return np.maximum(values, 0) + ridge * scale

    def error(ridge: float) -> float:
        made = _product((held / divisors(ridge)).astype(np.float32), rotated)
        return float(np.square(np.asarray(made) - wanted).sum())

    directions = (vectors / divisors(min(_RIDGES, key=error))).astype(np.float32)
    return Ridge(x, input_mean, directions, rotated, output_mean)


def restore(target: Target, sent: HostArray, *, rng_key: RngKey) -> HostArray:
    """Activations float32 ``[B, ...]`` from what was sent, ``[B, ...]``.

    Args:
        target: gives the public pre-model, the defence's algorithm and the attacker's own images.
        sent: rows as the cloud sees them.
        rng_key: draws the perturbations of the attacker's own images; consumed.
    """
    rows = target.source.splits[target.auxiliary_split][:_MOST_IMAGES]
    protect = jax.jit(learning.protect, static_argnums=(0, 1))
    perturbed, clean = [], []
    for index, part in enumerate(np.array_split(rows, -(-len(rows) // _CHUNK))):
        images = np.asarray(target.source.images(part))
        key = jax.random.fold_in(rng_key, index)
        made = protect(target.model, target.defense, target.variables["pre"], key, images)
        perturbed.append(np.asarray(made).reshape(len(part), -1))
        clean.append(activations(target, images).reshape(len(part), -1))
    ridge = fit_ridge(np.concatenate(perturbed), np.concatenate(clean))
    return ridge(sent.reshape(len(sent), -1)).reshape(sent.shape)


def _run(target: Target, recording: Recording, rng_key: RngKey, config: AttackConfig) -> Result:
    sent = np.asarray(recording.view.mixtures)
    restored = restore(target, sent, rng_key=rng_key)
    truth = np.asarray(truth_by_group(recording.activations, recording))
    attacker, floor = (blind.recovery(rows[:, None], truth) for rows in (restored, sent))
    # The owner sees what the cloud sees, and could restore it as well.
    return Result(blind.figures(attacker, floor, attacker, THREAT_MODEL), restored)


def _unsuitable(target: Target) -> str | None:
    if target.defense.keyed or target.defense.name == "none":
        return f"The defence {target.defense.name!r} does not perturb single rows without a key."
    return None


RESTORATION = Attack("restoration", THREAT_MODEL, _run, _unsuitable)
