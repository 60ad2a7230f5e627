"""The challenge: its scorer, what is public of it and what is hidden, and its baseline."""

import dataclasses
import errno
import json
import subprocess
import sys
from pathlib import Path

import challenge
import challenge_files as files
import challenge_scoring as scoring
import jax
import numpy as np
import pytest
from test_challenge_files import submitted

from facemix_jax import data, defenses, fitting, models, runs
from facemix_jax._files import write_atomically
from facemix_jax._validate import DataError, UsageError
from facemix_jax.data import synthetic

SHAPE = (8, 5, 4, 2)


def normal(seed, shape=SHAPE):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# The scorer.


def test_scores_ignore_order_and_sign():
    truth, recovered = normal(0), normal(0) + 0.3 * normal(1)
    rng = np.random.default_rng(2)
    signs = rng.choice([-1, 1], len(truth)).reshape(-1, 1, 1, 1)
    again = (signs * recovered)[rng.permutation(len(truth))]
    assert scoring.scores_of(again, truth) == pytest.approx(scoring.scores_of(recovered, truth))


def test_the_truth_scores_perfectly_and_a_random_submission_by_chance():
    truth = normal(0, (64, 20, 20, 2))
    assert scoring.scores_of(truth, truth) == pytest.approx((1, 1, 0))
    # The best of 64 matches among |correlations| of deviation 1 / sqrt(800) = .035; .1 is three
    # deviations for the mean of any matching, and this seed is fixed.
    guess = scoring.scores_of(normal(1, truth.shape), truth)
    assert guess.correlation < 0.1
    assert guess.recovered == 0
    assert guess.squared_error > 0.9


def test_scores_fall_with_noise():
    truth = normal(0)
    scores = [scoring.scores_of(truth + s * normal(1), truth).correlation for s in (0.1, 0.5, 2)]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("factor", [1e-300, files.LARGEST / 10])
def test_the_scale_of_a_submission_does_not_count(factor):
    scores = scoring.scores_of(np.float64(normal(0)) * factor, normal(0))
    assert scores.correlation == pytest.approx(1)
    assert np.isfinite(scores.squared_error)


# The challenge's two sides.


def published(folder, source, noise=0.1, groups=2, tile=None):
    config = challenge.Make(
        public=folder / "public",
        private=folder / "hidden.npz",
        group_size=4,
        groups=groups,
        known_groups=2,
        noise=noise,
        tile=tile,
    )
    run_config = runs.RunConfig(
        data=data.DataConfig(image_size=source.image_size),
        model=models.ModelConfig(width=4, tile=tile),
        defense=defenses.DefenseConfig(group_size=4, noise=noise),
    )
    model = runs.build_model(run_config, source)
    variables = model.init(jax.random.key(0))
    defense = defenses.build(run_config.defense, tiles=model.spec.tiles)
    challenge.publish(config, runs.Run(run_config, source, model, defense, variables, 0))
    return config


@pytest.fixture(scope="module")
def sides(tmp_path_factory, tiny_source):
    return published(tmp_path_factory.mktemp("challenge"), tiny_source)


def leaks(public, private):
    """Names of hidden arrays of which a row of 32 bytes or more stands in a public file."""
    written = [path.read_bytes() for path in sorted(public.iterdir())]
    with np.load(private) as hidden:
        return {
            name
            for name in hidden.files
            for row in (hidden[name] if hidden[name].ndim > 1 else [hidden[name]])
            for content in written
            if row.tobytes() in content
        }


def test_nothing_hidden_stands_in_the_public_folder(sides, tmp_path):
    assert leaks(sides.public, sides.private) == set()
    with np.load(sides.private) as hidden:
        (tmp_path / "leak").write_bytes(b"x" + hidden["matrix"][1].tobytes())
    assert leaks(tmp_path, sides.private) == {"matrix"}, "the check notices a leak"


def test_the_private_file_is_its_owners_only(sides):
    assert sides.private.stat().st_mode & 0o077 == 0


def test_secrets_are_new_every_time(sides):
    first, second = (challenge.draw_secrets(sides, tiles=1) for _ in range(2))
    for name in ("people", "pictures", "noise", "matrix", "nonce"):
        assert (getattr(first, name) != getattr(second, name)).any(), name


def answer_to(sides, rows, folder):
    path = submitted(folder / "mine.npz", recovered=rows)
    return scoring.score(scoring.Score(public=sides.public, private=sides.private, submission=path))


def test_truth_and_mixtures_stand_where_they_should(sides, tmp_path):
    with np.load(sides.private) as hidden:
        truth = hidden["truth"]
    answer = answer_to(sides, -truth[::-1], tmp_path)
    assert answer["finding"]
    scores = answer["scores"]
    assert scores["submission"]["correlation"] == pytest.approx(1, abs=1e-4)
    ranked = [found["correlation"] for found in scores.values()]
    assert ranked == sorted(ranked, reverse=True)
    assert scores["chance"]["correlation"] < scores["no attack"]["correlation"]
    assert scores["no attack"]["correlation"] < scores["owner"]["correlation"]
    with np.load(sides.public / files.MIXTURES) as stored:
        again = answer_to(sides, stored["mixtures"], tmp_path)
    assert again["scores"]["submission"] == again["scores"]["no attack"]
    assert not again["finding"]


@pytest.mark.parametrize("tile", [None, (5, 3)])
def test_other_faces_are_no_finding_although_they_lie_above_the_owner(tmp_path, tile):
    faces = synthetic.load((40, 36), train_examples=8, test_examples=8)
    noisy = published(tmp_path, faces, noise=1.0, groups=16, tile=tile)
    with np.load(noisy.public / files.KNOWN) as known, np.load(noisy.private) as hidden:
        repeated = np.resize(known["activations"], hidden["truth"].shape)
    answer = answer_to(noisy, repeated, tmp_path)
    scores = {name: found["correlation"] for name, found in answer["scores"].items()}
    assert scores["submission"] > scores["owner"] + 0.05, "which filters nothing"
    assert not answer["finding"]
    assert answer["verdict"].startswith("No finding")
    for name in (*scoring.NO_METHOD, "owner", "submission"):
        assert scores[name + scoring.FILTERED] >= scores[name]


@pytest.mark.parametrize(
    ("mine", "owner", "finding", "words"),
    [
        (0.86, 0.94, True, "A finding: filtered, the submission has 0.860, and 'other faces, "),
        (0.84, 0.94, False, "No finding"),
        (0.84, 0.84, False, "Not even the owner does"),
    ],
)
def test_a_finding_lies_clearly_above_the_best_that_needs_no_method(mine, owner, finding, words):
    sides = {"submission": mine, "owner": owner, "other faces": 0.8, "no attack": 0.7}
    filtered = {name + scoring.FILTERED: value for name, value in sides.items()}
    filtered |= dict.fromkeys(sides, 0.5) | {"other faces": 0.8}
    answer = scoring.judged(filtered)
    assert answer["finding"] == finding
    assert answer["leads"] == pytest.approx({"submission": mine - 0.8, "owner": owner - 0.8})
    assert words in answer["verdict"]


def test_a_changed_truth_or_challenge_is_refused(sides, tmp_path):
    about, _ = files.read_public(sides.public)
    other = tmp_path / "other.npz"
    other.write_bytes(sides.private.read_bytes() + b"x")
    with pytest.raises(UsageError, match="not the published commitment"):
        files.read_private(other, about)
    with pytest.raises(UsageError, match="not the published commitment"):
        files.read_private(tmp_path, about)
    copy = tmp_path / "public"
    copy.mkdir()
    for path in sides.public.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    (copy / files.MIXTURES).write_bytes(b"x")
    with pytest.raises(DataError, match="not the file that was published"):
        files.read_public(copy)
    with pytest.raises(UsageError, match="is no challenge"):
        files.read_public(tmp_path)


def test_a_challenge_is_not_written_over_another_or_beside_its_truth(sides, tmp_path):
    with pytest.raises(UsageError, match="is there already"):
        dataclasses.replace(sides)
    with pytest.raises(UsageError, match="which is published"):
        challenge.Make(public=tmp_path / "a", private=tmp_path / "a" / "hidden.npz")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    for public in (tmp_path / "link", tmp_path / "b" / ".." / "a"):
        with pytest.raises(UsageError, match="which is published"):
            challenge.Make(public=public, private=tmp_path / "a" / "hidden.npz")


@pytest.mark.parametrize("content", ["{}", "[]", "1", '{"version": 1}', '{"version": 2}', "x"])
def test_other_files_of_the_name_are_no_challenge(tmp_path, content):
    (tmp_path / files.ABOUT).write_text(content)
    with pytest.raises(UsageError, match="is no challenge"):
        files.read_public(tmp_path)


@pytest.mark.parametrize("field", files._FIELDS)
def test_a_field_that_is_missing_is_named(sides, tmp_path, field):
    about = json.loads((sides.public / files.ABOUT).read_text())
    for changed in ({**about, field: None}, {k: v for k, v in about.items() if k != field}):
        (tmp_path / files.ABOUT).write_text(json.dumps(changed))
        with pytest.raises(UsageError, match=f"{files.ABOUT} has no '{field}' .* Copy it again"):
            files.read_public(tmp_path)


def test_files_that_are_not_listed_and_networks_that_there_are_not_are_named(sides, tmp_path):
    about = json.loads((sides.public / files.ABOUT).read_text())
    del about["files"][files.NETWORK]
    (tmp_path / files.ABOUT).write_text(json.dumps(about))
    with pytest.raises(UsageError, match=f"lists no {files.NETWORK} in 'files'"):
        files.read_public(tmp_path)
    for change in ({"network": {"depth": 3}}, {"image_size": [40]}, {"defense": {"noise": -1}}):
        with pytest.raises(UsageError, match="was changed, or another version made it"):
            files.public_target(sides.public, {**about, **change})


def test_places_that_cannot_be_written_are_refused_before_any_work(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.touch()
    good = {"public": tmp_path / "public", "private": tmp_path / "hidden.npz"}
    for name, path in (
        ("public", file),
        ("public", file / "public"),
        ("private", file / "hidden.npz"),
    ):
        with pytest.raises(UsageError, match=f"{name} is .*file is no folder"):
            challenge.Make(**{**good, name: path})
    monkeypatch.setattr(challenge.os, "access", lambda place, mode: False)
    with pytest.raises(UsageError, match="Choose another public"):
        challenge.Make(**good)


def test_a_stopped_challenge_keeps_its_training_until_all_is_written(tmp_path, monkeypatch):
    config = challenge.Make(
        public=tmp_path / "public", private=tmp_path / "hidden.npz", known_groups=20
    )
    seen = []

    def fit(wanted, workdir, **options):
        seen.append((wanted.data.test_examples, sorted(p.name for p in tmp_path.glob("*/*"))))
        workdir.mkdir(exist_ok=True)
        (workdir / "checkpoint").touch()
        if len(seen) == 1:
            raise fitting.StoppedError("everything is saved")

    monkeypatch.setattr(data, "load_source", lambda config: None)
    monkeypatch.setattr(fitting, "fit", fit)
    monkeypatch.setattr(runs, "from_state", lambda *arguments: None)
    monkeypatch.setattr(challenge, "publish", lambda *arguments: None)
    with pytest.raises(fitting.StoppedError):
        challenge.make(config)
    challenge.make(config)
    images = 20 * config.group_size
    assert seen == [(images, []), (images, ["checkpoint"])]
    assert not list(tmp_path.iterdir()), "nothing is left of it, and it was never in public"


def test_a_challenge_that_cannot_be_written_is_made_by_a_second_call(
    tmp_path, tiny_source, monkeypatch
):
    def full(path, content):
        if path.name == files.ABOUT:
            raise OSError(errno.ENOSPC, "No space left on device")
        write_atomically(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(challenge, "write_atomically", full)
        with pytest.raises(OSError, match="No space"):
            published(tmp_path, tiny_source)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    files.read_public(published(tmp_path, tiny_source).public)


def test_of_a_private_file_that_cannot_be_written_nothing_is_left(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "hidden.npz"
    with monkeypatch.context() as patch:
        patch.setattr(challenge.os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            challenge._write_private(path, b"mine")
    assert not path.exists()
    challenge._write_private(path, b"mine")
    with pytest.raises(FileExistsError):
        challenge._write_private(path, b"another")
    assert path.read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["private", "submission", *files.PUBLIC])
def test_scores_replace_nothing_that_is_read(sides, tmp_path, name):
    mine = submitted(tmp_path / "mine.npz", recovered=normal(0))
    files = {"private": sides.private, "submission": mine}
    output = files.get(name, sides.public / name)
    before = output.read_bytes()
    with pytest.raises(UsageError, match=r"--output .* would replace"):
        scoring.score(
            scoring.Score(
                public=sides.public, private=sides.private, submission=mine, output=output
            )
        )
    assert output.read_bytes() == before


def test_public_files_are_all_named(sides):
    assert {path.name for path in sides.public.iterdir()} == set(files.PUBLIC)


def test_the_baseline_replaces_no_public_file(sides, monkeypatch):
    monkeypatch.setattr(challenge, "read_public", None)  # refused before any work
    for name in files.PUBLIC:
        with pytest.raises(UsageError, match=r"--submission .* would replace"):
            challenge.baseline(
                challenge.Baseline(public=sides.public, submission=sides.public / name)
            )


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("challenge.py make --public a --private b --group-size 1", "group_size"),
        ("challenge.py score --public a --private b --submission c", "a is no challenge"),
        ("challenge_baseline.py --scale smoke --output begun.json", "begun with scale cpu"),
    ],
)
def test_mistakes_end_in_one_paragraph_and_exit_code_2(tmp_path, command, words):
    begun = {
        "name": "challenge, scale smoke",
        "provenance": {},
        "config": {"scale": "cpu"},
        "cells": [],
    }
    (tmp_path / "begun.json").write_text(json.dumps(begun))
    script, *options = command.split()
    path = Path(challenge.__file__).with_name(script)
    ended = subprocess.run(
        [sys.executable, path, *options], cwd=tmp_path, capture_output=True, text=True
    )
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.startswith("facemix: ")
    assert words in ended.stderr


@pytest.mark.slow
@pytest.mark.library_promotes
def test_plain_facemix_falls_to_the_baseline(tmp_path):
    public, private, mine = (tmp_path / name for name in ("public", "hidden.npz", "mine.npz"))
    challenge.main(challenge.Make(public=public, private=private))
    challenge.main(challenge.Baseline(public=public, submission=mine))
    score = scoring.Score(
        public=public, private=private, submission=mine, output=tmp_path / "s.json"
    )
    challenge.main(score)
    scores = json.loads((tmp_path / "s.json").read_text())["scores"]
    assert scores["submission"]["correlation"] > 0.98
    assert scores["no attack"]["correlation"] < 0.85
