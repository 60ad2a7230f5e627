"""Many runs: a grid or a search over any field of the configuration, one directory for each.

A trial's directory is named by a hash of its configuration, so that the same command finds what
is done, goes on with what is not, and never trains the same configuration twice; nor do those of a
grid that differ only in what their defence does not take.
"""

import csv
import dataclasses
import hashlib
import io
import itertools
import json
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table

from facemix_jax import defenses, metrics, output, runs
from facemix_jax._files import write_atomically
from facemix_jax._validate import UsageError, one_of
from facemix_jax.data import DataConfig
from facemix_jax.runs import RunConfig
from facemix_jax.trials import FAILURE, scored

PARTS = ("data", "model", "defense", "train")
_ALIKE = ("seed", "learning_rate", "weight_decay")
"""Fields of ``train`` in which runs that train together may differ."""

Setting = dict[str, Any]
"""Dotted field to value, as in ``{"train.learning_rate": 1e-3}``."""


class Trial(NamedTuple):
    """One run of a sweep.

    Attributes:
        setting: the fields that the sweep varies, and ``train.seed``.
        config: of the run.
        workdir: of the run.
    """

    setting: Setting
    config: RunConfig
    workdir: Path


def parse_grid(texts: Iterable[str]) -> dict[str, list[Any]]:
    """``train.learning_rate=1e-3,3e-3 data.image_size=64x48,109x89`` to typed values.

    Raises:
        UsageError: a field does not exist, or a value has another type.
    """
    grid: dict[str, list[Any]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals or not values:
            raise UsageError(
                f"{text!r} is no list of values. Write part.field=value,value as in "
                f"train.learning_rate=1e-3,3e-3."
            )
        if name in grid:
            raise UsageError(f"{name} is given twice. Put all of its values into one list.")
        grid[name] = [parse_value(name, value) for value in values.split(",")]
    return grid


def parse_value(name: str, text: str) -> Any:
    """One value of a field, as its dataclass declares it.

    Raises:
        UsageError: as ``parse_grid``.
    """
    kind = field_type(name)
    several = typing.get_origin(kind) in (types.UnionType, typing.Union)
    options = typing.get_args(kind) if several else (kind,)
    if type(None) in options and text.lower() == "none":
        return None
    for option in options:
        try:
            if option is bool and text.lower() in ("true", "false"):
                return text.lower() == "true"
            if typing.get_origin(option) is tuple:
                return tuple(int(part) for part in text.split("x"))
            if option in (int, float, str):
                return option(text)
        except ValueError:
            continue
    wanted = " or ".join(getattr(option, "__name__", str(option)) for option in options)
    raise UsageError(
        f"{name} is {text!r}, but must be {wanted}. Lists are separated by commas, sizes written "
        f"109x89, and True, False and None as here."
    )


def field_type(name: str) -> Any:
    """The declared type of ``part.field``.

    Raises:
        UsageError: there is no such field, or runs that differ in it are one run.
    """
    part, _, field = name.partition(".")
    one_of(PARTS, **{f"the part of {name!r}": part})
    declared = typing.get_type_hints(type(getattr(RunConfig(), part)))
    one_of(declared, **{f"field of {part}": field})
    if part == "data" and field in runs.PLACES:
        raise UsageError(
            f"{name} says where images are, and runs that differ in it alone count as one. Give "
            f"one --{field.replace('_', '-')} to the whole sweep; other images need another sweep."
        )
    if part == "train" and field in runs.INTERVALS:
        raise UsageError(
            f"{name} says when runs are recorded or saved, and runs that differ in it alone count "
            f"as one. Give one --{field.replace('_', '-')} to the whole sweep."
        )
    return declared[field]


def configure(base: RunConfig, setting: Mapping[str, Any]) -> RunConfig:
    """The base with some fields changed.

    Raises:
        UsageError: the values do not fit each other.
    """
    parts: dict[str, dict[str, Any]] = {}
    for name, value in setting.items():
        part, _, field = name.partition(".")
        parts.setdefault(part, {})[field] = value
    try:
        return dataclasses.replace(
            base,
            **{
                part: dataclasses.replace(getattr(base, part), **values)
                for part, values in parts.items()
            },
        )
    except UsageError as error:
        shown = ", ".join(f"{name} = {value}" for name, value in setting.items())
        raise UsageError(f"With {shown}: {error}") from None


def config_hash(config: RunConfig) -> str:
    """Twelve hexadecimal digits that stand for a run, wherever its data and devices are."""
    text = json.dumps(runs.portable(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def trial(base: RunConfig, setting: Setting, folder: Path) -> Trial:
    """The trial of a setting, in its directory below ``folder``."""
    # Sizes are lists where a setting was read from JSON.
    setting = {n: tuple(v) if isinstance(v, list) else v for n, v in setting.items()}
    config = configure(base, setting)
    return Trial(setting, config, folder / config_hash(config))


def expand(
    base: RunConfig, grid: Mapping[str, Sequence[Any]], num_seeds: int, folder: Path
) -> list[Trial]:
    """Every combination of a grid, each with ``num_seeds`` seeds from the base's on.

    Of those that differ only in what their defence does not take, as the group size of ``none``,
    the first stands for all.

    Raises:
        UsageError: a combination does not fit; nothing has started then.
    """
    seeds = [base.train.seed + index for index in range(num_seeds)]
    if "train.seed" in grid:
        if num_seeds > 1:
            raise UsageError(
                f"num_seeds is {num_seeds}, but train.seed stands in the grid. Give one of them."
            )
        seeds = list(grid["train.seed"])
    names = [name for name in grid if name != "train.seed"]
    trials = [
        trial(base, {**dict(zip(names, values, strict=True)), "train.seed": seed}, folder)
        for values in itertools.product(*(grid[name] for name in names))
        for seed in seeds
    ]
    first: dict[str, Trial] = {}
    for each in trials:
        same = dataclasses.replace(each.config, defense=defenses.used(each.config.defense))
        first.setdefault(config_hash(same), each)
    return list(first.values())


def distinct(trials: Iterable[Trial]) -> list[Trial]:
    """Each directory's trial once: settings can come to the same run."""
    return list({each.workdir: each for each in trials}.values())


def groups(trials: Iterable[Trial], at_once: int) -> list[list[Trial]]:
    """Trials that one program can train together, at most so many at once; see ``population``."""
    found: dict[str, list[Trial]] = {}
    for each in trials:
        values = runs.portable(each.config)
        for name in _ALIKE:
            del values["train"][name]
        found.setdefault(json.dumps(values, sort_keys=True), []).append(each)
    return [
        alike[first : first + at_once]
        for alike in found.values()
        for first in range(0, len(alike), at_once)
    ]


Images = Callable[[DataConfig], Mapping[str, Any]]
"""``runs.images_named``, cached: trials share their images."""


def check_claims(trials: Iterable[Trial], images: Images) -> None:
    """Makes sure that no trial's directory holds another run or one on other images.

    Raises:
        UsageError: as ``runs.check_claim``.
        DataError: a directory says what its images were, and those given cannot be read.
    """
    for each in trials:
        runs.check_claim(each.workdir, each.config)
        config = each.config.data  # drawn faces follow from it
        if config.data_dir is not None and runs.read_images(each.workdir) is not None:
            runs.check_claim(each.workdir, each.config, images=images(config))


def claim(trials: Iterable[Trial]) -> None:
    """Makes the trials' directories, each with its ``config.json``.

    Raises:
        FacemixError: as ``runs.claim``.
    """
    for each in trials:
        runs.claim(each.workdir, each.config)


METRICS = {
    "accuracy": ("protected", "accuracy"),
    "balanced_accuracy": ("protected", "balanced_accuracy"),
    "clean_accuracy": ("clean", "accuracy"),
    "clean_balanced_accuracy": ("clean", "balanced_accuracy"),
}
"""What a summary holds of ``result.json``; plain runs have no protected scores."""
LEAKAGE = {"leak_quick_attack": "value", "leak_no_attack": "floor", "leak_owner": "owner"}
"""Of the quick attack that ``evaluate`` runs, beside its floor and ceiling."""
QUICK = (
    "The quick attack is gradient ICA, or ridge regression where there is no key. It is not the "
    "strongest: facemix report --workdirs runs that."
)
"""Stands below tables with its figures: the strongest attacks train networks of their own."""

SHOWN = {
    "accuracy": "accuracy",
    "majority_accuracy": "majority",
    "balanced_accuracy": "balanced",
    "leak_quick_attack": "quick attack",
    "leak_no_attack": "no attack",
    "leak_owner": "owner",
}
"""What tables have room for; ``majority`` always gives the more frequent answer."""


def metrics_of(result: Mapping[str, Any]) -> dict[str, float]:
    """The figures of one trial."""
    found = {}
    for name, (part, metric) in METRICS.items():
        found[name] = float(result.get(part, result["clean"])[metric])
    found["majority_accuracy"] = float(result["clean"]["majority_accuracy"])
    figure = result["leakage"][0]
    return found | {name: float(figure[key]) for name, key in LEAKAGE.items()}


def read_result(each: Trial, split: str) -> dict[str, float] | None:
    """The figures of a trial whose split is scored; None otherwise."""
    found = scored(each.workdir, split)
    return None if found is None else metrics_of(found)


def failed(each: Trial, split: str) -> bool:
    """Whether a trial ended without a result for the split."""
    return (each.workdir / FAILURE).exists() and read_result(each, split) is None


def summarize(trials: Iterable[Trial], split: str) -> list[dict[str, Any]]:
    """One row for each setting, over its seeds.

    Returns:
        Rows with the setting's fields, ``split``, ``device`` that scored it, ``seeds`` done,
        ``failed``, and each metric's mean and ``.interval`` (half the width, 95%; None for one
        seed).
    """
    rows: dict[str, tuple[Setting, list[Trial]]] = {}
    for each in trials:
        setting = {name: value for name, value in each.setting.items() if name != "train.seed"}
        rows.setdefault(json.dumps(setting, sort_keys=True), (setting, []))[1].append(each)
    table = []
    for setting, members in rows.values():
        found = [done for each in members if (done := scored(each.workdir, split)) is not None]
        results = [metrics_of(result) for result in found]
        row: dict[str, Any] = {**setting, "split": split}
        # The runs': this process leaves the accelerator to them.
        row["device"] = ", ".join(sorted({result["provenance"]["device"] for result in found}))
        row["seeds"] = len(results)
        row["failed"] = sum(failed(each, split) for each in members)
        for name in results[0] if results else ():
            row[name], row[f"{name}.interval"] = metrics.mean_interval([r[name] for r in results])
        table.append(row)
    return table


SUMMARIES = ("summary.csv", "summary.md", "summary.json", "summary.png")
"""Files of a sweep's folder; the last is the command's ``picture``."""


def write_summary(folder: Path, trials: Sequence[Trial], split: str) -> list[dict[str, Any]]:
    """Writes ``summary.csv``, ``.json`` and ``.md``, and returns the rows."""
    rows = summarize(trials, split)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    lines = [[*columns], ["---"] * len(columns)]
    lines += [[shown(row.get(name)) for name in columns] for row in rows]
    markdown = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    listing = {str(each.workdir.name): each.setting for each in trials}
    report = {"rows": rows, "trials": listing}
    write_atomically(folder / "summary.csv", text.getvalue())
    write_atomically(folder / "summary.md", f"{markdown}\n{QUICK}\n")
    write_atomically(folder / "summary.json", json.dumps(report, indent=1) + "\n")
    return rows


def seeds_table(results: Mapping[int, Mapping[str, Any]], diverged: Sequence[int] = ()) -> Table:
    """The figures of each seed, and their mean with its 95% confidence interval.

    Args:
        results: of each seed, at least one.
        diverged: the seeds that have none; they are no part of the mean.
    """
    found = {
        seed: {short: metrics_of(result)[name] for name, short in SHOWN.items()}
        for seed, result in results.items()
    }
    names = tuple(SHOWN.values())
    rows = [
        (f"seed {seed}", *(f"{value:.4f}" for value in each.values()))
        for seed, each in found.items()
    ]
    rows += [(f"seed {seed}", "diverged", *("-" for _ in names[1:])) for seed in diverged]
    rows.append(("mean", *(_with_interval([e[name] for e in found.values()]) for name in names)))
    made = output.table(f"{next(iter(results.values()))['split']} split", names, rows)
    made.caption = QUICK
    return made


def rows_table(rows: Sequence[Mapping[str, Any]], varied: Sequence[str]) -> Table:
    """The rows of ``summarize`` for people."""
    lines = [
        (
            ", ".join(f"{name.partition('.')[2]} {shown(row[name])}" for name in varied),
            f"{row['seeds']}" + (f" ({row['failed']} failed)" if row["failed"] else ""),
            *(_pair(row.get(name), row.get(f"{name}.interval")) for name in SHOWN),
        )
        for row in rows
    ]
    made = output.table(f"{rows[0]['split']} split", ("seeds", *SHOWN.values()), lines)
    made.caption = f"Means over seeds, with 95% intervals. {QUICK}"
    return made


def picture(rows: Sequence[Mapping[str, Any]], varied: Sequence[str]) -> bytes:
    """A PNG of the accuracies of each row, with their intervals."""
    from facemix_jax import charts  # Imported here: matplotlib takes time.

    def numbers(name: str) -> np.ndarray:
        values = [row.get(name) for row in rows]
        return np.array([np.nan if value is None else value for value in values])

    names = [", ".join(shown(row[name]) for name in varied) for row in rows]
    series = {
        name.replace("_", " "): (numbers(name), np.nan_to_num(numbers(f"{name}.interval")))
        for name in ("accuracy", "balanced_accuracy")
    }
    return charts.intervals(names, series, x_label=f"{', '.join(varied)}: score, 95% interval")


def _with_interval(values: Sequence[float]) -> str:
    return _pair(*metrics.mean_interval(values))


def _pair(mean: float | None, width: float | None) -> str:
    if mean is None:
        return "-"
    return f"{mean:.4f}" if width is None else f"{mean:.4f} ± {width:.4f}"


def shown(value: Any) -> str:
    """A value in a table."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
