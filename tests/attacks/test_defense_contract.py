"""Every defence goes the same way: a few steps of training, inference, attack."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attack_support import PatchworkSource

from facemix_jax import anonymizing, attacks, data, defenses, inference, slalom, training
from facemix_jax.attacks import suite
from facemix_jax.defenses import DefenseConfig
from facemix_jax.models import anonymizer, resnet18

RNG_KEY = jax.random.key(4)
EFFORT = attacks.AttackConfig(num_groups=16, steps=2, batch_size=16)


LAYERS = {
    "conditioned": {"family": "conditioned"},
    "decoys": {"decoys": 2},
    "blinding": {"blinding": 1.0},
    "rounding": {"wire": "int4"},
    "clouds": {"clouds": 2},
    "all layers": {
        "family": "conditioned",
        "decoys": 2,
        "noise": 0.1,
        "blinding": 1.0,
        "wire": "int8",
        "clouds": 3,
    },
}
"""What stands around mixing, by itself and together."""


def built(name, **options):
    """A network cut where the defence is meant for, untrained."""
    defense = "facemix" if name in LAYERS else name
    options |= LAYERS.get(name, {})
    config = DefenseConfig(defense=defense, group_size=4, blur_size=8, **options)
    source = PatchworkSource()
    cut = 1 if defense == "facemix" else 0
    model = resnet18(cut=cut, image_size=source.image_size, num_attributes=3, width=4)
    return attacks.Target(
        model=model,
        defense=defenses.build(config),
        variables=model.init(jax.random.key(0)),
        source=source,
    )


@functools.cache
def trained(name, steps=3, **options):
    """The same after some steps on pictures."""
    target = built(name)
    train = training.TrainConfig(batch_size=16, num_epochs=1, **options)
    state = training.init_state(target.model, train, steps)
    step = training.make_train_step(target.model, target.defense, train, steps)
    batches = data.train_batches(target.source, batch_size=16, seed=0)
    for _ in range(steps):
        batch = next(batches)
        state, info = step(state, batch.images, batch.attributes)
        assert np.isfinite(float(info.loss))
    return dataclasses.replace(target, variables=state.variables)


def check(target, name):
    """Whether the attack ran, and what it found is in order."""
    attack = suite.ATTACKS[name]
    reason = attack.unsuitable(target)
    if reason is not None:
        assert reason.endswith(".")
        return False
    recording = attacks.record(target, attacks.recorded_rows(target, 16), rng_key=RNG_KEY)
    result = attack.run(target, recording, RNG_KEY, EFFORT)
    for figure in result.figures:
        assert np.isfinite([figure.value, figure.floor, figure.owner]).all(), figure
        if not target.defense.keyed:
            assert figure.key_advantage == 0, (name, figure)
    if result.recovered is not None:
        assert np.isfinite(result.recovered).all()
    return True


@pytest.mark.library_promotes
@pytest.mark.parametrize(
    "defense",
    # Training and attacking the others is tested elsewhere as well, or among all layers.
    [
        pytest.param(d, marks=[] if d in ("noise", "all layers") else pytest.mark.slow)
        for d in (*defenses.DEFENSES, *LAYERS)
    ],
)
def test_every_defence_trains_infers_and_is_attacked(defense):
    target = trained(defense)
    images = data.normalize(target.source.images(np.arange(5)))
    logits = inference.infer(target.model, target.defense, target.variables, RNG_KEY, images)
    assert logits.shape == (5, 3, 2)
    assert bool(jnp.isfinite(logits).all())
    perturbed = defense in ("noise", "blur")
    for name in ("restoration", "gradient_ica"):
        assert check(target, name) == ((name == "restoration") == perturbed)


@pytest.mark.slow
@pytest.mark.library_promotes
def test_facemix_towards_gaussian_codes_trains_infers_and_is_attacked():
    target = trained("facemix", negentropy_weight=10.0, discriminator_weight=1.0)
    images = data.normalize(target.source.images(np.arange(5)))
    logits = inference.infer(target.model, target.defense, target.variables, RNG_KEY, images)
    assert bool(jnp.isfinite(logits).all())
    for name in ("nonnegative", "gradient_ica", "robust"):
        assert check(target, name)


@pytest.mark.slow
@pytest.mark.library_promotes
@pytest.mark.parametrize("defense", ["noise", "blur", *LAYERS])
def test_every_attack_runs_or_says_why_not(defense):
    target = trained(defense)
    ran = {name for name in suite.ATTACKS if check(target, name)}
    assert "robust" in ran if defense in LAYERS else "restoration" in ran


@pytest.mark.parametrize("layer", ["decoys", "blinding", "clouds"])
def test_attacks_on_one_row_for_each_image_are_refused_where_there_are_others(layer):
    target = built(layer)
    refused = {name for name, attack in suite.ATTACKS.items() if attack.unsuitable(target)}
    fewer = layer != "decoys"
    takes = {n for n, a in suite.ATTACKS.items() if a.any_rows or (a.fewer_rows and fewer)}
    assert refused >= set(suite.ATTACKS) - takes
    assert {"gradient_ica", "robust"} <= takes - refused
    assert ("set_attributes" in refused) != fewer


@pytest.mark.parametrize("layer", [{"noise": 1.0}, {"wire": "int4"}])
def test_a_layer_around_no_defence_is_scored_and_attacked_as_what_it_is(layer):
    for target, perturbed in ((built("none"), False), (built("none", **layer), True)):
        main = {"batch_stats": "of what is sent", "clean_stats": "of activations"}
        kept = inference.main_variables({"main": main}, target.defense)["batch_stats"]
        assert (kept == "of what is sent") == perturbed
        assert (suite.ATTACKS["restoration"].unsuitable(target) is None) == perturbed
        assert (suite.ATTACKS["gradient_ica"].unsuitable(target) is None) != perturbed


@pytest.mark.library_promotes
def test_no_attack_on_perturbed_images_stands_without_those_that_restore(monkeypatch):
    def fake(name):
        figure = attacks.Figure("guess", 0.0, 0.0, 1.0, "nothing")
        return attacks.Attack(name, "nothing", lambda *_: attacks.Result((figure,)))

    names = ("attributes", *suite.WITHOUT_KEY, suite.STRONGEST)
    monkeypatch.setattr(suite, "ATTACKS", {name: fake(name) for name in names})
    for defense, expected in (("blur", set(names)), ("facemix", {names[0], names[-1]})):
        found = suite.run_suite(built(defense), names[:1], rng_key=RNG_KEY, config=EFFORT)
        assert set(found.results) == expected


@pytest.mark.slow
@pytest.mark.library_promotes
def test_the_anonymizer_trains_infers_and_is_attacked():
    source = PatchworkSource()
    model = anonymizer(image_size=source.image_size, num_attributes=3, width=2, num_blocks=1)
    config = anonymizing.AnonymizerConfig(identifier_width=4)
    train = training.TrainConfig(batch_size=16)
    state = anonymizing.init_state(model, config, train, 2, num_people=16)
    step = anonymizing.make_step(model, config, train, 2)
    rows = np.arange(16)
    for _ in range(2):
        state, _ = step(
            state, source.images(rows), source.attributes[rows], source.identities[rows]
        )
    target = attacks.Target(
        model=model, defense=defenses.none(), variables=state.variables, source=source
    )
    images = data.normalize(source.images(np.arange(5)))
    logits = inference.infer(model, target.defense, target.variables, RNG_KEY, images)
    assert bool(jnp.isfinite(logits).all())
    for name in ("attributes", "identity", "pix2pix", "inversion"):
        assert check(target, name)


@pytest.mark.slow
@pytest.mark.library_promotes
def test_slalom_infers_a_trained_network_and_is_attacked():
    target = trained("none")
    images = np.asarray(data.normalize(target.source.images(np.arange(5))))
    part = slalom.quantize(target.model, target.variables, images)
    blinding = slalom.precompute(part, len(images))
    logits, _ = slalom.infer(part, images, slalom.honest_cloud(part), blinding)
    np.testing.assert_array_equal(logits, slalom.run_plain(part, images))
    for group_size in (1, 4):
        defense = slalom.first_layer(part, group_size=group_size)
        blinded = dataclasses.replace(target, defense=defense)
        for name in ("attributes", "pix2pix", "gradient_ica", "inversion", "robust"):
            assert check(blinded, name)
