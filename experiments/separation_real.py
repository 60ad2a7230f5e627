"""Gradient ICA on real faces: what a cloud gets back from mixtures without the key."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import report
from scale import SCALES, output

from facemix_jax import _runtime, attacks, data, metrics, mixing, models
from facemix_jax._types import Array, HostArray
from facemix_jax._validate import UsageError
from facemix_jax.results import Chart, Column, ResultTable


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Separates groups of CelebA test images at the image itself and after a random stem.

    Command: ``python experiments/separation_real.py --data-dir PATH_TO_CELEBA``; with ``--scale
    smoke`` a few groups of drawn faces are separated, and no files are needed.

    Run time: about half a minute on two CPU cores (decoding 20,000 images once comes on top); what
    the output holds is not run again.

    Expected, mean matched |correlation| for M = 2 / 4 / 8 / 16 / 32: 1.000 / 1.000 / .999 / .998 /
    .995 on pixels (the mixtures themselves: .90 / .78 / .67 / .59 / .55), 1.000 / .999 / .998 /
    .995 / .990 after the stem; the owner 1.000. ``benchmarks/separation_speed.py`` compares with
    scikit-learn.

    Attributes:
        data_dir: folder with the official CelebA files; not needed at ``smoke``.
        scale: ``cpu``, or ``smoke``, which takes the place of all sizes below.
        cache_dir: folder for decoded images; None for the data set's default.
        image_size: height, width.
        cuts: 0 mixes normalised pixels; 1 mixes after the stem of an untrained ResNet-18.
        width: channels of the stem.
        group_sizes: ``M``.
        num_groups: groups for each cut and ``M``; more where these hold under 256 images.
        seed: of images, keys, stem and the attack's starts.
        output: JSON file; None for the scale's in ``results``.
    """

    data_dir: str | None = None
    scale: Literal["smoke", "cpu"] = "cpu"
    cache_dir: str | None = None
    image_size: tuple[int, int] = (109, 89)
    cuts: tuple[int, ...] = (0, 1)
    width: int = 64
    group_sizes: tuple[int, ...] = (2, 4, 8, 16, 32)
    num_groups: int = 32
    seed: int = 0
    output: Path | None = None


def at_scale(config: Config) -> Config:
    """The configuration with the scale's sizes and place."""
    if config.scale == "smoke":
        small = SCALES["smoke"]
        return dataclasses.replace(
            config,
            data_dir=None,
            image_size=small.image_size,
            width=small.width,
            group_sizes=(2, 8),
            num_groups=2,
            output=config.output or output("separation_real", "smoke"),
        )
    if config.data_dir is None:
        raise UsageError("The scale 'cpu' needs --data-dir, CelebA's folder. Or use 'smoke'.")
    results = Path(__file__).parent / "results"
    return dataclasses.replace(config, output=config.output or results / "separation_real.json")


def main(config: Config) -> None:
    """Runs the cut and group sizes that are missing; writes JSON after each."""
    config = at_scale(config)
    assert config.output is not None  # at_scale says where
    source = report.faces(config.data_dir, config.cache_dir, config.image_size)
    order = np.random.default_rng(config.seed).permutation(source.splits["test"])
    cells = report.Cells(
        config.output,
        config,
        images=report.celeba_images(config.data_dir),
        chooses=("cuts", "group_sizes"),
        summarize=summarize,
    )
    for cut in config.cuts:
        model = models.build(
            models.ModelConfig(cut=cut, width=config.width), image_size=config.image_size
        )
        variables = model.init(jax.random.key(config.seed))["pre"]
        pre = jax.jit(lambda x, model=model, variables=variables: model.pre(variables, x))
        for group_size in config.group_sizes:
            what = {"cut": cut, "group_size": group_size}
            if cells.has(**what):
                continue
            began = time.perf_counter()
            num_images = group_size * max(config.num_groups, 256 // group_size)
            chosen = order[:num_images]
            chunks = np.array_split(chosen, max(1, len(chosen) // 64))
            images = [pre(data.normalize(source.images(chunk))) for chunk in chunks]
            found = attack(np.concatenate(images), group_size, config.seed)
            dataset = f"{source.name} test split, {len(order)} images"
            seconds = round(time.perf_counter() - began, 1)
            cells.add({**what, "dataset": dataset, **found, "seconds": seconds})
    cells.save()


def summarize(cells: Sequence[Mapping[str, Any]]) -> report.Summary:
    """A table of all cells, and recovery over the group size."""
    if not cells:
        return (), ()
    columns = {
        "attacker_mean": Column(name="gradient ICA", format="fixed3"),
        "attacker_worst_image": Column(name="gradient ICA, worst image", format="fixed3"),
        "floor_mean": Column(name="no attack", format="fixed3"),
        "owner_mean": Column(name="owner", format="fixed3"),
        "signs_right": Column(name="signs right", format="percent"),
        "groups": Column(name="groups", format="integer"),
    }
    table = ResultTable(
        title=f"Gradient ICA: {cells[0]['dataset']}, mean matched |correlation|",
        columns=tuple(columns.values()),
        rows=report.rows(cells, lambda c: f"{_place(c['cut'])}, M = {c['group_size']}", columns),
        note="The image itself is mixed, or what the untrained stem of a network makes of it. "
        f"{report.QUICK}",
    )
    curves = [
        report.curve(
            f"{_place(cut)}, {who}",
            [(c["group_size"], c[name]) for c in cells if c["cut"] == cut],
        )
        for cut in dict.fromkeys(c["cut"] for c in cells)
        for who, name in (("gradient ICA", "attacker_mean"), ("no attack", "floor_mean"))
    ]
    chart = Chart(
        title="What gradient ICA recovers",
        x_label="group size M",
        y_label="mean matched |correlation|",
        curves=tuple(curves),
        log2_x=True,
    )
    return (table,), (chart,)


def _place(cut: int) -> str:
    return f"cut {cut}" if cut else "image"


def attack(activations: HostArray, group_size: int, seed: int) -> dict[str, Any]:
    """Mixes ``[B, H, W, C]`` in groups and reports attacker, floor and owner."""
    mix_key, attack_key = jax.random.split(jax.random.key(seed))
    mixtures, truth, owner = mix_groups(activations, group_size, mix_key)
    scored = attacks.evaluate_separation(mixtures, truth, owner, rng_key=attack_key)
    iterations, converged = scored.separation.iterations, scored.separation.converged
    return {
        "groups": len(truth),
        "activation_shape": list(truth.shape[2:]),
        "attacker_mean": round(float(scored.attacker.mean()), 4),
        "attacker_worst_group": round(float(scored.attacker.mean(1).min()), 4),
        "attacker_worst_image": round(float(scored.attacker.min()), 4),
        "floor_mean": round(float(scored.floor.mean()), 4),
        "owner_mean": round(float(scored.owner.mean()), 4),
        "signs_right": round(signs_right(scored.separation.sources, truth), 4),
        "iterations_mean": round(float(iterations.mean()), 1),
        "converged": round(float(converged.mean()), 4),
    }


def mix_groups(
    activations: HostArray, group_size: int, rng_key: Array
) -> tuple[Array, Array, Array]:
    """Mixtures, truth and the owner's recovery, each ``[G, M, H, W, C]``, rows in order."""
    num_groups = len(activations) // group_size
    key = mixing.sample_mix_key(rng_key, num_groups, group_size, shuffle=False)
    truth = jax.numpy.asarray(activations[: num_groups * group_size])
    mixed = mixing.mix(key, truth)
    recovered = mixing.unmix(key, mixed)
    mixed, truth, recovered = (mixing.group(a, group_size) for a in (mixed, truth, recovered))
    return mixed, truth, recovered


def signs_right(sources: Array, truth: Array) -> float:
    """Share of images whose sign the attack guessed."""
    pairs = zip(np.asarray(sources), np.asarray(truth), strict=True)
    return float(np.mean([metrics.matched_correlation(s, t).signs > 0 for s, t in pairs]))


if __name__ == "__main__":
    _runtime.configure()
    report.script(main, Config)
