"""The other rows of the paper's Table 1 at work: Slalom and Osia et al., on a trained network."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import measuring
import numpy as np
import places
import report
import scale as scales
import summaries
from systems import CLOUD, SYSTEMS

from facemix_jax import _runtime, data, defenses, evaluation, osia, runs, slalom
from facemix_jax.results import Column, ResultTable, Row
from facemix_jax.runs import Run
from facemix_jax.slalom.field import LARGEST_PRIME, PRIME

SLALOM = "Slalom"
OSIA_CUT, COMPONENTS, CODE_NOISE, ATTRIBUTE = 7, 8, 0.5, "Male"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Slalom and Osia et al. with the network that ``table2.py`` trains for the cloud.

    Command: ``python experiments/other_systems.py --data-dir CELEBA --identity-dir PEOPLE``, or
    ``--scale smoke``, which needs no files. Finished cells are not run again.

    Run time: two minutes for ``smoke``, about ten for ``cpu`` on two CPU cores.

    Expected: Slalom's answers are those of the fixed-point network bit for bit and its first round
    shows nothing; eight components of a deep layer keep the answers and still tell persons apart.

    Attributes:
        scale: smoke, cpu, gpu or paper; see ``scale.py``.
        data_dir: folder with the official CelebA files; none for ``smoke``.
        identity_dir: as in ``table2.py``.
        cache_dir: folder for decoded images; None for the data sets' default.
        workdirs: folder for the runs; finished ones are not trained again.
        output: JSON file; None for ``results/other_systems_SCALE.json``.
    """

    scale: scales.Name = "cpu"
    data_dir: str | None = None
    identity_dir: str | None = None
    cache_dir: str | None = None
    workdirs: Path = Path("runs")
    output: Path | None = None


def main(config: Config) -> None:
    """Runs the cells that the JSON file lacks, and writes each into it."""
    scale = scales.SCALES[config.scale]
    place = places.place(config, identity_dir=config.identity_dir)
    output = config.output or scales.output("other_systems", config.scale)
    cells = report.Cells(
        output,
        config,
        name=f"other systems, scale {config.scale}",
        images=places.images(scale, place),
        summarize=lambda cells: summarize(
            cells, f"{summaries.images(scale, 'CelebA')}, {summaries.size(scale)}"
        ),
    )
    plain = measuring.trained(CLOUD, SYSTEMS[CLOUD], scale, place, 0)
    if not cells.has(row=SLALOM):
        began = time.perf_counter()
        found = slalom_cell(plain)
        cells.add({"row": SLALOM, **found, "seconds": round(time.perf_counter() - began, 1)})
    for siamese in (False, True):
        row = "Osia et al., Siamese" if siamese else "Osia et al."
        for noise in (0.0, CODE_NOISE):
            what = {"row": row, "noise": noise}
            without = place.identity_dir and cells.has(**what, identity=measuring.NO_PEOPLE)
            if cells.has(**what) and not without:
                continue
            began = time.perf_counter()
            found = osia_cell(plain, scale, place, siamese=siamese, noise=noise)
            seconds = round(time.perf_counter() - began, 1)
            cells.add({**what, **found, "seconds": seconds}, instead_of=what)
    cells.save()


def summarize(cells: Sequence[Mapping[str, Any]], size: str) -> report.Summary:
    """A table of what is sent as it is or reduced, and one of Slalom.

    Args:
        cells: of the results file.
        size: images and network, for titles.
    """
    flat = [
        {
            "label": f"{cell['row']}, noise {cell['noise']:g}",
            "accuracy": cell["accuracy"],
            "balanced_accuracy": cell["balanced_accuracy"],
            "attributes": cell["attributes"].get("value"),
            "attributes, strongest": cell["attributes"].get("strongest"),
            "persons": cell["identity"].get("value"),
            "persons, strongest": cell["identity"].get("strongest"),
            **dict(zip(("recovered", "floor", "owner"), separation(cell), strict=True)),
        }
        for cell in cells
        if cell["row"] != SLALOM
    ]
    tables = [sent(flat, size)] if flat else []
    tables += [slalom_table(cell, size) for cell in cells if cell["row"] == SLALOM]
    return tables, ()


def separation(cell: Mapping[str, Any]) -> tuple[Any, ...]:
    """Attacker, no attack and owner; without noise no attack was run."""
    found = cell["separation"]
    if found["attack"] == "none needed":
        return (report.derived(1.0),) * 3
    return found["value"], found["floor"], found["owner"]


def sent(flat: Sequence[Mapping[str, Any]], size: str) -> ResultTable:
    """Accuracy and attackers, a row for each of ``flat``, which has a ``label``."""
    columns = {
        "accuracy": Column(name="test acc.", format="percent"),
        "balanced_accuracy": Column(name="balanced acc.", format="percent"),
        "attributes": Column(
            name="attributes", format="percent", strongest="attributes, strongest"
        ),
        "attributes, strongest": Column(name="attributes, strongest", format="percent"),
        "persons": Column(name="person ID", format="percent", strongest="person ID, strongest"),
        "persons, strongest": Column(name="person ID, strongest", format="percent"),
        **dict(zip(("recovered", "floor", "owner"), summaries.ACTIVATION_COLUMNS, strict=True)),
    }
    return ResultTable(
        title=f"Other systems: {size}",
        columns=tuple(columns.values()),
        rows=report.rows(flat, lambda row: str(row["label"]), columns),
        note="Attributes: balanced accuracy. Without a key the paper's attackers are the "
        "strongest. Activations: mean matched |correlation| of the strongest attack on what is "
        "sent.",
    )


def slalom_table(cell: Mapping[str, Any], size: str) -> ResultTable:
    """Fixed point beside float32, traffic, and an attack on the first round."""
    leakage = cell["first round"]
    found = report.strongest(leakage)
    traffic = cell["traffic of 16 images"]
    accuracies = {f"accuracy, {n}": f"{cell[n]:.2%}" for n in cell if n.startswith("prime")}
    numbers = {
        "accuracy, float32": f"{cell['float32']:.2%}",
        **accuracies,
        "bit for bit as in fixed point alone": "yes" if cell["bit for bit"] else "no",
        **{f"16 images: {n.replace('_', ' ')}": f"{v:,}" for n, v in traffic.items()},
        **{f"first round: {name}": figure["value"] for name, figure in leakage.items()},
        "first round: no attack": found["floor"],
        "first round: owner": found["owner"],
    }
    return ResultTable(
        title=f"{SLALOM}: {size}",
        columns=(Column(name="value"),),
        rows=tuple(Row(label=n, cells=(report.measured(v),)) for n, v in numbers.items()),
        note="First round: mean matched |correlation| with the images in it.",
    )


def slalom_cell(run: Run) -> dict[str, Any]:
    """Fixed point against float32, and separation of the first layer's field elements."""
    rows = run.source.splits["test"]
    images = np.asarray(data.normalize(run.source.images(rows)))
    truth = run.source.attributes[rows]
    calibration = np.asarray(data.normalize(run.source.images(run.source.splits["train"][:256])))
    scores = evaluation.evaluate_utility(
        run.model, run.defense, run.variables, run.source, rng_key=jax.random.key(0)
    )
    found: dict[str, Any] = {"float32": round(scores.accuracy, 4)}
    for prime in (PRIME, LARGEST_PRIME):
        part = slalom.quantize(run.model, run.variables, calibration, prime=prime)
        # In parts: in float64 the first layer of all 19,962 images at native size is 99 GB.
        logits = np.concatenate(
            [slalom.run_plain(part, images[i : i + 256]) for i in range(0, len(images), 256)]
        )
        found[f"prime {prime}"] = round(float((logits.argmax(-1) == truth).mean()), 4)
    part = slalom.quantize(run.model, run.variables, calibration)
    blinding = slalom.precompute(part, 16)
    blinded, traffic = slalom.infer(part, images[:16], slalom.honest_cloud(part), blinding)
    found["bit for bit"] = bool((blinded == slalom.run_plain(part, images[:16])).all())
    found["traffic of 16 images"] = dataclasses.asdict(traffic)
    leakage = evaluation.evaluate_leakage(
        run.model,
        slalom.first_layer(part, group_size=8),
        run.variables,
        run.source,
        rng_key=jax.random.key(3),
    )
    found["first round"] = dict(
        zip(leakage.figures, report.figures([*leakage.figures.values()]), strict=True)
    )
    return found


def osia_cell(
    plain: Run, scale: scales.Scale, place: places.Place, *, siamese: bool, noise: float
) -> dict[str, Any]:
    """A deep cut of the plain network, fine-tuned or not, reduced, with noise on what is sent."""
    deep = dataclasses.replace(plain.config.model, cut=OSIA_CUT)
    wanted = dataclasses.replace(plain.config, model=deep)
    model = runs.build_model(wanted, plain.source)
    kinds, names = plain.variables["main"], model.init(jax.random.key(0))["pre"]
    variables = {
        "pre": {kind: {n: kinds[kind][n] for n in names[kind]} for kind in names},
        "main": {
            kind: {n: v for n, v in kinds[kind].items() if n not in names[kind]} for kind in kinds
        },
        "post": plain.variables["post"],
    }
    if siamese:
        tuning = osia.SiameseConfig(attribute=ATTRIBUTE, steps=scale.attack_steps)
        variables = osia.finetune(model, variables, plain.source, tuning)
    reduced, fitted = osia.reduce(model, variables, plain.source, components=COMPONENTS)
    defense = defenses.noise(variance=noise) if noise else defenses.none()
    run = Run(wanted, plain.source, reduced, defense, fitted, 0)
    scores = evaluation.evaluate_utility(
        reduced, defense, fitted, plain.source, rng_key=jax.random.key(0)
    )
    found: dict[str, Any] = {
        "accuracy": round(scores.accuracy, 4),
        "balanced_accuracy": round(scores.balanced_accuracy, 4),
        ATTRIBUTE: [round(x, 4) for x in scores.per_attribute[ATTRIBUTE]],
    }
    for part in ("attributes", "identity", "separation"):
        found[part] = measuring.PARTS[part](run, scale, place, 0)
    return found


if __name__ == "__main__":
    _runtime.configure()
    report.script(main, Config)
