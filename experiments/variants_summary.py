"""The tables of ``variants.py``: separation, and what is recognised from one cloud's rows."""

from collections.abc import Mapping, Sequence
from typing import Any

import report
import sides

from facemix_jax.results import Column, ResultTable

UTILITY = "utility"
SEPARATIONS = ("gradient_ica", "robust")
"""Attacks on the activations themselves, each a part of the cells."""


def tables(cells: Sequence[Mapping[str, Any]], size: str) -> list[ResultTable]:
    """Separation, and recognition."""
    asked = [cell for cell in cells if "figures" in cell]
    return ([table(cells, size)] if cells else []) + ([recognition(cells, size)] if asked else [])


def recognition(cells: Sequence[Mapping[str, Any]], size: str) -> ResultTable:
    """What is recognised and drawn from the rows of one cloud, a row for each variant."""
    separated = "activations, strongest"
    columns = {
        "attributes": Column(
            name="attributes", format="percent", strongest="attributes, strongest"
        ),
        "attributes, strongest": Column(name="attributes, strongest", format="percent"),
        "set_attributes": Column(name="of a group", format="percent", strongest=separated),
        "set_attributes, floor": Column(name="no attack", format="percent"),
        "identity": Column(name="persons", format="percent", strongest="persons, strongest"),
        "identity, strongest": Column(name="persons, strongest", format="percent"),
        "identity, chance": Column(name="chance", format="percent"),
        "set_identity": Column(
            name="persons of a group", format="percent", strongest="by row spaces"
        ),
        "membership": Column(name="by row spaces", format="percent"),
        "set_identity, chance": Column(name="chance, group", format="percent"),
        "pix2pix": Column(name="faces, Pix2Pix", format="fixed3", strongest=separated),
        "pix2pix, floor": Column(name="mean face", format="fixed3"),
        "separated": Column(name=separated, format="fixed3"),
    }
    flat = []
    for label, own in by_row(cells).items():
        row: dict[str, Any] = {"label": label}
        met = [cell["value"] for cell in own if cell["part"] in SEPARATIONS]
        asked = [cell for cell in own if "figures" in cell]
        if asked and met:
            row["separated"] = max(met)
        for cell in asked:
            first = cell["figures"][0]
            row[cell["part"]] = first["value"]
            row[f"{cell['part']}, strongest"] = max(f["value"] for f in cell["figures"])
            row[f"{cell['part']}, floor"] = first["floor"]
            if first["chance"] is not None:
                row[f"{cell['part']}, chance"] = report.derived(first["chance"])
        flat += [row] if asked else []
    return ResultTable(
        title=f"Recognised and drawn from the rows of one cloud: {size}",
        columns=tuple(columns.values()),
        rows=report.rows(flat, lambda row: str(row["label"]), columns),
        note="Attributes: balanced accuracy, of single rows, of these after gradient ICA where "
        "that is more, and of a group's members, matched. Persons: share named, likewise, and "
        "by other pictures of theirs held against row spaces. Faces: minus the mean squared error "
        "in [-1, 1], matched.",
    )


def table(cells: Sequence[Mapping[str, Any]], size: str) -> ResultTable:
    """A row for each variant."""
    flat = [row_of(own, name) for name, own in by_row(cells).items()]
    columns = {
        "accuracy": Column(name="test acc.", format="percent"),
        "balanced_accuracy": Column(name="balanced acc.", format="percent"),
        "floor": Column(name="no attack", format="fixed3"),
        "gradient_ica": Column(name="gradient ICA", format="fixed3", strongest="strongest"),
        "robust": Column(name="robust", format="fixed3", strongest="strongest"),
        "value": Column(name="strongest", format="fixed3"),
        "owner": Column(name="owner", format="fixed3"),
        "key_advantage": Column(name="key advantage", format="fixed3"),
        **sides.COLUMNS,
        "rows_sent": Column(name="rows sent"),
        "rows_ahead": Column(name="rows ahead"),
    }
    return ResultTable(
        title=f"Variants of mixing, M = 8, cut 1: {size}",
        columns=tuple(columns.values()),
        rows=report.rows(flat, lambda row: str(row["label"]), columns),
        note="Mean matched |correlation| of activations; with several clouds, of the images that "
        "one cloud's rows match best. Filtered: every side's rows by the best of seven linear "
        "filters from public statistics; guess: other faces in their place; granted: whoever knows "
        "the mixing matrix and no more, over all images. Rows, for each image: sent and run "
        "through main by the clouds, and run through main by the edge ahead of the request.",
    )


def by_row(cells: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """The cells of each variant and seed, by what their row is called."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for cell in cells:
        label = cell["variant"] + (f", seed {cell['seed']}" if cell["seed"] else "")
        found.setdefault(label, []).append(cell)
    return found


def row_of(cells: Sequence[Mapping[str, Any]], label: str) -> dict[str, Any]:
    """One row's cells; the strongest is the larger of the attacks that were run."""
    parts = {cell["part"]: cell for cell in cells}
    row: dict[str, Any] = {"label": label, **parts.get(UTILITY, {})}
    for name in ("rows_sent", "rows_ahead"):
        if name in row:
            row[name] = report.derived(row[name])
    met = [parts[name] for name in SEPARATIONS if name in parts]
    row |= {cell["part"]: cell["value"] for cell in met}
    if met:
        strongest = max(met, key=lambda cell: cell["value"])
        row |= {name: strongest[name] for name in ("value", "floor", "owner", "key_advantage")}
        row |= sides.named(strongest["filtered"])
        row["value, filtered"] = max(cell["filtered"]["value"] for cell in met)
    return row
