"""What a GPU computes otherwise is what JAX computes."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from facemix_jax import models
from facemix_jax.models import stem

STEM = functools.partial(
    jax.lax.conv_general_dilated,
    window_strides=(2, 2),
    padding=((3, 3), (3, 3)),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
)


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("size", [(12, 10), (13, 9), (8, 7)])
def test_a_stem_on_blocks_is_the_7x7_convolution(size):
    x, kernel = normal(0, 2, *size, 3), normal(1, 7, 7, 3, 5)
    convolve = stem.stem_on_blocks

    def loss(function):
        return lambda x, k: jnp.sum(jnp.sin(function(x, k)))

    chex.assert_trees_all_close(convolve(x, kernel), STEM(x, kernel), rtol=1e-5, atol=1e-4)
    wanted = jax.grad(loss(STEM), (0, 1))(x, kernel)
    chex.assert_trees_all_close(jax.grad(loss(convolve), (0, 1))(x, kernel), wanted, atol=1e-3)


@pytest.mark.parametrize("size", [(12, 10), (13, 9), (8, 7), (1, 2)])
def test_a_gathered_max_pool_equals_the_plain_one(size):
    x = normal(0, 2, *size, 3)

    def plain(x):
        return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))

    weights = normal(1, *plain(x).shape)
    np.testing.assert_array_equal(stem.gathered_max_pool(x), plain(x))
    wanted = jax.grad(lambda x: jnp.sum(weights * plain(x)))(x)
    found = jax.grad(lambda x: jnp.sum(weights * stem.gathered_max_pool(x)))(x)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    direction = normal(2, *x.shape)
    chex.assert_trees_all_close(
        jax.jvp(stem.gathered_max_pool, (x,), (direction,)),
        jax.jvp(plain, (x,), (direction,)),
        atol=1e-6,
    )


def test_a_tie_sends_its_gradient_once():
    x = jnp.ones((1, 6, 6, 1))
    slope = jax.grad(lambda x: jnp.sum(stem.gathered_max_pool(x)))(x)
    assert float(slope.sum()) == 9


@pytest.mark.parametrize(("platform", "own"), [("cpu", False), ("cuda", True), ("tpu", False)])
def test_only_a_gpu_computes_a_stem_so(platform, own):
    model = models.resnet18(image_size=(40, 36), width=4)
    variables = model.init(jax.random.key(0))["pre"]

    def slope(x):
        return jax.grad(lambda x: jnp.sum(model.pre(variables, x)))(x)

    x = jax.ShapeDtypeStruct((2, 40, 36, 3), jnp.float32)
    text = jax.export.export(jax.jit(slope), platforms=[platform])(x).mlir_module()
    assert ("select_and_scatter" not in text) == own
    assert bool(re.search(r"stablehlo\.convolution.*tensor<4x4x16x4xf32>", text)) == own
