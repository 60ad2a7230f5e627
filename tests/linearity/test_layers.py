import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from facemix_jax import linearity, mixing, models
from facemix_jax._validate import UsageError
from facemix_jax.linearity import study
from facemix_jax.models import operations

OPTIONS = {"rng_key": jax.random.key(3), "group_size": 4, "num_keys": 2}


def weights(seed, inputs, outputs):
    return jax.random.normal(jax.random.key(seed), (inputs, outputs)) / inputs**0.5


def dense(seed, inputs=6, outputs=6):
    return lambda x: jnp.matmul(x, weights(seed, inputs, outputs), precision="highest")


@pytest.fixture(scope="module")
def x():
    return jax.random.normal(jax.random.key(0), (8, 6))


def test_linear_layers_make_no_error(x):
    errors = linearity.layer_errors([("a", dense(1)), ("b", dense(2))], x, **OPTIONS)
    upper = np.asarray(errors.pairs)[:, *np.triu_indices(2)]
    assert upper.max() < 1e-5
    assert np.isnan(errors.pairs[:, 1, 0]).all()


def test_the_layer_that_makes_the_error_is_found(x):
    layers = [("a", dense(1)), ("relu", jax.nn.relu), ("b", dense(2))]
    errors = linearity.layer_errors(layers, x, **OPTIONS)
    np.testing.assert_allclose(errors.shares, [[0, 1, 0]] * 2, atol=1e-4)
    assert errors.pairs[:, 2, 2].max() < 1e-5
    assert errors.pairs[:, 1, 1].min() > 0.1


def test_shares_add_up_and_the_whole_is_the_end_to_end_error(x):
    layers = [(str(i), lambda x, i=i: jnp.tanh(dense(i)(x))) for i in range(4)]
    errors = linearity.layer_errors(layers, x, **OPTIONS)

    def main(x):
        for _, layer in layers:
            x = layer(x)
        return x

    whole = linearity.measure(main, x, **OPTIONS)
    np.testing.assert_allclose(errors.pairs[:, 0, -1], whole.per_key, rtol=1e-5)
    np.testing.assert_allclose(errors.shares.sum(1), 1, atol=1e-5)
    assert (errors.made.sum(1) >= whole.per_key).all()


@pytest.mark.parametrize("network", ["resnet18", "vgg16"])
def test_a_segments_layers_are_the_segment(network):
    config = models.ModelConfig(network=network, width=2, cut=3, centre=True)
    model = models.build(config, image_size=(33, 33))
    variables = model.init(jax.random.key(0))["main"]
    x = jax.random.normal(jax.random.key(1), (2, *model.spec.activation_shape))
    y = x
    for _, layer in model.main.layers:
        y = layer(variables, y)
    np.testing.assert_array_equal(y, model.main(variables, x))
    names = [name for name, _ in model.main.layers]
    assert names == [*model.spec.unit_names[3:], "main_centre"]


def test_causes_of_a_network_and_their_sum():
    model = models.vgg16(width=2, cut=12, image_size=(33, 33))
    variables = model.init(jax.random.key(0))["main"]
    variables = jax.tree_util.tree_map(
        lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(leaf.size), leaf.shape),
        variables,
    )
    x = jax.random.normal(jax.random.key(1), (8, *model.spec.activation_shape))
    errors = linearity.cause_errors(model.main.apply, variables, x, **OPTIONS)
    assert errors.causes == ("bias", "relu", "max_pool")
    assert errors.alone.shape == errors.without.shape == errors.shares.shape == (2, 3)
    main = functools.partial(model.main.apply, variables)
    whole = linearity.measure(main, x, **OPTIONS)
    np.testing.assert_allclose(errors.total, whole.per_key, rtol=1e-4)
    assert errors.rounding.max() < 1e-5
    assert errors.alone.min() > 1e-3
    np.testing.assert_allclose(errors.shares.sum(1) + errors.interaction_share, 1, atol=1e-6)


@pytest.mark.parametrize("activate", [operations.Relu(), nn.relu])
def test_shares_are_said_only_where_all_operations_are_known(x, activate):
    main = nn.Sequential([nn.Dense(6, bias_init=nn.initializers.normal()), activate, nn.Dense(6)])
    variables = main.init(jax.random.key(1), x)
    errors = linearity.cause_errors(main.apply, variables, x, **OPTIONS)
    known = activate is not nn.relu
    assert errors.causes == (("bias", "relu") if known else ("bias",))
    assert errors.unknown is not known
    assert (errors.rounding.max() < 1e-5) == known
    for part in (errors.shares, errors.interaction, errors.interaction_share):
        assert bool(jnp.isfinite(part).all()) == known


def test_rounding_in_bfloat16_and_by_matrices_that_amplify_it_is_no_unknown_operation():
    model = models.vgg16(width=2, cut=12, image_size=(33, 33), dtype=jnp.bfloat16)
    variables = model.init(jax.random.key(0))["main"]
    x = jax.random.normal(jax.random.key(1), (8, *model.spec.activation_shape), jnp.bfloat16)
    errors = linearity.cause_errors(
        model.main.apply, variables, x, **OPTIONS, family=mixing.conditioned(1000.0)
    )
    assert errors.rounding.max() > 0.05
    assert not errors.unknown


@pytest.mark.library_promotes
def test_the_linear_twin_is_linear_and_the_network_is_not():
    model = models.vgg16(width=2, cut=12, image_size=(33, 33))
    variables = model.init(jax.random.key(0))["main"]
    variables = jax.tree_util.tree_map(lambda leaf: leaf + 0.1, variables)
    x = jax.random.normal(jax.random.key(1), (4, *model.spec.activation_shape))
    for apply, low, high in (
        (operations.linear_twin(model.main.apply), 0, 1e-5),
        (model.main.apply, 0.1, np.inf),
    ):
        main = functools.partial(apply, variables)
        for errors in (
            linearity.additivity_error(main, x),
            linearity.homogeneity_error(main, x, -1.0),
        ):
            assert low <= errors.max() < high


def test_examples_whose_result_is_zero_have_no_relative_error_and_are_counted(x):
    blank = x.at[0].set(0)
    errors = linearity.homogeneity_error(jnp.square, blank, 2.0)
    found = study._over_examples(errors)
    assert (found["mean"], found["left_out"]) == (pytest.approx(1), 1)
    assert study._over_examples(errors[:1])["mean"] is None
    json.dumps(study._mean_and_deviation(jnp.array([[jnp.inf, 1.0]] * 2)), allow_nan=False)
    of_one = {"mean": [1.0], "standard_deviation": [None]}
    assert study._mean_and_deviation(jnp.array([[1.0]])) == of_one


def test_additivity_homogeneity_and_jacobian_tell_functions_apart(x):
    def affine(x):
        return dense(1)(x) + 1.0

    def line(x):
        return dense(1)(x)

    def bent(x):
        return jax.nn.relu(dense(1)(x))

    additive, twice, opposite, step = range(4)
    measured = {
        f: (
            linearity.additivity_error(f, x).mean(),
            linearity.homogeneity_error(f, x, 2.0).mean(),
            linearity.homogeneity_error(f, x, -1.0).mean(),
            linearity.jacobian_error(f, x, x[::-1], 1.0).mean(),
        )
        for f in (line, affine, bent)
    }
    assert max(measured[line]) < 1e-5
    assert min(measured[affine][:step]) > 0.1
    assert measured[affine][step] < 1e-5
    assert measured[bent][twice] < 1e-5
    assert min(measured[bent][additive], measured[bent][opposite], measured[bent][step]) > 0.1
    near = linearity.jacobian_error(bent, x, x[::-1], 1e-3).mean()
    assert near < 0.1 * measured[bent][step]
    # Of a square, t^2 d^2 is left of 2 t x d: at x = 1 and a target of 3 that is t.
    one = jnp.ones((2, 4))
    square = linearity.jacobian_error(jnp.square, one, 3 * one, 0.5)
    np.testing.assert_allclose(square, 0.5, rtol=1e-6)


def test_pairs_need_an_even_batch(x):
    with pytest.raises(UsageError, match="size of a pair"):
        linearity.additivity_error(jnp.tanh, x[:7])
