"""Scores of a work directory against the strongest attack, kept in it as ``scores.json``."""

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from facemix_jax import checkpoint, output, run_images, runs, trials
from facemix_jax._files import expanded, write_atomically
from facemix_jax._validate import UsageError
from facemix_jax.attacks import Figure, Target
from facemix_jax.attacks.base import own_split, truth_by_group
from facemix_jax.attacks.blind import CORRELATION, recovery
from facemix_jax.attacks.restoration import RESTORATION
from facemix_jax.data import DataConfig, denormalize, normalize
from facemix_jax.provenance import provenance
from facemix_jax.runs import Run, RunConfig

SCORES = "scores.json"
_FACES = "pix2pix"
_ATTACKS = 3
"""Raised when other attacks run here than before: weaker figures are not shown again."""


def newest_step(workdir: Path) -> int:
    """Steps that a run has done.

    Raises:
        UsageError: the folder holds no run, or one without a checkpoint.
        FacemixError: its configuration cannot be read.
    """
    runs.read_config(workdir)
    step = checkpoint.newest(workdir / "checkpoints")
    if step is None:
        raise UsageError(
            f"{workdir} holds a run without a checkpoint, so there is nothing to evaluate. Train "
            f"it first, or leave it out."
        )
    return step


def scores(
    workdir: Path,
    *,
    split: str,
    data_dir: str | None = None,
    say: Callable[[str], None] = lambda text: None,
    digest: Callable[[DataConfig, tuple[str, str]], str] = run_images.scored,
) -> dict[str, Any]:
    """Utility and the strongest attack's figures of a run's newest checkpoint.

    What was found before is read instead of computed, if it was of this network, step and split
    and of the same images and labels in the same folder, however it is named; where the folder is
    not there any more, as it was. On drawn faces a sweep's ``result.json`` serves for the utility.

    Args:
        workdir: of the run.
        split: whose images are scored and attacked.
        data_dir: where the images are now; None for where they were.
        say: told what takes time, and where scores cannot be kept or compared with their images.
        digest: ``run_images.scored``, or that with a memory for many runs on the same images.

    Returns:
        As ``trials.utilities``, with ``strongest`` (a figure, and ``attack``, which reached it),
        ``faces`` (what Pix2Pix reached, and the ``strongest``; None where a key protects) and
        ``skipped`` (attack to the reason why it could not run).

    Raises:
        FacemixError: the run or its images cannot be read.
        UsageError: ``data_dir`` begins with the folder of an unknown user.
    """
    asked = {"step": newest_step(workdir), "split": split}
    config = _placed(runs.read_config(workdir), data_dir)
    of = _of(workdir, config)
    place = of["data_dir"]  # None for drawn faces, which follow from the configuration
    gone = place is not None and not os.path.isdir(place)
    if place is not None and not gone:
        of["scored"] = digest(config.data, (split, own_split(split)))  # the attacker's own, too
    stored = _read(workdir / SCORES, {**asked, **of})
    if stored is not None:
        if gone:
            say(
                f"{place} is not there: the scores kept in {workdir} are shown without a look at "
                f"its images and labels, which may have changed"
            )
        return stored
    say(f"evaluating {workdir} ...")
    run = runs.load(workdir, data_dir=data_dir)
    # What a sweep kept says nothing of the labels that were scored.
    found = trials.scored(workdir, split) if place is None else None
    if found is None or found["step"] != asked["step"]:
        found = trials.utilities(run, split)
    found = {**found, **of, **_attack(run, found, split, say), "provenance": provenance()}
    try:
        write_atomically(workdir / SCORES, json.dumps(found, indent=1) + "\n")
    except OSError as error:
        say(f"the scores of {workdir} cannot be kept there and have to be found again: {error}")
    return found


def _placed(config: RunConfig, data_dir: str | None) -> RunConfig:
    """The configuration with images in another folder; None for its own."""
    if data_dir is None:
        return config
    return dataclasses.replace(config, data=dataclasses.replace(config.data, data_dir=data_dir))


def _of(workdir: Path, config: RunConfig) -> dict[str, Any]:
    """What else scores depend on, as JSON has it: run, images, where they are read, attacks."""
    place = config.data.data_dir
    of = {
        "config": runs.essential(config),
        "images": runs.read_images(workdir),
        "data_dir": None if place is None else os.path.realpath(expanded(place)),
        "attacks": _ATTACKS,
    }
    return dict(json.loads(json.dumps(of)))


def _read(path: Path, asked: Mapping[str, Any]) -> dict[str, Any] | None:
    """What is stored, if it answers what is asked; None where it does not, or is damaged."""
    try:
        stored = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return stored if isinstance(stored, dict) and asked.items() <= stored.items() else None


def _attack(
    run: Run, utility: dict[str, Any], split: str, say: Callable[[str], None]
) -> dict[str, Any]:
    """What the strongest attacks make of activations that no key protects.

    With a key, ``trials.utilities`` has run them.
    """
    if run.defense.name == "none" or run.defense.keyed:
        return {"faces": None}
    # Imported here: the attacks' own networks and optimisers take a while.
    from facemix_jax.attacks import suite

    target = Target(
        model=run.model,
        defense=run.defense,
        variables=run.variables,
        source=run.source,
        split=split,
        auxiliary_split=own_split(split),
    )
    found = suite.run_suite(
        target,
        (suite.STRONGEST,),
        rng_key=jax.random.key(0),
        say=lambda name: say(f"  attack: {name} ..."),
    )
    candidates = [*utility["leakage"].items()]
    candidates += [(name, output.figure_dict(figure)) for name, figure in _figures(run, found)]
    attack, strongest = max(
        ((name, figure) for name, figure in candidates if figure["name"] == CORRELATION),
        key=lambda candidate: candidate[1]["value"],
    )
    return {
        "strongest": {"attack": attack, **strongest},
        "faces": _faces(run, found),
        "skipped": found.skipped,
    }


def _faces(run: Run, found: Any) -> dict[str, Any] | None:
    """What Pix2Pix draws, beside the better of it and what ridge regression restores."""
    if _FACES not in found.results:
        return None
    figure = found.results[_FACES].figures[0]
    strongest = figure.value
    restored = found.results.get(RESTORATION.name)
    if restored is not None and _sends_images(run):
        unit = 2 * np.clip(np.asarray(denormalize(restored.recovered)), 0, 1) - 1
        error = np.square(unit - (found.recording.images / np.float32(127.5) - 1)).mean()
        strongest = max(strongest, -float(error))
    # The owner sees what the attacker sees.
    figure = figure._replace(owner=max(figure.owner, strongest))
    return {**output.figure_dict(figure), "strongest": strongest}


def _sends_images(run: Run) -> bool:
    return run.config.model.cut == 0 and run.model.spec.tiles == 1


def _figures(run: Run, found: Any) -> Iterator[tuple[str, Figure]]:
    for name, result in found.results.items():
        for figure in result.figures:
            yield name, figure
        if name == _FACES and _sends_images(run):
            # The faces it draws are the activations, before they are normalised.
            drawn = np.asarray(normalize(255 * result.recovered))[:, None]
            truth, sent = (
                np.asarray(truth_by_group(rows, found.recording))
                for rows in (found.recording.activations, found.recording.view.mixtures)
            )
            value, floor = (float(recovery(rows, truth).mean()) for rows in (drawn, sent))
            yield name, Figure(CORRELATION, value, floor, value, result.figures[0].threat_model)
