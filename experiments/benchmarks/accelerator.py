"""Every measurement whose outcome depends on the accelerator, one after another.

Training steps beside PyTorch and beside the device's own limits, eight seeds in one program, key
drawing as a share of the step; groups separated per second (beside scikit-learn on the host),
rounding by dtype and precision with what tf32 does to mixing, and the laboratory's speed over many
keys. Each writes ``results/DEVICE/NAME.json``; one that fails is reported and the others go on.
Runs on whatever device JAX finds, and needs scikit-learn (the extra ``dev``). The sizes are chosen
for an accelerator; on a CPU give ``--small``.

    python experiments/benchmarks/accelerator.py
"""

import argparse
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).parent
_SMALL = ["--image-size", "64", "56", "--width", "8", "--batch-size", "32", "--rounds", "2"]
MEASUREMENTS: dict[str, list[str]] = {
    "training_speed": [*_SMALL, "--steps", "2"],
    "seeds_speed": ["--image-size", "64", "56", "--widths", "4", "8", "--batch-size", "16"],
    "key_drawing_speed": ["--image-size", "64", "56", "--width", "4", "--batch-size", "256"],
    "separation_speed": [],
    "linearity_precision": [],
    "linearity_speed": [],
}
"""Scripts beside this one, and their options with ``--small``."""


def main() -> int:
    """Runs all of them.

    Returns:
        How many failed.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="sizes for a CPU")
    options = parser.parse_args()
    # Asked in a process of its own: one that has seen an accelerator keeps most of its memory.
    ask = "import jax; print(jax.devices()[0].device_kind)"
    found = subprocess.run([sys.executable, "-c", ask], check=True, capture_output=True, text=True)
    device = found.stdout.strip().lower().replace(" ", "-")
    folder = HERE.parent / "results" / device
    folder.mkdir(parents=True, exist_ok=True)
    failed = 0
    for name, small in MEASUREMENTS.items():
        print(f"{name} on {device} ...", flush=True)
        script, result = str(HERE / f"{name}.py"), str(folder / f"{name}.json")
        command = [sys.executable, script, "--json", result, *(small if options.small else [])]
        failed += subprocess.run(command, check=False).returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main())
