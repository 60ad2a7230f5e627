"""Where and with what a figure was measured."""

import datetime
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax


def provenance() -> dict[str, Any]:
    """What a reader needs to judge figures, ready for JSON.

    Returns:
        Date (UTC), commit (None outside a checkout; ``-dirty`` appended where files differ from
        it), device, cores, system and versions.
    """
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "device": jax.devices()[0].device_kind,
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {
            name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax", "numpy")
        },
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def commits(made: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """By whose code a file's measurements are.

    Args:
        made: the file's ``provenance``, which is that of its last writing.
        cells: its measurements, each with its ``commit``; older files say it once, in ``made``.

    Returns:
        Nine digits of each commit that is known, in their order, followed by "with changes" where
        files differed from it.
    """

    def named(*records: Mapping[str, Any]) -> set[str]:
        return {str(record["commit"]) for record in records if record.get("commit")}

    return tuple(
        sorted(
            name.removesuffix("-dirty")[:9] + " with changes" * name.endswith("-dirty")
            for name in named(*cells) or named(made)
        )
    )


def _commit() -> str | None:
    here = Path(__file__).parent
    if not (here.parent / ".git").exists():  # installed, perhaps inside somebody else's checkout
        return None
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.partition(":")[2].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor()
