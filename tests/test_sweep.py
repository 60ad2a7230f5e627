"""Sweeps: typed grids, one directory per configuration, resuming, groups, intervals."""

import csv
import dataclasses
import hashlib
import json

import numpy as np
import pytest
from PIL import Image
from sweep_support import BASE, write_results

from facemix_jax import claims, cli, commands_sweep, metrics, runs, sweep, sweep_runners
from facemix_jax._validate import FacemixError, UsageError
from facemix_jax.data import DataConfig
from facemix_jax.sharding import MeshConfig


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
        ("data.data_dir=A,B", "data.data_dir says where images are.*--data-dir"),
        ("train.log_every=1,2", "train.log_every says when runs are recorded.*--log-every"),
    ],
)
def test_what_is_no_value_is_explained(text, words):
    with pytest.raises(UsageError, match=words):
        sweep.parse_grid([text])


def test_a_combination_that_does_not_fit_stops_before_anything_starts(capsys, tmp_path):
    grid = ("--grid", "train.batch_size=16,20", "defense.group_size=8")
    assert cli.main(["sweep", "--workdir", str(tmp_path / "s"), *grid]) == 2
    assert "train.batch_size = 20" in " ".join(capsys.readouterr().err.split())
    for grid, words in (
        ("model.cut=1,12", "cut is 12"),
        ("model.tile=7", "must be two numbers"),
        ("model.tile=7x6x5", "must be two numbers"),
        ("defense.scatter=False,True", "scatter deals images"),
        ("defense.blur_size=8,16", "the defence is 'facemix', so that it has no effect"),
    ):
        assert cli.main(["sweep", "--workdir", str(tmp_path / "s"), "--grid", grid]) == 2
        assert words in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--runner-options", "timeout_min=60"], "the runner is 'process'"),
        (["--trials", "5"], "a grid is trained as a whole"),
        (["--metric", "balanced_accuracy"], "a grid is trained as a whole"),
        (["--runner", "slurm", "--parallel", "2"], "'slurm' queues all of a grid at once"),
    ],
)
def test_options_without_effect_are_refused(monkeypatch, capsys, tmp_path, options, words):
    monkeypatch.setattr(sweep_runners, "run", lambda groups, **options: None)
    command = ["sweep", "--workdir", str(tmp_path / "s"), "--grid", "model.cut=1"]
    assert cli.main([*command, *options]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert words in said
    assert f"so that it has no effect. Leave {options[-2]} out" in said
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    "grid",
    [
        {"defense.defense": ["facemix", "blur"], "defense.blur_size": [8, 16]},
        {"defense.family": ["haar", "conditioned"], "defense.condition": [2.0, 5.0]},
    ],
)
def test_options_of_each_defence_are_given_where_the_defence_varies(tmp_path, grid):
    commands_sweep._check(sweep.expand(BASE, grid, 1, tmp_path))
    (option,) = grid.keys() - commands_sweep._CHOICES
    with pytest.raises(UsageError, match="so that it has no effect"):  # control: it does not vary
        commands_sweep._check(sweep.expand(BASE, {option: grid[option]}, 1, tmp_path))


def test_what_a_defence_does_not_take_makes_no_second_run(tmp_path):
    """In a directory of the same name as before: the group size stays in its configuration."""
    grid = {"defense.defense": ["facemix", "none"], "defense.group_size": [4, 8]}
    trials = sweep.expand(BASE, grid, 2, tmp_path)
    assert [(t.config.defense.defense, t.config.defense.group_size) for t in trials] == [
        *[("facemix", 4)] * 2,
        *[("facemix", 8)] * 2,
        *[("none", 4)] * 2,
    ]
    assert all(t == sweep.trial(BASE, t.setting, tmp_path) for t in trials)
    grid = {"defense.family": ["haar", "conditioned"], "defense.condition": [2.0, 5.0]}
    assert len(sweep.expand(BASE, grid, 1, tmp_path)) == 3


def test_a_directory_stands_for_a_configuration_wherever_it_runs(tmp_path):
    trials = sweep.expand(BASE, {"train.learning_rate": [1e-3, 3e-3]}, 3, tmp_path)
    assert len({t.workdir for t in trials}) == len(trials) == 6
    assert [t.config.train.seed for t in trials] == [0, 1, 2, 0, 1, 2]
    elsewhere = dataclasses.replace(
        BASE, mesh=MeshConfig(model_devices=2), data=DataConfig(cache_dir="/elsewhere")
    )
    again = sweep.expand(elsewhere, {"train.learning_rate": [3e-3, 1e-3]}, 3, tmp_path)
    assert {t.workdir for t in again} == {t.workdir for t in trials}
    often = dataclasses.replace(BASE.train, log_every=7, checkpoint_every=9)
    often = dataclasses.replace(BASE, train=often)
    again = sweep.expand(often, {"train.learning_rate": [1e-3, 3e-3]}, 3, tmp_path)
    assert [t.workdir for t in again] == [t.workdir for t in trials]
    assert again[0].config.train.log_every == 7
    other = sweep.expand(BASE, {"train.learning_rate": [2e-3]}, 3, tmp_path)
    assert not {t.workdir for t in other} & {t.workdir for t in trials}


def test_sweeps_that_were_named_after_their_intervals_go_on(tmp_path):
    often = dataclasses.replace(BASE, train=dataclasses.replace(BASE.train, log_every=7))
    before, with_defaults = (
        hashlib.sha256(json.dumps(runs.portable(each), sort_keys=True).encode()).hexdigest()[:12]
        for each in (often, BASE)
    )
    assert sweep.trial(BASE, {}, tmp_path).workdir.name == with_defaults
    assert sweep.trial(often, {}, tmp_path).workdir.name == with_defaults
    (tmp_path / before).mkdir()
    assert sweep.trial(BASE, {}, tmp_path).workdir.name == with_defaults
    assert sweep.trial(often, {}, tmp_path).workdir.name == before


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
    table, note = (tmp_path / "summary.md").read_text().split("\n\n")
    assert table.count("\n") == 4
    assert "the strongest of gradient ICA" in note
    assert [line["device"] for line in lines] == ["stand-in"] * 3, "the runs', not this process's"
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
    printed = " ".join(capsys.readouterr().out.split())
    assert "valid" in printed
    assert "the strongest of gradient ICA" in printed


def test_a_sweep_with_failed_runs_exits_1_after_its_summary(tmp_path, monkeypatch, capsys):
    def stand_in(groups, **options):
        for workdir in (w for group in groups for w in group):
            if runs.read_config(workdir).train.seed in bad:
                (workdir / "failure.json").write_text(json.dumps({"error": "diverged"}))
            else:
                write_results([[workdir]], lambda c: 0.5)

    monkeypatch.setattr(sweep_runners, "run", stand_in)
    command = ["sweep", "--workdir", str(tmp_path), "--num-seeds", "3", "--grid", "model.cut=1"]
    for bad, code in [({1}, 1), ((), 0)]:
        assert cli.main(command) == code
        (row,) = json.loads((tmp_path / "summary.json").read_text())["rows"]
        assert (row["seeds"], row["failed"]) == (3 - len(bad), len(bad))
    assert list(tmp_path.glob("*/failure.json")), "of a run that has a result by now"
    assert "1 of 3 runs failed" in " ".join(capsys.readouterr().err.split())


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
    busy = pytest.raises(FacemixError, match="training in")
    with claims.alone(trial.workdir, trial.config), busy:
        sweep.claim(sweep.expand(before, {}, 1, tmp_path))
    assert runs.read_config(trial.workdir) == now, "a run in progress keeps its own"
    with claims.alone(trial.workdir, trial.config):
        sweep.claim([trial])


def labelled_images(folder, label):
    """A data set of eight pictures, of which every other one has the label."""
    (folder / "images").mkdir(parents=True)
    rows = ["file,smile,person,split"]
    for index, split in enumerate(4 * ["train"] + 4 * ["test"]):
        Image.new("RGB", (40, 40)).save(folder / "images" / f"{index}.png")
        rows.append(f"{index}.png,{(index + label) % 2},p{index},{split}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return str(folder)


@pytest.mark.filterwarnings("ignore:.*Journal.*:Warning")
@pytest.mark.parametrize("way", ["--grid", "--search"])
def test_results_on_other_images_are_refused_and_changed_in_nothing(
    tmp_path, monkeypatch, capsys, way
):
    if way == "--search":
        pytest.importorskip("optuna")

    def stand_in(groups, **options):
        for workdir in (w for group in groups for w in group):
            config = runs.read_config(workdir)
            with claims.alone(workdir, config, images=runs.images_named(config.data)):
                write_results([[workdir]], lambda c: 0.5)

    monkeypatch.setattr(sweep_runners, "run", stand_in)
    here, moved = (labelled_images(tmp_path / name, 0) for name in ("here", "moved"))
    others, folder = labelled_images(tmp_path / "others", 1), tmp_path / "sweep"
    command = ["sweep", "--workdir", str(folder), "--dataset", "folder"]
    command += ["--trials", "2"] if way == "--search" else []
    command += [way, "model.width=4,8", "--data-dir"]
    assert cli.main([*command, here]) == 0
    assert cli.main([*command, moved]) == 0, "the control"
    kept = {path: path.read_bytes() for path in folder.rglob("*.json")}
    capsys.readouterr()
    assert cli.main([*command, others]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "images.labels is" in " ".join(captured.err.split())
    assert kept == {path: path.read_bytes() for path in folder.rglob("*.json")}
