"""The commands, generated from the same configurations that the Python API takes."""

import dataclasses
import functools
import zipfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from facemix_jax import (
    costs,
    costs_paper,
    data,
    defenses,
    demo,
    evaluation,
    fitting,
    linearity,
    mixing,
    output,
    runs,
)
from facemix_jax._types import HostArray, RngKey
from facemix_jax._validate import DataError, UsageError, positive
from facemix_jax.models import ModelConfig, from_torch
from facemix_jax.output import NOTES
from facemix_jax.runs import Run, RunConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Output:
    json: str | None = None
    """Write the result as JSON to this path; - for standard output."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demo(_Output):
    """Train, infer and attack on drawn faces; writes one HTML report. Under 5 minutes on 2 cores.

    Example: facemix demo --out demo-report
    """

    out: Path = Path("demo-report")
    """Folder for the report and the work directories; a second run goes on where one stopped."""

    def run(self) -> None:
        """Runs the command."""
        result = demo.run(self.out, say=lambda text: NOTES.print(f"{text} ..."))
        output.emit(
            self.json,
            demo.summary(result),
            output.table(
                "test images",
                ("accuracy", "balanced"),
                [
                    (name, f"{u.accuracy:.1%}", f"{u.balanced_accuracy:.1%}")
                    for name, u in result.utility.items()
                ],
            ),
            output.figures_table("image mixed (cut 0)", result.leakage_images.figures),
            output.figures_table("activations mixed (cut 1)", result.leakage_activations.figures),
        )
        NOTES.print(f"{demo.TRUTH}\nReport: {self.out / 'report.html'}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train(_Output):
    """Encryption-aware training, or plain with --defense none; resumes by itself.

    Example: facemix train --workdir runs/m8 --dataset celeba --data-dir ~/celeba --cut 1
    --group-size 8 --width 16 --num-epochs 6 --learning-rate 2e-3
    """

    workdir: Path
    """Folder of the run; the same command goes on with an interrupted one."""
    config: tyro.conf.OmitArgPrefixes[RunConfig] = RunConfig()
    initial_weights: Path | None = None
    """Start from pretrained weights: an .npz of torchvision's state_dict, names as there; its
    head is left out."""

    def run(self) -> None:
        """Runs the command."""
        config = _absolute(self.config)
        runs.check_claim(self.workdir, config)
        initial = None
        if self.initial_weights is not None:
            initial = functools.partial(from_torch, _read_npz(self.initial_weights), keep_head=True)
        source = data.load_source(config.data)
        state = fitting.fit(config, self.workdir, source=source, initial_variables=initial)
        trained = runs.from_state(config, source, state)
        NOTES.print(f"{int(state.step)} steps done; evaluating on the test split")
        result = _utilities(trained, "test")
        output.emit(self.json, result, output.utility_table(result))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate(_Output):
    """Accuracy and balanced accuracy of a work directory, clean and protected.

    Example: facemix evaluate --workdir runs/m8 --split test --json -
    """

    workdir: Path
    """Of a training run."""
    split: str = "test"
    """train, valid or test."""
    data_dir: str | None = None
    """Where the images are now; by default where they were in training."""

    def run(self) -> None:
        """Runs the command."""
        result = _utilities(runs.load(self.workdir, data_dir=self.data_dir), self.split)
        output.emit(self.json, result, output.utility_table(result))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Linearity(_Output):
    """How far unmixing is from exact, end to end: of a work directory, or of a fresh network.

    Example: facemix linearity --workdir runs/m8 --num-keys 16
    """

    workdir: Path | None = None
    """Of a training run; without it, a freshly drawn network is measured on drawn faces."""
    model: tyro.conf.OmitArgPrefixes[ModelConfig] = ModelConfig(width=16)
    group_size: int | None = None
    """Images mixed together; the run's own, or 8."""
    family: str = "haar"
    """Of mixing matrices."""
    num_keys: int = 8
    """Keys measured."""
    num_images: int = 64
    """Test images, rounded down to whole groups."""
    data_dir: str | None = None
    """Where the images are now; by default where they were in training."""
    seed: int = 0
    """Of the keys, and of a fresh network."""

    def run(self) -> None:
        """Runs the command."""
        positive(num_keys=self.num_keys, num_images=self.num_images)
        if self.family not in mixing.FAMILIES:
            raise UsageError(
                f"family {self.family!r} is unknown; there is {', '.join(mixing.FAMILIES)}."
            )
        rng_key = jax.random.key(self.seed)
        part = self._part(rng_key)
        group_size = self.group_size or max(part.defense.group_size, 2)
        num_images = min(self.num_images, len(part.source.splits["test"]))
        num_images -= num_images % group_size
        if not num_images:
            raise UsageError(
                f"num_images is {self.num_images}, fewer than one group of {group_size}. Use more "
                f"images or a smaller --group-size."
            )
        batch = next(iter(data.eval_batches(part.source, split="test", batch_size=num_images)))
        activations = part.model.pre(part.variables["pre"], data.normalize(batch.images))
        measure = functools.partial(
            linearity.measure,
            functools.partial(part.model.main.apply, part.variables["main"]),
            activations,
            rng_key=rng_key,
            group_size=group_size,
            num_keys=self.num_keys,
            family=mixing.FAMILIES[self.family],
        )
        errors = {
            "features": measure(),
            "logits": measure(
                read=functools.partial(part.model.post.apply, part.variables["post"])
            ),
        }
        result = {
            "relative_unmix_error": {
                name: {
                    "mean": error.mean,
                    "standard_deviation": error.standard_deviation,
                    "per_key": [float(e) for e in error.per_key],
                }
                for name, error in errors.items()
            },
            "group_size": group_size,
            "family": self.family,
            "images": num_images,
            "network": part.model.spec.name,
            "cut": part.model.spec.cut,
            "trained_steps": part.step,
        }
        rows = [
            (f"of the {name}", f"{error.mean:.4f}", f"{error.standard_deviation:.4f}")
            for name, error in errors.items()
        ]
        title = f"relative unmix error, M = {group_size}, {num_images} images"
        header = (f"mean of {self.num_keys} keys", "standard deviation")
        output.emit(self.json, result, output.table(title, header, rows))

    def _part(self, rng_key: RngKey) -> Run:
        if self.workdir is not None:
            part = runs.load(self.workdir, data_dir=self.data_dir)
            variables = {
                **part.variables,
                "main": {k: v for k, v in part.variables["main"].items() if k != "clean_stats"},
            }
            return part._replace(variables=variables)
        config = RunConfig(
            model=self.model,
            data=data.DataConfig(train_examples=64, test_examples=self.num_images),
        )
        source = data.load_source(config.data)
        model = runs.build_model(config, source)
        return Run(
            config, source, model, defenses.build(config.defense), model.init(rng_key), step=0
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost(_Output):
    """Parameters, multiply-accumulates, bytes and seconds of a model, cut and link.

    Example: facemix cost --network resnet18 --cut 2 --group-size 8
    Example: facemix cost --table1 --json -
    """

    model: tyro.conf.OmitArgPrefixes[ModelConfig] = ModelConfig()
    image_size: tuple[int, int] = (218, 178)
    """Height and width."""
    group_size: int = 8
    """Images mixed together."""
    num_attributes: int = 40
    """Attributes."""
    num_classes: int = 2
    """Classes of each attribute."""
    link: tyro.conf.OmitArgPrefixes[costs.Link] = costs.Link()
    table1: bool = False
    """The paper's Table 1 and the edge columns of Tables 2 and 3 instead of one model."""

    def run(self) -> None:
        """Runs the command."""
        if self.table1:
            table1 = costs_paper.format_table1(costs_paper.table1(link=self.link))
            resnet18 = costs_paper.format_resnet18(costs_paper.resnet18_table())
            output.emit(
                self.json,
                costs_paper.table1_report(link=self.link),
                output.table("VGG-16, 224x224 (paper)", table1[0][1:], table1[1:]),
                output.table("ResNet-18, 218x178 (paper)", resnet18[0][1:], resnet18[1:]),
            )
            return
        positive(group_size=self.group_size)
        report = costs.cost_report(
            self.model,
            image_size=self.image_size,
            group_size=self.group_size,
            link=self.link,
            num_attributes=self.num_attributes,
            num_classes=self.num_classes,
        )
        rows = costs.format_cost(report)
        output.emit(self.json, report, output.table(rows[0][0], rows[0][1:], rows[1:]))


def _read_npz(path: Path) -> dict[str, HostArray]:
    try:
        with np.load(path) as arrays:
            return dict(arrays)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} cannot be read as weights: {error}. Write it where PyTorch is, with "
            f"numpy.savez(path, **{{k: v.numpy() for k, v in model.state_dict().items()}})."
        ) from error


def _absolute(config: RunConfig) -> RunConfig:
    """The images' place is kept with the run, which may be used from another folder."""
    if config.data.data_dir is None:
        return config
    place = str(Path(config.data.data_dir).expanduser().absolute())
    return dataclasses.replace(config, data=dataclasses.replace(config.data, data_dir=place))


def _utilities(part: Run, split: str) -> dict[str, Any]:
    """Clean and protected scores, and what leaks, side by side."""
    rng_key = jax.random.key(0)
    protections = {"clean": defenses.none(), "protected": part.defense}
    if part.defense.name == "none":
        del protections["protected"]
    scores = {
        name: evaluation.evaluate_utility(
            part.model, defense, part.variables, part.source, rng_key=rng_key, split=split
        )._asdict()
        for name, defense in protections.items()
    }
    leakage = evaluation.evaluate_leakage(
        part.model, part.defense, part.variables, part.source, rng_key=rng_key, split=split
    )
    return {
        "split": split,
        "step": part.step,
        **scores,
        "leakage": [output.figure_dict(figure) for figure in leakage.figures],
    }
