"""Training of attackers: batches, fresh secrets, divergence."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facemix_jax import attacks, defenses, models
from facemix_jax._validate import DataError
from facemix_jax.attacks import learning

RNG_KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def target(tiny_source):
    model = models.resnet18(cut=0, image_size=(40, 36), num_attributes=3, width=4)
    return attacks.Target(
        model=model,
        defense=defenses.facemix(group_size=4),
        variables={"pre": {}, "main": {}, "post": {}},
        source=tiny_source,
    )


@pytest.mark.parametrize("size", [3, 10, 25])
def test_every_row_is_used_equally_often(size):
    rows = np.array([5, 7, 11, 2, 30, 31, 32, 33, 34, 50])
    stream = learning.batches(rows, size, np.random.default_rng(0))
    seen = np.concatenate([next(stream) for _ in range(2 * len(rows))])
    assert all(sorted(part) == sorted(rows) for part in seen.reshape(-1, len(rows)))
    assert not np.array_equal(seen[:10], seen[10:20])  # shuffled anew


def test_batches_hold_whole_groups():
    config = attacks.AttackConfig(batch_size=10)
    assert [learning.batch_size(config, m) for m in (1, 4, 10, 16)] == [10, 12, 10, 16]


def test_every_step_has_a_fresh_secret_and_the_right_labels(target):
    rows = target.source.splits["train"]
    seen = []

    def step(state, pre, rng_key, images, labels):
        wanted = target.source.attributes[rows]
        matching = [np.array_equal(x, images[0]) for x in target.source.images(rows)]
        assert np.array_equal(labels[0], wanted[np.argmax(matching)])
        seen.append(
            np.asarray(learning.protect(target.model, target.defense, pre, rng_key, images))
        )
        # The same images under the same key give the same mixtures: only the key is fresh.
        again = learning.protect(target.model, target.defense, pre, rng_key, images)
        np.testing.assert_array_equal(again, seen[-1])
        other = learning.protect(
            target.model, target.defense, pre, jax.random.fold_in(rng_key, 0), images
        )
        assert not np.allclose(other, seen[-1], atol=0.1)
        return state + 1, jnp.float32(0)

    done = learning.train(
        step, 0, target, rows, target.source.attributes, size=8, steps=3, rng_key=RNG_KEY
    )
    assert done == 3
    assert not np.allclose(seen[0], seen[1], atol=0.1)


def test_divergence_is_noticed(target):
    def step(state, pre, rng_key, images, labels):
        return state + 1, jnp.float32(np.nan if state >= 25 else 1)

    def run(steps):
        learning.train(
            step,
            0,
            target,
            target.source.splits["train"],
            target.source.attributes,
            size=4,
            steps=steps,
            rng_key=RNG_KEY,
        )

    run(25)
    for steps in (26, 50):
        with pytest.raises(DataError, match="diverged: its loss is nan"):
            run(steps)


def test_mirroring_flips_whole_images():
    images = jnp.arange(64 * 2 * 3 * 3, dtype=jnp.int32).reshape(64, 2, 3, 3)
    y = np.asarray(learning.mirrored(RNG_KEY, images))
    same = (y == images).all((1, 2, 3))
    flipped = (y == images[:, :, ::-1]).all((1, 2, 3))
    assert (same ^ flipped).all()
    assert 15 < same.sum() < 49  # 64 fair coins leave this range once in 50,000 times


def test_shuffled_mixtures_are_put_back_into_their_groups(tiny_source):
    model = models.resnet18(cut=1, image_size=(40, 36), num_attributes=3, width=4)
    target = attacks.Target(
        model=model,
        defense=defenses.facemix(group_size=4),
        variables=model.init(RNG_KEY),
        source=tiny_source,
    )
    recording = attacks.record(
        target, attacks.recorded_rows(target, 3), rng_key=RNG_KEY, shuffled=True
    )
    mixtures = np.asarray(learning.grouped_mixtures(recording)).reshape(3, 4, -1)
    truth = np.asarray(recording.activations).reshape(3, 4, -1)
    energy = (mixtures**2).sum(1), (truth**2).sum(1)
    np.testing.assert_allclose(*energy, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("around", "rank"),
    [
        (lambda d: d, 4),
        (lambda d: defenses.dispersed(d, 2), 2),
        (lambda d: defenses.dispersed(d, 4), 1),
        (lambda d: defenses.with_blinding(d, 1.0), 4),
    ],
)
def test_there_is_a_row_for_each_image_and_no_more_in_them_than_is_seen(target, around, rank):
    defense = around(target.defense)
    rows = target.source.splits["train"][:12]
    images = jnp.asarray(target.source.images(rows))
    pre = target.variables["pre"]
    made = learning.protect(target.model, defense, pre, RNG_KEY, images)
    assert made.shape == images.shape
    groups = np.asarray(made).reshape(3, 4, -1)
    assert (np.linalg.matrix_rank(groups, tol=1e-2) == rank).all()
    gaps = np.abs(groups[:, :, None] - groups[:, None]).max(-1) + np.eye(4)
    assert gaps.min() > 1e-3 or rank == 1


def test_a_recording_of_one_cloud_is_filled_up_as_in_training(target):
    model = models.resnet18(cut=1, image_size=(40, 36), num_attributes=3, width=4)
    clouds = attacks.Target(
        model=model,
        defense=defenses.dispersed(target.defense, 2),
        variables=model.init(RNG_KEY),
        source=target.source,
    )
    rows = target.source.splits["train"][:8]
    recording = attacks.record(clouds, rows, rng_key=RNG_KEY)
    images = jnp.asarray(target.source.images(rows))
    made = learning.protect(model, clouds.defense, clouds.variables["pre"], RNG_KEY, images)
    found = learning.grouped_mixtures(recording)
    assert len(recording.view.mixtures) == 4
    np.testing.assert_allclose(found, made, atol=1e-5)


def sent(target, z):
    """What is sent of ``z``."""
    return target.defense.protect(target.defense.init(RNG_KEY, len(z), True), z)


@pytest.mark.parametrize(
    ("options", "scale", "left"),
    [
        ({}, 1, 0),
        ({"decoys": 2, "clouds": 2}, 1, 0),
        ({"noise": 0.5}, 1, 0.5),
        ({"noise": 0.5, "decoys": 2, "clouds": 2}, 1, 0.5),
        ({"wire": "int4"}, 1, 0.1),
        ({"blinding": 2.0}, 0.5, 0),
        ({"blinding": 2.0, "noise": 0.5}, 0.5, 0.5),
    ],
)
def test_the_owners_network_learns_from_rows_as_the_owner_recovers_them(
    target, options, scale, left
):
    """Scaled as blinding scales them, and with the noise that stays in them."""
    z = 2 * jax.random.normal(RNG_KEY, (10, 8, 8, 4))  # the last group is not whole
    defense = defenses.build(defenses.DefenseConfig(group_size=4, **options))
    defended = dataclasses.replace(target, defense=defense)
    owned = learning.recovered(defended)
    rest = sent(owned, z) - scale * z
    assert (
        defense.exact == (owned.defense.name == "none") == (not ({*options} - {"decoys", "clouds"}))
    )
    assert jnp.std(rest) == pytest.approx(2 * scale * left, rel=0.2, abs=0.06)


@pytest.mark.parametrize("family", ["haar", "conditioned"])
def test_blinding_stays_in_the_rows_of_one_who_undoes_the_mixing_without_the_key(target, family):
    z = 3 * jax.random.normal(RNG_KEY, (8, 8, 8, 4))
    config = defenses.DefenseConfig(group_size=4, blinding=2.0, family=family, condition=1.01)
    blinded = dataclasses.replace(target, defense=defenses.build(config))
    owner, other = (sent(learning.recovered(blinded, keyless=k), z) for k in (False, True))
    assert jnp.std(owner) == pytest.approx(1, rel=0.05)
    # Rows of unit deviation and the blinding; other families' rows are as large as activations are.
    size = np.hypot(1, 2) if family == "haar" else 3
    assert jnp.std(other) == pytest.approx(size, rel=0.05)
    assert np.corrcoef(other.ravel(), z.ravel())[0, 1] == pytest.approx(
        1 / np.hypot(1, 2), abs=0.05
    )
    noisy = dataclasses.replace(target, defense=defenses.with_noise(target.defense, 1.0))
    once, again = (learning.recovered(noisy, keyless=k).defense for k in (False, True))
    assert once is again, "who undoes the mixing has what the owner has"
