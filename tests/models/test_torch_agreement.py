"""Every cut is the uncut network, and the network is PyTorch's.

The logits below were printed by ``experiments/benchmarks/torch_reference.py`` under PyTorch
2.13.0; its docstring says how weights and images are drawn, and this file draws the same ones
without PyTorch.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facemix_jax import _validate
from facemix_jax.models import resnet18, vgg16
from facemix_jax.models.torch_weights import from_torch

TOLERANCE = 1e-4
CASES = {
    ("resnet18", 8, (64, 48), 0): [
        [0.73324, -1.419432, -0.166336, -0.336346, -0.051072, -0.149264],
        [1.076176, -1.530438, -0.188086, -0.510705, 0.049973, -0.447113],
    ],
    ("resnet18", 8, (109, 89), 1): [
        [0.989977, -0.152973, 0.886577, 0.759563, 1.389764, -0.183341],
        [0.907161, -0.209621, 0.920494, 0.797588, 1.408321, -0.12813],
    ],
    ("vgg16", 4, (64, 48), 2): [
        [0.073961, 4.392498, -6.233612, -5.713137, -1.64813, 1.165521],
        [-1.291513, 4.248179, -6.770373, -5.661296, -1.202618, 1.236101],
    ],
    ("vgg16", 4, (256, 288), 3): [
        [-1.290975, 0.191783, -0.13324, -0.005595, 3.039121, 2.07334],
        [-1.308105, 0.372369, -0.23663, 0.027266, 3.004127, 2.044986],
    ],
}
BUILD = {"resnet18": resnet18, "vgg16": vgg16}
CUTS = {"resnet18": range(10), "vgg16": range(19)}


def _torch_shapes(network, width, outputs=6):
    """torchvision's names and shapes, written out from its documentation."""
    shapes = {}

    def norm(name, channels):
        for entry in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{entry}"] = (channels,)

    if network == "resnet18":
        shapes["conv1.weight"] = (width, 3, 7, 7)
        norm("bn1", width)
        inputs = width
        for stage, block in itertools.product((1, 2, 3, 4), (0, 1)):
            name, channels = f"layer{stage}.{block}", width * 2 ** (stage - 1)
            shapes[f"{name}.conv1.weight"] = (channels, inputs, 3, 3)
            shapes[f"{name}.conv2.weight"] = (channels, channels, 3, 3)
            norm(f"{name}.bn1", channels)
            norm(f"{name}.bn2", channels)
            if stage > 1 and block == 0:
                shapes[f"{name}.downsample.0.weight"] = (channels, inputs, 1, 1)
                norm(f"{name}.downsample.1", channels)
            inputs = channels
        shapes |= {"fc.weight": (outputs, inputs), "fc.bias": (outputs,)}
    else:
        inputs = 3
        positions = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
        factors = (1, 1, 2, 2, 4, 4, 4, 8, 8, 8, 8, 8, 8)
        for position, factor in zip(positions, factors, strict=True):
            shapes[f"features.{position}.weight"] = (width * factor, inputs, 3, 3)
            shapes[f"features.{position}.bias"] = (width * factor,)
            inputs = width * factor
        inputs *= 49
        for position, features in ((0, 64 * width), (3, 64 * width), (6, outputs)):
            shapes[f"classifier.{position}.weight"] = (features, inputs)
            shapes[f"classifier.{position}.bias"] = (features,)
            inputs = features
    return shapes


def _draw(stream, name, shape):
    if len(shape) > 1:
        value = stream.standard_normal(shape) * math.sqrt(2 / math.prod(shape[1:]))
    elif name.endswith("running_var"):
        value = stream.uniform(0.5, 1.5, shape)
    elif name.endswith("weight") and "features" not in name:
        value = stream.uniform(0.4, 0.8, shape)
    else:
        value = 0.1 * stream.standard_normal(shape)
    return value.astype(np.float32)


@functools.cache
def _drawn(network, width, image_size, seed):
    """State dict, and images NHWC."""
    stream = np.random.RandomState(seed)  # frozen streams are the point
    shapes = _torch_shapes(network, width)
    state = {name: _draw(stream, name, shapes[name]) for name in sorted(shapes)}
    images = stream.standard_normal((2, 3, *image_size)).astype(np.float32)
    return state, images.transpose(0, 2, 3, 1)


@functools.cache
def _model(network, width, image_size, cut=1):
    return BUILD[network](
        cut=cut, image_size=image_size, width=width, num_attributes=3, num_classes=2
    )


def _empty(model):
    """Variables to fill; their values must not matter."""
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree.map(lambda x: jnp.full(x.shape, jnp.nan, x.dtype), shapes)


def _logits(model, variables, images):
    y = model.main(variables["main"], model.pre(variables["pre"], jnp.asarray(images)))
    return np.asarray(model.post(variables["post"], y))


def _agrees(case, state=None):
    network, width, image_size, _ = case
    drawn, images = _drawn(*case)
    model = _model(network, width, image_size)
    variables = from_torch(state or drawn, _empty(model))
    logits = _logits(model, variables, images)
    return np.max(np.abs(logits.reshape(2, 6) - np.array(CASES[case]))) < TOLERANCE


@pytest.mark.parametrize("case", CASES, ids=str)
def test_logits_are_those_of_pytorch(case):
    assert _agrees(case)


@pytest.mark.parametrize(
    ("case", "name"),
    [
        (next(iter(CASES)), "layer4.1.conv2.weight"),
        (next(iter(CASES)), "layer2.0.downsample.1.running_var"),
        (next(iter(CASES)), "bn1.running_mean"),
        (("vgg16", 4, (64, 48), 2), "features.28.weight"),
        (("vgg16", 4, (64, 48), 2), "classifier.3.bias"),
    ],
)
def test_one_entry_off_by_a_percent_is_noticed(case, name):
    state, _ = _drawn(*case)
    assert not _agrees(case, {**state, name: state[name] * np.float32(1.01)})


@pytest.mark.parametrize(
    ("name", "axes"),
    [("layer1.0.conv1.weight", (0, 1, 3, 2)), ("layer1.0.conv1.weight", (1, 0, 2, 3))],
)
def test_another_layout_of_a_kernel_is_noticed(name, axes):
    case = ("resnet18", 8, (109, 89), 1)
    state, _ = _drawn(*case)
    assert not _agrees(case, {**state, name: state[name].transpose(axes)})


def test_another_order_of_the_flattened_map_is_noticed():
    case = ("vgg16", 4, (256, 288), 3)
    state, _ = _drawn(*case)
    kernel = state["classifier.0.weight"]
    other = kernel.reshape(-1, 32, 49).transpose(0, 2, 1).reshape(kernel.shape)
    assert not _agrees(case, {**state, "classifier.0.weight": other})


@pytest.mark.parametrize("case", [("resnet18", 8, (64, 48), 0), ("vgg16", 4, (64, 48), 2)], ids=str)
def test_every_cut_is_the_uncut_network_bit_for_bit(case):
    """Op by op: inside one compiled program XLA may fuse across the cut and round otherwise."""
    network, width, image_size, _ = case
    state, images = _drawn(*case)
    uncut = None
    for cut in CUTS[network]:
        model = _model(network, width, image_size, cut)
        variables = from_torch(state, _empty(model))
        logits = _logits(model, variables, images)
        # Cut 0 leaves the whole network in main.
        uncut = logits if uncut is None else uncut
        np.testing.assert_array_equal(logits, uncut, err_msg=f"cut {cut}")
    compiled = jax.jit(
        lambda v, x: model.post(v["post"], model.main(v["main"], model.pre(v["pre"], x)))
    )
    np.testing.assert_allclose(compiled(variables, jnp.asarray(images)), uncut, rtol=0, atol=1e-5)


def test_structure_and_dtypes_are_kept_and_nothing_is_left_unfilled():
    case = ("resnet18", 8, (64, 48), 0)
    model = _model(*case[:3])
    empty = _empty(model)
    filled = from_torch(_drawn(*case)[0], empty)
    assert jax.tree.structure(filled) == jax.tree.structure(empty)
    for before, after in zip(jax.tree.leaves(empty), jax.tree.leaves(filled), strict=True):
        assert (before.shape, before.dtype) == (after.shape, after.dtype)
        assert bool(jnp.all(jnp.isfinite(after)))


class _Tensor:
    """As a torch tensor: an array only through ``__array__``, which may refuse."""

    def __init__(self, value, refuses=False):
        self.value, self.refuses = value, refuses

    def __array__(self, dtype=None, copy=None):
        if self.refuses:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        return self.value


def test_tensors_are_read_without_pytorch():
    case = ("resnet18", 8, (64, 48), 0)
    state, _ = _drawn(*case)
    tensors = {name: _Tensor(value) for name, value in state.items()}
    tensors["bn1.num_batches_tracked"] = _Tensor(np.int64(7))
    assert _agrees(case, tensors)
    tensors["bn1.bias"] = _Tensor(state["bn1.bias"], refuses=True)
    with pytest.raises(_validate.UsageError, match=r"bn1\.bias cannot be read.*cpu\(\)"):
        from_torch(tensors, _empty(_model(*case[:3])))


@pytest.mark.parametrize("network", ["resnet18", "vgg16"])
def test_head_of_another_task_asks_for_keep_head(network):
    case = next(case for case in CASES if case[0] == network)
    state, _ = _drawn(*case)
    head = "fc" if network == "resnet18" else "classifier.6"
    inputs = state[f"{head}.weight"].shape[1]
    imagenet = {
        **state,
        f"{head}.weight": np.zeros((1000, inputs), np.float32),
        f"{head}.bias": np.zeros(1000, np.float32),
    }
    variables = _empty(_model(*case[:3]))
    with pytest.raises(_validate.UsageError, match="keep_head=True"):
        from_torch(imagenet, variables)
    headless = {k: v for k, v in state.items() if not k.startswith(head)}
    with pytest.raises(_validate.UsageError, match="keep_head=True"):
        from_torch(headless, variables)
    for weights in (imagenet, headless):
        loaded = from_torch(weights, variables, keep_head=True)
        assert (
            loaded["post"]["params"]["head"]["fc"]["kernel"]
            is (variables["post"]["params"]["head"]["fc"]["kernel"])
        )
        expected = from_torch(state, variables)["main"]
        jax.tree.map(np.testing.assert_array_equal, loaded["main"], expected)


def test_misfits_are_named_with_a_remedy():
    case = ("resnet18", 8, (64, 48), 0)
    state, _ = _drawn(*case)
    empty = _empty(_model(*case[:3]))

    def message(weights, **options):
        with pytest.raises(_validate.UsageError) as caught:
            from_torch(weights, empty, **options)
        return str(caught.value)

    text = message({k: v for k, v in state.items() if k != "layer3.0.conv1.weight"})
    assert "1 missing: layer3.0.conv1.weight" in text
    assert "keep_head" not in text
    text = message({**state, "extra.weight": np.zeros(1)})
    assert "1 unexpected: extra.weight" in text
    text = message({**state, "bn1.bias": np.zeros(9)}, keep_head=True)
    assert "bn1.bias is [9], needed [8]" in text
    assert "width" in message(_torch_shapes_filled("resnet18", 16))
    assert "state_dict" in message({"state_dict": 0})
    assert "another network" in message(_torch_shapes_filled("vgg16", 4))


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("bn1.weight", lambda v: v * np.nan, "bn1.weight holds numbers .*not finite.*diverge"),
        ("bn1.weight", lambda v: v * 1e300, "not finite in float32"),
        ("bn1.weight", lambda v: v * 1j, "bn1.weight is complex.*no real numbers.*v.float"),
        ("bn1.weight", lambda v: v.astype(str), "bn1.weight is <U.*no real numbers"),
        ("bn1.weight", lambda v: None, "bn1.weight is object.*no real numbers"),
        ("bn1.running_var", lambda v: -v, "bn1.running_var holds -.*variance is not negative"),
    ],
)
def test_entries_that_are_no_weights_are_refused(name, change, words):
    case = ("resnet18", 8, (64, 48), 0)
    state, _ = _drawn(*case)
    wrong = {**state, name: change(state[name].astype(np.float64))}
    with pytest.raises(_validate.UsageError, match=words):
        from_torch(wrong, _empty(_model(*case[:3])))


def test_real_numbers_of_any_dtype_are_read():
    case = ("resnet18", 8, (64, 48), 0)
    state, _ = _drawn(*case)
    empty = _empty(_model(*case[:3]))
    ones = {name: np.ones(value.shape) for name, value in state.items()}
    expected = from_torch(ones, empty)
    for dtype in (np.float16, np.int8, bool, jnp.bfloat16):
        other = from_torch({n: v.astype(dtype) for n, v in ones.items()}, empty)
        jax.tree.map(np.testing.assert_array_equal, other, expected)


@pytest.mark.parametrize("weights", [None, object(), [("a", 1)], {0: np.ones(1)}])
def test_what_is_no_state_dict_is_refused(weights):
    with pytest.raises(_validate.UsageError, match=r"mapping of names to arrays. Pass model\."):
        from_torch(weights, _empty(_model("resnet18", 8, (64, 48))))


def _torch_shapes_filled(network, width):
    return {name: np.zeros(shape) for name, shape in _torch_shapes(network, width).items()}
