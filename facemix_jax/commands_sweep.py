"""``facemix sweep``: many runs, one summary."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import tyro

from facemix_jax import output, population, runs, sweep, sweep_runners, sweep_search, sweep_summary
from facemix_jax._arguments import Folder
from facemix_jax._files import write_atomically
from facemix_jax._validate import FacemixError, UsageError, one_of, positive
from facemix_jax.commands import Output, absolute, check_defense, check_unused
from facemix_jax.data.source import SPLITS
from facemix_jax.output import NOTES
from facemix_jax.runs import RunConfig
from facemix_jax.sweep import Trial
from facemix_jax.trials import FAILURE

_CHOICES = {"defense.defense", "defense.family"}
"""Where they vary, options of all of them are given to all."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep(Output):
    """Many runs: a grid or a search over any field of the configuration; a killed one goes on.

    Example: facemix sweep --workdir sweeps/rates --grid train.learning_rate=1e-3,3e-3
    defense.group_size=4,8 --num-seeds 3 --width 16
    """

    workdir: Folder
    """Folder of the sweep: a work directory for each run, and summary.csv, .json, .md and .png."""
    config: tyro.conf.OmitArgPrefixes[RunConfig] = RunConfig()
    grid: tuple[str, ...] = ()
    """Fields and their values: every combination is a run."""
    search: tuple[str, ...] = ()
    """Fields with ranges (low:high or log:low:high) or values, searched by Optuna instead."""
    trials: int = 20
    """How many settings a search tries."""
    num_seeds: int = 1
    """Seeds of each setting, from --seed on."""
    at_once: int = 8
    """The most runs that one program trains together, where they differ in seed, learning rate
    and weight decay only; 1 gives each a process of its own."""
    seeds_method: str = "auto"
    """How they share a device: vmap, dense, loop, or auto, which times them."""
    runner: str = "process"
    """process (of this machine); slurm, submitit_local or submitit_debug (through submitit); or
    ray."""
    parallel: int = 1
    """Processes of this machine at a time, and settings that a search asks for at a time."""
    runner_options: tuple[str, ...] = ()
    """name=value for submitit's executor (timeout_min=600 slurm_partition=gpu) or a Ray task
    (num_gpus=1)."""
    split: str = "test"
    """Split that is scored; search on valid where there is one. Runs that are done are scored anew
    for another one, but not trained."""
    metric: str = "accuracy"
    """What a search maximises: accuracy, balanced_accuracy, clean_accuracy or
    clean_balanced_accuracy."""

    def run(self) -> None:
        """Runs the command."""
        positive(
            trials=self.trials,
            num_seeds=self.num_seeds,
            at_once=self.at_once,
            parallel=self.parallel,
        )
        one_of(sweep_runners.RUNNERS, runner=self.runner)
        one_of(population.METHODS, seeds_method=self.seeds_method)
        one_of(sweep_summary.METRICS, metric=self.metric)
        one_of(SPLITS, split=self.split)
        _options(self.runner_options)  # refused before any directory is made
        if bool(self.grid) == bool(self.search):
            raise UsageError("A sweep takes either --grid or --search. Give one of them.")
        if self.runner == "process":
            check_unused(self, Sweep, "the runner is 'process'", ("runner_options",))
        if self.grid:
            check_unused(self, Sweep, "a grid is trained as a whole", ("trials", "metric"))
            if self.runner != "process":
                reason = f"the runner {self.runner!r} queues all of a grid at once"
                check_unused(self, Sweep, reason, ("parallel",))
        if self.runner != "submitit_debug":  # the trials' processes need the accelerator
            jax.config.update("jax_platforms", "cpu")
        base, folder = absolute(self.config), self._folder
        written = {f"{name} of --workdir": folder / name for name in sweep_summary.SUMMARIES}
        output.check_apart({**written, "--json": self.json}, [])
        problems: list[str] = []

        def execute(trials: Sequence[Trial]) -> None:
            try:
                self._execute(trials)
            except sweep_runners.DiedError as error:  # what the others found is worth a summary
                NOTES.print(str(error))
                problems.append(str(error))

        if self.search:
            space = sweep_search.parse_space(self.search)
            varied = [name for name in space if name != "train.seed"]
            if _CHOICES.isdisjoint(space):
                check_defense(base.defense)
            trials = sweep_search.search(
                base,
                space,
                folder=folder,
                num_trials=self.trials,
                num_seeds=self.num_seeds,
                parallel=self.parallel,
                metric=self.metric,
                split=self.split,
                check=_check,
                execute=execute,
                say=NOTES.print,
            )
        else:
            grid = sweep.parse_grid(self.grid)
            varied = [name for name in grid if name != "train.seed"]
            trials = sweep.expand(base, grid, self.num_seeds, folder)
            _check(trials)
            sweep.check_claims(trials, functools.cache(runs.images_named))
            execute(trials)
        rows = sweep_summary.write_summary(folder, trials, self.split)
        if self.search:
            rows.sort(key=lambda row: -row.get(self.metric, 0.0))
        write_atomically(folder / "summary.png", sweep_summary.picture(rows, varied))
        output.emit(self.json, {"rows": rows}, sweep_summary.rows_table(rows, varied))
        failed = [
            each.workdir / FAILURE for each in trials if sweep_summary.failed(each, self.split)
        ]
        for path in failed:
            NOTES.print(f"failed: {path}")
        if failed:
            problems.append(
                f"{len(failed)} of {len(trials)} runs failed; the summary is of the others. "
                f"{failed[0]} says why."
            )
        if problems:
            again = "A search does not try" if self.search else "The same command tries"
            raise FacemixError(" ".join([*problems, f"{again} them again."]))

    @property
    def _folder(self) -> Path:
        """Absolute: programs on other machines start elsewhere."""
        return self.workdir.absolute()

    def _execute(self, trials: Sequence[Trial]) -> None:
        """Trains and scores the trials that are not done."""
        sweep.claim(trials)
        waiting = [each for each in trials if sweep_summary.read_result(each, self.split) is None]
        NOTES.print(f"{len(trials)} runs, {len(trials) - len(waiting)} of them done")
        groups = sweep.groups(waiting, self.at_once)
        sweep_runners.run(
            [[each.workdir for each in group] for group in groups],
            runner=self.runner,
            parallel=self.parallel,
            split=self.split,
            method=self.seeds_method,
            folder=self._folder,
            options=_options(self.runner_options),
            say=NOTES.print,
        )


def _check(trials: Sequence[Trial]) -> None:
    """Makes sure that network, cut and defence fit, once for all that train together."""
    for first, *_ in sweep.groups(trials, len(trials)):
        if _CHOICES.isdisjoint(first.setting):
            check_defense(first.config.defense)
        runs.check_parts(first.config, first.config.data.image_size)


def _options(texts: Sequence[str]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"{text!r} is no option. Write name=value as in timeout_min=600.")
        options[name] = float(value) if value.replace(".", "", 1).isdecimal() else value
        if isinstance(options[name], float) and options[name].is_integer():
            options[name] = int(options[name])
    return options
