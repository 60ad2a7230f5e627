"""A contact sheet: faces in rows with who they are and what is labelled under each."""

import dataclasses
import functools
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from facemix_jax import _validate
from facemix_jax._files import write_atomically
from facemix_jax._types import HostArray, ImageSize
from facemix_jax._validate import DataError, UsageError
from facemix_jax.data import decode
from facemix_jax.data.files import FileSet
from facemix_jax.data.source import Source

_FACE_WIDTH, _GAP, _MARGIN, _LINE = 150, 16, 24, 15
_TITLE_SIZE, _PERSON_SIZE, _TEXT_SIZE = 20, 13, 12
_MAX_LINES = 12
_PAPER, _INK, _SOFT, _RULE = (255, 255, 255), (25, 25, 30), (95, 95, 105), (215, 215, 222)

# Words of CelebA's attributes that take room and say little.
_SHORTER = (
    ("5_o_Clock_Shadow", "5 o'clock shadow"),
    ("5 o Clock Shadow", "5 o'clock shadow"),
    ("Wearing", ""),
    ("Slightly", ""),
    ("Eyebrows", "brows"),
    ("Receding Hairline", "receding hair"),
    ("Bags Under Eyes", "eye bags"),
    ("Mouth  Open", "mouth open"),
)


@dataclasses.dataclass(frozen=True)
class Undecoded:
    """A ``Source`` over image files that decodes only what is asked for, and keeps nothing.

    Attributes:
        files: the images.
        image_size: height, width of what ``images`` returns.
    """

    files: FileSet
    image_size: ImageSize

    @property
    def name(self) -> str:
        """Of the data set."""
        return self.files.name

    @property
    def attribute_names(self) -> tuple[str, ...]:
        """``K`` names."""
        return self.files.attribute_names

    @property
    def attributes(self) -> HostArray:
        """int8 ``[N, K]``, 0 or 1."""
        return self.files.attributes

    @property
    def identities(self) -> HostArray:
        """int32 ``[N]``."""
        return self.files.identities

    @property
    def splits(self) -> Mapping[str, HostArray]:
        """int64 indices of each split."""
        return self.files.splits

    def __len__(self) -> int:
        """``N``, the number of images."""
        return len(self.files.file_names)

    def images(self, indices: HostArray) -> HostArray:
        """Images of ``indices`` (int ``[n]``), uint8 ``[n, H, W, 3]``.

        Raises:
            DataError: one of them is damaged.
        """
        names, images = self.files.file_names, self.files.images
        pictures = np.empty((len(indices), *self.image_size, 3), np.uint8)
        for i, index in enumerate(indices):
            name = names[index]
            pictures[i] = decode.rgb(images.read(name), self.image_size, name=images.where(name))
        return pictures


def choose(source: Source, split: str, *, rows: int, columns: int) -> HostArray:
    """Images of a split, always the same ones; int64 ``[rows, columns]``, -1 where too few.

    Rows and columns that would be empty are left out.

    Raises:
        UsageError: an unknown or empty split, or numbers that are not positive.
    """
    indices = _split(source, split, rows, columns)
    chosen = np.random.default_rng(0).permutation(indices)[: rows * columns]
    columns = min(columns, len(chosen))
    chosen = np.pad(chosen, (0, -len(chosen) % columns), constant_values=-1)
    return chosen.reshape(-1, columns)


def choose_people(source: Source, split: str, *, rows: int, columns: int) -> HostArray:
    """Images of ``rows`` people, one person a row; int64 ``[rows, columns]``, -1 where too few.

    People with at least ``columns`` images come first; always the same ones.

    Raises:
        UsageError: an unknown or empty split, or numbers that are not positive.
    """
    indices = _split(source, split, rows, columns)
    people, counts = np.unique(source.identities[indices], return_counts=True)
    order = np.random.default_rng(0).permutation(len(people))
    order = order[np.argsort(-np.minimum(counts[order], columns), kind="stable")][:rows]
    columns = min(columns, int(counts.max()))
    chosen = np.full((len(order), columns), -1, np.int64)
    for row, person in zip(chosen, people[order], strict=True):
        own = indices[source.identities[indices] == person][:columns]
        row[: len(own)] = own
    return chosen[:, (chosen >= 0).any(axis=0)]


def contact_sheet(
    source: Source, indices: HostArray, *, title: str, captions: Sequence[str] | None = None
) -> HostArray:
    """Draws rows of faces, under each its person's number and the attributes it has.

    Args:
        source: the images; faces are scaled to one width on the sheet.
        indices: int ``[rows, columns]`` into ``source``; -1 leaves a place empty.
        title: line above the faces; cut where it is too long.
        captions: a line under each face of ``source``; None for its person's number.

    Returns:
        uint8 ``[H, W, 3]``.

    Raises:
        DataError: an image is damaged.
    """
    from PIL import Image, ImageDraw

    indices = np.asarray(indices)
    filled = np.flatnonzero(indices.ravel() >= 0)
    flat = indices.ravel()[filled]
    pictures = dict(zip(filled.tolist(), source.images(flat), strict=True))
    labels = {i: _caption(source, int(n)) for i, n in zip(filled.tolist(), flat, strict=True)}

    rows, columns = indices.shape
    face_height = round(_FACE_WIDTH * source.image_size[0] / source.image_size[1])
    top = _MARGIN + _TITLE_SIZE + 2 * _GAP
    heights = [
        face_height + 8 + _PERSON_SIZE + 6 + _GAP
        + _LINE * max((len(labels.get(r * columns + c, ())) for c in range(columns)), default=0)
        for r in range(rows)
    ]  # fmt: skip
    width = 2 * _MARGIN + columns * _FACE_WIDTH + (columns - 1) * _GAP
    paper = Image.new("RGB", (width, top + sum(heights) + _MARGIN - _GAP), _PAPER)
    pen = ImageDraw.Draw(paper)
    inner = width - 2 * _MARGIN
    pen.text((_MARGIN, _MARGIN - 4), _cut(title, _TITLE_SIZE, inner), _INK, _font(_TITLE_SIZE))
    rule = top - _GAP
    pen.line((_MARGIN, rule, width - _MARGIN, rule), _RULE)
    for place, picture in pictures.items():
        row, column = divmod(place, columns)
        x, y = _MARGIN + column * (_FACE_WIDTH + _GAP), top + sum(heights[:row])
        face = Image.fromarray(picture)
        if face.size != (_FACE_WIDTH, face_height):
            face = face.resize((_FACE_WIDTH, face_height), Image.Resampling.LANCZOS)
        paper.paste(face, (x, y))
        y += face_height + 8
        index = indices.ravel()[place]
        caption = captions[index] if captions else f"person {source.identities[index]}"
        pen.text((x, y), _cut(caption, _PERSON_SIZE, _FACE_WIDTH), _INK, _font(_PERSON_SIZE))
        y += _PERSON_SIZE + 6
        for line in labels[place]:
            pen.text((x, y), line, _SOFT, _font(_TEXT_SIZE))
            y += _LINE
    return np.asarray(paper)


def save_png(path: Path, pixels: HostArray) -> None:
    """Writes uint8 ``[H, W, 3]`` as a PNG file that is there whole or not at all.

    Raises:
        DataError: it cannot be written.
    """
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", optimize=True)
    try:
        write_atomically(path, out.getvalue())
    except OSError as error:
        raise DataError(
            f"The sheet cannot be written to {path}: {error.strerror}. Choose another place."
        ) from error


def short_name(attribute: str) -> str:
    """An attribute's name for small print: ``Mouth_Slightly_Open`` becomes ``mouth open``."""
    text = attribute.replace("_", " ")
    for long, short in _SHORTER:
        text = text.replace(long.replace("_", " "), short)
    return " ".join(text.split()).lower() or attribute


def wrap(words: list[str], *, width: float) -> list[str]:
    """Lines of ``words`` separated by commas, none wider than ``width`` pixels of small print.

    At most 12 lines; the last then says how many words are missing.
    """
    lines: list[list[str]] = []
    for i, word in enumerate(words):
        # The comma belongs to the word before it, so that no line begins with one.
        piece = _cut(word, _TEXT_SIZE, width - _length(",", _TEXT_SIZE))
        piece += "," * (i + 1 < len(words))
        if lines and _length(" ".join([*lines[-1], piece]), _TEXT_SIZE) <= width:
            lines[-1].append(piece)
        else:
            lines.append([piece])
    if len(lines) > _MAX_LINES:
        missing = sum(map(len, lines[_MAX_LINES - 1 :]))
        lines[_MAX_LINES - 1 :] = [[f"and {missing} more"]]
    return [" ".join(line) for line in lines]


def _caption(source: Source, index: int) -> list[str]:
    present = np.flatnonzero(source.attributes[index])
    words = [short_name(source.attribute_names[k]) for k in present]
    return wrap(words, width=_FACE_WIDTH) if words else ["(no attribute)"]


def _cut(text: str, size: int, width: float) -> str:
    """The text, with an ellipsis where it is wider than ``width``."""
    if _length(text, size) <= width:
        return text
    while text and _length(f"{text}...", size) > width:
        text = text[:-1]
    return f"{text.rstrip()}..."


def _length(text: str, size: int) -> float:
    return float(_font(size).getlength(text))


@functools.cache
def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _split(source: Source, split: str, rows: int, columns: int) -> HostArray:
    _validate.positive(rows=rows, columns=columns)
    _validate.one_of(source.splits, split=split)
    indices = np.asarray(source.splits[split])
    if not len(indices):
        raise UsageError(f"Split {split!r} of {source.name} has no images. Choose another split.")
    return indices
