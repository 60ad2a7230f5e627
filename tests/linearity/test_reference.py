"""The laboratory against a second implementation of a small network, in NumPy and float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facemix_jax import linearity
from facemix_jax.linearity.end_to_end import draw_keys
from facemix_jax.models import resnet, split
from facemix_jax.models.split import Head

GROUP_SIZE, NUM_KEYS = 4, 2
TOLERANCE = 1e-12


class Reference:
    """Stem with BatchNorm, basic block with biases, average pool; any kind can be conjugated."""

    def __init__(self, variables, matrices=None, at_work=()):
        self.params, self.stats = variables["params"], variables["batch_stats"]
        self.matrices, self.at_work = matrices, at_work

    def mixed(self, matrices, x):
        grouped = x.reshape(-1, GROUP_SIZE, x[0].size)
        return np.einsum("gki,gin->gkn", matrices, grouped).reshape(x.shape)

    def act(self, kind, operation, x):
        if self.matrices is None or kind in self.at_work:
            return operation(x)
        inverse = self.matrices.transpose(0, 2, 1)
        return self.mixed(self.matrices, operation(self.mixed(inverse, x)))

    def conv(self, x, weights, stride):
        kernel = weights["kernel"]
        size = kernel.shape[0]
        pad = size // 2
        x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        height, width = ((n - size) // stride + 1 for n in x.shape[1:3])
        out = np.zeros((len(x), height, width, kernel.shape[3]))
        for i in range(height):
            for j in range(width):
                window = x[:, i * stride : i * stride + size, j * stride : j * stride + size]
                out[:, i, j] = np.tensordot(window, kernel, 3)
        return out

    def conv_with_bias(self, x, weights, stride):
        return self.act("bias", lambda v: self.conv(v, weights, stride) + weights["bias"], x)

    def relu(self, x):
        return self.act("relu", lambda v: v * (v > 0), x)

    def stem(self, x):
        params, stats = self.params["stem"], self.stats["stem"]["bn1"]["bn"]
        scale = params["bn1"]["bn"]["scale"] / np.sqrt(stats["var"] + 1e-5)
        shift = params["bn1"]["bn"]["bias"] - stats["mean"] * scale
        x = self.conv(x, params["conv1"], 2)
        x = self.relu(self.act("shift", lambda v: v * scale + shift, x))
        return self.act("max_pool", max_pool, x)

    def block(self, x):
        params = self.params["block"]
        branch = self.relu(self.conv_with_bias(x, params["conv1"], 2))
        branch = self.conv_with_bias(branch, params["conv2"], 1) * params["branch_scale"]
        return self.relu(self.conv_with_bias(x, params["downsample_conv"], 2) + branch)

    def pool(self, x):
        return x.mean((1, 2))

    @property
    def layers(self):
        return self.stem, self.block, self.pool

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def max_pool(x):
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    height, width = ((n - 3) // 2 + 1 for n in x.shape[1:3])
    windows = [x[:, i:][:, : 2 * height : 2][:, :, j:][:, :, : 2 * width : 2]
               for i in range(3) for j in range(3)]  # fmt: skip
    return np.max([w[:, :height, :width] for w in windows], axis=0)


@pytest.fixture(scope="module")
def network():
    """Main, its variables, an input, and both libraries' keys, all float64."""
    # Building traces the network with float32 variables, which BatchNorm promotes.
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        model = split(
            [
                ("stem", functools.partial(resnet.Stem, 4, "batch", jnp.float64)),
                ("block", functools.partial(resnet.BasicBlock, 6, 2, "none", jnp.float64)),
                ("pool", resnet.GlobalAveragePool),
            ],
            functools.partial(Head, 2, 2),
            name="small",
            cut=0,
            last_cut=2,
            image_size=(15, 14),
        )
        rng = np.random.default_rng(0)
        variables = jax.tree_util.tree_map(
            lambda leaf: rng.uniform(0.2, 1.0, leaf.shape) * rng.choice([-1, 1], leaf.shape),
            model.init(jax.random.key(0))["main"],
        )
        norm = variables["batch_stats"]["stem"]["bn1"]["bn"]
        norm["var"] = np.abs(norm["var"])
        x = rng.normal(size=(8, 15, 14, 3)) + 0.3
        keys = draw_keys(jax.random.key(1), jnp.asarray(x), GROUP_SIZE, NUM_KEYS, linear_family)
        yield model, jax.tree_util.tree_map(jnp.asarray, variables), variables, x, keys


def linear_family(rng_key, num_groups, group_size):
    matrix = jax.random.orthogonal(rng_key, group_size, (num_groups,))
    return matrix, matrix.mT


def options(x):
    return {
        "x": jnp.asarray(x),
        "rng_key": jax.random.key(1),
        "group_size": GROUP_SIZE,
        "num_keys": NUM_KEYS,
        "family": linear_family,
    }


def norm(a):
    return np.sqrt((a**2).sum())


def reference_error(variables, x, key, at_work):
    """The error vector with some kinds at work."""
    matrices = np.asarray(key.matrix)
    protected = Reference(variables, matrices, at_work)
    sent = protected.mixed(matrices, x)
    back = protected.mixed(matrices.transpose(0, 2, 1), protected(sent))
    return back - Reference(variables)(x)


KINDS = ("bias", "shift", "relu", "max_pool")


def test_end_to_end_agrees(network):
    model, variables, plain, x, keys = network
    with jax.enable_x64(True):
        main = functools.partial(model.main.apply, variables)
        error = linearity.measure(main, **options(x))
    direct = norm(Reference(plain)(x))
    for key, measured in zip(keys, error.per_key, strict=True):
        expected = norm(reference_error(plain, x, key, KINDS)) / direct
        assert abs(measured - expected) < TOLERANCE
        # A network without one kind is another network.
        for kind in KINDS:
            other = norm(reference_error(plain, x, key, set(KINDS) - {kind})) / direct
            assert abs(measured - other) > 1e-4


def test_layer_by_layer_agrees(network):
    model, variables, plain, x, keys = network
    with jax.enable_x64(True):
        layers = [(n, functools.partial(f, variables)) for n, f in model.main.layers]
        errors = linearity.layer_errors(layers, **options(x))
    assert errors.names == ("stem", "block", "pool")
    reference = Reference(plain)
    directs = [x]
    for layer in reference.layers:
        directs.append(layer(directs[-1]))
    for k, key in enumerate(keys):
        matrices = np.asarray(key.matrix)
        ends = []
        for i in range(3):
            y = reference.mixed(matrices, directs[i])
            for j in range(i, 3):
                y = reference.layers[j](y)
                unmixed = reference.mixed(matrices.transpose(0, 2, 1), y)
                expected = norm(unmixed - directs[j + 1]) / norm(directs[j + 1])
                assert abs(errors.pairs[k, i, j] - expected) < TOLERANCE
            ends.append(unmixed)
        ends.append(directs[3])
        for i in range(3):
            step, whole = ends[i] - ends[i + 1], ends[0] - ends[3]
            assert abs(errors.made[k, i] - norm(step) / norm(directs[3])) < TOLERANCE
            assert abs(errors.shares[k, i] - (step * whole).sum() / norm(whole) ** 2) < TOLERANCE
    assert np.isnan(np.asarray(errors.pairs)[:, *np.tril_indices(3, -1)]).all()


def test_causes_agree(network):
    model, variables, plain, x, keys = network
    with jax.enable_x64(True):
        errors = linearity.cause_errors(model.main.apply, variables, **options(x))
    assert errors.causes == KINDS
    direct = norm(Reference(plain)(x))
    for k, key in enumerate(keys):
        whole = reference_error(plain, x, key, KINDS)
        alone = [reference_error(plain, x, key, (kind,)) for kind in KINDS]
        rest = [reference_error(plain, x, key, set(KINDS) - {kind}) for kind in KINDS]
        assert abs(errors.total[k] - norm(whole) / direct) < TOLERANCE
        for c in range(len(KINDS)):
            assert abs(errors.alone[k, c] - norm(alone[c]) / direct) < TOLERANCE
            assert abs(errors.without[k, c] - norm(rest[c]) / direct) < TOLERANCE
            share = (alone[c] * whole).sum() / norm(whole) ** 2
            assert abs(errors.shares[k, c] - share) < TOLERANCE
        assert abs(errors.interaction[k] - norm(whole - sum(alone)) / direct) < TOLERANCE
        assert errors.rounding[k] < 1e-14
        assert errors.alone[k].min() > 1e-3
