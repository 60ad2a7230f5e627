"""Sweeps: typed grids, one directory per configuration, resuming, groups, intervals, search."""

import csv
import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from facemix_jax import cli, metrics, runs, sweep, sweep_runners, sweep_search, trials
from facemix_jax._validate import FacemixError, UsageError
from facemix_jax.data import DataConfig
from facemix_jax.runs import RunConfig
from facemix_jax.sharding import MeshConfig

BASE = RunConfig()
SMALL = ["--image-size", "40", "36", "--train-examples", "64", "--test-examples", "32"]
SMALL += ["--width", "4", "--num-epochs", "1", "--batch-size", "16", "--log-every", "1"]
FIGURE = {"value": 0.99, "floor": 0.6, "owner": 1.0}


def result_of(accuracy, split="test"):
    scores = {"accuracy": accuracy, "balanced_accuracy": accuracy / 2, "majority_accuracy": 0.8}
    return {"split": split, "clean": scores, "protected": scores, "leakage": [FIGURE]}


def write_results(groups, accuracy, seen=None, split="test"):
    """Stands in for training: the accuracy is a function of the configuration."""
    for workdir in (w for group in groups for w in group):
        if seen is not None:
            seen.append(workdir)
        found = result_of(accuracy(runs.read_config(workdir)), split)
        (workdir / "result.json").write_text(json.dumps(found))


def test_values_have_the_types_of_their_fields():
    grid = sweep.parse_grid(
        [
            "train.learning_rate=1e-3,3",
            "defense.group_size=4,8",
            "model.centre=True,false",
            "data.image_size=64x48",
            "data.train_examples=None,100",
            "train.statistics=mixed",
        ]
    )
    assert grid == {
        "train.learning_rate": [1e-3, 3.0],
        "defense.group_size": [4, 8],
        "model.centre": [True, False],
        "data.image_size": [(64, 48)],
        "data.train_examples": [None, 100],
        "train.statistics": ["mixed"],
    }
    assert isinstance(grid["train.learning_rate"][1], float)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train.learning_rate", "no list of values"),
        ("train.learningrate=1", "Did you mean 'learning_rate'"),
        ("trian.seed=1", "Did you mean 'train'"),
        ("defense.group_size=4,eight", "'eight', but must be int"),
        ("defense.group_size=4.5", "must be int"),
        ("model.centre=yes", "must be bool"),
    ],
)
def test_what_is_no_value_is_explained(text, words):
    with pytest.raises(UsageError, match=words):
        sweep.parse_grid([text])


def test_a_combination_that_does_not_fit_stops_before_anything_starts(capsys, tmp_path):
    grid = ("--grid", "train.batch_size=16,20", "defense.group_size=8")
    assert cli.main(["sweep", "--workdir", str(tmp_path / "s"), *grid]) == 2
    assert "train.batch_size = 20" in " ".join(capsys.readouterr().err.split())
    grid = ("--grid", "model.cut=1,12")
    assert cli.main(["sweep", "--workdir", str(tmp_path / "s"), *grid]) == 2
    assert "cut is 12" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def test_a_directory_stands_for_a_configuration_wherever_it_runs(tmp_path):
    trials = sweep.expand(BASE, {"train.learning_rate": [1e-3, 3e-3]}, 3, tmp_path)
    assert len({t.workdir for t in trials}) == len(trials) == 6
    assert [t.config.train.seed for t in trials] == [0, 1, 2, 0, 1, 2]
    elsewhere = dataclasses.replace(
        BASE, mesh=MeshConfig(model_devices=2), data=DataConfig(cache_dir="/elsewhere")
    )
    again = sweep.expand(elsewhere, {"train.learning_rate": [3e-3, 1e-3]}, 3, tmp_path)
    assert {t.workdir for t in again} == {t.workdir for t in trials}
    other = sweep.expand(BASE, {"train.learning_rate": [2e-3]}, 3, tmp_path)
    assert not {t.workdir for t in other} & {t.workdir for t in trials}


def test_runs_that_differ_in_seed_and_scalars_train_together(tmp_path):
    grid = {"train.learning_rate": [1e-3, 3e-3], "defense.group_size": [4, 8]}
    groups = sweep.groups(sweep.expand(BASE, grid, 3, tmp_path), 8)
    assert [len(group) for group in groups] == [6, 6]
    for group in groups:
        assert len({trial.config.defense.group_size for trial in group}) == 1
        assert len({trial.config.train.learning_rate for trial in group}) == 2
    assert {len(g) for g in sweep.groups(sweep.expand(BASE, grid, 3, tmp_path), 4)} == {4, 2}
    assert {len(g) for g in sweep.groups(sweep.expand(BASE, grid, 3, tmp_path), 1)} == {1}


def test_intervals_hold_the_mean_at_their_rate():
    """Of 2,000 intervals from 4 normal numbers, 95% hold the mean: 93.5 to 96.5% but for 1 in 500.

    The normal quantile, 1.96 for every number of seeds, holds it in 86% only.
    """
    rng = np.random.default_rng(0)
    held = normal = 0
    for _ in range(2000):
        mean, width = metrics.mean_interval(rng.normal(3, 2, 4).tolist())
        held += abs(mean - 3) < width
        normal += abs(mean - 3) < width * 1.959964 / 3.182446
    assert 0.935 < held / 2000 < 0.965
    assert normal / 2000 < 0.9, "the control"
    assert metrics.mean_interval([0.5]) == (0.5, None)


def test_a_grid_skips_what_is_done_and_summarises_over_seeds(tmp_path, monkeypatch, capsys):
    seen = []

    def stand_in(groups, **options):
        write_results(groups, lambda c: 0.5 + 100 * c.train.learning_rate + c.train.seed / 10, seen)

    monkeypatch.setattr(sweep_runners, "run", stand_in)
    command = ["sweep", "--workdir", str(tmp_path), "--num-seeds", "2", "--json", "-", "--grid"]
    assert cli.main([*command, "train.learning_rate=1e-3,2e-3"]) == 0
    assert len(seen) == 4
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["train.learning_rate"] for row in rows] == [1e-3, 2e-3]
    assert [row["seeds"] for row in rows] == [2, 2]
    assert rows[0]["accuracy"] == pytest.approx(0.65)
    assert rows[0]["accuracy.interval"] == pytest.approx(12.7062 * 0.05, rel=1e-4)
    assert cli.main([*command, "train.learning_rate=1e-3,2e-3,3e-3"]) == 0
    assert len(seen) == 6, "only the new ones"
    with (tmp_path / "summary.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [float(line["train.learning_rate"]) for line in lines] == [1e-3, 2e-3, 3e-3]
    assert float(lines[2]["leak_owner"]) == 1
    assert (tmp_path / "summary.md").read_text().count("\n") == 5
    assert (tmp_path / "summary.png").read_bytes().startswith(b"\x89PNG")


def test_another_split_is_scored_and_named(tmp_path, monkeypatch, capsys):
    seen = []

    def stand_in(groups, *, split, **options):
        write_results(groups, lambda c: 0.5 if split == "test" else 0.7, seen, split)

    monkeypatch.setattr(sweep_runners, "run", stand_in)
    command = ["sweep", "--workdir", str(tmp_path), "--grid", "train.learning_rate=1e-3,2e-3"]
    for split, accuracy, runs_scored in [("test", 0.5, 2), ("valid", 0.7, 4), ("valid", 0.7, 4)]:
        assert cli.main([*command, "--split", split, "--json", "-"]) == 0
        rows = json.loads(capsys.readouterr().out)["rows"]
        assert [(row["split"], row["accuracy"]) for row in rows] == [(split, accuracy)] * 2
        assert len(seen) == runs_scored, "what is scored on this split is left alone"
        assert f"| {split} |" in (tmp_path / "summary.md").read_text()
    assert cli.main([*command, "--split", "valid"]) == 0
    assert "valid" in capsys.readouterr().out


def test_a_sweep_goes_on_where_its_images_and_devices_are_now(tmp_path):
    """The trials know nothing but what their directories hold."""
    before, now = (
        dataclasses.replace(
            BASE,
            data=DataConfig(dataset="celeba", data_dir=place, cache_dir=place),
            mesh=MeshConfig(model_devices=devices),
        )
        for place, devices in (("/before", 1), ("/now", 2))
    )
    for base in (before, now):
        (trial,) = sweep.expand(base, {}, 1, tmp_path)
        sweep.claim([trial])
        assert runs.read_config(trial.workdir) == base
    with runs.alone(trial.workdir), pytest.raises(FacemixError, match="training in"):
        sweep.claim(sweep.expand(before, {}, 1, tmp_path))
    assert runs.read_config(trial.workdir) == now, "a run in progress keeps its own"
    with runs.alone(trial.workdir):
        sweep.claim([trial])


SPACE = ("train.learning_rate=log:1e-4:1e-1", "defense.group_size=4,8", "train.num_epochs=1:3")


def searched(folder, accuracy, *, trials, fail_after=None, space=SPACE, said=None):
    space = sweep_search.parse_space(space)
    done, said = [], [] if said is None else said

    def execute(batch):
        if fail_after is not None and len(done) == fail_after:
            raise KeyboardInterrupt
        sweep.claim(batch)
        write_results([[t.workdir for t in batch]], accuracy)
        done.append([t.setting for t in batch])

    options = {"num_seeds": 1, "parallel": 2, "metric": "accuracy", "split": "test"}
    options |= {"execute": execute, "check": lambda batch: None, "say": said.append}
    return sweep_search.search(BASE, space, folder=folder, num_trials=trials, **options), done


@pytest.mark.filterwarnings("ignore:.*Journal.*:Warning")
def test_a_search_finds_the_best_and_goes_on_where_it_was_killed(tmp_path):
    pytest.importorskip("optuna")

    def accuracy(config):
        return 0.9 - 0.2 * abs(np.log10(config.train.learning_rate) + 2)

    with pytest.raises(KeyboardInterrupt):
        searched(tmp_path, accuracy, trials=12, fail_after=2)
    trials, done = searched(tmp_path, accuracy, trials=12)
    assert len(done) == 4, "four done before, two asked for and run first, six new"
    assert len({t.workdir for t in trials}) >= 10
    for trial in trials:
        assert 1e-4 <= trial.config.train.learning_rate <= 1e-1
        assert trial.config.train.num_epochs in (1, 2, 3)
        assert trial.config.defense.group_size in (4, 8)
    again, done = searched(tmp_path, accuracy, trials=12)
    assert done == []
    assert len(again) == 12


@pytest.mark.filterwarnings("ignore:.*Journal.*:Warning")
def test_a_setting_that_a_search_asks_for_twice_is_one_run(tmp_path):
    pytest.importorskip("optuna")
    trials, done = searched(tmp_path, lambda c: 0.5, trials=4, space=["defense.group_size=4"])
    assert [len(settings) for settings in done] == [1, 1], "two asked for at a time"
    (row,) = sweep.summarize(trials, "test")
    assert row["seeds"] == 1
    two = searched(tmp_path / "two", lambda c: 0.5, trials=8, space=["defense.group_size=4,8"])[0]
    assert len(two) == 2, "the control"


@pytest.mark.filterwarnings("ignore:.*Journal.*:Warning")
def test_a_search_goes_on_past_settings_that_do_not_fit(tmp_path):
    """Groups of 8 fit in batches of 8 and 16, but not in those between."""
    pytest.importorskip("optuna")
    space, said = ["train.batch_size=8,12,16"], []
    options = {"trials": 12, "space": space, "said": said}
    trials, _ = searched(tmp_path, lambda c: c.train.batch_size / 100, **options)
    assert {t.config.train.batch_size for t in trials} == {8, 16}
    assert said
    assert all("train.batch_size = 12" in text for text in said)
    again, done = searched(tmp_path, lambda c: 0.5, **options)
    assert [t.workdir for t in again] == [t.workdir for t in trials]
    assert done == [], "what was refused counts as tried"
    with pytest.raises(UsageError, match=r"None of the 3 settings .* group_size 8 does not divide"):
        searched(tmp_path / "none", lambda c: 0.5, trials=3, space=["train.batch_size=9:15"])


@pytest.mark.filterwarnings("ignore:.*Journal.*:Warning")
def test_a_search_leaves_out_cuts_that_do_not_exist(tmp_path, monkeypatch, capsys):
    pytest.importorskip("optuna")
    monkeypatch.setattr(
        sweep_runners, "run", lambda groups, **options: write_results(groups, lambda c: 0.5)
    )
    command = ["sweep", "--workdir", str(tmp_path), "--trials", "6", "--json", "-"]
    assert cli.main([*command, "--search", "model.cut=1,12"]) == 0
    captured = capsys.readouterr()
    assert [row["model.cut"] for row in json.loads(captured.out)["rows"]] == [1]
    assert "left out: cut is 12" in " ".join(captured.err.split())


@pytest.mark.filterwarnings("ignore:.*Journal.*:Warning")
@pytest.mark.filterwarnings("ignore:Choices for a categorical.*:UserWarning")
def test_a_search_over_sizes_goes_on_after_a_kill(tmp_path):
    """JSON has no tuples."""
    pytest.importorskip("optuna")
    space = ["data.image_size=109x89"]
    with pytest.raises(KeyboardInterrupt):
        searched(tmp_path, lambda c: 0.5, trials=4, space=space, fail_after=1)
    trials, done = searched(tmp_path, lambda c: 0.5, trials=4, space=space)
    assert len(done) == 1, "the two that were left"
    (trial,) = trials
    assert trial.setting["data.image_size"] == trial.config.data.image_size == (109, 89)
    (row,) = sweep.summarize(trials, "test")
    assert row["seeds"] == 1


@pytest.mark.filterwarnings("ignore:.*Journal.*:Warning")
def test_a_kill_while_a_setting_is_drawn_costs_nothing(tmp_path, monkeypatch):
    pytest.importorskip("optuna")
    space, drawn = ["train.learning_rate=log:1e-4:1e-1"], sweep_search._suggest

    def killed(*args):
        drawn(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep_search, "_suggest", killed)
    with pytest.raises(KeyboardInterrupt):
        searched(tmp_path, lambda c: 0.5, trials=2, space=space)
    monkeypatch.setattr(sweep_search, "_suggest", drawn)
    for _ in range(2):
        trials, _ = searched(tmp_path, lambda c: 0.5, trials=2, space=space)
        assert len(trials) == 2
        assert all("train.learning_rate" in trial.setting for trial in trials)


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


def test_trials_run_on_a_file_system_without_locks(tmp_path, monkeypatch):
    def refuse(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    seen = []
    monkeypatch.setattr(trials.fcntl, "flock", refuse)
    monkeypatch.setattr(trials, "_run", lambda waiting, *rest: seen.extend(waiting))
    trials.run([tmp_path])
    assert seen == [tmp_path]


@pytest.mark.parametrize("text", ["train.learning_rate=2:1", "train.learning_rate=log:0:1"])
def test_an_empty_range_is_refused(text):
    with pytest.raises(UsageError, match="no range"):
        sweep_search.parse_space([text])


def test_a_program_that_dies_is_named(tmp_path):
    missing = tmp_path / "nowhere" / "trial"
    options = {"split": "test", "method": "auto", "folder": tmp_path, "options": {}, "say": print}
    with pytest.raises(FacemixError, match=r"trial .*exit code 1.*tries them again"):
        sweep_runners.run([[missing]], runner="process", parallel=1, **options)


@pytest.mark.slow
@pytest.mark.parametrize("runner", ["process", "submitit_local"])
def test_a_sweep_survives_a_kill(tmp_path, runner):
    """A killed sweep leaves its programs behind; the next one waits for them and goes on."""
    if runner != "process":
        pytest.importorskip("submitit")
    command = [sys.executable, "-m", "facemix_jax", "sweep", "--workdir", str(tmp_path), *SMALL]
    command += ["--grid", "train.learning_rate=1e-3,3e-3", "--runner", runner, "--json"]
    command += [str(tmp_path / "result.json")]
    first = subprocess.Popen(command, start_new_session=True)
    while not list(tmp_path.glob("*/metrics.jsonl")):
        assert first.poll() is None
        time.sleep(0.1)
    first.send_signal(signal.SIGKILL)
    first.wait()
    subprocess.run(command, check=True, env={**os.environ})
    rows = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert [row["seeds"] for row in rows] == [1, 1]
    for workdir in tmp_path.glob("*/config.json"):
        steps = [
            json.loads(line)["step"]
            for line in (workdir.parent / "metrics.jsonl").read_text().splitlines()
        ]
        assert steps == [1, 2, 3, 4]
