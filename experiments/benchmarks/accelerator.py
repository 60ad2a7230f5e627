"""Every measurement whose outcome depends on the accelerator, one after another.

Groups separated per second (beside scikit-learn on the host), rounding by dtype and precision with
what tf32 does to mixing, and the laboratory's speed over many keys. Each writes
``results/DEVICE/NAME.json``; one that fails is reported and the others go on. Runs on whatever
device JAX finds, in about 3 minutes on two CPU cores, and needs scikit-learn (the extra ``dev``).

    python experiments/benchmarks/accelerator.py
"""

import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).parent
MEASUREMENTS = ("separation_speed", "linearity_precision", "linearity_speed")
"""Scripts beside this one."""


def main() -> int:
    """Runs all of them.

    Returns:
        How many failed.
    """
    # Asked in a process of its own: one that has seen an accelerator keeps most of its memory.
    ask = "import jax; print(jax.devices()[0].device_kind)"
    found = subprocess.run([sys.executable, "-c", ask], check=True, capture_output=True, text=True)
    device = found.stdout.strip().lower().replace(" ", "-")
    folder = HERE.parent / "results" / device
    folder.mkdir(parents=True, exist_ok=True)
    failed = 0
    for name in MEASUREMENTS:
        print(f"{name} on {device} ...", flush=True)
        script, result = str(HERE / f"{name}.py"), str(folder / f"{name}.json")
        command = [sys.executable, script, "--json", result]
        failed += subprocess.run(command, check=False).returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main())
