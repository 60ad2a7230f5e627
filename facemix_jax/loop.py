"""The loop over the steps of runs that train together: batches, records, saves, stopping."""

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from facemix_jax import data, hosts, population, sharding, training
from facemix_jax._files import write_atomically
from facemix_jax._validate import FacemixError
from facemix_jax.checkpoint import Checkpoints
from facemix_jax.defenses import Defense
from facemix_jax.models import SplitModel
from facemix_jax.population import Program
from facemix_jax.records import Records
from facemix_jax.runs import RunConfig
from facemix_jax.speed import Meter, Trace
from facemix_jax.training import Scalars, StepInfo, TrainConfig, TrainState


class DivergedError(FacemixError):
    """The loss, or a number of the network, is no longer finite.

    Attributes:
        reasons: work directory to what happened, where several runs trained together.
        states: of all runs in their order; None for those that diverged.
    """

    reasons: dict[Path, str]
    states: list[TrainState | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What changes how a training is watched, and nothing that it computes.

    Attributes:
        show_progress: a bar on standard error.
        profile: folder for a trace of a few steps; None for none.
        meter: adds up times.
    """

    show_progress: bool = True
    profile: Path | None = None
    meter: Meter = dataclasses.field(default_factory=Meter)


class Plan(NamedTuple):
    """What all runs of a group share."""

    source: data.Source
    model: SplitModel
    defense: Defense
    steps_per_epoch: int
    num_steps: int


@dataclasses.dataclass(eq=False)
class Member:
    """One run of a group."""

    config: RunConfig
    workdir: Path
    checkpoints: Checkpoints
    saved: int = 0  # newest step on disk when the training began
    state: TrainState | None = None
    diverged: DivergedError | None = None


@dataclasses.dataclass(eq=False)
class Part:
    """The runs of one program."""

    members: Sequence[Member]
    program: Program
    state: TrainState
    scalars: Scalars
    batches: Sequence[Iterator[data.Batch]]
    recent: list[StepInfo] = dataclasses.field(default_factory=list)


def train(
    members: Sequence[Member],
    plan: Plan,
    mesh: Mesh,
    start: int,
    stop: hosts.StopSignals,
    *,
    method: str,
    choice: Path | None,
    options: Options,
) -> None:
    """Trains runs from ``start`` to the end; their states come and go with ``members``.

    Args:
        members: of the group, with states laid out on the mesh.
        plan: what they share.
        mesh: the devices.
        start: steps done.
        stop: asks for an early end.
        method: see ``fitting.fit_together``.
        choice: likewise.
        options: likewise.

    Raises:
        StoppedError: as ``fitting.fit``; all is saved.
    """
    config, meter = members[0].config.train, options.meter
    parts = _parts(members, plan, mesh, start, method, choice)
    meter.devices = mesh.size
    trace = Trace.of(options.profile if hosts.is_first() else None, start, plan.num_steps)
    with contextlib.ExitStack() as stack:
        notes = stack.enter_context(_Notes(members, plan, start, options))
        stack.callback(trace.stop)
        for step in range(start + 1, plan.num_steps + 1):
            if step == trace.first:
                jax.block_until_ready([part.state for part in parts])
                with notes.paused():
                    trace.start()
            for part in parts:
                _step(part, config.batch_size, meter)
            asked, save, note = _due(step, plan.num_steps, config, stop)
            if step == trace.last or (step == start + 1 and not note):
                jax.block_until_ready([part.state for part in parts])
            if step == trace.last:
                with notes.paused():
                    trace.stop()
            if step == start + 1 and not note:
                notes.begin(step)  # compiling is no part of the speed
            if note:
                notes.write(step, parts)
            if save:
                _save(parts, step, alone=len(members) == 1)
            if all(member.diverged for member in members):
                return
            if note:
                notes.begin(step)
            if asked and step < plan.num_steps:
                where = ", ".join(str(member.workdir) for member in members)
                saved = f"everything is saved in {where}. The same command goes on from there."
                if _catching_up(parts, step):
                    saved = (
                        f"some of {where} were catching up with the others, so that nothing new "
                        f"is saved. The same command goes on from step {start}."
                    )
                raise hosts.StoppedError(f"Stopped after step {step} of {plan.num_steps}; {saved}")
    for part in parts:
        for index, member in enumerate(part.members):
            if not member.diverged:
                member.state = sharding.gather(part.program.member(part.state, index), mesh)


def _step(part: Part, batch_size: int, meter: Meter) -> None:
    began = time.perf_counter()
    batches = [next(iterator) for iterator in part.batches]
    meter.waited(time.perf_counter() - began)
    images = part.program.put([batch.images for batch in batches], batch_size)
    attributes = part.program.put([batch.attributes for batch in batches], batch_size)
    part.state, info = part.program.step(part.state, images, attributes, part.scalars)
    part.recent.append(info)


def _due(
    step: int, num_steps: int, config: TrainConfig, stop: hosts.StopSignals
) -> tuple[bool, bool, bool]:
    """Whether to stop, to save and to record after this step.

    Several processes agree where they wait for each other anyway.
    """
    save = step == num_steps or step % config.checkpoint_every == 0
    note = save or step % config.log_every == 0
    asked = stop.asked if jax.process_count() == 1 else note and hosts.any_of(stop.asked)
    return asked, save or asked, note or asked


def _save(parts: Sequence[Part], step: int, *, alone: bool) -> None:
    """Saves the states whose networks are finite; the others' runs diverged.

    Nothing is saved while runs catch up: with other steps than these they could not go on together.
    """
    catching_up = _catching_up(parts, step)
    for part in parts:
        for index, member in enumerate(part.members):
            if member.diverged:
                continue
            state = part.program.member(part.state, index)
            if hosts.fetch(training.all_finite(state.variables)):
                if step > member.saved and not catching_up:
                    member.checkpoints.save(state)
            else:
                _note_diverged(member, "The network holds NaN or infinities", step, alone=alone)


def _catching_up(parts: Sequence[Part], step: int) -> bool:
    """Whether a run that went back with others has saved later steps before, which it keeps."""
    return any(
        member.saved > step and not member.diverged for part in parts for member in part.members
    )


class _Notes:
    """Records of the members and the bar, with the time that steps take."""

    def __init__(self, members: Sequence[Member], plan: Plan, start: int, options: Options) -> None:
        self._members, self._plan, self._start, self._options = members, plan, start, options
        config = dataclasses.replace(members[0].config.train, learning_rate=1)
        self._rate = training.learning_rate(config, plan.num_steps)
        self._batch_size = config.batch_size
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "_Notes":
        first = hosts.is_first()
        self._writers = [
            self._stack.enter_context(Records(member.workdir, self._start)) if first else None
            for member in self._members
        ]
        self._bar = self._stack.enter_context(_bar(self._options.show_progress and first))
        self._task = self._bar.add_task(
            "training", total=self._plan.num_steps, completed=self._start, note=""
        )
        self.begin(self._start)
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def begin(self, step: int) -> None:
        """Steps are timed from here on."""
        self._clock, self._done = time.perf_counter(), step
        self._options.meter.forget()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What is done in it is no part of the time that steps take."""
        began = time.perf_counter()
        yield
        self._clock += time.perf_counter() - began

    def write(self, step: int, parts: Sequence[Part]) -> None:
        """Waits for the steps since the last call and writes down their means."""
        losses = _means([hosts.fetch(part.recent) for part in parts])
        for part in parts:
            part.recent = []
        seconds, count = time.perf_counter() - self._clock, step - self._done
        if self._done > self._start:
            images = count * self._batch_size * len(self._members)
            self._options.meter.add(count, images, seconds)
        for member, writer, (loss, accuracy) in zip(
            self._members, self._writers, losses, strict=True
        ):
            if not np.isfinite(loss) and not member.diverged:
                what = f"The loss is {loss}"
                _note_diverged(member, what, step, alone=len(self._members) == 1)
            if writer is not None and not member.diverged:
                writer.write(
                    step,
                    loss=loss,
                    accuracy=accuracy,
                    learning_rate=float(self._rate(step - 1)) * member.config.train.learning_rate,
                    epoch=step / self._plan.steps_per_epoch,
                    images_per_second=count * self._batch_size / seconds,
                )
        going = [pair for m, pair in zip(self._members, losses, strict=True) if not m.diverged]
        loss, accuracy = np.mean(going or losses, axis=0)
        note = f"loss {loss:.4f}  acc {accuracy:.2%}"
        self._bar.update(self._task, completed=step, note=note)


def _parts(
    members: Sequence[Member],
    plan: Plan,
    mesh: Mesh,
    start: int,
    method: str,
    choice: Path | None,
) -> list[Part]:
    """The programs of a cohort, with states laid out and batches at ``start``."""
    config = members[0].config
    train, group_size = config.train, plan.defense.group_size
    index, count = sharding.process_part(mesh, train.batch_size)
    source = data.on_device(plan.source) if config.data.device_resident else plan.source

    def batches(member: Member) -> Iterator[data.Batch]:
        return data.train_batches(
            source,
            distinct_groups=group_size if config.data.distinct_people else 1,
            batch_size=train.batch_size,
            seed=member.config.train.seed,
            start_step=start,
            process_index=index,
            process_count=count,
        )

    step = training.make_step(plan.model, plan.defense, train, plan.num_steps)
    states = [member.state for member in members if member.state is not None]
    scalars = [Scalars.of(member.config.train) for member in members]
    for member in members:
        member.state = None  # the step takes its buffers over
    if method == "auto" and choice is not None:
        # Processes may see the file at different times, but must compile the same.
        (chosen,) = hosts.from_first([population.METHODS.index(_chosen(choice, len(members)))])
        method = population.METHODS[chosen]
    if method == "auto" and len(members) > mesh.shape["seed"]:
        batch = next(batches(members[0]))
        seconds = population.calibrate(
            step, states, batch.images, batch.attributes, scalars, mesh, train.batch_size
        )
        seconds = dict(zip(seconds, hosts.from_first([*seconds.values()]), strict=True))
        method = min(seconds, key=lambda name: seconds[name])
        if choice is not None and hosts.is_first():
            found = {
                "method": method,
                "seconds_per_step": seconds,
                "runs": len(members),
                "device": jax.devices()[0].device_kind,
            }
            write_atomically(choice, json.dumps(found, indent=2) + "\n")
    size = population.size(method, len(members), mesh)
    program = population.build(step, states[0], mesh, size, dense_convolutions=method == "dense")
    parts = []
    for first in range(0, len(members), size):
        rows = slice(first, first + size)
        parts.append(
            Part(
                members=members[rows],
                program=program,
                state=program.stack(states[rows]),
                scalars=program.scalars(scalars[rows]),
                batches=[batches(members[rows][i]) for i in program.local_runs()],
            )
        )
    return parts


def _chosen(choice: Path, num_runs: int) -> str:
    """The method that was fastest for as many runs on such a device.

    That is auto where none was timed, or the file is damaged.
    """
    try:
        found = json.loads(choice.read_text())
    except (OSError, ValueError):
        return "auto"
    if not isinstance(found, dict) or found.get("runs") != num_runs:
        return "auto"
    here = jax.devices()[0].device_kind
    if found.get("device", here) != here:  # files from before devices were kept hold as they are
        return "auto"
    method = found.get("method")
    return method if method in population.METHODS else "auto"


def _means(found: Sequence[Sequence[StepInfo]]) -> list[tuple[float, float]]:
    """Mean loss and accuracy of each run, in order, from the infos of each program."""
    means = []
    for infos in found:
        losses = np.mean([np.atleast_1d(info.loss) for info in infos], axis=0)
        accuracies = np.mean([np.atleast_1d(info.accuracy) for info in infos], axis=0)
        means += [(float(a), float(b)) for a, b in zip(losses, accuracies, strict=True)]
    return means


def _note_diverged(member: Member, what: str, step: int, *, alone: bool) -> None:
    """Notes that a run diverged; in a group the others go on."""
    saved = member.checkpoints.latest()
    kept = "no checkpoint was written" if saved is None else f"checkpoint {saved} is kept"
    member.diverged = DivergedError(
        f"{what} at step {step}; training stopped and {kept}. Likely causes: (a) "
        f"the learning rate is too high: lower --learning-rate, (b) bfloat16 overflows: "
        f"use --compute-dtype float32, (c) the images are damaged: look at them."
        + ("" if saved is None else " With other options, give another --workdir, too.")
        + ("" if alone else f" This is {member.workdir}.")
    )


def _bar(show: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not show,
    )
