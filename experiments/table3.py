"""The paper's Table 3: LFWA, accuracy beside faces and attributes that attackers find."""

import dataclasses
from pathlib import Path

import measuring
import places
import report
import rows
import scale as scales
import summaries
from systems import SYSTEMS

from facemix_jax import _runtime

PARTS = ("utility", "attributes", "faces", "separation")
ALL = {name: system for name, system in SYSTEMS.items() if system.table3}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Trains and attacks every row, with several seeds, and sets the paper's figures beside.

    Command: ``python experiments/table3.py --data-dir LFWA``, or ``--scale smoke``, which needs
    no files. Finished cells are not run again.

    Run time: a minute and a half for ``smoke``; ``cpu`` (80x68, width 8) one to 24 minutes a row
    and seed on two CPU cores; ``gpu`` nine minutes on an H200 (``--jobs 8``); ``paper`` was never
    begun.

    Expected: see ``results/table3_gpu.json`` and ``table3_cpu.json``. Pix2Pix draws little more
    than the mean face from FaceMix's images, gradient ICA returns the images themselves.

    Attributes:
        scale: smoke, cpu, gpu or paper; see ``scale.py``.
        data_dir: folder with the official LFWA files, or ``images.zip`` and ``labels.csv``
            (file, identity, split, then attributes); none for ``smoke``.
        cache_dir: folder for decoded images; None for the data sets' default.
        workdirs: folder for the runs; finished ones are not trained again.
        rows: which; None for all, or for one of each kind at ``smoke``.
        parts: which; all of them by default.
        seeds: None for as many as the scale has.
        jobs: rows that run at the same time, each in a process of its own.
        output: JSON file; None for ``results/table3_SCALE.json``.
    """

    scale: scales.Name = "cpu"
    data_dir: str | None = None
    cache_dir: str | None = None
    workdirs: Path = Path("runs")
    rows: tuple[str, ...] | None = None
    parts: tuple[str, ...] = PARTS
    seeds: tuple[int, ...] | None = None
    jobs: int = 1
    output: Path | None = None


def main(config: Config) -> None:
    """Runs the cells that the JSON file lacks, and writes each into it."""
    chosen = rows.chosen(config, ALL, PARTS)
    scale = places.scale_of("lfwa", config.scale)
    place = places.place(config, dataset="lfwa", runs_of="table3")
    if config.jobs > 1:
        places.prepare(scale, place)
        rows.side_by_side(main, config, chosen)
        return
    measuring.fill(
        "table3",
        config,
        {row: ALL[row] for row in chosen},
        config.parts,
        scale,
        place,
        chooses=("rows", "parts", "seeds", "jobs"),
        summarize=lambda cells: summaries.table3(cells, scale),
    )


if __name__ == "__main__":
    _runtime.configure(deterministic=True)
    report.script(main, Config)
