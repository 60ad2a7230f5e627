"""Gaussian codes: the same networks trained with and without the terms, under blind separations."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import adapted_ica
import jax
import report
import scale as scales

from facemix_jax import _runtime, attacks, data, evaluation, fitting, gaussian_codes, runs
from facemix_jax._validate import one_of
from facemix_jax.attacks import contrast, suite
from facemix_jax.defenses import DefenseConfig
from facemix_jax.models import ModelConfig
from facemix_jax.results import Column, ResultTable, Row

MAPS = {"whole": None, "tiles": (10, 6)}
"""Height and width of the tiles; the map is 20 x 17."""

WEIGHTS = {"plain": (0.0, 0.0), "Gaussian": (30.0, 1.0)}
"""Of the negentropy and of the discriminator's advantage, both in nats."""

ATTACKS = (
    "gradient_ica",
    "robust",
    "adapted_ica",
    "contrast",
    "nonnegative",
    "alignment",
    "iva",
    "picard",
    "adversarial",
)
"""Blind separations; which of them suit a network, each says itself."""

OWN = {
    "adapted_ica": adapted_ica.ADAPTED,
    # Here whole maps as well have few samples that help: one tile is a map.
    "contrast": contrast.CONTRAST._replace(unsuitable=lambda target: None),
}
"""Attacks that are not the suite's own."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Trains networks with a signed, centred stem with and without the terms, then attacks them.

    Command: ``python experiments/gaussian_codes.py --data-dir CELEBA``, or ``--scale smoke``, which
    needs no files. Finished cells are not run again. The committed cells also take ``--group-sizes
    8 --noises 0 --seed 1``; of ``--attacks iva nonnegative`` they hold one network alone, M = 8
    without noise, trained without the terms. Tiles and the other attacks are not among them.

    Run time: a minute for ``smoke``; for ``cpu`` up to a minute for each network, and less for its
    three attacks.

    Expected: with the terms gradient ICA falls to near no attack, at one to two points of accuracy.
    ICA adapted to the network's codes still finds most of them, but with noise as well no more than
    .08 above no attack. See ``docs/defenses.md``.

    Attributes:
        scale: smoke or cpu.
        data_dir: folder with the official CelebA files; none for ``smoke``.
        cache_dir: folder for decoded images; None for the data sets' default.
        workdirs: folder for the runs; finished ones are not trained again.
        maps: of ``MAPS``: whole ones, as by default, or tiles.
        group_sizes: M.
        noises: in standard deviations of what is sent.
        attacks: of ``ATTACKS``; by default the three that the committed networks were under.
        epochs: of training.
        num_groups: groups attacked, in each tile.
        steps: of attackers that learn.
        seed: of training and attacks.
        output: JSON file; None for ``results/gaussian_codes_SCALE.json``.
    """

    scale: scales.Name = "cpu"
    data_dir: str | None = None
    cache_dir: str | None = None
    workdirs: Path = Path("runs/gaussian_codes")
    maps: tuple[str, ...] = ("whole",)
    group_sizes: tuple[int, ...] = (8, 32)
    noises: tuple[float, ...] = (0.0, 0.25, 0.5)
    attacks: tuple[str, ...] = ("gradient_ica", "robust", "adapted_ica")
    epochs: int = 4
    num_groups: int = 4
    steps: int = 100
    seed: int = 0
    output: Path | None = None


def main(config: Config) -> None:
    """Runs the cells that the JSON file lacks."""
    one_of(("smoke", "cpu"), scale=config.scale)
    if config.scale == "smoke":
        config = dataclasses.replace(
            config,
            maps=("whole",),
            group_sizes=(8,),
            noises=(0.0,),
            attacks=("gradient_ica", "adapted_ica"),
            epochs=1,
            steps=2,
        )
    for name in config.maps:
        one_of(MAPS, map=name)
    for name in config.attacks:
        one_of(ATTACKS, attack=name)
    cells = report.Cells(
        config.output or scales.output("gaussian_codes", config.scale),
        config,
        name=f"Gaussian codes, scale {config.scale}",
        images=report.celeba_images(None if config.scale == "smoke" else config.data_dir),
        chooses=("maps", "group_sizes", "noises", "attacks", "seed"),
        summarize=lambda cells: ((table(cells, config),), ()),
    )
    for maps in config.maps:
        for group_size in config.group_sizes:
            for noise in config.noises:
                for training in WEIGHTS:
                    measure(cells, config, maps, group_size, noise, training)
    cells.save()


def measure(
    cells: report.Cells, config: Config, maps: str, group_size: int, noise: float, training: str
) -> None:
    """The cells of one network: one for its utility, one for each attack."""
    what = {
        "training": training,
        "map": maps,
        "group_size": group_size,
        "noise": noise,
        "seed": config.seed,
    }
    missing = [name for name in (None, *config.attacks) if not cells.has(attack=name, **what)]
    if not missing:
        return
    began = time.perf_counter()
    run = trained(config, maps, group_size, noise, training)
    seconds = round(time.perf_counter() - began, 1)
    target = attacks.Target(
        model=run.model, defense=run.defense, variables=run.variables, source=run.source
    )
    rows = attacks.recorded_rows(target, config.num_groups)
    recording = attacks.record(target, rows, rng_key=jax.random.key(config.seed + 1))
    for name in missing:
        if name is None:
            cells.add({"attack": None, **what, **utility(run, config.seed), "seconds": seconds})
            continue
        attack = OWN.get(name, suite.ATTACKS.get(name))
        assert attack is not None
        reason = attack.unsuitable(target)
        if reason is not None:
            cells.add({"attack": name, **what, "skipped": reason})
            continue
        began = time.perf_counter()
        effort = attacks.AttackConfig(steps=config.steps)
        found = attack.run(target, recording, jax.random.key(config.seed + 2), effort)
        seconds = round(time.perf_counter() - began, 1)
        figures = report.figures(found.figures)
        cells.add({"attack": name, **what, "figures": figures, "seconds": seconds})


def trained(config: Config, maps: str, group_size: int, noise: float, training: str) -> runs.Run:
    """The network, trained now or before."""
    scale = scales.SCALES[config.scale]
    if not scale.drawn:  # half the images of the tables: there are many networks
        scale = dataclasses.replace(scale, train_examples=4096, test_examples=1024)
    negentropy, adversary = WEIGHTS[training]
    wanted = runs.RunConfig(
        data=scales.data_config(scale, config.data_dir, config.cache_dir),
        model=ModelConfig(width=scale.width, stem="signed", centre=True, tile=MAPS[maps]),
        defense=DefenseConfig(group_size=group_size, noise=noise),
        train=dataclasses.replace(
            scale.train,
            num_epochs=config.epochs,
            negentropy_weight=negentropy,
            discriminator_weight=adversary,
            seed=config.seed,
        ),
    )
    workdir = config.workdirs / config.scale / f"{maps}-{group_size}-{noise}-{training}"
    fitting.fit(wanted, workdir / str(config.seed), show_progress=False)
    return runs.load(workdir / str(config.seed), data_dir=config.data_dir)


def utility(run: runs.Run, seed: int) -> dict[str, Any]:
    """Accuracy through the defence, and how Gaussian the codes of test images are."""
    key = jax.random.key(seed)
    found = evaluation.evaluate_utility(
        run.model, run.defense, run.variables, run.source, rng_key=key
    )
    images = data.normalize(run.source.images(run.source.splits["test"][:256]))
    codes = jax.jit(run.model.pre.apply)(run.variables["pre"], images)
    gradients = gaussian_codes.code_gradients(codes, tiles=run.model.spec.tiles)
    return {
        "accuracy": round(found.accuracy, 4),
        "balanced_accuracy": round(found.balanced_accuracy, 4),
        "majority_accuracy": round(found.majority_accuracy, 4),
        "negentropy": round(float(gaussian_codes.sliced_negentropy(gradients, key)), 5),
    }


def table(cells: Sequence[Mapping[str, Any]], config: Config) -> ResultTable:
    """A row for each network and seed; the strongest of the separations that were run."""
    columns = (
        Column(name="accuracy", format="percent"),
        Column(name="negentropy", format="fixed3"),
        Column(name="no attack", format="fixed3"),
        *(Column(name=name, format="fixed3", strongest="strongest") for name in ATTACKS),
        *(Column(name=n, format="fixed3") for n in ("strongest", "owner", "key advantage")),
    )
    names = "training", "map", "group_size", "noise", "seed"
    rows = []
    for network in dict.fromkeys(tuple(cell[name] for name in names) for cell in cells):
        mine = [cell for cell in cells if tuple(cell[name] for name in names) == network]
        first = {c["attack"]: c["figures"][0] for c in mine if "figures" in c}
        if not first:
            continue
        rated = next((c for c in mine if c["attack"] is None), {})
        floor, owner = (next(iter(first.values()))[n] for n in ("floor", "owner"))
        best = max(floor, *(figure["value"] for figure in first.values()))
        values = (
            rated.get("accuracy"),
            rated.get("negentropy"),
            floor,
            *(first[name]["value"] if name in first else None for name in ATTACKS),
            best,
            owner,
            owner - best,
        )
        training, maps, group_size, noise, seed = network
        label = f"{training}, {maps}, M = {group_size}, noise {noise}, seed {seed}"
        rows.append(Row(label=label, cells=tuple(report.measured(value) for value in values)))
    place = "drawn faces" if config.scale == "smoke" else "CelebA, test images"
    return ResultTable(
        title=f"Training towards Gaussian codes ({place})",
        columns=columns,
        rows=tuple(rows),
        note="Mean matched |correlation| of activations, for tiles each tile for itself. "
        "'Strongest' is the largest of what is sent as it is and of the separations that were run "
        "on the network; an empty cell was not run or does not suit it.",
    )


if __name__ == "__main__":
    _runtime.configure()
    report.script(main, Config)
