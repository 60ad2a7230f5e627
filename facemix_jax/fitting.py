"""The training loop around the pure step: batches, records, checkpoints, resuming.

One loop for one run and for several that train together, on one device or on many processes'.
"""

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from facemix_jax import data, defenses, hosts, population, runs, sharding, training
from facemix_jax._files import write_atomically
from facemix_jax._validate import FacemixError, UsageError, one_of
from facemix_jax.checkpoint import Checkpoints
from facemix_jax.defenses import Defense
from facemix_jax.models import SplitModel
from facemix_jax.population import Program
from facemix_jax.records import Records, read_records
from facemix_jax.runs import RunConfig
from facemix_jax.sharding import MeshConfig
from facemix_jax.speed import Meter, Trace
from facemix_jax.training import Scalars, StepInfo, TrainState

__all__ = ["DivergedError", "Interrupted", "Options", "fit", "fit_together", "read_records"]


class DivergedError(FacemixError):
    """The loss is no longer a finite number.

    Attributes:
        reasons: work directory to what happened, where several runs trained together.
        states: of all runs in their order; None for those that diverged.
    """

    reasons: dict[Path, str]
    states: list[TrainState | None]


class Interrupted(FacemixError):  # noqa: N818  # not an error: the user asked for it
    """The run was asked to stop; it saved and can go on."""


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


def fit(
    config: RunConfig,
    workdir: Path,
    *,
    source: data.Source | None = None,
    initial_variables: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    show_progress: bool = True,
    options: Options | None = None,
) -> TrainState:
    """Trains, or goes on training, in a work directory.

    The order of a resume: the configuration is compared, the newest checkpoint restored, records
    after it are dropped, and batches start at its step. The parameters end bit for bit as those
    of an uninterrupted run on the same mesh of the same machine.

    In several processes (``hosts.start``) all call it with the same arguments, ``workdir`` in a
    folder that all of them see.

    Args:
        config: of the run.
        workdir: of the run; created if missing.
        source: the images, if they are loaded already; otherwise ``load_source(config.data)``.
        initial_variables: changes freshly drawn variables before the first step, for example
            ``functools.partial(from_torch, state_dict)``.
        show_progress: a bar on standard error; ``options`` take its place.
        options: how to watch it.

    Returns:
        The state after the last step, on one device.

    Raises:
        UsageError: the configuration does not fit the images, the devices or the work directory.
        DivergedError: the loss is not finite; the last checkpoint is from before that.
        CheckpointError: a checkpoint cannot be written, or belongs to another model.
        Interrupted: SIGINT or SIGTERM, to any of the processes; the state was saved.
    """
    (state,) = fit_together(
        [config],
        [workdir],
        source=source,
        initial_variables=initial_variables,
        options=options or Options(show_progress=show_progress),
    )
    return state


def fit_together(
    configs: Sequence[RunConfig],
    workdirs: Sequence[Path],
    *,
    source: data.Source | None = None,
    initial_variables: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    method: str = "auto",
    choice: Path | None = None,
    options: Options | None = None,
) -> list[TrainState]:
    """Trains several runs that differ in seed, learning rate and weight decay only.

    Each has an ordinary work directory, the same as if it had been trained alone (parameters
    within 1e-5 relative to their largest after tens of steps: sums are added in another order).
    Finished runs are not trained again; a run that diverges stops being recorded and saved, and
    the others go on.

    Args:
        configs: of the runs.
        workdirs: of the runs.
        source: as in ``fit``.
        initial_variables: as in ``fit``, for each run.
        method: one of ``population.METHODS``; ``auto`` times both and takes the faster.
        choice: JSON file that keeps what ``auto`` found, so that a resumed group goes on with it.
        options: how to watch it.

    Returns:
        The states after the last step, on one device.

    Raises:
        UsageError: as ``fit``, or the runs differ in more.
        DivergedError: at least one run's loss is not finite; all others are done.
        CheckpointError: as ``fit``.
        Interrupted: as ``fit``.
    """
    options = options or Options()
    one_of(population.METHODS, method=method)
    _check_alike(configs)
    config = configs[0]
    source = data.load_source(config.data) if source is None else source
    plan = _plan(config, source)
    for run_config, workdir in zip(configs, workdirs, strict=True):
        runs.check_claim(workdir, run_config)
    hosts.wait("all have compared configurations")
    if hosts.is_first():
        for run_config, workdir in zip(configs, workdirs, strict=True):
            runs.claim(workdir, run_config)
    hosts.wait("the work directories are there")

    identity = runs.identity(config, plan.model)
    with contextlib.ExitStack() as stack:
        opened = [
            stack.enter_context(Checkpoints(workdir / "checkpoints", identity))
            for workdir in workdirs
        ]
        members = [_Member(*parts) for parts in zip(configs, workdirs, opened, strict=True)]
        stop = stack.enter_context(hosts.StopSignals())
        every = config.train.checkpoint_every
        saved = [checkpoints.steps() for checkpoints in opened]
        for start, numbers in _cohorts(saved, plan.num_steps, every):
            cohort = [members[number] for number in numbers]
            mesh = _mesh(config, plan, len(cohort))
            _load(cohort, plan, mesh, start, initial_variables)
            _train(cohort, plan, mesh, start, stop, method, choice, options)
        whole = sharding.make_mesh(MeshConfig(seed_devices=1))
        for member in members:
            if member.state is None and not member.diverged:
                _load([member], plan, whole, plan.num_steps, None)
                member.state = sharding.gather(member.state, whole)
    reasons = {member.workdir: str(member.diverged) for member in members if member.diverged}
    if reasons:
        error = DivergedError("\n".join(reasons.values()))
        error.reasons, error.states = reasons, [member.state for member in members]
        raise error
    return [member.state for member in members if member.state is not None]


class _Plan(NamedTuple):
    """What all runs of a group share."""

    source: data.Source
    model: SplitModel
    defense: Defense
    steps_per_epoch: int
    num_steps: int


@dataclasses.dataclass(eq=False)
class _Member:
    """One run of a group."""

    config: RunConfig
    workdir: Path
    checkpoints: Checkpoints
    state: TrainState | None = None
    diverged: DivergedError | None = None


def _check_alike(configs: Sequence[RunConfig]) -> None:
    def shared(config: RunConfig) -> RunConfig:
        same = configs[0].train
        train = dataclasses.replace(
            config.train,
            seed=same.seed,
            learning_rate=same.learning_rate,
            weight_decay=same.weight_decay,
        )
        return dataclasses.replace(config, train=train)

    for config in configs:
        if shared(config) != configs[0]:
            raise UsageError(
                f"Runs trained together may differ in seed, learning_rate and weight_decay only, "
                f"but {config} differs from {configs[0]} in more. Train them one after another."
            )


def _plan(config: RunConfig, source: data.Source) -> _Plan:
    model = runs.build_model(config, source)
    images = len(source.splits["train"])
    steps_per_epoch = images // config.train.batch_size
    if not steps_per_epoch:
        raise UsageError(
            f"batch_size is {config.train.batch_size}, but there are {images} training images. "
            f"Use a smaller batch, or more images."
        )
    return _Plan(
        source,
        model,
        defenses.build(config.defense),
        steps_per_epoch,
        steps_per_epoch * config.train.num_epochs,
    )


def _cohorts(
    saved: Sequence[set[int]], num_steps: int, checkpoint_every: int
) -> list[tuple[int, list[int]]]:
    """Which unfinished runs go on together, and from which step.

    A kill between two saves leaves runs one save apart: all go back to the newest step that all
    have. Where there is none (a run was trained alone before), those at the same step go on
    together, one lot after another.
    """
    unfinished = [i for i, steps in enumerate(saved) if num_steps not in steps]
    # A run can go back to the start where it lies one save behind at most.
    starts = [
        {*steps, 0} if max(steps, default=0) <= checkpoint_every else steps for steps in saved
    ]
    if not unfinished:
        return []
    common = set.intersection(*(starts[i] for i in unfinished))
    if common:
        return [(max(common), unfinished)]
    newest = {i: max(starts[i]) for i in unfinished}
    return [
        (step, [i for i in unfinished if newest[i] == step])
        for step in sorted(set(newest.values()), reverse=True)
    ]


def _load(
    members: Sequence[_Member],
    plan: _Plan,
    mesh: Mesh,
    start: int,
    initial_variables: Callable[[dict[str, Any]], dict[str, Any]] | None,
) -> None:
    """Gives each member its state at ``start``, laid out on the mesh."""
    rates = plan.source.attributes[plan.source.splits["train"]].mean(axis=0)
    for member in members:
        member.checkpoints.forget_after(start)
        state = training.init_state(plan.model, member.config.train, plan.num_steps, rates=rates)
        if not start and initial_variables is not None:
            state = training.start_from(state, initial_variables(state.variables))
        state = sharding.put(state, sharding.shardings(mesh, state))
        member.state = member.checkpoints.restore(state) if start else state


@dataclasses.dataclass(eq=False)
class _Part:
    """The runs of one program."""

    members: Sequence[_Member]
    program: Program
    state: TrainState
    scalars: Scalars
    batches: Sequence[Iterator[data.Batch]]
    recent: list[StepInfo] = dataclasses.field(default_factory=list)


def _train(
    members: Sequence[_Member],
    plan: _Plan,
    mesh: Mesh,
    start: int,
    stop: hosts.StopSignals,
    method: str,
    choice: Path | None,
    options: Options,
) -> None:
    """Trains a cohort from ``start`` to the end."""
    config, meter = members[0].config, options.meter
    batch_size = config.train.batch_size
    parts = _parts(members, plan, mesh, start, method, choice)
    rate = training.learning_rate(
        dataclasses.replace(config.train, learning_rate=1), plan.num_steps
    )
    meter.devices = mesh.size
    trace = Trace.of(options.profile, start, plan.num_steps)
    with contextlib.ExitStack() as stack:
        first = hosts.is_first()
        records = [
            stack.enter_context(Records(member.workdir, start)) if first else None
            for member in members
        ]
        bar = stack.enter_context(_bar(options.show_progress and first))
        task = bar.add_task("training", total=plan.num_steps, completed=start, note="")
        stack.callback(trace.stop)
        clock, done = time.perf_counter(), start
        for step in range(start + 1, plan.num_steps + 1):
            trace.before(step)
            for part in parts:
                _step(part, batch_size, meter)
            asked, save, note = _due(step, plan.num_steps, config, stop)
            if step == start + 1 and not note:  # compiling is no part of the speed
                jax.block_until_ready([part.state for part in parts])
                clock, done = time.perf_counter(), step
                meter.forget()
            if step == trace.last:
                jax.block_until_ready([part.state for part in parts])
                trace.stop()
            if note:
                found = [hosts.fetch(part.recent) for part in parts]
                seconds, count = time.perf_counter() - clock, step - done
                if done > start:
                    meter.add(count, count * batch_size * len(members), seconds)
                losses = _means(found)
                for member, (loss, _) in zip(members, losses, strict=True):
                    _note_finite(member, loss, step, alone=len(members) == 1)
                if all(member.diverged for member in members):
                    return
                for member, writer, (loss, accuracy) in zip(members, records, losses, strict=True):
                    if writer is not None and not member.diverged:
                        writer.write(
                            step,
                            loss=loss,
                            accuracy=accuracy,
                            learning_rate=float(rate(step - 1)) * member.config.train.learning_rate,
                            epoch=step / plan.steps_per_epoch,
                            images_per_second=count * batch_size / seconds,
                        )
                alive = [pair for m, pair in zip(members, losses, strict=True) if not m.diverged]
                loss, accuracy = np.mean(alive or losses, axis=0)
                bar.update(task, completed=step, note=f"loss {loss:.4f}  acc {accuracy:.2%}")
                for part in parts:
                    part.recent = []
                done = step
            if save:
                for part in parts:
                    for index, member in enumerate(part.members):
                        if not member.diverged:
                            member.checkpoints.save(part.program.member(part.state, index))
            if note:
                clock = time.perf_counter()
                meter.forget()
            if asked and step < plan.num_steps:
                where = ", ".join(str(member.workdir) for member in members)
                raise Interrupted(
                    f"Stopped after step {step} of {plan.num_steps}; everything is saved in "
                    f"{where}. The same command goes on from there."
                )
    for part in parts:
        for index, member in enumerate(part.members):
            if not member.diverged:
                member.state = sharding.gather(part.program.member(part.state, index), mesh)


def _step(part: _Part, batch_size: int, meter: Meter) -> None:
    began = time.perf_counter()
    batches = [next(iterator) for iterator in part.batches]
    meter.waited(time.perf_counter() - began)
    images = part.program.put([batch.images for batch in batches], batch_size)
    attributes = part.program.put([batch.attributes for batch in batches], batch_size)
    part.state, info = part.program.step(part.state, images, attributes, part.scalars)
    part.recent.append(info)


def _due(
    step: int, num_steps: int, config: RunConfig, stop: hosts.StopSignals
) -> tuple[bool, bool, bool]:
    """Whether to stop, to save and to record after this step.

    Several processes agree where they wait for each other anyway.
    """
    save = step == num_steps or step % config.train.checkpoint_every == 0
    note = save or step % config.train.log_every == 0
    asked = stop.asked if jax.process_count() == 1 else note and hosts.any_of(stop.asked)
    return asked, save or asked, note or asked


def _mesh(config: RunConfig, plan: _Plan, num_runs: int) -> Mesh:
    wanted = config.mesh
    if wanted.seed_devices and num_runs % wanted.seed_devices:  # some runs are done already
        wanted = dataclasses.replace(wanted, seed_devices=0)
    mesh = sharding.make_mesh(wanted, num_runs=num_runs)
    sharding.check_batch(mesh, config.train.batch_size, plan.defense.group_size)
    return mesh


def _parts(
    members: Sequence[_Member],
    plan: _Plan,
    mesh: Mesh,
    start: int,
    method: str,
    choice: Path | None,
) -> list[_Part]:
    """The programs of a cohort, with states laid out and batches at ``start``."""
    config = members[0].config
    train, group_size = config.train, plan.defense.group_size
    index, count = sharding.process_part(mesh, train.batch_size)
    source = data.on_device(plan.source) if config.data.device_resident else plan.source

    def batches(member: _Member) -> Iterator[data.Batch]:
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
    if method == "auto" and choice is not None and choice.exists():
        method = json.loads(choice.read_text())["method"]
    if method == "auto" and len(members) > mesh.shape["seed"]:
        batch = next(batches(members[0]))
        seconds = population.calibrate(
            step, states, batch.images, batch.attributes, scalars, mesh, train.batch_size
        )
        seconds = dict(zip(seconds, hosts.from_first([*seconds.values()]), strict=True))
        method = min(seconds, key=lambda name: seconds[name])
        if choice is not None and hosts.is_first():
            found = {"method": method, "seconds_per_step": seconds, "runs": len(members)}
            write_atomically(choice, json.dumps(found, indent=2) + "\n")
    size = population.size(method, len(members), mesh)
    program = population.build(step, states[0], mesh, size)
    parts = []
    for first in range(0, len(members), size):
        rows = slice(first, first + size)
        parts.append(
            _Part(
                members=members[rows],
                program=program,
                state=program.stack(states[rows]),
                scalars=program.scalars(scalars[rows]),
                batches=[batches(members[rows][i]) for i in program.local_runs()],
            )
        )
    return parts


def _means(found: Sequence[Sequence[StepInfo]]) -> list[tuple[float, float]]:
    """Mean loss and accuracy of each run, in order, from the infos of each program."""
    means = []
    for infos in found:
        losses = np.mean([np.atleast_1d(info.loss) for info in infos], axis=0)
        accuracies = np.mean([np.atleast_1d(info.accuracy) for info in infos], axis=0)
        means += [(float(a), float(b)) for a, b in zip(losses, accuracies, strict=True)]
    return means


def _note_finite(member: _Member, loss: float, step: int, *, alone: bool) -> None:
    """Notes that a run diverged; in a group the others go on."""
    if np.isfinite(loss) or member.diverged:
        return
    saved = member.checkpoints.latest()
    kept = "no checkpoint was written" if saved is None else f"checkpoint {saved} is kept"
    member.diverged = DivergedError(
        f"The loss is {loss} at step {step}; training stopped and {kept}. Likely causes: (a) "
        f"the learning rate is too high: lower --learning-rate, (b) bfloat16 overflows: "
        f"use --compute-dtype float32, (c) the images are damaged: look at them."
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
