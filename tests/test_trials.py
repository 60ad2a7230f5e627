"""Training and scoring of a sweep's work directories: locks, splits, failures."""

import dataclasses
import errno
import json
import threading

import jax
import numpy as np
import pytest
from sweep_support import BASE, SMALL, result_of, write_results
from tiny_source import TinySource

from facemix_jax import _files, cli, data, fitting, runs, sweep, trials
from facemix_jax._validate import DataError, FacemixError
from facemix_jax.defenses import DefenseConfig
from facemix_jax.sharding import MeshConfig


def group_of_two(folder, **defense):
    """Work directories of two seeds."""
    base = dataclasses.replace(BASE, defense=DefenseConfig(**defense))
    members = sweep.expand(base, {}, 2, folder)
    sweep.claim(members)
    return [each.workdir for each in members]


@pytest.mark.parametrize(
    ("defense", "split", "fits"),
    [
        ({"group_size": 8}, "test", False),
        ({"group_size": 4}, "test", True),
        ({"defense": "none"}, "test", True),
        ({"defense": "none"}, "valid", False),
    ],
)
def test_a_split_without_one_group_is_refused_before_training(
    tmp_path, monkeypatch, defense, split, fits
):
    source = TinySource()
    source.splits |= {"test": np.arange(4), "valid": np.arange(0)}
    trained = []
    monkeypatch.setattr(data, "load_source", lambda config: source)
    monkeypatch.setattr(
        fitting,
        "fit_together",
        lambda configs, workdirs, **_: [trained.append(w) for w in workdirs],
    )
    workdirs = group_of_two(tmp_path, **defense)
    trials.run(workdirs, split=split)
    assert trained == (sorted(workdirs) if fits else [])
    for workdir in workdirs:
        assert (workdir / "failure.json").exists() != fits
        if not fits:
            reason = json.loads((workdir / "failure.json").read_text())["error"]
            assert f"Split '{split}' of tiny has {len(source.splits[split])} images" in reason


def test_a_run_that_cannot_be_scored_leaves_the_others_their_results(tmp_path, monkeypatch):
    def utilities(run, split):
        if run.train.seed == 1:
            raise DataError("the network returns NaN")
        return result_of(0.5)

    monkeypatch.setattr(data, "load_source", lambda config: TinySource())
    monkeypatch.setattr(fitting, "fit_together", lambda configs, workdirs, **_: ["trained"] * 2)
    monkeypatch.setattr(runs, "from_state", lambda config, source, state: config)
    monkeypatch.setattr(trials, "utilities", utilities)
    good, bad = group_of_two(tmp_path)
    trials.run([bad, good])
    assert trials.scored(good, "test")["clean"]["accuracy"] == 0.5
    assert not (good / "failure.json").exists()
    assert trials.scored(bad, "test") is None
    assert "NaN" in (bad / "failure.json").read_text()


def test_a_run_too_large_for_the_device_says_so(tmp_path, monkeypatch):
    def fit(*args, **options):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(data, "load_source", lambda config: TinySource())
    monkeypatch.setattr(fitting, "fit_together", fit)
    workdirs = group_of_two(tmp_path)
    trials.run(workdirs)
    for workdir in workdirs:
        assert "Out of memory" in (workdir / "failure.json").read_text()


def test_a_test_split_without_one_group_stops_train_before_it_trains(tmp_path, monkeypatch, capsys):
    def trained(*args, **options):
        raise FacemixError("it trains")

    monkeypatch.setattr(fitting, "fit_together", trained)
    command = ["train", "--workdir", str(tmp_path / "w"), *SMALL, "--test-examples"]
    assert cli.main([*command, "4"]) == 2
    assert "Split 'test' of synthetic has 4 images" in " ".join(capsys.readouterr().err.split())
    assert cli.main([*command, "8"]) == 1, "the control"


def test_a_work_directory_named_twice_is_locked_and_trained_once(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    seen = []
    monkeypatch.setattr(trials, "_run", lambda waiting, *rest: seen.extend(waiting))
    twice = [tmp_path / "b", tmp_path / "a", tmp_path / "b"]
    running = threading.Thread(target=trials.run, args=(twice,), daemon=True)
    running.start()
    running.join(30)
    assert not running.is_alive(), "it waits for its own lock"
    assert seen == [tmp_path / "a", tmp_path / "b"]


@pytest.mark.parametrize(
    "text",
    ['{"split": "te', "[]", "7", "{}", '{"split": "valid"}', '{"split": "test", "leakage": []}'],
)
def test_a_damaged_result_or_one_of_weaker_attacks_is_none(tmp_path, text):
    (tmp_path / trials.RESULT).write_text(text)
    assert trials.scored(tmp_path, "test") is None
    (tmp_path / trials.RESULT).write_bytes(b"\xff")
    assert trials.scored(tmp_path, "test") is None


def test_trials_run_on_a_file_system_without_locks(tmp_path, monkeypatch):
    def refuse(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    seen = []
    monkeypatch.setattr(_files.fcntl, "flock", refuse)
    monkeypatch.setattr(trials, "_run", lambda waiting, *rest: seen.extend(waiting))
    trials.run([tmp_path])
    assert seen == [tmp_path]


def test_devices_are_dealt_automatically_where_some_runs_are_done(tmp_path, monkeypatch):
    """Two sets of devices for two runs; after a kill one of them is left."""
    seen = []

    def fit(configs, workdirs, **options):
        seen.append([config.mesh.seed_devices for config in configs])
        return [None] * len(configs)

    monkeypatch.setattr(data, "load_source", lambda config: TinySource())
    monkeypatch.setattr(fitting, "fit_together", fit)
    base = dataclasses.replace(BASE, mesh=MeshConfig(seed_devices=2))
    members = sweep.expand(base, {}, 2, tmp_path)
    sweep.claim(members)
    workdirs = [each.workdir for each in members]
    trials.run(workdirs)
    write_results([workdirs[:1]], lambda config: 0.5)
    trials.run(workdirs)
    assert seen == [[2, 2], [0]]
