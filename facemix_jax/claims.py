"""Whose a work directory is: no run goes on in another's, and none beside itself."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from facemix_jax import run_images
from facemix_jax._files import lock, write_atomically
from facemix_jax._validate import FacemixError, UsageError
from facemix_jax.checkpoint import newest
from facemix_jax.run_images import read_images
from facemix_jax.runs import RunConfig, essential, read_config

ANONYMIZER = "anonymizer.json"
"""Tells work directories of ``facemix anonymize``, whose checkpoints hold an identifier, too."""


def check_claim(
    workdir: Path,
    config: RunConfig,
    *,
    images: Mapping[str, Any] | None = None,
    anonymizer: bool = False,
) -> None:
    """Raises ``UsageError`` where the work directory holds another run.

    What is not ``essential`` may change between the calls; nothing else may. What has neither a
    checkpoint nor a result has nothing to lose, and takes any run.

    Args:
        workdir: of the run; need not exist.
        config: of the run.
        images: ``images_of`` its source, and a digest of ``initial_weights`` where it has any;
            None to compare configurations only.
        anonymizer: whether ``facemix anonymize`` asks, and not ``facemix train``.

    Raises:
        UsageError: another configuration or none that is left, another command's run, other
            training images or initial weights, or it cannot be made or written.
        FacemixError: a file there cannot be read.
    """
    place = next(each for each in (workdir, *workdir.absolute().parents) if each.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        reason = "permission denied" if place.is_dir() else "it is no folder"
        raise UsageError(
            f"The work directory {workdir} cannot be written, for {place}: {reason}. Choose "
            f"another --workdir."
        )
    if not (workdir / "config.json").exists():
        if _started(workdir):
            raise UsageError(
                f"{workdir} holds checkpoints or a result, but no config.json that says whose. "
                f"Restore it, or give another --workdir."
            )
        return
    found = read_config(workdir)  # what is no run's is never replaced
    if not _started(workdir):
        return
    wanted = essential(config)
    differences = [
        each
        for part, kept_part in essential(found).items()
        for each in run_images.differences(kept_part, wanted[part], part)
    ]
    if differences:
        raise UsageError(
            f"{workdir} holds a run with another configuration: {'; '.join(differences)}. "
            f"Give the same configuration to go on with it, or choose another folder."
        )
    if anonymizer and not (workdir / ANONYMIZER).exists():
        raise UsageError(
            f"{workdir} holds checkpoints or a result, but no {ANONYMIZER}: 'facemix train' "
            f"trained there, or the file was lost. Give another --workdir, or restore the file."
        )
    if not anonymizer and (workdir / ANONYMIZER).exists():
        raise UsageError(
            f"{workdir} holds a run of 'facemix anonymize', as its {ANONYMIZER} says. Go on with "
            f"it by that command, or give another --workdir."
        )
    kept = None if images is None else read_images(workdir)
    if images is None or kept is None:
        return
    differences = run_images.differences(kept, images, "images")
    if differences:
        raise UsageError(
            f"{workdir} holds a run on other training images or from other initial weights: "
            f"{'; '.join(differences)}. Give the --data-dir of the same images, and the same "
            f"--initial-weights, to go on with it, or another --workdir."
        )


def claim(workdir: Path, config: RunConfig) -> None:
    """Makes a work directory for a run that is trained later, or checks that it is this run's.

    What is not ``essential`` is kept as it is now.

    Raises:
        UsageError: the directory holds another run.
        FacemixError: it cannot be written, or these have changed while a process trains there.
    """
    check_claim(workdir, config)
    if (workdir / "config.json").exists() and read_config(workdir) == config:
        return  # perhaps in training
    with alone(workdir, config):
        pass


@contextlib.contextmanager
def alone(
    workdir: Path,
    config: RunConfig,
    *,
    images: Mapping[str, Any] | None = None,
    anonymizer: bool = False,
) -> Iterator[None]:
    """Claims a work directory and keeps a second training out: each would delete the other's.

    Args:
        workdir: created if missing.
        config: as of ``check_claim``.
        images: likewise.
        anonymizer: likewise.

    Raises:
        UsageError: the directory holds another run.
        FacemixError: another process trains there, or it cannot be written.
    """
    with contextlib.ExitStack() as stack:
        with _written(workdir):
            workdir.mkdir(parents=True, exist_ok=True)
            # A file of its own: a lock on one that is replaced would keep nobody out.
            file = stack.enter_context((workdir / "training.lock").open("a"))
        try:
            lock(file, wait=False)
        except BlockingIOError:
            raise FacemixError(
                f"Another process is training in {workdir}. Wait for it or stop it, or choose "
                f"another folder."
            ) from None
        check_claim(workdir, config, images=images, anonymizer=anonymizer)
        kept, told = workdir / "config.json", workdir / "images.json"
        with _written(workdir):
            if not anonymizer:  # of an attempt that saved nothing
                (workdir / ANONYMIZER).unlink(missing_ok=True)
            if not kept.exists() or read_config(workdir) != config:
                write_atomically(kept, json.dumps(dataclasses.asdict(config), indent=2))
            if images is not None and not (_started(workdir) and told.exists()):
                write_atomically(told, json.dumps(images, indent=2))
        yield


def _started(workdir: Path) -> bool:
    """Whether there is work to lose; a sweep's trial keeps its result where checkpoints go."""
    return newest(workdir / "checkpoints") is not None or (workdir / "result.json").exists()


@contextlib.contextmanager
def _written(workdir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise FacemixError(
            f"The work directory {workdir} cannot be written: {error}. Free space, or choose "
            f"another --workdir."
        ) from error
