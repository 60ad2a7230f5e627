"""The whole suite: order, company of the strongest, and every attack on every defence."""

import copy
import dataclasses

import jax
import numpy as np
import pytest
from attack_support import make_target, make_tiled_target

from facemix_jax import attacks, defenses
from facemix_jax._validate import DataError, UsageError
from facemix_jax.attacks import alignment, base, suite

RNG_KEY = jax.random.key(4)
EFFORT = attacks.AttackConfig(num_groups=4, steps=2, batch_size=16)


def fake(name, reason=None):
    def run(target, recording, rng_key, config):
        value = float(jax.random.uniform(rng_key))
        return attacks.Result((attacks.Figure("guess", value, 0.0, 1.0, "nothing"),))

    return attacks.Attack(name, "nothing", run, lambda target: reason)


@pytest.fixture
def fakes(monkeypatch):
    names = {"weak": None, "unfit": "There is nothing.", suite.STRONGEST: None}
    monkeypatch.setattr(suite, "ATTACKS", {n: fake(n, reason) for n, reason in names.items()})


def test_the_strongest_attack_is_last_and_runs_beside_any_other(fakes):
    said = []
    found = suite.run_suite(
        make_target(), ["weak"], rng_key=RNG_KEY, config=EFFORT, say=said.append
    )
    assert list(found.results) == said == ["weak", suite.STRONGEST]


def test_what_runs_beside_an_attack_does_not_change_its_figures(fakes):
    alone = suite.run_suite(make_target(), [], rng_key=RNG_KEY, config=EFFORT)
    whole = suite.run_suite(make_target(), suite.ATTACKS, rng_key=RNG_KEY, config=EFFORT)
    assert whole.skipped == {"unfit": "There is nothing."}
    assert alone.results[suite.STRONGEST] == whole.results[suite.STRONGEST]
    assert whole.results["weak"] != whole.results[suite.STRONGEST], "keys differ"


def test_what_is_stronger_than_the_strongest_on_tiles_and_images_runs_beside_it(monkeypatch):
    ran = {n: a._replace(run=fake(n).run) for n, a in suite.ATTACKS.items()}
    monkeypatch.setattr(suite, "ATTACKS", ran)
    for target, expected in (
        (make_target(), ()),
        (make_target(cut=0), suite.ON_IMAGES),
        (make_tiled_target(noise=0.5), suite.ON_TILES),
    ):
        found = suite.run_suite(target, [], rng_key=RNG_KEY, config=EFFORT)
        assert set(found.results) == {*expected, suite.STRONGEST}
        assert not found.skipped
    dealt = make_tiled_target(scatter=True)
    found = suite.run_suite(dealt, [], rng_key=RNG_KEY, config=EFFORT)
    assert set(found.skipped) == {"alignment"}


@pytest.mark.parametrize("name", ["identity", "set_identity"])
def test_networks_that_name_persons_never_stand_without_row_spaces(monkeypatch, name):
    ran = {n: a._replace(run=fake(n).run) for n, a in suite.ATTACKS.items()}
    monkeypatch.setattr(suite, "ATTACKS", ran)
    found = suite.run_suite(make_target(), [name], rng_key=RNG_KEY, config=EFFORT)
    assert set(found.results) == {name, "membership", suite.STRONGEST}


def test_a_network_that_diverged_is_told_before_any_attack(fakes):
    target, said = make_target(), []
    broken = jax.tree.map(lambda leaf: leaf * np.nan, target.variables["pre"])
    target = dataclasses.replace(target, variables={**target.variables, "pre": broken})
    with pytest.raises(DataError, match="hold NaN or infinities"):
        suite.run_suite(target, ["weak"], rng_key=RNG_KEY, config=EFFORT, say=said.append)
    assert not said


@pytest.mark.parametrize("level", [0.0, 0.5])
def test_a_part_of_the_edge_that_is_dead_is_told_before_any_attack(fakes, level):
    target, said = make_target(), []
    dead = jax.tree_util.tree_map_with_path(
        lambda path, leaf: level * (path[-1].key == "bias") + 0 * leaf, target.variables["pre"]
    )
    target = dataclasses.replace(target, variables={**target.variables, "pre": dead})
    with pytest.raises(DataError, match="edge's part is dead"):
        suite.run_suite(target, ["weak"], rng_key=RNG_KEY, config=EFFORT, say=said.append)
    assert not said


def test_unknown_names_are_refused_before_any_work(fakes):
    with pytest.raises(UsageError, match="'guessing'"):
        suite.run_suite(make_target(), ["guessing"], rng_key=RNG_KEY)


def few_own(target, count):
    """The target of an attacker with so many images."""
    source = copy.copy(target.source)
    source.splits = {**source.splits, "train": np.arange(count)}
    return dataclasses.replace(target, source=source)


def test_too_few_images_of_the_attacker_are_told_before_any_attack(fakes):
    said = []
    with pytest.raises(UsageError, match=r"own images, the train split, are 3, fewer than .* of 4"):
        suite.run_suite(few_own(make_target(), 3), [], rng_key=RNG_KEY, say=said.append)
    assert not said
    for count, suits in ((7, False), (8, True)):  # of 4 tiles
        reason = alignment.ALIGNMENT.unsuitable(few_own(make_tiled_target(), count))
        assert (reason is None) == suits


def test_the_registry_ends_with_the_strongest():
    assert list(suite.ATTACKS)[-1] == suite.STRONGEST
    assert all(name == attack.name for name, attack in suite.ATTACKS.items())
    assert all(attack.threat_model for attack in suite.ATTACKS.values())


@pytest.mark.parametrize("error", [UsageError, DataError])
def test_what_a_recording_does_not_allow_is_skipped_but_never_the_strongest(
    fakes, monkeypatch, error
):
    def refuse(target, recording, rng_key, config):
        raise error("All images are alike.")

    weak, strongest = suite.ATTACKS["weak"], suite.ATTACKS[suite.STRONGEST]
    monkeypatch.setitem(suite.ATTACKS, "weak", weak._replace(run=refuse))
    found = suite.run_suite(make_target(), ["weak"], rng_key=RNG_KEY, config=EFFORT)
    assert found.skipped == {"weak": "All images are alike."}
    assert suite.STRONGEST in found.results
    monkeypatch.setitem(suite.ATTACKS, suite.STRONGEST, strongest._replace(run=refuse))
    with pytest.raises(error, match="alike"):
        suite.run_suite(make_target(), ["weak"], rng_key=RNG_KEY, config=EFFORT)


@pytest.mark.parametrize("name", suite.WITHOUT_KEY)
def test_the_strongest_where_there_is_no_key_is_not_skipped_either(monkeypatch, name):
    def diverge(target, recording, rng_key, config):
        raise DataError("It diverged.")

    ran = {n: a._replace(run=fake(n).run) for n, a in suite.ATTACKS.items()}
    monkeypatch.setattr(suite, "ATTACKS", ran)
    target = dataclasses.replace(make_target(), defense=defenses.noise(variance=4.0))
    assert suite.run_suite(target, ["attributes"], rng_key=RNG_KEY, config=EFFORT).results
    monkeypatch.setitem(ran, name, ran[name]._replace(run=diverge))
    with pytest.raises(DataError, match="diverged"):
        suite.run_suite(target, ["attributes"], rng_key=RNG_KEY, config=EFFORT)


ONE_MATRIX = ("known_plaintext", "reused_key", "intersection", "shuffled_chain", "output")
OF_IMAGES = ("membership", "alignment", "set_attributes", "set_identity")


def test_tiles_are_not_attacked_by_what_looks_for_one_matrix(monkeypatch):
    ran = {name: attack._replace(run=fake(name).run) for name, attack in suite.ATTACKS.items()}
    monkeypatch.setattr(suite, "ATTACKS", ran)
    for target, refused in (
        (make_target(), ()),
        (make_tiled_target(), ONE_MATRIX),
        (make_tiled_target(scatter=True), (*ONE_MATRIX, *OF_IMAGES)),
    ):
        names = {*ONE_MATRIX, *OF_IMAGES, "span", "collusion"}
        if target.model.spec.tiles == 1:
            names -= {"alignment"}
        found = suite.run_suite(target, names, rng_key=RNG_KEY, config=EFFORT)
        assert set(found.skipped) == set(refused)


def test_an_attacker_does_not_own_the_attacked_images():
    with pytest.raises(UsageError, match="test split is attacked and holds"):
        dataclasses.replace(make_target(), auxiliary_split="test")
    assert base.own_split("train") == "test"
    assert base.own_split("test") == base.own_split("valid") == "train"


@pytest.mark.slow
@pytest.mark.library_promotes
@pytest.mark.parametrize("group_size", [4, 1])
@pytest.mark.parametrize("name", suite.ATTACKS)
def test_every_attack_runs_on_every_defence(name, group_size):
    target, attack = make_target(group_size), suite.ATTACKS[name]
    reason = attack.unsuitable(target)
    if reason is not None:
        assert reason.endswith(".")
        pytest.skip(reason)
    rows = attacks.recorded_rows(target, 4)
    recording = attacks.record(target, rows, rng_key=RNG_KEY)
    result = attack.run(target, recording, RNG_KEY, EFFORT)
    assert result.figures
    for figure in result.figures:
        numbers = [figure.value, figure.floor, figure.owner, figure.key_advantage]
        assert np.isfinite(numbers).all(), figure
        assert figure.threat_model
    if result.recovered is not None:
        assert len(result.recovered) == len(rows)
        assert np.isfinite(result.recovered).all()
