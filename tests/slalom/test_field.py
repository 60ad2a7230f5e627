"""Exact arithmetic modulo a prime, against Python's integers."""

import jax
import numpy as np
import pytest
from scipy import stats

from facemix_jax._validate import UsageError
from facemix_jax.slalom import field
from facemix_jax.slalom.field import LARGEST_PRIME, PRIME, Geometry


def exact(x, weights, prime=None):
    """The product in Python's integers, which never overflow."""
    made = x.astype(object) @ weights.astype(object)
    return (made if prime is None else made % prime).astype(np.int64)


@pytest.mark.parametrize("prime", [PRIME, LARGEST_PRIME])
@pytest.mark.parametrize("weights_below", [200, None])
def test_products_are_exact_whatever_the_weights(prime, weights_below):
    rng = np.random.default_rng(0)
    x = rng.integers(prime - 1000, prime, (5, 3000))  # the largest elements, the worst case
    weights = rng.integers(prime - 1000, prime, (3000, 4))
    if weights_below:
        weights = rng.integers(-weights_below, weights_below, (3000, 4))
    np.testing.assert_array_equal(
        field.linear_mod(x, weights, None, prime), exact(x, weights, prime)
    )


def test_float64_alone_would_be_wrong():
    rng = np.random.default_rng(0)
    x, weights = rng.integers(PRIME - 1000, PRIME, (2, 5, 3000))
    naive = (x.astype(np.float64) @ weights.T.astype(np.float64)).astype(np.int64) % PRIME
    assert (naive != exact(x, weights.T, PRIME)).any()


def test_sums_just_below_the_bound_are_exact_and_others_refused():
    """A thousand terms of equal sign: the sum is the bound itself."""
    largest = 2**23
    weights = np.full((1024, 1), (2**53 - 1) // (1024 * largest))
    x = np.full((1, 1024), largest) - np.arange(1024) % 2
    np.testing.assert_array_equal(field.linear(x, weights, None, largest), exact(x, weights))
    with pytest.raises(UsageError, match=r"2\*\*53"):
        field.linear(x, weights + 1, None, largest)


def test_layers_too_large_for_any_pass_are_refused():
    wide = np.broadcast_to(np.int64(LARGEST_PRIME // 2), (1 << 23, 1))
    with pytest.raises(UsageError, match="too large"):
        field.linear_mod(np.zeros((1, 1 << 23), np.int64), wide, None, LARGEST_PRIME)


@pytest.mark.parametrize(
    ("strides", "padding"), [((1, 1), ((1, 1), (1, 1))), ((2, 2), ((3, 3), (0, 1)))]
)
def test_convolutions_are_jax_s(strides, padding):
    rng = np.random.default_rng(0)
    x, kernel = rng.integers(-9, 9, (2, 11, 8, 3)), rng.integers(-9, 9, (3, 3, 3, 5))
    expected = jax.lax.conv_general_dilated(
        x.astype(np.float32),
        kernel.astype(np.float32),
        strides,
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    found = field.linear(x, kernel, Geometry(strides, padding), 9)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("high", [5, 2**24 - 3, 2**32])
def test_draws_are_uniform(high):
    """Chi-squared over up to 64 cells; fixed seed, one right seed in a thousand would fail."""
    cells = min(high, 64)
    drawn = field.uniform((100_000,), high, np.random.default_rng(1).bytes)
    assert drawn.min() >= 0
    assert drawn.max() < high
    assert stats.chisquare(np.bincount(drawn * cells // high, minlength=cells)).pvalue > 1e-3


def test_the_test_of_uniformity_notices_a_remainder():
    words = np.frombuffer(np.random.default_rng(1).bytes(100_000), np.uint8) % 200
    assert stats.chisquare(np.bincount(words * 64 // 200, minlength=64)).pvalue < 1e-9


@pytest.mark.parametrize("prime", [2**24, 2, 2**31 + 11, 15])
def test_only_primes_that_fit_are_taken(prime):
    with pytest.raises(UsageError, match=str(prime)):
        field.check_prime(prime)
