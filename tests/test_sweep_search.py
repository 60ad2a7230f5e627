"""Search: ranges, what is found, and going on after kills and settings that do not fit."""

import dataclasses
import errno
import json

import numpy as np
import pytest
from sweep_support import BASE, write_results

from facemix_jax import _files, cli, runs, sweep, sweep_runners, sweep_search, sweep_summary
from facemix_jax._validate import FacemixError, UsageError
from facemix_jax.data import DataConfig

pytestmark = pytest.mark.filterwarnings("ignore:.*Journal.*:Warning")
SPACE = ("train.learning_rate=log:1e-4:1e-1", "defense.group_size=4,8", "train.num_epochs=1:3")


def searched(folder, accuracy, *, trials, fail_after=None, space=SPACE, base=BASE, **more):
    space = sweep_search.parse_space(space)
    done = []

    def execute(batch):
        if fail_after is not None and len(done) == fail_after:
            raise KeyboardInterrupt
        sweep.claim(batch)
        write_results([[t.workdir for t in batch]], accuracy)
        done.append([t.setting for t in batch])

    options = {"num_seeds": 1, "parallel": 2, "metric": "accuracy", "split": "test"}
    options |= {"execute": execute, "check": lambda batch: None, "say": print}
    options |= {"folder": folder, "num_trials": trials, **more}
    return sweep_search.search(base, space, **options), done


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


def test_a_setting_that_a_search_asks_for_twice_is_one_run(tmp_path):
    pytest.importorskip("optuna")
    trials, done = searched(tmp_path, lambda c: 0.5, trials=4, space=["defense.group_size=4"])
    assert [len(settings) for settings in done] == [1, 1], "two asked for at a time"
    (row,) = sweep_summary.summarize(trials, "test")
    assert row["seeds"] == 1
    two = searched(tmp_path / "two", lambda c: 0.5, trials=8, space=["defense.group_size=4,8"])[0]
    assert len(two) == 2, "the control"


def test_a_search_goes_on_past_settings_that_do_not_fit(tmp_path):
    """Groups of 8 fit in batches of 8 and 16, but not in those between."""
    pytest.importorskip("optuna")
    space, said = ["train.batch_size=8,12,16"], []
    options = {"trials": 12, "space": space, "say": said.append}
    trials, _ = searched(tmp_path, lambda c: c.train.batch_size / 100, **options)
    assert {t.config.train.batch_size for t in trials} == {8, 16}
    assert said
    assert all("train.batch_size = 12" in text for text in said)
    again, done = searched(tmp_path, lambda c: 0.5, **options)
    assert [t.workdir for t in again] == [t.workdir for t in trials]
    assert done == [], "what was refused counts as tried"
    with pytest.raises(UsageError, match=r"None of the 3 settings .* group_size 8 does not divide"):
        searched(tmp_path / "none", lambda c: 0.5, trials=3, space=["train.batch_size=9:15"])


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
    (row,) = sweep_summary.summarize(trials, "test")
    assert row["seeds"] == 1


@pytest.mark.filterwarnings("ignore:Choices for a categorical.*:UserWarning")
@pytest.mark.parametrize("sizes", ["data.image_size=48x40,64x48", "model.tile=none,7x6"])
def test_a_search_over_sizes_goes_on_when_optuna_compares_them(tmp_path, monkeypatch, sizes):
    """It does from the eleventh setting on; a journal from before holds sizes as lists."""
    pytest.importorskip("optuna")
    options = {"space": [sizes], "parallel": 1}
    with monkeypatch.context() as before:
        before.setattr(sweep_search, "_suggest", lambda t, *args: t.suggest_categorical(*args))
        searched(tmp_path, lambda c: 0.5, trials=2, **options)
    trials, done = searched(tmp_path, lambda c: 0.5, trials=16, **options)
    assert len(done) == 14
    ((name, of),) = sweep_search.parse_space([sizes]).items()
    assert {trial.setting[name] for trial in trials} == set(of)


def test_a_search_over_seeds_has_a_summary(tmp_path, monkeypatch):
    pytest.importorskip("optuna")
    monkeypatch.setattr(
        sweep_runners, "run", lambda groups, **options: write_results(groups, lambda c: 0.5)
    )
    command = ["sweep", "--workdir", str(tmp_path), "--trials", "6"]
    assert cli.main([*command, "--search", "train.seed=0:2", "train.weight_decay=0,0.1"]) == 0
    rows = json.loads((tmp_path / "summary.json").read_text())["rows"]
    assert {row["train.weight_decay"] for row in rows} <= {0, 0.1}
    assert "train.seed" not in rows[0]


def test_a_kill_while_a_setting_is_drawn_costs_nothing(tmp_path, monkeypatch):
    optuna = pytest.importorskip("optuna")
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
    journal = optuna.storages.journal.JournalFileBackend(str(tmp_path / "optuna.log"))
    storage = optuna.storages.JournalStorage(journal)
    states = [t.state.name for t in optuna.load_study(study_name="sweep", storage=storage).trials]
    assert states == ["FAIL", "COMPLETE", "COMPLETE"]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"space": ["train.learning_rate=log:1e-4:1"]}, r"learning_rate is \[.*0.1.* there and"),
        ({"space": ["train.weight_decay=0:0.1"]}, "search of train.weight_decay is None there"),
        ({"num_seeds": 2}, "num_seeds is 1 there and 2 here"),
        ({"metric": "balanced_accuracy"}, "metric is accuracy there"),
        ({"split": "valid"}, "split is test there and valid here"),
        (
            {"base": dataclasses.replace(BASE, data=DataConfig(image_size=(64, 48)))},
            r"data.image_size is \[109, 89\] there and \[64, 48\] here",
        ),
    ],
)
def test_another_search_in_the_same_folder_is_refused(tmp_path, other, words):
    pytest.importorskip("optuna")
    options = {"trials": 2, "space": ["train.learning_rate=log:1e-4:1e-1"]}
    first, _ = searched(tmp_path, lambda c: 0.5, **options)
    with pytest.raises(UsageError, match=words):
        searched(tmp_path, lambda c: 0.5, **{**options, **other})
    moved = dataclasses.replace(BASE, data=DataConfig(cache_dir="/elsewhere"))
    again, done = searched(tmp_path, lambda c: 0.5, **options, base=moved)
    assert [t.workdir for t in again] == [t.workdir for t in first], "the control"
    assert done == []


@pytest.mark.parametrize("ends", ["2:1", "log:0:1", "log:1e-4:inf", "-inf:1", "nan:1"])
def test_an_empty_or_endless_range_is_refused(ends):
    with pytest.raises(UsageError, match="no range"):
        sweep_search.parse_space([f"train.learning_rate={ends}"])


def test_what_is_no_number_has_no_range():
    with pytest.raises(UsageError, match=r"no range.*as a list: field=True,False"):
        sweep_search.parse_space(["train.flip=False:True"])
    assert sweep_search.parse_space(["train.flip=False,True"]) == {"train.flip": [False, True]}


def test_a_second_search_in_a_folder_is_refused_while_one_runs(tmp_path):
    pytest.importorskip("optuna")
    refused = []

    def second():
        with pytest.raises(UsageError, match="Another search runs in"):
            searched(tmp_path, lambda c: 0.5, trials=4)
        refused.append(True)
        return 0.5

    trials, done = searched(tmp_path, lambda c: second(), trials=2)
    assert (len(trials), len(done)) == (2, 1)
    assert refused
    assert len(searched(tmp_path, lambda c: 0.5, trials=4)[0]) == 4, "the first has let go"


def test_a_search_runs_on_a_file_system_without_locks(tmp_path, monkeypatch):
    pytest.importorskip("optuna")

    def refuse(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(_files.fcntl, "flock", refuse)
    assert len(searched(tmp_path, lambda c: 0.5, trials=2)[0]) == 2


def test_a_damaged_journal_is_named_and_left_as_it_is(tmp_path):
    pytest.importorskip("optuna")
    searched(tmp_path, lambda c: 0.5, trials=2)
    journal = tmp_path / "optuna.log"
    whole = journal.read_bytes()
    lines = whole.splitlines(keepends=True)
    for cut in (whole[:-20], whole[:-1]):
        journal.write_bytes(cut)
        for _ in range(2):
            with pytest.raises(
                FacemixError, match=rf"optuna.log is .* its last line, {len(lines)}"
            ):
                searched(tmp_path, lambda c: 0.5, trials=4)
        assert journal.read_bytes() == cut
    journal.write_bytes(b"".join(lines[:-1]))
    assert len(searched(tmp_path, lambda c: 0.5, trials=4)[0]) == 4, "as the message says"
    journal.write_bytes(lines[0] + b"\0\n" + lines[2])
    with pytest.raises(FacemixError, match=r"optuna.log is damaged in line 2 of 3.*Restore"):
        searched(tmp_path, lambda c: 0.5, trials=4)


def test_a_search_goes_on_with_other_intervals(tmp_path, monkeypatch):
    """Those stand in studies from before that was so."""
    pytest.importorskip("optuna")
    with monkeypatch.context() as before:
        before.setattr(runs, "essential", runs.portable)
        trials, _ = searched(tmp_path, lambda c: 0.5, trials=2)
    often = dataclasses.replace(BASE.train, log_every=7, checkpoint_every=9)
    for base in (BASE, dataclasses.replace(BASE, train=often)):
        again, done = searched(tmp_path, lambda c: 0.5, trials=2, base=base)
        assert [t.workdir for t in again] == [t.workdir for t in trials]
        assert done == []


@pytest.mark.parametrize("other", ["0.1:0.2", "0.1,0.2"])
def test_a_field_is_searched_once(other):
    texts = ["train.weight_decay=0:1", f"train.weight_decay={other}"]
    for given in (texts, texts[::-1]):
        with pytest.raises(UsageError, match=r"train.weight_decay is given twice"):
            sweep_search.parse_space(given)


def test_seeds_given_twice_leave_the_folder_to_another_search(tmp_path):
    with pytest.raises(UsageError, match=r"train.seed stands in the search"):
        searched(tmp_path / "s", lambda c: 0.5, trials=2, space=["train.seed=0:3"], num_seeds=2)
    assert not (tmp_path / "s").exists()
