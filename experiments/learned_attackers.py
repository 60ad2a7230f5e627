"""The paper's learned attackers on trained networks, with the attack that needs no learning."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import measuring
import persons
import report

from facemix_jax import _runtime, attacks, defenses, mixing, runs
from facemix_jax.attacks import learning, recognition, reconstruction
from facemix_jax.results import Column, ResultTable

ATTACKS = {
    attack.name: attack
    for attack in (
        recognition.ATTRIBUTES,
        recognition.SET_ATTRIBUTES,
        recognition.IDENTITY,
        recognition.SET_IDENTITY,
        reconstruction.PIX2PIX,
    )
}
RAW_IMAGES = "pix2pix-images"
"""Pix2Pix on mixed images, without pre (the starred rows of the paper's table 3)."""
WEAK = "signed_permutation"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Every attack on every work directory, and on a weak defence where there is a group.

    Command: ``python experiments/learned_attackers.py --workdirs PLAIN FACEMIX --data-dir CELEBA
    --identity-dir PEOPLE``. A cell that is in the JSON file is not run again; ``--attacks``
    chooses some.

    Run time, for ResNet-18 of width 16 at 109x89 on two CPU cores: 1 to 29 minutes a cell, the
    control of mixed images the longest.

    Expected: on unprotected activations, attributes near the network's own balanced accuracy,
    persons at 20 times chance or more, and faces near 0; on FaceMix, attributes of single rows
    within 3 points of 50%, persons within 3 times chance (of whole groups 3.5 times), faces nearer
    to the mean face's score than to the owner's, while gradient ICA recovers the same activations
    at a correlation of about .99.

    Attributes:
        workdirs: of ``facemix train``.
        data_dir: folder with the images that the work directories were trained on.
        identity_dir: as in ``table2.py``; rows whose ``dlib_dist`` is above 0.6 may show another
            person and are left out. None: the persons' attackers are not run.
        cache_dir: folder for decoded images; None for the data sets' default.
        attacks: which ones; all of them by default.
        weak: whether to attack, instead of the work directory's own defence, one that only
            reorders groups and flips signs: the attackers must succeed there.
        weak_group_size: its group size.
        images: how many test images are attacked, in whole groups.
        steps: training steps of each attacker.
        batch_size: examples in a step.
        seed: of the secrets and the attackers.
        output: JSON file.
    """

    workdirs: tuple[Path, ...]
    data_dir: str | None = None
    identity_dir: str | None = None
    cache_dir: str | None = None
    attacks: tuple[str, ...] = (*ATTACKS, RAW_IMAGES)
    weak: bool = False
    weak_group_size: int = 2
    images: int = 2048
    steps: int = 300
    batch_size: int = 64
    seed: int = 0
    output: Path = Path(__file__).parent / "results" / "learned_attackers.json"


def images(config: Config) -> dict[str, dict[str, Any]]:
    """``report.images_of`` what the networks were trained on, by data set, and the people."""
    found = {}
    for workdir in config.workdirs:
        trained_on = runs.read_config(workdir).data
        if config.data_dir is not None:
            trained_on = dataclasses.replace(trained_on, data_dir=config.data_dir)
        found[trained_on.dataset] = report.images_of(trained_on)
    return found | persons.images(config.identity_dir)


def main(config: Config) -> None:
    """Runs the cells that the JSON file lacks, and writes each into it."""
    cells = report.Cells(
        config.output,
        config,
        images=images(config),
        chooses=("attacks", "weak", "steps", "batch_size"),
        summarize=summarize,
    )
    for workdir in config.workdirs:
        run = runs.load(workdir, data_dir=config.data_dir)
        defense = run.defense
        what: dict[str, Any] = {
            "trained_with": defense.name,
            "steps": config.steps,
            "batch_size": config.batch_size,
        }
        if config.weak:
            defense = defenses.facemix(group_size=config.weak_group_size, family=WEAK)
        what |= {"defense": WEAK if config.weak else defense.name, "group_size": defense.group_size}
        what["run_hash"] = report.run_hash(run)
        for name in config.attacks:
            source = run.source
            if "identity" in name:
                if config.identity_dir is None:
                    continue
                source = persons.people(config.identity_dir, config.cache_dir, (109, 89))
            if cells.has(attack=name, **what):
                continue
            model, variables = (run.model, run.variables)
            if name == RAW_IMAGES:
                whole = measuring.without_pre(run)
                model, variables = whole.model, whole.variables
            target = attacks.Target(
                model=model, defense=defense, variables=variables, source=source
            )
            cells.add({"attack": name, **what, **attack(target, name, config)})
    cells.save()


def summarize(cells: Sequence[Mapping[str, Any]]) -> report.Summary:
    """Every figure, the same after separation, and what that gets back of the same recording."""
    flat = []
    for cell in cells:
        after = {
            recognition.unseparated(figure["name"]): figure["value"]
            for figure in cell["figures"]
            if figure["name"].endswith(recognition.SEPARATED)
        }
        named = ("attack", "defense", "group_size", "trained_with", "cut")
        flat += [
            {
                **figure,
                **_guesses(figure),
                **{name: cell[name] for name in named},
                "after": after.get(figure["name"]),
                "separated": (cell["gradient_ica"] or {}).get("value", report.derived(1.0)),
            }
            for figure in cell["figures"]
            if not figure["name"].endswith(recognition.SEPARATED)
        ]
    names = [figure["name"] for cell in cells for figure in cell["figures"]]
    noisy = any(name.endswith(recognition.AFTER_ROBUST) for name in names)
    strongest = "after separation" if noisy else "after gradient ICA"
    columns = {
        "chance": Column(name="chance", format="fixed3"),
        "floor": Column(name="no attack", format="fixed3"),
        "value": Column(name="attacker", format="fixed3", strongest=strongest),
        "after": Column(name=strongest, format="fixed3"),
        "separated": Column(name="activations by gradient ICA", format="fixed3"),
        "ceiling": Column(name="ceiling", format="fixed3"),
        "owner": Column(name="owner", format="fixed3"),
    }
    table = ResultTable(
        title="The paper's learned attackers, beside what separation gets back",
        columns=tuple(columns.values()),
        rows=report.rows(
            flat,
            lambda c: (
                f"{c['attack']} on {c['defense']}, M = {c['group_size']}, cut {c['cut']} (network "
                f"trained with {c['trained_with']}): {c['name']}".replace("_", " ")
            ),
            columns,
        ),
        note=f"A{strongest[1:]}: the same asked of single rows after separation. Activations by "
        "gradient ICA: mean matched |correlation| with those of the same recording; 1 where "
        f"nothing is mixed and they are sent as they are. {report.QUICK}",
    )
    return ((table,), ()) if cells else ((), ())


def _guesses(figure: Mapping[str, Any]) -> dict[str, Any]:
    """What follows without a picture; other faces and other people's attributes were drawn."""
    chance, floor = figure["chance"], figure["floor"]
    if figure["name"].startswith("minus mean squared error") or "answers matched" in figure["name"]:
        return {}
    return {
        "chance": report.derived(chance),
        "floor": report.derived(floor) if floor == chance else floor,
    }


def attack(target: attacks.Target, name: str, config: Config) -> dict[str, Any]:
    """One attack, and gradient ICA on the first groups of the same recording."""
    began = time.perf_counter()
    record_key, attack_key, separate_key = jax.random.split(jax.random.key(config.seed), 3)
    group_size = target.defense.group_size
    rows = attacks.recorded_rows(target, config.images // group_size)
    recording = attacks.record(target, rows, rng_key=record_key)
    effort = attacks.AttackConfig(
        num_groups=len(rows) // group_size, steps=config.steps, batch_size=config.batch_size
    )
    chosen = ATTACKS["pix2pix" if name == RAW_IMAGES else name]
    result = chosen.run(target, recording, attack_key, effort)
    separation = None
    if group_size > 1:
        mixtures, truth, owner = (
            mixing.group(x[: 16 * group_size], group_size)
            for x in (
                learning.grouped_mixtures(recording),
                recording.activations,
                recording.owner_activations,
            )
        )
        separated = attacks.evaluate_separation(mixtures, truth, owner, rng_key=separate_key)
        separation = report.figures(separated.figures)[0]
    return {
        "dataset": f"{target.source.name}, {len(rows)} test images recorded",
        "cut": target.model.spec.cut,
        "figures": report.figures(result.figures),
        "gradient_ica": separation,
        "seconds": round(time.perf_counter() - began, 1),
    }


if __name__ == "__main__":
    _runtime.configure()
    report.script(main, Config)
