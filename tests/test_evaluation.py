import copy

import jax
import numpy as np
import pytest

from facemix_jax import attacks, defenses, evaluation, inference
from facemix_jax.attacks import blind, separation, suite
from facemix_jax.attacks.base import by_group
from facemix_jax.data import normalize
from facemix_jax.defenses import DefenseConfig
from facemix_jax.models import ModelConfig, build, resnet18


@pytest.fixture(scope="module")
def model():
    return resnet18(image_size=(40, 36), width=4, num_attributes=3)


def test_utility_equals_the_naive_count_over_every_image(model, tiny_source):
    variables = model.init(jax.random.key(0))
    # 64 test images in batches of 48: the last one is padded, and every image counts once.
    found = evaluation.evaluate_utility(
        model, defenses.none(), variables, tiny_source, rng_key=jax.random.key(0), batch_size=48
    )
    rows = tiny_source.splits["test"]
    logits = inference.infer(
        model,
        defenses.none(),
        variables,
        jax.random.key(0),
        normalize(tiny_source.images(rows)),
    )
    right = np.asarray(logits).argmax(-1) == tiny_source.attributes[rows]
    assert found.examples == 64
    assert found.accuracy == pytest.approx(right.mean())
    assert found.per_attribute["Bright"][0] == pytest.approx(right[:, 0].mean())
    base_rates = tiny_source.attributes[rows].mean(0)
    assert found.majority_accuracy == pytest.approx(np.maximum(base_rates, 1 - base_rates).mean())
    assert found.majority_balanced_accuracy == 0.5


def test_always_the_same_answer_is_balanced_to_more_where_a_class_is_missing(model, tiny_source):
    source = copy.copy(tiny_source)
    source.attributes = tiny_source.attributes * np.array([1, 0, 0], np.int8)
    variables = jax.tree.map(np.zeros_like, model.init(jax.random.key(0)))  # says "no"
    found = evaluation.evaluate_utility(
        model, defenses.none(), variables, source, rng_key=jax.random.key(0)
    )
    assert found.balanced_accuracy == found.majority_balanced_accuracy == (0.5 + 1 + 1) / 3


def test_leakage_carries_floor_owner_and_pictures(model, tiny_source):
    variables = model.init(jax.random.key(0))
    leakage = evaluation.evaluate_leakage(
        model,
        defenses.facemix(group_size=4),
        variables,
        tiny_source,
        rng_key=jax.random.key(0),
        num_groups=3,
    )
    assert [*leakage.figures] == ["gradient_ica", "robust"]
    figure = leakage.figures["gradient_ica"]
    best = leakage.figures[leakage.strongest]
    assert best.value == max(found.value for found in leakage.figures.values())
    assert leakage.truth.shape == leakage.mixtures.shape == (3, 4, 10, 9, 4)
    assert figure.owner == pytest.approx(1.0, abs=1e-4)
    assert 0 <= figure.floor < 0.99
    assert figure.key_advantage == pytest.approx(figure.owner - figure.value)
    # Recovered maps are in the order and sign of the truth.
    flat = [np.asarray(a).reshape(12, -1) for a in (leakage.recovered, leakage.truth)]
    own = [np.corrcoef(r, t)[0, 1] for r, t in zip(*flat, strict=True)]
    assert np.mean(own) == pytest.approx(figure.value, abs=1e-3)


def test_without_a_defence_the_cloud_has_everything(model, tiny_source):
    leakage = evaluation.evaluate_leakage(
        model,
        defenses.none(),
        model.init(jax.random.key(0)),
        tiny_source,
        rng_key=jax.random.key(0),
    )
    (figure,) = leakage.figures.values()
    assert figure.value == figure.floor == figure.owner == 1
    np.testing.assert_array_equal(leakage.mixtures, leakage.truth)


@pytest.mark.parametrize(
    ("tile", "defense", "attack"),
    [
        ((5, 3), DefenseConfig(defense="noise", image_noise_variance=1.0), "restoration"),
        ((5, 3), DefenseConfig(defense="none", noise=0.5), "restoration"),
        ((5, 1), DefenseConfig(group_size=4), "gradient_ica"),
        ((1, 1), DefenseConfig(group_size=2), "gradient_ica"),
    ],
)
def test_leakage_of_tiles_has_an_attack_for_every_defence_and_shape(
    tile, defense, attack, tiny_source, monkeypatch
):
    # The stronger ones have tests of their own, and take long to compile for every shape.
    monkeypatch.setattr(suite, "ATTACKS", {"gradient_ica": separation.GRADIENT_ICA})
    model = build(ModelConfig(width=16, tile=tile), image_size=(40, 36), num_attributes=3)
    leakage = evaluation.evaluate_leakage(
        model,
        defenses.build(defense, tiles=model.spec.tiles),
        model.init(jax.random.key(0)),
        tiny_source,
        rng_key=jax.random.key(0),
        num_groups=4,
    )
    (figure,) = leakage.figures.values()
    assert leakage.strongest == attack
    assert leakage.recovered.shape == leakage.truth.shape
    assert figure.value > figure.floor


def test_networks_that_differ_in_weights_alone_are_compiled_once(tiny_source):
    config, defense = ModelConfig(width=4), defenses.DefenseConfig(group_size=4)
    options = {"image_size": (40, 36), "num_attributes": 3}

    def programs(config, seed):
        model = build(config, **options)
        evaluation.evaluate_utility(
            model,
            defenses.build(defense),
            model.init(jax.random.key(seed)),
            tiny_source,
            rng_key=jax.random.key(seed),
        )
        return evaluation._predict._cache_size()

    evaluation._predict.clear_cache()  # of what other tests compiled
    once = programs(config, 0)
    assert programs(ModelConfig(width=4), 1) == once
    assert programs(ModelConfig(width=4, norm="none"), 1) == once + 1


def test_the_strongest_is_whichever_separation_finds_most(monkeypatch, tiny_source):
    def fake(name, value):
        figure = attacks.Figure(blind.CORRELATION, value, 0.1, 1.0, "nothing")
        other = attacks.Figure("seconds", 9.0, 0.0, 1.0, "nothing")

        def run(target, recording, *_):
            return attacks.Result((figure, other), by_group(recording.view.mixtures, recording))

        return attacks.Attack(name, "nothing", run)

    values = {"alignment": 0.7, "contrast": 0.2, "gradient_ica": 0.3, "robust": 0.6}
    monkeypatch.setattr(suite, "ATTACKS", {n: fake(n, value) for n, value in values.items()})
    model = build(
        ModelConfig(width=4, tile=(4, 4)), image_size=tiny_source.image_size, num_attributes=3
    )
    leakage = evaluation.evaluate_leakage(
        model,
        defenses.build(DefenseConfig(group_size=2), tiles=model.spec.tiles),
        model.init(jax.random.key(0)),
        tiny_source,
        rng_key=jax.random.key(0),
    )
    assert leakage.strongest == "alignment"
    assert next(iter(leakage.figures)) == "gradient_ica"  # whose maps are shown
    assert {name: figure.value for name, figure in leakage.figures.items()} == values
