"""How fast a training ran, and how fast the devices could have run it."""

import dataclasses
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from facemix_jax import costs
from facemix_jax.models import SplitModel


def passes(cost: costs.ModelCost) -> list[tuple[costs.LinearLayer, int]]:
    """The network's linear layers, each with its passes in a step of training.

    Forward, towards the weights, and towards the input: of the first layer that is the images,
    whose gradient no step computes.
    """
    layers = (*cost.pre.layers, *cost.main.layers, *cost.post.layers)
    return [(layer, 3 if index else 2) for index, layer in enumerate(layers)]


def step_flops(cost: costs.ModelCost) -> int:
    """Operations of a step for each image: twice the multiply-accumulates of all passes."""
    return sum(2 * layer.macs * times for layer, times in passes(cost))


class Meter:
    """Adds up where the time of a training goes, but for compiling, saving and writing traces.

    Attributes:
        steps: counted.
        images: in them.
        seconds: that they took.
        waiting: of these, how many the batches did not come.
        devices: that computed.
    """

    def __init__(self) -> None:
        self.steps = self.images = 0
        self.seconds = self.waiting = 0.0
        self.devices = 1
        self._waited = 0.0

    def waited(self, seconds: float) -> None:
        """Notes the time until a batch came."""
        self._waited += seconds

    def forget(self) -> None:
        """Leaves out the waits since the last ``add``: those of compiling or saving."""
        self._waited = 0.0

    def add(self, steps: int, images: int, seconds: float) -> None:
        """Adds steps that are done, with the waits in them."""
        self.steps += steps
        self.images += images
        self.seconds += seconds
        self.waiting += min(self._waited, seconds)
        self.forget()

    def summary(self, model: SplitModel, compute_dtype: str) -> dict[str, Any]:
        """Images/s, seconds of a step, share of waiting, and model FLOPs utilisation.

        The last is the network's own work (``step_flops``) over what as many large matrix products
        of this dtype reach on these devices.

        Returns:
            Ready for JSON; empty where no step was counted.
        """
        if not self.steps:
            return {}
        step = step_flops(costs.model_cost(model, group_size=1))
        achieved = step * self.images / self.seconds
        ceiling = matmul_rate(compute_dtype) * self.devices
        return {
            "steps": self.steps,
            "images_per_second": self.images / self.seconds,
            "seconds_per_step": self.seconds / self.steps,
            "waiting_for_data": self.waiting / self.seconds,
            "model_flops_per_second": achieved,
            "matrix_product_flops_per_second": ceiling,
            "model_flops_utilisation": achieved / ceiling,
            "devices": self.devices,
        }


def line(summary: dict[str, Any]) -> str:
    """A summary in one line."""
    if not summary:
        return "too few steps to time"
    return (
        f"{summary['images_per_second']:.1f} images/s, {1e3 * summary['seconds_per_step']:.1f} ms "
        f"a step, {summary['model_flops_utilisation']:.0%} of what matrix products reach "
        f"({summary['matrix_product_flops_per_second'] / 1e12:.3g} TFLOP/s on "
        f"{summary['devices']} device(s)), {summary['waiting_for_data']:.0%} waiting for data"
    )


def matmul_rate(dtype: str = "float32", *, size: int | None = None) -> float:
    """FLOP/s of square matrix products on one device at JAX's default precision: a ceiling.

    Args:
        dtype: of the factors.
        size: rows and columns; None for one that fits the device.
    """
    size = size or (1024 if jax.default_backend() == "cpu" else 8192)
    device = jax.local_devices()[0]
    x = jax.device_put(jnp.ones((size, size), dtype), device)
    product = jax.jit(jnp.matmul)
    product(x, x).block_until_ready()
    found, times = [], 4  # without waiting between, as a step's own follow one another
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(times):
            result = product(x, x)
        result.block_until_ready()
        found.append((time.perf_counter() - began) / times)
    return 2 * size**3 / statistics.median(found)


@dataclasses.dataclass
class Trace:
    """Writes a trace of a few steps for TensorBoard, Perfetto or XProf.

    Attributes:
        folder: where; None for nowhere.
        first: step before which it begins; 0 for none.
        last: step after which it ends; likewise.
    """

    folder: Path | None
    first: int
    last: int
    _running: bool = False

    @classmethod
    def of(cls, folder: Path | None, start: int, num_steps: int) -> "Trace":
        """Five steps after the first five, or what there is."""
        if folder is None:
            return cls(None, 0, 0)
        first = min(start + 6, num_steps)
        return cls(folder, first, min(first + 4, num_steps))

    def start(self) -> None:
        """Begins it; the caller waits for the step before ``first``."""
        jax.profiler.start_trace(str(self.folder))
        self._running = True

    def stop(self) -> None:
        """Ends and writes it, if it runs; the caller waits for the step ``last`` first."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
