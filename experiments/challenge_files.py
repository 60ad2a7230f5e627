"""The files of a challenge and of submissions to it; ``challenge.py`` is the program."""

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from facemix_jax import attacks, defenses, models
from facemix_jax._files import sha256
from facemix_jax._types import HostArray, Variables
from facemix_jax._validate import DataError, UsageError
from facemix_jax.data import synthetic
from facemix_jax.defenses import Defense, DefenseConfig
from facemix_jax.models import ModelConfig

VERSION = 1
ABOUT, MIXTURES, NETWORK, KNOWN, RULES = (
    "challenge.json",
    "mixtures.npz",
    "network.npz",
    "known.npz",
    "README.md",
)
PUBLIC = (ABOUT, MIXTURES, NETWORK, KNOWN, RULES)
"""All files of the public folder."""
_FIELDS: dict[str, type] = {
    "commitment": str,
    "group_size": int,
    "image_size": list,
    "num_attributes": int,
    "network": dict,
    "defense": dict,
    "files": dict,
}
"""What is read of ``challenge.json`` beside its version."""
SUBMITTED = "recovered"
LARGEST = 1e100
"""Of what may be submitted, so that squares stay finite."""
_DRAWN = 256
"""Faces of the attacker's own, unless there are more rows."""


def read_public(public: Path) -> tuple[dict[str, Any], HostArray]:
    """``challenge.json`` and the mixtures.

    Raises:
        UsageError: the folder is no challenge, or its ``challenge.json`` lacks a field.
        DataError: a file of it was changed.
    """
    try:
        about = json.loads((public / ABOUT).read_text())
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{public} is no challenge: {error}. Name the folder that 'make' wrote."
        ) from error
    if not isinstance(about, dict) or about.get("version") != VERSION:
        raise UsageError(
            f"{public} is no challenge: {ABOUT} is none of version {VERSION}. Name the folder that "
            f"'make' wrote."
        )
    for field, kind in _FIELDS.items():
        if not isinstance(about.get(field), kind):
            raise UsageError(
                f"{public / ABOUT} has no {field!r} that is a {kind.__name__}, and so is no "
                f"challenge. Copy it again from where it was published."
            )
    files = about["files"]
    if missing := {MIXTURES, NETWORK, KNOWN} - files.keys():
        raise UsageError(
            f"{public / ABOUT} lists no {min(missing)} in 'files', and so is no challenge. Copy it "
            f"again from where it was published."
        )
    for name, digest in files.items():
        if not (public / name).is_file() or sha256(public / name) != digest:
            raise DataError(
                f"{public / name} is missing, or not the file that was published. Copy the "
                f"challenge again."
            )
    with np.load(public / MIXTURES) as stored:
        return about, stored["mixtures"]


def public_target(public: Path, about: Mapping[str, Any], rows: int = 0) -> attacks.Target:
    """The network and the defence that were published, and faces of the attacker's own.

    Args:
        public: folder of the challenge.
        about: its ``challenge.json``.
        rows: that there should be faces enough for.

    Raises:
        UsageError: the network or the defence is described as none that there is.
    """
    try:
        height, width = about["image_size"]
        network, defended = ModelConfig(**about["network"]), DefenseConfig(**about["defense"])
    except (TypeError, ValueError) as error:  # a value refused is a ValueError, too
        raise UsageError(
            f"{public / ABOUT} was changed, or another version made it: {error}. Copy it again "
            f"from where it was published."
        ) from error
    model = models.build(
        network, image_size=(height, width), num_attributes=about["num_attributes"]
    )
    like = jax.eval_shape(model.init, jax.random.key(0))
    with np.load(public / NETWORK) as stored:
        leaves = [jnp.asarray(stored[name]) for name in flat(like)]
    defense: Defense = defenses.build(defended, tiles=model.spec.tiles)
    variables: Variables = jax.tree.unflatten(jax.tree.structure(like), leaves)
    faces = max(_DRAWN, rows // model.spec.tiles)
    drawn = synthetic.load((height, width), train_examples=faces, test_examples=64)
    return attacks.Target(model=model, defense=defense, variables=variables, source=drawn)


def flat(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves by their path, such as ``main/params/head/kernel``, in JAX's order."""
    leaves, _ = jax.tree.flatten_with_path(dict(variables))
    return {"/".join(str(part.key) for part in path): leaf for path, leaf in leaves}


def read_private(private: Path, about: Mapping[str, Any]) -> dict[str, HostArray]:
    """The hidden arrays.

    Raises:
        UsageError: the file is missing, or not the one that the challenge is committed to.
    """
    if not private.is_file() or sha256(private) != about["commitment"]:
        raise UsageError(
            f"{private} is not the hidden truth of this challenge: its SHA-256 is not the "
            f"published commitment. Name the file that 'make' wrote with this folder."
        )
    with np.load(private) as stored:
        return {name: stored[name] for name in stored.files}


def read_submission(path: Path, shape: tuple[int, ...]) -> HostArray:
    """The rows of a submission from somebody who is not trusted, float64 of ``shape``.

    Raises:
        UsageError: it is no NPZ file of one finite float array ``recovered`` of that shape.
    """

    def refused(what: str) -> UsageError:
        return UsageError(
            f"{path} {what}. Submit an NPZ file with one array {SUBMITTED!r}, float, of shape "
            f"{list(shape)}: numpy.savez(path, {SUBMITTED}=rows)."
        )

    wanted = f"{SUBMITTED}.npy"
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.namelist() != [wanted]:
                raise refused(f"holds {archive.namelist()[:4]}, not {wanted} alone")
            size = archive.getinfo(wanted).file_size
            # Looked at before anything is unpacked.
            if size > 8 * int(np.prod(shape)) + 4096:
                raise refused(f"holds {size} bytes, more than float64 of that shape takes")
            with archive.open(wanted) as entry:
                version = np.lib.format.read_magic(entry)
                read = np.lib.format.read_array_header_1_0
                if version != (1, 0):
                    read = np.lib.format.read_array_header_2_0
                found, _, dtype = read(entry)
            if dtype.kind != "f":
                raise refused(f"holds {dtype}")
            if found != shape:
                raise refused(f"holds shape {list(found)}")
        with np.load(path, allow_pickle=False) as stored:
            rows = np.asarray(stored[SUBMITTED], np.float64)
    except UsageError:
        raise
    except Exception as error:  # what parsers raise over a stranger's bytes is no closed list
        raise refused(f"cannot be read: {error}") from error
    # Also refuses NaN.
    if not (np.abs(rows) <= LARGEST).all():
        raise refused(f"holds NaN, or numbers beyond {LARGEST:g}")
    return rows


def npz(**arrays: Any) -> bytes:
    """An NPZ file: arrays only, nothing pickled."""
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **{name: np.asarray(x) for name, x in arrays.items()})
    return file.getvalue()
