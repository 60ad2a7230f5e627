"""``facemix report`` from files and runs to the page, and the page in a browser."""

import csv
import dataclasses
import json
import shutil
from unittest.mock import Mock

import browser
import numpy as np
import pytest
from PIL import Image
from test_report import Parser
from test_results import CHART, RESULTS, TABLE

from facemix_jax import (
    checkpoint,
    cli,
    fitting,
    gathering,
    results,
    run_tables,
    runs,
    scores,
)
from facemix_jax.data import DataConfig
from facemix_jax.models import ModelConfig
from facemix_jax.results import Results
from facemix_jax.runs import RunConfig
from facemix_jax.training import TrainConfig

pytestmark = pytest.mark.library_promotes  # Optax

CONFIG = RunConfig(
    data=DataConfig(image_size=(40, 36), train_examples=64, test_examples=32),
    model=ModelConfig(width=4),
    train=TrainConfig(num_epochs=1, batch_size=16, log_every=1),
)


def report(capsys, *arguments):
    """Exit code, standard output, standard error on one line."""
    code = cli.main(["report", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, " ".join(captured.err.split())


def changed(path, change):
    """Changes a file of JSON."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def with_seed(workdir, to, seed):
    """A copy of a scored run that passes for one of another seed."""
    shutil.copytree(workdir, to)
    changed(to / "config.json", lambda config: config["train"].update(seed=seed))
    changed(to / "scores.json", lambda stored: stored["config"]["train"].update(seed=seed))
    return to


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "m8"
    fitting.fit(CONFIG, workdir, show_progress=False)
    return workdir


@pytest.fixture
def files(tmp_path):
    results.save(tmp_path / "new.json", dataclasses.replace(RESULTS, name="new, scale cpu"))
    results.save(tmp_path / "empty.json", Results(name="empty"))
    (tmp_path / "old.json").write_text('{"cells": [1], "provenance": {}}')
    return tmp_path


def test_a_run_is_scored_once_and_averaged_with_its_other_seeds(
    capsys, workdir, files, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    both = ("--results", files / "new.json", "--workdirs", workdir, "--out", out)
    assert report(capsys, *both)[0] == 0
    stored = json.loads((workdir / "scores.json").read_text())
    assert stored["step"] == 4
    found = {name: figure["value"] for name, figure in stored["leakage"].items()}
    assert {"robust", "gradient_ica"} <= found.keys()
    assert stored["strongest"]["value"] == max(found.values())
    assert stored["strongest"]["attack"] == max(found, key=found.get)

    monkeypatch.setattr(runs, "load", None)  # what is stored is not computed again
    more = stored["protected"]["accuracy"] + 0.01
    other = with_seed(workdir, tmp_path / "seeds" / "seed-1", seed=1)
    with_seed(workdir, tmp_path / "seeds" / "seed-2", seed=2)
    changed(other / "scores.json", lambda of: of["protected"].update(accuracy=more))
    code, printed, _ = report(
        capsys, "--workdirs", workdir, tmp_path / "seeds", "--out", out, "--json", "-"
    )
    assert code == 0
    (table,) = json.loads(printed)["tables"]["runs"]
    (row,) = table["rows"]
    cells = dict(zip([c["name"] for c in table["columns"]], row["cells"], strict=True))
    assert row["label"] == "resnet18, width 4, cut 1; FaceMix, M = 8"
    assert cells["seeds"][0]["value"] == "0, 1, 2"
    (accuracy,) = cells["accuracy, protected"]
    assert accuracy["seeds"] == 3
    # t(0.975, 2) = 4.30265; one of three values is 0.01 off, so the mean's error is 0.01 / 3.
    assert accuracy["half_width"] == pytest.approx(4.30265 * 0.01 / 3, rel=1e-4)
    for name in ("no attack", "strongest attack", "owner", "key advantage", "reached by"):
        assert cells[name]
    for name in ("runs-chart1.svg", "runs-chart2.png", "runs-table1.tex", "runs-table1.md"):
        assert (out / name).stat().st_size > 100
    with (out / "runs-table1.csv").open() as file:
        (line,) = csv.DictReader(file)
    assert int(line["strongest attack (measured, seeds)"]) == 3


def test_only_scores_of_the_same_network_and_images_are_taken(workdir, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(workdir, folder, ignore=shutil.ignore_patterns("scores.json"))
    monkeypatch.setattr(runs, "load", Mock())
    monkeypatch.setattr(scores.trials, "utilities", lambda run, split: {"step": 4, "split": split})
    monkeypatch.setattr(scores, "_attack", lambda *_: {"of": "this network"})
    kept = scores.scores(folder, split="test")
    monkeypatch.setattr(scores, "_attack", lambda *_: {"of": "computed"})
    assert scores.scores(folder, split="test") == kept

    def assert_computed(**changed):
        content = (folder / "scores.json").read_text()
        assert scores.scores(folder, **{"split": "test", **changed})["of"] == "computed"
        (folder / "scores.json").write_text(content)

    assert_computed(split="valid")
    for name, change in (
        ("config.json", lambda of: of["train"].update(seed=7)),
        ("images.json", lambda of: of.update(labels="others")),
        ("scores.json", lambda of: of.update(step=3)),
        ("scores.json", lambda of: of.pop("attacks")),  # as older releases left it
    ):
        content = (folder / name).read_text()
        of = json.loads(content)
        change(of)
        (folder / name).write_text(json.dumps(of))
        assert_computed()
        (folder / name).write_text(content)
    assert scores.scores(folder, split="test") == kept
    (folder / "scores.json").write_text("{")
    assert_computed()

    monkeypatch.setattr(scores, "write_atomically", Mock(side_effect=OSError("read-only")))
    said = []
    assert scores.scores(folder, split="valid", say=said.append)["of"] == "computed"
    assert "read-only" in said[-1]


def test_scores_belong_to_a_folder_of_images_however_it_is_named(workdir, tmp_path, monkeypatch):
    folder, faces = tmp_path / "run", tmp_path / "here" / "faces"
    shutil.copytree(workdir, folder, ignore=shutil.ignore_patterns("scores.json"))
    config = json.loads((folder / "config.json").read_text())
    config["data"].update(dataset="folder", data_dir=str(faces))
    (folder / "config.json").write_text(json.dumps(config))
    for place in ("here/faces", "there/faces"):
        (tmp_path / place).mkdir(parents=True)
    (tmp_path / "link").symlink_to(faces)
    monkeypatch.setattr(runs, "load", Mock())
    monkeypatch.setattr(scores.trials, "utilities", lambda run, split: {"step": 4, "split": split})
    attack = Mock(side_effect=[{"of": "here"}, {"of": "there"}])
    monkeypatch.setattr(scores, "_attack", attack)

    def found(data_dir):
        images = Mock(return_value="the same")
        return scores.scores(folder, split="test", data_dir=data_dir, digest=images)

    monkeypatch.chdir(tmp_path / "here")
    for data_dir in ("faces", "./faces/", "../here/faces", str(faces), "../link", None):
        assert found(data_dir)["of"] == "here"
    monkeypatch.chdir(tmp_path / "there")
    assert found("faces")["of"] == "there"


@pytest.fixture
def labelled(tmp_path):
    """A folder of drawn noise with labels, and what writes them."""
    folder = tmp_path / "faces"
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(12):
        Image.fromarray(rng.integers(0, 256, (40, 36, 3), np.uint8)).save(
            folder / "images" / f"{i}.png"
        )

    def label(smiling=lambda i: i % 2):
        lines = [f"{i}.png,{i},{'train' if i < 8 else 'test'},{smiling(i)}" for i in range(12)]
        (folder / "labels.csv").write_text("\n".join(["file,identity,split,Smiling", *lines]))

    label()
    return folder, label


def test_scores_are_found_again_where_images_or_labels_have_changed(
    workdir, labelled, tmp_path, monkeypatch
):
    (faces, label), folder = labelled, tmp_path / "run"
    shutil.copytree(workdir, folder, ignore=shutil.ignore_patterns("scores.json"))
    place = {"dataset": "folder", "data_dir": str(faces)}
    place |= {"train_examples": None, "test_examples": None}
    changed(folder / "config.json", lambda config: config["data"].update(place))
    monkeypatch.setattr(runs, "load", Mock())
    computed = Mock(side_effect=lambda run, split: {"step": 4, "split": split})
    monkeypatch.setattr(scores.trials, "utilities", computed)
    monkeypatch.setattr(scores, "_attack", lambda *_: {})
    # A sweep's result is of labels that nobody knows any more.
    (folder / "result.json").write_text('{"step": 4, "split": "test", "stale": true}')
    said = []

    def times():
        assert "stale" not in scores.scores(folder, split="test", say=said.append)
        return computed.call_count

    assert [times(), times()] == [1, 1]
    label(lambda i: i % 2 if i < 8 else 1 - i % 2)  # of the test split
    assert [times(), times()] == [2, 2]
    label(lambda i: 1 - i % 2 if i == 0 else i % 2)  # of the images that the attacker has
    assert [times(), times()] == [3, 3]
    Image.new("RGB", (36, 40)).save(faces / "images" / "11.png")
    assert [times(), times()] == [4, 4]
    changed(folder / "scores.json", lambda kept: kept.pop("scored"))  # as older releases left it
    assert [times(), times()] == [5, 5]
    assert not any("may have changed" in text for text in said)
    faces.rename(tmp_path / "away")
    assert times() == 5
    assert f"{faces} is not there" in said[-1]


def test_the_page_is_one_file_with_the_truth_first(capsys, files, tmp_path):
    out = tmp_path / "out"
    made = ("--results", files / "new.json", files / "old.json", files / "empty.json")
    code, _, notes = report(capsys, *made, "--out", out)
    assert code == 0
    assert "old.json is not a results file: it has no 'tables'" in notes
    assert "empty.json holds no tables and no charts" in notes
    parser = Parser()
    parser.feed((out / "index.html").read_text())
    assert parser.open == []
    assert parser.sources
    assert all(source.startswith("data:image/svg+xml;base64,") for source in parser.sources)
    text = " ".join(parser.text.split())
    assert text.index(results.TRUTH) < text.index("new, scale cpu")
    for word in (*results.MARKS, "old.json", TABLE.title, CHART.title, "Left out"):
        assert word in text
    assert (
        'name="viewport" content="width=device-width, initial-scale=1"'
        in (out / "index.html").read_text()
    )
    names = {path.name for path in out.iterdir()}
    tables = {f"new-table1.{ending}" for ending in ("csv", "md", "tex")}
    assert names == {"index.html", "new-chart1.svg", "new-chart1.png", *tables}


def test_files_of_one_name_do_not_overwrite_each_other(capsys, files, tmp_path):
    for folder in ("a", "b"):
        results.save(tmp_path / folder / "new.json", RESULTS)
        results.save(tmp_path / folder / "runs.json", RESULTS)
    paths = [tmp_path / folder / f"{name}.json" for folder in "ab" for name in ("new", "runs")]
    code, printed, _ = report(capsys, "--results", *paths, "--out", tmp_path / "out", "--json", "-")
    assert code == 0
    found = json.loads(printed)
    assert list(found["tables"]) == ["new", "runs-2", "new-2", "runs-3"]
    assert len(set(found["files"])) == len(found["files"]) == 1 + 4 * 5


def test_wrong_arguments_are_refused_before_any_work(capsys, files, tmp_path, monkeypatch):
    monkeypatch.setattr(scores, "scores", None)
    blocked, run = tmp_path / "file", tmp_path / "runs" / "m8"
    blocked.write_text("")
    run.mkdir(parents=True)
    (run / "config.json").write_text("{}")
    good = ("--results", files / "new.json")
    for arguments, words in (
        ((), "nothing to report"),
        (("--results", files / "missing.json"), "missing.json is not there"),
        (("--results", files), "is a folder"),
        (("--results", files / "old.json"), "old.json is not a results file"),
        (("--results", files / "empty.json"), "holds no tables"),
        ((*good, "--workdirs", files / "none"), "none is not there"),
        ((*good, "--workdirs", tmp_path), "holds no run"),
        ((*good, "--out", blocked / "out"), "cannot be written"),
        ((*good, "--out", run / "checkpoints"), "keeps its own checkpoints"),
        ((*good, "--out", run, "--json", run / "index.html"), "name the same file"),
        ((*good, "--split", "tset"), "Did you mean 'test'"),
    ):
        code, printed, notes = report(capsys, *arguments)
        assert (code, printed) == (2, ""), arguments
        assert words in notes, (arguments, notes)
    assert not (tmp_path / "report").exists()


def test_runs_that_cannot_be_scored_are_refused(capsys, workdir, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    code, _, notes = report(capsys, "--workdirs", workdir, copy, "--out", tmp_path / "out")
    assert code == 2
    assert "hold the same run" in notes
    shutil.rmtree(copy / "checkpoints")
    assert checkpoint.newest(copy / "checkpoints") is None
    code, _, notes = report(capsys, "--workdirs", copy, "--out", tmp_path / "out")
    assert code == 2
    assert "without a checkpoint" in notes


def test_runs_without_a_checkpoint_are_left_out_of_a_folder(capsys, workdir, tmp_path, monkeypatch):
    runs_there, out = tmp_path / "runs", tmp_path / "out"
    for name in ("done", "begun"):
        shutil.copytree(workdir, runs_there / name)
    shutil.rmtree(runs_there / "begun" / "checkpoints")
    monkeypatch.setattr(scores, "scores", Mock(return_value={}))
    monkeypatch.setattr(run_tables, "summarize", Mock(return_value=([TABLE], [])))
    monkeypatch.setattr(run_tables, "IN_SHORT", ())
    code, printed, notes = report(capsys, "--workdirs", runs_there, "--out", out, "--json", "-")
    assert code == 0
    assert "left out: " in notes
    assert list(json.loads(printed)["left_out"]) == [str(runs_there / "begun")]
    assert "Left out, as they have no checkpoint: begun." in (out / "index.html").read_text()
    ((scored,),) = run_tables.summarize.call_args.args
    assert scored.workdir == runs_there / "done"
    shutil.rmtree(runs_there / "done" / "checkpoints")
    for named in ([runs_there], [workdir, runs_there / "begun"]):
        code, printed, notes = report(capsys, "--workdirs", *named, "--out", out)
        assert (code, printed) == (2, "")
        assert "without a checkpoint" in notes


@pytest.mark.skipif(browser.PROGRAM is None, reason="no Chromium: set CHROMIUM to its path")
def test_the_page_fits_a_phone_and_a_screen_in_light_and_dark(capsys, files, tmp_path):
    wide = dataclasses.replace(
        TABLE,
        columns=tuple(
            dataclasses.replace(c, name=f"{c.name} {i}", strongest=None)
            for i in range(6)
            for c in TABLE.columns
        ),
        rows=tuple(dataclasses.replace(row, cells=row.cells * 6) for row in TABLE.rows),
    )
    results.save(tmp_path / "wide.json", Results(name="x" * 80, tables=(wide,), charts=(CHART,)))
    paths = (files / "new.json", tmp_path / "wide.json")
    assert report(capsys, "--results", *paths, "--out", tmp_path / "out")[0] == 0
    grounds = {}
    with browser.Browser(tmp_path / "profile") as shown:
        for width in (390, 1200):
            for dark in (False, True):
                shown.open(tmp_path / "out" / "index.html", width=width, dark=dark)
                overflow = "document.documentElement.scrollWidth - window.innerWidth"
                assert shown.evaluate(overflow) <= 0, (width, dark)
                table = "[...document.querySelectorAll('.table')].at(-1)"
                scrolls = f"(t => t.scrollWidth > t.clientWidth)({table})"
                assert shown.evaluate(scrolls), "the wide table scrolls by itself"
                assert shown.evaluate("[...document.images].every(i => i.naturalWidth > 0)")
                letters = "parseFloat(getComputedStyle(document.body).fontSize)"
                assert shown.evaluate(letters) >= 16
                source = "document.querySelector('.drawing img').currentSrc"
                ground = "getComputedStyle(document.body).backgroundColor"
                grounds[dark] = shown.evaluate(source), shown.evaluate(ground)
        assert shown.complaints == []
        shown.evaluate("console.error('the control')")
        shown.evaluate("document.body.append(Object.assign(new Image(), {src: 'http://[::1]/x'}))")
        shown.evaluate("1")
    assert len(shown.complaints) >= 2, "the control"
    assert grounds[False][0] != grounds[True][0]
    assert grounds[False][1] != grounds[True][1]


def test_a_page_names_the_commits_of_all_cells(tmp_path):
    made = {"date": "2026-01-02T03:04:05+00:00", "commit": "c" * 40, "device": "cpu"}
    several = [{"commit": "b" * 40 + "-dirty"}, {"commit": "a" * 40}, {}, {"commit": "a" * 40}]
    for name, cells, says in (
        ("several", several, "commits aaaaaaaaa, bbbbbbbbb with changes; "),
        ("one", several[1:2], "commit aaaaaaaaa; "),
        ("older", [{}], "commit ccccccccc; "),
    ):
        file = tmp_path / f"{name}.json"
        results.save(file, dataclasses.replace(RESULTS, cells=cells, provenance=made))
        found = gathering.read([file]).found
        gathering.check_folder(tmp_path / "out")
        gathering.write(tmp_path / "out", found)
        page = (tmp_path / "out" / gathering.PAGE).read_text()
        assert f"Last written 2026-01-02 03:04:05 UTC; {says}device cpu" in page
