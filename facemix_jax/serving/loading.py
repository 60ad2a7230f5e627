"""Main of a work directory's newest checkpoint, ready to run: nothing else is read.

A checkpoint says what network it belongs to, and ``config.json`` which BatchNorm statistics main
uses and how many rows arrive together; so neither ``runs`` nor ``defenses`` is needed here.
"""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from facemix_jax import checkpoint, models, sharding
from facemix_jax._types import Array, HostArray, Variables
from facemix_jax._validate import FacemixError, UsageError, origin
from facemix_jax.models import ModelConfig, Spec, SplitModel
from facemix_jax.serving import wire
from facemix_jax.sharding import MeshConfig

UNMIXED_ROWS = 8
"""Rows run together where training did not mix."""
_LATER = {"activation"}
"""Fields of the network that older checkpoints lack; theirs have the default."""


@dataclasses.dataclass(frozen=True, eq=False)
class Served:
    """One checkpoint's main.

    Attributes:
        spec: shapes of the network.
        apply: jitted, ``(variables, float32 [B, H, W, C]) -> float32 [B, D]``; one function for
            all checkpoints of a network, so that a new one compiles nothing.
        variables: main's, on the device.
        model_id: see ``wire.model_id``.
        step: training steps done.
        group_size: rows that an edge mixes together.
    """

    spec: Spec
    apply: Callable[[Variables, Array | HostArray], Array]
    variables: Variables
    model_id: str
    step: int
    group_size: int


class UnusableError(FacemixError):
    """A checkpoint that was read and cannot be served."""


class Found(NamedTuple):
    """A checkpoint of a work directory and the network that it holds.

    Attributes:
        directory: holds the checkpoints.
        step: training steps done.
        model: the network; the same object for all checkpoints of one network, so that functions
            compiled for it are compiled once.
        like: shapes of all its variables.
    """

    directory: Path
    step: int
    model: SplitModel
    like: dict[str, Any]


def find(workdir: Path, step: int | None = None) -> Found:
    """Looks up a checkpoint and builds the network that it says it belongs to.

    Args:
        workdir: of a finished or running training.
        step: which checkpoint; None for the newest.

    Raises:
        UsageError: there is none.
        FacemixError: it cannot be read.
    """
    directory = workdir / "checkpoints"
    step = checkpoint.newest(directory) if step is None else step
    if step is None:
        raise UsageError(
            f"There is no checkpoint in {directory}. Train first: facemix train --workdir {workdir}"
        )
    identity = checkpoint.read_identity(directory, step)
    try:
        names = {field.name for field in dataclasses.fields(ModelConfig)}
        names -= _LATER - identity.keys()
        config = ModelConfig(**{name: identity[name] for name in names})
        height, width = identity["image_size"]
        num_attributes, num_classes = identity["logits_shape"]
    except UsageError as error:  # a name that is not registered, or a value refused
        reason = str(error).rstrip(".")
        raise FacemixError(
            f"The network of checkpoint {step} in {directory} cannot be built: {reason}. "
            f"{origin(reason)} was written by another version; train again."
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        raise FacemixError(
            f"The checkpoint {step} in {directory} does not say what network it holds: {error}. "
            f"It was written by another version; train again."
        ) from error
    model = models.build(
        config,
        image_size=(height, width),
        num_attributes=num_attributes,
        num_classes=num_classes,
    )
    like = jax.eval_shape(model.init, jax.random.key(0))
    if identity.get("statistics") == "separate" and "batch_stats" in like["main"]:
        like["main"]["clean_stats"] = like["main"]["batch_stats"]
    return Found(directory, step, model, like)


@functools.cache
def jitted_main(model: SplitModel) -> Callable[[Variables, Array | HostArray], Array]:
    """Main of inference, compiled once for all checkpoints of a network.

    Its answers are float32, as they are sent, whatever the network computes in.
    """
    return jax.jit(lambda variables, x: model.main(variables, x).astype(jnp.float32))


def load(workdir: Path, step: int | None = None, *, model_devices: int = 1) -> Served:
    """Loads main.

    Args:
        workdir: of a finished or running training.
        step: which checkpoint; None for the newest.
        model_devices: devices among which main's output channels are dealt; each reads its part.

    Raises:
        UsageError: nothing usable is there.
        UnusableError: main returns NaN or infinities for zeros.
        FacemixError: the files cannot be read.
    """
    group_size, protected = _read_config(workdir)
    directory, step, model, like = find(workdir, step)
    apply = jitted_main(model)
    wanted = like["main"]
    if model_devices > 1:
        sizes = MeshConfig(seed_devices=1, data_devices=1, model_devices=model_devices)
        places = sharding.shardings(sharding.make_mesh(sizes), {"main": wanted})["main"]
        wanted = jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            wanted,
            places,
        )
    variables = checkpoint.restore_segment(directory, step, "main", wanted)
    clean = variables.pop("clean_stats", None)
    if clean is not None and not protected:
        variables["batch_stats"] = clean
    zeros = np.zeros((group_size, *model.spec.activation_shape), np.float32)
    if not np.isfinite(np.asarray(apply(variables, zeros))).all():
        raise UnusableError(
            f"Main of checkpoint {step} in {directory} returns NaN or infinities. Train again with "
            f"a lower --learning-rate."
        )
    name = wire.model_id(variables, model.spec)
    return Served(model.spec, apply, variables, name, step, group_size)


def _read_config(workdir: Path) -> tuple[int, bool]:
    """Rows per group, and whether main gets protected activations."""
    path = workdir / "config.json"
    try:
        defense = json.loads(path.read_text())["defense"]
        protected = defense["defense"] != "none"
        return (int(defense["group_size"]) if protected else UNMIXED_ROWS), protected
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(
            f"{workdir} is no work directory: it has no config.json. Give the --workdir of a "
            f"'facemix train' run."
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FacemixError(
            f"{path} cannot be read: {error}. Restore it, or train into another work directory."
        ) from error
