"""What training changes about linearity: random, plain and encryption-aware, on real faces."""

import dataclasses
import functools
from pathlib import Path
from typing import Any, Literal

import jax
import report
from linearity_summary import FRESH, GROUP_SIZE, NETWORK, RELATION, summarize
from scale import SCALES, data_config, output
from scipy import stats

from facemix_jax import (
    _runtime,
    data,
    defenses,
    evaluation,
    fitting,
    linearity,
    mixing,
    models,
    runs,
)
from facemix_jax import commands_linearity as figures
from facemix_jax._types import Array
from facemix_jax.defenses import DefenseConfig
from facemix_jax.linearity import precision, study
from facemix_jax.models import ModelConfig
from facemix_jax.runs import Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """ResNet-18 of width 16 at 109x89, cut 1: the networks of ``experiments/accuracy_cpu.py``.

    Command: ``python experiments/linearity.py --data-dir PATH_TO_CELEBA``, after
    ``experiments/accuracy_cpu.py``, whose work directories it reads; with ``--scale smoke`` tiny
    networks are trained on drawn faces first, and nothing else is needed.

    Run time: about 2 minutes on two CPU cores; what the output holds is not run again.

    Expected: relative unmix error of the features near 1.2 for the plain and the encryption-aware
    network, with the floor of any such network at .71; numbers and reading in
    ``docs/linearity.md``.

    Attributes:
        data_dir: folder with the official CelebA files; not needed at ``smoke``.
        scale: ``cpu``, or ``smoke``, which takes the place of all sizes below.
        workdirs: folder with the trained runs ``plain-0``, ``facemix-0``, ``facemix-centred-0``.
        num_images: test images mixed in the error studies.
        num_keys: keys of each error.
        group_sizes: ``M`` at which accuracy is set against the error.
        seed: of keys and of the random network.
        output: JSON file; None for the scale's in ``results``.
        figures: folder for figures and CSV tables; None for none.
    """

    data_dir: str | None = None
    scale: Literal["smoke", "cpu"] = "cpu"
    workdirs: Path = Path("runs/accuracy_cpu")
    num_images: int = 64
    num_keys: int = 8
    group_sizes: tuple[int, ...] = (2, 8, 32)
    seed: int = 0
    output: Path | None = None
    figures: Path | None = None


TRAINED = {"plain": "plain-0", "facemix": "facemix-0", "facemix, centred": "facemix-centred-0"}


def swept(config: Config) -> tuple[str, ...]:
    """Networks whose error is also measured in four dtypes, which takes long to compile."""
    return ("facemix",) if config.scale == "smoke" else ("plain", "facemix")


def at_scale(config: Config) -> Config:
    """The configuration with the scale's sizes and places."""
    if config.scale == "smoke":
        return dataclasses.replace(
            config,
            data_dir=None,
            workdirs=config.workdirs / "smoke",
            num_images=16,
            num_keys=1,
            group_sizes=(2,),
            output=config.output or output("linearity", "smoke"),
        )
    results = Path(__file__).parent / "results"
    return dataclasses.replace(config, output=config.output or results / "linearity.json")


def train_tiny(workdirs: Path) -> None:
    """The three networks of ``TRAINED`` at the scale ``smoke``."""
    small = SCALES["smoke"]
    for name, folder in TRAINED.items():
        defense = "none" if name == "plain" else "facemix"
        wanted = runs.RunConfig(
            data=data_config(small, None, None),
            model=ModelConfig(width=small.width, centre="centred" in name),
            defense=DefenseConfig(defense=defense, group_size=GROUP_SIZE),
            train=small.train,
        )
        fitting.fit(wanted, workdirs / folder, show_progress=False)


def main(config: Config) -> None:
    """Examines the networks that are missing, and sets their error against accuracy."""
    config = at_scale(config)
    assert config.output is not None  # at_scale says where
    cells = report.Cells(
        config.output,
        config,
        images=report.celeba_images(config.data_dir),
        chooses=("figures",),
        summarize=summarize,
    )
    if config.scale == "smoke":
        train_tiny(config.workdirs)
    parts = {}
    for name, folder in TRAINED.items():
        part = runs.load(config.workdirs / folder, data_dir=config.data_dir)
        own = {k: v for k, v in part.variables["main"].items() if k != "clean_stats"}
        parts[name] = part._replace(variables={**part.variables, "main": own})
    plain = parts["plain"]
    drawn = plain.model.init(jax.random.key(config.seed))
    parts = {"random": plain._replace(variables=drawn, step=0), **parts}

    for name, part in parts.items():
        which = report.run_hash(part)
        if not cells.has(which, part=NETWORK, network=name):
            found = examine(config, name, part)
            cells.add({"part": NETWORK, "network": name, **found, "run_hash": which})
    networks = {c["network"]: c for c in cells.cells if c["part"] == NETWORK}
    if not cells.has(part=RELATION):
        cells.add({"part": RELATION, **relation(networks)})
    if not cells.has(part=FRESH):
        cells.add({"part": FRESH, "rows": fresh(config, plain)})
    cells.save()
    if config.figures is not None:
        for name in swept(config):
            spec = parts[name].model.spec
            facts = {"network": spec.name, "cut": spec.cut, "trained_steps": parts[name].step}
            figures.write_files(
                config.figures / name, {**networks[name], **facts, "group_size": GROUP_SIZE}
            )


def activations(part: Run, num_images: int) -> Array:
    """What pre makes of the first test images."""
    batch = next(iter(data.eval_batches(part.source, split="test", batch_size=num_images)))
    return part.model.pre(part.variables["pre"], data.normalize(batch.images))


def examine(config: Config, name: str, part: Run) -> dict[str, Any]:
    """One network: everything of ``study``, families, and accuracy at several group sizes."""
    x = activations(part, config.num_images)
    rng_key = jax.random.key(config.seed)
    result: dict[str, Any] = study.examine(
        part.model,
        part.variables,
        x,
        rng_key=rng_key,
        group_size=GROUP_SIZE,
        num_keys=config.num_keys,
    )
    main = functools.partial(part.model.main.apply, part.variables["main"])
    post = functools.partial(part.model.post.apply, part.variables["post"])

    def both(group_size: int, family: mixing.Family = mixing.haar) -> dict[str, Any]:
        errors = [
            linearity.measure(
                main,
                x,
                rng_key=rng_key,
                group_size=group_size,
                num_keys=config.num_keys,
                family=family,
                read=read,
            )
            for read in (lambda features: features, post)
        ]
        return {
            "group_size": group_size,
            "features": round(errors[0].mean, 4),
            "logits": round(errors[1].mean, 4),
        }

    families = dict(mixing.FAMILIES) | {
        f"condition number {number:g}": precision.conditioned(number) for number in (1, 10, 100)
    }
    result["families"] = [
        {"family": label, **both(GROUP_SIZE, family)} for label, family in families.items()
    ]
    if part.step:
        clean = utility(part, defenses.none())
        result["accuracy"] = {"clean": clean, "mixed": []}
        for group_size in config.group_sizes:
            row = both(group_size) | utility(part, defenses.facemix(group_size=group_size))
            result["accuracy"]["mixed"].append(row)
    if name in swept(config):
        result["sweep"] = study.sweep(
            functools.partial(in_dtype, part),
            part.variables["main"],
            x,
            rng_key=rng_key,
            group_sizes=(GROUP_SIZE,) if config.scale == "smoke" else (2, 8, 32),
        )
    return result


def in_dtype(part: Run, dtype: Any) -> models.SplitModel:
    """The run's network in another dtype."""
    return models.build(part.config.model, image_size=part.source.image_size, dtype=dtype)


def utility(part: Run, defense: defenses.Defense) -> dict[str, float]:
    """Accuracy of all test images through a defence."""
    scores = evaluation.evaluate_utility(
        part.model, defense, part.variables, part.source, rng_key=jax.random.key(0)
    )
    return {
        "accuracy": round(scores.accuracy, 4),
        "balanced_accuracy": round(scores.balanced_accuracy, 4),
    }


def relation(networks: dict[str, Any]) -> dict[str, Any]:
    """Rank correlation of errors with the balanced accuracy that mixing costs."""
    rows = []
    for name, network in networks.items():
        if "accuracy" in network:
            clean = network["accuracy"]["clean"]["balanced_accuracy"]
            for row in network["accuracy"]["mixed"]:
                lost = round(clean - row["balanced_accuracy"], 4)
                rows.append({"network": name, **row, "balanced_accuracy_lost": lost})
    lost_all = [row["balanced_accuracy_lost"] for row in rows]
    return {
        "rows": rows,
        "rank_correlation": {
            read: round(float(stats.spearmanr([r[read] for r in rows], lost_all).statistic), 3)
            for read in ("features", "logits")
        },
    }


def fresh(config: Config, plain: Run) -> list[dict[str, Any]]:
    """Freshly drawn networks of several widths, cuts and norms, BatchNorm at its start values."""
    smoke = config.scale == "smoke"
    variants = [
        *(ModelConfig(width=width) for width in ((4,) if smoke else (4, 8, 32))),
        *(ModelConfig(width=16, cut=cut) for cut in ((9,) if smoke else (0, 3, 5, 7, 9))),
        ModelConfig(width=16, norm="none"),
    ]
    rows = []
    for variant in variants:
        model = models.build(variant, image_size=plain.source.image_size)
        variables = model.init(jax.random.key(config.seed))
        x = activations(plain._replace(model=model, variables=variables), 32)
        error = linearity.measure(
            functools.partial(model.main.apply, variables["main"]),
            x,
            rng_key=jax.random.key(config.seed),
            group_size=GROUP_SIZE,
            num_keys=4,
        )
        rows.append(
            {
                "width": variant.width,
                "cut": variant.cut,
                "norm": variant.norm,
                "features": round(error.mean, 4),
            }
        )
    return rows


if __name__ == "__main__":
    _runtime.configure()
    report.script(main, Config)
