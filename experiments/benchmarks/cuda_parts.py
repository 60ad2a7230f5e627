"""What the library computes otherwise on a GPU, beside JAX's own: stem, pool, mixing, several runs.

The stem's convolution and the max-pool of ``facemix_jax.models.stem``; mixing of groups of 2, 8
and 32, beside a product of matrices in float32, sums of rows and products of bfloat16 parts; and
for several runs the dense convolutions of ``facemix_jax.models.dense`` beside grouped ones.
Forward and backward pass, at the sizes of ``training_speed.py`` and ``seeds_speed.py``, taking
turns; the ratio is the median over turns of JAX's time over the library's.

    python experiments/benchmarks/cuda_parts.py
"""

import argparse
import json
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from facemix_jax import _runtime, group_products, mixing
from facemix_jax._files import write_atomically
from facemix_jax._types import Array
from facemix_jax.models import dense, stem
from facemix_jax.provenance import provenance

GROUP_SIZES = (2, 8, 32)
RESULT = pathlib.Path(__file__).parent.parent / "results" / "cuda_parts.json"


def slope(function: Callable[..., Array], towards: tuple[int, ...] = (0, 1)) -> Callable[..., Any]:
    """Value and gradients of a sum of squares of what ``function`` returns.

    Args:
        function: of two arrays.
        towards: which of them have a gradient.
    """

    def loss(*args: Array) -> Array:
        return jnp.sum(jnp.square(function(*args).astype(jnp.float32)))

    return jax.value_and_grad(loss, towards)


def cases(options: argparse.Namespace) -> dict[str, tuple[dict[str, Callable], tuple[Array, ...]]]:
    """By name: the ways, and what all of them take."""
    height, width = options.image_size
    batch, channels, runs = options.batch_size, options.width, options.runs
    shape = (batch, -(-height // 2), -(-width // 2), channels)

    def normal(*shape: int) -> Array:
        return jax.random.normal(jax.random.key(len(shape)), shape).astype(jnp.bfloat16)

    def plain(x: Array, kernel: Array) -> Array:
        return dense.plain(x, kernel, (2, 2), ((3, 3), (3, 3)))

    def on_relu(pool: Callable[[Array], Array]) -> Callable[..., Array]:
        return lambda x, bias: pool(nn.relu(x + bias))

    found: dict[str, tuple[dict[str, Callable], tuple[Array, ...]]] = {
        "stem": (
            # Training computes no gradient towards images.
            {"jax": slope(plain, (1,)), "library": slope(stem.stem_on_blocks, (1,))},
            (normal(batch, height, width, 3), normal(7, 7, 3, channels)),
        ),
        "max_pool": (
            {
                "jax": slope(on_relu(stem.plain_max_pool)),
                "library": slope(on_relu(stem.gathered_max_pool)),
            },
            (normal(*shape), normal(1, 1, 1, channels)),
        ),
    }

    def mixed(group_size: int, group: Callable[..., Array]) -> Callable[..., Array]:
        matrix = mixing.haar(jax.random.key(0), batch // group_size, group_size)[0]

        def run(x: Array, bias: Array) -> Array:
            flat = nn.relu(x + bias).reshape(*matrix.shape[:2], -1)
            return jax.vmap(group)(matrix, flat).astype(x.dtype)

        return slope(run)

    half = (batch, -(-shape[1] // 2), -(-shape[2] // 2), channels)
    for group_size in GROUP_SIZES:
        ways = {
            "jax": group_products.product,
            "rows": group_products.sum_of_rows,
            "parts": group_products.product_of_parts,
            "library": mixing.mix_group,
        }
        found[f"mixing of {group_size}"] = (
            {name: mixed(group_size, way) for name, way in ways.items()},
            (normal(*half), normal(1, 1, 1, channels)),
        )
    for narrow, (down, across) in options.layers:

        def one(convolve: Callable[..., Array]) -> Callable[..., Array]:
            return slope(lambda x, kernel: convolve(x, kernel, (1, 1), ((1, 1), (1, 1))))

        found[f"{runs} runs of {narrow} channels"] = (
            {
                "jax": jax.vmap(one(dense.plain)),
                "in turn": lambda x, kernel: jax.lax.map(
                    lambda a: one(dense.plain)(*a), (x, kernel)
                ),
                "library": jax.vmap(one(dense.convolution)),
            },
            (normal(runs, 64, down, across, narrow), normal(runs, 3, 3, narrow, narrow)),
        )
    return found


def main() -> None:
    """Measures, prints and writes the JSON file after every part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image-size", type=int, nargs=2, default=(218, 178))
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--json", type=pathlib.Path, default=RESULT)
    options = parser.parse_args()
    options.layers = [(16, (28, 23)), (128, (4, 3))]
    _runtime.configure()
    record: dict[str, Any] = {"what": __doc__.splitlines()[0], **provenance(), "parts": {}}
    record |= {"image_size": options.image_size, "batch_size": options.batch_size}
    for name, (ways, arguments) in cases(options).items():
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        compiled = {way: jax.jit(run) for way, run in ways.items()}
        for turn in range(options.turns + 1):
            for way, run in compiled.items():
                began = time.perf_counter()
                for _ in range(5):
                    result = run(*arguments)
                jax.block_until_ready(result)
                if turn:
                    seconds[way].append((time.perf_counter() - began) / 5)
        pairs = zip(seconds["jax"], seconds["library"], strict=True)
        record["parts"][name] = {
            "jax_over_library": round(statistics.median(a / b for a, b in pairs), 3),
            "milliseconds": {w: round(1e3 * statistics.median(s), 4) for w, s in seconds.items()},
        }
        print(name, json.dumps(record["parts"][name]), flush=True)
        options.json.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(options.json, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
