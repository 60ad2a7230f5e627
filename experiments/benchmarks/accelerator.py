"""Every measurement whose outcome depends on the accelerator, one after another.

Training steps beside PyTorch and beside the device's own limits, parts beside JAX's own, key
drawing as a share of the step; groups separated per second (beside scikit-learn on the host),
rounding by dtype and precision with what tf32 does to mixing, eight seeds in one program, and the
laboratory's speed over many keys. Each writes ``results/DEVICE/NAME.json``; one that fails or
takes longer than its share of ten minutes is reported and leaves what it has measured in
``NAME.partial.json``, and the others go on. Nearly all of the
time is compilation, which hardly uses the device. So most scripts are rehearsed first, all at the
same time, which leaves what they compile in JAX's cache; then each is measured alone. Runs on
whatever device JAX finds, and needs scikit-learn (the extra ``dev``). The sizes are chosen for an
accelerator; on a CPU give ``--small``.

    python experiments/benchmarks/accelerator.py
    python experiments/benchmarks/accelerator.py --only training_speed cuda_parts
"""

import argparse
import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).parent
_SMALL = ["--image-size", "64", "56", "--width", "8", "--batch-size", "32", "--rounds", "2"]
MEASUREMENTS: dict[str, tuple[int, list[str]]] = {
    "training_speed": (150, [*_SMALL, "--steps", "2"]),
    "cuda_parts": (35, [*_SMALL[:-2], "--runs", "2", "--turns", "1"]),
    "key_drawing_speed": (45, ["--image-size", "64", "56", "--width", "4", "--batch-size", "256"]),
    "separation_speed": (50, ["--turns", "1"]),
    "linearity_precision": (40, ["--width", "8"]),
    "seeds_speed": (55, ["--image-size", "64", "56", "--widths", "4", "--batch-size", "16"]),
    "linearity_speed": (45, []),
}
"""Scripts beside this one: seconds that they may take, and their options with ``--small``."""

UNREHEARSED = ("training_speed",)
"""Compared with PyTorch: while XLA chooses its kernels nothing runs but PyTorch's own compilation
and first step. Those of the others it chooses in the rehearsal, where one may seem slower than it
is."""
REHEARSAL_SECONDS = 180


def main() -> int:
    """Runs all of them.

    Returns:
        How many failed.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="sizes for a CPU, and no limits")
    parser.add_argument("--only", nargs="+", choices=MEASUREMENTS, default=list(MEASUREMENTS))
    options = parser.parse_args()
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": os.environ.get(
            "JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(tempfile.gettempdir()) / "facemix-xla")
        ),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    # Asked in a process of its own: one that has seen an accelerator keeps most of its memory.
    ask = "import jax; print(jax.devices()[0].device_kind)"
    found = subprocess.run([sys.executable, "-c", ask], check=True, capture_output=True, text=True)
    device = found.stdout.strip().lower().replace(" ", "-")
    folder = HERE.parent / "results" / device
    folder.mkdir(parents=True, exist_ok=True)
    limited = not options.small

    def command(name: str, result: pathlib.Path) -> list[str]:
        small = MEASUREMENTS[name][1] if options.small else []
        return [sys.executable, str(HERE / f"{name}.py"), "--json", str(result), *small]

    rehearsed = [name for name in options.only if name not in UNREHEARSED]
    if len(rehearsed) > 1:
        print(f"rehearsing {', '.join(rehearsed)} on {device} ...", flush=True)
        with tempfile.TemporaryDirectory() as unused:
            together = [command(name, pathlib.Path(unused) / name) for name in rehearsed]
            rehearse(together, environment, REHEARSAL_SECONDS if limited else None)
    failed = 0
    for name in options.only:
        limit = MEASUREMENTS[name][0]
        print(f"{name} on {device} ...", flush=True)
        partial = folder / f"{name}.partial.json"
        partial.unlink(missing_ok=True)
        if measure(command(name, partial), environment, limit if limited else None):
            os.replace(partial, folder / f"{name}.json")
        else:
            failed += 1
    return failed


def measure(command: list[str], environment: dict[str, str], limit: int | None) -> bool:
    """Runs one command, and says why where it did not end well.

    Args:
        command: stopped with all that it started.
        environment: of it.
        limit: seconds after which it is stopped.
    """
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        code = process.wait(limit)
    except subprocess.TimeoutExpired:
        print(f"it took longer than {limit} s and was stopped", flush=True)
        return False
    finally:
        _stop(process)
    if code:
        print(f"it failed with exit code {code}", flush=True)
    return not code


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ends a session's leader and all that it started: they would compute beside the next."""
    with contextlib.suppress(ProcessLookupError):  # all have ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def rehearse(commands: list[list[str]], environment: dict[str, str], limit: int | None) -> None:
    """Runs commands at the same time, in silence; those that fail will fail again alone.

    Args:
        commands: what they write is not kept.
        environment: of all.
        limit: seconds after which all are stopped.
    """
    shared = environment | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    silent = subprocess.DEVNULL
    processes = [
        subprocess.Popen(c, env=shared, stdout=silent, stderr=silent, start_new_session=True)
        for c in commands
    ]
    end = None if limit is None else time.monotonic() + limit
    try:
        for process in processes:
            process.wait(None if end is None else max(0.0, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        print(f"stopped rehearsing after {limit} s", flush=True)
    finally:
        for process in processes:
            _stop(process)


if __name__ == "__main__":
    sys.exit(main())
