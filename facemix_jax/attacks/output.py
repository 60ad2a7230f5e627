"""Output privacy: the unmixing found on the activations opens the responses as well.

Main is trained so that unmixing its responses gives the features of the images; that is what the
owner does. An attacker's unmixing differs from the owner's in the order of the rows alone.
"""

import jax
import numpy as np

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
from facemix_jax.attacks.groups import in_order, match, needs_attributes, unmix
from facemix_jax.attacks.recognition_scores import check_decided
from facemix_jax.metrics import attribute_counts, balanced_accuracy

THREAT_MODEL = (
    "knows which mixtures form a group, main's responses, the public network and defence and "
    "images of its own, on which it rehearses separations where noise, blinding or rounding stays; "
    "no key"
)


def read_responses(
    target: Target, recording: Recording, *, rng_key: RngKey
) -> tuple[HostArray, HostArray]:
    """Answers without the key.

    Args:
        target: gives the public pre- and post-model and auxiliary images.
        recording: its view and groups are attacked; its activations only order the answers.
        rng_key: consumed.

    Returns:
        Logits float32 ``[B, K, classes]`` of the attacker, and the same of the floor, who reads
        the responses as they come; both in the order of the examples, matched by the images.
    """
    unmixed = unmix(target, recording, rng_key=rng_key)
    truth = truth_by_group(recording.activations, recording)
    responses = by_group(recording.view.responses, recording)
    features = np.matmul(unmixed.unmixing, responses)
    mixtures = by_group(recording.view.mixtures, recording)
    post = target.variables["post"]
    return (
        _read(target, post, in_order(features, match(unmixed.sources, truth))),
        _read(target, post, in_order(responses, match(mixtures, truth))),
    )


def balanced(logits: Array | HostArray, attributes: HostArray) -> float:
    """Mean balanced accuracy over the attributes of which both classes occur.

    Where a class is missing, its recall has no value.

    Args:
        logits: float ``[B, K, 2]``.
        attributes: 0/1 ``[B, K]``.

    Raises:
        UsageError: no attribute has both.
    """
    counts = attribute_counts(np.asarray(logits), attributes)
    both = (counts.sum(2) > 0).all(1)
    check_decided(both, len(attributes))
    return float(balanced_accuracy(counts)[both].mean())


def _output(target: Target, recording: Recording, rng_key: RngKey, config: AttackConfig) -> Result:
    """Balanced attribute accuracy of the attacker, of the raw responses and of the owner."""
    owner = balanced(recording.owner_logits, recording.attributes)  # refuses before any work
    attacker, floor = read_responses(target, recording, rng_key=rng_key)
    figure = Figure(
        "balanced attribute accuracy, read from the responses",
        balanced(attacker, recording.attributes),
        balanced(floor, recording.attributes),
        owner,
        THREAT_MODEL,
        chance=0.5,
    )
    return Result((figure,))


def _read(target: Target, post: Variables, features: HostArray) -> HostArray:
    return np.asarray(jax.jit(target.model.post.apply)(post, features.astype(np.float32)))


OUTPUT = Attack("output", THREAT_MODEL, _output, needs_attributes, one_matrix=True)
