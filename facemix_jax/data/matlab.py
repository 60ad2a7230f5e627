"""Matrices and lists of texts from MATLAB files of either kind.

SciPy's reader is not used, as damaged files can crash the interpreter in it.
"""

import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from facemix_jax._types import HostArray
from facemix_jax._validate import DataError

_Values = Mapping[str, list[str] | HostArray | None]

_HDF5 = b"\x89HDF\r\n\x1a\n"
# Codes of MATLAB's "MAT-file format", version 5 to 7.
_MATRIX, _COMPRESSED = 14, 15
_CELL, _CHAR, _FIRST_NUMBER, _LAST_NUMBER = 1, 4, 6, 15
_COMPLEX = 8
_STORED = {
    **{1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4"},
    **{7: "f4", 9: "f8", 12: "i8", 13: "u8"},
}
_TEXT = {2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16"}
_MAX_UNPACKED = 256 * 2**20


def read_matlab(
    path: Path, *, texts: Iterable[str] = (), numbers: Iterable[str] = (), remedy: str
) -> tuple[Mapping[str, list[str]], Mapping[str, HostArray]]:
    """Reads variables of a MATLAB file: version 5 to 7, or 7.3, which is HDF5.

    Args:
        path: the file.
        texts: cell arrays of strings.
        numbers: real matrices.
        remedy: one sentence for errors: where to get a good file.

    Returns:
        Texts in MATLAB's order, and matrices as MATLAB shows them, by name.

    Raises:
        DataError: damaged, a variable is missing or of another kind, or a 7.3 file without the
            package ``h5py`` to read it.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. {remedy}") from error
    wanted = {*texts, *numbers}
    try:
        if _HDF5 in (data[:8], data[512:520]):
            found = _read_hdf5(path, wanted)
        else:
            found = _read_classic(data, wanted)
        return (
            {name: _texts(name, found.get(name)) for name in texts},
            {name: _numbers(name, found.get(name)) for name in numbers},
        )
    except DataError:
        raise
    except Exception as error:  # Damage may surface as nearly anything.
        raise DataError(
            f"{path} is damaged or not the expected MATLAB file "
            f"({type(error).__name__}: {error}). {remedy}"
        ) from error


def _read_classic(data: bytes, wanted: set[str]) -> _Values:
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if order is None:
        raise ValueError("it does not begin as one")
    found: dict[str, list[str] | HostArray | None] = {}
    for kind, body in _elements(data[128:], order):
        if kind == _COMPRESSED:
            unpacker = zlib.decompressobj()
            unpacked = unpacker.decompress(body, _MAX_UNPACKED)
            if not unpacker.eof:
                raise ValueError("a variable is cut short or too large")
            ((kind, body),) = _elements(unpacked, order)
        if kind != _MATRIX:
            raise ValueError(f"element {kind} is no variable")
        name, value = _variable(body, order, wanted)
        if name in found:
            raise ValueError(f"{name} occurs twice")
        found[name] = value
    return found


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Kind and content of each element; contents fill up to 8 bytes unless compressed."""
    start = 0
    while start < len(data):
        kind, size = struct.unpack_from(order + "II", data, start)
        # Four bytes and fewer lie within the tag, whose first word then holds both.
        small, at = kind >> 16, start + 8
        if small:
            kind, size, at = kind & 0xFFFF, small, start + 4
        if at + size > len(data) or small > 4:
            raise ValueError("it is cut short")
        yield kind, data[at : at + size]
        start += 8 if small else 8 + (size if kind == _COMPRESSED else size + -size % 8)


def _variable(
    body: bytes, order: str, wanted: set[str] | None
) -> tuple[str, list[str] | HostArray | None]:
    """Name and value of a matrix; None for a value of another kind or one not wanted."""
    parts = _elements(body, order)
    (_, flags), (_, shape), (_, name_bytes) = (next(parts) for _ in range(3))
    (word,) = struct.unpack_from(order + "I", flags)
    kind, flags_set = word & 0xFF, word >> 8
    dimensions = np.frombuffer(shape, order + "i4").tolist()
    count = int(np.prod(np.array(dimensions, object)))
    name = name_bytes.decode("ascii")
    if min(dimensions) < 0:
        raise ValueError(f"{name} has the shape {dimensions}")
    if wanted is not None and name not in wanted:
        return name, None
    if kind == _CELL:
        cells = [_variable(part, order, None)[1] for _, part in parts]
        if len(cells) != count:
            raise ValueError(f"{name} has {len(cells)} cells instead of {count}")
        texts = [cell[0] for cell in cells if isinstance(cell, list) and len(cell) == 1]
        return name, texts if len(texts) == len(cells) else None
    if kind == _CHAR:
        ((stored, values),) = parts
        coding = _TEXT[stored]
        text = values.decode(coding + {"<": "-le", ">": "-be"}[order] * (coding == "utf-16"))
        if dimensions != [1, len(text)]:
            raise ValueError(f"a text of shape {dimensions} has {len(text)} letters")
        return name, [text]
    if _FIRST_NUMBER <= kind <= _LAST_NUMBER and not flags_set & _COMPLEX:
        ((stored, values),) = parts
        array = np.frombuffer(values, order + _STORED[stored])
        return name, array.reshape(dimensions, order="F")
    return name, None


def _read_hdf5(path: Path, wanted: set[str]) -> _Values:
    try:
        import h5py
    except ImportError as error:
        raise DataError(
            f"{path} is a MATLAB 7.3 file, which takes the package h5py to read. "
            "Run \"pip install 'facemix-jax[lfwa]'\", or save the file with '-v7' in MATLAB."
        ) from error
    found: dict[str, list[str] | HostArray | None] = {}
    with h5py.File(path, "r") as file:
        for name in wanted & set(file):
            # MATLAB's order of dimensions is the other way round.
            value = file[name][()].T
            if value.dtype == object:
                codes = [np.asarray(file[cell][()]).ravel() for cell in value.ravel(order="F")]
                found[name] = [
                    c.astype("<u2", casting="safe").tobytes().decode("utf-16-le") for c in codes
                ]
            else:
                found[name] = value
    return found


def _texts(name: str, value: list[str] | HostArray | None) -> list[str]:
    if not isinstance(value, list):
        raise ValueError(f"{name} is missing or no list of texts")
    return value


def _numbers(name: str, value: list[str] | HostArray | None) -> HostArray:
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "biuf":
        raise ValueError(f"{name} is missing or no matrix of real numbers")
    return value
