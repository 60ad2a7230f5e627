"""Plain against encryption-aware accuracy on real faces at native size, four seeds, on a GPU."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import report
import summaries
import tyro

from facemix_jax import _runtime, data, evaluation, fitting, results, runs
from facemix_jax.data import DataConfig
from facemix_jax.defenses import DefenseConfig
from facemix_jax.models import ModelConfig
from facemix_jax.output import figure_dict
from facemix_jax.results import Column, ResultTable, Row
from facemix_jax.runs import RunConfig
from facemix_jax.training import TrainConfig

PLAIN = "plain"
PAPER = {PLAIN: 91.0, "N_pre = 1": 90.7, "N_pre = 2": 90.7, "N_pre = 3": 91.0}
"""Test accuracy in the paper's Table 2."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """ResNet-18 (width 64) on all images of a CelebA folder at 218x178: plain, FaceMix (M = 8).

    Command: ``python experiments/accuracy_gpu.py --data-dir CELEBA``; without a folder faces are
    drawn. A second call goes on where one stopped.

    Run time: five minutes on one NVIDIA H200, of which three are training and one compilation.

    Expected: plain 89.4%, FaceMix .1, .6 and .8 points above it with N_pre = 1, 2, 3.

    Attributes:
        data_dir: folder with the official CelebA files; None draws a few faces.
        cache_dir: folder for decoded images; None for the data set's default.
        workdirs: folder for the runs; finished ones are not trained again.
        rows: of ``PAPER``.
        seeds: trained at the same time.
        num_epochs: passes over the training images.
        batch_size: images in a step.
        learning_rate: its peak.
        image_size: height, width.
        width: channels after the stem.
        compute_dtype: of the network's products.
        output: JSON file.
    """

    data_dir: str | None = None
    cache_dir: str | None = None
    workdirs: Path = Path("runs/accuracy_gpu")
    rows: tuple[str, ...] = tuple(PAPER)
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    num_epochs: int = 24
    batch_size: int = 256
    learning_rate: float = 3e-3
    image_size: tuple[int, int] = (218, 178)
    width: int = 64
    compute_dtype: str = "bfloat16"
    output: Path = Path(__file__).parent / "results" / "accuracy_gpu.json"


def run_configs(config: Config, row: str) -> list[RunConfig]:
    """The runs of one row, by seed."""
    drawn = config.data_dir is None
    images = DataConfig(
        dataset="synthetic" if drawn else "celeba",
        data_dir=None if config.data_dir is None else str(Path(config.data_dir).absolute()),
        cache_dir=config.cache_dir,
        image_size=config.image_size,
        train_examples=256 if drawn else None,
        test_examples=64 if drawn else None,
        device_resident=True,
    )
    plain = row == PLAIN
    cut = 1 if plain else int(row.split()[-1])
    return [
        RunConfig(
            data=images,
            model=ModelConfig(cut=cut, width=config.width, compute_dtype=config.compute_dtype),
            defense=DefenseConfig(defense="none") if plain else DefenseConfig(group_size=8),
            train=TrainConfig(
                num_epochs=config.num_epochs,
                batch_size=config.batch_size,
                learning_rate=config.learning_rate,
                warmup_fraction=0.2,
                adam_b2=0.99,
                nesterov=True,
                seed=seed,
                log_every=100,
                checkpoint_every=1000,
            ),
        )
        for seed in config.seeds
    ]


def main(config: Config) -> None:
    """Trains and scores what the JSON file lacks, then attacks one network of each row."""
    cells = report.Cells(config.output, config, chooses=("rows", "seeds"), summarize=summarize)
    source = data.load_source(run_configs(config, PLAIN)[0].data)
    for row in config.rows:
        if not all(cells.has(row=row, part="utility", seed=seed) for seed in config.seeds):
            fit(config, row, source, cells)
    for row in config.rows:
        if row != PLAIN and not cells.has(row=row, part="separation"):
            cells.add({"row": row, "part": "separation", **attacked(config, row, source)})
    cells.save()


def fit(config: Config, row: str, source: data.Source, cells: report.Cells) -> None:
    """Trains all seeds of a row and adds their accuracies."""
    wanted = run_configs(config, row)
    workdirs = [workdir(config, row, seed) for seed in config.seeds]
    options = fitting.Options(show_progress=False)
    # At this size one run fills the device.
    states = fitting.fit_together(wanted, workdirs, source=source, method="loop", options=options)
    meter = options.meter
    speed = {"images_per_second": round(meter.images / meter.seconds)} if meter.seconds else {}
    for run_config, state in zip(wanted, states, strict=True):
        seed = run_config.train.seed
        run = runs.from_state(run_config, source, state)
        scores = evaluation.evaluate_utility(
            run.model,
            run.defense,
            run.variables,
            source,
            rng_key=jax.random.key(seed),
            batch_size=config.batch_size,
        )
        cells.add(
            {
                "row": row,
                "part": "utility",
                "seed": seed,
                "test_accuracy": round(scores.accuracy, 5),
                "balanced_accuracy": round(scores.balanced_accuracy, 5),
                "majority_accuracy": round(scores.majority_accuracy, 5),
                "setting": setting(config, source),
                **speed,
            }
        )


def attacked(config: Config, row: str, source: data.Source) -> dict[str, Any]:
    """Gradient ICA on what the first seed's network sends."""
    run = runs.load(workdir(config, row, config.seeds[0]), data_dir=config.data_dir)
    leakage = evaluation.evaluate_leakage(
        run.model, run.defense, run.variables, source, rng_key=jax.random.key(0)
    )
    return {"seed": config.seeds[0], **figure_dict(leakage.figures[0])}


def setting(config: Config, source: data.Source) -> str:
    """Images and network in words."""
    height, width = config.image_size
    train, test = (len(source.splits[split]) for split in ("train", "test"))
    images = "drawn faces" if config.data_dir is None else "CelebA subset"
    return (
        f"{images}, {train:,} training and {test:,} test images, {height}x{width}, ResNet-18 of "
        f"width {config.width}, {config.num_epochs} epochs, {config.compute_dtype}"
    )


def workdir(config: Config, row: str, seed: int) -> Path:
    """Of one run."""
    return config.workdirs / f"{row.replace(' = ', '-')}-{seed}"


def summarize(cells: Sequence[Mapping[str, Any]]) -> report.Summary:
    """Accuracy and its difference to plain, seed by seed, with what the cloud finds beside it."""
    if not cells:
        return (), ()
    columns = [
        Column(name="test accuracy", format="percent"),
        Column(name="minus plain, points", format="fixed2"),
        Column(name="balanced accuracy", format="percent"),
    ]
    note = f"M = 8. Always giving the more frequent answer: {cells[0]['majority_accuracy']:.1%}."
    attacked = any(cell["part"] == "separation" for cell in cells)
    if attacked:
        names = "gradient ICA", "no attack", "owner"
        columns += [Column(name=name, format="fixed3") for name in names]
        note += " Gradient ICA, no attack and owner: mean matched |correlation| with activations."
    rows = []
    for row in PAPER:
        accuracy = summaries.values(cells, row, "utility", "test_accuracy")
        if not accuracy:
            continue
        plain = summaries.values(cells, PLAIN, "utility", "test_accuracy")
        gaps = [100 * (accuracy[s] - plain[s]) for s in accuracy if s in plain and row != PLAIN]
        balanced = summaries.values(cells, row, "utility", "balanced_accuracy")
        shown: list[tuple[results.Value, ...]] = [
            (results.Value(value=PAPER[row] / 100, mark="paper"), mean(accuracy.values())),
            (results.Value(value=round(PAPER[row] - PAPER[PLAIN], 1), mark="paper"), mean(gaps))
            if gaps
            else (),
            (mean(balanced.values()),),
        ]
        for name in ("value", "floor", "owner") if attacked else ():
            found = summaries.values(cells, row, "separation", name)
            shown.append((mean(found.values()),) if found else ())
        rows.append(Row(label=row if row == PLAIN else f"FaceMix, {row}", cells=tuple(shown)))
    table = ResultTable(
        title=f"Plain and encryption-aware training: {cells[0]['setting']}",
        columns=tuple(columns),
        rows=tuple(rows),
        note=note,
    )
    return (table,), ()


def mean(values: Iterable[float]) -> results.Value:
    """Over seeds."""
    return results.mean_over_seeds(list(values))


if __name__ == "__main__":
    _runtime.configure()
    main(tyro.cli(Config))
