import functools

import jax
import jax.numpy as jnp
import pytest

from facemix_jax import linearity
from facemix_jax._validate import UsageError


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
    x = jax.random.normal(jax.random.key(1), (max(group_size, 16), 9, 7, 4), dtype)
    return linearity.measure(
        main, x, rng_key=jax.random.key(2), group_size=group_size, num_keys=3
    ).per_key


@pytest.mark.parametrize("group_size", [2, 8, 32, 128])
def test_linear_main_unmixes_exactly_in_float32(group_size):
    assert error_of(linear_main, group_size, jnp.float32).max() <= 1e-5


@pytest.mark.parametrize("group_size", [2, 8, 32, 128])
def test_linear_main_unmixes_exactly_in_float64(group_size):
    with jax.enable_x64(True):
        assert error_of(linear_main, group_size, jnp.float64).max() <= 1e-13


@pytest.mark.parametrize(
    "change", [jax.nn.relu, lambda y: y + jnp.ones((1, 1), y.dtype)], ids=["relu", "bias"]
)
def test_one_nonlinearity_is_seen(change):
    assert error_of(lambda x: change(linear_main(x)), 8, jnp.float32).min() > 1e-3


def test_error_is_zero_for_signed_permutations_of_an_odd_function():
    from facemix_jax import mixing

    x = jax.random.normal(jax.random.key(1), (16, 5))
    measure = functools.partial(
        linearity.measure, jnp.tanh, x, rng_key=jax.random.key(0), group_size=8
    )
    assert measure(family=mixing.signed_permutation).mean < 1e-6
    assert measure(family=mixing.haar).mean > 0.01


def test_group_size_must_divide():
    with pytest.raises(UsageError, match="8 does not divide"):
        linearity.measure(
            linear_main, jnp.ones((12, 9, 7, 4)), rng_key=jax.random.key(0), group_size=8
        )
