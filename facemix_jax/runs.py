"""A run: its configuration, its work directory, and everything rebuilt from them.

::

    workdir/
      config.json      RunConfig of the last call; see essential for what may change with calls
      anonymizer.json  of facemix anonymize only: what it is trained for
      images.json      what tells its training images and initial weights from others
      training.lock    held by the process that trains
      metrics.jsonl    one record per line
      tensorboard/     the same for TensorBoard
      checkpoints/     see facemix_jax.checkpoint
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from facemix_jax import data, defenses, models, run_images
from facemix_jax._types import Array, ImageSize
from facemix_jax._validate import FacemixError, UsageError, divides, origin
from facemix_jax.checkpoint import restore_variables
from facemix_jax.data import DataConfig, Source
from facemix_jax.defenses import Defense, DefenseConfig
from facemix_jax.models import ModelConfig, SplitModel
from facemix_jax.models.isometry import convolutions
from facemix_jax.run_images import images_named as images_named
from facemix_jax.run_images import images_of as images_of
from facemix_jax.run_images import read_images as read_images
from facemix_jax.sharding import MeshConfig
from facemix_jax.training import TrainConfig, TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Data, network, defence and training of one run.

    Attributes:
        data: which images.
        model: the network and its cut.
        defense: how activations are protected, in training and after it.
        train: how the network is trained.
        mesh: on which devices; may change when the run goes on.
    """

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    defense: DefenseConfig = DefenseConfig()
    train: TrainConfig = TrainConfig()
    mesh: MeshConfig = MeshConfig()

    def __post_init__(self) -> None:
        """Checks that the parts fit together."""
        if self.defense.defense == "facemix":
            divides(
                self.defense.group_size,
                divisor_name="group_size",
                batch_size=self.train.batch_size,
            )
        elif self.train.negentropy_weight or self.train.discriminator_weight:
            raise UsageError(
                f"negentropy_weight is {self.train.negentropy_weight} and discriminator_weight "
                f"{self.train.discriminator_weight}, but the defence {self.defense.defense!r} "
                f"mixes nothing that these could hide. Set both to 0, or use the defence 'facemix'."
            )
        if self.defense.decoys and self.train.discriminator_weight:
            raise UsageError(
                f"discriminator_weight is {self.train.discriminator_weight} and decoys "
                f"{self.defense.decoys}, but the discriminator would learn from groups that are "
                f"mixed without decoys, which no cloud sees. Leave one of the two out, or use "
                f"negentropy_weight alone."
            )


PLACES = ("data_dir", "cache_dir", "device_resident")
"""Fields of ``data`` that say where images are, and may change when a run goes on."""

INTERVALS = ("log_every", "checkpoint_every")
"""Fields of ``train`` that say when a run is recorded and saved, and may change likewise."""


class Run(NamedTuple):
    """A run's parts, rebuilt from its configuration.

    Attributes:
        config: the configuration.
        source: its images.
        model: its split network.
        defense: its defence.
        variables: ``{"pre", "main", "post"}``, trained.
        step: training steps done.
    """

    config: RunConfig
    source: Source
    model: SplitModel
    defense: Defense
    variables: dict[str, Any]
    step: int


def build_model(config: RunConfig, source: Source) -> SplitModel:
    """The run's network for the source's images and attributes."""
    return models.build(
        config.model,
        image_size=source.image_size,
        num_attributes=len(source.attribute_names),
    )


def check_parts(config: RunConfig, image_size: ImageSize) -> None:
    """Raises ``UsageError`` where network, cut, defence and training do not fit or have no effect.

    Little is computed on shapes alone, so that this comes before images of that size are read.
    """
    model = models.build(config.model, image_size=image_size)
    spec = model.spec
    defense = defenses.build(config.defense, tiles=spec.tiles)
    rows = config.train.batch_size * spec.tiles
    height, width, _ = spec.activation_shape
    if config.train.negentropy_weight and min(height, width) < 2:
        raise UsageError(
            f"negentropy_weight is {config.train.negentropy_weight}, but what is sent are maps of "
            f"{height} x {width} positions, which have no differences in both directions. Choose "
            f"an earlier cut, larger tiles, or weight 0."
        )

    if config.train.statistics != "mixed" or config.train.isometry:
        _check_effect(config, jax.eval_shape(model.init, jax.random.key(0))["main"])

    def protect(z: Array) -> Array:
        return defense.protect(defense.init(jax.random.key(0), rows, True), z)

    jax.eval_shape(protect, jax.ShapeDtypeStruct((rows, *spec.activation_shape), jnp.float32))


def _check_effect(config: RunConfig, main: Mapping[str, Any]) -> None:
    """Raises ``UsageError`` where main, its variables given, lacks what training options are of."""
    for name, lacks, missing in (
        ("statistics", "BatchNorm", not main.get("batch_stats")),
        ("isometry", "convolutions", not list(convolutions(main.get("params", {})))),
    ):
        value = getattr(config.train, name)
        if missing and value != getattr(TrainConfig(), name):
            raise UsageError(
                f"{name} is {value!r}, but main has no {lacks} behind cut {config.model.cut} of "
                f"{config.model.network!r}, so that it has no effect. Leave --{name} out."
            )


def identity(config: RunConfig, model: SplitModel) -> dict[str, Any]:
    """What a checkpoint of the run is good for: the network's names and sizes."""
    return {
        **dataclasses.asdict(config.model),
        "tile": None if config.model.tile is None else list(config.model.tile),
        "image_size": list(model.spec.image_size),
        "logits_shape": list(model.spec.logits_shape),
        "statistics": config.train.statistics,
    }


def load(workdir: Path | str, *, data_dir: str | None = None, source: Source | None = None) -> Run:
    """Rebuilds a run from its work directory and its newest checkpoint.

    Args:
        workdir: of a finished or interrupted run.
        data_dir: where the images are now; None for where they were.
        source: the images, if they are loaded already or of a source of your own.

    Raises:
        FacemixError: nothing usable is there, or the images have other attributes than the run was
            trained for.
    """
    workdir = Path(workdir)
    config = read_config(workdir)
    if data_dir is not None:
        config = dataclasses.replace(
            config, data=dataclasses.replace(config.data, data_dir=data_dir)
        )
    images = data.load_source(config.data) if source is None else source
    if source is None and config.data.dataset == "synthetic":
        run_images.check_drawn(workdir, images)
    run_images.check_attributes(workdir, images)
    model = build_model(config, images)
    like = jax.eval_shape(model.init, jax.random.key(0))
    if config.train.statistics == "separate" and "batch_stats" in like["main"]:
        like["main"]["clean_stats"] = like["main"]["batch_stats"]
    restored, step = restore_variables(workdir / "checkpoints", identity(config, model), like)
    # Orbax binds arrays to a device. Among others that are not, every program that updates them
    # would be compiled again for its own results.
    variables = jax.device_put(jax.device_get(restored))
    defense = defenses.build(config.defense, tiles=model.spec.tiles)
    return Run(config, images, model, defense, variables, step)


def read_config(workdir: Path) -> RunConfig:
    """Reads ``config.json``.

    Raises:
        FacemixError: it is missing or was not written by this version.
    """
    path = workdir / "config.json"
    try:
        return _parse(json.loads(path.read_text()))
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(
            f"{workdir} is no work directory: it has no config.json. Give the --workdir of a "
            f"'facemix train' run."
        ) from None
    except OSError as error:
        raise FacemixError(
            f"{path} cannot be read: {error.strerror}. Run as its owner, or give another --workdir."
        ) from error
    except (ValueError, TypeError, KeyError) as error:  # a value refused is a ValueError, too
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error).rstrip(".")
        raise FacemixError(
            f"{path} cannot be read: {reason}. {origin(reason)} was changed by hand or written "
            f"by another version; restore it, or train into another work directory."
        ) from error


def from_state(config: RunConfig, source: Source, state: TrainState) -> Run:
    """The run whose training ended in ``state``."""
    model = build_model(config, source)
    defense = defenses.build(config.defense, tiles=model.spec.tiles)
    return Run(config, source, model, defense, state.variables, int(state.step))


def _parse(values: Mapping[str, Any]) -> RunConfig:
    data_values = {**values["data"], "image_size": tuple(values["data"]["image_size"])}
    return RunConfig(
        data=DataConfig(**data_values),
        model=ModelConfig(**values["model"]),
        defense=DefenseConfig(**values["defense"]),
        train=TrainConfig(**values["train"]),
        mesh=MeshConfig(**values.get("mesh", {})),  # runs from before there were meshes
    )


def essential(config: RunConfig) -> dict[str, Any]:
    """What makes a run what it is: ``portable`` without ``INTERVALS``."""
    values = portable(config)
    for name in INTERVALS:
        del values["train"][name]
    return values


def portable(config: RunConfig) -> dict[str, Any]:
    """A configuration without where its images are and on which devices it runs."""
    values = dataclasses.asdict(config)
    del values["mesh"]
    for name in PLACES:
        del values["data"][name]
    return values
