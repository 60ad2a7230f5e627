"""Training speed on any device: plain, encryption-aware, PyTorch, and the device's own limits.

ResNet-18 of width 64 at 218x178, batch 256, bfloat16 compute with float32 parameters, on random
images that lie on the device: (1) our plain step, (2) our encryption-aware step with M = 8 after
the stem, (3) the same network in PyTorch, channels last, autocast, ``torch.compile``, where
PyTorch is importable. They take turns; each ratio is the median of the ratios within a round.

Beside them stands a floor: for every linear layer the longer of its operations at the measured
rate of large matrix products and its bytes at the measured bandwidth, in the passes of a step
(forward, towards the weights, towards the input unless that is the images), and the optimiser's
bytes. Normalisation and ReLU count as part of the convolutions beside them, as if all were fused.
What they take where they are not, as with cuDNN's convolutions, stands beside it. On a GPU the
account lists the step's longest kernels.

    python experiments/benchmarks/training_speed.py
"""

import argparse
import json
import os
import pathlib
import statistics
import sys
import time
from importlib import util
from typing import Any

import cpu_training
import kernel_account

from facemix_jax import _runtime
from facemix_jax._files import write_atomically
from facemix_jax.provenance import provenance

RESULT = pathlib.Path(__file__).parent.parent / "results" / "training_speed.json"
NORM_PASSES = 8
"""Of BatchNorm and ReLU over a convolution's output where nothing is fused with the convolution:
forward, read for the statistics, read, and written; backward, it and its gradient read for the
sums, both read again, and a gradient written."""


def bandwidth(num_bytes: int) -> float:
    """Bytes/s of reading one array and writing another, many times without waiting between."""
    import jax
    import jax.numpy as jnp

    x = jnp.zeros(num_bytes // 4, jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    copy(x).block_until_ready()
    found, times = [], 10
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(times):
            result = copy(x)
        result.block_until_ready()
        found.append((time.perf_counter() - began) / times)
    return 2 * num_bytes / statistics.median(found)


def floor(options: argparse.Namespace) -> dict[str, float]:
    """Seconds below which a plain step cannot come, and what they are made of."""
    import jax
    import jax.numpy as jnp

    from facemix_jax import costs, models, speed

    model = models.resnet18(cut=1, image_size=tuple(options.image_size), width=options.width)
    cost = costs.model_cost(model, group_size=1)
    rate = speed.matmul_rate(options.dtype)
    bytes_per_second = bandwidth(2**26 if jax.default_backend() == "cpu" else 2**30)
    item = jnp.dtype(options.dtype).itemsize
    products = moves = both = 0.0
    for layer, passes in speed.passes(cost):
        work = 2 * layer.macs * options.batch_size / rate
        size = (layer.input_size + layer.output_size) * options.batch_size + layer.weights
        traffic = size * item / bytes_per_second
        products += passes * work
        moves += passes * traffic
        both += passes * max(work, traffic)
    # AdamW reads parameter, gradient and two moments, and writes all but the gradient.
    optimizer = 7 * 4 * cost.parameters_with_norm / bytes_per_second
    normalised = sum(layer.output_size for layer in cost.main.layers if layer.kind == "conv")
    return {
        "matmul_flops_per_second": rate,
        "bytes_per_second": bytes_per_second,
        "products_s": products,
        "traffic_s": moves,
        "optimizer_s": optimizer,
        "floor_s": both + optimizer,
        # Without the stem's, which pools first.
        "main_norm_s": NORM_PASSES * normalised * options.batch_size * item / bytes_per_second,
        "model_flops": speed.step_flops(cost) * options.batch_size,
    }


def main() -> None:
    """Measures, prints and writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image-size", type=int, nargs=2, default=(218, 178))
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--steps", type=int, default=10, help="in a turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--torch-python", default=sys.executable, help="one that has PyTorch")
    parser.add_argument("--json", type=pathlib.Path, default=RESULT)
    options = parser.parse_args()
    _runtime.configure()
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.6")  # the rest is PyTorch's
    import jax

    size, batch = tuple(options.image_size), options.batch_size
    shared: dict[str, Any] = {
        "width": options.width,
        "dtype": options.dtype,
        "group_size": options.group_size,
    }
    contestants = {
        "ours plain": cpu_training.ours("none", batch, size, **shared),
        "ours mixed": cpu_training.ours("facemix", batch, size, **shared),
    }
    worker = None
    if options.torch_python != sys.executable or util.find_spec("torch"):
        device = "cuda" if jax.default_backend() in ("gpu", "cuda") else "cpu"
        more = ["--width", str(options.width), "--dtype", options.dtype, "--device", device]
        worker = cpu_training.TorchWorker(options.torch_python, batch, size, *more, "--compiled")
        worker.ask("channels_last", 1)  # it compiles, for minutes, while we do
    for run in contestants.values():
        run(1)
    lost = None
    if worker:
        try:
            worker.answer()
        except SystemExit as error:  # our own steps are measured all the same
            lost, worker = error, None
    if worker:
        contestants["torch channels_last"] = worker.contestant("channels_last")
    seconds = cpu_training.take_turns(contestants, rounds=options.rounds, steps=options.steps)
    if worker:
        worker.close()
    lowest = floor(options)
    plain = statistics.median(seconds["ours plain"])
    record: dict[str, Any] = {
        "what": __doc__.splitlines()[0],
        **provenance(),
        "network": f"resnet18, width {options.width}, cut 1, 40 attributes, {options.dtype}",
        "image_size": size,
        "group_size": options.group_size,
        "batch_size": batch,
        **cpu_training.summarize(seconds, batch),
        "model_flops_utilisation": lowest["model_flops"]
        / plain
        / lowest["matmul_flops_per_second"],
        "plain_over_floor": plain / lowest["floor_s"],
        "floor": lowest,
        "seconds_per_step": seconds,
        "torch": worker.versions if worker else None,
    }
    write(options.json, record)
    record["account"] = {
        name: kernel_account.kernels(contestants[name]) for name in ("ours plain", "ours mixed")
    }
    write(options.json, record)
    for name, value in record["images_per_second"].items():
        print(f"{name:20} {value:10.2f} images/s")
    for name in (
        "mixed_over_plain_step_time",
        "plain_speed_over_torch",
        "model_flops_utilisation",
        "plain_over_floor",
    ):
        if name in record:
            print(f"{name:28} {record[name]:.3f}")
    if lost is not None:
        raise lost


def write(path: pathlib.Path, record: dict[str, Any]) -> None:
    """Writes the JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
