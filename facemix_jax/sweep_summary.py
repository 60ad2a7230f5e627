"""What a sweep found: figures of its trials, means over seeds, tables and a picture."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from facemix_jax import metrics, output
from facemix_jax._files import write_atomically
from facemix_jax.sweep import Setting, Trial
from facemix_jax.trials import FAILURE, scored

METRICS = {
    "accuracy": ("protected", "accuracy"),
    "balanced_accuracy": ("protected", "balanced_accuracy"),
    "clean_accuracy": ("clean", "accuracy"),
    "clean_balanced_accuracy": ("clean", "balanced_accuracy"),
}
"""What a summary holds of ``result.json``; plain runs have no protected scores."""
LEAKAGE = {"leak_strongest_attack": "value", "leak_no_attack": "floor", "leak_owner": "owner"}
"""Of the strongest attack that ``evaluate`` runs, beside its floor and ceiling."""
UNTRAINED = (
    "Attack: the strongest of gradient ICA and the separations that facemix attack runs beside it. "
    "Where there is no key it is ridge regression, and Pix2Pix, which takes training, may do "
    "better: facemix report --workdirs runs both."
)
"""Stands below tables with its figures."""

SHOWN = {
    "accuracy": "accuracy",
    "majority_accuracy": "majority",
    "balanced_accuracy": "balanced",
    "leak_strongest_attack": "strongest attack",
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
    figure = result["strongest"]
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
    write_atomically(folder / "summary.md", f"{markdown}\n{UNTRAINED}\n")
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
    made.caption = UNTRAINED
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
    made.caption = f"Means over seeds, with 95% intervals. {UNTRAINED}"
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
