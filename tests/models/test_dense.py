"""Several runs' convolutions as one dense one."""

import chex
import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from facemix_jax.models import dense


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize(("strides", "size"), [((1, 1), 3), ((2, 2), 1)])
@pytest.mark.parametrize("shared", [(), ("x",), ("kernel",)])
def test_runs_side_by_side_equal_runs_apart(strides, size, shared):
    runs = 3
    values = {"x": normal(0, runs, 2, 9, 8, 4), "kernel": normal(1, runs, size, size, 4, 5)}
    padding = ((size // 2, size // 2),) * 2

    def loss(convolve):
        return lambda x, k: jnp.sum(jnp.sin(convolve(x, k, strides, padding)))

    arguments = [value[0] if name in shared else value for name, value in values.items()]
    axes = tuple(None if name in shared else 0 for name in values)
    found, wanted = (
        jax.jit(jax.vmap(jax.value_and_grad(loss(convolve), (0, 1)), axes))(*arguments)
        for convolve in (dense.convolution, dense.plain)
    )
    chex.assert_trees_all_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("strides", [(2, 2), 2, 1, None])
def test_flax_convolutions_are_traced_as_dense_ones_while_it_is_open(strides):
    runs = 3
    layer = nn.Conv(5, (3, 3), strides, padding=1)
    x = normal(0, runs, 2, 9, 8, 4)
    variables = jax.vmap(lambda rng_key: layer.init(rng_key, x[0]))(
        jax.random.split(jax.random.key(1), runs)
    )

    def apply(variables, x):
        return jax.vmap(layer.apply)(variables, x)

    wanted = apply(variables, x)
    assert f"feature_group_count={runs}" in str(jax.make_jaxpr(apply)(variables, x))
    with dense.convolutions():
        chex.assert_trees_all_close(apply(variables, x), wanted, rtol=1e-5, atol=1e-5)
        traced = str(jax.make_jaxpr(lambda *args: apply(*args))(variables, x))
    assert f"feature_group_count={runs}" not in traced


@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((3, 3), {"padding": "SAME"}),
        ((3, 3), {"padding": 1, "feature_group_count": 2}),
        ((3,), {"padding": 1}),
    ],
)
def test_other_convolutions_stay_as_they_are(size, options):
    layer = nn.Conv(4, size, **options)
    x = normal(0, 2, 9, 8, 4)
    variables = layer.init(jax.random.key(1), x)
    wanted = layer.apply(variables, x)
    with dense.convolutions():
        chex.assert_trees_all_equal(layer.apply(variables, x), wanted)
