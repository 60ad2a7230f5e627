"""Losses that bring codes nearer to Gaussian, and training with them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facemix_jax import defenses, fitting, gaussian_codes, mixing, training
from facemix_jax._validate import UsageError
from facemix_jax.data import DataConfig, load_source, normalize
from facemix_jax.defenses import DefenseConfig
from facemix_jax.gaussian_codes import code_gradients, sliced_negentropy
from facemix_jax.models import ModelConfig, resnet18
from facemix_jax.models.split import cut_tiles
from facemix_jax.runs import RunConfig
from facemix_jax.training import TrainConfig

pytestmark = pytest.mark.library_promotes  # Optax

KEY = jax.random.key(3)
KINDS = {
    "gaussian": jax.random.normal,
    "laplace": jax.random.laplace,
    "uniform": functools.partial(jax.random.uniform, minval=-1.0),
    "skewed": jax.random.exponential,
}


def samples(kind, shape=(512, 8, 4)):
    return KINDS[kind](jax.random.key(0), shape)


# Negentropy.


def test_negentropy_is_about_zero_for_gaussian_samples_of_any_scale():
    shape = (512, 8, 4)
    scale = jnp.exp(jax.random.normal(jax.random.key(1), shape[1:]))[None]
    for x in (samples("gaussian"), 3 + scale * samples("gaussian")):
        # Each of the terms is of the order of 1 / 4096; 20 seeds lie below 4e-4.
        assert float(sliced_negentropy(x, KEY)) < 1e-3


@pytest.mark.parametrize("kind", ["laplace", "uniform", "skewed"])
def test_negentropy_is_clearly_positive_for_others(kind):
    assert float(sliced_negentropy(samples(kind), KEY)) > 1e-2


def test_along_the_axes_it_is_near_the_exact_negentropy_of_laplace_samples():
    exact = 0.5 * np.log(2 * np.pi * np.e) - 1 - 0.5 * np.log(2)
    found = float(sliced_negentropy(samples("laplace", (4096, 8, 4)), KEY, slices=0))
    assert abs(found - exact) < 0.02  # .087 and .072: it is an approximation


def test_mixing_examples_lowers_it_and_leaves_gaussian_samples_alone():
    mix_key = mixing.sample_mix_key(jax.random.key(2), 64, 8, shuffle=False)
    for kind, falls in (("laplace", True), ("gaussian", False)):
        x = samples(kind)
        before, after = (float(sliced_negentropy(s, KEY)) for s in (x, mixing.mix(mix_key, x)))
        assert (after < 0.5 * before) is falls
        assert after < 1e-2


def check_far_from_gaussian(images):
    x = normalize(images)
    noise = jax.random.normal(KEY, x.shape)
    found = [float(sliced_negentropy(code_gradients(i), KEY)) for i in (x, noise)]
    assert found[0] > 0.05 > 10 * found[1]


def test_gradients_of_pictures_with_edges_are_far_from_gaussian():
    levels = np.random.default_rng(0).integers(0, 256, (64, 5, 4, 3), np.uint8)
    check_far_from_gaussian(levels.repeat(4, axis=1).repeat(4, axis=2))


@pytest.mark.slow
def test_gradients_of_faces_are_far_from_gaussian():
    source = load_source(DataConfig(image_size=(40, 34), train_examples=64, test_examples=8))
    check_far_from_gaussian(source.images(np.arange(64)))


def test_gradients_of_tiles_are_those_of_each_example():
    maps = jax.random.normal(KEY, (6, 4, 6, 2))
    found = code_gradients(cut_tiles(maps, (2, 3)), tiles=4)
    assert found.shape == (6, 4 * 2, 4)
    np.testing.assert_array_equal(found[:, 0, :2], maps[:, 1, 0] - maps[:, 0, 0])
    np.testing.assert_array_equal(found[:, -1, 2:], maps[:, 2, 5] - maps[:, 2, 4])
    np.testing.assert_array_equal(code_gradients(maps)[:, 0, 2:], maps[:, 0, 1] - maps[:, 0, 0])


def test_a_few_steps_down_its_slope_make_samples_more_gaussian():
    """A toy pre: Laplace samples through a curve that can bend towards the normal quantiles."""
    x = samples("laplace", (256, 4, 4))

    def loss(bend):
        return sliced_negentropy(jnp.sign(x) * jnp.abs(x) ** jnp.exp(bend), KEY)

    bend = jnp.float32(0)
    start = float(loss(bend))
    for _ in range(20):
        bend = bend - 5 * jax.grad(loss)(bend)
    assert float(bend) < 0
    assert float(loss(bend)) < 0.2 * start


# What Gaussian codes hide.


def off_the_mean(rows, mean):
    """Rows less the share of the mean that they hold."""
    return rows - np.outer(rows @ mean / (mean @ mean), mean)


@pytest.mark.parametrize("deviations", [0.5, 0.0])
def test_a_common_mean_of_gaussian_codes_gives_the_sum_of_a_group_away(deviations):
    """Mixture k holds the mean times the sum of row k; with a mean of zero it tells nothing."""
    rng = np.random.default_rng(0)
    direction = rng.normal(size=720)  # the attacker's, from codes of other images
    mean = deviations * direction
    codes = (mean + rng.normal(size=(8, 720))).astype(np.float32)
    mix_key = mixing.sample_mix_key(jax.random.key(0), 1, 8, shuffle=False)
    mixtures = np.asarray(mixing.mix(mix_key, codes))
    sums = mixtures @ direction
    found, true, *single = off_the_mean(
        np.stack([sums @ mixtures, codes.sum(0), *mixtures]), direction
    )
    reached = np.corrcoef(found, true)[0, 1]
    floor = max(abs(np.corrcoef(row, true)[0, 1]) for row in single)
    if deviations:
        np.testing.assert_allclose(sums / (mean @ direction), mix_key.matrix[0].sum(1), atol=0.3)
        assert floor < 0.6 < 0.98 < reached
    else:
        assert abs(reached) < floor


# The discriminator.


def learnt_advantage(codes, steps=150):
    """Of a discriminator after some steps, on codes that it has not seen."""
    learn = jax.jit(functools.partial(gaussian_codes.improve, group_size=8))
    discriminator = gaussian_codes.init_discriminator(KEY, codes.shape[-1])
    state = gaussian_codes.OPTIMIZER.init(discriminator)
    shown, kept = codes[:-128], codes[-128:]
    for index in range(steps):
        key = jax.random.fold_in(KEY, index)
        rows = jax.random.randint(key, (32,), 0, len(shown))
        discriminator, state = learn(discriminator, state, shown[rows], key)
    return float(gaussian_codes.advantage(discriminator, kept, KEY, group_size=8))


def test_a_discriminator_tells_single_laplace_codes_but_no_gaussian_ones():
    shape = (640, 8, 8, 3)
    assert learnt_advantage(jax.random.laplace(KEY, shape) ** 3) > 0.2
    assert abs(learnt_advantage(jax.random.normal(KEY, shape))) < 0.1


def test_an_untrained_discriminator_has_no_advantage():
    discriminator = gaussian_codes.init_discriminator(KEY, 3)
    codes = jax.random.laplace(KEY, (16, 5, 4, 3))
    assert abs(float(gaussian_codes.advantage(discriminator, codes, KEY, group_size=8))) < 1e-6


# Training.


def train_config(**options):
    base = {"num_epochs": 1, "batch_size": 32, "learning_rate": 3e-3, "warmup_fraction": 0.0}
    return TrainConfig(**{**base, "log_every": 2, "checkpoint_every": 2, **options})


@pytest.mark.slow
def test_training_with_the_terms_makes_codes_more_gaussian(tiny_source):
    model = resnet18(image_size=(40, 36), width=4, num_attributes=3, stem="signed", centre=True)
    found = {}
    for weight in (0.0, 30.0):
        config = train_config(negentropy_weight=weight, discriminator_weight=weight / 30)
        state = training.init_state(model, config, 60)
        step = training.make_train_step(model, defenses.facemix(), config, 60)
        for index in range(60):
            rows = 32 * (index % 4) + np.arange(32)
            state, _ = step(state, tiny_source.images(rows), tiny_source.attributes[rows])
        images = normalize(tiny_source.images(tiny_source.splits["test"]))
        codes = model.pre(state.variables["pre"], images)
        found[weight] = float(sliced_negentropy(code_gradients(codes), KEY))
    assert found[30.0] < 0.7 * found[0.0]


def test_without_weights_there_is_no_discriminator_and_no_term(tiny_source):
    model = resnet18(image_size=(40, 36), width=4, num_attributes=3)
    plain = training.init_state(model, train_config(), 4)
    with_one = training.init_state(model, train_config(discriminator_weight=1.0), 4)
    assert set(with_one.opt_state) == {"network", "discriminator", "for_discriminator"}
    same = jax.tree.map(np.array_equal, plain.opt_state, with_one.opt_state["network"])
    assert all(jax.tree.leaves(same))
    assert (
        float(
            gaussian_codes.penalty(
                jnp.ones((8, 4, 4, 2)),
                None,
                KEY,
                negentropy_weight=0.0,
                discriminator_weight=0.0,
                group_size=8,
            )
        )
        == 0.0
    )


def run_config(**options):
    return RunConfig(
        model=ModelConfig(width=4, stem="signed", centre=True),
        defense=DefenseConfig(noise=0.5),
        train=train_config(negentropy_weight=10.0, discriminator_weight=1.0, **options),
    )


@pytest.mark.slow
def test_an_interrupted_run_ends_as_an_uninterrupted_one(tmp_path, tiny_source):
    whole = fitting.fit(run_config(), tmp_path / "whole", source=tiny_source, show_progress=False)

    class StopError(Exception):
        pass

    class Stopping:
        left = 3

        def __getattr__(self, name):
            return getattr(tiny_source, name)

        def __len__(self):
            return len(tiny_source)

        def images(self, rows):
            self.left -= 1
            if not self.left:
                raise StopError
            return tiny_source.images(rows)

    with pytest.raises(StopError):
        fitting.fit(run_config(), tmp_path / "part", source=Stopping(), show_progress=False)
    resumed = fitting.fit(run_config(), tmp_path / "part", source=tiny_source, show_progress=False)
    for name in ("variables", "opt_state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(resumed, name), getattr(whole, name))
    other = dataclasses.replace(run_config(), train=train_config(negentropy_weight=5.0))
    with pytest.raises(UsageError, match="negentropy_weight"):
        fitting.fit(other, tmp_path / "part", source=tiny_source, show_progress=False)


def test_a_discriminator_of_groups_without_the_decoys_is_refused():
    decoyed = DefenseConfig(decoys=4)
    with pytest.raises(UsageError, match=r"discriminator_weight is 1\.0 and decoys 4.*alone"):
        RunConfig(defense=decoyed, train=train_config(discriminator_weight=1.0))
    RunConfig(defense=decoyed, train=train_config(negentropy_weight=1.0))


def test_terms_without_mixing_are_refused():
    with pytest.raises(UsageError, match="negentropy_weight"):
        RunConfig(defense=DefenseConfig(defense="none"), train=train_config(negentropy_weight=1.0))
    with pytest.raises(UsageError, match="discriminator_weight"):
        train_config(discriminator_weight=-1.0)
