"""What is compiled for CUDA computes what other platforms compute."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from facemix_jax import defenses, mixing, models, training
from facemix_jax.models import cuda

pytestmark = pytest.mark.library_promotes  # Optax

STEM = functools.partial(
    jax.lax.conv_general_dilated,
    window_strides=(2, 2),
    padding=((3, 3), (3, 3)),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
)


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.fixture
def as_on_cuda(monkeypatch):
    """Takes the branch for CUDA whatever the platform."""

    def choose(*args, default, **others):
        return others.get("cuda", default)(*args)

    monkeypatch.setattr(jax.lax, "platform_dependent", choose)


@pytest.mark.parametrize("size", [(12, 10), (13, 9), (8, 7)])
@pytest.mark.parametrize("train", [False, True])
def test_a_stem_on_blocks_is_the_7x7_convolution(as_on_cuda, size, train):
    x, kernel = normal(0, 2, *size, 3), normal(1, 7, 7, 3, 5)
    convolve = cuda.stem_convolution(train)

    def loss(function):
        return lambda x, k: jnp.sum(jnp.sin(function(x, k)))

    chex.assert_trees_all_close(convolve(x, kernel), STEM(x, kernel), rtol=1e-5, atol=1e-4)
    wanted = jax.grad(loss(STEM), (0, 1))(x, kernel)
    chex.assert_trees_all_close(jax.grad(loss(convolve), (0, 1))(x, kernel), wanted, atol=1e-3)


def test_elsewhere_the_stem_is_the_convolution_itself():
    x, kernel = normal(0, 2, 8, 8, 3), normal(1, 7, 7, 3, 5)
    program = jax.jit(lambda x, k: cuda.stem_convolution(True)(x, k, **STEM.keywords))
    text = {
        platform: jax.export.export(program, platforms=[platform])(x, kernel).mlir_module()
        for platform in ("cpu", "cuda", "tpu")
    }
    assert all("pad = [[3, 3], [3, 3]]" in text[name] for name in ("cpu", "tpu"))
    assert "pad = [[3, 3], [3, 3]]" not in text["cuda"]


@pytest.mark.parametrize("size", [(12, 10), (13, 9), (8, 7), (1, 2)])
def test_a_gathered_max_pool_equals_the_plain_one(size):
    x = normal(0, 2, *size, 3)

    def plain(x):
        return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))

    weights = normal(1, *plain(x).shape)
    np.testing.assert_array_equal(cuda._largest_of_nine(x), plain(x))
    wanted = jax.grad(lambda x: jnp.sum(weights * plain(x)))(x)
    found = jax.grad(lambda x: jnp.sum(weights * cuda._largest_of_nine(x)))(x)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    direction = normal(2, *x.shape)
    chex.assert_trees_all_close(
        jax.jvp(cuda._largest_of_nine, (x,), (direction,)),
        jax.jvp(plain, (x,), (direction,)),
        atol=1e-6,
    )


def test_a_tie_sends_its_gradient_once():
    x = jnp.ones((1, 6, 6, 1))
    slope = jax.grad(lambda x: jnp.sum(cuda._largest_of_nine(x)))(x)
    assert float(slope.sum()) == 9


@pytest.mark.parametrize(("strides", "size"), [((1, 1), 3), ((2, 2), 3), ((2, 2), 1)])
@pytest.mark.parametrize("shared", [(), ("x",), ("kernel",), ("x", "kernel")])
def test_runs_side_by_side_equal_runs_apart(as_on_cuda, strides, size, shared):
    runs = 3
    values = {"x": normal(0, runs, 2, 9, 8, 4), "kernel": normal(1, runs, size, size, 4, 5)}
    padding = ((size // 2, size // 2),) * 2

    def loss(convolve):
        return lambda x, k: jnp.sum(jnp.sin(convolve(x, k, strides, padding)))

    arguments = [value[0] if name in shared else value for name, value in values.items()]
    axes = tuple(None if name in shared else 0 for name in values)
    if len(shared) == 2:
        found = jax.value_and_grad(loss(cuda.training_convolution), (0, 1))(*arguments)
        wanted = jax.value_and_grad(loss(cuda._plain), (0, 1))(*arguments)
    else:
        gradients = jax.value_and_grad(loss(cuda.training_convolution), (0, 1))
        found = jax.vmap(gradients, axes)(*arguments)
        wanted = jax.vmap(jax.value_and_grad(loss(cuda._plain), (0, 1)), axes)(*arguments)
    chex.assert_trees_all_close(found, wanted, rtol=1e-4, atol=1e-4)


def trained(several):
    """Losses of four steps, of one run or of two under vmap."""
    model = models.resnet18(image_size=(40, 36), width=4, num_attributes=3)
    config = training.TrainConfig(batch_size=16, learning_rate=1e-3)
    step = training.make_step(model, defenses.facemix(group_size=8), config, 10)
    state = training.init_state(model, config, 10)
    images = np.random.default_rng(0).integers(0, 256, (16, 40, 36, 3), np.uint8)
    arguments = (images, np.zeros((16, 3), np.int8), training.Scalars.of(config))
    if several:
        state, arguments = jax.tree.map(lambda a: jnp.stack([a, a]), (state, arguments))
        step = jax.vmap(step)
    run = jax.jit(lambda state, *arguments: step(state, *arguments))
    losses = []
    for _ in range(4):
        state, info = run(state, *arguments)
        losses.append(info.loss)
    return np.array(losses)


@pytest.mark.parametrize("several", [False, True])
def test_a_training_takes_the_same_course(several, monkeypatch, request):
    wanted = trained(several)
    request.getfixturevalue("as_on_cuda")
    # The same matrices, so that the courses can be compared.
    monkeypatch.setattr(mixing, "reflections", lambda k, g, m: jax.random.orthogonal(k, m, (g,)))
    np.testing.assert_allclose(trained(several), wanted, rtol=2e-4)
