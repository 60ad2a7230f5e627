"""What the anonymizer hides, and costs, with other weights of its losses than Table 2's."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import measuring
import report
import scale as scales
import summaries
import tyro
from systems import ANONYMIZER, SYSTEMS

from facemix_jax import _runtime
from facemix_jax.anonymizing import AnonymizerConfig
from facemix_jax.results import Column, ResultTable, Row

WEIGHTS = (0.0, 0.03, AnonymizerConfig().adversary_weight)
PARTS = ("utility", "identity", "attributes")


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
        weights: ``adversary_weight`` of the anonymizer; None for 0, 0.03 and Table 2's, or for 0
            alone at ``smoke``.
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
    weights = config.weights or ((0.0,) if scale.drawn else WEIGHTS)
    for weight in weights:
        AnonymizerConfig(adversary_weight=weight)  # raises for a weight that cannot be
    cells = report.Cells(
        config.output or scales.output("anonymizer_weights", config.scale),
        config,
        name=f"anonymizer weights, scale {config.scale}",
        chooses=("weights", "seeds"),
        summarize=lambda cells: (tables(cells, scale), ()),
    )
    place = measuring.celeba(config, identity_dir=config.identity_dir)
    for seed in config.seeds or range(scale.seeds):
        for weight in weights:
            options = AnonymizerConfig(adversary_weight=weight)
            missing = [
                part
                for part in PARTS
                if (part != "identity" or measuring.has_people(scale, place))
                and not cells.has(row=label(weight), part=part, seed=seed)
            ]
            if not missing:
                continue
            # With its default weight the network is Table 2's.
            own = place if options == AnonymizerConfig() else _below(place, weight)
            run = measuring.trained(ANONYMIZER, SYSTEMS[ANONYMIZER], scale, own, seed, options)
            for part in missing:
                what = {"row": label(weight), "part": part, "seed": seed, "weight": weight}
                cells.add({**what, **measuring.PARTS[part](run, scale, place, seed)})
    cells.save()


def label(weight: float) -> str:
    """Of a row."""
    return f"adversary weight {weight:g}"


def _below(place: measuring.Place, weight: float) -> measuring.Place:
    folder = place.workdirs / "anonymizer_weights" / f"{weight:g}"
    return dataclasses.replace(place, workdirs=folder)


def tables(cells: Sequence[Mapping[str, Any]], scale: scales.Scale) -> list[ResultTable]:
    """A row for each weight; without a key the paper's attackers are the strongest."""
    if not cells:
        return []
    rows = []
    for weight in sorted({cell["weight"] for cell in cells}):
        row = label(weight)
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
    main(tyro.cli(Config))
