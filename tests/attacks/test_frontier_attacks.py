"""What public statistics make of rows, row spaces of tiles, and maps assembled from tiles."""

import copy
import dataclasses

import jax
import numpy as np
import pytest
from attack_support import make_target, make_tiled_target
from tile_faces import Faces, small_network

from facemix_jax import attacks, defenses, models
from facemix_jax.attacks import blind, denoising, membership, recognition, tile_faces, tiles
from facemix_jax.defenses import DefenseConfig
from facemix_jax.models import ModelConfig
from facemix_jax.models.split import cut_tiles, put_tiles_back


def test_filters_take_noise_from_rows_near_few_directions_and_from_no_others():
    rng = np.random.default_rng(0)
    for rank, helps in ((3, True), (40, False)):
        basis = np.linalg.qr(rng.standard_normal((40, rank)))[0].T
        own, true = (rng.standard_normal((2, n, rank)) @ basis for n in (400, 6))
        noisy = true + 0.2 * rng.standard_normal(true.shape)
        filters = denoising.learn(own)
        truth = true.reshape(2, 6, 40)
        plain = blind.recovery(noisy, truth).mean()
        filtered = denoising.filtered_correlation(filters, noisy, truth)
        assert filtered >= plain, "to leave rows as they are is one of the choices"
        assert (filtered > plain + 0.02) == helps
        np.testing.assert_array_equal(filters(noisy, 0.0), noisy)


def test_a_guess_is_worth_what_images_have_in_common():
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((1, 1, 40))
    for likeness, least, most in ((0.0, 0.1, 0.6), (3.0, 0.8, 1.0)):
        own, truth = (rng.standard_normal((1, n, 40)) + likeness * shared for n in (400, 6))
        assert least < denoising.guessed_correlation(denoising.learn(own), truth) < most


def test_members_lie_in_the_row_spaces_of_their_group_and_others_do_not():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((3, 2, 4, 50))
    mixed = np.linalg.qr(rng.standard_normal((3, 2, 4, 4)))[0] @ rows
    candidates = np.concatenate([rows[:, 0], rng.standard_normal((3, 20, 50))], axis=1)
    share = membership.share_inside(mixed, candidates)
    np.testing.assert_allclose(share[0, :4], 1, atol=1e-6)
    assert share[1, :4].max() < 0.3, "another group's"
    assert abs(share[:, 4:].mean() - 4 / 50) < 0.02


def membership_of(target):
    assert membership.MEMBERSHIP.unsuitable(target) is None
    recording = attacks.record(target, attacks.recorded_rows(target, 2), rng_key=jax.random.key(1))
    return membership.MEMBERSHIP.run(
        target, recording, jax.random.key(2), attacks.AttackConfig(num_groups=2)
    ).figures[0]


@pytest.mark.slow
def test_persons_are_found_where_their_pictures_are_alike_and_nowhere_else():
    model = small_network()
    target = attacks.Target(
        model=model,
        defense=defenses.facemix(group_size=2),
        variables=model.init(jax.random.key(0)),
        source=Faces(),
    )
    found = membership_of(target)
    assert found.chance == 0.25
    assert found.value > 0.6, "eight patterns, two of them in a group"
    # 48 members at chance 1/4 stay under .5 but once in 10,000 draws.
    unlike = membership_of(make_tiled_target())
    assert unlike.chance == 0.25, "16 names that say nothing about the pictures, 4 in a group"
    assert unlike.value < 0.5
    alone = dataclasses.replace(target, defense=defenses.none())
    assert "one row" in membership.MEMBERSHIP.unsuitable(alone)


def test_a_tile_that_is_dead_takes_nothing_from_the_others():
    source = Faces()
    tiled = models.build(ModelConfig(width=8, tile=(5, 9)), image_size=(40, 36), num_attributes=1)
    dead = tiles._between(
        lambda images: images,
        tiled.pre,
        lambda z: z.reshape(tiled.spec.tiles, -1, *z.shape[1:]).at[0].set(0).reshape(z.shape),
    )
    target = attacks.Target(
        model=tiled._replace(pre=dead),
        defense=defenses.build(DefenseConfig(group_size=2), tiles=tiled.spec.tiles),
        variables=tiled.init(jax.random.key(0)),
        source=source,
    )
    assert tiled.spec.tiles == 2
    found = membership_of(target)
    assert found.value > found.chance + 0.3
    assert found.owner > found.chance + 0.3


@pytest.mark.library_promotes
def test_row_spaces_and_networks_that_name_persons_stand_above_one_floor():
    target = make_target()
    source = copy.copy(target.source)
    rows = np.arange(160)
    source.identities = np.where(rows < 80, 0, 1 + rows % 12).astype(np.int32)
    target = dataclasses.replace(target, source=source)
    recording = attacks.record(target, rows[96:104], rng_key=jax.random.key(1))
    config = attacks.AttackConfig(steps=1, batch_size=28)  # so that both ask about all 28 pictures
    by_rows, by_network = (
        attack.run(target, recording, jax.random.key(2), config).figures[0]
        for attack in (membership.MEMBERSHIP, recognition.SET_IDENTITY)
    )
    assert by_rows.name == by_network.name
    assert by_rows.chance == by_network.chance == 4 / 13
    assert by_rows.floor == by_network.floor > 0.5, "one of 13 has half of all pictures"


def test_an_attackers_own_assembly_needs_one_order_for_all_tiles():
    rng = np.random.default_rng(0)
    truth = rng.standard_normal((4, 5, 2, 2, 3)).astype(np.float32)  # two tiles of two groups
    order = rng.permutation(5)
    alike = -truth[:, order]
    np.testing.assert_allclose(tile_faces.assemble(alike, truth, 2), truth, atol=1e-6)
    mixed_up = alike.copy()
    mixed_up[:2] = mixed_up[:2, ::-1]  # in the first tile, another order
    assert not np.allclose(tile_faces.assemble(mixed_up, truth, 2), truth, atol=0.1)
    granted = tile_faces.assemble(mixed_up, truth, 1)  # every tile for itself
    np.testing.assert_allclose(granted, truth, atol=1e-6)


def test_rows_of_dealt_tiles_come_back_to_their_images():
    target = make_tiled_target(scatter=True)
    recording = attacks.record(target, attacks.recorded_rows(target, 2), rng_key=jax.random.key(1))
    clean = target.model.pre(target.variables["pre"], attacks.base.normalize(recording.images))
    maps = tile_faces.by_image(recording.activations, recording, (2, 2))
    np.testing.assert_allclose(cut_tiles(maps, (8, 7)), clean, atol=1e-5)
    as_sent = put_tiles_back(recording.activations, (2, 2))
    assert not np.allclose(as_sent, maps, atol=1e-3), "the order as sent is another one"


@pytest.mark.slow
@pytest.mark.library_promotes
def test_pictures_are_made_of_every_separation_and_of_floor_and_owner():
    target = make_tiled_target(noise=0.2)
    recording = attacks.record(target, attacks.recorded_rows(target, 2), rng_key=jax.random.key(1))
    truth = np.asarray(attacks.base.truth_by_group(recording.activations, recording))
    pictures, losses = tile_faces.invert_tiles(
        target,
        recording,
        {"perfect": (truth, True)},
        rng_key=jax.random.key(0),
        config=attacks.AttackConfig(steps=60, batch_size=16),
    )
    assert set(pictures) == {"perfect", "floor", "owner", "blind"}
    assert losses[-10:].mean() < losses[:3].mean()
    true = recording.images / 255
    error = {name: ((made - true) ** 2).mean() for name, made in pictures.items()}
    assert error["perfect"] < error["owner"] < error["floor"]
