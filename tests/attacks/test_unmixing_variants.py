import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attack_support import make_target
from pictures import mixed, patchwork

from facemix_jax import attacks, defenses, metrics, mixing
from facemix_jax._validate import UsageError
from facemix_jax.attacks import adversarial, robust, suite, vectors
from facemix_jax.attacks.nonnegative import separate_nonnegative
from facemix_jax.attacks.picard import picard
from facemix_jax.defenses import DefenseConfig

RNG_KEY = jax.random.key(7)
SEPARATIONS = {
    "iva": vectors.separate_groups,
    "nonnegative": separate_nonnegative,
    "picard": functools.partial(attacks.separate, solver=picard),
}


def floor(mixtures, truth):
    return attacks.recovery(attacks.no_attack(mixtures), truth).mean()


@pytest.mark.parametrize("name", SEPARATIONS)
def test_images_after_a_relu_are_recovered_in_scale_and_sign(name):
    # Of 48 drawn groups, vector analysis left two images of a group mixed in five; here in none.
    truth = jax.nn.relu(patchwork(3, 4, 8, height=64, width=48))
    mixtures, _ = mixed(truth)
    found = SEPARATIONS[name](mixtures, rng_key=RNG_KEY)
    assert bool(found.converged.all())
    assert attacks.recovery(found.sources, truth).mean() > 0.99 > 0.9 > floor(mixtures, truth)
    for sources, images in zip(found.sources, truth, strict=True):
        match = metrics.matched_correlation(sources, images)
        assert (match.signs > 0).all()
        ratio = np.std(sources, axis=(1, 2, 3))[match.permutation] / np.std(images, axis=(1, 2, 3))
        np.testing.assert_allclose(ratio, 1, atol=0.1)
    again = jax.vmap(mixing.mix_group)(found.unmixing, mixtures)
    np.testing.assert_allclose(found.sources, again, atol=1e-5)


@pytest.mark.parametrize("name", ["iva", "picard"])
def test_a_matrix_that_is_not_orthogonal_is_met_by_an_attack_that_is_told(name):
    told = defenses.build(DefenseConfig(group_size=4, family="gaussian"))
    target = dataclasses.replace(make_target(), defense=told)
    recording = attacks.record(target, attacks.recorded_rows(target, 4), rng_key=jax.random.key(1))
    reached = []
    for orthogonal in (False, True):
        seen = dataclasses.replace(target, defense=told._replace(orthogonal=orthogonal))
        found = suite.ATTACKS[name].run(seen, recording, RNG_KEY, attacks.AttackConfig())
        reached.append(found.figures[0].value)
    assert reached[0] > 0.99
    assert reached[1] < 0.95


@pytest.mark.parametrize("name", SEPARATIONS)
def test_gaussian_noise_cannot_be_separated(name):
    truth = jax.random.normal(jax.random.key(1), (4, 8, 40, 32, 3))
    mixtures, _ = mixed(truth)
    found = SEPARATIONS[name](mixtures, rng_key=RNG_KEY)
    # Twelve seeds stayed within 0.05 of the floor.
    reached = attacks.recovery(found.sources, truth).mean()
    assert abs(reached - floor(mixtures, truth)) < 0.08


@pytest.mark.parametrize("name", SEPARATIONS)
@pytest.mark.parametrize("case", ["equal", "zero", "constant"])
def test_degenerate_groups_stay_finite(name, case):
    truth = jax.nn.relu(patchwork(1, 4, 8))
    truth = {
        "equal": truth.at[:, 1].set(truth[:, 0]),
        "zero": jnp.zeros_like(truth),
        "constant": jnp.ones_like(truth),
    }[case]
    found = SEPARATIONS[name](mixed(truth)[0], rng_key=RNG_KEY)
    assert bool(jnp.isfinite(found.sources).all())
    assert bool(jnp.isfinite(found.unmixing).all())


@pytest.mark.parametrize("name", SEPARATIONS)
def test_accelerators_batch_gives_what_the_loop_gives(name, monkeypatch):
    truth = jax.nn.relu(patchwork(2, 2, 4))
    mixtures, _ = mixed(truth)
    loop = SEPARATIONS[name](mixtures, rng_key=RNG_KEY)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    batch = SEPARATIONS[name](mixtures, rng_key=RNG_KEY)
    np.testing.assert_allclose(batch.sources, loop.sources, atol=2e-3)


def test_images_that_are_not_nonnegative_are_left_mixed_by_nonnegative_separation():
    truth = patchwork(6, 4, 8)
    mixtures, _ = mixed(truth)
    found = separate_nonnegative(mixtures, rng_key=RNG_KEY)
    assert attacks.recovery(found.sources, truth).mean() < 0.95


def test_sets_under_different_matrices_come_back_in_one_order():
    truth = patchwork(7, 2, 4, channels=6).reshape(2, 4, 40, 32, 3, 2)
    truth = jnp.moveaxis(truth, 4, 1)  # [G, K, M, H, W, C]: three sets of two channels
    keys = mixing.haar(jax.random.key(3), 6, 4)[0].reshape(2, 3, 4, 4)
    mixtures = jax.vmap(jax.vmap(mixing.mix_group))(keys, truth)
    found = vectors.separate_vectors(mixtures, rng_key=RNG_KEY)
    for group, images in zip(found.sources, truth, strict=True):
        matches = [metrics.matched_correlation(*p) for p in zip(group, images, strict=True)]
        assert min(m.mean for m in matches) > 0.98
        assert all((m.permutation == matches[0].permutation).all() for m in matches)
    # Control: one by one, the sets come back too, each in an order of its own.
    alone = [vectors.separate_vectors(mixtures[:, [s]], rng_key=RNG_KEY) for s in range(3)]
    orders = [
        metrics.matched_correlation(a.sources[0, 0], truth[0, s]) for s, a in enumerate(alone)
    ]
    assert any((o.permutation != orders[0].permutation).any() for o in orders)


@pytest.mark.parametrize("shape", [(1, 4, 8, 8, 3), (2, 1, 1, 8, 8, 3), (2, 1, 4, 1, 8, 3)])
def test_shapes_without_vectors_are_an_error(shape):
    with pytest.raises(UsageError, match="vector analysis needs"):
        vectors.separate_vectors(jnp.zeros(shape), rng_key=RNG_KEY)


def test_the_sign_resists_noise_that_gradients_do_not():
    truth = jax.nn.relu(patchwork(8, 4, 8, channels=16))
    noise = 2 * truth.std() * jax.random.normal(jax.random.key(4), truth.shape)
    mixtures = mixed(truth)[0] + noise
    owner = attacks.recovery(truth + noise, truth).mean()
    by_sign, by_gradients = (
        attacks.recovery(separate(mixtures, rng_key=RNG_KEY).sources, truth).mean()
        for separate in (separate_nonnegative, attacks.separate)
    )
    assert by_sign > owner - 0.02
    assert by_gradients < owner - 0.1, "the control"


def test_filters_commute_with_mixing():
    # Channels of different energies: axes of equal ones are not determined.
    truth = (
        patchwork(9, 2, 4, channels=6)
        * jnp.array([32, 16, 8, 4, 2, 1], jnp.float32)[None, None, None, None]
        / 32
    )
    mixtures, key = mixed(truth)
    filtered = robust.filtered(truth, 2, 3)
    np.testing.assert_allclose(
        jax.vmap(mixing.mix_group)(key.matrix, filtered),
        robust.filtered(mixtures, 2, 3),
        atol=1e-4,
    )
    assert jnp.linalg.matrix_rank(filtered.reshape(-1, 6)) == 3


def test_evidence_of_other_groups_is_an_error():
    with pytest.raises(UsageError, match="evidence has shape"):
        attacks.separate(
            jnp.zeros((2, 4, 8, 8, 1)), rng_key=RNG_KEY, evidence=jnp.zeros((2, 3, 8, 8, 1))
        )


def test_picard_ends_where_fast_ica_does():
    mixtures, _ = mixed(patchwork(2, 4, 8))
    by_picard, by_fast_ica = (
        attacks.separate(mixtures, rng_key=RNG_KEY, solver=solver, orthogonal=False)
        for solver in (picard, attacks.separation.fast_ica)
    )
    for one, other in zip(by_picard.unmixing, by_fast_ica.unmixing, strict=True):
        assert metrics.amari_distance(one, jnp.linalg.inv(other)) < 0.02


@pytest.mark.parametrize("kind", ["flat", "peaked", "both", "gaussian"])
def test_picard_tells_flat_and_peaked_sources(kind):
    keys = jax.random.split(jax.random.key(3), 3)
    flat = jax.random.uniform(keys[0], (4, 20_000), minval=-1.0, maxval=1.0)
    peaked = jax.random.laplace(keys[1], (4, 20_000))
    sources = {
        "flat": flat,
        "peaked": peaked,
        "both": jnp.concatenate([flat[:2], peaked[:2]]),
        "gaussian": jax.random.normal(keys[2], (4, 20_000)),
    }[kind]
    white = sources / sources.std(1, keepdims=True)
    mixing_matrix = jax.random.orthogonal(keys[0], 4)
    rotation, _, turned = picard(jnp.matmul(mixing_matrix, white), jnp.eye(4), 100, 1e-6)
    np.testing.assert_allclose(jnp.matmul(rotation, rotation.T), jnp.eye(4), atol=1e-5)
    separated = jnp.abs(jnp.matmul(rotation, mixing_matrix)).max(1) > 0.99
    if kind == "gaussian":
        assert not separated.all()
    else:
        assert separated.all()
        assert turned <= 1e-6


@pytest.mark.library_promotes
def test_a_discriminator_of_single_images_guides_the_unmixing():
    truth, others = jax.nn.relu(patchwork(10, 4, 4)), jax.nn.relu(patchwork(11, 1, 64)[0])
    mixtures, _ = mixed(truth)
    trained, untrained = (
        adversarial.separate_adversarially(mixtures, others, rng_key=RNG_KEY, steps=steps)
        for steps in (400, 1)
    )
    reached, start = (attacks.recovery(s.sources, truth).mean() for s in (trained, untrained))
    assert start < 0.88 < 0.98 < reached
    gram = jnp.matmul(trained.unmixing, trained.unmixing.mT)
    np.testing.assert_allclose(gram, np.broadcast_to(np.eye(4), gram.shape), atol=1e-4)
