"""Where separation succeeds: group size, noise and bits on the wire, with accuracy beside it."""

import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import measuring
import numpy as np
import report
from phase_summary import Grid, picture, summarize
from scale import SCALES, Name, data_config, output
from sides import Sides

from facemix_jax import (
    _runtime,
    attacks,
    data,
    defenses,
    fitting,
    inference,
    metrics,
    runs,
)
from facemix_jax._files import write_atomically
from facemix_jax._types import Array, HostArray, RngKey
from facemix_jax._validate import UsageError, divides, positive
from facemix_jax.attacks import denoising, robust, separation
from facemix_jax.defenses import Defense, DefenseConfig
from facemix_jax.models import ModelConfig

ATTACKS = {attack.name: attack for attack in (separation.GRADIENT_ICA, robust.ROBUST)}
AT_ONCE = 64
"""Images that are scored with the same secrets."""

SMOKE = Grid((2, 8), (0.0, 1.0), ("float32", "int4"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Separation against mixtures that were noised and rounded, on a trained network's activations.

    Command: ``python experiments/phase.py --data-dir CELEBA --workdir RUN``, for the committed
    cells with ``--images 64 --seeds 1 --noises 0 0.5 1 2`` and the FaceMix network of
    ``accuracy_cpu.py`` as ``RUN``; with ``--scale smoke`` faces are drawn, and no files are needed.
    A cell that the JSON file holds is not run again.

    Run time: about a minute at ``smoke``; the committed cells took 45 minutes beside other
    programs on two cores, a cell of M = 2 mostly under 20 seconds, of M = 32 one or two minutes.

    Expected: without noise, above .98 at every group size, and down to four bits, which cost the
    owner as much as the attacker. Noise costs both alike in pairs; from one standard deviation on
    the key is worth something in larger groups, more of it once all sides filter: .07 at one
    deviation and .21 at two for M = 32.

    Attributes:
        data_dir: folder with the official CelebA files; not needed at ``smoke``.
        cache_dir: folder for decoded images; None for the data set's default.
        scale: size of a network that is trained here, of its images, and how many seeds there are.
        workdir: of a FaceMix run whose network is attacked; None trains one, in ``workdirs``.
        workdirs: folder for it, and for the picture.
        group_sizes: ``M``; None for the scale's.
        noises: standard deviations of the noise, over that of the mixtures; None for the scale's.
        wires: how mixtures are rounded; None for the scale's.
        seeds: of images, secrets and attacks, from 0 on; None for the scale's number.
        images: attacked, in whole groups.
        scored: test images for accuracy, at most.
        output: JSON file; None for the scale's in ``results``.
    """

    data_dir: str | None = None
    cache_dir: str | None = None
    scale: Name = "cpu"
    workdir: Path | None = None
    workdirs: Path = Path("runs/phase")
    group_sizes: tuple[int, ...] | None = None
    noises: tuple[float, ...] | None = None
    wires: tuple[str, ...] | None = None
    seeds: int | None = None
    images: int = 128
    scored: int = 1024
    output: Path | None = None

    def __post_init__(self) -> None:
        """Checks the sizes."""
        sizes = self.grid.group_sizes
        if self.seeds is not None:
            positive(seeds=self.seeds)
        positive(images=self.images, scored=self.scored, group_size=min(sizes))
        if self.images < max(sizes):
            raise UsageError(
                f"images is {self.images}, but a group has {max(sizes)}. Give more images, or "
                f"smaller group_sizes."
            )
        for size in sizes:
            divides(
                size,
                f"Use group_sizes that divide {AT_ONCE}, and a multiple of them for scored.",
                divisor_name="the group size",
                images_scored_at_once=min(AT_ONCE, self.scored),
            )

    @property
    def grid(self) -> Grid:
        """What is combined, as far as the options do not say."""
        base = SMOKE if self.scale == "smoke" else Grid()
        return Grid(
            self.group_sizes or base.group_sizes,
            self.noises or base.noises,
            self.wires or base.wires,
        )


def main(config: Config) -> None:
    """Runs the cells that are missing, then draws the picture."""
    run = network(config)
    which = report.run_hash(run)
    seeds = range(config.seeds or SCALES[config.scale].seeds)
    cells = report.Cells(
        config.output or output("phase", config.scale),
        config,
        name=f"phase, {config.scale}",
        images={"data": report.images_of(run.config.data)},
        chooses=("group_sizes", "noises", "wires", "seeds"),
        summarize=summarize,
    )
    scored, filters = Scored(run, config.scored), denoising.fit(target_of(run, run.defense))
    for seed in seeds:
        for group_size in config.grid.group_sizes:
            for noise in config.grid.noises:
                for wire in config.grid.wires:
                    what = {"group_size": group_size, "noise": noise, "wire": wire, "seed": seed}
                    if cells.has(which, **what):
                        continue
                    began = time.perf_counter()
                    defense = sent_as(group_size, noise, wire)
                    found = attacked(run, defense, config, seed, filters) | scored(defense, seed)
                    seconds = round(time.perf_counter() - began, 1)
                    cells.add({**what, **found, "run_hash": which, "seconds": seconds})
    cells.save()
    path = config.workdirs / f"phase_{config.scale}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, picture(cells.cells))
    print(path)


def network(config: Config) -> runs.Run:
    """The run that is given, or FaceMix (M = 8, cut 1) trained at the scale."""
    if config.workdir is not None:
        return runs.load(config.workdir, data_dir=config.data_dir)
    chosen = SCALES[config.scale]
    wanted = runs.RunConfig(
        data=data_config(chosen, config.data_dir, config.cache_dir),
        model=measuring.sized(ModelConfig(), chosen),
        defense=DefenseConfig(group_size=8),
        train=chosen.train,
    )
    workdir = config.workdirs / f"facemix-{config.scale}"
    fitting.fit(wanted, workdir, show_progress=False)
    return runs.load(workdir)


def sent_as(group_size: int, noise: float, wire: str) -> Defense:
    """FaceMix, then noise, then rounding."""
    defense = defenses.facemix(group_size=group_size)
    if noise:
        defense = defenses.with_noise(defense, noise)
    return defenses.with_rounding(defense, wire)


def target_of(run: runs.Run, defense: Defense) -> attacks.Target:
    """What is attacked: the network's rows under another defence."""
    return report.without_main(
        attacks.Target(model=run.model, defense=defense, variables=run.variables, source=run.source)
    )


def attacked(
    run: runs.Run, defense: Defense, config: Config, seed: int, filters: denoising.Filters
) -> dict[str, Any]:
    """Mean matched |correlation| of both attacks, beside no attack and the owner.

    As it is, and with the rows of every side filtered alike.
    """
    target = target_of(run, defense)
    record_key, attack_key = jax.random.split(jax.random.key(seed))
    rows = np.random.default_rng(seed).permutation(run.source.splits["test"])
    count = min(config.images, len(rows)) // defense.group_size * defense.group_size
    recording = attacks.record(target, rows[:count], rng_key=record_key)
    effort = attacks.AttackConfig()
    found = {
        name: attack.run(target, recording, attack_key, effort) for name, attack in ATTACKS.items()
    }
    figures = {name: result.figures[0] for name, result in found.items()}
    strongest = max(figures.values(), key=lambda figure: figure.value)
    sides = Sides(filters, recording)
    filtered = []
    for result in found.values():
        assert result.recovered is not None  # they are separations
        filtered.append(sides(result.recovered.reshape(sides.truth.shape)))
    return {
        "attackers": {name: round(figure.value, 4) for name, figure in figures.items()},
        "strongest": round(strongest.value, 4),
        "floor": round(strongest.floor, 4),
        "owner": round(strongest.owner, 4),
        "key_advantage": round(strongest.key_advantage, 4),
        "filtered": max(filtered, key=lambda figures: figures["value"]),
    }


class Scored:
    """Accuracy through any defence; main is compiled once for all of them.

    Args:
        run: the network.
        images: of the test split, at most.
    """

    def __init__(self, run: runs.Run, images: int) -> None:
        self._run = run
        self._apply = jax.jit(run.model.main.apply)
        rows = run.source.splits["test"][:images]
        rows = rows[: len(rows) // AT_ONCE * AT_ONCE] if len(rows) > AT_ONCE else rows
        self._labels = run.source.attributes[rows]
        pre = jax.jit(run.model.pre.apply)
        self._activations = [
            pre(run.variables["pre"], data.normalize(run.source.images(some)))
            for some in np.array_split(rows, max(1, len(rows) // AT_ONCE))
        ]

    def __call__(self, defense: Defense, seed: int) -> dict[str, float]:
        """Accuracy and balanced accuracy with fresh secrets for every ``AT_ONCE`` images."""
        main = inference.main_variables(self._run.variables, defense)
        logits = [
            self._answer(defense, main, jax.random.key(2**16 * seed + index), part)
            for index, part in enumerate(self._activations)
        ]
        counts = metrics.attribute_counts(np.concatenate(logits), self._labels)
        of_class = counts.sum(2)
        return {
            "accuracy": round(float(metrics.accuracy(counts).mean()), 4),
            "balanced_accuracy": round(float(metrics.balanced_accuracy(counts).mean()), 4),
            "majority_accuracy": round(float((of_class.max(1) / of_class.sum(1)).mean()), 4),
        }

    def _answer(self, defense: Defense, main: Any, rng_key: RngKey, part: Array) -> HostArray:
        secret = defense.init(rng_key, len(part), False)
        features = defense.recover(secret, self._apply(main, defense.protect(secret, part)))
        return np.asarray(self._run.model.post(self._run.variables["post"], features))


if __name__ == "__main__":
    _runtime.configure()
    report.script(main, Config)
