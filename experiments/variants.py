"""What can be put around mixing: what it costs, and what the strongest attacks make of it."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import measuring
import numpy as np
import report
import scale as scales
import summaries
import tyro
from scale import Scale
from systems import System

from facemix_jax import _runtime, attacks, costs, defenses, evaluation
from facemix_jax._types import HostArray, RngKey
from facemix_jax._validate import one_of
from facemix_jax.attacks import denoising, robust, separation
from facemix_jax.attacks.base import by_group, truth_by_group
from facemix_jax.attacks.groups import auxiliary_activations
from facemix_jax.defenses import DefenseConfig
from facemix_jax.models import ModelConfig
from facemix_jax.results import Column, ResultTable
from facemix_jax.runs import Run


class Variant(NamedTuple):
    """A defence, and whose network it is measured on.

    Attributes:
        defense: as it is at inference and under attack.
        network: name of the variant whose trained network serves; None: trained with the defence.
    """

    defense: DefenseConfig
    network: str | None = None


VARIANTS = {
    "FaceMix": Variant(DefenseConfig()),
    # Main treats every row alike, so that these need no training of their own.
    "2 clouds": Variant(DefenseConfig(clouds=2), "FaceMix"),
    "4 clouds": Variant(DefenseConfig(clouds=4), "FaceMix"),
    "8 clouds": Variant(DefenseConfig(clouds=8), "FaceMix"),
    "bfloat16": Variant(DefenseConfig(wire="bfloat16"), "FaceMix"),
    "int8": Variant(DefenseConfig(wire="int8"), "FaceMix"),
    "int4": Variant(DefenseConfig(wire="int4"), "FaceMix"),
    "blinding 4, not trained so": Variant(DefenseConfig(blinding=4.0), "FaceMix"),
    "blinding 4": Variant(DefenseConfig(blinding=4.0)),
    "condition 10": Variant(DefenseConfig(family="conditioned", condition=10.0)),
    "4 decoys": Variant(DefenseConfig(decoys=4)),
    "blinding 1": Variant(DefenseConfig(blinding=1.0)),
    "int4, trained so": Variant(DefenseConfig(wire="int4")),
}
"""All with eight images in a group, at cut 1."""

ATTACKS = {attack.name: attack for attack in (separation.GRADIENT_ICA, robust.ROBUST)}

_AUXILIARY = 512
"""The attacker's own images."""

SMOKE = "FaceMix", "4 clouds", "blinding 4"
"""Of the smoke test, by gradient ICA alone: the other attack takes long to compile."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Trains each variant in a small setting, then attacks it.

    Command: ``python experiments/variants.py --data-dir CELEBA``, or ``--scale smoke``, which needs
    no files. Finished cells are not run again.

    Run time: a minute for ``smoke``; at ``cpu`` one to three CPU minutes for each of six trainings
    and half a minute for each attacked variant.

    Expected: separation undoes every matrix that can be inverted, decoys and rounding with it.
    Only the views of clouds that do not collude and blinding leave the owner more than the
    attacker, and blinding takes its price in accuracy and in the edge's own work.

    Attributes:
        scale: smoke or cpu.
        data_dir: folder with the official CelebA files; none for ``smoke``.
        cache_dir: folder for decoded images; None for the data set's default.
        workdirs: folder for the runs; finished ones are not trained again.
        variants: which ones.
        num_groups: groups of images attacked.
        seed: of training and attacks.
        output: JSON file; None for ``results/variants_SCALE.json``.
    """

    scale: scales.Name = "cpu"
    data_dir: str | None = None
    cache_dir: str | None = None
    workdirs: Path = Path("runs")
    variants: tuple[str, ...] = tuple(VARIANTS)
    num_groups: int = 16
    seed: int = 0
    output: Path | None = None


def setting(name: scales.Name) -> Scale:
    """The scale; ``cpu`` with half of its images and less training."""
    whole = scales.SCALES[name]
    if name == "smoke":
        return whole
    train = dataclasses.replace(whole.train, num_epochs=4)
    return dataclasses.replace(whole, train_examples=4096, train=train)


def main(config: Config) -> None:
    """Runs the cells that the JSON file lacks, and writes each into it."""
    one_of(("smoke", "cpu"), scale=config.scale)
    for name in config.variants:
        one_of(VARIANTS, variant=name)
    small = config.scale == "smoke"
    scale = setting(config.scale)
    place = measuring.Place(
        dataset="celeba",
        data_dir=config.data_dir,
        cache_dir=config.cache_dir,
        identity_dir=None,
        workdirs=config.workdirs / f"variants_{config.scale}",
    )
    size = f"{summaries.images(scale, 'CelebA')}, {summaries.size(scale)}"
    cells = report.Cells(
        config.output or scales.output("variants", config.scale),
        config,
        name=f"variants, scale {config.scale}",
        chooses=("variants",),
        summarize=lambda cells: ([table(cells, size)] if cells else [], ()),
    )
    for name in config.variants:
        if cells.has(variant=name, seed=config.seed) or (small and name not in SMOKE):
            continue
        began = time.perf_counter()
        run = trained(name, scale, place, config.seed)
        training = time.perf_counter() - began
        began = time.perf_counter()
        names = tuple(ATTACKS)[:1] if small else tuple(ATTACKS)
        found = {**utility(run, config.seed), **owners_cost(run), **attacked(run, names, config)}
        seconds = {"training": training, "measuring": time.perf_counter() - began}
        cells.add(
            {
                "variant": name,
                "seed": config.seed,
                **found,
                "seconds": {what: round(value, 1) for what, value in seconds.items()},
            }
        )
    cells.save()


def trained(name: str, scale: Scale, place: measuring.Place, seed: int) -> Run:
    """The network of a variant, trained now or before, under the variant's defence."""
    variant = VARIANTS[name]
    network = variant.network or name
    system = System(ModelConfig(cut=1), VARIANTS[network].defense)
    run = measuring.trained(network, system, scale, place, seed)
    return run._replace(defense=defenses.build(variant.defense, tiles=run.model.spec.tiles))


def utility(run: Run, seed: int) -> dict[str, float]:
    """Accuracy on all test images through the defence."""
    found = evaluation.evaluate_utility(
        run.model, run.defense, run.variables, run.source, rng_key=jax.random.key(seed)
    )
    return {
        "accuracy": round(found.accuracy, 4),
        "balanced_accuracy": round(found.balanced_accuracy, 4),
        "majority_accuracy": round(found.majority_accuracy, 4),
    }


def owners_cost(run: Run) -> dict[str, Any]:
    """What one image costs: rows on the wire, and the edge's work beside that of pre and post."""
    spec = run.model.spec
    sizes = int(np.prod(spec.activation_shape)), int(np.prod(spec.response_shape))
    cost = run.defense.cost(*sizes)
    row = jax.ShapeDtypeStruct((1, *spec.activation_shape), np.float32)
    main = costs.macs(run.model.main.apply, run.variables["main"], row)
    return {
        "rows_sent": cost.rows_sent,
        "rows_ahead": cost.rows_ahead,
        "defense_macs": cost.protect_macs + cost.recover_macs,
        "macs_ahead": round(cost.rows_ahead * main),
    }


def attacked(run: Run, names: Sequence[str], config: Config) -> dict[str, Any]:
    """Mean matched |correlation| of the attacks, as they are and with all rows filtered alike."""
    target = report.without_main(
        attacks.Target(
            model=run.model, defense=run.defense, variables=run.variables, source=run.source
        )
    )
    rows = attacks.recorded_rows(target, config.num_groups)
    record_key = jax.random.key(config.seed + 1)
    recording = attacks.record(target, rows, rng_key=record_key)
    results = {
        name: ATTACKS[name].run(
            target, recording, jax.random.key(config.seed + 2), attacks.AttackConfig()
        )
        for name in names
    }
    figures = {name: result.figures[0] for name, result in results.items()}
    strongest = max(figures, key=lambda name: figures[name].value)
    filters = denoising.fit(target)
    truth, owner = (
        np.asarray(truth_by_group(some, recording))
        for some in (recording.activations, recording.owner_activations)
    )
    recovered = results[strongest].recovered
    assert recovered is not None
    sides = {
        "floor": np.asarray(by_group(recording.view.mixtures, recording)),
        "value": _found_only(recovered.reshape(truth.shape), recording.view.group_size),
        "owner": owner,
        "granted": granted(target, recording, record_key),
    }
    return {
        "images": len(rows),
        "attackers": {name: round(figure.value, 4) for name, figure in figures.items()},
        "strongest": round(figures[strongest].value, 4),
        "floor": round(figures[strongest].floor, 4),
        "owner": round(figures[strongest].owner, 4),
        "key_advantage": round(figures[strongest].key_advantage, 4),
        "filtered": {
            side: round(denoising.filtered_correlation(filters, some, truth), 4)
            for side, some in sides.items()
        }
        | {"guess": round(denoising.guessed_correlation(filters, truth), 4)},
    }


def granted(target: attacks.Target, recording: attacks.Recording, record_key: RngKey) -> HostArray:
    """What anyone would make of the view with the mixing matrix in hand: ``[G, n, ...]``.

    Every member is taken for the mean activation plus what the rows seen say of it: where members
    are alike and independent, the best linear estimate. No attack on the matrix leads further.
    """
    secret = target.defense.init(record_key, len(recording.activations), True)
    mix_key = defenses.mix_key_of(secret)
    assert mix_key is not None
    seen = np.asarray(by_group(recording.view.mixtures, recording))
    matrix = np.asarray(mix_key.matrix)[:, : seen.shape[1]]
    mean = auxiliary_activations(target, _AUXILIARY).mean(0).ravel()
    flat = seen.reshape(*seen.shape[:2], -1)
    away = flat - matrix.sum(2, keepdims=True) * mean
    members = mean + np.linalg.pinv(matrix) @ away
    return members.reshape(*members.shape[:2], *seen.shape[2:])[:, : target.defense.group_size]


def _found_only(recovered: HostArray, sources: int) -> HostArray:
    """``[G, n, ...]`` without the empty images where there were fewer sources than images."""
    if sources >= recovered.shape[1]:
        return recovered
    there = np.abs(recovered).reshape(*recovered.shape[:2], -1).sum(2)
    order = np.sort(np.argsort(-there, axis=1)[:, :sources], axis=1)
    return recovered[np.arange(len(recovered))[:, None], order]


def table(cells: Sequence[Mapping[str, Any]], size: str) -> ResultTable:
    """A row for each variant."""
    flat = [
        {
            **cell,
            "gradient ICA": cell["attackers"].get("gradient_ica"),
            "robust": cell["attackers"].get("robust"),
            "guess": cell["filtered"]["guess"],
            "filtered floor": cell["filtered"]["floor"],
            "filtered value": cell["filtered"]["value"],
            "granted": cell["filtered"]["granted"],
            "filtered owner": cell["filtered"]["owner"],
            "rows sent": f"{cell['rows_sent']:g}",
            "rows ahead": f"{cell['rows_ahead']:g}",
        }
        for cell in cells
    ]
    columns = {
        "accuracy": Column(name="test acc.", format="percent"),
        "balanced_accuracy": Column(name="balanced acc.", format="percent"),
        "floor": Column(name="no attack", format="fixed3"),
        "gradient ICA": Column(name="gradient ICA", format="fixed3", strongest="strongest"),
        "robust": Column(name="robust", format="fixed3", strongest="strongest"),
        "strongest": Column(name="strongest", format="fixed3"),
        "owner": Column(name="owner", format="fixed3"),
        "key_advantage": Column(name="key advantage", format="fixed3"),
        "guess": Column(name="guess, filtered", format="fixed3"),
        "filtered floor": Column(name="no attack, filtered", format="fixed3"),
        "filtered value": Column(name="strongest, filtered", format="fixed3"),
        "granted": Column(name="matrix granted, filtered", format="fixed3"),
        "filtered owner": Column(name="owner, filtered", format="fixed3"),
        "rows sent": Column(name="rows sent"),
        "rows ahead": Column(name="rows ahead"),
    }
    return ResultTable(
        title=f"Variants of mixing, M = 8, cut 1: {size}",
        columns=tuple(columns.values()),
        rows=report.rows(flat, lambda row: str(row["variant"]), columns),
        note="Mean matched |correlation| of activations; with several clouds, of the images that "
        "one cloud's rows match best. Filtered: every side's rows by the best of seven linear "
        "filters from public statistics; guess: other faces in their place; granted: whoever knows "
        "the mixing matrix and no more, over all images. Rows, for each image: sent and run "
        "through main by the clouds, and run through main by the edge ahead of the request.",
    )


if __name__ == "__main__":
    _runtime.configure()
    main(tyro.cli(Config))
