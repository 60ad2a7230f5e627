"""Aids to linearity that need training: what each changes of the unmix error and the accuracy."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import measuring
import numpy as np
import places
import report
import scale as scales
from scipy import stats
from systems import System, facemix

from facemix_jax import _runtime, data, defenses, evaluation, linearity, models, results
from facemix_jax._types import Array
from facemix_jax._validate import one_of
from facemix_jax.defenses import DefenseConfig
from facemix_jax.results import Column, ResultTable, Row, Value
from facemix_jax.runs import Run


class Aid(NamedTuple):
    """What is trained differently; the defaults are FaceMix as it is.

    Attributes:
        model: fields of ``ModelConfig``.
        isometry: as in ``TrainConfig``.
        mixes: whether training does; otherwise mixing only finds the network as it is.
    """

    model: Mapping[str, Any] = {}
    isometry: float = 0.0
    mixes: bool = True


NONE = "no aid"
AIDS: dict[str, Aid] = {
    NONE: Aid(),
    "isometry": Aid(isometry=0.01),
    "PReLU": Aid({"activation": "prelu"}),
    "shifted ReLU": Aid({"activation": "shifted"}),
    "BatchNorm without shifts": Aid({"norm": "unshifted"}),
    "no constants": Aid({"norm": "scale"}),
    "no constants, PReLU": Aid({"norm": "scale", "activation": "prelu"}),
    "centred": Aid({"centre": True}),
    "trained plainly": Aid(mixes=False),
    "PReLU, trained plainly": Aid({"activation": "prelu"}, mixes=False),
    "shifted ReLU, trained plainly": Aid({"activation": "shifted"}, mixes=False),
}
"""``no constants`` is the norm ``scale``. Centring is known from ``linearity.py``."""

GROUP_SIZE = 8
LARGER = (NONE, "PReLU", "shifted ReLU")
REPEATED = ((NONE, "PReLU", "shifted ReLU"), ("shifted ReLU",))
"""Aids trained with every seed, with groups of 8 and with larger ones."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Trains FaceMix at N_pre = 1 with each aid, and measures its linearity and what it is worth.

    Command: ``python experiments/linearity_aids.py --data-dir CELEBA``, or ``--scale smoke``, which
    needs no files. Networks that ``table2.py`` and ``figure4.py`` trained are not trained again,
    finished cells not run again.

    Run time: 80 seconds of processor time for three networks of ``smoke``, which has two now;
    ``cpu`` was not timed.

    Expected: tables and reading in ``docs/linearity.md``.

    Attributes:
        scale: ``smoke`` or ``cpu``; see ``scale.py``.
        data_dir: folder with the official CelebA files; none for ``smoke``.
        cache_dir: folder for decoded images; None for the data sets' default.
        workdirs: folder for the runs; finished ones are not trained again.
        aids: trained with groups of 8; None for all, of which ``smoke`` has two.
        larger: aids also trained with the larger group size; None for no aid, PReLU and shifted
            ReLU, at ``smoke`` for none.
        larger_group_size: that size.
        seeds: of no aid, PReLU and shifted ReLU, with larger groups of shifted ReLU; all others
            have the first alone, as all of ``smoke`` have.
        num_images: test images mixed in the error studies.
        num_keys: keys of each error.
        output: JSON file; None for ``results/linearity_aids_SCALE.json``.
    """

    scale: Literal["smoke", "cpu"] = "cpu"
    data_dir: str | None = None
    cache_dir: str | None = None
    workdirs: Path = Path("runs")
    aids: tuple[str, ...] | None = None
    larger: tuple[str, ...] | None = None
    larger_group_size: int = 32
    seeds: tuple[int, ...] = (0, 1)
    num_images: int = 64
    num_keys: int = 8
    output: Path | None = None


def wanted(config: Config) -> list[tuple[str, int, int]]:
    """Aid, group size and seed of every cell that is asked for.

    Raises:
        UsageError: there is no such aid.
    """
    smoke = config.scale == "smoke"
    aids = config.aids or ((NONE, "no constants, PReLU") if smoke else tuple(AIDS))
    larger = config.larger or (() if smoke else LARGER)
    for name in (*aids, *larger):
        one_of(AIDS, aid=name)
    sizes = (GROUP_SIZE, config.larger_group_size)
    chosen = tuple(zip(sizes, (aids, larger), REPEATED, strict=True))
    first, *others = config.seeds[:1] if smoke else config.seeds
    cells = [(name, size, first) for size, names, _ in chosen for name in names]
    return cells + [
        (name, size, seed)
        for seed in others
        for size, names, repeated in chosen
        for name in names
        if name in repeated
    ]


def main(config: Config) -> None:
    """Runs the cells that the JSON file lacks, and writes each into it."""
    asked = wanted(config)
    cells = report.Cells(
        config.output or scales.output("linearity_aids", config.scale),
        config,
        name=f"linearity aids, scale {config.scale}",
        images=report.celeba_images(None if config.scale == "smoke" else config.data_dir),
        chooses=("aids", "larger", "larger_group_size", "seeds"),
        summarize=summarize,
    )
    for name, group_size, seed in asked:
        what = {"row": name, "group_size": group_size, "seed": seed, "scale": config.scale}
        if not cells.has(**what):
            cells.add({**what, **measure(config, name, group_size, seed)})
    cells.save()


def measure(config: Config, name: str, group_size: int, seed: int) -> dict[str, Any]:
    """One network: accuracy, unmix error, its causes, and what the cloud finds."""
    aid, scale = AIDS[name], scales.SCALES[config.scale]
    plain = facemix(group_size, 1)
    trained_with = plain.defense if aid.mixes else DefenseConfig(defense="none")
    system = System(dataclasses.replace(plain.model, **aid.model), trained_with)
    scale = scales.trained_otherwise(scale, isometry=aid.isometry)
    # What is trained without aid is the network of the paper's tables.
    place = places.place(config, runs_of="table2" if name == NONE else "linearity_aids")
    row = f"FaceMix, M = {group_size}, N_pre = 1" + (f", {name}" if name != NONE else "")
    run = measuring.trained(row, system, scale, place, seed)
    run = run._replace(defense=defenses.build(plain.defense))
    ica = measuring.separation(run, scale, place, seed, attack="gradient_ica")
    return {
        "mixed": utility(run, run.defense, seed),
        "clean": utility(run, defenses.none(), seed),
        **errors(config, run, group_size, seed),
        "isometry_penalty": float(models.isometry_penalty(run.variables["main"]["params"])),
        "learnt": learnt(run),
        "gradient_ica": ica,
        "separation": measuring.separation(run, scale, place, seed),
    }


def learnt(run: Run) -> dict[str, list[float]]:
    """Quartiles over main's channels of what activations learnt, layer by layer."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(run.variables["main"]["params"]):
        if path[-1].key in ("slope", "threshold"):
            name = ".".join(str(part.key) for part in path)
            quartiles = np.quantile(np.asarray(leaf), (0.25, 0.5, 0.75))
            found[name] = [round(float(q), 3) for q in quartiles]
    return found


def utility(run: Run, defense: defenses.Defense, seed: int) -> dict[str, float]:
    """Accuracy of all test images through a defence."""
    scores = evaluation.evaluate_utility(
        run.model, defense, run.variables, run.source, rng_key=jax.random.key(seed)
    )
    return {
        "accuracy": round(scores.accuracy, 5),
        "balanced_accuracy": round(scores.balanced_accuracy, 5),
        "majority_accuracy": round(scores.majority_accuracy, 5),
    }


def errors(config: Config, run: Run, group_size: int, seed: int) -> dict[str, Any]:
    """The unmix error of features and logits, and of features by cause; means over keys."""
    batch = next(iter(data.eval_batches(run.source, split="test", batch_size=config.num_images)))
    x: Array = run.model.pre(run.variables["pre"], data.normalize(batch.images))
    options: dict[str, Any] = {
        "rng_key": jax.random.key(seed),
        "group_size": group_size,
        "num_keys": config.num_keys,
    }
    main = functools.partial(run.model.main.apply, run.variables["main"])
    post = functools.partial(run.model.post.apply, run.variables["post"])
    features = linearity.measure(main, x, **options)
    logits = linearity.measure(main, x, read=post, **options)
    causes = linearity.cause_errors(run.model.main.apply, run.variables["main"], x, **options)
    alone = dict(zip(causes.causes, causes.alone.mean(0), strict=True))
    return {
        "features": round(features.mean, 4),
        "features_deviation": round(features.standard_deviation, 4),
        "logits": round(logits.mean, 4),
        "alone": {cause: round(float(error), 4) for cause, error in alone.items()},
        "interaction": round(float(causes.interaction.mean()), 4),
        "rounding": float(f"{float(causes.rounding.mean()):.1e}"),
    }


Cells = Sequence[Mapping[str, Any]]


def summarize(cells: Cells) -> report.Summary:
    """Errors and accuracy, what the cloud finds, and how one tells the other."""
    if not cells:
        return (), ()
    return [linearity_table(cells), separation_table(cells), relation_table(cells)], ()


def lost(cell: Mapping[str, Any], score: str) -> float:
    """What mixing costs the same network, in points."""
    return float(100 * (cell["clean"][score] - cell["mixed"][score]))


def _table(cells: Cells, columns: Mapping[Column, Any], **what: str) -> ResultTable:
    """A row for each aid and group size, over its seeds."""
    by_row: dict[str, list[Mapping[str, Any]]] = {}
    for cell in cells:
        by_row.setdefault(f"{cell['row']}, M = {cell['group_size']}", []).append(cell)
    rows = []
    for label, own in by_row.items():
        found: list[tuple[Value, ...]] = []
        for read in columns.values():
            values = [value for value in map(read, own) if value is not None]
            found.append((results.mean_over_seeds(values),) if values else ())
        rows.append(Row(label=label, cells=tuple(found)))
    return ResultTable(columns=tuple(columns), rows=tuple(rows), **what)


def linearity_table(cells: Cells) -> ResultTable:
    """Accuracy beside errors."""
    columns = {
        Column(name="mixed", format="percent"): lambda c: c["mixed"]["accuracy"],
        Column(name="nothing mixed", format="percent"): lambda c: c["clean"]["accuracy"],
        Column(name="balanced, mixed", format="percent"): lambda c: c["mixed"]["balanced_accuracy"],
        Column(name="balanced, lost, points", format="fixed2"): lambda c: lost(
            c, "balanced_accuracy"
        ),
        Column(name="error, logits", format="fixed3"): lambda c: c["logits"],
        Column(name="error, features", format="fixed3"): lambda c: c["features"],
        Column(name="shifts alone", format="fixed3"): lambda c: c["alone"].get("shift"),
        Column(name="activations alone", format="fixed3"): lambda c: c["alone"].get("relu"),
        Column(name="interaction", format="fixed3"): lambda c: c["interaction"],
        Column(name="isometry penalty", format="fixed2"): lambda c: c["isometry_penalty"],
    }
    drawn = cells[0]["scale"] == "smoke"
    scale = scales.SCALES["smoke" if drawn else "cpu"]
    height, width = scale.image_size
    majority = cells[0]["mixed"]["majority_accuracy"]
    return _table(
        cells,
        columns,
        title=f"Aids to linearity: {'drawn faces' if drawn else 'CelebA'}, {height}x{width}, "
        f"ResNet-18 of width {scale.width}, cut 1, {scale.train_examples:,} training images, "
        f"{scale.train.num_epochs} epochs",
        note="Unmix error: relative, 0 is exact; that of the features by cause. It says nothing of "
        f"privacy. Always the more frequent answer: {majority:.1%}, balanced 50%.",
    )


def separation_table(cells: Cells) -> ResultTable:
    """What the cloud makes of the same networks' mixtures."""
    columns = {
        Column(name="gradient ICA", format="fixed3", strongest="strongest attack"): lambda c: c[
            "gradient_ica"
        ]["value"],
        Column(name="strongest attack", format="fixed3"): lambda c: max(
            c["gradient_ica"]["value"], c["separation"]["value"]
        ),
        Column(name="no attack", format="fixed3"): lambda c: c["gradient_ica"]["floor"],
        Column(name="owner", format="fixed3"): lambda c: c["gradient_ica"]["owner"],
    }
    return _table(
        cells,
        columns,
        title="Activations that the cloud recovers from the mixtures of these networks",
        note="Mean matched |correlation|. A smaller unmix error hides nothing.",
    )


def relation_table(cells: Cells) -> ResultTable:
    """Rank correlation of errors with what mixing costs."""
    scores = {
        "balanced accuracy lost by mixing": lambda c: lost(c, "balanced_accuracy"),
        "accuracy lost by mixing": lambda c: lost(c, "accuracy"),
        "balanced accuracy, mixed": lambda c: c["mixed"]["balanced_accuracy"],
        "accuracy, mixed": lambda c: c["mixed"]["accuracy"],
    }
    rows = []
    for label, read in scores.items():
        found: list[tuple[Value, ...]] = []
        for error in ("features", "logits"):
            both = [cell[error] for cell in cells], [read(cell) for cell in cells]
            value = float(stats.spearmanr(*both).statistic) if len(cells) > 2 else None
            found.append(() if value is None else (Value(value=value, mark="measured"),))
        rows.append(Row(label=label, cells=tuple(found)))
    columns = (
        Column(name="error, features", format="fixed2"),
        Column(name="error, logits", format="fixed2"),
    )
    return ResultTable(
        title=f"Rank correlation with the unmix error, n = {len(cells)} networks",
        columns=columns,
        rows=tuple(rows),
        note="Spearman's, over all networks of the table, seeds apart.",
    )


if __name__ == "__main__":
    _runtime.configure()
    report.script(main, Config)
