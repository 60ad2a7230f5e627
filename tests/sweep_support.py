"""What tests of sweeps share: small runs, and a stand-in for training."""

import json

from facemix_jax import runs
from facemix_jax.runs import RunConfig

BASE = RunConfig()
SMALL = ["--image-size", "40", "36", "--train-examples", "64", "--test-examples", "32"]
SMALL += ["--width", "4", "--num-epochs", "1", "--batch-size", "16", "--log-every", "1"]
FIGURE = {"value": 0.99, "floor": 0.6, "owner": 1.0}


def result_of(accuracy, split="test"):
    scores = {"accuracy": accuracy, "balanced_accuracy": accuracy / 2, "majority_accuracy": 0.8}
    found = {"split": split, "clean": scores, "protected": scores, "strongest": FIGURE}
    return {**found, "provenance": {"device": "stand-in"}}


def write_results(groups, accuracy, seen=None, split="test"):
    """Stands in for training: the accuracy is a function of the configuration."""
    for workdir in (w for group in groups for w in group):
        if seen is not None:
            seen.append(workdir)
        found = result_of(accuracy(runs.read_config(workdir)), split)
        (workdir / "result.json").write_text(json.dumps(found))
