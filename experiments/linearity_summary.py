"""Tables of the cells of ``linearity.py``."""

from collections.abc import Mapping, Sequence
from typing import Any

import report

from facemix_jax import metrics
from facemix_jax.results import Column, ResultTable, Row, Value

NETWORK, RELATION, FRESH = "network", "error_and_accuracy_lost", "fresh_networks"
"""Parts that the cells are of."""

GROUP_SIZE = 8

Cells = Sequence[Mapping[str, Any]]

NOTE = "Relative unmix error; 0 is exact. It says nothing of privacy."


def summarize(cells: Cells) -> report.Summary:
    """Errors, their causes, what they cost, and fresh networks beside."""
    networks = {cell["network"]: cell for cell in cells if cell["part"] == NETWORK}
    others = {cell["part"]: cell for cell in cells if cell["part"] != NETWORK}
    tables = [errors(networks), families(networks)]
    if RELATION in others:
        tables.append(lost(others[RELATION]))
    if FRESH in others:
        tables.append(fresh(others[FRESH]["rows"]))
    tables.append(by_dtype(networks))
    return [table for table in tables if table.rows], ()


def errors(networks: Mapping[str, Any]) -> ResultTable:
    """End to end, with the interval over keys, and by cause."""
    columns = (
        Column(name="features", format="fixed3"),
        Column(name="logits", format="fixed3"),
        Column(name="shifts alone", format="fixed3"),
        Column(name="ReLUs alone", format="fixed3"),
        Column(name="float32 rounding", format="text"),
        Column(name="floor", format="fixed3"),
    )
    rows = []
    for name, network in networks.items():
        ends = []
        for read in ("features", "logits"):
            mean, half_width = metrics.mean_interval(
                network["relative_unmix_error"][read]["per_key"]
            )
            ends.append((Value(value=mean, mark="measured", half_width=half_width),))
        causes = network["causes"]
        alone = dict(zip(causes["names"], causes["alone"]["mean"], strict=True))
        values = [alone.get("shift"), alone.get("relu"), causes["rounding"]["mean"]]
        floor = network["nonnegative_floor"]
        derived = () if floor is None else (Value(value=floor, mark="derived"),)
        rows.append(Row(label=name, cells=(*ends, *map(report.measured, values), derived)))
    return ResultTable(
        title=f"Unmix error of networks, M = {GROUP_SIZE}",
        columns=columns,
        rows=tuple(rows),
        note=f"{NOTE} Intervals are over keys of one network. The floor is that of features which "
        "are never negative.",
    )


def families(networks: Mapping[str, Any]) -> ResultTable:
    """The features' error under other matrices."""
    names = list(dict.fromkeys(row["family"] for n in networks.values() for row in n["families"]))
    flat = [
        {"family": family}
        | {
            network: row["features"]
            for network, found in networks.items()
            for row in found["families"]
            if row["family"] == family
        }
        for family in names
    ]
    columns = {network: Column(name=network, format="fixed3") for network in networks}
    return ResultTable(
        title=f"Unmix error of the features by family of matrices, M = {GROUP_SIZE}",
        columns=tuple(columns.values()),
        rows=report.rows(flat, lambda c: str(c["family"]).replace("_", " "), columns),
        note=NOTE,
    )


def lost(relation: Mapping[str, Any]) -> ResultTable:
    """Error against what mixing costs."""
    columns = {
        "features": Column(name="error, features", format="fixed3"),
        "logits": Column(name="error, logits", format="fixed3"),
        "accuracy": Column(name="accuracy, mixed", format="percent"),
        "balanced_accuracy": Column(name="balanced, mixed", format="percent"),
        "balanced_accuracy_lost": Column(name="balanced, lost by mixing", format="percent"),
    }
    correlation = relation["rank_correlation"]
    return ResultTable(
        title="Unmix error and the accuracy that mixing costs",
        columns=tuple(columns.values()),
        rows=report.rows(
            relation["rows"], lambda c: f"{c['network']}, M = {c['group_size']}", columns
        ),
        note="Rank correlation with the balanced accuracy lost: "
        f"{correlation['features']:.2f} of the features' error, {correlation['logits']:.2f} of "
        "the logits'.",
    )


def fresh(rows: Cells) -> ResultTable:
    """Networks before training."""
    columns = {"features": Column(name="features", format="fixed3")}
    return ResultTable(
        title=f"Unmix error of freshly drawn networks, M = {GROUP_SIZE}",
        columns=tuple(columns.values()),
        rows=report.rows(
            rows, lambda c: f"width {c['width']}, cut {c['cut']}, norm {c['norm']}", columns
        ),
        note=NOTE,
    )


def by_dtype(networks: Mapping[str, Any]) -> ResultTable:
    """Error over the group size in every dtype."""
    flat: dict[str, dict[str, Any]] = {}
    for name, network in networks.items():
        for row in network.get("sweep", ()):
            label = f"{name}, {row['main']}, {row['dtype']}"
            flat.setdefault(label, {"label": label})[f"M = {row['group_size']}"] = row["mean"]
    sizes = dict.fromkeys(name for row in flat.values() for name in row if name != "label")
    columns = {name: Column(name=name, format="text") for name in sizes}
    return ResultTable(
        title="Unmix error of the features by dtype",
        columns=tuple(columns.values()),
        rows=report.rows(list(flat.values()), lambda row: str(row["label"]), columns),
        note="The linear twin is the network without what is not linear: rounding alone.",
    )
