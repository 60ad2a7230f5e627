import copy
import dataclasses

import jax
import numpy as np
import pytest
from attack_support import make_recording, make_target, run

from facemix_jax import attacks, defenses, metrics
from facemix_jax._validate import UsageError
from facemix_jax.attacks import output


def test_answers_are_the_owners_without_the_key():
    target, recording = make_target(cut=0), make_recording(cut=0)
    attacker, floor = output.read_responses(target, recording, rng_key=jax.random.key(0))
    owner = np.asarray(recording.owner_logits)
    scale = owner.std()
    assert np.abs(attacker - owner).mean() < 0.2 * scale
    assert np.abs(floor - owner).mean() > 0.5 * scale


def test_attributes_without_both_classes_do_not_count():
    labels = np.array([[0, 1, 1], [1, 0, 1], [1, 0, 1], [0, 0, 1]], np.int8)
    always_one = np.zeros((4, 3, 2), np.float32)
    always_one[..., 1] = 1
    assert output.balanced(always_one, labels) == 0.5
    assert metrics.balanced_accuracy(metrics.attribute_counts(always_one, labels)).mean() > 0.6
    with pytest.raises(UsageError, match=r"4 images no attribute takes both values.*more groups"):
        output.balanced(always_one[:, 2:], labels[:, 2:])


def test_figure_stands_beside_the_owners():
    (figure,) = run(output.OUTPUT, cut=0)[0].values()
    assert figure.chance == 0.5
    assert abs(figure.value - figure.owner) < 0.02 < 0.05 < abs(figure.floor - figure.owner)


@pytest.mark.slow
def test_noise_costs_the_answers_of_the_attacker_little_more_than_the_owners():
    """Gradient ICA alone stays under .8 here."""
    target = make_target()
    target = dataclasses.replace(target, defense=defenses.with_noise(target.defense, 1.0))
    recording = attacks.record(target, target.source.splits["test"], rng_key=jax.random.key(1))
    attacker, floor = output.read_responses(target, recording, rng_key=jax.random.key(2))
    owner = np.asarray(recording.owner_logits).ravel()
    assert np.corrcoef(attacker.ravel(), owner)[0, 1] > 0.9
    assert np.corrcoef(floor.ravel(), owner)[0, 1] < 0.8


def test_sources_without_attributes_have_no_answers_to_read():
    target = make_target()
    source = copy.copy(target.source)
    source.attributes, source.attribute_names = np.zeros((160, 0), np.int8), ()
    target = dataclasses.replace(target, source=source)
    assert output.OUTPUT.unsuitable(target) == "The source has no attributes."


def test_without_a_defence_the_cloud_gets_what_the_owner_gets():
    (figure,) = run(output.OUTPUT, group_size=1)[0].values()
    assert figure.value == figure.floor == figure.owner
