"""Figures: charts of experiments' results, and those of single commands."""

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from facemix_jax._types import HostArray
from facemix_jax.results import Chart, Curve

_COLOURS = {
    "light": ("#0b57d0", "#c2410c", "#146c2e", "#8e24aa", "#8a6d00", "#00707a", "#b3134d", "#555"),
    "dark": ("#8ab4f8", "#ff9e64", "#81c995", "#d7a6f7", "#f2d16b", "#6fd6de", "#ff8fb1", "#bbb"),
}
_INK = {"light": ("#1f1f1f", "#ffffff"), "dark": ("#e3e3e3", "none")}
"""Of text and axes, and the ground; none is the page's own."""

_STYLES = {"measured": ("-", "full"), "paper": ("--", "none"), "derived": (":", "full")}
"""Line and filling of the markers, by mark; curves of one label share a colour."""

_MARKERS = "osD^vP*"
"""Fewer than colours by one, so that the pairs of both last long."""

_FEW = 12
"""Points up to which each has its marker and error bar; beyond, intervals are bands."""

_HOTTEST = 2.0
"""Relative unmix error at which a heat map's colours end: 1 is an error as large as the result."""


class Drawn(NamedTuple):
    """A chart as two files, and as two SVGs without its title for light and for dark pages."""

    svg: bytes
    png: bytes
    light: bytes
    dark: bytes


def draw(chart: Chart) -> Drawn:
    """Draws a chart of results, with error bars where there are intervals.

    What is measured has solid lines and full markers, what the paper prints dashed lines and
    hollow markers, what is derived dotted lines; the legend says so, too.
    """
    titled = _figure(chart, "light", titled=True)
    pages = (_svg(_figure(chart, theme), chart) for theme in ("light", "dark"))
    return Drawn(_svg(titled, chart), _png(titled), *pages)


def describe(chart: Chart) -> str:
    """In words, for those who cannot see it."""
    labels = "; ".join(f"{curve.label} ({curve.mark})" for curve in chart.curves)
    return f"{chart.title}. {chart.y_label} over {chart.x_label}: {labels}"


def _figure(chart: Chart, theme: str, *, titled: bool = False) -> Any:
    ink, ground = _INK[theme]
    lines_below = sum(1 + _label(curve).count("\n") for curve in chart.curves)
    # Small, so that letters stay readable where a phone shrinks it.
    figure, axes = _axes(5, 3.1 + 0.2 * lines_below)
    figure.set_facecolor(ground)
    axes.set_facecolor("none")
    labels = list(dict.fromkeys(curve.label for curve in chart.curves))
    for curve in chart.curves:
        _plot(axes, curve, labels.index(curve.label), theme, connected=not chart.points)
    if chart.log2_x:
        axes.set_xscale("log", base=2)
        places = sorted({x for curve in chart.curves for x in curve.x})
        axes.set_xticks(places, [f"{x:g}" for x in places])
        axes.minorticks_off()
    # A dollar sign is one, and no formula.
    axes.set_xlabel(_wrapped(chart.x_label, 55), parse_math=False)
    axes.set_ylabel(_wrapped(chart.y_label, 38), parse_math=False)
    if titled:
        axes.set_title(_wrapped(chart.title, 55), fontsize=10.5, parse_math=False)
    axes.grid(alpha=0.25, color=ink)
    legend = figure.legend(loc="outside lower center", fontsize=8.5, frameon=False)
    texts = [axes.title, axes.xaxis.label, axes.yaxis.label, *legend.get_texts()]
    for text in texts:
        text.set_color(ink)
        text.set_parse_math(False)
    axes.tick_params(colors=ink)
    for spine in axes.spines.values():
        spine.set_color(ink)
        spine.set_alpha(0.4)
    return figure


def _plot(axes: Any, curve: Curve, index: int, theme: str, *, connected: bool) -> None:
    colours = _COLOURS[theme]
    line, fill = _STYLES[curve.mark]
    widths = np.array([math.nan if w is None else w for w in curve.half_widths], float)
    known = widths.size > 0 and bool(np.isfinite(widths).any())
    few = len(curve.x) <= _FEW
    style = {
        "color": colours[index % len(colours)],
        "linestyle": line if connected else "none",
        "marker": _MARKERS[index % len(_MARKERS)],
        "markevery": 1 if few or not connected else len(curve.x) // 6,
        "markersize": 5,
        "fillstyle": fill,
        "label": _label(curve),
    }
    if known and few:
        axes.errorbar(curve.x, curve.y, yerr=widths, capsize=3, **style)
        return
    axes.plot(curve.x, curve.y, **style)
    if known:
        y, colour = np.asarray(curve.y), style["color"]
        axes.fill_between(curve.x, y - widths, y + widths, color=colour, alpha=0.2, linewidth=0)


def _label(curve: Curve) -> str:
    return _wrapped(f"{curve.label} ({curve.mark})", 58)


def _wrapped(text: str, width: int) -> str:
    return "\n".join(textwrap.wrap(text, width))


def _svg(figure: Any, chart: Chart) -> bytes:
    import matplotlib

    file = io.BytesIO()
    # The same chart is the same file, whenever it is drawn.
    with matplotlib.rc_context({"svg.hashsalt": "facemix", "svg.fonttype": "path"}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Title": chart.title})
    return file.getvalue()


def heat_map(values: HostArray, names: Sequence[str], *, title: str) -> bytes:
    """A PNG of an upper triangle of errors, from the row's layer on and up to the column's.

    Colours mean the same in every such picture, so that two networks' can be compared.

    Args:
        values: float ``[L, L]``; NaN is left blank.
        names: of the layers.
        title: above the picture.
    """
    figure, axes = _axes(1.2 + 0.75 * len(names), 1.3 + 0.55 * len(names))
    image = axes.imshow(values, cmap="viridis", vmin=0, vmax=_HOTTEST, aspect="auto")
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("unmixed after")
    axes.set_ylabel("mixed before")
    axes.set_title(title)
    middle = 0.65 * _HOTTEST
    for i, j in zip(*np.nonzero(np.isfinite(values)), strict=True):
        colour = "black" if values[i, j] > middle else "white"
        axes.text(j, i, f"{values[i, j]:.2f}", ha="center", va="center", color=colour, fontsize=8)
    figure.colorbar(image, ax=axes, label="relative unmix error", extend="max")
    return _png(figure)


def bars(
    names: Sequence[str], series: Mapping[str, tuple[HostArray, HostArray]], *, title: str
) -> bytes:
    """A PNG of grouped bars with error bars.

    Args:
        names: of the groups.
        series: label to heights and standard deviations, float ``[len(names)]`` each; NaN leaves
            a bar out.
        title: above the picture.
    """
    figure, axes = _axes(2.5 + 1.1 * len(names), 4)
    width = 0.8 / len(series)
    shown = np.isfinite([heights for heights, _ in series.values()])
    # The bars that a group has stand in its middle.
    offsets = np.cumsum(shown, axis=0) - 1 - (shown.sum(0, keepdims=True) - 1) / 2
    for offset, (label, (heights, deviations)) in zip(offsets, series.items(), strict=True):
        places = np.arange(len(names)) + offset * width
        axes.bar(places, heights, width, yerr=deviations, capsize=3, label=label)
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel("relative unmix error")
    axes.set_title(title)
    if len(series) > 1:
        axes.legend()
    return _png(figure)


def intervals(
    names: Sequence[str], series: Mapping[str, tuple[HostArray, HostArray]], *, x_label: str
) -> bytes:
    """A PNG of points with error bars, one line of names down.

    Args:
        names: of the lines, from above.
        series: label to values and half widths, float ``[len(names)]`` each; NaN is left out.
        x_label: below the picture.
    """
    figure, axes = _axes(8, 1.2 + 0.4 * len(names))
    for index, (label, (values, widths)) in enumerate(series.items()):
        places = np.arange(len(names)) + 0.15 * (index - (len(series) - 1) / 2)
        axes.errorbar(values, places, xerr=widths, fmt="o", capsize=3, label=label)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel(x_label)
    axes.grid(alpha=0.3, axis="x")
    if len(series) > 1:
        axes.legend()
    return _png(figure)


class Line(NamedTuple):
    """Points of one curve and a matplotlib line style; curves of one ``colour`` belong together."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    style: str
    colour: int


def lines(curves: Sequence[Line], *, title: str, x_label: str) -> bytes:
    """A PNG of curves on logarithmic axes, base 2 across."""
    figure, axes = _axes(8, 5)
    for curve in curves:
        axes.plot(curve.x, curve.y, curve.style, color=f"C{curve.colour}", label=curve.label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel(x_label)
    axes.set_ylabel("relative unmix error")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return _png(figure)


def _axes(width: float, height: float) -> tuple[Any, Any]:
    # Imported here: only figures need it, and it takes time.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    return figure, figure.add_subplot()


def _png(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
