"""Trains the runs of some work directories and writes down what came of each: ``result.json``.

A trial needs nothing but its work directory, which holds its configuration; so it can run in
this process, in one of its own (``python -m facemix_jax.trials``) or on another machine.
"""

import contextlib
import dataclasses
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from facemix_jax import _runtime, data, defenses, evaluation, fitting, output, runs
from facemix_jax._files import lock, write_atomically
from facemix_jax._validate import FacemixError, UsageError, one_of
from facemix_jax.data import Source
from facemix_jax.fitting import DivergedError, Options, StoppedError
from facemix_jax.provenance import provenance
from facemix_jax.runs import Run, RunConfig
from facemix_jax.training import TrainState

_FAILURES = (FacemixError, jax.errors.JaxRuntimeError)
"""What ends one trial and not the sweep; the second is mostly memory that ran out."""

RESULT, FAILURE, CHOICE = "result.json", "failure.json", "together.json"

STOP_WITH_STDIN = "--stop-with-stdin"
"""Has ``main`` stop when its standard input ends. Not guessed: a job step may have a pipe, too."""


def utilities(part: Run, split: str) -> dict[str, Any]:
    """Clean and protected scores, and what leaks, side by side; ready for JSON."""
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
    found = output.figure_dicts(leakage.figures)
    return {
        "split": split,
        "step": part.step,
        **scores,
        "leakage": found,
        "strongest": {"attack": leakage.strongest, **found[leakage.strongest]},
        "skipped": leakage.skipped,
    }


def check_split(config: RunConfig, source: Source, split: str) -> None:
    """Raises ``UsageError``, before any training, where ``utilities`` could not score a split."""
    one_of(source.splits, split=split)
    images = len(source.splits[split])
    group_size = config.defense.group_size if config.defense.defense == "facemix" else 1
    if images < group_size:
        raise UsageError(
            f"Split {split!r} of {source.name} has {images} images, but scoring needs at least one "
            f"group: {group_size}. Use more images, smaller groups or another split."
        )


def scored(workdir: Path, split: str) -> dict[str, Any] | None:
    """What a work directory's ``result.json`` says of a split.

    None where nothing, or damaged, or of a version that ran weaker attacks.
    """
    try:
        found = json.loads((workdir / RESULT).read_text())
    except (OSError, ValueError):
        return None
    known = isinstance(found, dict) and found.get("split") == split and "strongest" in found
    return found if known else None


def run(
    workdirs: Sequence[Path],
    *,
    split: str = "test",
    method: str = "auto",
    show_progress: bool = False,
) -> None:
    """Trains the runs of work directories together and evaluates each.

    Each directory ends with ``result.json``, or ``failure.json`` with the reason; what has a
    result for this split is left alone.

    Args:
        workdirs: of runs that differ in seed, learning rate and weight decay only; each holds a
            ``config.json``.
        split: to score.
        method: see ``fitting.fit_together``.
        show_progress: a bar on standard error.

    Raises:
        StoppedError: SIGINT or SIGTERM; the same call goes on.
    """
    distinct = sorted(set(workdirs))  # a second lock on one would wait for the first for ever
    with contextlib.ExitStack() as stack:
        for workdir in distinct:
            stack.enter_context(_alone(workdir))
        waiting = [workdir for workdir in distinct if scored(workdir, split) is None]
        if waiting:
            _run(waiting, split, method, show_progress)


@contextlib.contextmanager
def _alone(workdir: Path) -> Iterator[None]:
    """Waits for what an earlier, killed sweep left there: a job, or a program that still saves."""
    with (workdir / ".lock").open("w") as file:
        lock(file, wait=True)
        yield


def _run(waiting: Sequence[Path], split: str, method: str, show_progress: bool) -> None:
    states: Sequence[TrainState | None]
    try:
        configs = _dealt([runs.read_config(workdir) for workdir in waiting])
        source = data.load_source(configs[0].data)
        check_split(configs[0], source, split)
        try:
            states = fitting.fit_together(
                configs,
                waiting,
                source=source,
                method=method,
                choice=waiting[0] / CHOICE,
                options=Options(show_progress=show_progress),
            )
        except DivergedError as error:
            states = error.states
            for workdir, reason in error.reasons.items():
                _fail(workdir, reason)
    except StoppedError:
        raise
    except _FAILURES as error:
        for workdir in waiting:
            _fail(workdir, str(error))
        return
    for config, workdir, state in zip(configs, waiting, states, strict=True):
        if state is not None:
            try:
                found = utilities(runs.from_state(config, source, state), split)
            except _FAILURES as error:
                _fail(workdir, str(error))
                continue
            found["provenance"] = provenance()
            write_atomically(workdir / RESULT, json.dumps(found, indent=1) + "\n")
            (workdir / FAILURE).unlink(missing_ok=True)


def _dealt(configs: Sequence[RunConfig]) -> list[RunConfig]:
    """The configurations, with devices dealt automatically where these runs cannot be as asked.

    How many wait depends on what is done already, which is nobody's mistake.
    """
    return [
        dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, seed_devices=0))
        if config.mesh.seed_devices and len(configs) % config.mesh.seed_devices
        else config
        for config in configs
    ]


def _fail(workdir: Path, reason: str) -> None:
    write_atomically(workdir / FAILURE, json.dumps({"error": reason}) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m facemix_jax.trials [--stop-with-stdin] SPLIT METHOD DIR ...``: a sweep's process.

    Returns:
        0, or 1 where a signal came.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[0] == STOP_WITH_STDIN:
        threading.Thread(target=_stop_with_stdin, daemon=True).start()
        del arguments[0]
    split, method, *folders = arguments
    try:
        run([Path(folder) for folder in folders], split=split, method=method)
    except StoppedError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _stop_with_stdin() -> None:
    """Stops this process as SIGTERM does when nobody holds the other end of its input any more."""
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    _runtime.configure()
    sys.exit(main())
