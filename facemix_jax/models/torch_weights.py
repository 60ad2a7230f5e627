"""torchvision's ResNet-18 and VGG-16 weights, read into a split network at any cut."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from facemix_jax import _validate
from facemix_jax._types import HostArray, Variables
from facemix_jax.models import vgg

_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
_DOWNSAMPLE = {"downsample_conv": "downsample.0", "downsample_bn": "downsample.1"}
_RESNET_HEAD, _VGG_HEAD = "fc", "classifier.6"
_OURS_ALONE = {
    "slope": "activation 'prelu'",
    "threshold": "activation 'shifted'",
    "mean_square": "norm 'scale'",
}
"""Leaves that torchvision's networks have nothing for, and what brings them."""
_IGNORED = "num_batches_tracked"
"""PyTorch's BatchNorm counter; with a fixed momentum nothing reads it."""


def _vgg_prefixes() -> dict[str, str]:
    """Unit names to torchvision's, which number convolutions, ReLUs and pools in one sequence."""
    prefixes, position = {}, 0
    for stage, (_, depth) in enumerate(vgg.STAGES, start=1):
        for index in range(1, depth + 1):
            prefixes[f"conv{stage}_{index}"] = f"features.{position}"
            position += 2
        position += 1
    return prefixes | {"fc6": "classifier.0", "fc7": "classifier.3", "head": _VGG_HEAD}


def _torch_name(path: Sequence[str], *, is_vgg: bool) -> str:
    """``(unit, ..., leaf)`` in Flax to torchvision's name."""
    unit, module, leaf = path[0], path[1], path[-1]
    if is_vgg:
        parts = [_vgg_prefixes().get(unit, unit)]
    elif unit == "head":
        parts = [_RESNET_HEAD]
    else:
        # layer1_0 is layer1.0; the stem stands at the top.
        prefix = [] if unit == "stem" else [unit.replace("_", ".")]
        parts = [*prefix, _DOWNSAMPLE.get(module, module)]
    return ".".join([*parts, _LEAVES.get(leaf, leaf)])


def _torch_shape(path: Sequence[str], shape: tuple[int, ...]) -> tuple[int, ...]:
    if path[-1] != "kernel":
        return shape
    *kernel, inputs, outputs = shape
    return (outputs, inputs, *kernel)


def _to_flax(path: Sequence[str], value: HostArray) -> HostArray:
    """OIHW to HWIO; ``[out, in]`` to ``[in, out]``, and fc6's inputs from CHW to HWC order."""
    if path[-1] != "kernel":
        return value
    if value.ndim == 4:
        return value.transpose(2, 3, 1, 0)
    if path[0] == "fc6":
        maps = value.reshape(value.shape[0], -1, vgg.POOLED_SIZE, vgg.POOLED_SIZE)
        return maps.transpose(2, 3, 1, 0).reshape(-1, value.shape[0])
    return value.T


def _ours_alone(path: Sequence[str]) -> str | None:
    """What brings a leaf that torchvision's networks have nothing for; None for the others."""
    if path[0] == "generator":
        return "an anonymizer's generator"
    if path[:2] in (("stem", "conv2"), ("stem", "bn2")):
        return "stem 'signed'"
    return _OURS_ALONE.get(path[-1])


def from_torch(
    state_dict: Mapping[str, Any], variables: Variables, *, keep_head: bool = False
) -> dict[str, Any]:
    """Puts the weights of a torchvision ResNet-18 or VGG-16 into a split network.

    Units keep their names wherever the cut lies, so that any cut can be filled.

    Args:
        state_dict: torchvision's names to tensors on the CPU or arrays, as ``state_dict()``
            of the module gives them.
        variables: ``{"pre": ..., "main": ..., "post": ...}`` of the network to fill; gives the
            structure, the shapes and the dtypes.
        keep_head: keep the final linear layer of ``variables``, for pretrained weights of
            another task.

    Returns:
        New variables of the same structure, shapes and dtypes.

    Raises:
        UsageError: entries are missing, unexpected, of another shape, or what ``as_array`` refuses;
            or the network has learnt activations, another norm or stem, or a generator, which
            torchvision's have not.
    """
    if not (isinstance(state_dict, Mapping) and all(isinstance(name, str) for name in state_dict)):
        raise _validate.UsageError(
            f"The weights are a {type(state_dict).__name__}, but must be a mapping of names to "
            f"arrays. Pass model.state_dict()."
        )
    leaves, treedef = jax.tree_util.tree_flatten_with_path(variables)
    # Keys are segment, collection, unit, ..., leaf.
    paths = [tuple(str(key.key) for key in path)[2:] for path, _ in leaves]
    others = sorted({found for path in paths if (found := _ours_alone(path))})
    if others:
        raise _validate.UsageError(
            f"This network has {' and '.join(others)}, which torchvision's have not: their weights "
            f"would make another function in it, or leave parts without. The networks for them are "
            f"resnet18 and vgg16 with stem='pool', activation='relu' and norm='batch'. Build "
            f"one of these."
        )
    is_vgg = any(path[0] == "conv1_1" for path in paths)
    names = [_torch_name(path, is_vgg=is_vgg) for path in paths]
    head = _VGG_HEAD if is_vgg else _RESNET_HEAD
    if keep_head:
        state_dict = {
            name: value for name, value in state_dict.items() if name.rpartition(".")[0] != head
        }

    ours = {"pre_centre", "main_centre"} | ({"head"} if keep_head else set())
    new, missing, wrong = [], [], []
    for path, name, (_, leaf) in zip(paths, names, leaves, strict=True):
        if path[0] in ours:
            new.append(leaf)
            continue
        if name not in state_dict:
            missing.append(name)
            continue
        value = as_array(name, state_dict[name])
        expected = _torch_shape(path, leaf.shape)
        if value.shape != expected:
            wrong.append((name, f"{name} is {list(value.shape)}, needed {list(expected)}"))
            continue
        new.append(jnp.asarray(_to_flax(path, value), dtype=leaf.dtype))
    known = set(names)
    unexpected = [n for n in state_dict if n not in known and not n.endswith(_IGNORED)]
    _raise_if_any(head, missing, unexpected, wrong)
    return jax.tree_util.tree_unflatten(treedef, new)


def as_array(name: str, value: Any) -> HostArray:
    """One entry of a ``state_dict``, in its own dtype.

    Args:
        name: torchvision's.
        value: a tensor on the CPU or an array.

    Raises:
        UsageError: it is no array of real numbers that are finite in float32, or a variance below
            zero.
    """
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise _validate.UsageError(
            f"{name} cannot be read as an array ({error}). Pass tensors after "
            ".detach().float().cpu(), as numpy has neither bfloat16 nor other devices."
        ) from error
    # JAX's bfloat16 is a kind of its own; in files bytes without a meaning are left of it.
    if array.dtype.kind not in "fiub" and not jnp.issubdtype(array.dtype, jnp.floating):
        raise _validate.UsageError(
            f"{name} is {array.dtype}, which are no real numbers. Take v.float() of every tensor v."
        )
    with np.errstate(over="ignore"):
        finite = np.isfinite(array.astype(np.float32, copy=False)).all()
    if not finite:
        raise _validate.UsageError(
            f"{name} holds numbers that are not finite in float32. Take the weights of a network "
            f"whose training did not diverge."
        )
    if name.endswith("running_var") and (array < 0).any():
        raise _validate.UsageError(
            f"{name} holds {float(array.min()):.3g}, but a variance is not negative. Take the "
            f"weights of a network as it was trained."
        )
    return array


def _raise_if_any(
    head: str, missing: list[str], unexpected: list[str], wrong: list[tuple[str, str]]
) -> None:
    if not (missing or unexpected or wrong):
        return
    misfits = [*missing, *(name for name, _ in wrong)]
    parts = [
        f"{len(items)} {kind}: {', '.join(items[:4])}{', ...' if len(items) > 4 else ''}"
        for kind, items in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", [text for _, text in wrong]),
        )
        if items
    ]
    if not unexpected and all(name.rpartition(".")[0] == head for name in misfits):
        remedy = (
            f"Only the head ({head}) does not fit: pass keep_head=True to load all else and "
            "keep this network's head."
        )
    else:
        remedy = (
            "Likely causes: (a) weights of another network or width, (b) a checkpoint that "
            "nests its weights, for example under 'state_dict', or puts 'module.' before the "
            "names, (c) a network built without BatchNorm or its shifts. Pass the state_dict() of "
            "a torchvision resnet18 or vgg16 that has the same width."
        )
    raise _validate.UsageError(f"The weights do not fit. {'; '.join(parts)}. {remedy}")
