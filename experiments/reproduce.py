"""The paper in one command: every table and figure at one scale, then one report of them all."""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple, NoReturn

import places
import report
import scale as scales

import facemix_jax
from facemix_jax import gathering
from facemix_jax._files import write_atomically
from facemix_jax._validate import FacemixError, UsageError, one_of

HERE = Path(__file__).parent


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Runs the scripts of this folder, at ``smoke`` two at a time, and ``facemix report``.

    Command: ``python experiments/reproduce.py --scale smoke --out reproduction`` needs no files;
    ``python experiments/reproduce.py --celeba CELEBA --people PEOPLE --lfwa LFWA --out
    reproduction`` for the scale ``cpu``. A second call goes on where one stopped: finished cells
    and runs are not done again. A script that fails does not keep the others from running.

    Run time: ``smoke`` took 8 1/2 to 9 minutes on two quiet cores, about half of it compilation;
    ``cpu`` takes a day, by what its scripts took one by one.

    Expected: ``reproduction/report/index.html``, and what each script's docstring says.

    Attributes:
        out: folder for runs, results, pictures and the report.
        scale: smoke, cpu, gpu or paper; what has no larger scale than ``cpu`` runs at that.
        celeba: folder with the official CelebA files.
        people: folder with pictures of people to recognise, as in ``table2.py``.
        lfwa: folder with the official LFWA files.
        cache_dir: folder for decoded images; None for the data sets' default.
        only: names of scripts; None for all.
    """

    out: Path
    scale: scales.Name = "cpu"
    celeba: str | None = None
    people: str | None = None
    lfwa: str | None = None
    cache_dir: str | None = None
    only: tuple[str, ...] | None = None


class Step(NamedTuple):
    """One script.

    Attributes:
        data: option of ``Config`` whose folder is its ``--data-dir``; None where faces are drawn
            at every scale.
        largest: the largest scale that it has.
        workdirs: its option for runs and pictures, and their folder below ``out``.
        people: whether it takes ``--identity-dir``.
        script: whose file it is, where that is not the step's name.
        dataset: its option, of a script that knows both data sets.
        after: another script whose runs, or compiled programs, it uses.
    """

    data: str | None = "celeba"
    largest: str = "paper"
    workdirs: tuple[str, str] | None = ("--workdirs", "runs")
    people: bool = False
    after: str | None = None
    script: str | None = None
    dataset: places.Dataset | None = None


STEPS: dict[str, Step] = {
    "table2": Step(people=True),
    "table3": Step(data="lfwa", after="table2"),
    "figure4": Step(after="table2"),
    "figure5": Step(workdirs=("--pictures", "figure5")),
    "training_length": Step(after="figure4"),
    "training_length_lfwa": Step(data="lfwa", script="training_length", dataset="lfwa"),
    "between_scales": Step(data="lfwa", largest="cpu", after="training_length"),
    "between_scales_celeba": Step(largest="cpu", script="between_scales", dataset="celeba"),
    "anonymizer_weights": Step(people=True, after="table2"),
    "other_systems": Step(people=True, after="table2"),
    "sweep": Step(workdirs=("--workdir", "runs/sweep"), after="table2"),
    "linearity": Step(largest="cpu", workdirs=("--workdirs", "runs/accuracy")),
    "linearity_aids": Step(largest="cpu", after="table2"),
    "separation_real": Step(largest="cpu", workdirs=None),
    "regroup": Step(largest="cpu", workdirs=None),
    "phase": Step(workdirs=("--workdirs", "runs/phase")),
    "frontier": Step(largest="cpu", workdirs=("--workdirs", "runs/frontier"), people=True),
    "variants": Step(largest="cpu", people=True, after="table2"),
    "gaussian_codes": Step(largest="cpu", workdirs=("--workdirs", "runs/gaussian_codes")),
    "challenge_baseline": Step(data=None, largest="cpu", workdirs=None),
}
"""In order; ``table1.py`` needs none of this and comes first. ``linearity`` reads runs of
``accuracy_cpu.py``, which come before it."""


def steps(scale: scales.Name) -> tuple[str, ...]:
    """What runs at a scale; drawn faces are of no data set, so that one step of each script do."""
    return tuple(n for n, step in STEPS.items() if scale != "smoke" or step.dataset is None)


def command(name: str, config: Config) -> list[str]:
    """How one script is called."""
    step = STEPS[name]
    real = config.scale != "smoke"
    scale = config.scale if step.largest == "paper" or not real else step.largest
    result = config.out / "results" / f"{name}_{scale}.json"
    arguments = [f"--scale={scale}", f"--output={result}"]
    if step.workdirs is not None:
        option, folder = step.workdirs
        arguments.append(f"{option}={config.out / folder}")
    if step.dataset is not None:
        arguments.append(f"--dataset={step.dataset}")
    if real and step.data is not None:
        arguments.append(f"--data-dir={getattr(config, step.data)}")
        if config.cache_dir is not None and name != "linearity":
            arguments.append(f"--cache-dir={config.cache_dir}")
        if step.people and config.people is not None:
            arguments.append(f"--identity-dir={config.people}")
    return [sys.executable, str(HERE / f"{step.script or name}.py"), *arguments]


def commands(config: Config) -> dict[str, list[str]]:
    """All that is called, by name.

    Raises:
        UsageError: an unknown name, or a data set is missing.
    """
    names = config.only or ("table1", *steps(config.scale))
    for name in names:
        one_of(("table1", *STEPS), only=name)
    if config.scale != "smoke":
        wanted = {data for name in names if name != "table1" and (data := STEPS[name].data)}
        missing = sorted(f"--{data}" for data in wanted if getattr(config, data) is None)
        if missing:
            raise UsageError(
                f"{' and '.join(missing)} missing: scale {config.scale} reads real faces. Give the "
                f"folder, or use --scale smoke, or --only for scripts that do not need it."
            )
    found = {}
    for name in names:
        if name == "table1":
            result = config.out / "results" / "table1.json"
            found[name] = [sys.executable, str(HERE / "table1.py"), f"--json={result}"]
            continue
        if name == "linearity" and config.scale != "smoke":
            arguments = [
                f"--data-dir={config.celeba}",
                f"--workdirs={config.out / 'runs' / 'accuracy'}",
                f"--output={config.out / 'results' / 'accuracy_cpu.json'}",
            ]
            if config.cache_dir is not None:
                arguments.append(f"--cache-dir={config.cache_dir}")
            found["accuracy_cpu"] = [sys.executable, str(HERE / "accuracy_cpu.py"), *arguments]
        found[name] = command(name, config)
    return found


_FAST_COMPILATION = "--xla_backend_optimization_level"
"""Optimising saves less than it takes where a program runs a few times."""


def environment(config: Config) -> dict[str, str]:
    """Of every script: they share compiled programs, which are kept in ``out``.

    About half of a smoke test's time is compilation. What the user has set is left alone.
    """
    found = {
        "JAX_COMPILATION_CACHE_DIR": str((config.out / "compiled").absolute()),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        **os.environ,
    }
    flags = found.get("XLA_FLAGS", "")
    if config.scale == "smoke" and _FAST_COMPILATION not in flags:
        found["XLA_FLAGS"] = f"{flags} {_FAST_COMPILATION}=0".strip()
    return found


def fingerprint() -> str:
    """Of all code here and in the library: what other code has done is looked at again."""
    found = hashlib.sha256()
    for folder in (HERE, Path(facemix_jax.__file__).parent):
        for path in sorted(folder.rglob("*.py")):
            found.update(path.read_bytes())
    return found.hexdigest()


class Finished:
    """Scripts that came to their end, so that they are not even started again.

    Where the file is damaged none is known: the scripts find what they have done.

    Args:
        out: folder of the reproduction.
    """

    def __init__(self, out: Path) -> None:
        self._path = out / "finished.json"
        try:
            known = json.loads(self._path.read_text()) if self._path.exists() else {}
        except ValueError:
            known = {}
        self._known = known if isinstance(known, dict) else {}

    def has(self, name: str, words: Sequence[str], code: str) -> bool:
        """Whether the same code has done the same, and the results are still there."""
        return self._known.get(name) == [*words, code] and output_of(words).exists()

    def add(self, name: str, words: Sequence[str], code: str) -> None:
        """Notes it down."""
        self._known[name] = [*words, code]
        write_atomically(self._path, json.dumps(self._known, indent=1) + "\n")


def output_of(words: Sequence[str]) -> Path:
    """The results file of a call."""
    options = dict(word.partition("=")[::2] for word in words)
    return Path(options.get("--output") or options["--json"])


def results_of(out: Path) -> list[Path]:
    """All results files, in the order of the scripts."""
    order = ("table1", "accuracy_cpu", *STEPS)

    def place(path: Path) -> tuple[int, str]:
        found = (i for i, n in enumerate(order) if path.stem.startswith(n))
        return next(found, len(order)), path.name

    return sorted((out / "results").glob("*.json"), key=place)


def main(config: Config) -> int:
    """Runs everything.

    Returns:
        How many scripts failed.

    Raises:
        UsageError: an unknown name, a data set is missing, or ``out`` cannot be written.
    """
    planned = commands(config)
    for folder in (config.out, config.out / "results"):
        gathering.check_folder(folder)
    env, code, finished = environment(config), fingerprint(), Finished(config.out)
    waiting = []
    for name, words in planned.items():
        if finished.has(name, words, code):
            print(f"{name}: done before")
        else:
            waiting.append(name)

    def run(name: str) -> tuple[bool, float]:
        began = time.perf_counter()
        with (config.out / f"{name}.log").open("a") as log:
            done = subprocess.run(
                planned[name], env=env, stdout=log, stderr=subprocess.STDOUT, check=False
            )
        return done.returncode == 0, time.perf_counter() - began

    # Compilation keeps one core busy; what is measured at other scales has the machine alone.
    at_once = 2 if config.scale == "smoke" else 1
    running: dict[Future[tuple[bool, float]], str] = {}
    failed = 0
    with ThreadPoolExecutor(at_once) as pool:
        while waiting or running:
            open_ = {*waiting, *running.values()}
            ready = [name for name in waiting if STEPS.get(name, Step()).after not in open_]
            for name in ready[: at_once - len(running)]:
                waiting.remove(name)
                running[pool.submit(run, name)] = name
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                name, (good, seconds) = running.pop(future), future.result()
                log = config.out / f"{name}.log"
                print(f"{name}: {'done' if good else f'FAILED, see {log}'}, {seconds:.0f} s")
                if good:
                    finished.add(name, planned[name], code)
                failed += not good
    page = [sys.executable, "-m", "facemix_jax", "report", "--out", str(config.out / "report")]
    files = map(str, results_of(config.out))
    done = subprocess.run([*page, "--results", *files], check=False)
    return failed + (done.returncode != 0)


def start() -> NoReturn:
    """Runs everything with the command line's options; the exit code is 1 where a script failed."""

    def run(config: Config) -> None:
        if failed := main(config):
            raise FacemixError(
                f"{failed} of the scripts failed; their names and logs stand above. The same "
                f"command runs them again."
            )

    report.script(run, Config)


if __name__ == "__main__":
    start()
