"""What a run keeps under names of its own in its work directory, where no result may go."""

import os
from collections.abc import Iterable
from pathlib import Path

from facemix_jax._validate import UsageError

OWN = frozenset(
    {
        "config.json",
        "images.json",
        "anonymizer.json",
        "training.lock",
        ".lock",
        "metrics.jsonl",
        "tensorboard",
        "profile",
        "checkpoints",
        "result.json",
        "failure.json",
        "together.json",
        "scores.json",
    }
)
"""Names of files and folders that trainings, trials of sweeps and kept scores write."""


def check_not_own(
    path: str | Path | None, option: str, *, workdirs: Iterable[str | Path] = ()
) -> None:
    """Makes sure, before any work, that a result takes the place of nothing that a run keeps.

    Other names in a work directory are the user's. Links are followed, and names in capitals are
    the same: file systems differ in that.

    Args:
        path: of a file or folder to be written; None or ``-`` for none.
        option: where it was given.
        workdirs: folders that are to be runs'; others are where they hold ``config.json``.

    Raises:
        UsageError: the path is one of the names ``OWN`` of a run, or lies below one.
    """
    if path is None or path == "-":
        return
    ways = os.path.abspath, os.path.realpath  # links lead into the directory, or out of it
    coming = {way(each) for way in ways for each in workdirs}
    for place in (Path(way(path)) for way in ways):
        for folder in place.parents:  # the first that is a run's: others may lie around it
            if str(folder) in coming or os.path.exists(folder / "config.json"):
                name = place.relative_to(folder).parts[0]
                if name.casefold() in OWN:
                    raise UsageError(
                        f"{option} {path} is where the run in {folder} keeps its own {name}, "
                        f"which the result would replace or stand among. Choose another {option} "
                        f"path; other names in that folder are free."
                    )
                break
