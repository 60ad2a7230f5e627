"""The edge's segments as files that run without this library: StableHLO and ONNX.

Two functions, with the weights of pre and post inside and any number of groups ``G``::

    protect(images uint8 [G, M, H, W, 3], matrix float32 [G, M, M]) -> mixtures [G, M, h, w, C]
    finish(responses float32 [G, M, D], matrix float32 [G, M, M]) -> logits [G, M, K, classes]

``mixtures``, flattened to ``[G * M, h, w, C]`` and shuffled, is what the cloud's Run takes; its
answer, put back in order, is ``responses``. **The matrix is an input**: the phone draws a fresh
orthogonal one for each group of each request from its operating system's entropy, and no key is
ever in a file. Main, the cloud's part, is not there either. Mixing is not a cipher: the cloud can
undo it without the matrix (``facemix_jax.attacks``).

StableHLO artefacts are those of ``jax.export`` for CPU, CUDA and TPU together; JAX reads them for
at least six months after the release that wrote them, so they are made anew, not archived.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export as jax_export

from facemix_jax import mixing
from facemix_jax._files import write_atomically
from facemix_jax._types import Array
from facemix_jax._validate import FacemixError, UsageError, one_of
from facemix_jax.serving import segments as edge_segments
from facemix_jax.serving import wire
from facemix_jax.serving.segments import Segments

FORMATS = ("stablehlo", "onnx", "both")
PLATFORMS = ("cpu", "cuda", "tpu")
MANIFEST = "manifest.json"
VERSION = 1
"""Of the manifest."""

_PRODUCER = "facemix-jax"
_PROTO = "wire.proto"
_GROUPS = "G"
_WRITERS = ("stablehlo", "onnx")
FILES = (
    MANIFEST,
    _PROTO,
    *(f"{name}.{form}" for name in ("protect", "finish") for form in _WRITERS),
)
"""All that ``write`` may write or remove in its folder."""


@dataclasses.dataclass(frozen=True, eq=False)
class Function:
    """One function to be written.

    Attributes:
        name: of its files.
        call: takes the arguments by position.
        arguments: shapes and dtypes by name; the first axis is symbolic.
        output: name of the result.
    """

    name: str
    call: Callable[[Array, Array], Array]
    arguments: dict[str, jax.ShapeDtypeStruct]
    output: str

    def signature(self) -> dict[str, Any]:
        """Names, dtypes and shapes, ready for JSON."""
        result = jax.eval_shape(self.call, *self.arguments.values())
        return {
            "inputs": [_described(name, like) for name, like in self.arguments.items()],
            "output": _described(self.output, result),
        }


def functions(segments: Segments) -> tuple[Function, Function]:
    """``protect`` and ``finish`` of a run.

    Args:
        segments: what runs on the edge.

    Raises:
        UsageError: the run mixes nothing.
    """
    if not segments.protected:
        raise UsageError(
            "This run was trained without a defence, so that a phone would send activations as "
            "they are. Train with --defense facemix."
        )
    size, spec = segments.group_size, segments.spec
    (groups,) = jax_export.symbolic_shape(_GROUPS)
    matrix = jax.ShapeDtypeStruct((groups, size, size), jnp.float32)

    def protect(images: Array, matrix: Array) -> Array:
        activations = segments.pre(images.reshape(-1, *images.shape[2:]))
        grouped = activations.reshape(-1, size, *spec.activation_shape)
        return jax.vmap(mixing.mix_group)(matrix, grouped)

    def finish(responses: Array, matrix: Array) -> Array:
        features = jax.vmap(mixing.mix_group)(matrix.mT, responses)
        logits = segments.post(features.reshape(-1, *spec.response_shape))
        return logits.reshape(-1, size, *spec.logits_shape)

    images = jax.ShapeDtypeStruct((groups, size, *spec.image_size, 3), jnp.uint8)
    responses = jax.ShapeDtypeStruct((groups, size, *spec.response_shape), jnp.float32)
    return (
        Function("protect", protect, {"images": images, "matrix": matrix}, "mixtures"),
        Function("finish", finish, {"responses": responses, "matrix": matrix}, "logits"),
    )


def stablehlo(function: Function) -> bytes:
    """A function as ``jax.export.deserialize`` reads it."""
    limit = jax.config.values["jax_traceback_in_locations_limit"]
    jax.config.update("jax_traceback_in_locations_limit", 0)  # no paths of this machine
    try:
        exported = jax_export.export(jax.jit(function.call), platforms=PLATFORMS)
        return bytes(exported(*function.arguments.values()).serialize())
    finally:
        jax.config.update("jax_traceback_in_locations_limit", limit)


def onnx(function: Function) -> bytes:
    """A function as an ONNX model.

    Raises:
        UsageError: the network has an operation or dtype that is not converted.
    """
    from facemix_jax import onnx_graph  # needs a package of the extra

    return onnx_graph.model(function.call, function.arguments, function.output, producer=_PRODUCER)


def write(workdir: Path, out: Path, form: str = "both") -> dict[str, Any]:
    """Writes the newest checkpoint's edge segments, ``wire.proto`` and a manifest.

    Each file appears whole or not at all, and the manifest, which holds the others' SHA-256,
    last: a folder without a manifest is incomplete. Files of an earlier export are replaced;
    others are left alone.

    Args:
        workdir: of a training run; its images are not needed.
        out: the folder, made if missing.
        form: one of ``FORMATS``.

    Returns:
        The manifest.

    Raises:
        UsageError: an unknown format, a package that is not installed, a work directory without
            checkpoint, or a run that cannot be exported.
        FacemixError: files cannot be read or written.
    """
    one_of(FORMATS, format=form)
    writers = {"stablehlo": stablehlo, "onnx": onnx}
    chosen = [name for name in writers if form in (name, "both")]
    _check_packages(chosen)
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file, but a folder is needed. Give another --out.")
    segments = edge_segments.load(workdir)
    both = functions(segments)
    files = {f"{f.name}.{name}": writers[name](f) for name in chosen for f in both}
    files[_PROTO] = resources.files("facemix_jax.serving").joinpath(_PROTO).read_bytes()
    manifest = _manifest(segments, both, files)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for stale in FILES:  # the manifest first
            if stale not in files:
                (out / stale).unlink(missing_ok=True)
        for name, content in files.items():
            write_atomically(out / name, content)
        write_atomically(out / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    except OSError as error:
        raise FacemixError(
            f"The export cannot be written to {out}: {error}. Free space, or choose another --out."
        ) from error
    return manifest


def _manifest(
    segments: Segments, both: tuple[Function, Function], files: dict[str, bytes]
) -> dict[str, Any]:
    return {
        "version": VERSION,
        "producer": _PRODUCER,
        "versions": {name: _installed(name) for name in (_PRODUCER, "jax", "jaxlib", "onnx")},
        "wire_version": wire.VERSION,
        "model_id": segments.model_id,
        "step": segments.step,
        "network": segments.spec.name,
        "cut": segments.spec.cut,
        "group_size": segments.group_size,
        "wire": segments.wire,
        "attribute_names": list(segments.attribute_names),
        "functions": {function.name: function.signature() for function in both},
        "stablehlo_platforms": list(PLATFORMS),
        "files": {
            name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in files.items()
        },
    }


def _described(name: str, like: Any) -> dict[str, Any]:
    shape = [str(n) if jax_export.is_symbolic_dim(n) else n for n in like.shape]
    return {"name": name, "dtype": str(like.dtype), "shape": shape}


def _installed(package: str) -> str | None:
    """Its version; None where it is not installed, as this one need not be in a checkout."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _check_packages(formats: list[str]) -> None:
    """Raises ``UsageError`` before any work where a format's package is missing."""
    needed = {"stablehlo": "flatbuffers", "onnx": "onnx"}
    for form in formats:
        if _installed(needed[form]) is None:
            raise UsageError(
                f"{needed[form]} is not installed, which the format {form} needs. Install the "
                f"extra: pip install 'facemix-jax[export]'"
            )
