"""Utility and leakage of one trained network: what the owner gets, and what the cloud learns."""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np

from facemix_jax import inference
from facemix_jax._types import Array, HostArray, RngKey, Variables
from facemix_jax.attacks import AttackConfig, Figure, Target, record, recorded_rows
from facemix_jax.attacks.base import Recording, Result, by_group, own_split, truth_by_group
from facemix_jax.attacks.blind import CORRELATION
from facemix_jax.attacks.restoration import RESTORATION
from facemix_jax.attacks.separation import GRADIENT_ICA
from facemix_jax.attacks.tiles import whole
from facemix_jax.data import Source, eval_batches, normalize
from facemix_jax.defenses import Defense
from facemix_jax.metrics import accuracy, attribute_counts, balanced_accuracy
from facemix_jax.models import SplitModel


class Utility(NamedTuple):
    """How well attributes are predicted.

    Attributes:
        examples: how many images were scored.
        accuracy: mean over attributes, in [0, 1].
        balanced_accuracy: mean over attributes of the mean recall of both classes.
        majority_accuracy: of always predicting the more frequent class.
        majority_balanced_accuracy: of the same: 0.5, but more where images of a class are missing.
        per_attribute: name to (accuracy, balanced accuracy).
    """

    examples: int
    accuracy: float
    balanced_accuracy: float
    majority_accuracy: float
    majority_balanced_accuracy: float
    per_attribute: dict[str, tuple[float, float]]


def evaluate_utility(
    model: SplitModel,
    defense: Defense,
    variables: Variables,
    source: Source,
    *,
    rng_key: RngKey,
    split: str = "test",
    batch_size: int = 128,
) -> Utility:
    """Scores every image of a split once, through the defence.

    Args:
        model: the split network.
        defense: how activations are protected; ``defenses.none()`` for clean inference.
        variables: ``{"pre", "main", "post"}``.
        source: the images.
        rng_key: draws a fresh secret for each batch; consumed.
        split: of the source.
        batch_size: rounded up to a multiple of the group size.

    Raises:
        UsageError: an unknown split or a wrong image size.
        DataError: the network returns NaN. On CPUs XLA hides it in sums over maps, except in
            programs of this package and with its ``XLA_FLAGS`` (``_runtime.py``).
    """
    batch_size += -batch_size % defense.group_size
    counts = np.zeros((len(source.attribute_names), 2, 2), np.int64)
    for index, batch in enumerate(eval_batches(source, split=split, batch_size=batch_size)):
        batch_key = jax.random.fold_in(rng_key, index)
        logits = _predict(model, defense, variables, batch_key, batch.images)
        counts += attribute_counts(logits, batch.attributes, batch.mask)
    scores = accuracy(counts), balanced_accuracy(counts)
    of_class = counts.sum(2)
    return Utility(
        examples=int(counts[0].sum()),
        accuracy=float(scores[0].mean()),
        balanced_accuracy=float(scores[1].mean()),
        majority_accuracy=float((of_class.max(1) / of_class.sum(1)).mean()),
        majority_balanced_accuracy=float((1 / (of_class > 0).sum(1)).mean()),
        per_attribute={
            name: (float(a), float(b))
            for name, a, b in zip(source.attribute_names, *scores, strict=True)
        },
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _predict(
    model: SplitModel, defense: Defense, variables: Variables, rng_key: RngKey, images: Array
) -> Array:
    return inference.infer(model, defense, variables, rng_key, normalize(images))


class Leakage(NamedTuple):
    """What separation learns of activations, with pictures of a few groups.

    Attributes:
        figures: by the attack's name, the quick one first, each with its floor and the owner's own
            recovery.
        truth: float32 ``[G, M, H, W, C]``, activations at the cut.
        mixtures: likewise, what the cloud sees; other rows than ``M`` with decoys or clouds.
        recovered: as ``truth``, what the quick attack returns, matched to ``truth`` in order and
            sign.
        skipped: name to the reason why an attack had nothing to work with.
    """

    figures: dict[str, Figure]
    truth: HostArray
    mixtures: HostArray
    recovered: HostArray
    skipped: dict[str, str]

    @property
    def strongest(self) -> str:
        """Name of the attack that found most."""
        return max(self.figures, key=lambda name: self.figures[name].value)


def evaluate_leakage(
    model: SplitModel,
    defense: Defense,
    variables: Variables,
    source: Source,
    *,
    rng_key: RngKey,
    split: str = "test",
    num_groups: int = 16,
) -> Leakage:
    """Attacks the activations of the first groups of a split.

    Where they are mixed, by gradient ICA, which is quick, and by the strongest separations that
    are known for such a network (``attacks.suite``), all granted which mixtures belong together.
    Noise and blurring are undone by ridge regression, of whole maps: there Pix2Pix, which takes
    training, may do better. Without a defence there is nothing to attack: floor, attacker and owner
    all have the activations themselves.

    Args:
        model: the split network.
        defense: how activations are protected.
        variables: ``{"pre", "main", "post"}``.
        source: the images.
        rng_key: draws secrets and the attacks' starts; consumed.
        split: of the source.
        num_groups: groups attacked, fewer where the split is smaller.

    Raises:
        UsageError: an unknown split, or one with fewer images than a group, or the attacker's own
            has.
        DataError: the network's activations, or what is sent of them, are not finite.
    """
    target = Target(
        model=model,
        defense=defense,
        variables=variables,
        source=source,
        split=split,
        auxiliary_split=own_split(split),
    )
    if defense.keyed:
        return _separations(target, rng_key, num_groups)
    record_key, attack_key = jax.random.split(rng_key)
    target = whole(target)
    recording = record(target, recorded_rows(target, num_groups), rng_key=record_key)
    sent = np.asarray(recording.view.mixtures)[:, None]
    if defense.name == "none":
        figure = Figure(CORRELATION, 1.0, 1.0, 1.0, "the cloud sees the activations")
        return Leakage({"none needed": figure}, sent, sent, sent, {})
    result = RESTORATION.run(target, recording, attack_key, AttackConfig())
    return _leakage({RESTORATION.name: result}, recording, {})


def _separations(target: Target, rng_key: RngKey, num_groups: int) -> Leakage:
    # Imported here: the attacks' own networks and optimisers take a while.
    from facemix_jax.attacks import suite

    config = AttackConfig(num_groups=num_groups)
    found = suite.run_suite(target, (GRADIENT_ICA.name,), rng_key=rng_key, config=config)
    first = {GRADIENT_ICA.name: found.results[GRADIENT_ICA.name]}
    return _leakage(first | found.results, found.recording, found.skipped)


def _leakage(
    results: Mapping[str, Result], recording: Recording, skipped: dict[str, str]
) -> Leakage:
    truth = np.asarray(truth_by_group(recording.activations, recording))
    quick = next(iter(results.values()))
    assert quick.recovered is not None  # it recovers activations
    return Leakage(
        {
            name: figure
            for name, result in results.items()
            for figure in result.figures
            if figure.name == CORRELATION
        },
        truth,
        np.asarray(by_group(recording.view.mixtures, recording)),
        np.asarray(quick.recovered).reshape(truth.shape),
        skipped,
    )
