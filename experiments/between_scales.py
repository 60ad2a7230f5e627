"""What of the tables' larger scale changes the gaps to plain training: one thing at a time."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import measuring
import places
import report
import scale as scales
import summaries
from scale import Scale, trained_otherwise
from systems import CLOUD

from facemix_jax import _runtime, _validate
from facemix_jax.results import Column, ResultTable, Row

ROWS_OF = {
    "celeba": (CLOUD, "noise N(0, 4)", "blurring 16x16", "blurring 8x8"),
    "lfwa": (CLOUD, "noise N(0, 4)", "blurring 8x8", "FaceMix, M = 8, N_pre = 1"),
}


def _quarter(scale: Scale) -> Scale:
    """A fourth of the images and as many steps."""
    fewer = dataclasses.replace(scale, train_examples=2048)
    return trained_otherwise(fewer, num_epochs=4 * scale.train.num_epochs)


CHANGES: dict[str, Callable[[Scale], Scale]] = {
    "none": lambda scale: scale,
    "mirrored images": lambda scale: trained_otherwise(scale, flip=True),
    "109x89": lambda scale: dataclasses.replace(scale, image_size=(109, 89)),
    # Half of what the larger scale has.
    "width 32": lambda scale: dataclasses.replace(scale, width=32),
    # The paper's size, by its edge columns.
    "218x178": lambda scale: dataclasses.replace(scale, image_size=(218, 178)),
    "2,048 images": _quarter,
}
"""By name: what ``gpu`` or the paper has otherwise than ``cpu``. The paper has fifteen times the
images of CelebA that are here: fewer say in which direction more would go."""
CHANGES_OF = {"celeba": tuple(CHANGES), "lfwa": tuple(CHANGES)[:4]}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The tables' trainings at ``cpu`` with one more thing of ``gpu`` or the paper each.

    On LFWA they are as long as at ``gpu``.

    Command: ``python experiments/between_scales.py --data-dir LFWA``, or ``--dataset celeba
    --data-dir CELEBA``, or ``--scale smoke``, which needs no files. Finished cells are not run
    again.

    Run time: half a minute for ``smoke``; ``cpu`` was timed beside other work only, where a network
    took 7 to 9 minutes on LFWA, and 19 to 33 with a width of 32, on CelebA 2 and 5 to 9, 9 to 14
    at 218x178, which takes 13 GB of memory.

    Expected: on LFWA a width of 32 gives plain training three points and takes more than one from
    noise, which then costs 5.0 points instead of .7; mirrored images give plain training as much,
    and noise half of it. On CelebA blurring costs .7 and .9 points more at 218x178 than at 80x68.

    Attributes:
        scale: smoke or cpu; see ``scale.py``.
        dataset: celeba or lfwa.
        data_dir: folder with its files, as in ``table2.py`` and ``table3.py``; none for ``smoke``.
        cache_dir: folder for decoded images; None for the data sets' default.
        workdirs: folder for the runs; finished ones are not trained again.
        rows: which, beside plain training; None for all, or for noise at ``smoke``.
        changes: which; None for all, or for none of them at ``smoke``.
        seeds: None for as many as the scale has.
        output: JSON file; None for ``results/between_scales_SCALE.json``, on CelebA
            ``between_scales_celeba_SCALE.json``.
    """

    scale: Literal["smoke", "cpu"] = "cpu"
    dataset: places.Dataset = "lfwa"
    data_dir: str | None = None
    cache_dir: str | None = None
    workdirs: Path = Path("runs")
    rows: tuple[str, ...] | None = None
    changes: tuple[str, ...] | None = None
    seeds: tuple[int, ...] | None = None
    output: Path | None = None


def main(config: Config) -> None:
    """Runs the cells that the JSON file lacks, and writes each into it."""
    scale = trained_long(config.dataset, config.scale)
    known, possible = ROWS_OF[config.dataset], CHANGES_OF[config.dataset]
    rows = config.rows or known[: 2 if scale.drawn else None]
    changes = config.changes or possible[: 1 if scale.drawn else None]
    for row in rows:
        _validate.one_of(known, row=row)
    for change in changes:
        _validate.one_of(possible, change=change)
    script = "between_scales" + "_celeba" * (config.dataset == "celeba")
    place = places.place(config, dataset=config.dataset, runs_of=script)
    cells = report.Cells(
        config.output or scales.output(script, config.scale),
        config,
        name=places.named("between scales", config.dataset, scale, config.scale),
        formerly=f"between scales, scale {config.scale}",
        images=places.images(scale, place),
        chooses=("rows", "changes", "seeds"),
        summarize=lambda cells: (tables(cells, config.dataset, scale), ()),
    )
    for seed in config.seeds or range(scale.seeds):
        for change in changes:
            kept = places.within(place, change.replace(" ", "-"))
            measuring.add_gaps(cells, rows, change, CHANGES[change](scale), kept, seed)
    cells.save()


def trained_long(dataset: places.Dataset, name: scales.Name) -> Scale:
    """A table's scale, on LFWA with the epochs of its largest."""
    scale = places.scale_of(dataset, name)
    if scale.drawn or dataset == "celeba":
        return scale
    return trained_otherwise(scale, num_epochs=places.LFWA_EPOCHS["gpu"])


def tables(cells: summaries.Cells, dataset: places.Dataset, scale: Scale) -> list[ResultTable]:
    """A row for each change: plain accuracy, and the differences to it."""
    if not cells:
        return []
    compared = ROWS_OF[dataset][1:]
    rows = []
    for change in CHANGES:
        plain = summaries.measured(cells, CLOUD, change, "test_accuracy")
        if plain:
            gaps = (
                summaries.difference(cells, row, "test_accuracy", part=change) for row in compared
            )
            rows.append(Row(label=change, cells=(plain, *gaps)))
    note = "noise and blurring have no key, and whoever sees what is sent has as much as its owner."
    if dataset == "lfwa":
        note = f"separation returns the activations of FaceMix's networks; {note}"
    table = ResultTable(
        title=f"{summaries.images(scale, places.LABELS[dataset])}, {summaries.size(scale)}, with "
        "one change: test accuracy of plain training, and differences to it in points",
        columns=(
            Column(name="plain", format="percent"),
            *(Column(name=row, format="fixed2") for row in compared),
        ),
        rows=tuple(rows),
        note=f"Less accuracy lost hides nothing more: {note}",
    )
    return [table]


if __name__ == "__main__":
    _runtime.configure()
    report.script(main, Config)
