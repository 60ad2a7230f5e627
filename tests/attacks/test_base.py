import jax
import numpy as np
import pytest

from facemix_jax import attacks, defenses, models
from facemix_jax._validate import UsageError
from facemix_jax.attacks import base

RNG_KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def make_target(tiny_source):
    model = models.resnet18(cut=1, image_size=(40, 36), num_attributes=3, width=4)
    variables = model.init(RNG_KEY)

    def make(defense):
        return attacks.Target(model=model, defense=defense, variables=variables, source=tiny_source)

    return make


@pytest.mark.parametrize("shuffled", [False, True])
def test_a_recording_has_both_sides_of_one_request(make_target, shuffled):
    target = make_target(defenses.facemix(group_size=4))
    rows = attacks.recorded_rows(target, 3)
    recording = attacks.record(target, rows, rng_key=RNG_KEY, shuffled=shuffled)
    np.testing.assert_array_equal(recording.images, target.source.images(rows))
    np.testing.assert_allclose(recording.owner_activations, recording.activations, atol=1e-5)
    # Rows of one group span the same space before and after mixing: Gram matrices add up alike.
    for group in range(3):
        sent = np.asarray(recording.view.mixtures)[recording.groups == group]
        true = np.asarray(recording.activations)[4 * group : 4 * group + 4]
        energy = [(x.reshape(4, -1) ** 2).sum(0) for x in (sent, true)]
        np.testing.assert_allclose(*energy, rtol=1e-3, atol=1e-4)
    in_order = np.array_equal(recording.groups, np.arange(12) // 4)
    assert in_order != shuffled


@pytest.mark.parametrize("part", [4, 5])
def test_a_recording_in_parts_is_the_whole_one(make_target, monkeypatch, part):
    target = make_target(defenses.facemix(group_size=4))
    rows = attacks.recorded_rows(target, 3)
    base._play.clear_cache()
    whole = attacks.record(target, rows, rng_key=RNG_KEY)
    monkeypatch.setattr(base, "_PART", part)
    base._play.clear_cache()  # the size of a part is compiled in
    parts = attacks.record(target, rows, rng_key=RNG_KEY)
    base._play.clear_cache()
    assert len(rows) > part
    for name in ("mixtures", "responses"):
        found = [getattr(recording.view, name) for recording in (whole, parts)]
        np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(whole.owner_logits, parts.owner_logits, rtol=1e-4, atol=1e-4)


def test_without_a_defence_the_cloud_sees_the_activations(make_target):
    target = make_target(defenses.none())
    recording = attacks.record(target, attacks.recorded_rows(target, 5), rng_key=RNG_KEY)
    np.testing.assert_array_equal(recording.view.mixtures, recording.activations)


def test_splits_are_checked(make_target, tiny_source):
    target = make_target(defenses.facemix(group_size=128))
    with pytest.raises(UsageError, match="fewer than one group of 128"):
        attacks.recorded_rows(target, 1)
    with pytest.raises(UsageError, match="split"):
        attacks.Target(
            model=target.model,
            defense=target.defense,
            variables={},
            source=tiny_source,
            split="holdout",
        )
