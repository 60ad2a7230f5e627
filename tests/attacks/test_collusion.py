import jax
import numpy as np
import pytest
from attack_support import make_recording, make_target, run

from facemix_jax._validate import UsageError
from facemix_jax.attacks import collusion
from facemix_jax.attacks.base import by_group, truth_by_group


def test_more_rows_recover_more_and_a_single_one_is_the_floor():
    figures, _ = run(collusion.COLLUSION)
    one, two, three = figures.values()
    assert one.name == "mean matched |correlation| with 1 of 4 rows"
    assert one.value == one.floor < two.value < three.value < three.owner == pytest.approx(1)
    assert two.value > two.floor
    assert three.value > three.floor + 0.05


def test_all_rows_are_the_whole_attack():
    recording = make_recording()
    mixtures = by_group(recording.view.mixtures, recording)
    found = collusion.separate_rows(mixtures, 4, rng_key=jax.random.key(0))
    truth = truth_by_group(recording.activations, recording)
    assert collusion.mean_matched(found, truth) > 0.9


def test_numbers_of_rows_are_checked():
    with pytest.raises(UsageError, match="rows"):
        collusion.separate_rows(np.zeros((1, 4, 8, 8, 1)), 5, rng_key=jax.random.key(0))


def test_a_group_of_one_has_nobody_to_collude_with():
    assert "one row" in collusion.COLLUSION.unsuitable(make_target(group_size=1))
