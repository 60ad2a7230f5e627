"""Whether drawn faces can stand in for real ones: attributes, persons, and defences."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import report

from facemix_jax import _runtime, data, defenses, evaluation, fitting, inference, runs, training
from facemix_jax._types import Array, HostArray
from facemix_jax.data import face_model, synthetic
from facemix_jax.defenses import DefenseConfig
from facemix_jax.models import ModelConfig, resnet18
from facemix_jax.output import figure_dicts
from facemix_jax.results import Column, ResultTable, Row
from facemix_jax.runs import RunConfig
from facemix_jax.training import TrainConfig

IMAGE_SIZE = (109, 89)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """ResNet-18 of width 16 on drawn faces at 109x89.

    Command: ``python experiments/synthetic_faces.py``

    Run time: about 12 minutes on two CPU cores.

    Expected: at least 95% balanced accuracy on every drawn attribute of people not seen in
    training; 100 people recognised at 90% or more from 20 pictures each; and, as on CelebA,
    plain training above FaceMix and gradient ICA at .99 of FaceMix's activations.

    Attributes:
        workdirs: folder for the runs; finished ones are not trained again.
        train_examples: pictures for the attributes.
        test_examples: pictures of other people.
        epochs: over them.
        people: to be told apart.
        pictures: of each person to learn from; five more are recognised.
        identity_epochs: over these.
        parts: what to run.
        output: JSON file.
    """

    workdirs: Path = Path("runs/synthetic_faces")
    train_examples: int = 32768
    test_examples: int = 8192
    epochs: int = 5
    people: int = 100
    pictures: int = 20
    identity_epochs: int = 30
    parts: tuple[str, ...] = ("attributes", "identities", "defences")
    output: Path = Path(__file__).parent / "results" / "synthetic_faces.json"


PLAIN = TrainConfig(
    learning_rate=5e-3,
    warmup_fraction=0.2,
    adam_b2=0.99,
    weight_decay=0.05,
    nesterov=True,
    flip=True,
    checkpoint_every=100,
)


def attributes(config: Config) -> dict[str, Any]:
    """Balanced accuracy of each attribute, decided at its frequency in training.

    The network is trained for plain accuracy, and so hardly ever answers yes to what is rare.
    Compared with the odds in training instead of with 1, its answer is the best for balanced
    accuracy; nothing is fitted to the test pictures.
    """
    run_config = RunConfig(
        data=data.DataConfig(
            train_examples=config.train_examples, test_examples=config.test_examples
        ),
        model=ModelConfig(width=16),
        defense=DefenseConfig(defense="none"),
        train=dataclasses.replace(PLAIN, num_epochs=config.epochs),
    )
    source = data.load_source(run_config.data)
    state = fitting.fit(run_config, config.workdirs / "attributes", source=source)
    run = runs.from_state(run_config, source, state)
    predict = jax.jit(
        lambda images: inference.infer(
            run.model, run.defense, run.variables, jax.random.key(0), data.normalize(images)
        )
    )
    rates = source.attributes[source.splits["train"]].mean(0)
    odds = np.log(rates) - np.log1p(-rates)
    hits, counts = np.zeros((2, len(rates))), np.zeros((2, len(rates)))
    for batch in data.eval_batches(source, split="test", batch_size=128):
        logits = np.asarray(predict(batch.images))[batch.mask]
        answers = logits[..., 1] - logits[..., 0] > odds
        for value in (0, 1):
            is_value = batch.attributes[batch.mask] == value
            hits[value] += (is_value & (answers == value)).sum(0)
            counts[value] += is_value.sum(0)
    balanced = dict(zip(source.attribute_names, (hits / counts).mean(0).round(4), strict=True))
    drawn = {n: float(v) for n, v in balanced.items() if n not in face_model.NOT_DRAWN}
    return {
        "train": config.train_examples,
        "test": config.test_examples,
        "balanced_accuracy": drawn,
        "lowest": min(drawn.items(), key=lambda item: item[1]),
        "not_drawn": {n: float(balanced[n]) for n in face_model.NOT_DRAWN},
    }


@dataclasses.dataclass(frozen=True)
class _Persons:
    """A source whose only attribute is who is shown."""

    source: data.Source
    split: data.IdentitySplit
    name: str = "persons"
    image_size: tuple[int, int] = IMAGE_SIZE
    attribute_names: tuple[str, ...] = ("person",)

    @property
    def attributes(self) -> HostArray:
        classes = np.zeros((len(self.source), 1), np.int16)
        classes[self.split.train, 0] = self.split.train_classes
        classes[self.split.test, 0] = self.split.test_classes
        return classes

    @property
    def identities(self) -> HostArray:
        return self.source.identities

    @property
    def splits(self) -> dict[str, HostArray]:
        return {"train": self.split.train, "test": self.split.test}

    def __len__(self) -> int:
        return len(self.source)

    def images(self, indices: HostArray) -> HostArray | Array:
        return self.source.images(indices)


def identities(config: Config) -> dict[str, Any]:
    """Share of new pictures in which the right one of all people is named."""
    per_person = config.pictures + 5
    drawn = synthetic.load(
        IMAGE_SIZE,
        train_examples=config.people * per_person,
        test_examples=1,
        images_per_person=per_person,
    )
    split = data.identity_split(
        drawn, splits=("train",), min_images=per_person, test_share=5 / per_person
    )
    source = _Persons(drawn, split)
    model = resnet18(
        cut=1, image_size=IMAGE_SIZE, width=16, num_attributes=1, num_classes=config.people
    )
    train = dataclasses.replace(PLAIN, learning_rate=3e-3, flip=False)
    steps = config.identity_epochs * (len(split.train) // train.batch_size)
    state = training.init_state(model, train, steps)
    step = training.make_train_step(model, defenses.none(), train, steps)
    batches = data.train_batches(source, batch_size=train.batch_size, seed=0)
    for _ in range(steps):
        batch = next(batches)
        state, info = step(state, batch.images, batch.attributes)
    predict = jax.jit(
        lambda images: inference.infer(
            model, defenses.none(), state.variables, jax.random.key(0), data.normalize(images)
        )
    )
    right = total = 0
    for batch in data.eval_batches(source, split="test", batch_size=100):
        answers = np.asarray(predict(batch.images))[:, 0].argmax(-1)
        right += int((answers == batch.attributes[:, 0])[batch.mask].sum())
        total += int(batch.mask.sum())
    return {
        "people": len(split.people),
        "pictures_each": config.pictures,
        "recognised": round(right / total, 4),
        "test_pictures": total,
        "chance": 1 / len(split.people),
        "train_accuracy_of_the_last_batch": float(info.accuracy),
    }


def defences(config: Config) -> dict[str, Any]:
    """Plain and FaceMix as in ``accuracy_cpu.py``, on as many drawn faces."""
    cells = {}
    for name, defense, epochs in (
        ("plain", DefenseConfig(defense="none"), 3),
        ("facemix, M = 8, cut 1", DefenseConfig(group_size=8), 6),
    ):
        run_config = RunConfig(
            data=data.DataConfig(),
            model=ModelConfig(width=16),
            defense=defense,
            train=dataclasses.replace(PLAIN, num_epochs=epochs, flip=False),
        )
        source = data.load_source(run_config.data)
        state = fitting.fit(run_config, config.workdirs / name.split(",")[0], source=source)
        run = runs.from_state(run_config, source, state)
        parts = (run.model, run.defense, run.variables, run.source)
        utility = evaluation.evaluate_utility(*parts, rng_key=jax.random.key(0))
        leakage = evaluation.evaluate_leakage(*parts, rng_key=jax.random.key(0))
        cells[name] = {
            "epochs": epochs,
            "accuracy": round(utility.accuracy, 4),
            "balanced_accuracy": round(utility.balanced_accuracy, 4),
            "majority_accuracy": round(utility.majority_accuracy, 4),
            "leakage": figure_dicts(leakage.figures),
        }
    return cells


PARTS = {"attributes": attributes, "identities": identities, "defences": defences}


def main(config: Config) -> None:
    """Runs the parts that the JSON file lacks."""
    cells = report.Cells(config.output, config, chooses=("parts",), summarize=summarize)
    for name in config.parts:
        if not cells.has(part=name):
            cells.add({"part": name, **PARTS[name](config)})
    cells.save()


def summarize(cells: Sequence[Mapping[str, Any]]) -> report.Summary:
    """A table of each part."""
    parts = {cell["part"]: cell for cell in cells}
    tables = []
    if "attributes" in parts:
        found = parts["attributes"]
        column = Column(name="balanced accuracy", format="percent")
        by_name = {**found["balanced_accuracy"], **found["not_drawn"]}
        tables.append(
            ResultTable(
                title=f"Attributes of drawn faces, {found['train']:,} for training and "
                f"{found['test']:,} of other people",
                columns=(column,),
                rows=tuple(
                    Row(label=name, cells=(report.measured(value),))
                    for name, value in sorted(by_name.items(), key=lambda item: item[1])
                ),
                note=f"Not drawn: {', '.join(found['not_drawn'])}.",
            )
        )
    if "identities" in parts:
        persons = parts["identities"]
        columns = {
            "recognised": Column(name="recognised", format="percent"),
            "chance": Column(name="chance", format="percent"),
            "test_pictures": Column(name="new pictures", format="integer"),
        }
        tables.append(
            ResultTable(
                title="Persons in new pictures of drawn faces",
                columns=tuple(columns.values()),
                rows=report.rows(
                    [{**persons, "chance": report.derived(persons["chance"])}],
                    lambda c: f"{c['people']} people, {c['pictures_each']} pictures of each",
                    columns,
                ),
            )
        )
    if "defences" in parts:
        runs_of = {n: c for n, c in parts["defences"].items() if isinstance(c, dict)}
        flat = [
            {"run": name, **c, **report.strongest(c["leakage"])}
            for name, c in runs_of.items()
            if "leakage" in c
        ]
        columns = {
            "epochs": Column(name="epochs", format="integer"),
            "accuracy": Column(name="accuracy", format="percent"),
            "balanced_accuracy": Column(name="balanced accuracy", format="percent"),
            "majority_accuracy": Column(name="always the more frequent answer", format="percent"),
            **report.SEPARATION,
        }
        for cell in flat:
            if cell["run"] == "plain":  # no attack was run
                cell |= dict.fromkeys(report.SEPARATION, report.derived(1.0))
        tables.append(
            ResultTable(
                title="Plain and FaceMix on drawn faces",
                columns=tuple(columns.values()),
                rows=report.rows(flat, lambda c: str(c["run"]), columns),
                note=report.SEPARATED,
            )
        )
    return tables, ()


if __name__ == "__main__":
    _runtime.configure()
    report.script(main, Config)
