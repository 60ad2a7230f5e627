"""Aids to linearity: activations, norms and the isometry regulariser, and what they leave alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facemix_jax import linearity
from facemix_jax._validate import UsageError
from facemix_jax.models import (
    ModelConfig,
    anonymizer,
    build,
    from_torch,
    isometry_penalty,
    resnet18,
    vgg16,
)
from facemix_jax.models.operations import ACTIVATIONS, PRelu, ends_with_relu, kinds_in
from facemix_jax.models.resnet import ScaleNorm

OPTIONS = {"rng_key": jax.random.key(3), "group_size": 4, "num_keys": 2}
ROUNDING = 1e-5


@functools.cache
def network(**options):
    """Main of a small network whose variables are all drawn, and activations at its cut."""
    config = ModelConfig(**{"width": 2, "cut": 6, **options})
    model = build(config, image_size=(33, 33), num_attributes=3)
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if path[-1].key in ("var", "mean_square"):
            return jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), jnp.float32)
        return leaf + jnp.asarray(0.2 * rng.normal(size=leaf.shape), jnp.float32)

    variables = jax.tree_util.tree_map_with_path(draw, model.init(jax.random.key(0))["main"])
    x = jax.random.normal(jax.random.key(1), (8, *model.spec.activation_shape))
    return model.main.apply, variables, x


def with_all(variables, name, value):
    """Every leaf of one name set to one value."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.full_like(leaf, value) if path[-1].key == name else leaf, variables
    )


def unmix_error(apply, variables, x):
    return linearity.measure(functools.partial(apply, variables), x, **OPTIONS).mean


@pytest.mark.parametrize(
    ("activation", "name", "linear", "bent"),
    [("prelu", "slope", 1.0, 0.25), ("shifted", "threshold", -1e6, -0.5)],
)
def test_an_activation_that_became_linear_leaves_rounding_alone(activation, name, linear, bent):
    apply, variables, x = network(activation=activation, norm="scale")
    assert unmix_error(apply, with_all(variables, name, linear), x) < ROUNDING
    assert unmix_error(apply, with_all(variables, name, bent), x) > 0.1
    # Constants of BatchNorm are left.
    apply, variables, x = network(activation=activation)
    assert unmix_error(apply, with_all(variables, name, linear), x) > 0.1


def test_prelu_and_shifted_relu_are_relus_at_zero():
    apply, variables, x = network()
    for activation, name in (("prelu", "slope"), ("shifted", "threshold")):
        other, its_own, _ = network(activation=activation)
        shared = jax.tree_util.tree_leaves_with_path(variables)
        merged = with_all(its_own, name, 0.0)
        known = dict(shared)
        merged = jax.tree_util.tree_map_with_path(
            lambda path, leaf, known=known: known.get(path, leaf), merged
        )
        np.testing.assert_array_equal(other(merged, x), apply(variables, x))
        assert not np.allclose(other(with_all(merged, name, -0.3), x), apply(variables, x))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("norm", ["batch", "unshifted", "scale"])
def test_only_networks_without_constants_are_homogeneous(activation, norm):
    apply, variables, x = network(activation=activation, norm=norm)
    main = functools.partial(apply, variables)
    errors = [float(linearity.homogeneity_error(main, x, s).mean()) for s in (0.5, 3.0)]
    if norm == "scale" and activation != "shifted":
        assert max(errors) < ROUNDING
    else:
        assert min(errors) > 1e-2
    assert linearity.homogeneity_error(main, x, -1.0).mean() > 0.1


@pytest.mark.parametrize(
    ("options", "kinds", "nonnegative"),
    [
        ({}, ("shift", "relu"), True),
        ({"norm": "unshifted"}, ("shift", "relu"), True),
        ({"norm": "scale"}, ("relu",), True),
        ({"norm": "scale", "activation": "prelu"}, ("relu",), False),
        ({"activation": "shifted"}, ("shift", "relu"), False),
        ({"centre": True}, ("shift", "relu"), False),
        ({"cut": 9}, (), False),
    ],
    ids=str,
)
def test_causes_and_the_floor_know_these_networks(options, kinds, nonnegative):
    apply, variables, x = network(**options)
    assert kinds_in(apply, variables, x) == kinds
    assert ends_with_relu(apply, variables, x) is nonnegative


def test_causes_are_isolated_in_these_networks():
    apply, variables, x = network(activation="prelu")
    errors = linearity.cause_errors(apply, variables, x, **OPTIONS)
    assert errors.causes == ("shift", "relu")
    np.testing.assert_allclose(errors.total.mean(), unmix_error(apply, variables, x), rtol=1e-4)
    assert errors.rounding.max() < ROUNDING < 1e-2 < errors.alone.min()
    linear = linearity.cause_errors(apply, with_all(variables, "slope", 1.0), x, **OPTIONS)
    shift, activation = linear.alone.T
    assert activation.max() < ROUNDING
    np.testing.assert_allclose(shift, linear.total, rtol=1e-4)


def test_scale_norm_is_batchnorm_of_channels_without_mean():
    norm = ScaleNorm(jnp.float32)
    x = jax.random.normal(jax.random.key(0), (8, 5, 5, 3)) * jnp.array([1.0, 3.0, 0.1]).reshape(
        1, 1, 1, 3
    )
    x = x - x.mean((0, 1, 2), keepdims=True)
    variables = norm.init(jax.random.key(0), x, False)
    y, updates = norm.apply(variables, x, True, mutable=["batch_stats"])
    expected = x / jnp.sqrt(x.var((0, 1, 2), keepdims=True) + 1e-5)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    kept = updates["batch_stats"]["mean_square"]
    np.testing.assert_allclose(kept, 0.9 + 0.1 * jnp.square(x).mean((0, 1, 2)), rtol=1e-5)
    # What a mean would take away stays; at inference nothing depends on the batch.
    moved, _ = norm.apply(variables, x + 2, True, mutable=["batch_stats"])
    assert float(moved.mean()) > 0.5
    trained = {**variables, **updates}
    apply = functools.partial(norm.apply, trained)
    np.testing.assert_allclose(apply(x[:1], False), apply(x, False)[:1], rtol=1e-6)
    np.testing.assert_allclose(apply(-2 * x, False), -2 * apply(x, False), rtol=1e-6)


def test_slopes_learn():
    x = jnp.array([[-2.0, 3.0]])
    variables = PRelu().init(jax.random.key(0), x)
    gradient = jax.grad(lambda v: PRelu().apply(v, x).sum())(variables)
    np.testing.assert_array_equal(gradient["params"]["slope"], [-2.0, 0.0])


@pytest.mark.parametrize("slope", [0.0, 0.25, 0.6, 1.0])
def test_the_error_of_one_prelu_shrinks_with_its_slope(slope):
    """``(1 - s)^2 ||x||^2 / 2``, in the mean over every ``A`` and ``-A``; ``theory.relu_error``."""
    rng = np.random.default_rng(0)
    x = rng.normal(0.3, 1.0, (8, 50)).astype(np.float32)
    matrix = np.linalg.qr(rng.normal(size=(8, 8)))[0].astype(np.float32)
    variables = {"params": {"slope": jnp.full(50, slope)}}

    def activate(z):
        return np.asarray(PRelu().apply(variables, jnp.asarray(z)))

    squares = [np.square(a.T @ activate(a @ x) - activate(x)).sum() for a in (matrix, -matrix)]
    expected = (1 - slope) ** 2 / 2 * np.square(x).sum()
    np.testing.assert_allclose(np.mean(squares), expected, rtol=1e-4, atol=1e-4)


def isometric(seed, *shape):
    """A kernel whose matrix has orthonormal columns, or rows where there are fewer."""
    rows, columns = int(np.prod(shape[:-1])), shape[-1]
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(max(rows, columns),) * 2))
    return jnp.asarray(q[:rows, :columns].reshape(shape), jnp.float32)


TALL, WIDE = (3, 3, 4, 6), (1, 1, 4, 8)


@pytest.mark.parametrize("shape", [TALL, WIDE])
def test_the_penalty_is_zero_for_isometries_and_only_there(shape):
    kernel = isometric(0, *shape)
    assert isometry_penalty({"conv": {"kernel": kernel}}) < 1e-9
    # k rows or columns of length 1.1: k (1.21 - 1)^2.
    smaller = min(int(np.prod(shape[:-1])), shape[-1])
    longer = isometry_penalty({"conv": {"kernel": 1.1 * kernel}})
    np.testing.assert_allclose(longer, smaller * 0.21**2, rtol=1e-4)
    # Two of them alike: the two 1 beside the diagonal.
    first = (Ellipsis, 0) if shape == TALL else (Ellipsis, 0, slice(None))
    second = (Ellipsis, 1) if shape == TALL else (Ellipsis, 1, slice(None))
    doubled = kernel.at[second].set(kernel[first])
    np.testing.assert_allclose(isometry_penalty({"conv": {"kernel": doubled}}), 2, rtol=1e-4)


def test_the_penalty_reads_convolutions_alone():
    unit = {"conv": {"kernel": 2 * isometric(0, *TALL), "bias": jnp.ones(6)}}
    others = {"fc": {"kernel": jnp.ones((5, 5))}, "bn": {"scale": jnp.ones(3)}}
    assert isometry_penalty({**unit, **others}) == isometry_penalty(unit) > 0
    assert isometry_penalty(others) == 0


def test_its_gradient_descends_to_an_isometry():
    shapes = {"tall": TALL, "wide": WIDE, "square": (1, 1, 5, 5)}
    params = {
        name: {"kernel": 0.4 * jax.random.normal(jax.random.key(i), shape)}
        for i, (name, shape) in enumerate(shapes.items())
    }

    def descend(_, p):
        return jax.tree.map(lambda a, g: a - 0.03 * g, p, jax.grad(isometry_penalty)(p))

    before = float(isometry_penalty(params))
    params = jax.jit(lambda p: jax.lax.fori_loop(0, 600, descend, p))(params)
    assert before > 1 > 1e-6 > isometry_penalty(params)
    x = jax.random.normal(jax.random.key(9), (2, 7, 7, 5))
    y = jnp.matmul(x, params["square"]["kernel"][0, 0], precision="highest")
    np.testing.assert_allclose(jnp.linalg.norm(y, axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-3)


def names(tree):
    return {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(tree)}


def test_nothing_is_added_to_other_networks():
    def variables(build, **options):
        model = build(image_size=(40, 36), width=2, num_attributes=3, **options)
        return jax.eval_shape(model.init, jax.random.key(0))

    batch = {"kernel", "scale", "bias", "mean", "var"}
    assert names(variables(resnet18)) == batch
    assert names(variables(vgg16)) == {"kernel", "bias"}
    assert names(variables(resnet18, norm="scale")) == {"kernel", "scale", "mean_square", "bias"}
    assert names(variables(resnet18, activation="prelu")) == batch | {"slope"}
    assert names(variables(vgg16, activation="shifted")) == {"kernel", "bias", "threshold"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"activation": "prelu"}, ("activation 'prelu'", "activation='relu'")),
        ({"activation": "shifted"}, ("activation 'shifted'", "norm='batch'")),
        ({"norm": "scale"}, ("norm 'scale'", "norm='batch'")),
        ({"norm": "unshifted"}, ("unexpected", "shifts")),
        ({"stem": "signed"}, ("stem 'signed'", "stem='pool'")),
        ({"build": anonymizer}, ("anonymizer's generator", "resnet18 and vgg16")),
    ],
    ids=lambda value: str(value) if "build" not in value else "anonymizer",
)
def test_torchvisions_weights_are_refused(options, words):
    def empty(build=resnet18, **options):
        model = build(image_size=(40, 36), width=2, num_attributes=3, **options)
        shapes = jax.eval_shape(model.init, jax.random.key(0))
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    from test_torch_agreement import _torch_shapes

    state = {name: np.ones(shape) for name, shape in _torch_shapes("resnet18", 2).items()}
    assert from_torch(state, empty())
    with pytest.raises(UsageError) as caught:
        from_torch(state, empty(**options))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ModelConfig(activation="prelus"), ("prelus", "'prelu'", "Did you mean")),
        (lambda: ModelConfig(norm="group"), ("'group'", "'scale'", "'unshifted'")),
        (lambda: resnet18(activation="elu"), ("'elu'", "'shifted'")),
        (lambda: resnet18(norm="layer"), ("'layer'", "'batch'")),
        (lambda: vgg16(norm="scale"), ("'scale'", "'batch'")),
        (lambda: vgg16(activation="elu"), ("'elu'", "'relu'")),
    ],
)
def test_errors_name_value_and_choices(call, words):
    with pytest.raises(UsageError) as caught:
        call()
    for word in words:
        assert word in str(caught.value)
