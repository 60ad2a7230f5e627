"""Every measurement whose outcome depends on the accelerator, one after another.

Training steps beside PyTorch and beside the device's own limits, parts beside JAX's own, key
drawing as a share of the step; groups separated per second (beside scikit-learn on the host),
rounding by dtype and precision with what tf32 does to mixing, eight seeds in one program, and the
laboratory's speed over many keys. Each writes ``results/DEVICE/NAME.json``; one that fails or
takes longer than its share of ten minutes is reported, and the others go on. Nearly all of the
time is compilation, which a second call finds in JAX's cache. Runs on whatever device JAX finds,
and needs scikit-learn (the extra ``dev``). The sizes are chosen for an accelerator; on a CPU give
``--small``.

    python experiments/benchmarks/accelerator.py
    python experiments/benchmarks/accelerator.py --only training_speed cuda_parts
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).parent
_SMALL = ["--image-size", "64", "56", "--width", "8", "--batch-size", "32", "--rounds", "2"]
MEASUREMENTS: dict[str, tuple[int, list[str]]] = {
    "training_speed": (140, [*_SMALL, "--steps", "2"]),
    "cuda_parts": (45, [*_SMALL[:-2], "--runs", "2", "--turns", "1"]),
    "key_drawing_speed": (110, ["--image-size", "64", "56", "--width", "4", "--batch-size", "256"]),
    "separation_speed": (50, ["--turns", "1"]),
    "linearity_precision": (50, ["--width", "8"]),
    "seeds_speed": (160, ["--image-size", "64", "56", "--widths", "4", "--batch-size", "16"]),
    "linearity_speed": (45, []),
}
"""Scripts beside this one: seconds that they may take, and their options with ``--small``."""


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
    failed = 0
    for name in options.only:
        limit, small = MEASUREMENTS[name]
        print(f"{name} on {device} ...", flush=True)
        script, result = str(HERE / f"{name}.py"), str(folder / f"{name}.json")
        command = [sys.executable, script, "--json", result, *(small if options.small else [])]
        try:
            done = subprocess.run(
                command, check=False, env=environment, timeout=None if options.small else limit
            )
            failed += done.returncode != 0
        except subprocess.TimeoutExpired:
            print(f"{name} took longer than {limit} s and was stopped", flush=True)
            failed += 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
