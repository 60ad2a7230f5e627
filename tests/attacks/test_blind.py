import jax
import numpy as np
import pytest
from attack_support import make_tiled_target

from facemix_jax import attacks, defenses, models
from facemix_jax.attacks import (
    adversarial,
    alignment,
    blind,
    contrast,
    grouping,
    nonnegative,
    picard,
    robust,
    separation,
    vectors,
)

RNG_KEY = jax.random.key(0)
ATTACKS = [
    separation.GRADIENT_ICA,
    nonnegative.NONNEGATIVE,
    adversarial.ADVERSARIAL,
    vectors.IVA,
    picard.PICARD,
    robust.ROBUST,
    grouping.SHUFFLED_CHAIN,
]
CONFIG = attacks.AttackConfig(num_groups=3, steps=20)


@pytest.fixture(scope="module")
def make_target(tiny_source):
    def make(defense, cut=1):
        model = models.resnet18(cut=cut, image_size=(40, 36), num_attributes=3, width=4)
        variables = model.init(RNG_KEY)
        return attacks.Target(model=model, defense=defense, variables=variables, source=tiny_source)

    return make


def recorded(target, shuffled=False):
    rows = attacks.recorded_rows(target, CONFIG.num_groups)
    return attacks.record(target, rows, rng_key=RNG_KEY, shuffled=shuffled)


@pytest.mark.library_promotes
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: a.name)
def test_contract(attack, make_target):
    target = make_target(defenses.facemix(group_size=4))
    assert attack.unsuitable(target) is None
    recording = recorded(target)
    result = attack.run(target, recording, RNG_KEY, CONFIG)
    assert len({f.name for f in result.figures}) == len(result.figures)
    for figure in result.figures:
        assert 0 <= figure.floor <= 1
        assert 0 <= figure.value <= 1
        assert figure.owner == pytest.approx(1, abs=1e-3)
        assert figure.threat_model == attack.threat_model
    correlation = next(f for f in result.figures if "correlation| 0.9" not in f.name)
    assert result.recovered.shape == recording.activations.shape
    if "|correlation|" in correlation.name:
        # What is handed back is what was scored: in the order and sign of the truth.
        rows = zip(result.recovered, np.asarray(recording.activations), strict=True)
        direct = [np.corrcoef(r.ravel(), a.ravel())[0, 1] for r, a in rows]
        assert np.mean(direct) == pytest.approx(correlation.value, abs=1e-4)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: a.name)
def test_without_groups_the_mixtures_are_what_is_recovered(attack, make_target):
    target = make_target(defenses.none())
    recording = recorded(target)
    result = attack.run(target, recording, RNG_KEY, CONFIG)
    np.testing.assert_allclose(result.recovered, recording.view.mixtures, atol=1e-6)
    for figure in result.figures:
        assert figure.value == figure.floor == figure.owner == pytest.approx(1)


def test_granted_groups_are_put_together_after_a_shuffle(make_target):
    target = make_target(defenses.facemix(group_size=4))
    results = [
        separation.GRADIENT_ICA.run(target, recorded(target, shuffled), RNG_KEY, CONFIG)
        for shuffled in (False, True)
    ]
    # Rows of a group come in another order, and starts differ: the minima are the same.
    values = [r.figures[0].value for r in results]
    assert values[0] == pytest.approx(values[1], abs=0.03)
    assert values[0] > results[0].figures[0].floor + 0.05


def test_the_chain_works_on_a_recording_that_was_shuffled_already(make_target):
    target = make_target(defenses.facemix(group_size=4))
    regrouped = grouping.SHUFFLED_CHAIN.run(target, recorded(target, True), RNG_KEY, CONFIG)
    assert regrouped.figures[0].value > regrouped.figures[0].floor
    assert regrouped.figures[0].chance == regrouped.figures[0].floor


def test_nonnegative_separation_refuses_normalised_pixels(make_target):
    target = make_target(defenses.facemix(group_size=4), cut=0)
    assert "reach down to -" in nonnegative.NONNEGATIVE.unsuitable(target)
    assert separation.GRADIENT_ICA.unsuitable(target) is None
    assert not any("nonneg" in name for name in robust.choose(target, RNG_KEY).rehearsed)


def test_what_takes_the_matrix_for_orthogonal_refuses_others(make_target):
    target = make_target(defenses.facemix(group_size=4, family="conditioned"))
    for attack in (nonnegative.NONNEGATIVE, adversarial.ADVERSARIAL):
        assert "for orthogonal" in attack.unsuitable(target)
    tiled = make_tiled_target(family="conditioned")
    for attack in (contrast.CONTRAST, alignment.ALIGNMENT):
        assert "for orthogonal" in attack.unsuitable(tiled)
        assert attack.unsuitable(make_tiled_target()) is None


def test_images_for_which_there_is_no_row_are_not_recovered():
    truth = np.random.default_rng(0).standard_normal((3, 8, 50))
    half, whole = (attacks.recovery(x, truth) for x in (truth[:, :4], truth))
    correlation, share = blind.figures(half, half, whole, "knows all")
    assert correlation[1:4] == pytest.approx((1, 1, 1))
    assert "match best" in correlation.threat_model
    assert share[1:4] == (0.5, 0.5, 1)
    assert [f.threat_model for f in blind.figures(whole, whole, whole, "all")] == ["all", "all"]


def test_maps_of_one_position_are_unsuitable(make_target):
    target = make_target(defenses.facemix(group_size=4))
    small = target.model.spec.__class__(
        **{**vars(target.model.spec), "activation_shape": (1, 1, 64)}
    )
    target = attacks.Target(
        model=target.model._replace(spec=small),
        defense=target.defense,
        variables=target.variables,
        source=target.source,
    )
    assert all("1 x 1" in (attack.unsuitable(target) or "") for attack in ATTACKS)


def test_rehearsals_choose_the_best_candidate(make_target):
    choice = robust.choose(make_target(defenses.facemix(group_size=4)), RNG_KEY)
    assert choice.rehearsed[choice.name] == max(choice.rehearsed.values())
    assert len(choice.rehearsed) > 3
