"""Candidates for a GPU, beside what the library does: the stem, the max-pool, several runs at once.

Where ResNet-18's training step goes on an H200 (``results/nvidia-h200/training_kernels.json``):
2.2 of 12.2 ms into the 7x7 convolution of three channels, which tensor cores take as eight, and
2.1 ms into the max-pool, whose gradient XLA scatters with atomic additions. Here stand the
convolution on blocks of 2x2 pixels and a gradient that is gathered, which compute the same
(``tests/experiments/test_cuda_parts.py``) and are not in the library before they are shown here
to be faster; and for several runs the dense convolutions of ``facemix_jax.dense``. Forward and
backward pass, at the sizes of ``training_speed.py`` and ``seeds_speed.py``, taking turns; the ratio
is the median over turns of the library's time over the candidate's.

    python experiments/benchmarks/cuda_parts.py
"""

import argparse
import functools
import json
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from facemix_jax import _runtime, dense
from facemix_jax._types import Array
from facemix_jax.provenance import provenance

RESULT = pathlib.Path(__file__).parent.parent / "results" / "cuda_parts.json"

_CHANNELS = 4
"""An image's three and one of zeros: four pixels are then the 16 that tensor cores take."""


def stem_on_blocks(x: Array, kernel: Array) -> Array:
    """7x7, stride 2, padding 3, of three channels, as 4x4 and stride 1 on blocks of 2x2 pixels.

    Args:
        x: ``[B, H, W, 3]``.
        kernel: ``[7, 7, 3, C]``.

    Returns:
        ``[B, H/2, W/2, C]``, rounded up.
    """
    batch, height, width, channels = x.shape
    down, across = -(-height // 2), -(-width // 2)
    more = _CHANNELS - channels
    # The window becomes 8x8 with zeros in its last row and column.
    ends = ((0, 0), (3, 2 * down + 3 - height), (3, 2 * across + 3 - width), (0, more))
    x = jnp.pad(x, ends).reshape(batch, down + 3, 2, across + 3, 2, _CHANNELS)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, down + 3, across + 3, 4 * _CHANNELS)
    kernel = jnp.pad(kernel, ((0, 1), (0, 1), (0, more), (0, 0)))
    kernel = kernel.reshape(4, 2, 4, 2, _CHANNELS, -1).transpose(0, 2, 1, 3, 4, 5)
    kernel = kernel.reshape(4, 4, 4 * _CHANNELS, -1)
    return dense.plain(x, kernel, (1, 1), ((0, 0), (0, 0)))


def _windows(x: Array, fill: float) -> list[Array]:
    """The nine entries of every 3x3 window, stride 2 and padding 1, each ``[B, h, w, C]``."""
    batch, height, width, channels = x.shape
    down, across = -(-height // 2), -(-width // 2)
    value = jnp.array(fill, x.dtype)
    x = jax.lax.pad(
        x, value, ((0, 0, 0), (0, 2 * down - height, 0), (0, 2 * across - width, 0), (0, 0, 0))
    )
    parts = x.reshape(batch, down, 2, across, 2, channels)

    def before(part: Array, axis: int) -> Array:
        return jax.lax.pad(part, value, [(int(i == axis), -int(i == axis), 0) for i in range(4)])

    found = []
    for rows in jax.lax.split(parts, (1, 1), axis=2):
        even, odd = (
            part.reshape(batch, down, across, channels)
            for part in jax.lax.split(rows, (1, 1), axis=4)
        )
        found.append([before(odd, 2), even, odd])
    above = [before(part, 1) for part in found[1]]
    return [*above, *found[0], *found[1]]


@jax.custom_jvp
def gathered_max_pool(x: Array) -> Array:
    """3x3, stride 2, padding 1: ``[B, H, W, C]`` to ``[B, H/2, W/2, C]``, rounded up.

    Where several entries of a window are the largest, the gradient goes to the first.
    """
    return functools.reduce(jnp.maximum, _windows(x, -jnp.inf))


@gathered_max_pool.defjvp
def _gathered_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    entries = _windows(*primals, -jnp.inf)
    largest = functools.reduce(jnp.maximum, entries)
    which = jnp.full(largest.shape, len(entries), jnp.int8)
    for index in reversed(range(len(entries))):
        which = jnp.where(entries[index] == largest, jnp.int8(index), which)
    which = jax.lax.optimization_barrier(which)  # one byte is kept, not the nine entries
    slopes = _windows(*tangents, 0.0)
    chosen = [jnp.where(which == index, slope, 0) for index, slope in enumerate(slopes)]
    return largest, functools.reduce(jnp.add, chosen)


def slope(function: Callable[..., Array]) -> Callable[..., Any]:
    """Value and gradients of a sum of squares of what ``function`` returns."""

    def loss(*args: Array) -> Array:
        return jnp.sum(jnp.square(function(*args).astype(jnp.float32)))

    return jax.value_and_grad(loss, tuple(range(2)))


def cases(options: argparse.Namespace) -> dict[str, tuple[dict[str, Callable], tuple[Array, ...]]]:
    """By name: the library's way and the candidate, and what both take."""
    height, width = options.image_size
    batch, channels, runs = options.batch_size, options.width, options.runs
    shape = (batch, -(-height // 2), -(-width // 2), channels)

    def normal(*shape: int) -> Array:
        return jax.random.normal(jax.random.key(len(shape)), shape).astype(jnp.bfloat16)

    def pool(x: Array) -> Array:
        return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))

    def stem(x: Array, kernel: Array) -> Array:
        return dense.plain(x, kernel, (2, 2), ((3, 3), (3, 3)))

    def on_relu(pool: Callable[[Array], Array]) -> Callable[..., Array]:
        return lambda x, bias: pool(nn.relu(x + bias))

    found: dict[str, tuple[dict[str, Callable], tuple[Array, ...]]] = {
        "stem": (
            {"library": slope(stem), "candidate": slope(stem_on_blocks)},
            (normal(batch, height, width, 3), normal(7, 7, 3, channels)),
        ),
        "max_pool": (
            {"library": slope(on_relu(pool)), "candidate": slope(on_relu(gathered_max_pool))},
            (normal(*shape), normal(1, 1, 1, channels)),
        ),
    }
    for narrow, (down, across) in options.layers:

        def one(convolve: Callable[..., Array]) -> Callable[..., Array]:
            return slope(lambda x, kernel: convolve(x, kernel, (1, 1), ((1, 1), (1, 1))))

        found[f"{runs} runs of {narrow} channels"] = (
            {
                "library": jax.vmap(one(dense.plain)),
                "in turn": lambda x, kernel: jax.lax.map(
                    lambda a: one(dense.plain)(*a), (x, kernel)
                ),
                "candidate": jax.vmap(one(dense.convolution)),
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
        pairs = zip(seconds["library"], seconds["candidate"], strict=True)
        record["parts"][name] = {
            "library_over_candidate": round(statistics.median(a / b for a, b in pairs), 3),
            "milliseconds": {w: round(1e3 * statistics.median(s), 4) for w, s in seconds.items()},
        }
        print(name, json.dumps(record["parts"][name]), flush=True)
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
