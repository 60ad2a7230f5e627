"""Shuffled mixtures of real faces put back into their groups, from few to thousands."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import report
from scale import SCALES, output
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist

from facemix_jax import _runtime, data, mixing, models, runs
from facemix_jax._types import HostArray
from facemix_jax._validate import UsageError
from facemix_jax.attacks import blind, grouping, robust, separation
from facemix_jax.attacks.base import Target
from facemix_jax.defenses import facemix
from facemix_jax.results import Chart, Column, ResultTable

CELLS = (
    *((2, n) for n in (20, 128, 512)),
    *((4, n) for n in (20, 128, 512)),
    *((8, n) for n in (8, 40, 128, 256, 512, 1024)),
    *((16, n) for n in (16, 64)),
)
"""Group size and number of groups."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Shuffles mixtures of CelebA images (all splits), regroups and separates them.

    Command: ``python experiments/regroup.py --data-dir PATH_TO_CELEBA --workdir RUN``; with
    ``--scale smoke`` a few groups of drawn faces are regrouped, and no files are needed.

    Run time: about 9 minutes on two CPU cores, a third of it for 8,192 mixtures, which take 9 GB of
    memory in a call of their own and twice that after the others; cells that the output holds are
    not run again.

    Expected: groups of 8 images are all found again, up to 8,192 mixtures, and separated at a mean
    matched |correlation| of .999 (no attack .67); after the trained stem 85% or more of mixtures.

    Attributes:
        data_dir: folder with the official CelebA files; not needed at ``smoke``.
        scale: ``cpu``, or ``smoke``, which takes the place of the image size and the largest cell.
        workdir: a run with cut 1 on these images, for the trained stem; None leaves it out.
        cache_dir: folder for decoded images; None for the data set's default.
        image_size: height, width.
        most: mixtures of a cell; larger ones are left out.
        separated: groups, drawn at random, that the end-to-end chain separates and scores in
            cells of more than 1,024 mixtures; in smaller ones it is all.
        seed: of images, keys and attacks.
        output: JSON file; None for the scale's in ``results``.
    """

    data_dir: str | None = None
    scale: Literal["smoke", "cpu"] = "cpu"
    workdir: Path | None = None
    cache_dir: str | None = None
    image_size: tuple[int, int] = (109, 89)
    most: int = 8192
    separated: int = 40
    seed: int = 0
    output: Path | None = None


def at_scale(config: Config) -> Config:
    """The configuration with the scale's sizes and place."""
    if config.scale == "smoke":
        return dataclasses.replace(
            config,
            data_dir=None,
            image_size=SCALES["smoke"].image_size,
            most=64,
            output=config.output or output("regroup", "smoke"),
        )
    if config.data_dir is None:
        raise UsageError("The scale 'cpu' needs --data-dir, CelebA's folder. Or use 'smoke'.")
    results = Path(__file__).parent / "results"
    return dataclasses.replace(config, output=config.output or results / "regroup.json")


def main(config: Config) -> None:
    """Runs the cells that are missing; writes JSON after each."""
    config = at_scale(config)
    assert config.output is not None  # at_scale says where
    source = report.faces(config.data_dir, config.cache_dir, config.image_size)
    model = models.build(models.ModelConfig(cut=0), image_size=config.image_size)
    settings: dict[str, tuple[Any, Any]] = {"image": (model, model.init(jax.random.key(0)))}
    which: dict[str, str] = {}
    if config.workdir is not None:
        run = runs.load(config.workdir, data_dir=config.data_dir)
        settings["trained stem"] = run.model, run.variables
        which["trained stem"] = report.run_hash(run)
    cells = report.Cells(
        config.output,
        config,
        images=report.celeba_images(config.data_dir),
        chooses=("most",),
        summarize=summarize,
    )
    for group_size, num_groups in sorted(CELLS, key=lambda cell: cell[0] * cell[1]):
        for name, (model, variables) in settings.items():
            what = {"setting": name, "group_size": group_size, "groups": num_groups}
            too_many = group_size * num_groups > config.most
            if too_many or cells.has(which.get(name), **what):
                continue
            target = Target(
                model=model,
                defense=facemix(group_size=group_size),
                variables=variables,
                source=source,
            )
            found = regrouped(target, num_groups, config)
            cells.add({**what, **found, "run_hash": which.get(name)})
    cells.save()


def summarize(cells: Sequence[Mapping[str, Any]]) -> report.Summary:
    """A table of all cells, and what was regrouped over the number of mixtures."""
    if not cells:
        return (), ()
    ways = {
        "best_groups": ("share_right", "average_linkage_of_energies"),
        "best_rows": ("chain", "joint_ica"),
    }
    flat = [
        {**c, **{what: max(c[n] for n in names if n in c) for what, names in ways.items()}}
        for c in cells
    ]
    groups, rows = "groups, strongest", "recovered, strongest"
    columns = {
        "mixtures": Column(name="mixtures", format="integer"),
        "share_right": Column(name="put into their groups", format="percent", strongest=groups),
        "average_linkage_of_energies": Column(
            name="by average linkage", format="percent", strongest=groups
        ),
        "best_groups": Column(name=groups, format="percent"),
        "chain": Column(name="regrouped, then separated", format="fixed3", strongest=rows),
        "joint_ica": Column(name="all separated at once", format="fixed3", strongest=rows),
        "best_rows": Column(name=rows, format="fixed3"),
        "chain_worst_image": Column(name="chain, worst image", format="fixed3", strongest=rows),
        "floor": Column(name="no attack", format="fixed3"),
    }
    table = ResultTable(
        title="Shuffled mixtures put back into their groups, and separated",
        columns=tuple(columns.values()),
        rows=report.rows(
            flat, lambda c: f"{c['setting']}, {c['groups']} groups of {c['group_size']}", columns
        ),
        note="Share of mixtures in their group, and mean matched |correlation|. The owner, who "
        "knows the order and the matrices, has every group and recovers 1.000.",
    )
    curves = [
        report.curve(f"{setting}, M = {size}", sorted(points))
        for setting, size in dict.fromkeys((c["setting"], c["group_size"]) for c in cells)
        if (
            points := [
                (c["mixtures"], c["best_groups"])
                for c in flat
                if (c["setting"], c["group_size"]) == (setting, size)
            ]
        )
    ]
    chart = Chart(
        title="Mixtures put into their groups",
        x_label="mixtures sent at once",
        y_label="share in the right group",
        curves=tuple(curves),
        log2_x=True,
    )
    return (table,), (chart,)


def regrouped(target: Target, num_groups: int, config: Config) -> dict[str, Any]:
    """One cell: shuffle, regroup, separate groups that were found, score."""
    size = target.defense.group_size
    count = size * num_groups
    rows = np.random.default_rng(config.seed).permutation(len(target.source))[:count]
    keys = jax.random.split(jax.random.key(config.seed), 4)
    pre = jax.jit(lambda x: target.model.pre(target.variables["pre"], x))
    chunks = np.array_split(rows, -(-count // 128))
    truth = jnp.concatenate([pre(data.normalize(target.source.images(c))) for c in chunks])
    mix_key = mixing.sample_mix_key(keys[0], num_groups, size)
    sent = mixing.mix(mix_key, truth)
    true_groups = np.asarray(mix_key.order) // size

    began = time.perf_counter()
    found = grouping.regroup(sent, size, rng_key=keys[1])
    seconds = time.perf_counter() - began
    match = grouping.match_groups(found, true_groups)

    separate = robust.choose(target, keys[2]).separate
    # Images of wrongly split groups are matched wherever they went; matching thousands would be
    # slow, and there only some groups are scored, each against its own: the first ones found are
    # those that hang together best.
    all_of_them = count <= 1024
    some = np.arange(num_groups)
    if not all_of_them:
        some = np.random.default_rng(config.seed).permutation(num_groups)[: config.separated]
    together = jnp.stack([sent[np.flatnonzero(found == g)] for g in some])
    sources = separate(together, rng_key=keys[3]).sources
    truths = mixing.group(truth, size)[match.truth_of[some]]
    sets = [together, sources, truths]
    if all_of_them:
        sets = [x.reshape(1, count, *x.shape[2:]) for x in sets]
    floor, chain = (blind.recovery(x, sets[2]) for x in sets[:2])
    result = {
        "mixtures": count,
        "share_right": round(match.share_right, 5),
        "chain": round(float(chain.mean()), 4),
        "chain_worst_image": round(float(chain.min()), 4),
        "floor": round(float(floor.mean()), 4),
        "separated_groups": len(together),
        "seconds_regroup": round(seconds, 1),
    }
    if all_of_them:
        plain = grouping.match_groups(linked_energies(np.asarray(sent), num_groups), true_groups)
        result["average_linkage_of_energies"] = round(plain.share_right, 5)
    if count <= 64:
        joint = separation.separate(sent[None], rng_key=keys[3]).sources
        result["joint_ica"] = round(float(blind.recovery(joint, truth[None]).mean()), 4)
    return result


def linked_energies(sent: HostArray, num_groups: int) -> HostArray:
    """The plain way, for comparison: average linkage on 1 - correlation of log energy maps."""
    down, across = np.diff(sent, axis=1)[:, :, :-1], np.diff(sent, axis=2)[:, :-1]
    maps = np.log((down**2 + across**2).sum(-1) + 1e-6).reshape(len(sent), -1)
    maps = maps - maps.mean(0)
    tree = linkage(pdist(maps, "correlation"), "average")
    return fcluster(tree, num_groups, "maxclust") - 1


if __name__ == "__main__":
    _runtime.configure()
    report.script(main, Config)
