"""What of Table 3's larger scale changes the gaps to plain training: one thing at a time."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import measuring
import report
import scale as scales
import summaries
import table3
from scale import Scale
from systems import CLOUD

from facemix_jax import _runtime, _validate
from facemix_jax.results import Column, ResultTable, Row

ROWS = (CLOUD, "noise N(0, 4)", "blurring 8x8", "FaceMix, M = 8, N_pre = 1")


def _mirrored(scale: Scale) -> Scale:
    return dataclasses.replace(scale, train=dataclasses.replace(scale.train, flip=True))


CHANGES: dict[str, Callable[[Scale], Scale]] = {
    "none": lambda scale: scale,
    "mirrored images": _mirrored,
    "109x89": lambda scale: dataclasses.replace(scale, image_size=(109, 89)),
    # Half of what the larger scale has.
    "width 32": lambda scale: dataclasses.replace(scale, width=32),
}
"""By name: what ``gpu`` has otherwise than ``cpu``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Table 3's trainings at ``cpu``, as long as at ``gpu``, with one more thing of ``gpu`` each.

    Command: ``python experiments/between_scales.py --data-dir LFWA``, or ``--scale smoke``, which
    needs no files. Finished cells are not run again.

    Run time: a minute for ``smoke``; ``cpu`` was timed beside other work only, where a network took
    7 to 9 minutes, and 19 to 33 with a width of 32.

    Expected: a width of 32 gives plain training three points and takes more than one from noise,
    which then costs 5.0 points instead of .7; mirrored images give plain training as much, and
    noise half of it.

    Attributes:
        scale: smoke or cpu; see ``scale.py``.
        data_dir: as in ``table3.py``; none for ``smoke``.
        cache_dir: folder for decoded images; None for the data sets' default.
        workdirs: folder for the runs; finished ones are not trained again.
        rows: which, beside plain training; None for all, or for noise at ``smoke``.
        changes: which; None for all, or for none of them at ``smoke``.
        seeds: None for as many as the scale has.
        output: JSON file; None for ``results/between_scales_SCALE.json``.
    """

    scale: Literal["smoke", "cpu"] = "cpu"
    data_dir: str | None = None
    cache_dir: str | None = None
    workdirs: Path = Path("runs")
    rows: tuple[str, ...] | None = None
    changes: tuple[str, ...] | None = None
    seeds: tuple[int, ...] | None = None
    output: Path | None = None


def main(config: Config) -> None:
    """Runs the cells that the JSON file lacks, and writes each into it."""
    scale = trained_long(config.scale)
    rows = config.rows or ROWS[: 2 if scale.drawn else None]
    changes = config.changes or tuple(CHANGES)[: 1 if scale.drawn else None]
    for row in rows:
        _validate.one_of(ROWS, row=row)
    for change in changes:
        _validate.one_of(CHANGES, change=change)
    cells = report.Cells(
        config.output or scales.output("between_scales", config.scale),
        config,
        name=f"between scales, scale {config.scale}",
        chooses=("rows", "changes", "seeds"),
        summarize=lambda cells: (tables(cells, scale), ()),
    )
    for seed in config.seeds or range(scale.seeds):
        for change in changes:
            changed, folder = CHANGES[change](scale), f"between_scales_{config.scale}"
            place = measuring.Place(
                **table3.layout(config.data_dir),
                data_dir=config.data_dir,
                cache_dir=config.cache_dir,
                identity_dir=None,
                workdirs=config.workdirs / folder / change.replace(" ", "-"),
            )
            measuring.add_gaps(cells, rows, change, changed, place, seed)
    cells.save()


def trained_long(name: scales.Name) -> Scale:
    """Table 3's scale with the epochs of its largest."""
    scale = table3.longer(name)
    if scale.drawn:
        return scale
    train = dataclasses.replace(scale.train, num_epochs=table3.EPOCHS["gpu"])
    return dataclasses.replace(scale, train=train)


def tables(cells: summaries.Cells, scale: Scale) -> list[ResultTable]:
    """A row for each change: plain accuracy, and the differences to it."""
    if not cells:
        return []
    rows = []
    for change in CHANGES:
        plain = summaries.measured(cells, CLOUD, change, "test_accuracy")
        if plain:
            gaps = (
                summaries.difference(cells, row, "test_accuracy", part=change) for row in ROWS[1:]
            )
            rows.append(Row(label=change, cells=(plain, *gaps)))
    table = ResultTable(
        title=f"{summaries.images(scale, 'LFWA')}, {summaries.size(scale)}, with one change: test "
        "accuracy of plain training, and differences to it in points",
        columns=(
            Column(name="plain", format="percent"),
            *(Column(name=row, format="fixed2") for row in ROWS[1:]),
        ),
        rows=tuple(rows),
        note="Less accuracy lost hides nothing more: separation returns the activations of "
        "FaceMix's networks; noise and blurring have no key, and whoever sees what is sent has as "
        "much as its owner.",
    )
    return [table]


if __name__ == "__main__":
    _runtime.configure()
    report.script(main, Config)
