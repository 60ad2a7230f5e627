"""Speed of the data layer: decoding, reading the cache, drawing faces, and waiting for batches.

Four questions, each as a ratio or a rate in this run:

* decoding into the cache against a bare Pillow loop over the same files on as many threads
  (wanted: at least 0.9 of it; the floor is Pillow itself);
* shuffled batches from the cache at 109x89 (wanted: 20,000 images/s; the floor is the copy of
  29 kB an image, 0.6 GB/s at that rate);
* drawn faces at 109x89 (wanted: 1,000/s);
* the training step on batches gathered on the device, and on batches from the host, against the
  step on one constant batch (wanted: within 3% for the former).

    python experiments/benchmarks/data_speed.py --data-dir PATH_TO_CELEBA --cache-dir EMPTY_FOLDER
"""

import argparse
import functools
import io
import itertools
import json
import os
import pathlib
import statistics
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from PIL import Image

from facemix_jax import _runtime, data, defenses, models, training
from facemix_jax._files import write_atomically
from facemix_jax.data import files, synthetic
from facemix_jax.provenance import provenance

RESULT = pathlib.Path(__file__).parent.parent / "results" / "data_speed.json"
IMAGE_SIZE = (109, 89)


def seconds(run: Callable[[], Any]) -> float:
    """Of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def decoding(data_dir: str, cache_dir: pathlib.Path, count: int, rounds: int) -> dict[str, Any]:
    """Images/s of both, native size to 109x89, on all cores."""
    config = data.DataConfig(dataset="celeba", data_dir=data_dir, image_size=IMAGE_SIZE)
    whole = data.open_files(config)
    part = files.FileSet(
        name="part",
        file_names=whole.file_names[:count],
        images=whole.images,
        attribute_names=whole.attribute_names,
        attributes=whole.attributes[:count],
        identities=whole.identities[:count],
        splits={name: np.arange(0) for name in whole.splits},
    )

    def ours() -> None:
        for old in cache_dir.glob("part-*"):
            old.unlink()
        files.decoded(part, IMAGE_SIZE, cache_dirs=[cache_dir])

    archive = zipfile.ZipFile(next(pathlib.Path(data_dir).glob("*.zip")))
    members = {info.filename.rsplit("/", 1)[-1]: info for info in archive.infolist()}
    height, width = IMAGE_SIZE

    def one(name: str) -> np.ndarray:
        with Image.open(io.BytesIO(archive.read(members[name]))) as image:
            return np.asarray(
                image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
            )

    def bare() -> None:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for _ in pool.map(one, part.file_names):
                pass

    pairs = [(seconds(ours), seconds(bare)) for _ in range(rounds)]
    return {
        "images": count,
        "ours_images_per_s": count / statistics.median(a for a, _ in pairs),
        "pillow_images_per_s": count / statistics.median(b for _, b in pairs),
        "ours_over_pillow": statistics.median(b / a for a, b in pairs),
    }


def reading(source: data.Source, rounds: int) -> dict[str, Any]:
    """Images/s of shuffled training batches of 256 from the mapped cache."""
    batches = data.train_batches(source, batch_size=256, seed=0)
    for batch in itertools.islice(batches, 100):  # the first pass reads the disk
        np.add.reduce(batch.images[:, 0, 0, 0])
    rates = []
    for _ in range(rounds):
        took = seconds(lambda: [next(batches) for _ in range(100)])
        rates.append(25600 / took)
    return {"batch_size": 256, "images_per_s": statistics.median(rates), "all": rates}


def drawing(rounds: int) -> dict[str, Any]:
    """Faces/s, each drawn for the first time."""
    source = synthetic.load(IMAGE_SIZE)
    source.images(np.arange(64))
    rates = []
    for i in range(rounds):
        rows = np.arange(64 + 1024 * i, 64 + 1024 * (i + 1))
        rates.append(1024 / seconds(functools.partial(source.images, rows)))
    return {"faces_per_s": statistics.median(rates), "all": rates}


def waiting(source: data.Source, rounds: int, steps: int) -> dict[str, Any]:
    """Step time on resident and on host batches over that on a constant batch."""
    model = models.resnet18(cut=1, image_size=source.image_size, width=16)
    config = training.TrainConfig()
    defense = defenses.build(defenses.DefenseConfig(group_size=8))
    step = training.make_train_step(model, defense, config, 10_000)
    state = training.init_state(model, config, 10_000)
    resident = data.train_batches(data.on_device(source), batch_size=config.batch_size, seed=0)
    one = next(resident)
    turns: dict[str, Iterator[data.Batch]] = {
        "constant": itertools.repeat(one),
        "resident": resident,
        "host": data.train_batches(source, batch_size=config.batch_size, seed=0),
    }
    took: dict[str, list[float]] = {name: [] for name in turns}
    for index in range(rounds + 1):
        for name, batches in turns.items():
            start = time.perf_counter()
            for batch in itertools.islice(batches, steps):
                state, _ = step(state, batch.images, batch.attributes)
            jax.block_until_ready(state)
            if index:
                took[name].append((time.perf_counter() - start) / steps)
    ratios = {
        f"{name}_over_constant": statistics.median(
            a / b for a, b in zip(took[name], took["constant"], strict=True)
        )
        for name in ("resident", "host")
    }
    return {
        "network": "resnet18, width 16, cut 1, FaceMix M = 8",
        "batch_size": config.batch_size,
        **ratios,
        "seconds_per_step": {name: statistics.median(values) for name, values in took.items()},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints and writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True, help="folder with CelebA's official files")
    parser.add_argument("--cache-dir", type=pathlib.Path, required=True)
    parser.add_argument("--images", type=int, default=4096, help="to decode in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8, help="training steps in a turn")
    parser.add_argument("--json", type=pathlib.Path, default=RESULT)
    options = parser.parse_args(arguments)
    _runtime.configure()
    options.cache_dir.mkdir(parents=True, exist_ok=True)

    record: dict[str, Any] = {"what": __doc__.splitlines()[0], **provenance()}
    record["decoding"] = decoding(
        options.data_dir, options.cache_dir, options.images, options.rounds
    )
    source = data.load_source(
        data.DataConfig(
            dataset="celeba",
            data_dir=options.data_dir,
            image_size=IMAGE_SIZE,
            cache_dir=str(options.cache_dir),
        )
    )
    record["reading"] = reading(source, options.rounds)
    record["drawing"] = drawing(options.rounds)
    record["waiting"] = waiting(source, options.rounds, options.steps)
    print(json.dumps(record, indent=1))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(options.json, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
