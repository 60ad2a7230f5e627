"""What the anonymizer hides, and costs, with other weights of its losses than Table 2's."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import measuring
import places
import report
import scale as scales
import summaries
from systems import ANONYMIZER, SYSTEMS

from facemix_jax import _runtime
from facemix_jax.anonymizing import AnonymizerConfig
from facemix_jax.results import Column, ResultTable, Row

WEIGHTS = (0.0, 0.03)
"""Table 2 has the default."""
PARTS = ("utility", "identity", "attributes")
_LABEL = "adversary weight "


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Trains the anonymizer with several weights of the identifier's error, and attacks it.

    Command: ``python experiments/anonymizer_weights.py --data-dir CELEBA --identity-dir PEOPLE``,
    or ``--scale smoke``, which needs no files. Finished cells are not run again.

    Run time: a minute for ``smoke``; about 16 minutes for each weight and seed of ``cpu`` on two
    CPU cores.

    Expected: without the identifier's error in the loss an attacker finds more persons, still fewer
    than in unchanged images, and accuracy is higher.

    Attributes:
        scale: smoke, cpu, gpu or paper; see ``scale.py``.
        data_dir: folder with the official CelebA files; none for ``smoke``.
        identity_dir: as in ``table2.py``; without it no one is recognised.
        cache_dir: folder for decoded images; None for the data sets' default.
        workdirs: folder for the runs; finished ones are not trained again.
        weights: ``adversary_weight`` of the anonymizer; None for 0 and 0.03, or for 0 alone
            at ``smoke``; Table 2 has the default.
        seeds: None for as many as the scale has.
        output: JSON file; None for ``results/anonymizer_weights_SCALE.json``.
    """

    scale: scales.Name = "cpu"
    data_dir: str | None = None
    identity_dir: str | None = None
    cache_dir: str | None = None
    workdirs: Path = Path("runs")
    weights: tuple[float, ...] | None = None
    seeds: tuple[int, ...] | None = None
    output: Path | None = None


def main(config: Config) -> None:
    """Runs the cells that the JSON file lacks, and writes each into it."""
    scale = scales.SCALES[config.scale]
    weights = config.weights or (WEIGHTS[:1] if scale.drawn else WEIGHTS)
    anonymizer = SYSTEMS[ANONYMIZER]
    measuring.fill(
        "anonymizer_weights",
        config,
        {
            label(w): anonymizer._replace(anonymizer=AnonymizerConfig(adversary_weight=w))
            for w in weights
        },
        PARTS,
        scale,
        places.place(config, identity_dir=config.identity_dir, runs_of="anonymizer_weights"),
        chooses=("weights", "seeds"),
        summarize=lambda cells: (tables(cells, scale), ()),
    )


def label(weight: float) -> str:
    """Of a row."""
    return f"{_LABEL}{weight:g}"


def tables(cells: Sequence[Mapping[str, Any]], scale: scales.Scale) -> list[ResultTable]:
    """A row for each weight; without a key the paper's attackers are the strongest."""
    if not cells:
        return []
    rows = []
    weights = {float(cell["row"].removeprefix(_LABEL)) for cell in cells}
    for row in map(label, sorted(weights)):
        rows.append(
            Row(
                label=row,
                cells=(
                    summaries.measured(cells, row, "utility", "test_accuracy"),
                    summaries.measured(cells, row, "identity", "strongest"),
                    summaries.measured(cells, row, "attributes", "strongest"),
                ),
            )
        )
    table = ResultTable(
        title=f"The anonymizer with other weights: {summaries.images(scale, 'CelebA')}, measured "
        f"at {summaries.size(scale)}",
        columns=(
            Column(name="test acc.", format="percent"),
            Column(name="person ID", format="percent"),
            Column(name="attributes", format="percent"),
        ),
        rows=tuple(rows),
        note="Nothing is mixed and no key is involved: the paper's attackers are the strongest "
        "here, and what is sent is there in full.",
    )
    return [table]


if __name__ == "__main__":
    _runtime.configure(deterministic=True)
    report.script(main, Config)
