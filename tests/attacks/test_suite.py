"""The whole suite: order, company of the strongest, and every attack on every defence."""

import jax
import numpy as np
import pytest
from attack_support import make_target

from facemix_jax import attacks
from facemix_jax._validate import UsageError
from facemix_jax.attacks import suite

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


def test_unknown_names_are_refused_before_any_work(fakes):
    with pytest.raises(UsageError, match="'guessing'"):
        suite.run_suite(make_target(), ["guessing"], rng_key=RNG_KEY)


def test_the_registry_ends_with_the_strongest():
    assert list(suite.ATTACKS)[-1] == suite.STRONGEST
    assert all(name == attack.name for name, attack in suite.ATTACKS.items())
    assert all(attack.threat_model for attack in suite.ATTACKS.values())


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
