"""Trainings whose loss or network is no longer finite: they stop, and what was good is kept."""

import jax
import numpy as np
import pytest
from fitting_support import config_of, fit_in

from facemix_jax import checkpoint, fitting
from facemix_jax.checkpoint import Checkpoints

pytestmark = pytest.mark.library_promotes  # Optax


def test_nan_stops_and_keeps_the_last_good_checkpoint(tiny_source, tmp_path):
    def poison(variables):
        post = jax.tree.map(lambda leaf: leaf * np.nan, variables["post"])
        return {**variables, "post": post}

    with pytest.raises(fitting.DivergedError, match=r"nan at step 2.*learning-rate"):
        fit_in(tmp_path, tiny_source, initial_variables=poison)
    with Checkpoints(tmp_path / "checkpoints", {}) as checkpoints:
        assert checkpoints.latest() is None


def test_a_network_that_is_not_finite_is_not_saved(tiny_source, tmp_path):
    """Of its running statistics no loss in training says anything."""

    def poison(variables):
        main = variables["main"]
        stats = jax.tree.map(lambda leaf: leaf * np.inf, main["batch_stats"])
        return {**variables, "main": {**main, "batch_stats": stats}}

    words = r"network holds NaN or infinities at step 3.*no checkpoint.*learning-rate"
    with pytest.raises(fitting.DivergedError, match=words):
        fit_in(tmp_path, tiny_source, initial_variables=poison)
    assert checkpoint.newest(tmp_path / "checkpoints") is None
    assert all(np.isfinite(record["loss"]) for record in fitting.read_records(tmp_path))


def test_a_run_that_diverges_behind_a_checkpoint_needs_another_folder(tiny_source, tmp_path):
    config = config_of(learning_rate=1e30, checkpoint_every=1)
    with pytest.raises(fitting.DivergedError, match=r"checkpoint \d is kept.*another --workdir"):
        fit_in(tmp_path, tiny_source, config)
