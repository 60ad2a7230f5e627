"""What can be put around mixing: what it costs, and what the strongest attacks make of it."""

import dataclasses
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import measuring
import numpy as np
import persons
import places
import report
import scale as scales
import summaries
import variants_summary
from scale import Scale
from sides import Sides
from systems import SYSTEMS, System
from variants_summary import SEPARATIONS, UTILITY

from facemix_jax import _runtime, attacks, costs, defenses, evaluation
from facemix_jax._types import HostArray, RngKey
from facemix_jax._validate import one_of
from facemix_jax.attacks import denoising, suite
from facemix_jax.attacks.base import by_group
from facemix_jax.attacks.groups import auxiliary_activations
from facemix_jax.defenses import DefenseConfig
from facemix_jax.models import ModelConfig
from facemix_jax.runs import Run


class Variant(NamedTuple):
    """A defence, and whose network it is measured on.

    Attributes:
        defense: as it is at inference and under attack.
        trained: whether the network is trained with it; otherwise Table 2's FaceMix serves.
    """

    defense: DefenseConfig
    trained: bool = False


FACEMIX = "FaceMix, M = 8, N_pre = 1"
"""A row of ``table2.py``, whose network serves for all variants without one of their own."""

BOUNDED = DefenseConfig(family="conditioned", condition=10.0)
VARIANTS = {
    FACEMIX: Variant(SYSTEMS[FACEMIX].defense),
    # Main treats every row alike, so that clouds need no training of their own.
    "2 clouds": Variant(DefenseConfig(clouds=2)),
    "4 clouds": Variant(DefenseConfig(clouds=4)),
    "8 clouds": Variant(DefenseConfig(clouds=8)),
    "condition 10, not trained so": Variant(BOUNDED),
    "4 decoys, not trained so": Variant(DefenseConfig(decoys=4)),
    "blinding 4, not trained so": Variant(DefenseConfig(blinding=4.0)),
    "blinding 1, not trained so": Variant(DefenseConfig(blinding=1.0)),
    "condition 10": Variant(BOUNDED, True),
    "4 decoys": Variant(DefenseConfig(decoys=4), True),
    "blinding 4": Variant(DefenseConfig(blinding=4.0), True),
    "blinding 1": Variant(DefenseConfig(blinding=1.0), True),
    "int4": Variant(DefenseConfig(wire="int4"), True),
}
"""All with eight images in a group, at cut 1. Rounding of a network not trained for it is
``phase.py``'s."""

ATTACKS = {name: suite.ATTACKS[name] for name in SEPARATIONS}
PERSONS = ("identity", "set_identity", "membership")
RECOGNITION = (*PERSONS, "attributes", "set_attributes", "pix2pix")
"""The paper's attackers, those that are asked about whole groups, and row spaces."""
PARTS = (UTILITY, *ATTACKS, *RECOGNITION)

CLOUDS = (FACEMIX, "2 clouds", "4 clouds", "8 clouds")
"""Where separation may find as much as nobody, and what is recognised tells more."""

_AUXILIARY = 512
"""The attacker's own images."""

_QUICK = (UTILITY, "gradient_ica")
SMOKE = {FACEMIX: _QUICK, "4 clouds": ("gradient_ica",), "blinding 4": _QUICK}
"""Of the smoke test: the other attack takes long to compile."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Trains variants of mixing as ``table2.py`` trains FaceMix, then attacks them.

    Command: ``python experiments/variants.py --data-dir CELEBA --identity-dir PEOPLE``, or
    ``--scale smoke``, which needs no files. Finished cells are not run again.

    Run time: at ``cpu`` up to 135 seconds for each attack and 2 to 22 for each accuracy, on two
    busy CPU cores; trainings were not timed.

    Expected: separation undoes every matrix that can be inverted, and decoys and rounding with it.
    By separation one of eight clouds gains nothing over its rows as they are, one of four or two
    does. Blinding hides what is not smooth and takes its price in accuracy and in the edge's own
    work. See ``docs/defenses.md``.

    Attributes:
        scale: smoke or cpu.
        data_dir: folder with the official CelebA files; none for ``smoke``.
        identity_dir: as in ``table2.py``.
        cache_dir: folder for decoded images; None for the data set's default.
        workdirs: folder for the runs; finished ones are not trained again.
        variants: which ones, in order; None for all, at ``smoke`` for a few.
        parts: which ones; None for all, at ``smoke`` for what compiles soon.
        num_groups: groups of images attacked.
        seed: of training and attacks.
        output: JSON file; None for ``results/variants_SCALE.json``.
    """

    scale: scales.Name = "cpu"
    data_dir: str | None = None
    identity_dir: str | None = None
    cache_dir: str | None = None
    workdirs: Path = Path("runs")
    variants: tuple[str, ...] | None = None
    parts: tuple[str, ...] | None = None
    num_groups: int = 16
    seed: int = 0
    output: Path | None = None


def main(config: Config) -> None:
    """Runs the cells that the JSON file lacks, and writes each into it."""
    one_of(("smoke", "cpu"), scale=config.scale)
    small = config.scale == "smoke"
    chosen = config.variants or tuple(SMOKE if small else VARIANTS)
    for name in chosen:
        one_of(VARIANTS, variant=name)
    for part in config.parts or ():
        one_of(PARTS, part=part)
    scale = scales.SCALES[config.scale]
    place = places.place(config, identity_dir=config.identity_dir)
    size = f"{summaries.images(scale, 'CelebA')}, {summaries.size(scale)}"
    cells = report.Cells(
        config.output or scales.output("variants", config.scale),
        config,
        name=f"variants, scale {config.scale}",
        images=places.images(scale, place),
        chooses=("variants", "parts", "seed"),
        summarize=lambda cells: (variants_summary.tables(cells, size), ()),
    )
    for name in chosen:
        what = {"variant": name, "seed": config.seed}
        parts = config.parts or (SMOKE.get(name, _QUICK) if small else PARTS)
        if name not in CLOUDS:
            parts = tuple(part for part in parts if part not in RECOGNITION)
        if place.identity_dir is None:  # another call may have the folder
            parts = tuple(part for part in parts if part not in PERSONS)
        missing = [part for part in parts if not cells.has(part=part, **what)]
        if not missing:
            continue
        run = trained(name, scale, place, config.seed)
        scene = Scene(run, config)
        for part in missing:
            began = time.perf_counter()
            if part in RECOGNITION:
                found = recognised(run, part, scale, place, config.seed)
            else:
                found = utility(run, config.seed) if part == UTILITY else scene.attacked(part)
            seconds = round(time.perf_counter() - began, 1)
            cells.add({**what, "part": part, **found, "seconds": seconds})
    cells.save()


def trained(name: str, scale: Scale, place: places.Place, seed: int) -> Run:
    """The network of a variant, trained now or before, under the variant's defence."""
    variant = VARIANTS[name]
    network = name if variant.trained else FACEMIX
    system = System(ModelConfig(cut=1), VARIANTS[network].defense)
    run = measuring.trained(network, system, scale, place, seed)
    return run._replace(defense=defenses.build(variant.defense, tiles=run.model.spec.tiles))


def utility(run: Run, seed: int) -> dict[str, Any]:
    """Accuracy on all test images through the defence, and what one image costs the owner."""
    found = evaluation.evaluate_utility(
        run.model, run.defense, run.variables, run.source, rng_key=jax.random.key(seed)
    )
    spec = run.model.spec
    sizes = int(np.prod(spec.activation_shape)), int(np.prod(spec.response_shape))
    cost = run.defense.cost(*sizes)
    row = jax.ShapeDtypeStruct((1, *spec.activation_shape), np.float32)
    main_macs = costs.macs(run.model.main.apply, run.variables["main"], row)
    return {
        "accuracy": round(found.accuracy, 4),
        "balanced_accuracy": round(found.balanced_accuracy, 4),
        "majority_accuracy": round(found.majority_accuracy, 4),
        "rows_sent": cost.rows_sent,
        "rows_ahead": cost.rows_ahead,
        "defense_macs": cost.protect_macs + cost.recover_macs,
        "macs_ahead": round(cost.rows_ahead * main_macs),
    }


def recognised(run: Run, part: str, scale: Scale, place: places.Place, seed: int) -> dict[str, Any]:
    """The figures of an attack on the rows of one cloud."""
    source, images, batch_size = None, scale.attack_images, None
    if part in PERSONS:
        assert place.identity_dir is not None  # main leaves these out without it
        source = persons.people(place.identity_dir, place.cache_dir, scale.image_size)
        images = run.defense.group_size  # it attacks these people's pictures instead
    elif part == "pix2pix":
        images, batch_size = min(images, 256), 32
    target = measuring.target_of(run, source)
    figures, _, _ = measuring.run_attack(target, part, scale, seed, images, batch_size)
    return {"figures": figures}


class Scene:
    """One recorded request, and what several attacks on it share.

    Args:
        run: the network under its defence.
        config: how much is attacked.
    """

    def __init__(self, run: Run, config: Config) -> None:
        self._target = report.without_main(
            attacks.Target(
                model=run.model, defense=run.defense, variables=run.variables, source=run.source
            )
        )
        self._seed = config.seed
        record_key = jax.random.key(config.seed + 1)
        rows = attacks.recorded_rows(self._target, config.num_groups)
        self._recording = attacks.record(self._target, rows, rng_key=record_key)
        self._sides = Sides(
            denoising.fit(self._target),
            self._recording,
            granted=granted(self._target, self._recording, record_key),
        )

    def attacked(self, name: str) -> dict[str, Any]:
        """Mean matched |correlation|, as it is and with all rows filtered alike."""
        found = ATTACKS[name].run(
            self._target,
            self._recording,
            jax.random.key(self._seed + 2),
            attacks.AttackConfig(),
        )
        figure = found.figures[0]
        assert found.recovered is not None
        recovered = found.recovered.reshape(self._sides.truth.shape)
        sources = self._recording.view.group_size
        return {
            "images": len(self._recording.images),
            "value": round(figure.value, 4),
            "floor": round(figure.floor, 4),
            "owner": round(figure.owner, 4),
            "key_advantage": round(figure.key_advantage, 4),
            "filtered": self._sides(_found_only(recovered, sources)),
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


if __name__ == "__main__":
    _runtime.configure()
    report.script(main, Config)
