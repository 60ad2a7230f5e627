"""Training speed on a CPU: plain, encryption-aware and PyTorch, in one run.

ResNet-18 (width 64) at 218x178 on random images: (1) our plain step, (2) our encryption-aware
step with M = 8 after the stem, (3) the same network, AdamW, normalisation and flips in PyTorch,
in both memory layouts, of which the faster counts. They take turns, and only one of them
computes at a time; each ratio is the median of the ratios within a round.

PyTorch may live in another interpreter, and runs as a subprocess of this one. About four minutes
on two cores; wanted: at least 0.9 of PyTorch's images/s, and at most 1.05 times the plain step's
time for the encryption-aware step.

    python experiments/benchmarks/cpu_training.py --torch-python PATH
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from facemix_jax import _runtime
from facemix_jax._files import write_atomically
from facemix_jax.provenance import provenance

HERE = pathlib.Path(__file__).parent
RESULT = HERE.parent / "results" / "cpu_training.json"
IMAGE_SIZE = (218, 178)
GROUP_SIZE = 8
PAUSE_S = 0.5
"""Between turns, so that the threads of the last one sleep."""

Contestant = Callable[[int], float]
"""Runs so many steps and returns the seconds that they took."""


def ours(
    defense_name: str,
    batch_size: int,
    image_size: tuple[int, int] = IMAGE_SIZE,
    *,
    width: int = 64,
    dtype: str = "float32",
    group_size: int = GROUP_SIZE,
) -> Contestant:
    """The library's own step, on a batch that lies on the device."""
    import jax

    from facemix_jax import defenses, models, training

    network = models.ModelConfig(width=width, compute_dtype=dtype)
    model = models.build(network, image_size=image_size)
    config = training.TrainConfig(batch_size=batch_size)
    defense = defenses.build(defenses.DefenseConfig(defense=defense_name, group_size=group_size))
    step = training.make_train_step(model, defense, config, num_steps=1000)
    stream = np.random.default_rng(0)
    images = jax.device_put(stream.integers(0, 256, (batch_size, *image_size, 3), np.uint8))
    attributes = jax.device_put(stream.integers(0, 2, (batch_size, 40), np.int8))
    state = training.init_state(model, config, num_steps=1000)

    def run(steps: int) -> float:
        nonlocal state
        start = time.perf_counter()
        for _ in range(steps):
            state, _ = step(state, images, attributes)
        jax.block_until_ready(state)
        return time.perf_counter() - start

    return run


class TorchWorker:
    """PyTorch in its own interpreter, computing only when asked."""

    def __init__(
        self,
        python: str,
        batch_size: int,
        image_size: tuple[int, int] = IMAGE_SIZE,
        *options: str,
    ) -> None:
        command = [python, str(HERE / "torch_reference.py"), "train", *options]
        command += ["--batch-size", str(batch_size), "--image-size", *map(str, image_size)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.versions = self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(
                "The PyTorch side stopped; its message is above. Give --torch-python an "
                "interpreter that has torch and numpy."
            )
        return json.loads(line)

    def contestant(self, layout: str) -> Contestant:
        """A turn of this worker in one memory layout."""

        def run(steps: int) -> float:
            self.ask(layout, steps)
            return self.answer()

        return run

    def ask(self, layout: str, steps: int) -> None:
        """Has it begin with so many steps."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{layout} {steps}\n")
        self.process.stdin.flush()

    def answer(self) -> float:
        """Waits for what it was asked last: the seconds that the steps took."""
        return float(self._read()["seconds"])

    def close(self) -> None:
        """Ends the subprocess."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def take_turns(
    contestants: dict[str, Contestant], *, rounds: int, steps: int
) -> dict[str, list[float]]:
    """Seconds per step of each contestant in each round; one round before is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for index in range(rounds + 1):
        for name, run in contestants.items():
            time.sleep(PAUSE_S)
            per_step = run(steps) / steps
            print(f"round {index} {name}: {per_step:.3f} s a step", file=sys.stderr)
            if index:
                seconds[name].append(per_step)
    return seconds


def summarize(seconds: dict[str, list[float]], batch_size: int) -> dict[str, Any]:
    """Images per second and the two ratios."""

    def ratio(a: str, b: str) -> float:
        return statistics.median(x / y for x, y in zip(seconds[a], seconds[b], strict=True))

    summary: dict[str, Any] = {
        "images_per_second": {
            name: batch_size / statistics.median(values) for name, values in seconds.items()
        },
        "mixed_over_plain_step_time": ratio("ours mixed", "ours plain"),
    }
    layouts = [name for name in seconds if name.startswith("torch")]
    if layouts:
        fastest = min(layouts, key=lambda name: statistics.median(seconds[name]))
        summary["torch_fastest"] = fastest
        summary["plain_speed_over_torch"] = ratio(fastest, "ours plain")
    return summary


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints and writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch-python", help="an interpreter with PyTorch; left out without")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=3, help="in a turn")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=pathlib.Path, default=RESULT)
    options = parser.parse_args(arguments)
    _runtime.configure()

    record: dict[str, Any] = {"what": __doc__.splitlines()[0], **provenance()}
    contestants = {
        "ours plain": ours("none", options.batch_size),
        "ours mixed": ours("facemix", options.batch_size),
    }
    worker = TorchWorker(options.torch_python, options.batch_size) if options.torch_python else None
    if worker:
        record["torch"] = worker.versions
        for layout in ("default", "channels_last"):
            contestants[f"torch {layout}"] = worker.contestant(layout)
    seconds = take_turns(contestants, rounds=options.rounds, steps=options.steps)
    if worker:
        worker.close()

    record |= {
        "network": "resnet18, width 64, cut 1, 40 attributes",
        "image_size": IMAGE_SIZE,
        "group_size": GROUP_SIZE,
        "batch_size": options.batch_size,
        "steps_in_a_turn": options.steps,
        "rounds": options.rounds,
        **summarize(seconds, options.batch_size),
        "seconds_per_step": seconds,
    }
    for name, speed in record["images_per_second"].items():
        print(f"{name:20} {speed:6.2f} images/s")
    for name in ("mixed_over_plain_step_time", "plain_speed_over_torch"):
        if name in record:
            print(f"{name:28} {record[name]:.3f}")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(options.json, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
