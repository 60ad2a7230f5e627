"""The paper's two data sets: where their files are, where runs go, how long networks train."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import persons
import report
import scale as scales
from scale import Scale, data_config

from facemix_jax import data

Dataset = Literal["celeba", "lfwa"]
LABELS: dict[Dataset, str] = {"celeba": "CelebA", "lfwa": "LFWA"}
LFWA_EPOCHS = {"smoke": 1, "cpu": 8, "gpu": 30, "paper": 600}
"""LFWA has fewer pictures than CelebA, and the paper trains on it for six times as many epochs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """Where the pictures are and the runs go.

    Attributes:
        dataset: as in ``DataConfig``.
        data_dir: its folder; None where faces are drawn.
        cache_dir: for decoded images.
        identity_dir: folder with pictures of people to recognise; None: no one is recognised.
        workdirs: folder for the runs.
        columns: as in ``DataConfig``.
    """

    dataset: str
    data_dir: str | None
    cache_dir: str | None
    identity_dir: str | None
    workdirs: Path
    columns: str | None = None


def scale_of(dataset: Dataset, name: scales.Name) -> Scale:
    """A scale; on LFWA with all pictures and as many epochs as they need."""
    scale = scales.SCALES[name]
    if dataset == "celeba":
        return scale
    scale = scales.trained_otherwise(scale, num_epochs=LFWA_EPOCHS[name])
    return scale if scale.drawn else dataclasses.replace(scale, train_examples=None)


def place(
    config: Any,
    *,
    dataset: Dataset = "celeba",
    identity_dir: str | None = None,
    runs_of: str = "table2",
) -> Place:
    """The place of a script; scripts with the same ``runs_of`` share what is trained.

    Args:
        config: has ``scale``, ``data_dir``, ``cache_dir`` and ``workdirs``.
        dataset: whose files ``data_dir`` holds: the official ones, or of LFWA ``images.zip`` and
            ``labels.csv``, whose columns are not all attributes.
        identity_dir: as in ``Place``.
        runs_of: begins the name of the folder of runs.
    """
    layout: dict[str, str] = {"dataset": dataset}
    if (
        dataset == "lfwa"
        and config.data_dir is not None
        and (Path(config.data_dir) / "labels.csv").exists()
    ):
        ignored = "person,imagenum,male_human,smile_human"
        layout = {
            "dataset": "folder",
            "columns": f"identity=identity split=split ignore={ignored}",
        }
    return Place(
        **layout,
        data_dir=config.data_dir,
        cache_dir=config.cache_dir,
        identity_dir=identity_dir,
        workdirs=config.workdirs / f"{runs_of}_{config.scale}",
    )


def images(scale: Scale, place: Place) -> dict[str, dict[str, Any]]:
    """``report.images_of`` the data set and the people, for ``report.Cells``.

    Raises:
        FacemixError: files are missing or damaged.
    """
    found = {}
    if not scale.drawn and place.data_dir is not None:
        config = data_config(scale, place.data_dir, place.cache_dir, place.dataset, place.columns)
        found["data"] = report.images_of(config)
    return found | persons.images(place.identity_dir)


def named(script: str, dataset: Dataset, scale: Scale, size: scales.Name) -> str:
    """A script's name in its results file, with the data set where faces are not drawn."""
    return f"{script}{'' if scale.drawn else f' on {LABELS[dataset]}'}, scale {size}"


def within(place: Place, folder: str) -> Place:
    """The same, with the runs in a folder below: what is trained otherwise is kept apart."""
    return dataclasses.replace(place, workdirs=place.workdirs / folder)


def prepare(scale: Scale, place: Place) -> None:
    """Opens all files, which decodes them once, so that what is amiss is said before training.

    It uses no accelerator: the processes of rows that run side by side share its memory.

    Raises:
        FacemixError: files are missing or damaged.
    """
    if not scale.drawn:
        data.load_source(
            data_config(scale, place.data_dir, place.cache_dir, place.dataset, place.columns)
        )
    if place.identity_dir is not None:
        persons.people(place.identity_dir, place.cache_dir, scale.image_size)
