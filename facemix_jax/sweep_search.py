"""Search over fields of the configuration with Optuna, which is optional (extra ``sweep``)."""

import contextlib
import functools
import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from facemix_jax import metrics, runs, sweep, sweep_summary
from facemix_jax._files import lock
from facemix_jax._validate import FacemixError, UsageError
from facemix_jax.runs import RunConfig
from facemix_jax.sweep import Setting, Trial


class Range(NamedTuple):
    """Numbers between two, uniformly or in their logarithm."""

    low: float
    high: float
    log: bool


_SETTING, _BEGUN = "setting", "begun"
"""Where an Optuna trial keeps its values, once all are drawn, and a study what is searched."""

Space = dict[str, Range | list[Any]]
"""Field to a range or to the values that it may have."""


def parse_space(texts: Iterable[str]) -> Space:
    """``train.learning_rate=log:1e-4:1e-2 defense.group_size=4,8 train.warmup_fraction=0:0.3``.

    Raises:
        UsageError: as ``sweep.parse_grid``, or a range is empty or endless.
    """
    space: Space = {}
    for text in texts:
        name, _, values = text.partition("=")
        if name in space:
            raise UsageError(f"{name} is given twice. Put all of it into one range or list.")
        if ":" not in values:
            space |= sweep.parse_grid([text])
            continue
        log = values.startswith("log:")
        ends = values.removeprefix("log:").split(":")
        if len(ends) != 2:
            raise UsageError(f"{text!r} is no range. Write field=low:high or field=log:low:high.")
        low, high = (sweep.parse_value(name, end) for end in ends)
        if (
            not all(type(end) in (int, float) and math.isfinite(end) for end in (low, high))
            or not low < high
            or (log and low <= 0)
        ):
            raise UsageError(
                f"{text!r} is no range: low and high must be finite numbers, low below high, and "
                f"positive with log. Write field=low:high or field=log:low:high, and what is no "
                f"number as a list: field=True,False."
            )
        space[name] = Range(low, high, log)
    return space


def search(
    base: RunConfig,
    space: Space,
    *,
    folder: Path,
    num_trials: int,
    num_seeds: int,
    parallel: int,
    metric: str,
    split: str,
    check: Callable[[Sequence[Trial]], None],
    execute: Callable[[Sequence[Trial]], None],
    say: Callable[[str], None],
) -> list[Trial]:
    """Finds the setting with the highest metric, mean over seeds; a second call goes on.

    The study is kept in ``folder/optuna.log``; trials that were running when it was killed are
    run again first. A setting whose values do not fit each other fails, and the others go on.

    Args:
        base: what does not vary.
        space: what does.
        folder: of the sweep.
        num_trials: settings to try, with those of earlier calls.
        num_seeds: runs of each.
        parallel: settings asked for at a time.
        metric: one of ``sweep_summary.METRICS``.
        split: on which the metric is taken.
        check: raises ``UsageError`` for trials that cannot run.
        execute: trains and evaluates trials; those done are left alone.
        say: is told of settings that cannot run.

    Returns:
        All trials that can run, each once, however often its setting was asked for.

    Raises:
        UsageError: Optuna is not installed, another search was begun in this folder, or on other
            images, or runs there now, or none of the settings can run.
        DataError: as ``sweep.check_claims``.
        FacemixError: ``optuna.log`` is damaged.
    """
    if "train.seed" in space and num_seeds > 1:
        raise UsageError(
            f"num_seeds is {num_seeds}, but train.seed stands in the search. Give one of them."
        )
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ModuleNotFoundError:
        raise UsageError("--search needs Optuna: pip install 'facemix-jax[sweep]'") from None
    logging.getLogger("optuna").setLevel(logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        journal = folder / "optuna.log"
        _check_journal(journal)
        storage = JournalStorage(JournalFileBackend(str(journal)))
        study = optuna.create_study(
            storage=storage, study_name="sweep", direction="maximize", load_if_exists=True
        )
        _check_same(
            study,
            folder,
            {
                "num_seeds": num_seeds,
                "metric": metric,
                "split": split,
                **{f"the search of {name}": of for name, of in space.items()},
                **{
                    f"{part}.{name}": value
                    for part, values in runs.essential(base).items()
                    for name, value in values.items()
                    if f"{part}.{name}" not in space
                },
            },
        )
        # Another seed in every call: the same one would ask for the first settings again.
        study.sampler = optuna.samplers.TPESampler(seed=len(study.trials))
        reasons: list[str] = []
        images = functools.cache(runs.images_named)

        def runnable(setting: Setting) -> list[Trial]:
            """The trials of a setting; none where its values do not fit each other."""
            fixed = {name: [value] for name, value in setting.items()}
            try:
                batch = sweep.expand(base, fixed, num_seeds, folder)
                check(batch)
            except UsageError as error:
                reasons.append(str(error))
                say(f"left out: {error}")
                return []
            sweep.check_claims(batch, images)
            return batch

        running, failed = optuna.trial.TrialState.RUNNING, optuna.trial.TrialState.FAIL
        asked: list[tuple[int, Setting]] = []
        trials: list[Trial] = []
        for old in study.get_trials(deepcopy=False):
            if _SETTING not in old.user_attrs:  # killed before it was drawn: does not count
                num_trials += 1
                if old.state == running:
                    study.tell(old.number, state=failed)
            elif old.state == running:
                asked.append((old.number, old.user_attrs[_SETTING]))
            else:
                trials += runnable(old.user_attrs[_SETTING])
        while asked or len(study.trials) < num_trials:
            while not asked or (len(asked) < parallel and len(study.trials) < num_trials):
                new = study.ask()
                setting = {name: _suggest(new, name, of) for name, of in space.items()}
                new.set_user_attr(_SETTING, setting)
                asked.append((new.number, setting))
            batches = [(number, runnable(setting)) for number, setting in asked]
            asked = []
            execute(sweep.distinct(each for _, batch in batches for each in batch))
            for number, batch in batches:
                results = (sweep_summary.read_result(each, split) for each in batch)
                found = [result[metric] for result in results if result is not None]
                if batch and len(found) == len(batch):
                    study.tell(number, metrics.mean_interval(found)[0])
                else:
                    study.tell(number, state=failed)
                trials += batch
        if not trials:
            raise UsageError(
                f"None of the {len(reasons)} settings that the search drew can run; the last: "
                f"{reasons[-1]} Give another --search, and another --workdir."
            )
        return sweep.distinct(trials)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keeps a second search out: each would tell Optuna of the other's trials."""
    with (folder / "search.lock").open("a") as file:
        try:
            lock(file, wait=False)
        except BlockingIOError:
            raise UsageError(
                f"Another search runs in {folder}. Wait for it or stop it, or give another "
                f"--workdir."
            ) from None
        yield


def _check_journal(path: Path) -> None:
    """Raises ``FacemixError`` where a line is not whole: what Optuna appends would be lost, too."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            whole = isinstance(json.loads(line), dict) and line.endswith(b"\n")
        except ValueError:
            whole = False
        if not whole:
            what, mend = f"line {number} of {len(lines)}", "Restore the file"
            if number == len(lines):
                what, mend = f"its last line, {number}", "Delete that line to go on without it"
            shown = line[:60].decode(errors="replace").rstrip()
            raise FacemixError(
                f"{path} is damaged in {what}, which begins with {shown!r}; a kill or a full disk "
                f"may have cut it off. {mend}, or give another --workdir."
            )


def _check_same(study: Any, folder: Path, what: dict[str, Any]) -> None:
    """Keeps what is searched with a study that is new; any other must have been begun with it."""
    now = json.loads(json.dumps(what))  # as the study has it: tuples are lists there
    kept = study.user_attrs.get(_BEGUN)
    if kept is None:
        study.set_user_attr(_BEGUN, now)
        return
    older = {f"train.{name}" for name in runs.INTERVALS}  # which studies kept at first
    there = {name: value for name, value in kept.items() if name not in older}
    differences = [
        f"{name} is {there.get(name)} there and {now.get(name)} here"
        for name in {**there, **now}
        if there.get(name) != now.get(name)
    ]
    if differences:
        raise UsageError(
            f"{folder} holds another search: {'; '.join(differences)}. Give the same options to go "
            f"on with it, or another --workdir."
        )


def _suggest(trial: Any, name: str, of: Range | list[Any]) -> Any:
    if isinstance(of, list) and any(isinstance(value, tuple) for value in of):
        # As text: Optuna compares choices with those it kept, and JSON gives tuples back as lists.
        # The name is another than the field's, under which older journals hold such lists.
        texts = {str(value): value for value in of}
        return texts[trial.suggest_categorical(f"{name} as text", list(texts))]
    if isinstance(of, list):
        return trial.suggest_categorical(name, of)
    if isinstance(of.low, int) and isinstance(of.high, int):
        return trial.suggest_int(name, of.low, of.high, log=of.log)
    return trial.suggest_float(name, of.low, of.high, log=of.log)
