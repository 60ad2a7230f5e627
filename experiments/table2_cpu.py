"""The systems of the paper's Table 2 on real faces, at a size that two CPU cores train."""

import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import report
import tyro
from measuring import people

from facemix_jax import (
    _runtime,
    anonymizing,
    attacks,
    data,
    defenses,
    evaluation,
    fitting,
    osia,
    runs,
    slalom,
    training,
)
from facemix_jax.attacks import suite
from facemix_jax.data import DataConfig
from facemix_jax.defenses import DefenseConfig
from facemix_jax.models import ModelConfig
from facemix_jax.runs import Run, RunConfig
from facemix_jax.slalom.field import LARGEST_PRIME, PRIME

IMAGE = ModelConfig(cut=0, width=8)
ROWS: dict[str, tuple[ModelConfig, DefenseConfig]] = {
    "all on the cloud": (IMAGE, DefenseConfig(defense="none")),
    "noise N(0, 4)": (IMAGE, DefenseConfig(defense="noise", image_noise_variance=4.0)),
    "noise N(0, 8)": (IMAGE, DefenseConfig(defense="noise", image_noise_variance=8.0)),
    "blurring 16x16": (IMAGE, DefenseConfig(defense="blur", blur_size=16)),
    "blurring 8x8": (IMAGE, DefenseConfig(defense="blur", blur_size=8)),
    "face anonymizer": (ModelConfig(network="anonymizer", width=8), DefenseConfig(defense="none")),
    "FaceMix, M = 8, cut 1": (ModelConfig(width=8), DefenseConfig(group_size=8)),
}
SLALOM, OSIA = "Slalom", "Osia et al."
OSIA_CUT, COMPONENTS, CODE_NOISE, ATTRIBUTE = 7, 8, 0.5, "Male"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Every row: training, accuracy, and what attackers learn from what is sent.

    Command: ``python experiments/table2_cpu.py --data-dir CELEBA --identity-dir PEOPLE``. A cell
    that is in the JSON file is not run again.

    Run time: 1 to 4 minutes a row on two quiet CPU cores.

    Expected: as in the paper, noise and blurring cost accuracy and hide neither persons nor
    attributes; FaceMix hides both from the paper's attackers, and nothing from gradient ICA.

    Attributes:
        data_dir: folder with the official CelebA files.
        identity_dir: folder with ``images.zip`` and ``labels.csv``; see ``learned_attackers``.
        cache_dir: folder for decoded images; None for the data sets' default.
        workdirs: folder for the runs; finished ones are not trained again.
        rows: which; all of them by default.
        pix2pix: draw faces from what is sent, instead, in those of these rows that are trained.
        train_examples: training images.
        test_examples: test images.
        epochs: of training.
        steps: of each learned attacker.
        output: JSON file.
    """

    data_dir: str
    identity_dir: str
    cache_dir: str | None = None
    workdirs: Path = Path("runs/table2_cpu")
    rows: tuple[str, ...] = (*ROWS, SLALOM, OSIA)
    pix2pix: bool = False
    train_examples: int = 4096
    test_examples: int = 1024
    epochs: int = 4
    steps: int = 150
    output: Path = Path(__file__).parent / "results" / "table2_cpu.json"


def run_config(config: Config, row: str) -> RunConfig:
    """The run of one row."""
    model, defense = ROWS[row]
    return RunConfig(
        data=DataConfig(
            dataset="celeba",
            data_dir=str(Path(config.data_dir).absolute()),
            cache_dir=config.cache_dir,
            image_size=(80, 68),
            train_examples=config.train_examples,
            test_examples=config.test_examples,
        ),
        model=model,
        defense=defense,
        train=training.TrainConfig(
            num_epochs=config.epochs,
            learning_rate=5e-3,
            warmup_fraction=0.2,
            adam_b2=0.99,
            flip=False,
        ),
    )


def trained(config: Config, row: str) -> Run:
    """Trains what is missing of one row."""
    wanted, workdir = run_config(config, row), config.workdirs / row.replace(" ", "_")
    if row == "face anonymizer":
        options = anonymizing.AnonymizerConfig(identifier_width=8)
        anonymizing.fit(wanted, options, workdir, say=print)
    else:
        fitting.fit(wanted, workdir, show_progress=False)
    return runs.load(workdir)


def utility(run: Run) -> dict[str, float]:
    """Test accuracy through the defence."""
    scores = evaluation.evaluate_utility(
        run.model, run.defense, run.variables, run.source, rng_key=jax.random.key(0)
    )
    return {
        "accuracy": round(scores.accuracy, 4),
        "balanced_accuracy": round(scores.balanced_accuracy, 4),
        "majority_accuracy": round(scores.majority_accuracy, 4),
    }


def attacked(run: Run, config: Config) -> dict[str, Any]:
    """Attributes and persons from single rows, and the fast attack on what is sent."""
    found = {}
    small = people(config.identity_dir, config.cache_dir, run.source.image_size)
    for name, source in (("attributes", run.source), ("identity", small)):
        target = attacks.Target(
            model=run.model, defense=run.defense, variables=run.variables, source=source
        )
        group_size = run.defense.group_size
        rows = attacks.recorded_rows(target, config.test_examples // group_size)
        recording = attacks.record(target, rows, rng_key=jax.random.key(1))
        effort = attacks.AttackConfig(steps=config.steps)
        result = suite.ATTACKS[name].run(target, recording, jax.random.key(2), effort)
        found[name] = report.figures(result.figures)
    leakage = evaluation.evaluate_leakage(
        run.model, run.defense, run.variables, run.source, rng_key=jax.random.key(3)
    )
    found[leakage.attack] = report.figures(leakage.figures)
    return found


def drawn(run: Run, config: Config) -> dict[str, Any]:
    """Faces by Pix2Pix, and the ridge regression on the same rows where it applies."""
    began = time.perf_counter()
    target = attacks.Target(
        model=run.model, defense=run.defense, variables=run.variables, source=run.source
    )
    rows = attacks.recorded_rows(target, 128 // run.defense.group_size)
    recording = attacks.record(target, rows, rng_key=jax.random.key(1))
    effort = attacks.AttackConfig(steps=config.steps, batch_size=32)
    result = suite.ATTACKS["pix2pix"].run(target, recording, jax.random.key(2), effort)
    found: dict[str, Any] = {"pix2pix": report.figures(result.figures)}
    if suite.ATTACKS["restoration"].unsuitable(target) is None:
        # The restored activations are normalised images: on Pix2Pix's scale, too.
        restored = suite.ATTACKS["restoration"].run(target, recording, jax.random.key(2), effort)
        assert restored.recovered is not None
        for name, images in (("ridge", restored.recovered), ("as sent", recording.view.mixtures)):
            unit = 2 * np.clip(np.asarray(data.denormalize(images)), 0, 1) - 1
            truth = recording.images / np.float32(127.5) - 1
            found[f"minus squared error, {name}"] = round(-float(((unit - truth) ** 2).mean()), 4)
    return {**found, "seconds": round(time.perf_counter() - began, 1)}


class Resized:
    """A source at another size, area averages or bilinear."""

    def __init__(self, source: data.Source, image_size: tuple[int, int]) -> None:
        self._source = source
        self.name, self.image_size = source.name, image_size
        self.attribute_names, self.attributes = source.attribute_names, source.attributes
        self.identities, self.splits = source.identities, source.splits

    def __len__(self) -> int:
        return len(self._source)

    def images(self, indices: np.ndarray) -> np.ndarray:
        """Uint8 ``[n, H, W, 3]``."""
        images = np.asarray(self._source.images(indices), np.float32)
        shape = (len(images), *self.image_size, 3)
        resized = jax.image.resize(images, shape, "linear", antialias=True)
        return np.asarray(np.clip(np.rint(resized), 0, 255), np.uint8)


def slalom_cell(config: Config) -> dict[str, Any]:
    """Fixed point against float32, and gradient ICA on the first layer's field elements."""
    run = trained(config, "all on the cloud")
    rows = run.source.splits["test"]
    images = np.asarray(data.normalize(run.source.images(rows)))
    truth = run.source.attributes[rows]
    calibration = np.asarray(data.normalize(run.source.images(run.source.splits["train"][:256])))
    found: dict[str, Any] = {"float32": utility(run)["accuracy"]}
    for prime in (PRIME, LARGEST_PRIME):
        part = slalom.quantize(run.model, run.variables, calibration, prime=prime)
        logits = slalom.run_plain(part, images)
        found[f"prime {prime}"] = round(float((logits.argmax(-1) == truth).mean()), 4)
    part = slalom.quantize(run.model, run.variables, calibration)
    blinding = slalom.precompute(part, 16)
    blinded, traffic = slalom.infer(part, images[:16], slalom.honest_cloud(part), blinding)
    found["bit for bit"] = bool((blinded == slalom.run_plain(part, images[:16])).all())
    found["traffic of 16 images"] = dataclasses.asdict(traffic)
    leakage = evaluation.evaluate_leakage(
        run.model,
        slalom.first_layer(part, group_size=8),
        run.variables,
        run.source,
        rng_key=jax.random.key(3),
    )
    found[leakage.attack] = report.figures(leakage.figures)
    return found


def osia_cell(config: Config) -> dict[str, Any]:
    """A deep cut of the plain network, fine-tuned, reduced, with noise, trained on briefly."""
    plain = trained(config, "all on the cloud")
    wanted = dataclasses.replace(plain.config, model=dataclasses.replace(IMAGE, cut=OSIA_CUT))
    model = runs.build_model(wanted, plain.source)
    kinds = {**plain.variables["main"]}
    names = model.init(jax.random.key(0))["pre"]
    variables = {
        "pre": {kind: {n: kinds[kind][n] for n in names[kind]} for kind in names},
        "main": {
            kind: {n: v for n, v in kinds[kind].items() if n not in names[kind]} for kind in kinds
        },
        "post": plain.variables["post"],
    }
    siamese = osia.SiameseConfig(attribute=ATTRIBUTE, steps=config.steps)
    tuned = osia.finetune(model, variables, plain.source, siamese)
    found: dict[str, Any] = {}
    for label, start in (("simple", variables), ("Siamese", tuned)):
        reduced, fitted = osia.reduce(model, start, plain.source, components=COMPONENTS)
        for variance in (None, CODE_NOISE):
            defense = defenses.noise(variance=variance) if variance else defenses.none()
            run = Run(wanted, plain.source, reduced, defense, fitted, 0)
            scores = evaluation.evaluate_utility(
                reduced, defense, fitted, plain.source, rng_key=jax.random.key(0)
            )
            found[f"{label}, noise {variance or 0}"] = {
                **utility(run),
                ATTRIBUTE: [round(x, 4) for x in scores.per_attribute[ATTRIBUTE]],
                **attacked(run, config),
            }
    return found


def main(config: Config) -> None:
    """Runs the cells that the JSON file lacks, and writes each into it."""
    cells = report.Cells(config.output, config)
    for row in config.rows:
        if config.pix2pix and row in ROWS:
            if not cells.has(row=row, attack="pix2pix"):
                cells.add({"row": row, "attack": "pix2pix", **drawn(trained(config, row), config)})
            continue
        if cells.has(row=row):
            continue
        began = time.perf_counter()
        if row == SLALOM:
            found = slalom_cell(config)
        elif row == OSIA:
            found = osia_cell(config)
        else:
            run = trained(config, row)
            found = {**utility(run), **attacked(run, config)}
        cells.add({"row": row, **found, "seconds": round(time.perf_counter() - began, 1)})


if __name__ == "__main__":
    _runtime.configure()
    main(tyro.cli(Config))
