import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pictures import mixed, patchwork
from sklearn.decomposition import FastICA

from facemix_jax import attacks, metrics, mixing
from facemix_jax._validate import DataError, UsageError
from facemix_jax.attacks import separation, unmixing

RNG_KEY = jax.random.key(7)


@pytest.mark.parametrize("group_size", [2, 4, 8])
def test_sparse_gradient_images_are_recovered(group_size):
    truth = patchwork(0, 4, group_size)
    mixtures, key = mixed(truth)
    found = attacks.separate(mixtures, rng_key=RNG_KEY)
    assert bool(found.converged.all())
    assert attacks.recovery(found.sources, truth).mean() > 0.99
    assert attacks.recovery(attacks.no_attack(mixtures), truth).mean() < 0.93
    for estimate, matrix in zip(found.unmixing, key.matrix, strict=True):
        assert metrics.amari_distance(estimate, matrix) < 0.05


def test_gaussian_white_noise_cannot_be_separated():
    # A rotation of Gaussian vectors has their own distribution: nothing identifies it.
    truth = jax.random.normal(jax.random.key(1), (4, 8, 40, 32, 3))
    mixtures, _ = mixed(truth)
    found = attacks.separate(mixtures, rng_key=RNG_KEY)
    floor = attacks.recovery(attacks.no_attack(mixtures), truth).mean()
    assert abs(attacks.recovery(found.sources, truth).mean() - floor) < 0.08
    assert bool(jnp.isfinite(found.sources).all())


def test_scale_of_orthogonal_mixing_is_recovered():
    truth = patchwork(1, 4, 4) * jnp.array([1.0, 1.2, 1.5, 2.0]).reshape(1, 4, 1, 1, 1)
    mixtures, _ = mixed(truth)
    found = attacks.separate(mixtures, rng_key=RNG_KEY)
    for sources, images in zip(found.sources, truth, strict=True):
        match = metrics.matched_correlation(sources, images)
        ratio = np.std(sources, axis=(1, 2, 3))[match.permutation] / np.std(images, axis=(1, 2, 3))
        np.testing.assert_allclose(ratio, 1, atol=0.1)


def test_sign_of_maps_after_a_relu_is_recovered():
    truth = jax.nn.relu(patchwork(2, 4, 4))
    mixtures, _ = mixed(truth)
    found = attacks.separate(mixtures, rng_key=RNG_KEY)
    for sources, images in zip(found.sources, truth, strict=True):
        assert (metrics.matched_correlation(sources, images).signs > 0).all()


def test_unmixing_applied_to_mixtures_gives_the_sources():
    mixtures, _ = mixed(patchwork(3, 4, 4))
    found = attacks.separate(mixtures, rng_key=RNG_KEY)
    again = jax.vmap(mixing.mix_group)(found.unmixing, mixtures)
    np.testing.assert_allclose(found.sources, again, atol=1e-5)
    gram = jnp.matmul(found.unmixing, found.unmixing.mT)
    np.testing.assert_allclose(gram, np.broadcast_to(np.eye(4), gram.shape), atol=1e-5)


@pytest.mark.parametrize("change", ["order", "signs", "rotation"])
def test_changed_mixtures_give_the_same_images(change):
    mixtures, _ = mixed(patchwork(4, 4, 4))
    if change == "order":
        changed = mixtures[:, jnp.array([2, 0, 3, 1])]
    elif change == "signs":
        changed = mixtures * jnp.array([1.0, -1.0, -1.0, 1.0]).reshape(1, 4, 1, 1, 1)
    else:
        changed, _ = mixed(mixtures, seed=9)
    found, again = (attacks.separate(m, rng_key=RNG_KEY) for m in (mixtures, changed))
    assert attacks.recovery(again.sources, found.sources).min() > 0.9999


def test_groups_do_not_influence_each_other():
    mixtures, _ = mixed(patchwork(5, 4, 4))
    together = attacks.separate(mixtures, rng_key=RNG_KEY)
    replaced = mixtures.at[1:].set(jax.random.normal(jax.random.key(2), mixtures[1:].shape))
    apart = attacks.separate(replaced, rng_key=RNG_KEY)
    np.testing.assert_allclose(together.sources[0], apart.sources[0], atol=1e-5)


def test_agrees_with_scikit_learn():
    mixtures, _ = mixed(patchwork(6, 4, 4))
    found = attacks.separate(mixtures, rng_key=RNG_KEY, orthogonal=False)
    for estimate, mixture in zip(found.unmixing, np.asarray(mixtures), strict=True):
        differences = [np.diff(mixture, axis=axis).reshape(4, -1) for axis in (1, 2)]
        reference = FastICA(tol=1e-6, max_iter=500, random_state=0, whiten_solver="eigh")
        reference.fit(np.concatenate(differences, 1).T.astype(np.float64))
        assert metrics.amari_distance(estimate, np.linalg.inv(reference.components_)) < 0.02


def test_other_mixing_than_orthogonal_is_separated_when_told():
    truth = patchwork(7, 4, 4)
    mixtures, _ = mixed(truth, mixing.gaussian)
    told, untold = (
        attacks.recovery(
            attacks.separate(mixtures, rng_key=RNG_KEY, orthogonal=orthogonal).sources, truth
        ).mean()
        for orthogonal in (False, True)
    )
    assert told > 0.98
    assert told > untold


def test_accelerators_vmap_gives_what_the_loop_gives(monkeypatch):
    mixtures, _ = mixed(patchwork(8, 4, 4))
    loop = attacks.separate(mixtures, rng_key=RNG_KEY)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    batch = attacks.separate(mixtures, rng_key=RNG_KEY)
    np.testing.assert_allclose(batch.sources, loop.sources, atol=1e-3)
    np.testing.assert_array_equal(batch.converged, loop.converged)


def test_products_ask_for_the_highest_precision():
    mixtures = jnp.zeros((2, 4, 8, 8, 1))
    jaxpr = str(jax.make_jaxpr(lambda m: attacks.separate(m, rng_key=RNG_KEY))(mixtures))
    products = jaxpr.count("dot_general[")
    assert products > 5
    assert jaxpr.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") == products


def test_no_convergence_is_reported():
    mixtures, _ = mixed(patchwork(9, 4, 8))
    found = attacks.separate(mixtures, rng_key=RNG_KEY, max_iterations=1, tolerance=1e-7)
    assert not bool(found.converged.any())
    assert bool(jnp.isfinite(found.sources).all())


@pytest.mark.parametrize("case", ["equal", "zero", "constant", "grey", "black_channel", "huge"])
def test_degenerate_groups_stay_finite(case):
    truth = patchwork(10, 4, 4)
    truth = {
        "equal": truth.at[:, 1].set(truth[:, 0]),
        "zero": jnp.zeros_like(truth),
        "constant": jnp.ones_like(truth),
        "grey": jnp.broadcast_to(truth[..., :1], truth.shape),
        "black_channel": truth.at[..., 2].set(0.0),
        "huge": truth * 1e6,
    }[case]
    mixtures, _ = mixed(truth)
    found = attacks.separate(mixtures, rng_key=RNG_KEY)
    assert bool(jnp.isfinite(found.sources).all())
    assert bool(jnp.isfinite(found.unmixing).all())
    if case in ("grey", "black_channel", "huge"):
        assert attacks.recovery(found.sources, truth).mean() > 0.97


def test_maps_one_position_wide_are_separated():
    truth = patchwork(11, 2, 2, height=200, width=8)[:, :, :, :1]
    mixtures, _ = mixed(truth)
    sources = attacks.separate(mixtures, rng_key=RNG_KEY).sources
    assert sources.shape == truth.shape
    assert attacks.recovery(sources, truth).mean() > 0.99
    assert attacks.recovery(attacks.no_attack(mixtures), truth).mean() < 0.93


@pytest.mark.parametrize("shape", [(4, 8, 8, 3), (2, 1, 8, 8, 3), (2, 4, 1, 1, 3)])
def test_shapes_that_cannot_be_separated_are_an_error(shape):
    with pytest.raises(UsageError, match="separation needs"):
        attacks.separate(jnp.zeros(shape), rng_key=RNG_KEY)


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
def test_values_that_are_not_finite_are_an_error(value):
    mixtures, evidence = jnp.zeros((2, 2, 8, 8, 1)), jnp.zeros((2, 2, 8, 8, 1)).at[1, 0].set(value)
    for arguments in ({"mixtures": evidence}, {"mixtures": mixtures, "evidence": evidence}):
        with pytest.raises(DataError, match="NaN or infinities"):
            attacks.separate(**arguments, rng_key=RNG_KEY)


def test_options_out_of_range_are_an_error():
    mixtures = jnp.zeros((2, 2, 8, 8, 1))
    for option in ({"restarts": 0}, {"max_iterations": 0}, {"tolerance": 0.0}):
        with pytest.raises(UsageError, match=next(iter(option))):
            attacks.separate(mixtures, rng_key=RNG_KEY, **option)


def test_report_holds_attacker_floor_and_owner():
    truth = patchwork(12, 4, 4)
    mixtures, key = mixed(truth)
    owner = jax.vmap(mixing.mix_group)(key.inverse, mixtures)
    report = attacks.evaluate_separation(mixtures, truth, owner, rng_key=RNG_KEY)
    correlation, recovered = report.figures
    assert correlation.owner == pytest.approx(1)
    assert correlation.floor < 0.9 < 0.98 < correlation.value <= correlation.owner
    assert correlation.value == pytest.approx(report.attacker.mean())
    assert correlation.key_advantage == pytest.approx(correlation.owner - correlation.value)
    assert recovered.value == recovered.owner == 1
    assert all("no key" in figure.threat_model for figure in report.figures)


def test_recovery_of_other_groups_is_an_error():
    with pytest.raises(UsageError, match="groups that were mixed"):
        attacks.recovery(np.zeros((2, 4, 8)), np.zeros((3, 4, 8)))


def test_threads_give_what_one_core_gives_bit_for_bit(monkeypatch):
    mixtures, _ = mixed(patchwork(0, 4, 4))
    mixtures = jnp.concatenate([mixtures] * 4)
    run, groups, found = separation._separate, [], []

    def counted(x, *rest):
        groups.append(len(x))
        return run(x, *rest)

    monkeypatch.setattr(separation, "_separate", counted)
    for cores in (1, 2):
        monkeypatch.setattr(unmixing.os, "cpu_count", lambda cores=cores: cores)
        found.append(attacks.separate(mixtures, rng_key=RNG_KEY))
    assert groups == [16, 8, 8]
    jitted = jax.jit(lambda x: attacks.separate(x, rng_key=RNG_KEY))(mixtures)
    np.testing.assert_allclose(jitted.sources, found[0].sources, atol=1e-3)
    for one, two in zip(*found, strict=True):
        np.testing.assert_array_equal(one, two)
