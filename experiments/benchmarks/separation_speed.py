"""Speed of gradient ICA beside scikit-learn's FastICA, on the same mixtures, in one run.

Both separate every group to the same tolerance, in turns; the ratio is the median over turns of
scikit-learn's time over ours in that turn. scikit-learn runs once from one start, with its
defaults in double precision and one BLAS thread, which is faster for products this small; ours
runs three starts. The two unmixings of every group are compared by Amari distance (wanted: at most
0.02, and at least 10 times the speed). Vector analysis and nonnegative separation are timed
beside them. A minute or two on two cores; everything else on the machine should rest.

    python experiments/benchmarks/separation_speed.py --data-dir PATH_TO_CELEBA
"""

import argparse
import functools
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.decomposition import FastICA
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits

from facemix_jax import _runtime, attacks, data, metrics, mixing
from facemix_jax._files import write_atomically
from facemix_jax._types import Array, HostArray
from facemix_jax.attacks import nonnegative, vectors
from facemix_jax.provenance import provenance

RESULT = Path(__file__).parents[1] / "results" / "separation_speed.json"
TOLERANCE = 1e-5


def mixtures_of(options: argparse.Namespace) -> tuple[str, Array]:
    """Name of the data and mixtures ``[G, M, H, W, 3]`` of normalised pixels."""
    if options.data_dir is None:
        config = data.DataConfig(image_size=(109, 89), train_examples=1, test_examples=2048)
    else:
        config = data.DataConfig(
            dataset="celeba",
            data_dir=options.data_dir,
            image_size=(109, 89),
            cache_dir=options.cache_dir,
        )
    source = data.load_source(config)
    count = options.groups * options.group_size
    rows = np.random.default_rng(0).permutation(source.splits["test"])[:count]
    key = mixing.sample_mix_key(
        jax.random.key(0), options.groups, options.group_size, shuffle=False
    )
    images = jnp.asarray(data.normalize(source.images(rows)))
    return source.name, mixing.group(mixing.mix(key, images), options.group_size)


def scikit_learn(samples: list[HostArray]) -> HostArray:
    """Its unmixings of gradients, ``[G, M, M]``."""
    found = []
    for sample in samples:
        ica = FastICA(tol=TOLERANCE, max_iter=200, random_state=0)
        with warnings.catch_warnings(), threadpool_limits(1):
            warnings.simplefilter("ignore", ConvergenceWarning)
            found.append(ica.fit(sample).components_)
    return np.stack(found)


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds on the clock, and the result."""
    began = time.perf_counter()
    result = jax.block_until_ready(run())
    return time.perf_counter() - began, result


def main(options: argparse.Namespace) -> None:
    """Both in turns, then the others; writes JSON."""
    options.json.parent.mkdir(parents=True, exist_ok=True)
    name, mixtures = mixtures_of(options)
    samples = [
        np.concatenate([np.diff(g, axis=a).reshape(len(g), -1) for a in (1, 2)], 1).T.astype(float)
        for g in np.asarray(mixtures)
    ]
    key = jax.random.key(1)
    ours = functools.partial(attacks.separate, mixtures, rng_key=key, tolerance=TOLERANCE)
    timed(ours)  # compiles
    turns = []
    for _ in range(options.turns):
        theirs_s, reference = timed(lambda: scikit_learn(samples))
        ours_s, _ = timed(ours)
        turns.append((theirs_s, ours_s))
        print(f"scikit-learn {theirs_s:.2f} s, ours {ours_s:.3f} s", flush=True)
    free = attacks.separate(mixtures, rng_key=key, tolerance=TOLERANCE, orthogonal=False)
    distances = np.array(
        [
            metrics.amari_distance(u, np.linalg.inv(r))
            for u, r in zip(np.asarray(free.unmixing), reference, strict=True)
        ]
    )
    others = {
        "iva": lambda: vectors.separate_groups(mixtures, rng_key=key),
        # Speed only: pixels are not nonnegative.
        "nonnegative": lambda: nonnegative.separate_nonnegative(mixtures, rng_key=key),
    }
    rates = {}
    for other, run in others.items():
        timed(run)
        rates[other] = round(options.groups / timed(run)[0], 1)
    median_s = statistics.median(s for _, s in turns)
    report = {
        "provenance": provenance(),
        "data": name,
        "groups": options.groups,
        "group_size": options.group_size,
        "activation_shape": list(mixtures.shape[2:]),
        "tolerance": TOLERANCE,
        "times_faster": round(statistics.median(t / s for t, s in turns), 1),
        "seconds_scikit_learn": [round(t, 3) for t, _ in turns],
        "seconds_ours": [round(s, 3) for _, s in turns],
        "groups_per_second": round(options.groups / median_s, 1),
        "groups_per_second_of_others": rates,
        "amari_mean": round(float(distances.mean()), 5),
        "amari_largest": round(float(distances.max()), 5),
        "load_average": round(os.getloadavg()[0], 1),
    }
    print(json.dumps(report, indent=2))
    write_atomically(options.json, json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    _runtime.configure()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", help="folder with the official CelebA files; none: synthetic")
    parser.add_argument("--cache-dir", help="folder for decoded images")
    parser.add_argument("--groups", type=int, default=64)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--json", type=Path, default=RESULT)
    main(parser.parse_args())
