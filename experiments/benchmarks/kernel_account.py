"""Where a step's time goes on a GPU: its kernels, by what of the program they come from."""

import collections
import gzip
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

STEPS = 3


def kernels(run: Callable[[int], Any], *, most: int = 40) -> dict[str, Any]:
    """Traces a few steps and adds up their kernels.

    Args:
        run: runs so many steps and waits for them.
        most: how many kernels are named.

    Returns:
        Ready for JSON: ``microseconds_per_step`` of all kernels, ``by_kind`` what convolutions,
        other products, reductions and all else take of it, and rows ``{"kernel", "source",
        "microseconds", "calls"}`` per step, longest first. Empty where the trace shows no GPU.
    """
    with tempfile.TemporaryDirectory() as folder:
        jax.profiler.start_trace(folder, create_perfetto_trace=True)
        run(STEPS)
        jax.profiler.stop_trace()
        (path,) = Path(folder).rglob("perfetto_trace.json.gz")
        return read(path, most=most)


def read(path: Path, *, most: int = 40, steps: int = STEPS) -> dict[str, Any]:
    """``kernels`` of a trace that lies in a file."""
    events = json.loads(gzip.decompress(path.read_bytes()))
    events = events["traceEvents"] if isinstance(events, dict) else events
    names = {
        (event["pid"], event.get("tid") if event["name"] == "thread_name" else None): event["args"][
            "name"
        ]
        for event in events
        if event.get("ph") == "M" and event["name"] in ("process_name", "thread_name")
    }
    spent: dict[tuple[str, str], list[float]] = collections.defaultdict(lambda: [0.0, 0])
    for event in events:
        if event.get("ph") != "X" or "GPU" not in names.get((event["pid"], None), ""):
            continue
        if not names.get((event["pid"], event["tid"]), "").startswith("Stream"):
            continue
        about = event.get("args", {})
        row = spent[event["name"][:80], str(about.get("name") or about.get("hlo_op") or "")[:120]]
        row[0] += event["dur"]
        row[1] += 1
    if not spent:
        return {}
    rows = sorted(spent.items(), key=lambda item: -item[1][0])
    return {
        "microseconds_per_step": round(sum(row[0] for _, row in rows) / steps, 1),
        "by_kind": {
            kind: round(sum(row[0] for (name, _), row in rows if _kind(name) == kind) / steps, 1)
            for kind in sorted({_kind(name) for (name, _), _ in rows})
        },
        "kernels": [
            {
                "kernel": kernel,
                "source": source,
                "microseconds": round(row[0] / steps, 1),
                "calls": round(row[1] / steps, 2),
            }
            for (kernel, source), row in rows[:most]
        ],
    }


_KINDS = {
    "convolutions": ("fprop", "dgrad", "wgrad", "cudnn", "implicitgemm"),
    "products": ("gemm",),
    "reductions": ("reduce",),
}
"""What the names of kernels hold, in order."""


def _kind(kernel: str) -> str:
    for kind, parts in _KINDS.items():
        if any(part in kernel.lower() for part in parts):
            return kind
    return "all else"
