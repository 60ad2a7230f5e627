"""Eight seeds in one program against one after another, by width and method.

ResNet-18 with M = 8 after the stem, on random images that lie on the device: a step of one run
alone, and a step of all runs by a method of ``facemix_jax.population`` (``loop``: one program
for each set of devices in turn; ``vmap``: one program for all; ``dense``: that, with dense
convolutions in place of grouped ones), taking turns. Figures are the time of a step of all runs
over that of one run (eight means that nothing is gained) and images/s.

    python experiments/benchmarks/seeds_speed.py
"""

import argparse
import itertools
import json
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from facemix_jax import _runtime, defenses, models, population, sharding, training
from facemix_jax._files import write_atomically
from facemix_jax.provenance import provenance
from facemix_jax.sharding import MeshConfig

RESULT = pathlib.Path(__file__).parent.parent / "results" / "seeds_speed.json"
NUM_STEPS = 1000


def runner(method: str, count: int, width: int, options: argparse.Namespace) -> Callable[[], float]:
    """Seconds of a step of ``count`` runs by one of ``population.METHODS``."""
    image_size = tuple(options.image_size)
    network = models.ModelConfig(width=width, compute_dtype=options.dtype)
    model = models.build(network, image_size=image_size)
    config = training.TrainConfig(batch_size=options.batch_size)
    step = training.make_step(model, defenses.facemix(group_size=8), config, NUM_STEPS)
    mesh = sharding.make_mesh(MeshConfig(), num_runs=count)
    size = population.size(method, count, mesh)
    first = training.init_state(model, config, NUM_STEPS)
    first = sharding.put(first, sharding.shardings(mesh, first))
    program = population.build(step, first, mesh, size, dense_convolutions=method == "dense")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (options.batch_size, *image_size, 3), np.uint8)
    attributes = rng.integers(0, 2, (options.batch_size, 40), np.int8)
    batch = [program.put([x] * size, options.batch_size) for x in (images, attributes)]
    scalars = program.scalars([training.Scalars.of(config)] * size)

    def copy() -> Any:
        return jax.tree.map(jax.numpy.copy, first)

    states = [program.stack([copy() for _ in range(size)]) for _ in range(count // size)]

    def run() -> float:
        began = time.perf_counter()
        for _ in range(options.steps):
            for index, state in enumerate(states):
                states[index], _ = program.step(state, batch[0], batch[1], scalars)
        jax.block_until_ready(states)
        return (time.perf_counter() - began) / options.steps

    return run


def main() -> None:
    """Measures, prints and writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", type=int, nargs="+", default=[16])
    parser.add_argument("--seeds", type=int, default=8)
    methods = population.METHODS[1:]
    parser.add_argument("--methods", nargs="+", choices=methods, default=methods)
    parser.add_argument("--image-size", type=int, nargs=2, default=(109, 89))
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--steps", type=int, default=5, help="in a turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=pathlib.Path, default=RESULT)
    options = parser.parse_args()
    _runtime.configure()
    cells = []
    alone = {width: runner("loop", 1, width, options) for width in options.widths}
    for width, method in itertools.product(options.widths, options.methods):
        together = runner(method, options.seeds, width, options)
        seconds: dict[str, list[float]] = {"one run": [], method: []}
        for index in range(options.rounds + 1):
            for name, run in (("one run", alone[width]), (method, together)):
                found = run()
                if index:
                    seconds[name].append(found)
                else:
                    print(f"width {width}, {name}: {found:.1f} s a step, compiling", flush=True)
        pairs = zip(seconds[method], seconds["one run"], strict=True)
        images = options.seeds * options.batch_size
        cell: dict[str, Any] = {
            "width": width,
            "method": method,
            "over_one_run": statistics.median(a / b for a, b in pairs),
            "images_per_second": images / statistics.median(seconds[method]),
            "seconds_per_step": seconds,
        }
        cells.append(cell)
        print(json.dumps({k: v for k, v in cell.items() if k != "seconds_per_step"}), flush=True)
        record = {
            "what": __doc__.splitlines()[0],
            **provenance(),
            "devices": jax.device_count(),
            "seeds": options.seeds,
            "image_size": options.image_size,
            "batch_size": options.batch_size,
            "dtype": options.dtype,
            "cells": cells,
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(options.json, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
