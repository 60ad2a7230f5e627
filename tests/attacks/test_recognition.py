"""Attackers that recognise: they succeed where little is hidden, and their scores are right."""

import copy
import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tile_faces import Faces, small_network

from facemix_jax import attacks, defenses, models
from facemix_jax._validate import UsageError
from facemix_jax.attacks import recognition, recognition_training
from facemix_jax.attacks import recognition_scores as scores

RNG_KEY = jax.random.key(0)
EFFORT = attacks.AttackConfig(num_groups=16, steps=120, batch_size=32)
ALL = (
    recognition.ATTRIBUTES,
    recognition.SET_ATTRIBUTES,
    recognition.IDENTITY,
    recognition.SET_IDENTITY,
)


def make_target(defense, model=None):
    model = model or small_network()
    variables = model.init(RNG_KEY)
    return attacks.Target(model=model, defense=defense, variables=variables, source=Faces())


def run(attack, target, effort=EFFORT):
    rows = target.source.splits["test"]
    recording = attacks.record(target, rows, rng_key=jax.random.key(1))
    assert attack.unsuitable(target) is None
    return attack.run(target, recording, jax.random.key(2), effort).figures


def each(attacks_, fast):
    """Parameters of a test: the fast ones, and the others as slow ones."""
    return [
        pytest.param(a, id=a.name, marks=[] if a in fast else pytest.mark.slow) for a in attacks_
    ]


@pytest.mark.library_promotes
def test_without_a_defence_the_attacker_is_the_owner():
    (figure,) = run(recognition.IDENTITY, make_target(defenses.none()))
    assert figure.value == figure.owner > 0.9
    assert figure.chance == 1 / 8
    assert figure.ceiling is None


@pytest.mark.library_promotes
@pytest.mark.parametrize("attack", each(ALL, (recognition.ATTRIBUTES, recognition.SET_IDENTITY)))
def test_attackers_beat_the_floor_where_groups_are_only_reordered(attack):
    """The negative control: a defence that hides the order alone gives the rest away."""
    weak = defenses.facemix(group_size=2, family="signed_permutation")
    for figure in run(attack, make_target(weak)):
        assert figure.value > figure.floor + 0.1
        assert figure.owner > 0.9
        if figure.ceiling is not None:
            # Half of the rows show the other member: the value may exceed the ceiling by chance,
            # by 3 standard errors of 64 rows.
            assert figure.value < figure.ceiling + 0.19
            assert figure.ceiling < figure.owner


@pytest.mark.slow
@pytest.mark.library_promotes
def test_a_network_that_learned_with_the_noise_recognises_more_in_what_the_owner_recovers():
    clean = make_target(defenses.facemix(group_size=2))
    noisy = dataclasses.replace(clean, defense=defenses.with_noise(clean.defense, 1.0))
    people = recognition.people_of(clean)
    classes, loss = clean.source.identities, recognition_training.identity_loss
    asked = np.tile(people.test, 4)
    seen = attacks.record(noisy, asked, rng_key=jax.random.key(1)).owner_activations
    shares = []
    for target in (clean, noisy):  # without noise the owner's network learns from clean rows
        owner = recognition_training.train_networks(
            target, 1, 8, loss, people.train, classes, jax.random.key(2), EFFORT
        ).owner
        shares.append((owner(seen)[:, 0].argmax(1) == classes[asked]).mean())
    assert shares[1] > shares[0] + 0.05


NETWORKS = [
    pytest.param(
        models.resnet18(cut=0, image_size=(40, 36), num_attributes=1, width=4, norm="none"),
        id="resnet18",
        marks=pytest.mark.slow,
    ),
    pytest.param(models.vgg16(cut=18, image_size=(40, 36), num_attributes=1, width=4), id="vgg16"),
]


@pytest.mark.library_promotes
@pytest.mark.parametrize("model", NETWORKS)
@pytest.mark.parametrize(
    "attack",
    each((recognition.SET_ATTRIBUTES, recognition.SET_IDENTITY), (recognition.SET_ATTRIBUTES,)),
)
def test_attackers_take_any_network_and_group(model, attack):
    effort = attacks.AttackConfig(num_groups=2, steps=1, batch_size=8)
    for figure in run(attack, make_target(defenses.facemix(group_size=8), model), effort):
        assert np.isfinite([figure.value, figure.owner, figure.floor]).all()
        # Who names 8 of 8 people is always right.
        assert figure.chance == (1 if attack is recognition.SET_IDENTITY else figure.floor)


def test_where_the_attackers_have_nothing_to_work_with(tiny_source):
    target = make_target(defenses.none())
    nobody_twice = dataclasses.replace(target, source=tiny_source)
    recording = attacks.record(target, np.arange(8), rng_key=RNG_KEY)
    for attack in (recognition.IDENTITY, recognition.SET_IDENTITY):
        assert "5 images" in attack.unsuitable(nobody_twice)
        with pytest.raises(UsageError, match="5 images"):
            attack.run(nobody_twice, recording, RNG_KEY, EFFORT)
        too_large = dataclasses.replace(target, defense=defenses.facemix(group_size=128))
        assert "one group of 128" in attack.unsuitable(too_large)
    without = copy.copy(target.source)
    without.attributes = without.attributes[:, :0]
    for attack in (recognition.ATTRIBUTES, recognition.SET_ATTRIBUTES):
        assert "no attributes" in attack.unsuitable(dataclasses.replace(target, source=without))
        assert attack.unsuitable(target) is None
    same = recording._replace(attributes=np.ones_like(recording.attributes))
    with pytest.raises(UsageError, match="both values"):
        recognition.ATTRIBUTES.run(target, same, RNG_KEY, EFFORT)


def naive_assignment_loss(logits, labels):
    cost = np.log1p(np.exp(-np.where(labels[None] > 0, logits[:, None], -logits[:, None])))
    cost = cost.mean(-1)
    orders = itertools.permutations(range(len(labels)))
    return min(np.mean([cost[i, j] for i, j in enumerate(order)]) for order in orders)


@pytest.mark.library_promotes
def test_attribute_loss_is_that_of_the_best_assignment():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((5, 4, 3)).astype(np.float32)
    labels = rng.integers(0, 2, (5, 4, 3))
    expected = np.mean([naive_assignment_loss(*pair) for pair in zip(logits, labels, strict=True)])
    got = recognition_training.attribute_loss(jnp.asarray(logits), jnp.asarray(labels))
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    shuffled = recognition_training.attribute_loss(
        jnp.asarray(logits), jnp.asarray(labels[:, ::-1])
    )
    np.testing.assert_allclose(shuffled, expected, rtol=1e-5)
    in_order = recognition_training.attribute_loss(
        jnp.asarray(logits).reshape(20, 1, 3), jnp.asarray(labels).reshape(20, 1, 3)
    )
    assert in_order > expected + 0.05


def test_identity_loss_ignores_order_and_is_the_usual_one_for_single_rows():
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.standard_normal((5, 3, 7)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 7, (5, 3)))
    loss = recognition_training.identity_loss
    np.testing.assert_allclose(loss(logits[:, ::-1], labels), loss(logits, labels), rtol=1e-5)
    np.testing.assert_allclose(loss(logits, labels[:, ::-1]), loss(logits, labels), rtol=1e-5)
    single = loss(logits[:, :1], labels[:, :1])
    probability = np.exp(logits[:, 0]) / np.exp(logits[:, 0]).sum(1, keepdims=True)
    expected = -np.log(probability[np.arange(5), labels[:, 0]]).mean()
    np.testing.assert_allclose(single, expected, rtol=1e-5)
    np.testing.assert_allclose(np.exp(recognition_training.presence(logits)).sum(1), 1, rtol=1e-5)


def test_shares_and_ceilings_by_hand():
    assert (
        scores.named_share(np.array([[5, 1, 4, 0], [0, 1, 2, 3]]), np.array([[0, 3], [2, 3]]))
        == 0.75
    )
    # Three different people: one row in three at best; with a pair, two in three.
    assert scores.identity_ceiling(np.array([[1, 2, 3]])) == pytest.approx(1 / 3)
    assert scores.identity_ceiling(np.array([[1, 2, 3], [4, 4, 5]])) == pytest.approx(1 / 2)
    # Pure groups give all away; equally mixed ones nothing.
    assert scores.attribute_ceiling(np.array([[[1], [1]], [[0], [0]]])) == 1
    assert scores.attribute_ceiling(np.array([[[1], [0]], [[0], [1]]])) == 0.5


def test_no_rule_over_groups_exceeds_the_attribute_ceiling():
    groups = np.random.default_rng(0).integers(0, 2, (4, 3, 1))
    flat, best = groups.reshape(-1), 0.0
    for answers in itertools.product((0, 1), repeat=4):
        said = np.repeat(answers, 3)
        recalls = [(said[flat == value] == value).mean() for value in (0, 1)]
        best = max(best, float(np.mean(recalls)))
    assert scores.attribute_ceiling(groups) == pytest.approx(best)


def test_matched_accuracy_does_not_know_the_order():
    rng = np.random.default_rng(0)
    true = rng.integers(0, 2, (6, 4, 5))
    every = np.ones(5, bool)
    flat = true.reshape(24, 5)
    assert scores.matched_balanced_accuracy(true[:, [2, 0, 3, 1]] > 0, flat, every) == 1
    wrong = scores.matched_balanced_accuracy(rng.integers(0, 2, true.shape) > 0, flat, every)
    assert 0.5 < wrong < 0.9
    constant = scores.matched_balanced_accuracy(np.zeros(true.shape, bool), flat, every)
    assert constant == 0.5


def test_counts_are_explained_fully_not_at_all_or_worse():
    rng = np.random.default_rng(0)
    true = rng.integers(0, 2, (6, 4, 3))
    flat, rates, every = true.reshape(24, 3), np.full(3, 0.5), np.ones(3, bool)
    assert scores.count_r2(40.0 * (2 * true - 1), flat, rates, every) == pytest.approx(1)
    assert scores.count_r2(np.zeros(true.shape), flat, rates, every) == pytest.approx(0)
    assert scores.count_r2(-40.0 * (2 * true - 1), flat, rates, every) < -1
    half = np.tile(true[:1, :1], (6, 4, 1))
    half[:, 2:] = 1 - half[:, 2:]  # two of four in every group, as the prior guess has it
    assert scores.count_r2(np.zeros(true.shape), half.reshape(24, 3), rates, every) is None


def test_what_stands_beside_single_rows_says_what_separated_them():
    weak = attacks.Figure("share", 0.1, 0.0, 0.9, "sees rows", 0.2)
    clean = make_target(defenses.facemix(group_size=2))
    noisy = dataclasses.replace(clean, defense=defenses.with_noise(clean.defense, 1.0))
    for target, name, known in (
        (clean, "share after gradient ICA", "sees groups"),
        (noisy, "share after robust separation", "sees groups; rehearses separations on images"),
    ):
        opened = recognition._opened(weak, 0.5, "sees groups", target)
        assert opened[:4] == (name, 0.5, 0.0, 0.9)
        assert opened.threat_model.startswith(known)
        assert ("rehearses" in opened.threat_model) == ("rehearses" in known)
        assert name.endswith(recognition.SEPARATED)
        assert recognition.unseparated(name) == recognition.unseparated("share") == "share"


@pytest.mark.library_promotes
def test_counts_that_everybody_guesses_have_no_figure():
    target = make_target(defenses.facemix(group_size=4))
    source = target.source
    source.attributes = (np.arange(192) % 4 < 2)[:, None].astype(np.int8)
    effort = attacks.AttackConfig(num_groups=2, steps=1, batch_size=8)
    (figure,) = run(recognition.SET_ATTRIBUTES, target, effort)
    assert figure.name.startswith("balanced")
