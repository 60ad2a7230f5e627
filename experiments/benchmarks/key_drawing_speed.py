"""Drawing a step's mixing matrices as a share of the step, by group size.

All ``B / M`` Haar matrices of a batch in one call, as the training step draws them, against the
encryption-aware step of ResNet-18 (width 16, 109x89, M = 8) on the same batch of 4,096; median of
several, taking turns. An accelerator's QR may loop over the matrices: this shows whether it
matters.

    python experiments/benchmarks/key_drawing_speed.py
"""

import argparse
import json
import pathlib
import statistics
import time
from typing import Any

import cpu_training
import jax

from facemix_jax import _runtime, defenses
from facemix_jax._files import write_atomically
from facemix_jax.provenance import provenance

RESULT = pathlib.Path(__file__).parent.parent / "results" / "key_drawing_speed.json"
DRAWS = 20


def main() -> None:
    """Measures, prints and writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[2, 4, 8, 16, 32, 64, 128])
    parser.add_argument("--image-size", type=int, nargs=2, default=(109, 89))
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=pathlib.Path, default=RESULT)
    options = parser.parse_args()
    _runtime.configure()
    step = cpu_training.ours(
        "facemix",
        options.batch_size,
        tuple(options.image_size),
        width=options.width,
        dtype=options.dtype,
    )

    def drawing(group_size: int) -> Any:
        defense = defenses.facemix(group_size=group_size)
        return jax.jit(lambda rng_key: defense.init(rng_key, options.batch_size, True).matrix)

    # Several at once, as a training step follows the last without waiting for it.
    rng_keys = list(jax.random.split(jax.random.key(0), DRAWS))
    draws = {size: drawing(size) for size in options.sizes if options.batch_size % size == 0}
    seconds: dict[str, list[float]] = {"step": [], **{str(size): [] for size in draws}}
    for index in range(options.rounds + 1):
        found = {"step": step(2) / 2}
        for size, draw in draws.items():
            began = time.perf_counter()
            jax.block_until_ready([draw(rng_key) for rng_key in rng_keys])
            found[str(size)] = (time.perf_counter() - began) / DRAWS
        if not index:
            print(
                "compiled:", {name: f"{value:.3g} s" for name, value in found.items()}, flush=True
            )
        else:
            for name, value in found.items():
                seconds[name].append(value)
    shares = {
        size: statistics.median(
            a / b for a, b in zip(seconds[str(size)], seconds["step"], strict=True)
        )
        for size in draws
    }
    record = {
        "what": __doc__.splitlines()[0],
        **provenance(),
        "network": f"resnet18, width {options.width}, {options.dtype}",
        "image_size": options.image_size,
        "batch_size": options.batch_size,
        "share_of_step": {str(size): round(share, 5) for size, share in shares.items()},
        "seconds": seconds,
    }
    for size, share in shares.items():
        print(f"M = {size:4}: {share:8.3%} of the step")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(options.json, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
