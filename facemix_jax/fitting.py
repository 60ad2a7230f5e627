"""The training loop around the pure step: batches, records, checkpoints, resuming."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from facemix_jax import data, defenses, runs, training
from facemix_jax._files import write_atomically
from facemix_jax._validate import FacemixError, UsageError
from facemix_jax.checkpoint import Checkpoints
from facemix_jax.runs import RunConfig
from facemix_jax.training import StepInfo, TrainState


class DivergedError(FacemixError):
    """The loss is no longer a finite number."""


class Interrupted(FacemixError):  # noqa: N818  # not an error: the user asked for it
    """The run was asked to stop; it saved and can go on."""


def fit(
    config: RunConfig,
    workdir: Path,
    *,
    source: data.Source | None = None,
    initial_variables: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    show_progress: bool = True,
) -> TrainState:
    """Trains, or goes on training, in a work directory.

    The order of a resume: the configuration is compared, the newest checkpoint restored, records
    after it are dropped, and batches start at its step. The parameters end bit for bit as those
    of an uninterrupted run on the same machine.

    Args:
        config: of the run.
        workdir: of the run; created if missing.
        source: the images, if they are loaded already; otherwise ``load_source(config.data)``.
        initial_variables: changes freshly drawn variables before the first step, for example
            ``functools.partial(from_torch, state_dict)``.
        show_progress: a bar on standard error.

    Returns:
        The state after the last step.

    Raises:
        UsageError: the configuration does not fit the images or the work directory.
        DivergedError: the loss is not finite; the last checkpoint is from before that.
        CheckpointError: a checkpoint cannot be written, or belongs to another model.
        Interrupted: SIGINT or SIGTERM; the state was saved.
    """
    source = data.load_source(config.data) if source is None else source
    model = runs.build_model(config, source)
    defense = defenses.build(config.defense, tiles=model.spec.tiles)
    images = len(source.splits["train"])
    steps_per_epoch = images // config.train.batch_size
    if not steps_per_epoch:
        raise UsageError(
            f"batch_size is {config.train.batch_size}, but there are {images} training images. "
            f"Use a smaller batch, or more images."
        )
    num_steps = steps_per_epoch * config.train.num_epochs
    runs.claim(workdir, config)

    with (
        Checkpoints(workdir / "checkpoints", runs.identity(config, model)) as checkpoints,
        _StopSignals() as stop,
    ):
        rates = source.attributes[source.splits["train"]].mean(axis=0)
        state = training.init_state(model, config.train, num_steps, rates=rates)
        if checkpoints.latest() is not None:
            state = checkpoints.restore(state)
        elif initial_variables is not None:
            state = training.start_from(state, initial_variables(state.variables))
        start = int(state.step)
        if start >= num_steps:
            return state
        batches = data.train_batches(
            data.on_device(source) if config.data.device_resident else source,
            distinct_groups=defense.group_size if config.data.distinct_people else 1,
            batch_size=config.train.batch_size,
            seed=config.train.seed,
            start_step=start,
        )
        train_step = training.make_train_step(model, defense, config.train, num_steps)
        rate = training.learning_rate(config.train, num_steps)
        recent: list[StepInfo] = []
        with Records(workdir, start) as records, _bar(show_progress) as bar:
            task = bar.add_task("training", total=num_steps, completed=start, note="")
            clock = time.perf_counter()
            for step in range(start + 1, num_steps + 1):
                batch = next(batches)
                state, info = train_step(state, batch.images, batch.attributes)
                recent.append(info)
                last = step == num_steps or stop.asked
                save = last or step % config.train.checkpoint_every == 0
                if save or step % config.train.log_every == 0:
                    loss, accuracy = _mean(recent)
                    _check_finite(loss, step, checkpoints.latest())
                    seconds = time.perf_counter() - clock
                    records.write(
                        step,
                        loss=loss,
                        accuracy=accuracy,
                        learning_rate=float(rate(step - 1)),
                        epoch=step / steps_per_epoch,
                        images_per_second=len(recent) * config.train.batch_size / seconds,
                    )
                    bar.update(task, completed=step, note=f"loss {loss:.4f}  acc {accuracy:.2%}")
                    recent, clock = [], time.perf_counter()
                if save:
                    checkpoints.save(state)
                if stop.asked and step < num_steps:
                    raise Interrupted(
                        f"Stopped after step {step} of {num_steps}; everything is saved in "
                        f"{workdir}. The same command goes on from there."
                    )
    return state


class Records:
    """Appends records to ``metrics.jsonl`` and TensorBoard; drops those after ``step`` first.

    Args:
        workdir: of the run.
        step: of the checkpoint that the run goes on from.
    """

    def __init__(self, workdir: Path, step: int) -> None:
        from tensorboardX import SummaryWriter

        path = workdir / "metrics.jsonl"
        if path.exists():
            kept = [line for line in read_records(workdir) if line["step"] <= step]
            write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a")
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

    def __enter__(self) -> "Records":
        """Returns itself."""
        return self

    def write(self, step: int, **values: float) -> None:
        """Appends one record."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes both."""
        self._board.close()
        self._file.close()


def read_records(workdir: Path) -> list[dict[str, float]]:
    """The records of a run; a line cut short by a kill is left out."""
    records = []
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def _mean(infos: list[StepInfo]) -> tuple[float, float]:
    losses, accuracies = zip(*((info.loss, info.accuracy) for info in infos), strict=True)
    return float(np.mean(jax.device_get(losses))), float(np.mean(jax.device_get(accuracies)))


def _check_finite(loss: float, step: int, saved: int | None) -> None:
    if not np.isfinite(loss):
        kept = "no checkpoint was written" if saved is None else f"checkpoint {saved} is kept"
        raise DivergedError(
            f"The loss is {loss} at step {step}; training stopped and {kept}. Likely causes: (a) "
            f"the learning rate is too high: lower --learning-rate, (b) bfloat16 overflows: "
            f"use --compute-dtype float32, (c) the images are damaged: look at them."
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


class _StopSignals:
    """Notes SIGINT and SIGTERM, so that the step in hand ends and is saved."""

    asked = False

    def __enter__(self) -> "_StopSignals":
        self._before: dict[int, Any] = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._before[number] = signal.signal(number, self._ask)
            except ValueError:  # not the main thread: the caller handles signals
                break
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
