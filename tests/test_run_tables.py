"""Which runs are seeds of one another, and how their rows are called."""

import dataclasses
import json
import shutil

import pytest
from test_commands_report import changed

from facemix_jax import defenses, run_tables
from facemix_jax._validate import UsageError
from facemix_jax.runs import RunConfig

IMAGES = {
    "training_images": 64,
    "image_size": [40, 36],
    "labels": "0123456789abcdef",
    "attribute_names": ["Smiling"],
    "initial_weights": None,
}


@pytest.fixture
def workdir(tmp_path):
    """What a run says of itself; nothing is read of what it learned."""
    folder = tmp_path / "m8"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(dataclasses.asdict(RunConfig())))
    (folder / "images.json").write_text(json.dumps(IMAGES))
    return folder


@pytest.mark.parametrize("name", ["labels", "initial_weights"])
def test_runs_on_other_images_or_from_other_weights_are_no_seeds(workdir, tmp_path, name):
    folders = [tmp_path / each for each in ("a", "b")]
    for seed, folder in enumerate(folders):
        shutil.copytree(workdir, folder)
        changed(folder / "config.json", lambda of, seed=seed: of["train"].update(seed=seed))
    steps = dict.fromkeys(folders, 4)
    scored = [run_tables.Scored(path, {"step": n, "split": "test"}) for path, n in steps.items()]
    assert len(run_tables._groups(scored)) == 1
    changed(folders[1] / "images.json", lambda of: of.update({name: "others"}))
    groups = run_tables._groups(scored)
    labels = run_tables._labels([first for (first,) in groups])
    assert [label.rpartition("; ")[2] for label in labels] == [
        f"images and initial weights of {each}" for each in "ab"
    ]
    shutil.copy(folders[0] / "config.json", folders[1] / "config.json")
    run_tables.check_distinct(steps)  # of one seed, and not the same run
    (folders[1] / "images.json").unlink()  # of before it was kept
    with pytest.raises(UsageError, match="same run"):
        run_tables.check_distinct(steps)
    changed(folders[1] / "config.json", lambda of: of["train"].update(seed=1))
    assert len(run_tables._groups(scored)) == 1
    shutil.copy(folders[0] / "images.json", folders[1] / "images.json")
    changed(folders[1] / "images.json", lambda of: of.pop("attribute_names"))
    assert len(run_tables._groups(scored)) == 1


def test_runs_that_are_saved_and_recorded_at_other_steps_are_seeds(workdir, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(workdir, other)
    changed(other / "config.json", lambda of: of["train"].update(log_every=7, checkpoint_every=9))
    with pytest.raises(UsageError, match="same run"):
        run_tables.check_distinct(dict.fromkeys((workdir, other), 4))
    changed(other / "config.json", lambda of: of["train"].update(seed=1))
    scored = [run_tables.Scored(f, {"step": 4, "split": "test"}) for f in (workdir, other)]
    assert len(run_tables._groups(scored)) == 1
    assert not any("every" in label for label in run_tables._labels(scored))


def test_registered_defences_go_by_their_names(workdir, tmp_path, monkeypatch):
    monkeypatch.setitem(defenses.DEFENSES, "scaled", defenses.DEFENSES["none"])
    copy = tmp_path / "own"
    shutil.copytree(workdir, copy)
    changed(copy / "config.json", lambda of: of["defense"].update(defense="scaled"))
    (label,) = run_tables._labels([run_tables.Scored(copy, {"step": 4, "split": "test"})])
    assert "scaled" in label


def test_rows_of_other_lengths_and_of_folders_of_one_name_are_told_apart(workdir, tmp_path):
    shutil.copytree(workdir, tmp_path / "other" / workdir.name)
    scored = [
        run_tables.Scored(folder, {"step": step, "split": "test"})
        for folder, step in ((workdir, 4), (workdir, 1200), (tmp_path / "other" / workdir.name, 4))
    ]
    label = run_tables._labels(scored[:1])[0]
    assert run_tables._labels(scored[:2]) == [f"{label}; 4 steps", f"{label}; 1,200 steps"]
    assert run_tables._labels(scored)[::2] == [
        f"{label}; 4 steps; of {run.workdir}" for run in scored[::2]
    ]
