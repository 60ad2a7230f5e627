"""Why the tables order accuracies otherwise than the paper: gaps to plain over training length."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import measuring
import places
import report
import scale as scales
import summaries
from systems import ANONYMIZER, CLOUD

from facemix_jax import _runtime, _validate
from facemix_jax.results import Chart, Curve

ROWS = (
    CLOUD,
    "noise N(0, 4)",
    "blurring 8x8",
    "FaceMix, M = 8, N_pre = 1",
    "FaceMix, M = 8, N_pre = 3",
    ANONYMIZER,
)
ROWS_OF = {"celeba": ROWS, "lfwa": ROWS[:-1]}
LENGTHS = {"celeba": (2, 6, 18), "lfwa": (8, 30)}
"""Epochs. Table 3's scales ``cpu`` and ``gpu`` train for 8 and 30."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The tables' trainings at several lengths, all else equal.

    Command: ``python experiments/training_length.py --data-dir CELEBA``, or ``--scale smoke``,
    which needs no files. Finished cells are not run again.

    Run time: a minute for ``smoke``; for each seed of ``cpu`` on two CPU cores about 12 minutes
    for FaceMix on CelebA and an hour for the anonymizer; noise, blurring and LFWA were timed beside
    other work only, where the last took an hour for four rows.

    Expected: FaceMix's gap closes with training: plain training is done after a few epochs, and
    encryption-aware training, which sees a new mixture every time, goes on gaining.

    Attributes:
        scale: smoke, cpu, gpu or paper; see ``scale.py``.
        dataset: celeba or lfwa.
        data_dir: folder with its files, as in ``table2.py`` and ``table3.py``; none for ``smoke``.
        cache_dir: folder for decoded images; None for the data sets' default.
        workdirs: folder for the runs; finished ones are not trained again.
        rows: which, beside plain training; None for all, or for FaceMix with N_pre = 1 at
            ``smoke``; the anonymizer is not trained on LFWA.
        epochs: lengths; None for 2, 6 and 18, 8 and 30 on LFWA, 1 and 2 at ``smoke``.
        seeds: None for as many as the scale has.
        output: JSON file; None for ``results/training_length_SCALE.json``, on LFWA
            ``training_length_lfwa_SCALE.json``.
    """

    scale: scales.Name = "cpu"
    dataset: places.Dataset = "celeba"
    data_dir: str | None = None
    cache_dir: str | None = None
    workdirs: Path = Path("runs")
    rows: tuple[str, ...] | None = None
    epochs: tuple[int, ...] | None = None
    seeds: tuple[int, ...] | None = None
    output: Path | None = None


def main(config: Config) -> None:
    """Runs the cells that the JSON file lacks, and writes each into it."""
    scale = places.scale_of(config.dataset, config.scale)
    known = ROWS_OF[config.dataset]
    rows = config.rows or (ROWS[3:4] if scale.drawn else known)
    for row in rows:
        _validate.one_of(known, row=row)
    script = "training_length" + "_lfwa" * (config.dataset == "lfwa")
    place = places.place(config, dataset=config.dataset, runs_of=script)
    cells = report.Cells(
        config.output or scales.output(script, config.scale),
        config,
        name=places.named("training length", config.dataset, scale, config.scale),
        formerly=f"training length, scale {config.scale}",
        images=places.images(scale, place),
        chooses=("rows", "epochs", "seeds"),
        summarize=lambda cells: ((), (chart(cells, scale, config.dataset),)),
    )
    lengths = config.epochs or ((1, 2) if scale.drawn else LENGTHS[config.dataset])
    for seed in config.seeds or range(scale.seeds):
        for epochs in lengths:
            longer = scales.trained_otherwise(scale, num_epochs=epochs)
            part = f"{epochs} epochs"
            kept = places.within(place, f"{epochs}")
            measuring.add_gaps(cells, rows, part, longer, kept, seed)
    cells.save()


def chart(
    cells: Sequence[Mapping[str, Any]], scale: scales.Scale, dataset: places.Dataset
) -> Chart:
    """Gap to plain, in points, over epochs."""
    lengths = sorted({int(cell["part"].split()[0]) for cell in cells})
    curves = []
    for row in ROWS[1:]:
        points = []
        for epochs in lengths:
            points += [
                (epochs, gap)
                for gap in summaries.difference(
                    cells, row, "test_accuracy", part=f"{epochs} epochs"
                )
            ]
        if points:
            curves.append(
                Curve(
                    label=row,
                    mark="measured",
                    x=tuple(float(x) for x, _ in points),
                    y=tuple(float(y.value) for _, y in points),
                    half_widths=tuple(y.half_width for _, y in points),
                )
            )
    height, width = scale.image_size
    return Chart(
        title="Accuracy minus that of plain training, over its length "
        f"({summaries.images(scale, places.LABELS[dataset])}, {height}x{width})",
        x_label="epochs",
        y_label="test accuracy, points",
        curves=tuple(curves),
        log2_x=True,
        note="Less accuracy lost hides nothing more: separation returns the activations of "
        "FaceMix's networks; noise, blurring and the anonymizer have no key, and whoever sees what "
        "is sent has as much as its owner.",
    )


if __name__ == "__main__":
    _runtime.configure()
    report.script(main, Config)
