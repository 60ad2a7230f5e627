"""Noise and blurring: what they send, and that attackers look for the clean image behind it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from facemix_jax import attacks, defenses, evaluation
from facemix_jax._validate import UsageError
from facemix_jax.attacks import restoration
from facemix_jax.defenses import perturb
from facemix_jax.models import resnet18

IMAGES = jax.random.normal(jax.random.key(1), (4, 40, 36, 3))


def sent(defense, images=IMAGES, seed=0):
    return defense.protect(defense.init(jax.random.key(seed), len(images), False), images)


@pytest.mark.parametrize("variance", [4.0, 8.0])
def test_noise_is_gaussian_with_its_variance(variance):
    """17,280 numbers of a fixed seed; a right sampler would fail one seed in a thousand."""
    added = np.asarray(sent(defenses.noise(variance=variance)) - IMAGES, np.float64).ravel()
    for claimed, right in ((variance, True), (1.3 * variance, False), (variance**2, False)):
        p = stats.kstest(added / np.sqrt(claimed), "norm").pvalue
        assert (p > 1e-3) == right, claimed


def test_noise_is_fresh_for_every_request():
    defense = defenses.noise(variance=4.0)
    assert not np.allclose(sent(defense), sent(defense, seed=1))
    np.testing.assert_array_equal(sent(defense), sent(defense))


def test_blurring_keeps_area_averages():
    """40 / 8 and 36 / 8 pixels an average; the latter are cut, and count by the part."""
    rows = np.asarray(IMAGES, np.float64).reshape(4, 8, 5, 36, 3).mean(2)
    fine = rows.repeat(2, axis=2).reshape(4, 8, 8, 9, 3).mean(3)  # half pixels
    expected = jax.image.resize(jnp.asarray(fine, jnp.float32), IMAGES.shape, "bilinear")
    np.testing.assert_allclose(sent(defenses.blur(size=8)), expected, atol=1e-5)
    coarser = sent(defenses.blur(size=7))
    assert np.abs(coarser - expected).max() > 0.1


@pytest.mark.parametrize(("length", "size"), [(218, 16), (178, 8), (5, 5), (7, 1)])
def test_area_weights_are_averages_that_count_every_position_alike(length, size):
    weights = perturb.area_weights(length, size)
    np.testing.assert_allclose(weights.sum(1), 1)
    np.testing.assert_allclose(weights.sum(0), size / length)


def test_a_blurred_image_has_no_more_numbers_than_positions():
    columns = sent(defenses.blur(size=4), jnp.eye(24 * 20).reshape(-1, 24, 20, 1))
    assert np.linalg.matrix_rank(np.asarray(columns).reshape(480, 480)) == 16


def test_maps_smaller_than_the_blur_are_refused():
    with pytest.raises(UsageError, match=r"blur_size is 16.*40 x 9"):
        sent(defenses.blur(size=16), IMAGES[:, :, :9])


def test_noise_is_finite():
    with pytest.raises(UsageError, match="image_noise_variance is inf, but must be a finite"):
        defenses.DefenseConfig(defense="noise", image_noise_variance=np.inf)


@pytest.mark.parametrize("field", ["image_noise_variance", "blur_size"])
def test_configurations_check_their_ranges(field):
    with pytest.raises(UsageError, match=field):
        defenses.DefenseConfig(**{field: 0})


def test_configurations_reach_their_defence():
    for name, options in (("noise", {"image_noise_variance": 8.0}), ("blur", {"blur_size": 8})):
        built = defenses.build(defenses.DefenseConfig(defense=name, **options))
        own = defenses.noise(variance=8.0) if name == "noise" else defenses.blur(size=8)
        assert built.name == name
        assert built.group_size == 1
        assert not built.keyed
        np.testing.assert_array_equal(sent(built), sent(own))


def smooth_source(tiny_source):
    """Blobs: images near few directions, which regression can learn."""

    class Smooth(type(tiny_source)):
        def __init__(self):
            super().__init__()
            rng = np.random.default_rng(3)
            axes = rng.standard_normal((6, 40 * 36 * 3))
            made = 128 + 40 * rng.standard_normal((192, 6)) @ axes / 2.5
            self._images = np.clip(made, 0, 255).astype(np.uint8).reshape(192, 40, 36, 3)

    return Smooth()


@pytest.mark.parametrize("variance", [4.0, 1e8])
def test_ridge_finds_what_lies_near_few_directions(tiny_source, variance):
    """Under noise that hides everything, it finds nothing: no truth leaks into the attack."""
    source = smooth_source(tiny_source)
    target = attacks.Target(
        model=resnet18(cut=0, image_size=(40, 36), width=4, num_attributes=3),
        defense=defenses.noise(variance=variance),
        variables={"pre": {}, "main": {}, "post": {}},
        source=source,
    )
    rows = source.splits["test"]
    clean = np.asarray(attacks.base.normalize(source.images(rows)))
    noisy = np.asarray(sent(target.defense, jnp.asarray(clean)))
    restored = restoration.restore(target, noisy, rng_key=jax.random.key(5))
    centred = [(x - clean.mean(0)).reshape(len(x), -1) for x in (restored, noisy, clean)]
    found, floor = (
        np.mean([abs(np.corrcoef(a, b)[0, 1]) for a, b in zip(x, centred[2], strict=True)])
        for x in centred[:2]
    )
    if variance < 100:
        assert found > 0.9 > floor + 0.3
    else:
        assert found < 0.5


@pytest.mark.parametrize(("split", "own"), [("test", "train"), ("train", "test")])
def test_ridge_learns_from_none_of_the_attacked_images(tiny_source, split, own):
    class Watched(type(tiny_source)):
        def images(self, indices):
            asked.update(np.ravel(indices).tolist())
            return super().images(indices)

    asked, source = set(), Watched()
    model = resnet18(cut=0, image_size=(40, 36), width=4, num_attributes=3)
    evaluation.evaluate_leakage(
        model,
        defenses.blur(size=8),
        model.init(jax.random.key(0)),
        source,
        rng_key=jax.random.key(0),
        split=split,
        num_groups=4,
    )
    assert asked == {*source.splits[split][:4].tolist(), *source.splits[own].tolist()}


def test_leakage_of_a_perturbation_is_restored_and_no_key_helps(tiny_source):
    model = resnet18(cut=0, image_size=(40, 36), width=4, num_attributes=3)
    leakage = evaluation.evaluate_leakage(
        model,
        defenses.noise(variance=4.0),
        model.init(jax.random.key(0)),
        smooth_source(tiny_source),
        rng_key=jax.random.key(0),
    )
    assert leakage.strongest == "restoration"
    (figure,) = leakage.figures.values()
    assert figure.value > figure.floor + 0.3
    assert figure.key_advantage == 0
    assert leakage.recovered.shape == leakage.truth.shape == (16, 1, 40, 36, 3)
