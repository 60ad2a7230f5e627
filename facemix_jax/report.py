"""One HTML page that opens offline: text, tables and pictures in a single file."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib.figure
import matplotlib.image
import numpy as np

from facemix_jax._types import HostArray

_STYLE = """
:root { color-scheme: light dark; --line: #8885; --soft: #8882; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
.table { overflow-x: auto; } table { border-collapse: collapse; }
th, td { padding: .35rem .8rem; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; } thead th { background: var(--soft); }
figure { margin: 1rem 0; } figure img { width: 100%; image-rendering: auto; border-radius: 4px; }
figcaption { font-size: .9rem; } .note { background: var(--soft); padding: .7rem 1rem;
border-left: 4px solid #c60; border-radius: 4px; } footer { margin-top: 3rem; font-size: .85rem; }
"""


class Table(NamedTuple):
    """A table; the first column is left-aligned."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


class Picture(NamedTuple):
    """A PNG and what it shows."""

    png: bytes
    caption: str


class Note(NamedTuple):
    """A paragraph that must not be missed."""

    text: str


Block = str | Table | Picture | Note


class Section(NamedTuple):
    """A heading and what stands below it; plain strings are paragraphs."""

    heading: str
    blocks: Sequence[Block]


def page(title: str, intro: Sequence[Block], sections: Sequence[Section], footer: str) -> str:
    """Renders a page; all text is escaped.

    Returns:
        A complete HTML document without any outside reference.
    """
    body = [f"<h1>{html.escape(title)}</h1>", *map(_block, intro)]
    for section in sections:
        body.append(f"<h2>{html.escape(section.heading)}</h2>")
        body.extend(map(_block, section.blocks))
    body.append(f"<footer>{html.escape(footer)}</footer>")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _block(block: Block) -> str:
    match block:
        case Table(header, rows):
            head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
            lines = "".join(
                "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
                for row in rows
            )
            return (
                f'<div class="table"><table><thead><tr>{head}</tr></thead>'
                f"<tbody>{lines}</tbody></table></div>"
            )
        case Picture(png, caption):
            encoded = base64.b64encode(png).decode()
            text = html.escape(caption)
            return (
                f'<figure><img alt="{text}" src="data:image/png;base64,{encoded}">'
                f"<figcaption>{text}</figcaption></figure>"
            )
        case Note(text):
            return f'<p class="note">{html.escape(text)}</p>'
        case str():
            return f"<p>{html.escape(block)}</p>"


def image_rows(rows: Sequence[HostArray], *, gap: int = 2, zoom: int = 1) -> bytes:
    """A PNG with one row of images per array.

    Args:
        rows: float ``[N, H, W, 3]`` each, in [0, 1]; values outside are clipped.
        gap: white pixels between images.
        zoom: each pixel becomes ``zoom x zoom``.
    """
    lines = []
    for images in rows:
        images = np.clip(np.asarray(images, np.float32), 0, 1)
        images = images.repeat(zoom, axis=1).repeat(zoom, axis=2)
        framed = np.pad(images, ((0, 0), (gap, gap), (gap, gap), (0, 0)), constant_values=1.0)
        lines.append(np.concatenate(list(framed), axis=1))
    file = io.BytesIO()
    matplotlib.image.imsave(file, np.concatenate(lines, axis=0), format="png")
    return file.getvalue()


def labelled_rows(rows: Mapping[str, HostArray], *, height: float = 0.9) -> bytes:
    """A PNG with one row of images per entry and its name at the left.

    Args:
        rows: name to float ``[N, H, W, 3]`` in [0, 1]; sizes may differ between rows.
        height: of a row, inches.
    """
    columns = max(len(images) for images in rows.values())
    figure = matplotlib.figure.Figure(figsize=(height * (columns + 2), height * len(rows)), dpi=150)
    grid = figure.add_gridspec(
        len(rows),
        columns + 1,
        width_ratios=[2.2, *[1] * columns],
        left=0,
        right=1,
        bottom=0,
        top=1,
        wspace=0.03,
        hspace=0.03,
    )
    for row, (name, images) in enumerate(rows.items()):
        label = figure.add_subplot(grid[row, 0])
        label.axis("off")
        label.text(0.97, 0.5, name.replace("_", " "), ha="right", va="center", fontsize=9)
        for column, image in enumerate(images):
            axes = figure.add_subplot(grid[row, column + 1])
            axes.axis("off")
            axes.imshow(np.clip(image, 0, 1), interpolation="nearest", aspect="auto")
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def as_pictures(maps: HostArray) -> HostArray:
    """Activations of any number of channels as grey or colour pictures in [0, 1].

    Three channels are taken as colours; otherwise the mean over channels is shown. Each picture
    is stretched to its own 1st to 99th percentile, since mixtures and recovered maps have no
    scale of their own.

    Args:
        maps: float ``[N, H, W, C]``.

    Returns:
        float ``[N, H, W, 3]``.
    """
    maps = np.asarray(maps, np.float32)
    if maps.shape[-1] != 3:
        maps = maps.mean(-1, keepdims=True).repeat(3, axis=-1)
    low, high = np.percentile(maps, (1, 99), axis=(1, 2, 3), keepdims=True)
    return np.clip((maps - low) / np.maximum(high - low, 1e-12), 0, 1)


def heat_map(values: HostArray, names: Sequence[str], *, title: str) -> bytes:
    """A PNG of an upper triangle of errors, from the row's layer on and up to the column's.

    Args:
        values: float ``[L, L]``; NaN is left blank.
        names: of the layers.
        title: above the picture.
    """
    figure, axes = _axes(1.2 + 0.75 * len(names), 1.3 + 0.55 * len(names))
    image = axes.imshow(values, cmap="viridis", vmin=0, aspect="auto")
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("unmixed after")
    axes.set_ylabel("mixed before")
    axes.set_title(title)
    middle = 0.7 * np.nanmax(values)
    for i, j in zip(*np.nonzero(np.isfinite(values)), strict=True):
        colour = "black" if values[i, j] > middle else "white"
        axes.text(j, i, f"{values[i, j]:.2f}", ha="center", va="center", color=colour, fontsize=8)
    figure.colorbar(image, ax=axes, label="relative unmix error")
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
