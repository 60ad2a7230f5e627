import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facemix_jax import linearity, mixing
from facemix_jax._validate import UsageError
from facemix_jax.linearity import precision
from facemix_jax.linearity.end_to_end import draw_keys
from facemix_jax.models.split import side_by_side


def linear_main(x):
    """Two convolutions, a strided one among them, average pooling and a product: no bias."""
    keys = jax.random.split(jax.random.key(7), 3)
    convolve = functools.partial(
        jax.lax.conv_general_dilated,
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision="highest",
    )
    x = convolve(x, jax.random.normal(keys[0], (3, 3, 4, 8), x.dtype), (1, 1))
    x = convolve(x, jax.random.normal(keys[1], (3, 3, 8, 8), x.dtype), (2, 2))
    x = x.mean(axis=(1, 2))
    return jnp.matmul(x, jax.random.normal(keys[2], (8, 16), x.dtype), precision="highest")


def error_of(main, group_size, dtype):
    x = jax.random.normal(jax.random.key(1), (max(group_size, 16), 5, 4, 4), dtype)
    return linearity.measure(
        main, x, rng_key=jax.random.key(2), group_size=group_size, num_keys=3
    ).per_key


@pytest.mark.parametrize("group_size", [2, 32, 1024])
def test_linear_main_unmixes_exactly_in_float32(group_size):
    assert error_of(linear_main, group_size, jnp.float32).max() <= 1e-5


@pytest.mark.parametrize("group_size", [2, 32, 1024])
def test_linear_main_unmixes_exactly_in_float64(group_size):
    with jax.enable_x64(True):
        assert error_of(linear_main, group_size, jnp.float64).max() <= 1e-13


@pytest.mark.parametrize(
    "change", [jax.nn.relu, lambda y: y + jnp.ones((1, 1), y.dtype)], ids=["relu", "bias"]
)
def test_one_nonlinearity_is_seen(change):
    assert error_of(lambda x: change(linear_main(x)), 8, jnp.float32).min() > 1e-3


def test_error_is_zero_for_signed_permutations_of_an_odd_function():
    x = jax.random.normal(jax.random.key(1), (16, 5))
    measure = functools.partial(
        linearity.measure, jnp.tanh, x, rng_key=jax.random.key(0), group_size=8
    )
    assert measure(family=mixing.signed_permutation).mean < 1e-6
    assert measure(family=mixing.haar).mean > 0.01


@pytest.mark.parametrize("rows_at_once", [1, 16, 32, 1000])
def test_chunks_change_nothing(rows_at_once):
    x = jax.random.normal(jax.random.key(1), (16, 5))
    options = {"rng_key": jax.random.key(0), "group_size": 4, "num_keys": 5}
    error = linearity.measure(jax.nn.relu, x, **options, rows_at_once=rows_at_once)
    keys = jax.random.split(jax.random.key(0), 5)
    for key, measured in zip(keys, error.per_key, strict=True):
        mix_key = mixing.sample_mix_key(key, 4, 4, shuffle=False)
        alone = linearity.unmix_error(jax.nn.relu, mix_key, x)
        assert float(measured) == pytest.approx(float(alone), rel=1e-5)
    assert error.per_group.shape == (5, 4)
    sizes = jnp.square(jax.nn.relu(x)).reshape(4, -1).sum(1)
    joined = jnp.sqrt((jnp.square(error.per_group) * sizes[None]).sum(1) / sizes.sum())
    np.testing.assert_allclose(joined, error.per_key, rtol=1e-5)


@pytest.mark.parametrize("rows_at_once", [1, 1000])
def test_tiles_are_read_image_by_image_for_each_key(rows_at_once):
    x = jax.random.normal(jax.random.key(1), (3 * 8, 5))  # three tiles of eight images
    options = {"rng_key": jax.random.key(0), "group_size": 4, "num_keys": 5}
    read = functools.partial(side_by_side, tiles=3)
    error = linearity.measure(jax.nn.relu, x, **options, read=read, rows_at_once=rows_at_once)
    mix_keys = draw_keys(options["rng_key"], x, 4, 5, mixing.haar)
    for mix_key, measured in zip(mix_keys, error.per_key, strict=True):
        alone = linearity.unmix_error(jax.nn.relu, mix_key, x, read=read)
        assert float(measured) == pytest.approx(float(alone), rel=1e-5)
    assert error.per_group.shape == (5, 2)
    sizes = jnp.square(read(jax.nn.relu(x))).reshape(2, -1).sum(1)
    joined = jnp.sqrt((jnp.square(error.per_group) * sizes[None]).sum(1) / sizes.sum())
    np.testing.assert_allclose(joined, error.per_key, rtol=1e-5)


def test_drawn_keys_are_those_of_measure():
    drawn = draw_keys(jax.random.key(0), jnp.ones((16, 5)), 4, 3, mixing.haar)
    for key, mix_key in zip(jax.random.split(jax.random.key(0), 3), drawn, strict=True):
        expected = mixing.sample_mix_key(key, 4, 4, shuffle=False)
        assert mix_key.order is None
        np.testing.assert_allclose(mix_key.matrix, expected.matrix, atol=1e-6)


def test_spread_is_told_apart_by_keys_and_by_inputs():
    error = linearity.UnmixError(
        per_key=jnp.array([2.0, 6.0]),
        per_group=jnp.array([[1.0, 2.0], [3.0, 6.0]]),  # means over keys: 2 and 4
        condition=jnp.ones(2),
    )
    assert (error.mean, error.standard_deviation) == (4, 2)
    assert error.standard_deviation_over_inputs == 1
    with_a_zero_result = jnp.pad(error.per_group, ((0, 0), (0, 1)), constant_values=jnp.inf)
    assert error._replace(per_group=with_a_zero_result).standard_deviation_over_inputs == 1
    # A single value says nothing of a spread, not that there is none.
    single = error._replace(per_key=error.per_key[:1], per_group=error.per_group[:, :1])
    assert math.isnan(single.standard_deviation)
    assert math.isnan(single.standard_deviation_over_inputs)


def test_main_is_compiled_once_for_all_group_sizes_and_families():
    traced = []

    def main(x):
        traced.append(x.shape)
        return x * 2

    x = jax.random.normal(jax.random.key(1), (16, 5))
    for group_size in (2, 4):
        for family in (mixing.haar, mixing.gaussian):
            linearity.measure(  # four keys in a chunk, the last of which is filled up
                main, x, rng_key=jax.random.key(0), group_size=group_size, num_keys=5, family=family
            )
    assert traced == [(64, 5)]


def test_ill_conditioned_matrices_enlarge_rounding():
    x = jax.random.normal(jax.random.key(1), (16, 9))
    errors = {
        number: linearity.measure(
            lambda y: y * jnp.float32(1.1),
            x,
            rng_key=jax.random.key(0),
            group_size=8,
            family=precision.conditioned(number),
        )
        for number in (1.0, 1e2, 1e4)
    }
    np.testing.assert_allclose(errors[1.0].condition, 1, rtol=1e-4)
    assert errors[1e2].mean > 3 * errors[1.0].mean
    assert errors[1e4].mean > 30 * errors[1e2].mean
    assert (errors[1e4].condition > 100).all()


def test_group_size_must_divide():
    with pytest.raises(UsageError, match="8 does not divide"):
        linearity.measure(
            linear_main, jnp.ones((12, 5, 4, 4)), rng_key=jax.random.key(0), group_size=8
        )
