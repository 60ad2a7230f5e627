"""A run: its configuration, its work directory, and everything rebuilt from them.

::

    workdir/
      config.json      RunConfig, written once
      metrics.jsonl    one record per line
      tensorboard/     the same for TensorBoard
      checkpoints/     see facemix_jax.checkpoint
"""

import contextlib
import dataclasses
import fcntl
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from facemix_jax import data, defenses, models
from facemix_jax._files import write_atomically
from facemix_jax._validate import FacemixError, UsageError, divides
from facemix_jax.checkpoint import restore_variables
from facemix_jax.data import DataConfig, Source
from facemix_jax.defenses import Defense, DefenseConfig
from facemix_jax.models import ModelConfig, SplitModel
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


def identity(config: RunConfig, model: SplitModel) -> dict[str, Any]:
    """What a checkpoint of the run is good for: the network's names and sizes."""
    return {
        **dataclasses.asdict(config.model),
        "tile": None if config.model.tile is None else list(config.model.tile),
        "image_size": list(model.spec.image_size),
        "logits_shape": list(model.spec.logits_shape),
        "statistics": config.train.statistics,
    }


def load(workdir: Path | str, *, data_dir: str | None = None) -> Run:
    """Rebuilds a run from its work directory and its newest checkpoint.

    Args:
        workdir: of a finished or interrupted run.
        data_dir: where the images are now; None for where they were.

    Raises:
        FacemixError: nothing usable is there.
    """
    workdir = Path(workdir)
    config = read_config(workdir)
    if data_dir is not None:
        config = dataclasses.replace(
            config, data=dataclasses.replace(config.data, data_dir=data_dir)
        )
    source = data.load_source(config.data)
    model = build_model(config, source)
    like = jax.eval_shape(model.init, jax.random.key(0))
    if config.train.statistics == "separate" and "batch_stats" in like["main"]:
        like["main"]["clean_stats"] = like["main"]["batch_stats"]
    restored, step = restore_variables(workdir / "checkpoints", identity(config, model), like)
    # Orbax binds arrays to a device. Among others that are not, every program that updates them
    # would be compiled again for its own results.
    variables = jax.device_put(jax.device_get(restored))
    return Run(
        config,
        source,
        model,
        defenses.build(config.defense, tiles=model.spec.tiles),
        variables,
        step,
    )


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
            f"{path} cannot be read: {reason}. It was changed by hand or written by another "
            f"version; restore it, or train into another work directory."
        ) from error


def from_state(config: RunConfig, source: Source, state: TrainState) -> Run:
    """The run whose training ended in ``state``."""
    model = build_model(config, source)
    defense = defenses.build(config.defense, tiles=model.spec.tiles)
    return Run(config, source, model, defense, state.variables, int(state.step))


def check_claim(workdir: Path, config: RunConfig) -> None:
    """Raises ``UsageError`` where the work directory holds a run with another configuration.

    Where the images are, and the devices, may change between the calls; nothing else may.
    """
    if (workdir / "config.json").exists():
        differences = _differences(portable(read_config(workdir)), portable(config))
        if differences:
            raise UsageError(
                f"{workdir} holds a run with another configuration: {'; '.join(differences)}. "
                f"Give the same configuration to go on with it, or another --workdir."
            )


def claim(workdir: Path, config: RunConfig) -> None:
    """Creates the work directory for a run, or checks that it is this run's.

    Where the images are, and the devices, are kept as they are now.

    Raises:
        UsageError: the directory holds another run.
        FacemixError: it cannot be written, or these have changed while a process trains there.
    """
    check_claim(workdir, config)
    known = (workdir / "config.json").exists()
    if known and read_config(workdir) == config:
        return
    text = json.dumps(dataclasses.asdict(config), indent=2)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with alone(workdir) if known else contextlib.nullcontext():
            write_atomically(workdir / "config.json", text)
    except OSError as error:
        raise FacemixError(
            f"The work directory {workdir} cannot be written: {error}. Free space, or choose "
            f"another --workdir."
        ) from error


@contextlib.contextmanager
def alone(workdir: Path) -> Iterator[None]:
    """Keeps a second training out of a work directory: each would delete what the other writes.

    Raises:
        FacemixError: another process trains there.
    """
    with (workdir / "config.json").open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a kill lets go of it
        except BlockingIOError:
            raise FacemixError(
                f"Another process is training in {workdir}. Wait for it or stop it, or give "
                f"another --workdir."
            ) from None
        except OSError:  # a file system without locks
            pass
        yield


def _parse(values: Mapping[str, Any]) -> RunConfig:
    data_values = {**values["data"], "image_size": tuple(values["data"]["image_size"])}
    return RunConfig(
        data=DataConfig(**data_values),
        model=ModelConfig(**values["model"]),
        defense=DefenseConfig(**values["defense"]),
        train=TrainConfig(**values["train"]),
        mesh=MeshConfig(**values.get("mesh", {})),  # runs from before there were meshes
    )


def portable(config: RunConfig) -> dict[str, Any]:
    """What makes a run what it is: all but where its images are and on which devices it runs."""
    values = dataclasses.asdict(config)
    del values["mesh"]
    for name in ("data_dir", "cache_dir", "device_resident"):
        del values["data"][name]
    return values


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return [
        f"{part}.{name} is {value!r} there and {new[part][name]!r} here"
        for part, values in old.items()
        for name, value in values.items()
        if new[part][name] != value
    ]
