"""Rounding on the device at hand: dtype by precision, of mixing alone and of a whole main.

Mixing and unmixing with nothing between (the library's, a plain product, the plain product with
operands rounded to tf32 by hand), the linear twin of a ResNet-18 with the theory's bound, the
ResNet-18 itself (both for M = 8), and three orders of summation. Runs on any device; on a GPU the
rows of the plain product at default precision show what tf32 does.

    python experiments/benchmarks/linearity_precision.py --json PATH
"""

import argparse
import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from facemix_jax import _runtime, models
from facemix_jax._files import write_atomically
from facemix_jax._types import Array
from facemix_jax.linearity import precision, theory
from facemix_jax.models import ModelConfig, operations
from facemix_jax.provenance import provenance

RESULT = pathlib.Path(__file__).parent.parent / "results" / "linearity_precision.json"
IMAGE_SIZE = (109, 89)


def table(width: int) -> dict[str, Any]:
    """All rows, measured on JAX's default device."""
    config = ModelConfig(width=width)
    model = models.build(config, image_size=IMAGE_SIZE)
    variables = model.init(jax.random.key(0))["main"]
    x = jax.random.normal(jax.random.key(1), (64, *model.spec.activation_shape))
    x = jax.nn.relu(x)  # as after the stem

    def build(linear: bool, dtype: jnp.dtype) -> Callable[[Array], Array]:
        apply = models.build(config, image_size=IMAGE_SIZE, dtype=dtype).main.apply
        own = variables
        if dtype == jnp.float64:
            own = jax.tree_util.tree_map(lambda leaf: leaf.astype(dtype), variables)
        return functools.partial(operations.linear_twin(apply) if linear else apply, own)

    options: dict[str, Any] = {"rng_key": jax.random.key(2), "group_sizes": (8, 64)}
    # Only float32 products are rounded otherwise at another precision.
    others = tuple(name for name in precision.DTYPES if name != "float32")
    cells = ((("float32",), precision.PRECISIONS), (others, ("highest",)))
    mains = {
        name: [
            row
            for dtypes, precisions in cells
            for row in precision.main_errors(
                functools.partial(build, linear),
                x,
                fan_ins=theory.fan_ins(variables) if linear else None,
                dtypes=dtypes,
                precisions=precisions,
                num_keys=2,
                **options | {"group_sizes": (8,)},
            )
        ]
        for name, linear in (("linear_twin", True), ("network", False))
    }
    return {
        "mixing": precision.mixing_errors(x, **options),
        **mains,
        "order_of_summation": precision.order_errors(
            x[:, :4, :4], rng_key=jax.random.key(2), group_sizes=(2, 8, 64)
        ),
    }


def main() -> None:
    """Measures, prints and writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--json", type=pathlib.Path, default=RESULT)
    options = parser.parse_args()
    options.json.parent.mkdir(parents=True, exist_ok=True)
    _runtime.configure()
    record = {"what": __doc__.splitlines()[0], **provenance(), **table(options.width)}
    for name in ("mixing", "linear_twin", "network", "order_of_summation"):
        print(name)
        for row in record[name]:
            print(" ", json.dumps(row))
    write_atomically(options.json, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
