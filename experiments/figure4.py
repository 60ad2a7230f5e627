"""The paper's Figure 4: accuracy against privacy over M, and against the edge's work over N_pre."""

import dataclasses
from pathlib import Path

import measuring
import places
import report
import scale as scales
import summaries
from systems import facemix

from facemix_jax import _runtime
from facemix_jax._validate import one_of

CUTS = (1, 2, 3)
"""Whose edge the paper's tables count."""
PARTS = ("utility", "attributes", "separation")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """FaceMix with every M at N_pre = 1, and with M = 8 at every N_pre.

    Command: ``python experiments/figure4.py --data-dir CELEBA``, or ``--scale smoke``, which needs
    no files. Networks that ``table2.py`` trained are not trained again, finished cells not run
    again.

    Run time: a minute for ``smoke``; ``cpu`` one to two minutes a cell on two CPU cores;
    ``gpu`` and ``paper`` have not been run.

    Expected: accuracy hardly falls with M at ``cpu`` and rises with N_pre; the paper's attacker
    finds less with larger M, while separation finds nearly everything at every M.

    Attributes:
        scale: smoke, cpu, gpu or paper; see ``scale.py``.
        data_dir: folder with the official CelebA files; none for ``smoke``.
        cache_dir: folder for decoded images; None for the data sets' default.
        workdirs: folder for the runs; finished ones are not trained again.
        group_sizes: ``M``; None for 2 to 32, of which ``smoke`` has two; the paper's text names 8.
        cuts: ``N_pre``, of 1, 2 and 3; None for all, of which ``smoke`` has two.
        seeds: None for as many as the scale has.
        output: JSON file; None for ``results/figure4_SCALE.json``.
    """

    scale: scales.Name = "cpu"
    data_dir: str | None = None
    cache_dir: str | None = None
    workdirs: Path = Path("runs")
    group_sizes: tuple[int, ...] | None = None
    cuts: tuple[int, ...] | None = None
    seeds: tuple[int, ...] | None = None
    output: Path | None = None


def main(config: Config) -> None:
    """Runs the cells that the JSON file lacks, and writes each into it."""
    scale = scales.SCALES[config.scale]
    place = places.place(config)
    group_sizes = config.group_sizes or ((2, 8) if scale.drawn else (2, 4, 8, 16, 32))
    cuts = config.cuts or ((1, 3) if scale.drawn else CUTS)
    for cut in cuts:
        one_of(map(str, CUTS), cut=str(cut))
    wanted = [(m, 1) for m in group_sizes] + [(8, cut) for cut in cuts]
    systems = {
        f"FaceMix, M = {m}, N_pre = {cut}": facemix(m, cut) for m, cut in dict.fromkeys(wanted)
    }
    measuring.fill(
        "figure4",
        config,
        systems,
        PARTS,
        scale,
        place,
        chooses=("group_sizes", "cuts", "seeds"),
        summarize=lambda cells: summaries.figure4(cells, scale),
    )


if __name__ == "__main__":
    _runtime.configure(deterministic=True)  # as table2.py, whose runs it shares
    report.script(main, Config)
