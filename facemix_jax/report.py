"""One HTML page that opens offline: text, tables and pictures in a single file."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib.figure
import matplotlib.image
import numpy as np

from facemix_jax._types import HostArray

_STYLE = """
:root { color-scheme: light dark; --line: #8885; --soft: #8882; --page: #fff; --paper: #0b57d0;
--measured: #146c2e; --derived: #6b3fa0; --weak: #a33d00; }
@media (prefers-color-scheme: dark) { :root { --page: #121212; --paper: #8ab4f8;
--measured: #81c995; --derived: #cba6f7; --weak: #ffab70; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 0 auto; padding: 1rem;
background: var(--page); overflow-wrap: break-word; -webkit-text-size-adjust: 100%; }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
h3 { margin: 2rem 0 .6rem; font-size: 1.05rem; line-height: 1.35; }
.table { overflow-x: auto; } table { border-collapse: collapse; }
th, td { padding: .35rem .65rem; text-align: right; vertical-align: top;
border-bottom: 1px solid var(--line); }
thead th { background: var(--soft); vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; min-width: 9rem;
background: var(--page); }
thead th:first-child { background: linear-gradient(var(--soft), var(--soft)) var(--page); }
.value { display: block; white-space: nowrap; } .value + .value { margin-top: .25rem; }
.value small { display: block; font-size: .7rem; line-height: 1.2; }
.words th, .words td { text-align: left; } p { max-width: 66rem; }
.paper small, .mark.paper { color: var(--paper); }
.measured small, .mark.measured { color: var(--measured); }
.derived small, .mark.derived { color: var(--derived); }
.weak small, .missing { color: var(--weak); }
th .value { white-space: normal; } th .value small { font-weight: normal; }
figure { margin: 1rem 0; } figure img { width: 100%; image-rendering: auto; border-radius: 4px; }
figure.drawing img { max-width: 40rem; height: auto; }
figcaption, .small { font-size: .85rem; } .note { background: var(--soft); padding: .7rem 1rem;
border-left: 4px solid #c60; border-radius: 4px; } footer { margin-top: 3rem; font-size: .85rem; }
@media (max-width: 40rem) { th, td { padding: .35rem .5rem; } table { font-size: .9rem; }
h1 { font-size: 1.6rem; } th:first-child, td:first-child { min-width: 6rem; max-width: 9.5rem; } }
"""


class Labelled(NamedTuple):
    """One of the values of a cell.

    Attributes:
        text: the value.
        label: small below it: where it comes from.
        kind: what the style tells apart: one of ``results.MARKS``, ``weak``, ``missing`` or none;
            ``mark`` before it colours the text.
    """

    text: str
    label: str = ""
    kind: str = ""


Cell = str | Sequence[Labelled]


class Table(NamedTuple):
    """A table; the first column is left-aligned, and stays in sight where the others scroll."""

    header: Sequence[Cell]
    rows: Sequence[Sequence[Cell]]
    words: bool = False
    """Whether cells hold sentences, which all stand at the left."""


class Picture(NamedTuple):
    """A PNG and what it shows."""

    png: bytes
    caption: str


class Drawing(NamedTuple):
    """An SVG on a light ground, the same on a dark one, what they show in words, and a caption."""

    light: bytes
    dark: bytes
    description: str
    caption: str = ""


class Heading(NamedTuple):
    """Within a section."""

    text: str


class Note(NamedTuple):
    """A paragraph that must not be missed."""

    text: str


class Small(NamedTuple):
    """A paragraph in small print."""

    text: str


Block = str | Table | Picture | Drawing | Heading | Note | Small


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
        case Table(header, rows, words):
            head = "".join(f'<th scope="col">{_cell(cell)}</th>' for cell in header)
            lines = "".join(
                "<tr>" + "".join(f"<td>{_cell(cell)}</td>" for cell in row) + "</tr>"
                for row in rows
            )
            kind = "table words" if words else "table"
            return (
                f'<div class="{kind}" tabindex="0"><table><thead><tr>{head}</tr></thead>'
                f"<tbody>{lines}</tbody></table></div>"
            )
        case Picture(png, caption):
            text = html.escape(caption)
            return (
                f'<figure><img alt="{text}" src="{_data("png", png)}">'
                f"<figcaption>{text}</figcaption></figure>"
            )
        case Drawing(light, dark, description, caption):
            below = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
            return (
                '<figure class="drawing"><picture><source media="(prefers-color-scheme: dark)" '
                f'srcset="{_data("svg+xml", dark)}"><img alt="{html.escape(description)}" '
                f'src="{_data("svg+xml", light)}"></picture>{below}</figure>'
            )
        case Heading(text):
            return f"<h3>{html.escape(text)}</h3>"
        case Note(text):
            return f'<p class="note">{html.escape(text)}</p>'
        case Small(text):
            return f'<p class="small">{html.escape(text)}</p>'
        case str():
            return f"<p>{html.escape(block)}</p>"


def _cell(cell: Cell) -> str:
    if isinstance(cell, str):
        return html.escape(cell)
    return "".join(
        f'<span class="{html.escape(" ".join(filter(None, ("value", kind))))}">{html.escape(text)}'
        + (f"<small>{html.escape(label)}</small></span>" if label else "</span>")
        for text, label, kind in cell
    )


def _data(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


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
