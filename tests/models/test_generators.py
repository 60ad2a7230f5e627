"""The CycleGAN generator: its shape, its count, and the pieces that differ between libraries."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from facemix_jax import costs
from facemix_jax.models import generators
from facemix_jax.models.generators import resnet9_generator


@functools.cache
def _small():
    generator = resnet9_generator(features=4, num_blocks=1)
    shape = jax.ShapeDtypeStruct((2, 16, 12, 3), jnp.float32)
    abstract = jax.eval_shape(generator.init, jax.random.key(0), shape)
    stream = np.random.default_rng(0)  # drawing in JAX would compile one program for each kernel
    variables = jax.tree.map(
        lambda x: jnp.asarray(0.1 * stream.standard_normal(x.shape), x.dtype), abstract
    )
    return jax.jit(generator.apply), variables


def test_images_keep_their_shape_and_stay_in_range():
    apply, variables = _small()
    images = jax.random.uniform(jax.random.key(1), (2, 16, 12, 3), minval=-1.0, maxval=1.0)
    output = apply(variables, images)
    assert output.shape == images.shape
    assert output.dtype == jnp.float32
    assert bool(jnp.all(jnp.abs(output) < 1))
    assert float(jnp.std(output)) > 1e-3


def test_bfloat16_is_the_convolutions_alone():
    _, variables = _small()
    images = jax.random.uniform(jax.random.key(1), (2, 16, 12, 3), minval=-1.0, maxval=1.0)
    small = {"features": 4, "num_blocks": 1}
    wide, narrow = (
        generators.ResNetGenerator(**small, dtype=dtype) for dtype in (jnp.float32, jnp.bfloat16)
    )
    made = jax.eval_shape(narrow.init, jax.random.key(0), images)
    assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {jnp.dtype(jnp.float32)}
    expected, rounded = (np.asarray(network.apply(variables, images)) for network in (wide, narrow))
    assert rounded.dtype == np.float32
    error = np.abs(rounded - expected).max()
    # More than a float32 sum in another order, and no more than a few roundings to eight bits.
    assert 1e-4 < error < 0.05
    x = (100 + jax.random.normal(jax.random.key(2), (1, 64, 64, 2))).astype(jnp.bfloat16)
    normed = generators.instance_norm(x)
    assert normed.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(normed, np.float32).std((1, 2)), 1, atol=0.01)


def test_examples_do_not_touch_each_other():
    apply, variables = _small()
    images = jax.random.normal(jax.random.key(1), (2, 16, 12, 3))
    alone = apply(variables, images[:1].repeat(2, axis=0))
    np.testing.assert_allclose(apply(variables, images)[0], alone[0], rtol=0, atol=1e-5)


def test_full_size_has_the_anonymizers_parameters():
    generator = resnet9_generator()
    image = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
    variables = jax.eval_shape(generator.init, jax.random.key(0), image)
    assert costs.parameters(variables) == (11_378_179, 0)
    assert jax.eval_shape(generator.apply, variables, image).shape == image.shape
    kinds = [layer.kind for layer in costs.linear_layers(generator.apply, variables, image)]
    assert kinds == ["conv"] * (3 + 2 * 9) + ["transposed conv"] * 2 + ["conv"]


def test_instance_norm_centres_and_scales_each_channel_of_each_example():
    x = 5 + 3 * np.random.default_rng(0).standard_normal((3, 9, 7, 4)).astype(np.float32)
    y = np.asarray(generators.instance_norm(jnp.asarray(x)))
    np.testing.assert_allclose(y.mean((1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(y.std((1, 2)), 1, atol=1e-5)
    # It does not see a channel's scale or shift, and is not BatchNorm: examples stay apart.
    np.testing.assert_allclose(generators.instance_norm(jnp.asarray(2 * x - 1)), y, atol=1e-4)
    assert not np.allclose(y, (x - x.mean((0, 1, 2))) / x.std((0, 1, 2)), atol=1e-2)


@pytest.mark.parametrize("size", [1, 3])
def test_borders_are_reflected(size):
    x = np.arange(40, dtype=np.float32).reshape(1, 5, 4, 2)
    padded = np.asarray(generators._reflect_pad(jnp.asarray(x), size))
    np.testing.assert_array_equal(padded[:, size:-size, size:-size], x)
    np.testing.assert_array_equal(padded[0, size - 1, size:-size], x[0, 1])


def test_transposed_convolution_lies_where_pytorchs_does():
    """Padding 1 and output padding 1: input ``i`` reaches outputs ``2i - 1`` to ``2i + 1``."""
    up = nn.ConvTranspose(1, (3, 3), (2, 2), padding=generators.UP_PADDING, use_bias=False)
    variables = {"params": {"kernel": jnp.ones((3, 3, 1, 1))}}
    impulse = jnp.zeros((1, 6, 6, 1)).at[0, 2, 4, 0].set(1.0)
    output = up.apply(variables, impulse)
    assert output.shape == (1, 12, 12, 1)
    rows, columns = np.nonzero(np.asarray(output)[0, :, :, 0])
    assert set(rows) == {3, 4, 5}
    assert set(columns) == {7, 8, 9}
    same = nn.ConvTranspose(1, (3, 3), (2, 2), padding="SAME", use_bias=False)
    elsewhere = np.nonzero(np.asarray(same.apply(variables, impulse))[0, :, :, 0])[0]
    assert set(elsewhere) != {3, 4, 5}
