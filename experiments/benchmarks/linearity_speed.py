"""Speed of the linearity laboratory: many keys end to end, against bare forward passes.

ResNet-18 of width 16 at 109x89 (cut 1), one group of M = 8: ``linearity.measure`` over many keys,
and the jitted main alone on as many rows in batches of the same size, taking turns; the ratio is
the median of the ratios within a round. Then 10,000 keys in one call. Wanted: under 10 minutes on
two cores, or at most 1.3 times the bare pass per key.

    python experiments/benchmarks/linearity_speed.py
"""

import argparse
import functools
import json
import pathlib
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp

from facemix_jax import _runtime, linearity, models
from facemix_jax._files import write_atomically
from facemix_jax.provenance import provenance

RESULT = pathlib.Path(__file__).parent.parent / "results" / "linearity_speed.json"
GROUP_SIZE, ROWS_AT_ONCE = 8, 64


def main() -> None:
    """Measures, prints and writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keys", type=int, default=10_000)
    parser.add_argument("--keys-in-a-round", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=pathlib.Path, default=RESULT)
    options = parser.parse_args()
    options.json.parent.mkdir(parents=True, exist_ok=True)
    _runtime.configure()
    model = models.resnet18(image_size=(109, 89), width=16)
    variables = model.init(jax.random.key(0))["main"]
    run = jax.jit(functools.partial(model.main.apply, variables))
    x = jax.nn.relu(
        jax.random.normal(jax.random.key(1), (GROUP_SIZE, *model.spec.activation_shape))
    )
    batch = jnp.concatenate([x] * (ROWS_AT_ONCE // GROUP_SIZE))

    def measured(num_keys: int) -> float:
        began = time.perf_counter()
        error = linearity.measure(
            run,
            x,
            rng_key=jax.random.key(2),
            group_size=GROUP_SIZE,
            num_keys=num_keys,
            rows_at_once=ROWS_AT_ONCE,
        )
        jax.block_until_ready(error)
        return time.perf_counter() - began

    def bare(num_keys: int) -> float:
        began = time.perf_counter()
        for _ in range(num_keys * GROUP_SIZE // ROWS_AT_ONCE):
            result = run(batch)
        jax.block_until_ready(result)
        return time.perf_counter() - began

    for warm in (measured, bare):
        warm(options.keys_in_a_round)
    rounds = [
        (measured(options.keys_in_a_round), bare(options.keys_in_a_round))
        for _ in range(options.rounds)
    ]
    record: dict[str, Any] = {
        "what": __doc__.splitlines()[0],
        **provenance(),
        "keys_in_a_round": options.keys_in_a_round,
        "seconds_in_rounds": {
            "measured": [round(m, 3) for m, _ in rounds],
            "bare": [round(b, 3) for _, b in rounds],
        },
        "over_bare_forward": round(statistics.median(m / b for m, b in rounds), 3),
        "keys": options.keys,
        "seconds": round(measured(options.keys), 1),
    }
    print(json.dumps(record, indent=1))
    write_atomically(options.json, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
