"""A sweep in the words of the paper's tables: group size and cut, seeds averaged with intervals."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import measuring
import report
import scale as scales
import summaries

from facemix_jax import _runtime, results, sweep, sweep_summary
from facemix_jax.commands_sweep import Sweep
from facemix_jax.models import ModelConfig
from facemix_jax.results import Column, ResultTable, Row, Value
from facemix_jax.runs import RunConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Runs ``facemix sweep`` at a scale, over any fields, and keeps its summary as a results file.

    Command: ``python experiments/sweep.py --data-dir CELEBA``, or ``--scale smoke``, which needs no
    files. Runs that are finished are not trained again.

    Run time: a minute and a half for ``smoke``; ``cpu`` about a minute a run on two CPU cores.

    Expected: accuracy falls with M and rises with the cut; the strongest attack finds nearly all of
    the activations in every row.

    Attributes:
        scale: smoke, cpu, gpu or paper; see ``scale.py``.
        data_dir: folder with the official CelebA files; none for ``smoke``.
        cache_dir: folder for decoded images; None for the data set's default.
        grid: fields and their values, as ``facemix sweep --grid`` takes them; None for M and the
            cut, of which ``smoke`` has one each.
        seeds: how many; None for as many as the scale has.
        workdir: folder of the sweep; None for ``runs/sweep_SCALE``.
        output: JSON file; None for ``results/sweep_SCALE.json``.
    """

    scale: scales.Name = "cpu"
    data_dir: str | None = None
    cache_dir: str | None = None
    grid: tuple[str, ...] | None = None
    seeds: int | None = None
    workdir: Path | None = None
    output: Path | None = None


def main(config: Config) -> None:
    """Sweeps, then writes the summary."""
    scale = scales.SCALES[config.scale]
    folder = config.workdir or Path("runs") / f"sweep_{config.scale}"
    smoke = ("defense.group_size=8", "model.cut=1,3")
    grid = config.grid or (smoke if scale.drawn else ("defense.group_size=2,8,32", "model.cut=1,3"))
    base = RunConfig(
        data=scales.data_config(scale, config.data_dir, config.cache_dir),
        model=measuring.sized(ModelConfig(), scale),
        train=scale.train,
    )
    swept = Sweep(
        workdir=folder, config=base, grid=grid, num_seeds=config.seeds or scale.seeds, json=None
    )
    try:
        swept.run()
    finally:  # where runs failed the others have rows, too
        summary = folder / "summary.json"
        if summary.exists():
            keep(config, json.loads(summary.read_text())["rows"])


def keep(config: Config, rows: list[dict[str, Any]]) -> None:
    """Writes a sweep's rows; those of other grids stay, those of the same settings go."""
    scale = scales.SCALES[config.scale]
    cells = report.Cells(
        config.output or scales.output("sweep", config.scale),
        config,
        name=f"sweep, scale {config.scale}",
        images=report.celeba_images(None if scale.drawn else config.data_dir),
        chooses=("grid", "seeds"),
        summarize=lambda cells: ((table(cells, scale),), ()),
    )
    for row in rows:
        if not cells.has(**row):
            what = {"setting": setting(row)}
            cells.add({**row, **what}, instead_of=what)
    cells.save()


def setting(cell: Mapping[str, Any]) -> dict[str, Any]:
    """What the sweep set, without what it measured."""
    return {name: cell[name] for name in cell if name.partition(".")[0] in sweep.PARTS}


def table(cells: Sequence[Mapping[str, Any]], scale: scales.Scale) -> ResultTable:
    """Accuracy and what leaks, by setting."""
    names = {
        "accuracy": Column(name="accuracy", format="percent"),
        "balanced_accuracy": Column(name="balanced", format="percent"),
        "leak_strongest_attack": Column(name="strongest attack", format="fixed3"),
        "leak_no_attack": Column(name="no attack", format="fixed3"),
        "leak_owner": Column(name="owner", format="fixed3"),
    }
    rows = [
        Row(
            label=", ".join(f"{f.partition('.')[2]} {v}" for f, v in cell["setting"].items()),
            cells=tuple(
                (
                    Value(
                        value=cell[name],
                        mark="measured",
                        half_width=cell.get(f"{name}.interval"),
                        seeds=cell["seeds"],
                    ),
                )
                if cell.get(name) is not None
                else ()
                for name in names
            ),
        )
        for cell in cells
    ]
    return ResultTable(
        title=f"Sweep: {summaries.images(scale, 'CelebA')}, measured at {summaries.size(scale)}",
        columns=tuple(names.values()),
        rows=tuple(rows),
        note=f"Mean matched |correlation| of activations. {sweep_summary.UNTRAINED} "
        f"{results.TRUTH}",
    )


if __name__ == "__main__":
    _runtime.configure()
    report.script(main, Config)
