import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facemix_jax import linearity, mixing, models
from facemix_jax.linearity import precision, theory

CONVOLVE = functools.partial(
    jax.lax.conv_general_dilated,
    window_strides=(1, 1),
    padding="SAME",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    precision="highest",
)

SHAPES = [
    # group size, channels in, (kernel size or "pool" or "dense", channels out) of each layer
    (2, 4, [(3, 8)]),
    (8, 4, [(3, 8), (3, 8), (1, 16), ("pool", 0)]),
    (8, 16, [("pool", 0), ("dense", 64), ("dense", 32)]),
    (64, 2, [(1, 4), (3, 16)]),
]
MORE_SHAPES = [
    (m, c, layers)
    for m in (2, 4, 8, 32, 256)
    for c in (3, 32)
    for layers in (
        [(3, 32)],
        [("pool", 0), ("dense", 128)],
        [(3, 16), (1, 64), (5, 8)],
        [(3, 16)] * 8,
    )
]


def ratios(shape, num_trials, dtype, seed=0):
    """Measured error over bound of random linear mains: weights, inputs and keys all random."""
    group_size, channels, layers = shape
    batch = max(group_size, 16)
    fan_ins = []
    for kind, out in layers:
        fan_ins.append(30 if kind == "pool" else channels * (1 if kind == "dense" else kind**2))
        channels = out or channels
    channels = shape[1]

    def main(rng_key, x):
        for index, (kind, out) in enumerate(layers):
            key = jax.random.fold_in(rng_key, index)
            if kind == "pool":
                x = x.mean((1, 2))
                continue
            size = () if kind == "dense" else (kind, kind)
            w = jax.random.normal(key, (*size, x.shape[-1], out), jnp.float32).astype(dtype)
            x = jnp.matmul(x, w, precision="highest") if kind == "dense" else CONVOLVE(x, w)
        return x

    @jax.jit
    def trial(rng_key):
        x_key, w_key, mix_rng_key = jax.random.split(rng_key, 3)
        x = jax.random.normal(x_key, (batch, 6, 5, channels), jnp.float32)
        # As after a ReLU: of one sign.
        x = jnp.abs(x).astype(dtype)
        mix_key = mixing.sample_mix_key(mix_rng_key, batch // group_size, group_size)
        return linearity.unmix_error(functools.partial(main, w_key), mix_key, x)

    bound = theory.rounding_bound(jnp.dtype(dtype), group_size=group_size, fan_ins=fan_ins)
    keys = jax.random.split(jax.random.key(seed), num_trials)
    return np.array([trial(k) for k in keys]) / bound


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rounding_stays_below_the_bound_and_within_ten_times_of_it(shape, dtype):
    measured = ratios(shape, 20, dtype)
    assert measured.max() <= 1
    assert measured.min() >= 0.1


def test_float64_obeys_the_same_bound():
    with jax.enable_x64(True):
        measured = ratios(SHAPES[1], 5, "float64")
    assert 0.1 <= measured.min() <= measured.max() <= 1


def test_a_tightened_bound_is_exceeded():
    measured = ratios((8, 3, [(3, 32)]), 50, "float32")
    assert (measured > 1 / 4).all()
    assert (measured > 1 / 2).any()


@pytest.mark.slow
def test_bound_holds_in_ten_thousand_trials():
    measured = np.concatenate(
        [ratios(shape, 250, "float32", seed) for seed, shape in enumerate(MORE_SHAPES)]
    )
    assert len(measured) == 10_000
    assert measured.max() <= 1
    assert measured.min() >= 0.1


def test_ill_conditioned_keys_stay_below_the_bound():
    x = jnp.abs(jax.random.normal(jax.random.key(1), (64, 40)))
    w = jax.random.normal(jax.random.key(2), (40, 40))

    def main(x):
        return jnp.matmul(x, w, precision="highest")

    for number in (10.0, 1e3):
        error = linearity.measure(
            main,
            x,
            rng_key=jax.random.key(0),
            group_size=16,
            num_keys=16,
            family=precision.conditioned(number),
        )
        bounds = [
            theory.rounding_bound(
                jnp.dtype("float32"), group_size=16, fan_ins=[40], condition=float(c)
            )
            for c in error.condition
        ]
        ratio = error.per_key / jnp.array(bounds)
        assert 0.1 <= float(jnp.sqrt((ratio**2).mean())) <= 1
        worst = theory.rounding_bound(
            jnp.dtype("float32"), group_size=16, fan_ins=[40], condition=number
        )
        assert (error.per_key <= worst).all()


def test_fan_ins_are_read_off_the_variables():
    model = models.resnet18(width=4, cut=8, image_size=(40, 36))
    shapes = jax.eval_shape(model.init, jax.random.key(0))["main"]
    # The second block of the last stage: two 3x3 convolutions of 32 channels, two BatchNorms.
    assert sorted(theory.fan_ins(shapes)) == [1, 1, 288, 288]


def test_a_segment_without_weights_has_no_fan_ins():
    assert theory.fan_ins({}) == []


@pytest.fixture
def pair():
    """A key and the one with the opposite matrix; Haar draws both with equal density."""
    key = mixing.sample_mix_key(jax.random.key(5), 3, 4)
    return key, mixing.MixKey(-key.matrix, -key.inverse, key.order)


def squared_error(main, key, x):
    return float(jnp.square(mixing.unmix(key, main(mixing.mix(key, x))) - main(x)).sum())


def test_affine_error_is_exact(pair):
    x = jax.random.normal(jax.random.key(1), (12, 6))
    constant = jax.random.normal(jax.random.key(2), (6,))

    def main(x):
        return 2 * x + constant[None]

    for key in pair:
        measured = mixing.unmix(key, main(mixing.mix(key, x))) - main(x)
        np.testing.assert_allclose(theory.affine_error(key, constant), measured, atol=1e-5)
    expected = 12 * (theory.EXPECTED_AFFINE * jnp.linalg.norm(constant)) ** 2
    found = np.mean([squared_error(main, key, x) for key in pair])
    assert found == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("mean", [-1.5, 0.0, 2.0])
def test_relu_error_holds_exactly_in_the_mean_of_opposite_keys(pair, mean):
    x = jax.random.gamma(jax.random.key(1), 2.0, (12, 50)) + mean  # no Gaussian
    direct = float(jnp.square(jax.nn.relu(x)).sum())
    found = np.mean([squared_error(jax.nn.relu, key, x) for key in pair]) / direct
    assert found == pytest.approx(float(theory.relu_error(x)) ** 2, rel=1e-4)


def test_relu_error_of_gaussian_activations():
    x = jax.random.normal(jax.random.key(1), (200_000,))
    for mean in (-1.0, 0.0, 1.5):
        # 200,000 draws: one standard error is under 0.005 in all three cases.
        assert theory.relu_error_gaussian(mean) == pytest.approx(
            float(theory.relu_error(x + mean)), rel=0.02
        )
    assert theory.relu_error_gaussian() == pytest.approx(1, abs=1e-12)
    assert theory.relu_error_gaussian(9.0) == pytest.approx(theory.NONNEGATIVE_FLOOR, abs=1e-12)


def test_haar_keys_reach_what_relu_theory_says():
    x = jax.random.normal(jax.random.key(1), (8, 400)) + 0.5
    error = linearity.measure(jax.nn.relu, x, rng_key=jax.random.key(2), group_size=8, num_keys=400)
    found = float(jnp.sqrt(jnp.mean(jnp.square(error.per_key))))
    # The standard error over keys is 0.005 of it; 5 of them are no accident (false alarm 6e-7).
    assert found == pytest.approx(float(theory.relu_error(x)), rel=0.025)


@pytest.mark.parametrize("seed", range(3))
def test_no_nonnegative_main_gets_below_its_floor(pair, seed):
    keys = jax.random.split(jax.random.key(seed), 3)
    w, shift = jax.random.normal(keys[0], (6, 6)), jax.random.normal(keys[1], (6,))
    x = jax.random.normal(keys[2], (12, 6))

    def linear(x):
        return jnp.matmul(x, w, precision="highest")

    def root_mean_square(main):
        direct = float(jnp.square(main(x)).sum())
        return (np.mean([squared_error(main, key, x) for key in pair]) / direct) ** 0.5

    for main in (
        lambda x: jax.nn.relu(linear(x)),
        lambda x: jax.nn.relu(linear(x) + 3 * shift[None]),
        lambda x: jnp.abs(linear(x)),
        lambda x: jnp.exp(0.1 * linear(x)),
    ):
        assert root_mean_square(main) >= theory.NONNEGATIVE_FLOOR - 1e-6
    # Negative results are what the floor does not cover.
    assert root_mean_square(linear) < 1e-5
    assert root_mean_square(lambda x: linear(x) + 0.1 * jax.nn.relu(linear(x))) < 0.3
