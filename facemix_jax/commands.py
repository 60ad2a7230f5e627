"""The commands, generated from the same configurations that the Python API takes."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from facemix_jax import (
    claims,
    costs,
    costs_paper,
    data,
    demo,
    fitting,
    hosts,
    models,
    output,
    population,
    results,
    runs,
    sweep_summary,
    trials,
)
from facemix_jax._arguments import Folder
from facemix_jax._files import expanded, sha256
from facemix_jax._types import HostArray
from facemix_jax._validate import DataError, UsageError, one_of, positive
from facemix_jax.data.source import SPLITS
from facemix_jax.defenses import OPTIONS_OF, DefenseConfig
from facemix_jax.fitting import DivergedError, Options
from facemix_jax.hosts import HostsConfig
from facemix_jax.models import ModelConfig, from_torch
from facemix_jax.models.torch_weights import as_array
from facemix_jax.output import NOTES
from facemix_jax.run_files import check_not_own
from facemix_jax.runs import RunConfig
from facemix_jax.speed import Meter
from facemix_jax.speed import line as speed_line
from facemix_jax.training import TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class Output:
    """What every command of this kind takes."""

    json: str | None = None
    """Write the result as JSON to this path; - for standard output."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demo(Output):
    """Train, infer and attack on drawn faces; writes one HTML report. Under 5 minutes on 2 cores.

    Example: facemix demo --out demo-report
    """

    out: Folder = Path("demo-report")
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
        NOTES.print(f"{results.TRUTH}\nReport: {self.out / 'report.html'}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train(Output):
    """Encryption-aware training, or plain with --defense none; resumes by itself.

    Example: facemix train --workdir runs/m8 --dataset celeba --data-dir ~/celeba --cut 1
    --group-size 8 --width 16 --num-epochs 6 --learning-rate 2e-3
    """

    workdir: Folder
    """Folder of the run; the same command goes on with an interrupted one."""
    config: tyro.conf.OmitArgPrefixes[RunConfig] = RunConfig()
    initial_weights: Path | None = None
    """Start from pretrained weights: an .npz of torchvision's state_dict, names as there; its
    head is left out. A run goes on with the same file only."""
    num_seeds: int = 1
    """Train this many seeds from --seed on, each into WORKDIR/seed-N."""
    seeds_method: str = "auto"
    """How several seeds share a device: vmap (one program computes all), dense (that, with one
    dense convolution for all), loop (in turn), or auto, which times them; results agree within
    rounding."""
    profile: bool = False
    """Write an XLA trace of a few steps to WORKDIR/profile, for TensorBoard or Perfetto."""
    hosts: tyro.conf.OmitArgPrefixes[HostsConfig] = HostsConfig()

    def run(self) -> None:
        """Runs the command."""
        positive(num_seeds=self.num_seeds)
        one_of(population.METHODS, seeds_method=self.seeds_method)
        check_defense(self.config.defense)
        config = absolute(self.config)
        output.check_apart({"--json": self.json}, [self.initial_weights])
        output.check_outside({"--json": self.json}, config.data.data_dir)
        configs, workdirs = self._members(config)
        check_not_own(self.json, "--json", workdirs=(self.workdir, *workdirs))
        for each, workdir in zip(configs, workdirs, strict=True):
            claims.check_claim(workdir, each)
        with hosts.quiet(self.hosts):
            scores, speed, diverged = self._scores(config, configs, workdirs)
        if hosts.is_first():
            self._emit(configs, scores, speed)
        if diverged is not None:
            raise diverged

    def _scores(
        self, config: RunConfig, configs: Sequence[RunConfig], workdirs: Sequence[Path]
    ) -> tuple[dict[int, dict[str, Any]], dict[str, Any], DivergedError | None]:
        """Trains; the scores of each seed, how fast it went, and whether others diverged."""
        initial = digest = None
        hosts.start(self.hosts)
        with hosts.together():
            runs.check_parts(config, config.data.image_size)
            if self.initial_weights is not None:
                weights = read_weights(self.initial_weights)
                initial = functools.partial(from_torch, weights, keep_head=True)
                digest = sha256(self.initial_weights)[:16]
                # Refused before images are read; the head is no part of it.
                model = models.build(config.model, image_size=config.data.image_size)
                initial(jax.eval_shape(model.init, jax.random.key(0)))
            source = data.load_source(config.data)
            trials.check_split(config, source, "test")
        meter = Meter()
        states: Sequence[TrainState | None]
        diverged: DivergedError | None = None
        try:
            states = fitting.fit_together(
                configs,
                workdirs,
                source=source,
                initial_variables=initial,
                initial_digest=digest,
                method=self.seeds_method,
                choice=self.workdir / trials.CHOICE if self.num_seeds > 1 else None,
                options=Options(
                    profile=self.workdir / "profile" if self.profile else None, meter=meter
                ),
            )
        except DivergedError as error:
            if all(state is None for state in error.states):
                raise
            states, diverged = error.states, error  # raised when the others are shown
        trained = {
            each.train.seed: runs.from_state(each, source, state)
            for each, state in zip(configs, states, strict=True)
            if state is not None
        }
        first = next(iter(trained.values()))
        speed = meter.summary(first.model, config.model.compute_dtype)
        NOTES.print(f"{first.step} steps done: {speed_line(speed)}")
        NOTES.print("evaluating on the test split")
        # By all processes, each for itself: none has to wait for the first.
        scores = {seed: trials.utilities(run, "test") for seed, run in trained.items()}
        return scores, speed, diverged

    def _emit(
        self,
        configs: Sequence[RunConfig],
        scores: Mapping[int, dict[str, Any]],
        speed: dict[str, float],
    ) -> None:
        """The scores of a run, or of those seeds that did not diverge."""
        if self.num_seeds == 1:
            (alone,) = scores.values()
            output.emit(self.json, {**alone, "speed": speed}, output.utility_table(alone))
            return
        diverged = [each.train.seed for each in configs if each.train.seed not in scores]
        output.emit(
            self.json,
            {"seeds": scores, "diverged": diverged, "speed": speed},
            sweep_summary.seeds_table(scores, diverged),
        )

    def _members(self, config: RunConfig) -> tuple[list[RunConfig], list[Path]]:
        """The runs of all seeds and their work directories."""
        alone = (self.workdir / "config.json").exists()
        if self.num_seeds == 1:
            seeds = sorted(self.workdir.glob("seed-*/config.json"))
            if seeds and not alone:
                raise UsageError(
                    f"{self.workdir} holds the runs of several seeds, as {seeds[0].parent.name}. "
                    f"Give their --num-seeds to go on with them, or another --workdir."
                )
            return [config], [self.workdir]
        if alone:
            raise UsageError(
                f"{self.workdir} holds one run, so that there is no place for {self.num_seeds}. "
                f"Give another --workdir, or leave --num-seeds out."
            )
        first = config.train.seed
        configs = [
            dataclasses.replace(config, train=dataclasses.replace(config.train, seed=seed))
            for seed in range(first, first + self.num_seeds)
        ]
        return configs, [self.workdir / f"seed-{each.train.seed}" for each in configs]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate(Output):
    """Accuracy and balanced accuracy of a work directory, clean and protected.

    Example: facemix evaluate --workdir runs/m8 --split test --json -
    """

    workdir: Folder
    """Of a training run."""
    split: str = "test"
    """train, valid or test."""
    data_dir: str | None = None
    """Where the images are now, or others with the same attributes; by default where they were in
    training."""

    def run(self) -> None:
        """Runs the command."""
        one_of(SPLITS, split=self.split)
        data_dir = self.data_dir or runs.read_config(self.workdir).data.data_dir
        output.check_outside({"--json": self.json}, data_dir)
        result = trials.utilities(runs.load(self.workdir, data_dir=self.data_dir), self.split)
        output.emit(self.json, result, output.utility_table(result))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost(Output):
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
            reason = "--table1 is of the paper's networks"
            check_unused(self.model, ModelConfig(), reason)
            names = ("image_size", "group_size", "num_attributes", "num_classes")
            check_unused(self, Cost(), reason, names)
            table1 = costs_paper.format_table1(costs_paper.table1(link=self.link))
            resnet18 = costs_paper.format_resnet18(costs_paper.resnet18_table())
            tables = (
                output.table("VGG-16,\n224x224", table1[0][1:], table1[1:]),
                output.table("ResNet-18,\n218x178", resnet18[0][1:], resnet18[1:]),
            )
            for each in tables:
                each.caption = costs_paper.LEGEND
            output.emit(self.json, costs_paper.table1_report(link=self.link), *tables)
            return
        positive(
            group_size=self.group_size,
            num_attributes=self.num_attributes,
            num_classes=self.num_classes,
        )
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


def check_unused(given: Any, default: Any, reason: str, names: Iterable[str] = ()) -> None:
    """Makes sure that options which have no effect beside another one are not given.

    Args:
        given: the options, a dataclass.
        default: what they are where none is given.
        reason: why they have no effect.
        names: of the fields; without them, all.

    Raises:
        UsageError: a field is another than by default.
    """
    for name in names or (field.name for field in dataclasses.fields(default)):
        value = getattr(given, name)
        if value != getattr(default, name):
            raise UsageError(
                f"{name} is {value!r}, but {reason}, so that it has no effect. Leave "
                f"--{name.replace('_', '-')} out."
            )


def check_defense(config: DefenseConfig) -> None:
    """Raises ``UsageError`` where an option of another defence or family is given."""
    if config.defense not in (*OPTIONS_OF, "none"):  # one of somebody's own may take all
        return
    for name, options in OPTIONS_OF.items():
        if name != config.defense:
            reason = f"the defence is {config.defense!r}"
            check_unused(config, DefenseConfig(), reason, options)
    if config.family != "conditioned":
        check_unused(config, DefenseConfig(), f"the family is {config.family!r}", ("condition",))


def read_weights(path: Path) -> dict[str, HostArray]:
    """An .npz of torchvision's state_dict.

    Raises:
        DataError: the file cannot be read, or holds what ``torch_weights.as_array`` refuses.
    """
    try:
        with path.open("rb") as file, np.lib.npyio.NpzFile(file) as arrays:
            weights = dict(arrays)
    except Exception as error:  # zlib, zipfile, tokenize and more on files that are damaged
        raise DataError(
            f"{path} cannot be read as weights: {str(error) or type(error).__name__}. Write it "
            f"where PyTorch is, with numpy.savez(path, **{{k: v.numpy() for k, v in "
            f"model.state_dict().items()}})."
        ) from error
    try:
        return {name: as_array(name, value) for name, value in weights.items()}
    except UsageError as error:
        raise DataError(f"{path} cannot be used: {error}") from error


def absolute(config: RunConfig) -> RunConfig:
    """Where images and their cache are is kept with the run, which other folders may use, too."""

    def place(path: str | None) -> str | None:
        return None if path is None else str(expanded(path).absolute())

    images = dataclasses.replace(
        config.data, data_dir=place(config.data.data_dir), cache_dir=place(config.data.cache_dir)
    )
    return dataclasses.replace(config, data=images)
