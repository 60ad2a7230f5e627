"""Training in a work directory: resuming, several runs at once, one device or many processes."""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from facemix_jax import claims, data, defenses, hosts, loop, population, runs, sharding, training
from facemix_jax._validate import UsageError, one_of
from facemix_jax.checkpoint import Checkpoints
from facemix_jax.hosts import StoppedError
from facemix_jax.loop import DivergedError, Member, Options, Plan
from facemix_jax.records import read_records
from facemix_jax.runs import RunConfig
from facemix_jax.sharding import MeshConfig
from facemix_jax.training import TrainState

__all__ = ["DivergedError", "Options", "StoppedError", "fit", "fit_together", "read_records"]


def fit(
    config: RunConfig,
    workdir: Path | str,
    *,
    source: data.Source | None = None,
    initial_variables: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    initial_digest: str | None = None,
    show_progress: bool = True,
    options: Options | None = None,
) -> TrainState:
    """Trains, or goes on training, in a work directory.

    The order of a resume: configuration, training images and initial weights are compared, the
    newest checkpoint is restored, records after it are dropped, and batches start at its step. The
    parameters end bit for bit as those of an uninterrupted run on the same mesh of the same
    machine.

    In several processes (``hosts.start``) all call it with the same arguments, ``workdir`` in a
    folder that all of them see.

    Args:
        config: of the run.
        workdir: of the run; created if missing.
        source: the images, if they are loaded already; otherwise ``load_source(config.data)``.
        initial_variables: changes freshly drawn variables before the first step, for example
            ``functools.partial(from_torch, state_dict)``.
        initial_digest: stands for them: a run goes on with the same digest only. Without one, any
            function counts as the same.
        show_progress: a bar on standard error; ``options`` take its place.
        options: how to watch it.

    Returns:
        The state after the last step, on one device.

    Raises:
        UsageError: the configuration does not fit the images, the devices or the work directory.
        FacemixError: another process trains in the work directory, or one of this run failed.
        DivergedError: the loss or the network is not finite; the last checkpoint is from before
            that.
        CheckpointError: a checkpoint cannot be written, or belongs to another model.
        StoppedError: SIGINT or SIGTERM, to any of the processes; the state was saved. A second
            SIGINT is no longer caught, and nothing more is saved.
    """
    (state,) = fit_together(
        [config],
        [Path(workdir)],
        source=source,
        initial_variables=initial_variables,
        initial_digest=initial_digest,
        options=options or Options(show_progress=show_progress),
    )
    return state


def fit_together(
    configs: Sequence[RunConfig],
    workdirs: Sequence[Path],
    *,
    source: data.Source | None = None,
    initial_variables: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    initial_digest: str | None = None,
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
        initial_digest: as in ``fit``.
        method: one of ``population.METHODS``; ``auto`` times them and takes the fastest.
        choice: JSON file that keeps what ``auto`` found, so that a resumed group goes on with it;
            for another number of runs, or on another device, it is found anew.
        options: how to watch it.

    Returns:
        The states after the last step, on one device.

    Raises:
        UsageError: as ``fit``, or the runs differ in more.
        FacemixError: as ``fit``.
        DivergedError: at least one run's loss or network is not finite; all others are done.
        CheckpointError: as ``fit``.
        StoppedError: as ``fit``.
    """
    options = options or Options()
    one_of(population.METHODS, method=method)
    _check_alike(configs)
    config = configs[0]
    with hosts.together():
        runs.check_parts(config, config.data.image_size if source is None else source.image_size)
        source = data.load_source(config.data) if source is None else source
        plan = _plan(config, source)
        _mesh(config.mesh, config, plan, len(configs))  # refused before any directory is made
        initial = None if initial_variables is None else initial_digest or "without a digest"
        images = {**runs.images_of(source, source.image_size), "initial_weights": initial}
        for run_config, workdir in zip(configs, workdirs, strict=True):
            claims.check_claim(workdir, run_config, images=images)

    identity = runs.identity(config, plan.model)
    with contextlib.ExitStack() as stack:
        with hosts.together():
            if hosts.is_first():
                for run_config, workdir in zip(configs, workdirs, strict=True):
                    stack.enter_context(claims.alone(workdir, run_config, images=images))
        opened = [
            stack.enter_context(Checkpoints(workdir / "checkpoints", identity))
            for workdir in workdirs
        ]
        stop = stack.enter_context(hosts.StopSignals())
        saved = [checkpoints.steps() for checkpoints in opened]
        newest = [max(steps, default=0) for steps in saved]
        # Processes may see a shared folder's files at different times, but must do the same.
        agreed = hosts.from_first([*_starts(saved, plan.num_steps), *newest])
        starts, newest = agreed[: len(opened)], agreed[len(opened) :]
        members = [Member(*parts) for parts in zip(configs, workdirs, opened, newest, strict=True)]
        for start in sorted({*starts} - {plan.num_steps}, reverse=True):
            cohort = [each for each, step in zip(members, starts, strict=True) if step == start]
            sizes = config.mesh
            if sizes.seed_devices and len(cohort) % sizes.seed_devices:  # some runs are done
                sizes = dataclasses.replace(sizes, seed_devices=0)
            mesh = _mesh(sizes, config, plan, len(cohort))
            _load(cohort, plan, mesh, start, initial_variables)
            loop.train(
                cohort, plan, mesh, start, stop, method=method, choice=choice, options=options
            )
        whole = sharding.make_mesh(MeshConfig(seed_devices=1))
        for member in members:
            if member.state is None and not member.diverged:
                _load([member], plan, whole, plan.num_steps, None)
                member.state = sharding.gather(member.state, whole)
        stop.asked = hosts.any_of(stop.asked)  # all processes stop, or none
    reasons = {member.workdir: str(member.diverged) for member in members if member.diverged}
    if reasons:
        error = DivergedError("\n".join(reasons.values()))
        error.reasons, error.states = reasons, [member.state for member in members]
        raise error
    return [member.state for member in members if member.state is not None]


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


def _plan(config: RunConfig, source: data.Source) -> Plan:
    model = runs.build_model(config, source)
    images = len(source.splits["train"])
    steps_per_epoch = images // config.train.batch_size
    if not steps_per_epoch:
        raise UsageError(
            f"batch_size is {config.train.batch_size}, but there are {images} training images. "
            f"Use a smaller batch, or more images."
        )
    return Plan(
        source,
        model,
        defenses.build(config.defense, tiles=model.spec.tiles),
        steps_per_epoch,
        steps_per_epoch * config.train.num_epochs,
    )


def _starts(saved: Sequence[set[int]], num_steps: int) -> list[int]:
    """The step that each run goes on from; those of one step go on together.

    That is a run's newest checkpoint, and 0 without one. A kill between two saves leaves runs one
    save apart: where all that have begun still keep the step of the one that is furthest behind,
    they go on from there, and end bit for bit as without the kill.
    """
    starts = [num_steps if num_steps in steps else max(steps, default=0) for steps in saved]
    begun = [i for i, start in enumerate(starts) if start not in (0, num_steps)]
    common = min((starts[i] for i in begun), default=0)
    if all(common in saved[i] for i in begun):
        starts = [common if i in begun else start for i, start in enumerate(starts)]
    return starts


def _load(
    members: Sequence[Member],
    plan: Plan,
    mesh: Mesh,
    start: int,
    initial_variables: Callable[[dict[str, Any]], dict[str, Any]] | None,
) -> None:
    """Gives each member its state at ``start``, laid out on the mesh."""
    rates = plan.source.attributes[plan.source.splits["train"]].mean(axis=0)
    for member in members:
        state = training.init_state(plan.model, member.config.train, plan.num_steps, rates=rates)
        if not start and initial_variables is not None:
            state = training.start_from(state, initial_variables(state.variables))
        state = sharding.put(state, sharding.shardings(mesh, state))
        member.state = member.checkpoints.restore(state, start) if start else state


def _mesh(sizes: MeshConfig, config: RunConfig, plan: Plan, num_runs: int) -> Mesh:
    batch_size, group_size = config.train.batch_size, plan.defense.group_size
    mesh = sharding.make_mesh(sizes, num_runs=num_runs, num_groups=batch_size // group_size)
    sharding.check_batch(mesh, batch_size, group_size)
    return mesh
