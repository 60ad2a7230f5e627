"""What stands around mixing: what is sent, what comes back, what one cloud sees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facemix_jax import attacks, defenses, inference, mixing
from facemix_jax._validate import UsageError
from facemix_jax.attacks import blind
from facemix_jax.attacks.base import by_group, truth_by_group
from facemix_jax.defenses import DefenseConfig
from facemix_jax.models import resnet18
from facemix_jax.models.split import Segment

RNG_KEY = jax.random.key(0)
Z = 3 + 2 * jax.random.normal(jax.random.key(1), (8, 6, 5, 3))
LAYERS = {
    "conditioned": {"family": "conditioned"},
    "decoys": {"decoys": 2},
    "blinding": {"blinding": 4.0},
    "rounding": {"wire": "bfloat16"},
    "clouds": {"clouds": 2},
    "all": {"decoys": 2, "blinding": 1.0, "wire": "bfloat16", "clouds": 3},
}


def averages(variables, z):
    """A main that is linear, and compiled in a moment."""
    return z.mean(axis=(1, 2))


def with_main(apply):
    """A network that sends images, with another main."""
    model = resnet18(cut=0, image_size=(40, 36), width=4, num_attributes=3)
    head = jnp.ones((3, 6))

    def logits(variables, features):
        return (features @ head).reshape(-1, 3, 2)

    twin = model._replace(
        main=Segment(model.main.init, apply, None), post=Segment(model.post.init, logits, None)
    )
    return twin, {"pre": {}, "main": {}, "post": {}}


def built(**options):
    return defenses.build(DefenseConfig(group_size=4, **options))


def played(defense, z=Z, seed=0):
    secret = defense.init(jax.random.key(seed), len(z), False)
    return secret, defense.protect(secret, z)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_linear_main_is_undone_up_to_rounding_and_scale(layer):
    defense = built(**LAYERS[layer])
    secret, sent = played(defense)
    weights = jax.random.normal(RNG_KEY, (3, 7))
    found, true = (
        np.asarray(x.mean((1, 2)) @ weights).ravel() for x in (defense.recover(secret, sent), Z)
    )
    through = np.ravel(defense.recover(secret, sent.mean((1, 2)) @ weights))
    np.testing.assert_allclose(through, found, atol=2e-3)
    assert np.corrcoef(through, true)[0, 1] > 0.999
    # The control: another secret undoes nothing.
    other, _ = played(defense, seed=1)
    assert abs(np.corrcoef(np.ravel(defense.recover(other, sent)), np.ravel(Z))[0, 1]) < 0.9


@pytest.mark.parametrize("condition", [1.0, 10.0])
def test_condition_numbers_keep_their_bound_and_so_do_errors(condition):
    matrix, inverse = mixing.conditioned(condition)(RNG_KEY, 200, 8)
    values = np.linalg.svd(np.asarray(matrix), compute_uv=False)
    numbers = values[:, 0] / values[:, -1]
    assert numbers.max() <= condition * (1 + 1e-4)
    np.testing.assert_allclose((values**2).mean(1), 1, rtol=1e-4)
    if condition > 1:
        assert np.median(numbers) > condition / 2, "the bound is made use of"
    x, error = (jax.random.normal(jax.random.key(k), (200, 8, 9)) for k in (1, 2))
    lengths = [
        np.linalg.norm(np.asarray(rows).reshape(200, -1), axis=1)
        for rows in (inverse @ error, x, error, matrix @ x)
    ]
    amplified = (lengths[0] / lengths[1]) / (lengths[2] / lengths[3])
    assert amplified.max() <= condition * (1 + 1e-3)


def test_bounds_on_conditions_are_checked():
    with pytest.raises(UsageError, match=r"condition is 0\.5"):
        mixing.conditioned(0.5)


def test_decoys_look_like_the_rest_and_their_answers_are_dropped():
    defense = built(decoys=2)
    assert (defense.group_size, defenses.rows_of(defense).sent) == (4, 6)
    z = jnp.tile(Z, (40, 1, 1, 1)) + jax.random.normal(RNG_KEY, (320, 6, 5, 3))
    secret, sent = played(defense, z)
    members = np.asarray(mixing.unmix(secret.inner, sent)).reshape(80, 6, 6, 5, 3)
    np.testing.assert_allclose(members[:, :4].reshape(z.shape), z, atol=1e-4)
    decoys = members[:, 4:].reshape(160, 6, 5, 3)
    # 160 draws: means within 6 standard errors of 90 positions, deviations within 35%.
    deviation = np.asarray(z.std(0))
    assert np.abs(decoys.mean(0) - z.mean(0)).max() < 6 * deviation.max() / np.sqrt(160)
    np.testing.assert_allclose(decoys.std(0), deviation, rtol=0.35)
    assert defense.cost(90, 10) == (6 * 90 * 6 // 4, 6 * 10 * 6 // 4, 1.5, 0.0)


def test_decoys_of_a_single_image_would_be_that_image():
    defense = defenses.build(DefenseConfig(group_size=1, decoys=5))
    with pytest.raises(UsageError, match="batch_size is 1, and decoys"):
        defense.init(RNG_KEY, 1, False)
    defense.init(RNG_KEY, 2, False)


def test_blinding_is_drawn_before_the_request_and_hides_by_its_size():
    defense = built(blinding=4.0)
    secret, sent = played(defense)
    other = defense.protect(secret, Z**2)
    np.testing.assert_array_equal(sent[8:], other[8:])  # known before the activations are
    rows = np.asarray(sent[:8]), np.asarray(sent[8:])
    assert abs(float(np.std(rows[1])) / 4 - 1) < 0.05  # 720 numbers: 2 standard errors
    mixed = np.asarray(rows[0] - rows[1])
    assert abs(float(mixed.std()) - 1) < 1e-3
    assert abs(np.corrcoef(rows[0].ravel(), mixed.ravel())[0, 1] - 1 / np.sqrt(17)) < 0.12
    assert defense.cost(90, 10) == (5 * 90, 40, 1.0, 1.0)
    again, _ = played(defense, seed=1)
    assert not np.allclose(defense.protect(again, Z)[8:], sent[8:])


def test_blinding_is_right_for_an_additive_main_and_not_for_another():
    images = jax.random.normal(jax.random.key(1), (8, 40, 36, 3))
    blinded, mixed = built(blinding=4.0), built()

    def features(main, defense):
        model, variables = with_main(main)
        return np.ravel(inference.trace(model, defense, variables, RNG_KEY, images).features)

    for main, right in ((averages, True), (lambda v, z: averages(v, jax.nn.relu(z)), False)):
        alike = np.corrcoef(features(main, blinded), features(main, mixed))[0, 1]
        assert (alike > 0.9999) == right


def test_company_changes_the_size_of_blinded_answers_by_one_factor_and_nothing_else():
    weights = jax.random.normal(RNG_KEY, (90, 7))
    defense, mixed = built(blinding=1.0), built()
    answers, deviations = [], []
    for z in (Z, Z.at[4:].multiply(3.0)):  # another group, louder
        secret, sent = played(defense, z)
        answers.append(defense.recover(secret, sent.reshape(len(sent), -1) @ weights)[:4])
        deviations.append(jnp.std(mixed.protect(secret.inner, z)))
    assert deviations[1] > 1.5 * deviations[0]
    own = Z[:4].reshape(4, -1) @ weights
    for found, deviation in zip(answers, deviations, strict=True):
        np.testing.assert_allclose(found * deviation, own, atol=1e-2)


def test_a_single_image_that_padding_would_make_the_decoys_of_is_refused():
    model, variables = with_main(averages)
    image = jax.random.normal(RNG_KEY, (1, 40, 36, 3))
    with pytest.raises(UsageError, match="1 image, but decoys"):
        inference.infer(model, built(decoys=2), variables, RNG_KEY, image)
    for options in ({}, {"blinding": 1.0}, {"clouds": 2}):
        assert len(inference.infer(model, built(**options), variables, RNG_KEY, image)) == 1
    both = jnp.concatenate([image, -image])
    assert len(inference.infer(model, built(decoys=2), variables, RNG_KEY, both)) == 2


def test_rounding_rounds_and_lets_gradients_pass():
    defense, exact = built(wire="int4"), built()
    secret, sent = played(defense)
    assert max(len(np.unique(sent[b, :, :, c])) for b in range(8) for c in range(3)) <= 15

    def gradient(some):
        return jax.grad(lambda z: jnp.sum(some.protect(secret, z) * Z))(Z)

    np.testing.assert_allclose(gradient(defense), gradient(exact), atol=1e-5)
    assert np.abs(gradient(defense)).max() > 0.1


def test_blinding_is_rounded_where_it_is_sent_and_not_on_the_edge():
    (_, sent), (_, exact) = played(built(blinding=1.0, wire="int4")), played(built(blinding=1.0))
    np.testing.assert_array_equal(sent[8:], exact[8:])
    assert np.abs(sent[:8] - exact[:8]).max() > 0.01


def test_one_cloud_sees_its_share_of_every_group(tiny_source):
    model, variables = with_main(averages)

    def recorded(shuffled, **options):
        target = attacks.Target(
            model=model, defense=built(**options), variables=variables, source=tiny_source
        )
        rows = attacks.recorded_rows(target, 3)
        return attacks.record(target, rows, rng_key=RNG_KEY, shuffled=shuffled)

    whole = by_group(recorded(False).view.mixtures, recorded(False))
    for shuffled in (False, True):
        shared = recorded(shuffled, clouds=2)
        assert shared.view.group_size == 2
        assert np.bincount(shared.groups).tolist() == [2, 2, 2]
        assert len(shared.view.responses) == len(shared.view.mixtures) == 6
        seen = np.asarray(by_group(shared.view.mixtures, shared))
        off = np.abs(seen[:, :, None] - np.asarray(whole)[:, None, :2]).max((3, 4, 5)).min(2)
        assert off.max() < 1e-5
        assert truth_by_group(shared.activations, shared).shape[:2] == (3, 4)
        np.testing.assert_allclose(shared.owner_activations, shared.activations, atol=1e-4)
    # Blinded rows that stay on the edge are shown to no one; decoys are.
    assert len(recorded(False, blinding=1.0).view.mixtures) == 12
    decoyed = recorded(False, decoys=2)
    assert decoyed.view.group_size == 6
    assert truth_by_group(decoyed.activations, decoyed).shape[:2] == (3, 4)


def test_scores_take_more_or_fewer_sources_than_images():
    truth = np.random.default_rng(0).normal(size=(2, 4, 30)).astype(np.float32)
    more = np.concatenate([truth[:, :1] * 0 + np.eye(30, dtype=np.float32)[0], -truth], axis=1)
    np.testing.assert_allclose(blind.recovery(more, truth), 1, atol=1e-6)
    np.testing.assert_allclose(blind.matched(more, truth), truth, atol=1e-6)
    fewer = truth[:, [2, 0]]
    assert blind.recovery(fewer, truth).shape == (2, 2)
    np.testing.assert_allclose(blind.recovery(fewer, truth), 1, atol=1e-6)
    expected = truth.copy()
    expected[:, [1, 3]] = 0
    np.testing.assert_allclose(blind.matched(fewer, truth), expected, atol=1e-6)
    with pytest.raises(UsageError, match="alike"):
        blind.recovery(truth[:, :, :5], truth)


def test_separation_is_told_whether_the_matrix_is_orthogonal():
    assert built().orthogonal
    assert built(decoys=2).orthogonal
    for options in ({"family": "conditioned"}, {"family": "gaussian"}, {"clouds": 2}):
        assert not built(**options).orthogonal


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"clouds": 3}, "clouds 3 does not divide"),
        ({"defense": "none", "blinding": 1.0}, "'none'"),
        ({"defense": "blur", "scatter": True}, "scatter need groups"),
        ({"decoys": 2, "scatter": True}, "scatter deals"),
        ({"wire": "int3"}, "int3"),
    ],
)
def test_what_does_not_go_together_is_refused(options, words):
    with pytest.raises(UsageError, match=words):
        built(**options)


def test_the_same_defence_is_the_same_object_until_it_is_registered_anew(monkeypatch):
    config = DefenseConfig(group_size=4)
    first = defenses.build(config)
    assert defenses.build(config) is first
    assert defenses.build(DefenseConfig(group_size=8)) is not first
    monkeypatch.setitem(mixing.FAMILIES, "haar", mixing.FAMILIES["hadamard"])
    secret = defenses.build(config).init(jax.random.key(0), 4, True)
    np.testing.assert_allclose(np.abs(secret.matrix), 0.5, atol=1e-6)
