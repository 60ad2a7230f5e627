"""Tables, charts and the heat map of the cells of ``phase.py``."""

import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import report
import sides
from matplotlib.figure import Figure

from facemix_jax import results
from facemix_jax._types import HostArray
from facemix_jax.defenses import WIRES
from facemix_jax.results import Chart, Column, Curve, ResultTable, Row


class Grid(NamedTuple):
    """What is combined.

    Attributes:
        group_sizes: ``M``.
        noises: standard deviations of the noise, over that of the mixtures.
        wires: of ``WIRES``.
    """

    group_sizes: tuple[int, ...] = (2, 4, 8, 16, 32)
    noises: tuple[float, ...] = (0.0, 0.25, 0.5, 1.0, 2.0)
    wires: tuple[str, ...] = tuple(WIRES)


def averaged(
    cells: Sequence[Mapping[str, Any]], group_size: int, noise: float, wire: str, name: str
) -> results.Value | None:
    """One value over the seeds that are there."""
    wanted = {"group_size": group_size, "noise": noise, "wire": wire}
    values = [cell[name] for cell in cells if wanted.items() <= cell.items()]
    return results.mean_over_seeds(values) if values else None


def flattened(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Cells with the attackers' figures and the filtered ones among their own.

    Filtered, the key is worth what the owner has beyond the best of attack, no attack and guess.
    """
    found = []
    for cell in cells:
        figures = cell["filtered"]
        others = max(value for side, value in figures.items() if side != "owner")
        filtered = sides.named({**figures, "key advantage": figures["owner"] - others})
        found.append({**cell, **cell["attackers"], **filtered})
    return found


def axes_of(cells: Sequence[Mapping[str, Any]]) -> Grid:
    """Every value that occurs."""
    return Grid(
        tuple(sorted({cell["group_size"] for cell in cells})),
        tuple(sorted({cell["noise"] for cell in cells})),
        tuple(wire for wire in WIRES if wire in {cell["wire"] for cell in cells}),
    )


def summarize(cells: list[dict[str, Any]]) -> report.Summary:
    """A table and a chart for each way to round, of what was measured with it."""
    if not cells:
        return (), ()
    flat = flattened(cells)
    grid = axes_of(flat)
    columns = {
        "gradient_ica": Column(name="gradient ICA", format="fixed3", strongest="strongest"),
        "strongest": Column(name="strongest", format="fixed3"),
        "floor": Column(name="no attack", format="fixed3"),
        "owner": Column(name="owner", format="fixed3"),
        "key_advantage": Column(name="key advantage", format="fixed3"),
        **{name: of for name, of in sides.COLUMNS.items() if name in flat[0]},
        "key advantage, filtered": Column(name="key advantage, filtered", format="fixed3"),
        "accuracy": Column(name="accuracy", format="percent"),
        "balanced_accuracy": Column(name="balanced accuracy", format="percent"),
    }
    tables, charts = [], []
    for wire in grid.wires:
        rows = []
        for size in grid.group_sizes:
            for noise in grid.noises:
                values = [averaged(flat, size, noise, wire, name) for name in columns]
                listed = tuple(() if value is None else (value,) for value in values)
                if any(listed):
                    rows.append(Row(label=f"M = {size}, noise {noise:g}", cells=listed))
        tables.append(
            ResultTable(
                title=f"Mixtures sent as {wire}: mean matched |correlation|, and accuracy",
                columns=tuple(columns.values()),
                rows=tuple(rows),
                note="The stronger of gradient ICA and robust in each cell. Noise in standard "
                "deviations of the mixtures. One network, trained with FaceMix without noise, "
                "answers at every group size; it was not trained for the others. Filtered: every "
                "side's rows by the best of seven linear filters from public statistics; guess: "
                "other faces in their place; key advantage there: over the best of all others.",
            )
        )
        curves = []
        for size in grid.group_sizes:
            for label, name in (("attacker", "strongest"), ("owner", "owner")):
                found = [
                    (noise, value)
                    for noise in grid.noises
                    if (value := averaged(flat, size, noise, wire, name)) is not None
                ]
                if not found:
                    continue
                curves.append(
                    Curve(
                        label=f"M = {size}, {label}",
                        mark="measured",
                        x=tuple(noise for noise, _ in found),
                        y=tuple(float(value.value) for _, value in found),
                        half_widths=tuple(value.half_width for _, value in found),
                    )
                )
        charts.append(
            Chart(
                title=f"Strongest separation and owner, sent as {wire}",
                x_label="noise, standard deviations of the mixtures",
                y_label="mean matched |correlation|",
                curves=tuple(curves),
            )
        )
    return tables, charts


def surface(cells: Sequence[Mapping[str, Any]], grid: Grid, wire: str, name: str) -> HostArray:
    """Means over seeds, float ``[group sizes, noises]``; NaN where a cell is missing."""
    values = [
        [averaged(cells, size, noise, wire, name) for noise in grid.noises]
        for size in grid.group_sizes
    ]
    return np.array([[np.nan if v is None else float(v.value) for v in row] for row in values])


def picture(cells: Sequence[Mapping[str, Any]]) -> bytes:
    """A PNG of heat maps over group size and noise, with lines of equal accuracy.

    A column for each way to round; above what the strongest attack recovers, below what the key
    is worth, as it is and with all sides' rows filtered.
    """
    cells = flattened(cells)
    grid = axes_of(cells)
    shape = len(grid.group_sizes), len(grid.noises)
    figure = Figure(
        figsize=(3 + len(grid.wires) * max(1.6, 0.55 * shape[1]), 2.2 + max(4.8, 1.65 * shape[0])),
        dpi=130,
        layout="constrained",
    )
    panels = figure.subplots(3, len(grid.wires), squeeze=False, sharex=True, sharey=True)
    lines = levels([surface(cells, grid, wire, "accuracy") for wire in grid.wires])
    shown = (
        ("strongest", "strongest attack", "magma", 0.0, 1.0),
        ("key_advantage", "key advantage", "viridis", 0.0, 0.3),
        ("key advantage, filtered", "key advantage, filtered", "viridis", 0.0, 0.3),
    )
    for panel_row, (name, label, colours, low, high) in zip(panels, shown, strict=True):
        for axes, wire in zip(panel_row, grid.wires, strict=True):
            values = surface(cells, grid, wire, name)
            image = axes.imshow(values, cmap=colours, vmin=low, vmax=high, aspect="auto")
            for i, j in zip(*np.nonzero(np.isfinite(values)), strict=True):
                dark = values[i, j] < low + 0.6 * (high - low)
                text = f"{values[i, j]:.2f}"
                colour = "white" if dark else "black"
                axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=8)
            accuracy = surface(cells, grid, wire, "accuracy")
            if min(shape) > 1 and np.isfinite(accuracy).all() and len(lines):
                drawn = axes.contour(accuracy, levels=lines, colors="deepskyblue", linewidths=1.2)
                # Between the first two rows of figures, where they hide none.
                places = [
                    (np.interp(0.5, *line[line[:, 1].argsort()].T[::-1]), 0.5)
                    for level in drawn.allsegs
                    for line in level
                    if len(line) and line[:, 1].min() < 0.5 < line[:, 1].max()
                ]
                axes.clabel(drawn, fmt=lambda x: f"{x:.1%}", fontsize=8, manual=places)
            axes.set_xticks(range(shape[1]), [f"{noise:g}" for noise in grid.noises])
            axes.set_yticks(range(shape[0]), [str(size) for size in grid.group_sizes])
        figure.colorbar(image, ax=list(panel_row), label=label)
    for axes, wire in zip(panels[0], grid.wires, strict=True):
        axes.set_title(f"sent as {wire}")
    for axes in panels[:, 0]:
        axes.set_ylabel("group size M")
    for axes in panels[-1]:
        axes.set_xlabel("noise / std")
    figure.suptitle("Mean matched |correlation|; blue: accuracy of the answers")
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def levels(surfaces: Sequence[HostArray]) -> HostArray:
    """Up to five round accuracies between the smallest and the largest that occur."""
    values = np.concatenate([surface.ravel() for surface in surfaces])
    values = values[np.isfinite(values)]
    if not values.size or np.ptp(values) < 1e-3:
        return np.empty(0)
    step = next(s for s in (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2) if np.ptp(values) / s <= 5)
    return np.arange(np.ceil(values.min() / step), np.floor(values.max() / step) + 1) * step
