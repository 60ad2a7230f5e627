"""Blinding, Freivalds' test, unblinding: what edge and cloud say to each other.

Offline, inside the trusted edge, one request's pads ``r`` and their images ``W r`` are computed,
and so are challenges ``s`` and ``W s``. Online, layer by layer::

    edge -> cloud   x + r               uniform, whatever x is
    cloud -> edge   y = W (x + r)
    edge            y s == (x + r) (W s) ?   then y - W r = W x

The test: if the cloud's answer is wrong anywhere, a random combination of its outputs is wrong
except with probability ``1 / |S|`` for ``s`` drawn from ``S = {0, ..., |S| - 1}``, for each
repetition; the cloud does not know ``s``. A single wrong element passes with exactly that
probability.
"""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from facemix_jax import _validate
from facemix_jax._types import Array, HostArray
from facemix_jax.slalom.field import RandomBytes, linear_mod, uniform
from facemix_jax.slalom.network import QuantizedNetwork, check_images, run

Cloud = Callable[[int, HostArray], HostArray]
"""``(layer, elements uint32 [B, ...]) -> elements uint32 [B, ...]``: all that the cloud is told."""

_ELEMENT = np.dtype("<u4")


class TamperedError(_validate.FacemixError):
    """The cloud's answer is not the layer's result."""


@dataclasses.dataclass
class Traffic:
    """What crossed the link.

    Attributes:
        up_bytes: from edge to cloud.
        down_bytes: back.
        rounds: how often the edge waited.
    """

    up_bytes: int = 0
    down_bytes: int = 0
    rounds: int = 0


@dataclasses.dataclass(frozen=True)
class Challenge:
    """Of Freivalds' test of one layer; secret.

    Attributes:
        vector: ``s``, int64 ``[O, repetitions]``.
        image: ``W s`` modulo the prime, ``[..., I, repetitions]``.
    """

    vector: HostArray = dataclasses.field(repr=False)
    image: HostArray = dataclasses.field(repr=False)


@dataclasses.dataclass
class Blinding:
    """What the edge has computed before a request, for that request alone.

    Attributes:
        pads: ``r`` of every layer, int64 ``[B, ...]``.
        unblinding: ``W r`` of every layer.
        challenges: of every layer.
        network: ``QuantizedNetwork.digest`` of the network that it is for.
        used: a pad that is used twice gives the difference of two activations away.
    """

    pads: list[HostArray] = dataclasses.field(repr=False)
    unblinding: list[HostArray] = dataclasses.field(repr=False)
    challenges: list[Challenge] = dataclasses.field(repr=False)
    network: str
    used: bool = False


def precompute(
    network: QuantizedNetwork,
    batch_size: int,
    *,
    challenge_set: int = 2**20,
    repetitions: int = 2,
    random_bytes: RandomBytes = os.urandom,
) -> Blinding:
    """The offline phase for one request, as much work as the layers themselves.

    Args:
        network: in fixed point.
        batch_size: ``B`` of the request.
        challenge_set: ``|S|``; a wrong answer passes with at most ``|S| ** -repetitions``.
        repetitions: independent challenges.
        random_bytes: the operating system's by default; anything else is for tests.

    Raises:
        UsageError: a number is out of range.
    """
    _validate.positive(batch_size=batch_size, repetitions=repetitions)
    _validate.in_range(2, network.prime, challenge_set=challenge_set)
    blinding = Blinding([], [], [], network.digest)
    for layer in network.layers:
        pad = uniform((batch_size, *layer.input_shape), network.prime, random_bytes)
        blinding.pads.append(pad)
        blinding.unblinding.append(linear_mod(pad, layer.weights, layer.geometry, network.prime))
        blinding.challenges.append(
            challenge(layer.weights, network.prime, challenge_set, repetitions, random_bytes)
        )
    return blinding


def challenge(
    weights: HostArray,
    prime: int,
    challenge_set: int,
    repetitions: int,
    random_bytes: RandomBytes = os.urandom,
) -> Challenge:
    """Draws ``s`` for weights ``[..., I, O]`` and computes ``W s``; see ``precompute``."""
    vector = uniform((weights.shape[-1], repetitions), challenge_set, random_bytes)
    rows = weights.reshape(-1, weights.shape[-1]).astype(np.int64) % prime
    image = linear_mod(rows, vector, None, prime)
    return Challenge(vector, image.reshape(*weights.shape[:-1], repetitions))


def passes(
    network: QuantizedNetwork, index: int, sent: HostArray, answer: HostArray, test: Challenge
) -> bool:
    """Freivalds' test of a whole batch: False if the answer is certainly wrong.

    Args:
        network: in fixed point.
        index: of the layer.
        sent: field elements ``[B, ...]``.
        answer: field elements ``[B, ...]``.
        test: which the cloud must not know.
    """
    geometry = network.layers[index].geometry
    expected = linear_mod(sent, test.image, geometry, network.prime)
    found = linear_mod(answer, test.vector, None, network.prime)
    return bool((expected == found).all())


def infer(
    network: QuantizedNetwork,
    images: HostArray | Array,
    cloud: Cloud,
    blinding: Blinding,
) -> tuple[HostArray, Traffic]:
    """Runs one request.

    Args:
        network: in fixed point.
        images: normalised float ``[B, H, W, 3]``.
        cloud: computes the linear layers, for example ``honest_cloud(network)``.
        blinding: of ``precompute`` for ``B`` images; used up.

    Returns:
        Logits float32 ``[B, K, classes]``, those of ``run_plain`` bit for bit, and the bytes that
        crossed the link.

    Raises:
        TamperedError: an answer of the cloud is wrong; nothing that came after it was used.
        UsageError: the blinding was used before, or is for another network or number of images, or
            these have another size or type.
        DataError: images or activations are NaN or infinite.
    """
    check_images(network.model, images)
    if blinding.network != network.digest:
        raise _validate.UsageError(
            "The blinding is for another network: its prime or its weights are others, and right "
            "answers would be taken for wrong ones. Call precompute for this network."
        )
    if blinding.used or len(blinding.pads[0]) != len(images):
        raise _validate.UsageError(
            f"The blinding is for one request of {len(blinding.pads[0])} images"
            f"{' and was used already' if blinding.used else f', not of {len(images)}'}. Call "
            f"precompute for every request."
        )
    blinding.used = True
    prime, traffic = network.prime, Traffic()

    def outsource(index: int, x: HostArray, *_: Any) -> HostArray:
        elements, pad = network.encode(index, x), blinding.pads[index]
        if elements.shape != pad.shape:  # one pad for several rows would give their difference away
            raise _validate.UsageError(
                f"Layer {index} reads {elements.shape}, but its pad is {pad.shape}. Call "
                f"precompute for this network and this number of images."
            )
        sent = (elements + pad) % prime
        message = sent.astype(_ELEMENT)
        answer = cloud(index, message)
        traffic.up_bytes += message.nbytes
        traffic.rounds += 1
        unblinding = blinding.unblinding[index]
        well_formed = (
            isinstance(answer, np.ndarray | jax.Array)
            and answer.shape == unblinding.shape
            and answer.dtype == _ELEMENT
        )
        if not (
            well_formed
            and (answer < prime).all()
            and passes(network, index, sent, answer.astype(np.int64), blinding.challenges[index])
        ):
            raise TamperedError(
                f"The cloud's answer for layer {index} of {len(network.layers)} is not the layer's "
                f"result. Its weights may differ from the edge's, or it cheats: do not use it."
            )
        traffic.down_bytes += answer.nbytes
        result = (answer.astype(np.int64) - unblinding) % prime
        return network.decode(index, np.where(result > prime // 2, result - prime, result))

    return run(network.model, network.variables, images, outsource), traffic


def honest_cloud(network: QuantizedNetwork) -> Cloud:
    """A cloud that computes what it is asked for."""

    def cloud(index: int, elements: HostArray) -> HostArray:
        layer = network.layers[index]
        answer = linear_mod(elements.astype(np.int64), layer.weights, layer.geometry, network.prime)
        return answer.astype(_ELEMENT)

    return cloud
