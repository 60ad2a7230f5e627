"""The stem pools first in training and normalises then; it must make no difference."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from facemix_jax.models import resnet

WIDTH = 6
IMAGES = jax.random.normal(jax.random.key(1), (4, 30, 26, 3))


def stem(dtype):
    """A stem whose scales are of both signs, and its variables."""
    module = resnet.Stem(WIDTH, "batch", dtype)
    variables = module.init(jax.random.key(0), IMAGES, False)
    scale, bias = jax.random.normal(jax.random.key(2), (2, WIDTH))
    assert {-1, 1} == set(np.sign(scale).tolist())
    params = {**variables["params"], "bn1": {"bn": {"scale": scale, "bias": bias}}}
    return module, {**variables, "params": params}


def in_order(variables, images, dtype):
    """Convolution, BatchNorm, ReLU, max-pool, as Flax has them."""
    params = variables["params"]
    conv = nn.Conv(WIDTH, (7, 7), (2, 2), padding=3, use_bias=False, dtype=dtype)
    x = conv.apply({"params": params["conv1"]}, images)
    own = {"params": params["bn1"]["bn"], "batch_stats": variables["batch_stats"]["bn1"]["bn"]}
    norm = nn.BatchNorm(use_running_average=False, momentum=0.9, epsilon=1e-5, dtype=dtype)
    x, updates = norm.apply(own, x, mutable=["batch_stats"])
    return nn.max_pool(nn.relu(x), (3, 3), (2, 2), ((1, 1), (1, 1))), updates["batch_stats"]


@pytest.mark.library_promotes
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_training_stem_has_the_values_of_batchnorm_then_relu_then_max_pool(dtype):
    module, variables = stem(dtype)
    found, updates = module.apply(variables, IMAGES, True, mutable=["batch_stats"])
    wanted, running = in_order(variables, IMAGES, dtype)
    np.testing.assert_array_equal(found, wanted)
    chex.assert_trees_all_equal(updates["batch_stats"]["bn1"]["bn"], running)
    # Inference has the running statistics, and other values.
    assert not np.allclose(found, module.apply(variables, IMAGES, False), atol=0.1)


@pytest.mark.library_promotes
def test_a_training_stem_has_the_gradient_of_batchnorm_then_relu_then_max_pool():
    module, variables = stem(jnp.float32)
    weights = jax.random.normal(jax.random.key(3), (4, 8, 7, WIDTH))

    def of_stem(params, images):
        own = {**variables, "params": params}
        return jnp.sum(weights * module.apply(own, images, True, mutable=["batch_stats"])[0])

    def of_order(params, images):
        return jnp.sum(weights * in_order({**variables, "params": params}, images, jnp.float32)[0])

    found, wanted = (
        jax.grad(loss, (0, 1))(variables["params"], IMAGES) for loss in (of_stem, of_order)
    )
    chex.assert_trees_all_close(found, wanted, rtol=1e-4, atol=1e-4)
