"""What commands print: tables for people, JSON for programs, notes on standard error."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from facemix_jax._files import behind_links, expanded, is_special, write_atomically
from facemix_jax._validate import FacemixError, UsageError
from facemix_jax.attacks import Figure
from facemix_jax.provenance import provenance
from facemix_jax.run_files import check_not_own

NOTES = Console(stderr=True, highlight=False, markup=False)
"""Progress and remarks; brackets, as in paths and shapes, are no markup."""

RIDGE = "Ridge regression takes no training; Pix2Pix does, and may do better: facemix attack."
"""Stands below figures of what no key protects."""


def utility_table(result: dict[str, Any]) -> Table:
    """Accuracy, and below it what leaks, so that neither is seen without the other."""
    rows: list[tuple[str, str, str]] = [
        (name, f"{result[name]['accuracy']:.2%}", f"{result[name]['balanced_accuracy']:.2%}")
        for name in ("clean", "protected")
        if name in result
    ]
    names = ("majority_accuracy", "majority_balanced_accuracy")
    accuracy, balanced = (f"{result['clean'][name]:.2%}" for name in names)
    rows.append(("always the more frequent class", accuracy, balanced))
    for attack, figure in result["leakage"].items():
        learned = f"attacker {figure['value']:.3f}, floor {figure['floor']:.3f}"
        rows.append(
            (f"leakage: {figure['name']}, {attack}", learned, f"owner {figure['owner']:.3f}")
        )
    title = f"{result['split']} split, {result['clean']['examples']} images"
    made = table(title, ("accuracy", "balanced"), rows)
    remarks = [RIDGE] if "restoration" in result["leakage"] else []
    remarks += [f"Left out: {name}. {reason}" for name, reason in result["skipped"].items()]
    made.caption = "\n".join([*remarks, *_one_class(result["clean"])]) or None
    return made


def _one_class(scores: Mapping[str, Any]) -> list[str]:
    """Why a constant answer is balanced to more than one half; empty where it is not."""
    balanced = scores["majority_balanced_accuracy"]
    if balanced == 0.5:
        return []
    count = len(scores["per_attribute"])
    alone = round((2 * balanced - 1) * count)  # each adds 1 to the mean, the others 0.5
    return [
        f"Attributes of which these images show one class only: {alone} of {count}. Their "
        f"balanced accuracy is the recall of that class, 100% for always giving it; so the more "
        f"frequent class has {balanced:.2%} and not 50%."
    ]


def figures_table(title: str, figures: Mapping[str, Figure]) -> Table:
    """Privacy figures by attack, between their floor and the owner's own recovery."""
    return table(
        title,
        ("no attack", "attacker", "owner", "key advantage"),
        [
            (name, *(f"{v:.3f}" for v in (f.floor, f.value, f.owner, f.key_advantage)))
            for name, f in figures.items()
        ],
    )


def figure_dict(figure: Figure) -> dict[str, Any]:
    """A privacy figure with its key advantage, ready for JSON."""
    return {**figure._asdict(), "key_advantage": figure.key_advantage}


def figure_dicts(figures: Mapping[str, Figure]) -> dict[str, dict[str, Any]]:
    """Privacy figures by attack, ready for JSON."""
    return {name: figure_dict(figure) for name, figure in figures.items()}


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str | Text]]) -> Table:
    """A table whose first column is named ``title`` and left-aligned; brackets are no markup."""
    made = Table(title, *header)
    for column in made.columns[1:]:
        column.justify = "right"
        column.overflow = "fold"  # a number that lost its last digits would be another one
    for row in rows:
        made.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    return made


def check_file(path: str | Path | None, option: str) -> None:
    """Makes sure, before any work, that a result can be written.

    Args:
        path: of the file; None or ``-`` for none.
        option: where it was given.

    Raises:
        UsageError: there is no such folder, it cannot be written, or the path is a folder or what
            a run keeps.
    """
    if path is None or path == "-":
        return
    place = Path(path)
    reason = "it is a folder" if place.is_dir() else None
    if is_special(place):
        reason = None if os.access(place, os.W_OK) else "permission denied"
    elif reason is None:
        try:
            target = behind_links(place)
            probe = target.with_name(f".{target.name}.probe.{os.getpid()}")
            probe.touch()
            probe.unlink()
        except OSError as error:
            reason = f"{os.path.dirname(os.path.realpath(place))}: {error.strerror}"
    if reason is not None:
        raise UsageError(f"{place} cannot be written: {reason}. Choose another {option} path.")
    if not is_special(place):
        check_not_own(place, option)


def check_png(path: Path | None, option: str) -> None:
    """``check_file`` of a picture, which is a PNG whatever its name says.

    Args:
        path: of the file; None for none.
        option: where it was given.

    Raises:
        UsageError: as ``check_file``, or the name does not end in ``.png``.
    """
    check_file(path, option)
    if path is not None and not is_special(path) and path.suffix.lower() != ".png":
        raise UsageError(
            f"{path} does not end in .png, but {option} writes a PNG. Choose another {option} path."
        )


def check_apart(
    written: Mapping[str, str | Path | None], read: Iterable[str | Path | None]
) -> None:
    """Makes sure, before any work, that no result replaces another one or what a command reads.

    Args:
        written: paths of results by their options; None or ``-`` for none.
        read: paths of what is read; None for nothing.

    Raises:
        UsageError: two paths lead to one file.
    """
    taken = {os.path.realpath(path) for path in read if path is not None}  # links in a circle, too
    options: dict[str, str] = {}
    for option, path in written.items():
        if path is None or path == "-" or is_special(Path(path)):
            continue
        place = os.path.realpath(path)
        if place in taken:
            raise UsageError(
                f"{option} {path} is a file that this command reads, which the result would "
                f"replace. Choose another {option} path."
            )
        if other := options.get(place):
            raise UsageError(
                f"{other} and {option} name the same file. Give each a path of its own."
            )
        options[place] = option


def check_outside(written: Mapping[str, str | Path | None], data_dir: str | None) -> None:
    """Makes sure, before any work, that no result replaces a file in a data set's folder.

    Args:
        written: paths of results by their options; None or ``-`` for none.
        data_dir: the folder; None for none.

    Raises:
        UsageError: a path leads to a file there.
    """
    if data_dir is None:
        return
    ways = os.path.abspath, os.path.realpath  # links lead into the folder, or out of it
    folders = [way(expanded(data_dir)) for way in ways]
    for option, path in written.items():
        if path is None or path == "-" or not os.path.isfile(path):
            continue
        if any(Path(way(path)).is_relative_to(folder) for way in ways for folder in folders):
            raise UsageError(
                f"{option} {path} is there already, in the data set's folder, where no result "
                f"replaces a file. Choose another {option} path."
            )


def emit(path: str | None, result: dict[str, Any], *tables: Table) -> None:
    """Tables to standard output, or JSON there or to a file."""
    text = json.dumps({**result, "provenance": provenance()}, indent=2)
    if path == "-":
        print(text)
        return
    console = Console(highlight=False)
    for each in tables:
        console.print(each)
    if path is not None:
        try:
            write_atomically(Path(path), text + "\n")
        except OSError as error:
            raise FacemixError(
                f"The result cannot be written to {path}: {error}. Choose another --json path."
            ) from error
