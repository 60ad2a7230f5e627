import copy
import dataclasses

import jax
import numpy as np
import pytest
from attack_support import make_recording, make_target

from facemix_jax import attacks, data
from facemix_jax._validate import UsageError
from facemix_jax.attacks import judge
from facemix_jax.data import decode

ORIGINALS = 3.0 * np.eye(8)
GALLERY = -ORIGINALS


def coarse(images, originals):
    """A stand-in for a recogniser: mean colours of 4 x 4 cells."""
    cells = np.asarray(images, np.float64).reshape(len(images), 4, 16, 4, 14, 3).mean((2, 4))
    return cells.reshape(len(images), -1) / 100


@pytest.fixture
def absent(monkeypatch):
    monkeypatch.setattr(judge.importlib.util, "find_spec", lambda name: None)


def test_perfect_reconstructions_are_recognised():
    verdict = judge.compare(ORIGINALS, ORIGINALS, GALLERY, group_size=4)
    assert (verdict.same_person, verdict.rank1_group, verdict.rank1_gallery) == (1, 1, 1)
    assert verdict.distance.tolist() == [0] * 8


def test_swapped_members_are_other_people():
    verdict = judge.compare(ORIGINALS[[1, 0, 2, 3, 4, 5, 6, 7]], ORIGINALS, GALLERY, group_size=4)
    assert verdict.same_person == verdict.rank1_group == verdict.rank1_gallery == 0.75


def test_rank_within_the_group_ignores_everybody_else():
    swapped = ORIGINALS[[4, 1, 2, 3, 0, 5, 6, 7]]  # across groups: neither is nearer than others
    nearer = 0.9 * swapped + 0.2 * ORIGINALS
    verdict = judge.compare(nearer, ORIGINALS, GALLERY, group_size=4)
    assert verdict.rank1_group == 1
    assert verdict.rank1_gallery == 0.75
    assert judge.compare(GALLERY, ORIGINALS, GALLERY, group_size=4).rank1_gallery == 0


def test_the_threshold_decides_who_is_the_same():
    near = ORIGINALS + 0.59 * np.eye(8)
    far = ORIGINALS + 0.61 * np.eye(8)
    assert judge.compare(near, ORIGINALS, GALLERY, group_size=4).same_person == 1
    assert judge.compare(far, ORIGINALS, GALLERY, group_size=4).same_person == 0


def test_embeddings_that_do_not_belong_together_are_an_error():
    with pytest.raises(UsageError, match="one recogniser"):
        judge.compare(ORIGINALS, ORIGINALS[:4], GALLERY, group_size=4)


def test_attacker_is_judged_beside_floor_owner_and_a_blind_guess():
    target = make_target(cut=0)
    own = target.source.splits["train"][:24]  # fewer than a gallery takes
    source = copy.copy(target.source)
    source.splits = {**source.splits, "train": own}
    result, verdicts = judge.judge_recording(
        dataclasses.replace(target, source=source),
        make_recording(cut=0),
        coarse,
        rng_key=jax.random.key(0),
        config=attacks.AttackConfig(),
    )
    for figure in result.figures:
        assert figure.floor <= figure.value <= figure.owner == 1
    assert result.figures[2].chance == 1 / (16 + 24)
    assert verdicts["blind"].rank1_gallery < 0.2
    assert verdicts["attacker"].rank1_group > verdicts["floor"].rank1_group


def test_the_missing_extra_is_named(absent):
    assert "facemix-jax[judge]" in judge.JUDGE.unsuitable(make_target())
    with pytest.raises(UsageError, match=r"facemix-jax\[judge\]"):
        judge.dlib_recogniser()


@pytest.mark.slow
def test_real_people_are_told_apart(real_data):
    """Of 30 pairs each; 93% are told right in 300, so that under 80% of 60 is one in 1,000."""
    if judge.JUDGE.unsuitable(make_target()):
        pytest.skip("the extra judge is not installed")
    files = data.open_files(data.DataConfig(dataset="celeba", data_dir=str(real_data / "celeba")))
    people = np.unique(files.identities[files.splits["test"]])[:30]
    rows = np.concatenate([np.flatnonzero(files.identities == p)[:2] for p in people])
    names = [files.file_names[row] for row in rows]
    images = np.stack([decode.rgb(files.images.read(n), (109, 89), name=n) for n in names])
    embedded = judge.dlib_recogniser()(images, images)
    same = np.linalg.norm(embedded[::2] - embedded[1::2], axis=1) < judge.THRESHOLD
    other = np.linalg.norm(embedded[::2] - np.roll(embedded[1::2], 1, 0), axis=1) < judge.THRESHOLD
    assert (same.mean() + 1 - other.mean()) / 2 >= 0.8
