"""What the paper's tables hold of one system: training, accuracy, attackers. One cell at a time."""

import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import persons
import report
import scale as scales
from places import Place, images, prepare
from scale import Scale, data_config
from systems import CLOUD, SYSTEMS, System

from facemix_jax import anonymizing, attacks, data, evaluation, fitting, models, runs
from facemix_jax.attacks import recognition, suite
from facemix_jax.attacks.base import by_group, truth_by_group
from facemix_jax.attacks.groups import in_order, match, unmix
from facemix_jax.runs import Run, RunConfig


def sized(model: models.ModelConfig, scale: Scale) -> models.ModelConfig:
    """The same network as a scale has it."""
    return dataclasses.replace(model, width=scale.width, compute_dtype=scale.compute_dtype)


def run_config(system: System, scale: Scale, place: Place, seed: int) -> RunConfig:
    """The run of one system and seed."""
    images = data_config(scale, place.data_dir, place.cache_dir, place.dataset, place.columns)
    return RunConfig(
        data=images,
        model=sized(system.model, scale),
        defense=system.defense,
        train=dataclasses.replace(scale.train, seed=seed),
    )


def workdir(name: str, place: Place, seed: int) -> Path:
    """Of the run of one row and seed."""
    slug = "".join(c if c.isalnum() else "-" for c in name).strip("-")
    return place.workdirs / f"{slug}-{seed}"


def trained(name: str, system: System, scale: Scale, place: Place, seed: int) -> Run:
    """Trains what is missing of one run and loads it."""
    prepare(scale, place)
    config, folder = run_config(system, scale, place, seed), workdir(name, place, seed)
    if system.anonymizer is not None:
        # By Adam as it is: its published figures are of that.
        plain = dataclasses.replace(config.train, nesterov=False)
        config = dataclasses.replace(config, train=plain)
        options = dataclasses.replace(system.anonymizer, identifier_width=scale.width)
        anonymizing.fit(config, options, folder)
    else:
        fitting.fit(config, folder, show_progress=False)
    return runs.load(folder, data_dir=None if scale.drawn else place.data_dir)


def utility(run: Run, scale: Scale, place: Place, seed: int) -> dict[str, Any]:
    """Accuracy through the defence, of both held-out splits."""
    found: dict[str, Any] = {}
    for split in ("valid", "test"):
        # The official LFWA has no validation images, nor need a subset have any.
        if not len(run.source.splits.get(split, ())):
            continue
        scores = evaluation.evaluate_utility(
            run.model,
            run.defense,
            run.variables,
            run.source,
            rng_key=jax.random.key(seed),
            split=split,
            batch_size=scale.eval_batch,
        )
        found[f"{split}_accuracy"] = round(scores.accuracy, 5)
    return {
        **found,
        "balanced_accuracy": round(scores.balanced_accuracy, 5),
        "majority_accuracy": round(scores.majority_accuracy, 5),
    }


def add_gaps(
    cells: report.Cells, rows: Iterable[str], part: str, scale: Scale, place: Place, seed: int
) -> None:
    """Accuracy and separation of each row that is missing, plain training first.

    Args:
        cells: of the results file.
        rows: beside plain training, which the others are held against.
        part: name of the cells.
        scale: how networks are trained.
        place: of the pictures and runs.
        seed: of the runs.
    """
    for row in (CLOUD, *(row for row in rows if row != CLOUD)):
        what = {"row": row, "part": part, "seed": seed}
        if not cells.has(**what):
            run = trained(row, SYSTEMS[row], scale, place, seed)
            found = utility(run, scale, place, seed)
            cells.add({**what, **found, "separation": separation(run, scale, place, seed)})


def run_attack(
    target: attacks.Target,
    name: str,
    scale: Scale,
    seed: int,
    images: int,
    batch_size: int | None = None,
) -> tuple[list[dict[str, Any]], attacks.Recording, attacks.Result]:
    """One attack of the suite on the first images of the test split, in whole groups.

    Args:
        target: the system.
        name: of the attack.
        scale: how long learned attackers train.
        seed: of secrets and attack.
        images: attacked.
        batch_size: of learned attackers; None for that of the scale.

    Returns:
        Its figures for JSON, what it was given, and its result.
    """
    record_key, attack_key = jax.random.split(jax.random.key(seed + 100))
    rows = attacks.recorded_rows(target, max(1, images // target.defense.group_size))
    recording = attacks.record(target, rows, rng_key=record_key)
    effort = attacks.AttackConfig(
        steps=scale.attack_steps, batch_size=batch_size or scale.attack_batch
    )
    result = suite.ATTACKS[name].run(target, recording, attack_key, effort)
    return report.figures(result.figures), recording, result


def target_of(run: Run, source: data.Source | None = None) -> attacks.Target:
    """A run under attack, with its own images or others."""
    return attacks.Target(
        model=run.model,
        defense=run.defense,
        variables=run.variables,
        source=source or run.source,
    )


def attributes(run: Run, scale: Scale, place: Place, seed: int) -> dict[str, Any]:
    """The paper's attacker on attributes, and the same after separation where rows are mixed."""
    figures, _, _ = run_attack(target_of(run), "attributes", scale, seed, scale.attack_images)
    return _recognised(figures)


NO_PEOPLE = {"skipped": "no --identity-dir"}


def has_people(scale: Scale, place: Place) -> bool:
    """Whether there are pictures of persons to recognise; drawn faces have persons of their own."""
    return scale.drawn or place.identity_dir is not None


def identity(run: Run, scale: Scale, place: Place, seed: int) -> dict[str, Any]:
    """The paper's attacker on persons, and the same after separation where rows are mixed."""
    if not has_people(scale, place):
        return NO_PEOPLE
    source = run.source
    if place.identity_dir is not None:
        source = persons.people(place.identity_dir, place.cache_dir, scale.image_size)
    target = target_of(run, source)
    reason = suite.ATTACKS["identity"].unsuitable(target)
    if reason is not None:
        return {"skipped": reason}
    figures, _, _ = run_attack(target, "identity", scale, seed, target.defense.group_size)
    return _recognised(figures)


def _recognised(figures: list[dict[str, Any]]) -> dict[str, Any]:
    weak = figures[0]
    strong = [f for f in figures if f["name"].endswith(recognition.SEPARATED)] or [weak]
    return {
        "value": weak["value"],
        "floor": weak["floor"],
        "owner": weak["owner"],
        "chance": weak["chance"],
        "strongest": max(weak["value"], strong[0]["value"]),
    }


def faces(run: Run, scale: Scale, place: Place, seed: int) -> dict[str, Any]:
    """Faces by Pix2Pix from what is sent; of FaceMix, as in the paper, from mixed images.

    Minus the mean squared error in [-1, 1]. The strongest is the better of Pix2Pix and separation
    (``groups.unmix``), whose sources are the images themselves as they come.
    """
    if run.defense.group_size > 1:
        run = without_pre(run)
    target = target_of(run)
    images = min(scale.attack_images, 256)
    figures, recording, _ = run_attack(target, "pix2pix", scale, seed, images, batch_size=32)
    weak = figures[0]
    found = {name: weak[name] for name in ("value", "floor", "owner", "chance")}
    candidates = [weak["value"]]
    if run.defense.group_size > 1:
        sources = unmix(target, recording, rng_key=jax.random.key(seed)).sources
        truth = truth_by_group(recording.activations, recording)
        rows = in_order(sources, match(sources, truth))
        candidates.append(minus_squared_error(rows, recording.images))
        found["as sent"] = minus_squared_error(
            np.asarray(by_group(recording.view.mixtures, recording)).reshape(rows.shape),
            recording.images,
        )
    elif not run.defense.keyed and run.defense.name != "none":
        _, recording, result = run_attack(target, "restoration", scale, seed, images)
        assert result.recovered is not None
        candidates.append(minus_squared_error(result.recovered, recording.images))
        found["as sent"] = minus_squared_error(recording.view.mixtures, recording.images)
    return {**found, "strongest": max(candidates)}


def minus_squared_error(normalised: Any, images: Any) -> float:
    """Of normalised images ``[B, H, W, 3]`` against uint8 ones, both brought to [-1, 1]."""
    unit = 2 * np.clip(np.asarray(data.denormalize(normalised)), 0, 1) - 1
    return round(-float(((unit - images / np.float32(127.5) + 1) ** 2).mean()), 4)


def without_pre(run: Run) -> Run:
    """The same network, with all of it in the cloud but the mixing."""
    model = models.build(
        dataclasses.replace(run.config.model, cut=0),
        image_size=run.source.image_size,
        num_attributes=len(run.source.attribute_names),
    )
    pre, main = run.variables["pre"], run.variables["main"]
    joined = {kind: {**pre.get(kind, {}), **main.get(kind, {})} for kind in {*pre, *main}}
    variables = {"pre": {}, "main": joined, "post": run.variables["post"]}
    return run._replace(model=model, variables=variables)


def separation(
    run: Run, scale: Scale, place: Place, seed: int, attack: str | None = None
) -> dict[str, Any]:
    """One attack on activations; by default the strongest, without a key ridge regression."""
    target = target_of(run)
    if run.defense.name == "none":
        return {"value": 1.0, "floor": 1.0, "owner": 1.0, "attack": "none needed"}
    name = attack or (suite.STRONGEST if run.defense.keyed else "restoration")
    figures, _, _ = run_attack(target, name, scale, seed, scale.separated_images)
    return {n: figures[0][n] for n in ("value", "floor", "owner")} | {"attack": name}


Part = Callable[[Run, Scale, Place, int], dict[str, Any]]
PARTS: dict[str, Part] = {
    "utility": utility,
    "attributes": attributes,
    "identity": identity,
    "faces": faces,
    "separation": separation,
}


def measure(
    cells: report.Cells,
    systems: dict[str, System],
    parts: Sequence[str],
    scale: Scale,
    place: Place,
    seeds: Iterable[int],
) -> None:
    """Adds the cells that are missing, a finished one is not run again.

    First everything with the first seed, then accuracies with the others, then their attackers:
    wherever it is stopped, what there is is a table.
    """
    first, *others = seeds
    later = [part for part in parts if part != "utility"]
    stages = ([first], parts), (others, ["utility"] if "utility" in parts else []), (others, later)
    for some_seeds, some_parts in stages:
        for seed in some_seeds:
            for name, system in systems.items():
                missing = [
                    p
                    for p in some_parts
                    if not cells.has(row=name, part=p, seed=seed)
                    # Mixed images do not depend on where the network is cut.
                    and not (p == "faces" and system.model.cut > 1)
                    # Another call may have the folder.
                    and (p != "identity" or has_people(scale, place))
                ]
                if not missing:
                    continue
                began = time.perf_counter()
                run = trained(name, system, scale, place, seed)
                training = round(time.perf_counter() - began, 1)
                for part in missing:
                    began = time.perf_counter()
                    found = PARTS[part](run, scale, place, seed)
                    seconds = round(time.perf_counter() - began, 1)
                    if part == "utility":
                        found["training_seconds"] = training
                    what = {"row": name, "part": part, "seed": seed}
                    cells.add({**what, **found, "seconds": seconds})


def fill(
    name: str,
    config: Any,
    systems: dict[str, System],
    parts: Sequence[str],
    scale: Scale,
    place: Place,
    *,
    chooses: Sequence[str],
    summarize: Callable[[list[dict[str, Any]]], report.Summary],
) -> None:
    """Measures what a script's results file lacks, and writes it.

    Args:
        name: of the script.
        config: its options, with ``scale``, ``seeds`` and ``output``.
        systems: by row.
        parts: of ``PARTS``.
        scale: the size.
        place: data and runs.
        chooses: as in ``report.Cells``.
        summarize: likewise.
    """
    cells = report.Cells(
        config.output or scales.output(name, config.scale),
        config,
        name=f"{name}, scale {config.scale}",
        images=images(scale, place),
        chooses=chooses,
        summarize=summarize,
    )
    measure(cells, systems, parts, scale, place, config.seeds or range(scale.seeds))
    cells.save()
