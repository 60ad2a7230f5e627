"""Checkpoints of a run, on Orbax: atomic, resumable, one separable part per segment.

Each checkpoint holds ``pre``, ``main``, ``post`` and ``training`` (step, optimiser, key) as
separate items, so that a server can load main alone.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import jax
from orbax.checkpoint import v1 as ocp

from facemix_jax._types import Variables
from facemix_jax._validate import FacemixError

if TYPE_CHECKING:  # the cloud's process imports this module, but no training and no defence
    from facemix_jax.training import TrainState

SEGMENTS = ("pre", "main", "post")

_LONGEST_REASON = 200
"""Characters; Orbax lists every array where one is damaged."""


class CheckpointError(FacemixError):
    """A checkpoint that cannot be written or does not fit."""


class Checkpoints:
    """The checkpoints in one directory; the two newest are kept.

    Args:
        directory: created if missing.
        identity: what the variables belong to (names and sizes of the network), kept with each
            checkpoint and compared before one is restored.
    """

    def __init__(self, directory: Path, identity: dict[str, Any]) -> None:
        self._directory = directory.absolute()
        self._identity = identity
        with _explained(self._directory):
            self._checkpointer = ocp.training.Checkpointer(
                self._directory,
                save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
                preservation_policy=ocp.training.preservation_policies.LatestN(2),
                cleanup_tmp_directories=True,
            )

    def __enter__(self) -> "Checkpoints":
        """Returns itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the directory; after a failed save Orbax would raise the same failure again."""
        with contextlib.suppress(Exception) if error else _explained(self._directory):
            self._checkpointer.close()

    def latest(self) -> int | None:
        """Steps done in the newest checkpoint; None where there is none."""
        newest = self._checkpointer.latest
        return None if newest is None else newest.step

    def steps(self) -> set[int]:
        """Steps done in each checkpoint that is kept."""
        return {checkpoint.step for checkpoint in self._checkpointer.checkpoints}

    def save(self, state: "TrainState") -> None:
        """Writes a checkpoint and returns when it is complete on disk.

        Raises:
            CheckpointError: it cannot be written, for example because the disk is full. Earlier
                checkpoints stay as they are.
        """
        # An empty segment (pre at cut 0) has nothing to write, and Orbax refuses it.
        parts = {name: part for name, part in _parts(state).items() if jax.tree.leaves(part)}
        with _explained(self._directory):
            self._checkpointer.save_checkpointables(
                int(state.step), parts, custom_metadata=self._identity, overwrite=True
            )

    def restore(self, like: "TrainState", step: int | None = None) -> "TrainState":
        """The state in a checkpoint.

        Args:
            like: a state of the same structure, whose shapes, dtypes and placement are taken.
            step: of the checkpoint; None for the newest.

        Raises:
            CheckpointError: there is none, or it belongs to another model.
        """
        restored, _ = _restore(self._directory, self._identity, _parts(like), step)
        variables = {name: restored[name] for name in SEGMENTS}
        return dataclasses.replace(like, variables=variables, **restored["training"])


def newest(directory: Path) -> int | None:
    """Steps done in the newest checkpoint, or None; nothing there is created or cleaned up."""
    try:
        names = [path.name for path in directory.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return None
    # Orbax renames a checkpoint to its number when it is complete.
    return max((int(name) for name in names if name.isdecimal()), default=None)


def read_identity(directory: Path, step: int) -> dict[str, Any]:
    """What the variables of one checkpoint belong to: see ``Checkpoints``.

    Raises:
        CheckpointError: it is not there or cannot be read.
    """
    with _explained(directory):
        metadata = ocp.checkpointables_metadata(directory.absolute() / str(step))
    return dict(metadata.custom_metadata or {})


def restore_variables(
    directory: Path, identity: dict[str, Any], like: Variables
) -> tuple[dict[str, Any], int]:
    """The newest checkpoint's variables and step, while another process may be writing.

    Args:
        directory: holds the checkpoints; it is only read.
        identity: as of ``Checkpoints``.
        like: arrays or ``jax.ShapeDtypeStruct`` of all segments, whose placement is taken.

    Raises:
        CheckpointError: there is no checkpoint, or it belongs to another model.
    """
    return _restore(directory, identity, dict(like))


def restore_segment(directory: Path, step: int, segment: str, like: Variables) -> dict[str, Any]:
    """The variables of one segment of one checkpoint, while another process may be writing.

    Args:
        directory: holds the checkpoints; it is only read.
        step: which checkpoint.
        segment: one of ``SEGMENTS``.
        like: arrays or ``jax.ShapeDtypeStruct`` of the segment, whose placement is taken.

    Raises:
        CheckpointError: it is not there or does not fit.
    """
    with _explained(directory):
        loaded = ocp.load_checkpointables(
            directory.absolute() / str(step), {segment: jax.tree.map(_abstract, dict(like))}
        )
    return dict(loaded[segment])


def _restore(
    directory: Path, identity: dict[str, Any], parts: dict[str, Any], step: int | None = None
) -> tuple[dict[str, Any], int]:
    step = newest(directory) if step is None else step
    if step is None:
        raise CheckpointError(
            f"There is no checkpoint in {directory}. Train first: facemix train "
            f"--workdir {directory.parent}"
        )
    found = read_identity(directory, step)
    differences = [
        f"{name} is {found[name]!r} in the checkpoint and {wanted!r} here"
        for name, wanted in identity.items()
        if name in found and found[name] != wanted
    ]
    if differences:
        raise CheckpointError(
            f"The checkpoint in {directory} belongs to another model: "
            f"{'; '.join(differences)}. Use the configuration it was trained with, or another "
            f"work directory."
        )
    # An empty segment (pre at cut 0) has nothing to read.
    wanted = {name: part for name, part in parts.items() if jax.tree.leaves(part)}
    with _explained(directory):
        loaded = ocp.load_checkpointables(
            directory.absolute() / str(step), jax.tree.map(_abstract, wanted)
        )
    return {**parts, **loaded}, step


def _abstract(x: Any) -> jax.ShapeDtypeStruct:
    placement = getattr(x, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placement)


def _parts(state: "TrainState") -> dict[str, Any]:
    training = {
        field.name: getattr(state, field.name)
        for field in dataclasses.fields(state)
        if field.name != "variables"
    }
    return {**state.variables, "training": training}


@contextlib.contextmanager
def _explained(directory: Path) -> Iterator[None]:
    """Turns the file system's and Orbax's errors into one that says what to do."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        cause: BaseException = error  # Orbax says last what it could not do, and first why
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise CheckpointError(
            f"The checkpoint in {directory} cannot be written or read: {_reason(cause)} Likely "
            f"causes: (a) it was written with other options or by another command: give those, or "
            f"another work directory, (b) the disk is full: free space there, (c) no permission: "
            f"choose another work directory, (d) the files were changed by hand: delete the newest "
            f"numbered folder and run again. Complete earlier checkpoints are untouched."
        ) from error


def _reason(cause: BaseException) -> str:
    """The first line of what an error says, and those that it announces by a colon."""
    # KeyError shows its text as Python would write it.
    text = str(cause.args[0]) if isinstance(cause, KeyError) and cause.args else str(cause)
    reason = ""
    for line in filter(None, map(str.strip, text.splitlines())):
        reason = f"{reason} {line}".lstrip()
        if not line.endswith(":"):
            break
    if len(reason) > _LONGEST_REASON:
        return f"{reason[:_LONGEST_REASON]}..."
    return f"{reason.rstrip('.:') or type(cause).__name__}."
