"""Pix2Pix's networks: any size, and no way from one example to another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facemix_jax._validate import UsageError
from facemix_jax.models import pix2pix

RNG_KEY = jax.random.key(0)


@pytest.mark.parametrize(("size", "depth"), [((8, 8), 1), ((40, 36), 3), ((109, 89), 4)])
def test_the_unet_stops_halving_at_maps_of_four_to_seven(size, depth):
    assert pix2pix.unet_depth(size) == depth
    smallest = min(size) / 2**depth
    assert 4 <= smallest < 8


def test_images_too_small_are_refused():
    with pytest.raises(UsageError, match="7x30"):
        pix2pix.unet_depth((7, 30))


@pytest.mark.parametrize("size", [(8, 9), (21, 19), pytest.param((32, 32), marks=pytest.mark.slow)])
def test_the_unet_draws_at_any_size(size):
    network = pix2pix.unet(channels=6, features=2)
    x = jax.random.normal(jax.random.key(1), (3, *size, 5))
    variables = network.init(RNG_KEY, x)
    # Larger weights than the initial ones, so that what is drawn is not all zeros.
    y = np.asarray(network.apply(jax.tree.map(lambda leaf: 10 * leaf, variables), x))
    assert y.shape == (3, *size, 6)
    assert np.abs(y).max() <= 1
    assert y.std() > 1e-2


def test_examples_do_not_touch_each_other():
    x = jax.random.normal(jax.random.key(1), (3, 16, 17, 5))
    for network in (pix2pix.unet(channels=3, features=2), pix2pix.patch_discriminator(features=2)):
        variables = jax.tree.map(lambda leaf: 10 * leaf, network.init(RNG_KEY, x))
        together = np.asarray(network.apply(variables, x))
        alone = np.asarray(network.apply(variables, x[1:2]))
        np.testing.assert_allclose(together[1:2], alone, rtol=1e-4, atol=1e-5)
        assert not np.allclose(together[0], alone[0], atol=1e-3)


def test_the_discriminator_judges_patches():
    network = pix2pix.patch_discriminator(features=2)
    x = jnp.zeros((2, 40, 36, 7))
    assert network.apply(network.init(RNG_KEY, x), x).shape == (2, 5, 5, 1)


def test_doubling_deals_channels_out_to_four_neighbours():
    x = np.arange(2 * 3 * 2 * 8).reshape(2, 3, 2, 8)
    y = np.asarray(pix2pix._double(jnp.asarray(x)))
    assert y.shape == (2, 6, 4, 2)
    for row, column in np.ndindex(2, 2):
        first = 2 * (2 * row + column)
        np.testing.assert_array_equal(y[:, row::2, column::2], x[..., first : first + 2])
