"""The paper's Table 2: CelebA, accuracy beside persons and attributes that attackers find."""

import dataclasses
from pathlib import Path

import measuring
import places
import report
import rows
import scale as scales
import summaries
from systems import STRONGER, SYSTEMS

from facemix_jax import _runtime

PARTS = ("utility", "attributes", "identity", "separation")
ALL = {**SYSTEMS, **STRONGER}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Trains and attacks every row, with several seeds, and sets the paper's figures beside.

    Command: ``python experiments/table2.py --data-dir CELEBA --identity-dir PEOPLE``, or
    ``--scale smoke``, which needs no files. Finished cells are not run again.

    Run time: two minutes for ``smoke``; ``cpu`` (80x68, width 8) 4 hours for all four seeds on two
    CPU cores, of which the anonymizer takes 14 to 44 minutes a seed; of ``gpu`` 126 of 176 cells
    eight minutes on an H200 (``--jobs 11``, which Table 3 shared for three of them); ``paper`` was
    never begun.

    Expected: see ``results/table2_gpu.json`` and ``table2_cpu.json``. Noise and blurring strong
    enough to hide as much from the paper's attackers as FaceMix cost far more accuracy than it;
    separation returns what FaceMix hides.

    Attributes:
        scale: smoke, cpu, gpu or paper; see ``scale.py``.
        data_dir: folder with the official CelebA files; none for ``smoke``.
        identity_dir: folder with ``images.zip`` and ``labels.csv`` (columns of image names,
            ``identity``, ``partition`` and attributes), 20 images or more of each person; without
            it no one is recognised.
        cache_dir: folder for decoded images; None for the data sets' default.
        workdirs: folder for the runs; finished ones are not trained again.
        rows: which; None for all, or for one of each kind at ``smoke``.
        parts: which; all of them by default.
        seeds: None for as many as the scale has.
        jobs: rows that run at the same time, each in a process of its own.
        output: JSON file; None for ``results/table2_SCALE.json``.
    """

    scale: scales.Name = "cpu"
    data_dir: str | None = None
    identity_dir: str | None = None
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
    scale = scales.SCALES[config.scale]
    place = places.place(config, identity_dir=config.identity_dir)
    if config.jobs > 1:
        places.prepare(scale, place)
        rows.side_by_side(main, config, chosen)
        return
    measuring.fill(
        "table2",
        config,
        {row: ALL[row] for row in chosen},
        config.parts,
        scale,
        place,
        chooses=("rows", "parts", "seeds", "jobs"),
        summarize=lambda cells: summaries.table2(cells, scale),
    )


if __name__ == "__main__":
    _runtime.configure(deterministic=True)
    report.script(main, Config)
