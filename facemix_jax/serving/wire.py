"""The messages between edge and cloud, and rows as bytes: float32, bfloat16 or int8.

``wire.proto`` describes the messages. After changing it, from the repository's root::

    python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. facemix_jax/serving/wire.proto

Nothing that arrives is believed: ``decode`` compares what a message declares with what it holds
and with what the model takes before it makes an array. All numbers are little-endian, as they
are in memory on every machine that JAX runs on.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from facemix_jax._types import HostArray, Variables
from facemix_jax._validate import FacemixError, one_of
from facemix_jax.serving import wire_pb2 as pb

VERSION = 1
"""Of the protocol; each message carries it."""

DTYPES = ("float32", "bfloat16", "int8")
"""What rows may be sent as."""

SERVICE = "facemix.v1.Cloud"
RUN = f"/{SERVICE}/Run"
DESCRIBE = f"/{SERVICE}/Describe"

REQUEST_ID_BYTES = 16
"""Length of a request's identifier: random, new with every attempt, no secret."""

_NUMPY = {"float32": np.dtype("<f4"), "bfloat16": np.dtype(ml_dtypes.bfloat16), "int8": np.int8}
_LARGEST_SCALE = np.nextafter(np.finfo(np.float32).max / np.float32(127), np.float32(0))
"""127 times this is still finite."""


class WireError(FacemixError):
    """A message that does not hold what it must.

    Args:
        reason: what is wrong with it.
        remedy: what its sender can do.
    """

    def __init__(self, reason: str, remedy: str = "") -> None:
        self.reason = reason
        super().__init__(f"{reason} {remedy}".rstrip())


class Shapes(Protocol):
    """What ``model_id`` reads of ``models.Spec``."""

    @property
    def name(self) -> str:
        """Of the network."""
        ...

    @property
    def cut(self) -> int:
        """Units on the edge."""
        ...

    @property
    def activation_shape(self) -> tuple[int, ...]:
        """Of one row sent."""
        ...

    @property
    def response_shape(self) -> tuple[int, ...]:
        """Of one row returned."""
        ...


def encode(x: HostArray, dtype: str = "float32") -> pb.Tensor:
    """Rows as a message.

    float32 is exact; bfloat16 rounds to the nearest, off by at most 2^-8 of a value; int8 has
    one scale per row and channel (per row where rows have one axis), off by at most half of it:
    1/254 of the largest value that shares it.

    Args:
        x: float32 ``[B, ...]``, at least two axes; NumPy's or JAX's.
        dtype: one of ``DTYPES``.

    Raises:
        UsageError: ``dtype`` is unknown.
        WireError: ``x`` is not float32, has no rows, or holds NaN or infinities, or values that
            round to infinity in bfloat16.
    """
    one_of(DTYPES, dtype=dtype)
    x = np.asarray(x)
    if x.dtype != np.float32 or x.ndim < 2 or not x.size:
        raise WireError(
            f"Rows are {x.dtype} {list(x.shape)}, but must be float32 [B, ...] with at least one "
            f"row. Convert them with numpy.asarray(x, numpy.float32)."
        )
    _check_finite(x, "Rows to be sent", "Check the images and the weights.")
    scales: HostArray = np.empty(0, np.float32)
    if dtype == "int8":
        scale = np.abs(x).max(axis=_shared_axes(x.ndim), keepdims=True) / np.float32(127)
        scale = np.minimum(scale, _LARGEST_SCALE)
        # Rows of zeros have scale 0; subnormal scales are too coarse for 127 steps.
        steps = np.divide(x, scale, out=np.zeros_like(x), where=scale > 0)
        sent = np.clip(np.rint(steps), -127, 127).astype(np.int8)
        scales = scale.ravel()
    elif dtype == "bfloat16":
        with np.errstate(over="ignore"):
            sent = x.astype(ml_dtypes.bfloat16)
        _check_finite(sent, "Rows rounded to bfloat16", "Send them as float32.")
    else:
        sent = x
    return pb.Tensor(shape=x.shape, dtype=dtype, data=sent.tobytes(), scales=scales.tolist())


def decode(tensor: pb.Tensor, *, row_shape: tuple[int, ...], max_rows: int) -> HostArray:
    """The rows in a message from a peer who is not trusted.

    Args:
        tensor: what arrived.
        row_shape: what one row must be, for example ``(H, W, C)``; at least one axis.
        max_rows: the most rows taken.

    Returns:
        float32 ``[B, *row_shape]`` with ``1 <= B <= max_rows``, all finite; may be read-only.

    Raises:
        WireError: the dtype, the shape, the number of bytes or of scales is not what it must be,
            or a value or scale is not finite.
    """
    if tensor.dtype not in DTYPES:
        raise WireError(
            f"dtype {_short(tensor.dtype)} is unknown; there is {', '.join(DTYPES)}.",
            "Send one of these.",
        )
    shape = _checked_shape(tensor, row_shape, max_rows)
    kind = np.dtype(_NUMPY[tensor.dtype])
    expected = math.prod(shape) * kind.itemsize
    if len(tensor.data) != expected:
        raise WireError(
            f"The tensor holds {len(tensor.data)} bytes, but {list(shape)} in {tensor.dtype} takes "
            f"{expected}.",
            "Send all elements, in C order, and nothing else.",
        )
    scale_shape = tuple(
        1 if axis in _shared_axes(len(shape)) else n for axis, n in enumerate(shape)
    )
    num_scales = math.prod(scale_shape) if tensor.dtype == "int8" else 0
    if len(tensor.scales) != num_scales:
        raise WireError(
            f"The tensor holds {len(tensor.scales)} scales, but {list(shape)} in {tensor.dtype} "
            f"takes {num_scales}.",
            "Send one for each row and channel with int8, none otherwise.",
        )
    received = np.frombuffer(tensor.data, kind).reshape(shape)
    remedy = "Send finite numbers only."
    if tensor.dtype == "int8":
        scales = np.array(tensor.scales, np.float32)
        _check_finite(scales, "The tensor's scales", remedy)
        with np.errstate(over="ignore"):
            rows = scales.reshape(scale_shape) * received
    else:
        rows = received.astype(np.float32, copy=False)
    _check_finite(rows, "The tensor's values", remedy)
    return rows


def check_response(request: pb.RunRequest, response: pb.RunResponse) -> None:
    """Refuses a response that does not answer this request.

    The rows themselves are checked by ``decode``. A cloud that answers wrongly with numbers of
    the right shape cannot be found out this way.

    Raises:
        WireError: protocol version, model, request identifier or number of rows differ.
    """
    rows = list(request.activations.shape[:1]), list(response.responses.shape[:1])
    for name, asked, answered in (
        ("protocol version", request.version, response.version),
        ("model", request.model_id, response.model_id),
        ("request identifier", request.request_id.hex(), response.request_id[:64].hex()),
        ("number of rows", *rows),
    ):
        if asked != answered:
            raise WireError(
                f"The response's {name} is {_short(answered)}, but the request's is "
                f"{_short(asked)}.",
                "Discard the response and send again with a fresh key; if it goes on, compare what "
                "edge and cloud run.",
            )


def model_id(main_variables: Variables, spec: Shapes) -> str:
    """Names main: 16 hexadecimal characters of SHA-256 over its arrays, shapes and cut.

    Edge and cloud compute it from the same work directory. ``clean_stats``, which no service
    uses, is left out.

    Args:
        main_variables: of the segment main.
        spec: of the split network.
    """
    about = [spec.name, spec.cut, list(spec.activation_shape), list(spec.response_shape)]
    digest = hashlib.sha256(json.dumps(about).encode())
    for path, leaf in _leaves({k: v for k, v in main_variables.items() if k != "clean_stats"}):
        array = np.asarray(leaf)
        digest.update(json.dumps([path, str(array.dtype), list(array.shape)]).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]


def _leaves(tree: Mapping[str, Any], path: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name in sorted(tree):
        value, here = tree[name], f"{path}/{name}"
        found += _leaves(value, here) if isinstance(value, Mapping) else [(here, value)]
    return found


def _shared_axes(ndim: int) -> tuple[int, ...]:
    """The axes along which int8 values share a scale: all but row and channel."""
    return tuple(range(1, ndim - 1)) if ndim > 2 else (1,)


def _checked_shape(tensor: pb.Tensor, row_shape: tuple[int, ...], max_rows: int) -> tuple[int, ...]:
    # Compared before they are copied: a hostile shape may have millions of entries.
    shape = tuple(tensor.shape) if len(tensor.shape) == 1 + len(row_shape) else None
    if shape is None or shape[1:] != tuple(row_shape):
        shown = f"{len(tensor.shape)} axes" if shape is None else f"shape {list(shape)}"
        raise WireError(
            f"The tensor has {shown}, but this model takes rows of {list(row_shape)}.",
            "Compare the model and the cut of edge and cloud.",
        )
    if not 1 <= shape[0] <= max_rows:
        raise WireError(
            f"The tensor has {shape[0]} rows, but must have from 1 to {max_rows}.",
            "Split the batch into several requests.",
        )
    return shape


def _check_finite(x: HostArray, what: str, remedy: str) -> None:
    if not np.isfinite(x).all():
        count = int(x.size - np.isfinite(x).sum())
        raise WireError(f"{what} hold {count} NaN or infinite numbers of {x.size}.", remedy)


def _short(value: object) -> str:
    """What a peer wrote, safe to print: escaped, and no longer than a line."""
    text = ascii(value[:64]) if isinstance(value, str) else ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
