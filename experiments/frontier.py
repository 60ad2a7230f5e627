"""Variants of mixing: accuracy against the strongest attack and the key advantage."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accuracy_cpu
import frontier_attacks
import frontier_summary
import jax
import persons
import report
import scale as scales

from facemix_jax import _runtime, attacks, defenses, evaluation, fitting, runs
from facemix_jax._validate import one_of
from facemix_jax.data import DataConfig, Source
from facemix_jax.defenses import DefenseConfig
from facemix_jax.models import ModelConfig

TILED = ModelConfig(width=16, tile=(7, 6), stem="signed", centre=True)
WHOLE = ModelConfig(width=16)
VARIANTS = {
    "facemix-8": (WHOLE, DefenseConfig(group_size=8)),
    "tiles-16": (TILED, DefenseConfig(group_size=16, noise=0.5)),
    "tiles-32": (TILED, DefenseConfig(group_size=32, noise=0.5)),
    "tiles-32-scatter": (TILED, DefenseConfig(group_size=32, noise=0.5, scatter=True)),
}
"""Networks and defences by name; noise is in standard deviations of what is sent."""

SAME_RUN = {"tiles-32-scatter": "tiles-32"}
"""Who is in a group matters to no tile's main, so that dealing needs no training of its own."""

GROUPS = {"tiles-32-scatter": 4}
"""Groups of images attacked where it is not two: dealing needs several."""

SMOKE = "gradient_ica", "alignment", "granted_rotation", "membership"
"""Attacks of the smoke test, on two variants: the others take longer to compile."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Trains each variant as ``accuracy_cpu.py`` trains FaceMix, then attacks it.

    Command: ``python experiments/frontier.py --data-dir CELEBA --identity-dir PEOPLE``, or
    ``--scale smoke``, which needs no files. Cells that are in the JSON file are not run again.

    Run time: 7 to 11 minutes a variant for training on two busy CPU cores; that of each attack
    stands in the JSON file.

    Expected: FaceMix gives its activations away, and the persons with them; on tiles of 7x6 with
    signed codes and noise of half a deviation (M = 32) no separation run here leaves the floor by
    more than .03, but persons are named from row spaces as well as by the owner. See
    ``docs/defenses.md`` for what that does not show.

    Attributes:
        scale: smoke or cpu.
        data_dir: folder with the official CelebA files; none for ``smoke``.
        identity_dir: as in ``table2.py``; without it, attackers of persons are not run.
        cache_dir: folder for decoded images; None for the data set's default.
        workdirs: folder for the runs; finished ones are not trained again.
        variants: which ones.
        attacks: which ones; all of them by default.
        num_groups: groups of images attacked; each has a group of rows for every tile.
        steps: of learned attackers and decoders.
        seed: of training and attacks.
        output: JSON file; None for ``results/frontier.json`` or ``results/frontier_smoke.json``.
    """

    scale: scales.Name = "cpu"
    data_dir: str | None = None
    identity_dir: str | None = None
    cache_dir: str | None = None
    workdirs: Path = Path("runs/frontier")
    variants: tuple[str, ...] = tuple(VARIANTS)
    attacks: tuple[str, ...] = tuple(frontier_attacks.ATTACKS)
    num_groups: int = 2
    steps: int = 150
    seed: int = 0
    output: Path | None = None


def main(config: Config) -> None:
    """Runs the cells that the JSON file lacks."""
    one_of(("smoke", "cpu"), scale=config.scale)
    for name in config.variants:
        one_of(VARIANTS, variant=name)
    for name in config.attacks:
        one_of(frontier_attacks.ATTACKS, attack=name)
    small = config.scale == "smoke"
    if small:
        chosen = [name for name in config.attacks if name in SMOKE]
        config = dataclasses.replace(
            config, steps=2, variants=("facemix-8", "tiles-32"), attacks=tuple(chosen)
        )
    default = "frontier_smoke.json" if small else "frontier.json"
    output = config.output or Path(__file__).parent / "results" / default
    images = {} if small else report.celeba_images(config.data_dir)
    cells = report.Cells(
        output,
        config,
        name=default.removesuffix(".json"),
        images=images | persons.images(config.identity_dir),
        chooses=("variants", "attacks", "seed"),
        summarize=lambda cells: frontier_summary.summary(cells, beside=not small),
    )
    for name in config.variants:
        run = trained(config, name)
        what = {"variant": name, "seed": config.seed}
        target = attacks.Target(
            model=run.model, defense=run.defense, variables=run.variables, source=run.source
        )
        rows = attacks.recorded_rows(target, GROUPS.get(name, config.num_groups))
        recording = attacks.record(target, rows, rng_key=jax.random.key(config.seed + 1))
        if not cells.has(attack=None, **what):
            formal = frontier_attacks.formal(target, recording)
            cells.add({"attack": None, **what, **utility(run), "formal": formal})
        for attack_name in config.attacks:
            attack = frontier_attacks.ATTACKS[attack_name]
            if cells.has(attack=attack_name, **what):
                continue
            attacked = target
            if attack.people:
                people = source_of_people(config, run)
                if people is None:
                    continue
                attacked = dataclasses.replace(target, source=people)
            if attack.unsuitable(attacked):
                continue
            effort = attacks.AttackConfig(steps=config.steps)
            began = time.perf_counter()
            found = attack.run(attacked, recording, jax.random.key(config.seed + 2), effort)
            seconds = round(time.perf_counter() - began, 1)
            what_it_took = {"images": len(rows), "steps": config.steps, "seconds": seconds}
            cells.add({"attack": attack_name, **what, **found, **what_it_took})
    cells.save()


def trained(config: Config, name: str) -> runs.Run:
    """The variant's run, trained now or before, with the variant's defence."""
    model, defense = VARIANTS[name]
    network = SAME_RUN.get(name, name)
    base = accuracy_cpu.run_config(
        accuracy_cpu.Config(data_dir=config.data_dir or "", cache_dir=config.cache_dir),
        "facemix",
        config.seed,
    )
    trained_with = VARIANTS[network][1]
    if config.scale == "smoke":
        size = scales.SCALES["smoke"]
        model = dataclasses.replace(model, width=size.width, tile=model.tile and (10, 6))
        train = dataclasses.replace(size.train, seed=config.seed)
        # Where there are few pictures, groups are small.
        defense, trained_with = (
            dataclasses.replace(d, group_size=min(d.group_size, 8)) for d in (defense, trained_with)
        )
        images = DataConfig(
            dataset="synthetic",
            image_size=size.image_size,
            train_examples=size.train_examples,
            test_examples=size.test_examples,
        )
        base = dataclasses.replace(base, data=images, train=train)
    wanted = dataclasses.replace(base, model=model, defense=trained_with)
    workdir = config.workdirs / f"{network}-{config.seed}"
    if config.scale == "smoke":
        workdir = config.workdirs / "smoke" / workdir.name
    elif config.identity_dir is not None:  # what is amiss there is said before training
        persons.people(config.identity_dir, config.cache_dir, wanted.data.image_size)
    fitting.fit(wanted, workdir)
    run = runs.load(workdir, data_dir=config.data_dir)
    return run._replace(defense=defenses.build(defense, tiles=run.model.spec.tiles))


def source_of_people(config: Config, run: runs.Run) -> Source | None:
    """Pictures of people to recognise."""
    if config.scale == "smoke":
        return run.source
    if config.identity_dir is None:
        return None
    return persons.people(config.identity_dir, config.cache_dir, run.source.image_size)


def utility(run: runs.Run) -> dict[str, Any]:
    """Accuracy on all test images, and what the edge does for it."""
    rate: Callable[..., Any] = evaluation.evaluate_utility
    key = jax.random.key(0)
    found = rate(run.model, run.defense, run.variables, run.source, rng_key=key)
    clean = rate(run.model, defenses.none(), run.variables, run.source, rng_key=key)
    return {
        "accuracy": round(found.accuracy, 4),
        "balanced_accuracy": round(found.balanced_accuracy, 4),
        "majority_accuracy": round(found.majority_accuracy, 4),
        "clean_accuracy": round(clean.accuracy, 4),
        "network": dataclasses.asdict(run.config.model),
        "group_size": run.defense.group_size,
    }


if __name__ == "__main__":
    _runtime.configure()
    report.script(main, Config)
