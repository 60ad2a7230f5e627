"""Where the trials of a sweep run: processes of this machine, SLURM (submitit) or Ray.

Each program trains one group of work directories (``trials.run``). What one of them leaves when
it is killed, the next call goes on with. Processes of this machine save and stop when the sweep's
own ends, however it ends; jobs of SLURM and tasks of Ray go on.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from facemix_jax import hosts, trials
from facemix_jax._validate import FacemixError, UsageError
from facemix_jax.fitting import StoppedError

RUNNERS = ("process", "slurm", "submitit_local", "submitit_debug", "ray")
_POLL_S = 0.2

Group = Sequence[Path]


class DiedError(FacemixError):
    """Programs died without a word, for example for lack of memory; all others ended."""


def run(
    groups: Sequence[Group],
    *,
    runner: str,
    parallel: int,
    split: str,
    method: str,
    folder: Path,
    options: dict[str, Any],
    say: Callable[[str], None],
) -> None:
    """Runs groups of trials and returns when all are done or have failed.

    Args:
        groups: work directories that train together.
        runner: one of ``RUNNERS``.
        parallel: programs at a time; SLURM and Ray queue by themselves.
        split: to score.
        method: see ``fitting.fit_together``.
        folder: for submitit's scripts and logs.
        options: of submitit's executor (``timeout_min``, ``slurm_partition``, ...) or of a Ray
            task (``num_gpus``, ...).
        say: is told what happens.

    Raises:
        UsageError: the runner's package is not installed.
        DiedError: at least one program died without a word; all others are done.
        StoppedError: SIGINT or SIGTERM; the programs saved.
    """
    if not groups:
        return
    if runner == "process":
        _processes(groups, parallel, split, method, say)
    elif runner == "ray":
        _ray(groups, split, method, options)
    else:
        _submitit(groups, runner, split, method, folder, options, say)


def _processes(
    groups: Sequence[Group], parallel: int, split: str, method: str, say: Callable[[str], None]
) -> None:
    waiting, running = list(groups), list[tuple[Group, subprocess.Popen[bytes]]]()
    died: list[str] = []
    with hosts.StopSignals() as stop:
        while waiting or running:
            while waiting and len(running) < parallel and not stop.asked:
                group = waiting.pop(0)
                say(f"{len(groups) - len(waiting)} of {len(groups)}: {_names(group)}")
                command = [sys.executable, "-m", "facemix_jax.trials", trials.STOP_WITH_STDIN]
                # A session of its own: Ctrl-C reaches this process only, which passes it on once.
                # The pipe ends with this process, even where that is killed.
                process = subprocess.Popen(
                    [*command, split, method, *map(str, group)],
                    stdin=subprocess.PIPE,
                    start_new_session=True,
                )
                running.append((group, process))
            if stop.asked:
                for _, process in running:
                    process.terminate()
                for _, process in running:
                    with process:
                        process.wait()  # before the pipe is closed: one signal is enough
                raise StoppedError(
                    "Stopped; what was running is saved. The same command goes on from there."
                )
            time.sleep(_POLL_S)
            for group, process in [pair for pair in running if pair[1].poll() is not None]:
                running.remove((group, process))
                process.communicate()  # closes the pipe
                if process.returncode:
                    died.append(f"{_names(group)} (exit code {process.returncode})")
    _complain(died)


def _submitit(
    groups: Sequence[Group],
    runner: str,
    split: str,
    method: str,
    folder: Path,
    options: dict[str, Any],
    say: Callable[[str], None],
) -> None:
    try:
        import submitit
    except ModuleNotFoundError:
        raise UsageError(
            f"runner {runner!r} needs submitit: pip install 'facemix-jax[sweep]'"
        ) from None
    cluster = runner.removeprefix("submitit_")
    executor = submitit.AutoExecutor(folder=str(folder / "submitit"), cluster=cluster)
    executor.update_parameters(**{"timeout_min": 24 * 60, **options})
    with executor.batch():
        jobs = [executor.submit(trials.run, list(g), split=split, method=method) for g in groups]
    say(f"submitted {', '.join(job.job_id for job in jobs)}")
    died = []
    try:
        for group, job in zip(groups, jobs, strict=True):
            if (error := job.exception()) is not None:
                died.append(f"{_names(group)} ({str(error).splitlines()[-1]})")
    except KeyboardInterrupt:
        for job in jobs:
            job.cancel(check=False)
        raise
    _complain(died)


def _ray(groups: Sequence[Group], split: str, method: str, options: dict[str, Any]) -> None:
    try:
        import ray
    except ModuleNotFoundError:
        raise UsageError("runner 'ray' needs Ray: pip install 'ray>=2.40'") from None
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    # A worker that dies is replaced, and its trial goes on from the last checkpoint.
    task = ray.remote(**{"max_retries": 3, "max_calls": 1, **options})(trials.run)
    waiting = {task.remote(list(g), split=split, method=method): g for g in groups}
    died = []
    for reference, group in waiting.items():
        try:
            ray.get(reference)
        except ray.exceptions.RayError as error:
            died.append(f"{_names(group)} ({str(error).splitlines()[-1]})")
    _complain(died)


def _names(group: Group) -> str:
    return ", ".join(workdir.name for workdir in group)


def _complain(died: Sequence[str]) -> None:
    if died:
        raise DiedError(
            f"{len(died)} of the sweep's programs died: {'; '.join(died)}. Their messages are "
            f"above or in the runner's logs."
        )
