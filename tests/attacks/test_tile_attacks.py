"""Networks with tiles under attack: what is recorded, whole maps, and the attacks made for them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attack_support import PatchworkSource, make_target, make_tiled_target

from facemix_jax import attacks, commands_attack, defenses, models, report
from facemix_jax.attacks import alignment, contrast, groups, recognition, separation, suite
from facemix_jax.attacks.tiles import spread, whole
from facemix_jax.models import ModelConfig
from facemix_jax.models.split import cut_tiles, put_tiles_back, side_by_side

EFFORT = attacks.AttackConfig(num_groups=2, steps=2, batch_size=16)


def recording_of(target, shuffled=False):
    rows = attacks.recorded_rows(target, 2)
    return attacks.record(target, rows, rng_key=jax.random.key(1), shuffled=shuffled)


@pytest.mark.parametrize("scatter", [False, True])
@pytest.mark.parametrize("shuffled", [False, True])
def test_rows_are_recorded_group_by_group_with_whose_they_are(scatter, shuffled):
    target = make_tiled_target(scatter=scatter)
    found = recording_of(target, shuffled)
    assert found.activations.shape == (32, 8, 7, 8)  # 4 tiles of 8 images
    clean = target.model.pre(target.variables["pre"], attacks.base.normalize(found.images)).reshape(
        4, 8, -1
    )
    for row, (example, activation) in enumerate(
        zip(found.examples, found.activations, strict=True)
    ):
        np.testing.assert_allclose(activation.ravel(), clean[row // 8, example], atol=1e-5)
    # The owner recovers what was protected, and mixtures span the same space as their group.
    np.testing.assert_allclose(found.owner_activations, found.activations, atol=1e-4)
    mixtures = np.asarray(attacks.base.by_group(found.view.mixtures, found)).reshape(8, 4, -1)
    truth = np.asarray(attacks.base.truth_by_group(found.activations, found)).reshape(8, 4, -1)
    for mixed, true in zip(mixtures, truth, strict=True):
        np.testing.assert_allclose(mixed.T @ mixed, true.T @ true, atol=1e-2)


def test_without_scatter_a_group_is_the_same_images_in_every_tile():
    kept = recording_of(make_tiled_target()).examples.reshape(4, 2, 4)
    assert all(set(tile[0]) == set(kept[0, 0]) for tile in kept)
    dealt = recording_of(make_tiled_target(scatter=True)).examples.reshape(4, 2, 4)
    assert any(set(tile[0]) != set(dealt[0, 0]) for tile in dealt)


def test_the_whole_system_is_the_same_with_maps_in_the_place_of_tiles():
    tiled, joined = make_tiled_target(noise=0.3), whole(make_tiled_target(noise=0.3))
    assert joined.model.spec.activation_shape == (16, 14, 8)
    first, second = recording_of(tiled), recording_of(joined)
    np.testing.assert_allclose(second.owner_logits, first.owner_logits, atol=1e-4)
    for name, together in (
        ("activations", lambda x: put_tiles_back(x, (2, 2))),
        ("owner_activations", lambda x: put_tiles_back(x, (2, 2))),
    ):
        np.testing.assert_allclose(getattr(second, name), together(getattr(first, name)), atol=1e-4)
    np.testing.assert_allclose(
        second.view.responses, side_by_side(first.view.responses, 4), atol=1e-4
    )
    assert second.view.mixtures.shape == (8, 16, 14, 8)
    variables = joined.variables
    for model in (tiled.model, joined.model):  # learned attackers start from main and train it
        z, _ = model.pre.train(variables["pre"], attacks.base.normalize(first.images))
        features, _ = model.main.train(variables["main"], z)
        logits = model.post.train(variables["post"], features)[0]
        assert z.shape[1:] == model.spec.activation_shape
        assert features.shape[1:] == model.spec.response_shape
        assert logits.shape == (8, 3, 2)


def test_whole_maps_are_of_rows_that_are_sent_or_of_rows_run_ahead_and_of_no_mixture():
    tiled = make_tiled_target(blinding=1.0)
    defense = whole(tiled).defense
    maps = jax.random.normal(jax.random.key(0), (8, 16, 14, 8))
    secret = defense.init(jax.random.key(1), 8, True)
    seen = defense.protect(secret, maps)
    rows = tiled.defense.protect(secret.inner, cut_tiles(maps, (8, 7)))
    for found, part in zip(jnp.split(seen, 2), jnp.split(rows, 2), strict=True):
        np.testing.assert_array_equal(found, put_tiles_back(part, (2, 2)))
    recovered = put_tiles_back(tiled.defense.recover(secret.inner, rows), (2, 2))
    np.testing.assert_array_equal(defense.recover(secret, seen), recovered)


def test_a_spread_system_is_the_same_with_channels_in_the_place_of_positions():
    own = make_tiled_target(tile=(1, 1), noise=0.3)
    first, second = recording_of(own), recording_of(spread(own))
    assert second.activations.shape == (len(first.activations), 8, 1, 1)
    for name in ("activations", "owner_activations"):
        flat = np.asarray(getattr(first, name)).reshape(-1, 8, 1, 1)
        np.testing.assert_allclose(getattr(second, name), flat, atol=1e-5)
    np.testing.assert_allclose(second.owner_logits, first.owner_logits, atol=1e-4)
    larger = make_tiled_target()
    assert spread(larger) is larger


def test_a_network_without_tiles_is_whole_already():
    target = make_tiled_target()
    plain = dataclasses.replace(
        target, model=models.build(ModelConfig(width=8), image_size=target.source.image_size)
    )
    assert whole(plain) is plain


def test_auxiliary_rows_are_in_the_order_of_tiles_however_many_images():
    target = make_tiled_target()
    rows = target.source.splits["train"]
    assert len(rows) > 64, "more than one chunk"
    whole_call = target.model.pre(
        target.variables["pre"], attacks.base.normalize(target.source.images(rows))
    )
    own = groups.auxiliary_by_tile(target, len(rows))
    assert own.shape[:2] == (4, len(rows))
    np.testing.assert_allclose(own.reshape(whole_call.shape), whole_call, atol=1e-5)


def test_likeness_of_tiles_finds_the_common_rotation():
    """Three tiles of Gaussian rows that are nearly copies of one another, each turned anew."""
    rng_key = jax.random.key(0)
    base_key, own_key, turn_key, start_key = jax.random.split(rng_key, 4)
    size, dims = 6, 40
    base = jax.random.normal(base_key, (1, size, dims))
    rows = 0.9 * base + (1 - 0.81) ** 0.5 * jax.random.normal(own_key, (3, size, dims))
    turns = jax.random.orthogonal(turn_key, size, (3,))
    like = 0.81 * np.ones((3, 3)) + 0.19 * np.eye(3)
    inverse = np.einsum("st,de->sdte", np.linalg.inv(like), np.eye(dims)).astype(np.float32)
    starts = jax.random.orthogonal(start_key, size, (3, 3))
    found = alignment.align(turns @ rows, jnp.asarray(inverse), starts)
    common = found @ turns
    assert jnp.abs(common - common[:1]).max() < 0.5
    unlike = np.einsum("st,de->sdte", np.eye(3), np.eye(dims)).astype(np.float32)
    blind = alignment.align(turns @ rows, jnp.asarray(unlike), starts) @ turns
    assert jnp.abs(blind - blind[:1]).max() > 0.5, "without likeness there is nothing to find"


@pytest.mark.slow
@pytest.mark.library_promotes
def test_a_trained_contrast_unmixes_what_it_was_trained_on():
    """Pairs: a network of a few hundred steps finds more than an untrained one, whose loss is
    not blind either."""
    target = make_tiled_target(noise=0.05, group_size=2)
    found = recording_of(target)
    trained, untrained = (
        contrast.train(target, jax.random.key(0), steps=steps, batch_size=256) for steps in (400, 1)
    )
    mixtures = attacks.base.by_group(found.view.mixtures, found)
    tiles = contrast.tile_of_group(target, len(mixtures))
    assert list(tiles) == [0, 0, 1, 1, 2, 2, 3, 3]  # two groups in each
    values = []
    for which in (trained, untrained):
        got = contrast.separate_by_contrast(which, mixtures, tiles=tiles, rng_key=jax.random.key(1))
        np.testing.assert_allclose(
            got.unmixing @ got.unmixing.mT, np.broadcast_to(np.eye(2), (8, 2, 2)), atol=1e-4
        )
        values.append(attacks.blind.score(found, got.sources, "").figures[0])
    assert values[0].value > values[0].floor + 0.1
    assert values[0].value > values[1].value + 0.01


@pytest.mark.parametrize("tile", [(8, 7), (1, 1)])
def test_pictures_show_every_image_below_itself_whatever_its_tiles_are(monkeypatch, tile):
    """Recovered rows come tile by tile, and with scatter in the order of dealing."""

    def oracle(name, by_tile):
        def run(target, recording, rng_key, config):
            figure = attacks.Figure(name, 1.0, 0.0, 1.0, "nothing")
            return attacks.Result((figure,), np.asarray(recording.activations))

        return attacks.Attack(name, "nothing", run, by_tile=by_tile)

    fakes = {"tiles": oracle("tiles", True), suite.STRONGEST: oracle(suite.STRONGEST, False)}
    monkeypatch.setattr(suite, "ATTACKS", fakes)
    monkeypatch.setattr(report, "labelled_rows", lambda rows: rows)
    target = make_tiled_target(tile=tile, scatter=True)
    found = suite.run_suite(target, ["tiles"], rng_key=jax.random.key(0), config=EFFORT)
    rows = commands_attack.picture(found)
    assert rows["sent"].shape == rows["tiles"].shape == (8, 16, 14, 3)
    np.testing.assert_allclose(rows["tiles"], rows[suite.STRONGEST], atol=1e-3)


@pytest.mark.parametrize("attack", [alignment.ALIGNMENT, separation.GRADIENT_ICA])
def test_attacks_run_on_tiles(attack):
    target = make_tiled_target(noise=0.2)
    assert attack.unsuitable(target) is None
    result = attack.run(target, recording_of(target), jax.random.key(2), EFFORT)
    assert 0 < result.figures[0].value <= result.figures[0].owner + 0.05
    assert result.recovered.shape == (32, 8, 7, 8)


@pytest.mark.parametrize("attack", [recognition.ATTRIBUTES, recognition.IDENTITY])
def test_a_matrix_of_whole_maps_is_undone_only_where_there_is_one(attack, monkeypatch):
    def stop(*arguments, separates):
        raise InterruptedError(separates)

    monkeypatch.setattr(recognition, "train_networks", stop)
    for target, separates in ((make_tiled_target(), False), (make_target(), True)):
        with pytest.raises(InterruptedError, match=str(separates)):
            attack.run(whole(target), recording_of(whole(target)), jax.random.key(2), EFFORT)


@pytest.mark.parametrize("scatter", [False, True])
def test_a_tile_of_a_picture_is_recognised_in_its_group(scatter):
    target = make_tiled_target(scatter=scatter)
    area, rate = (
        suite.ATTACKS["span"].run(target, recording_of(target), jax.random.key(2), EFFORT).figures
    )
    assert area.value == area.owner == 1
    assert rate.value == 1 > rate.floor
    # Rows of other pictures, as if the recording were theirs: nothing is recognised.
    recording = recording_of(target)
    other = target.model.pre(
        target.variables["pre"], attacks.base.normalize(target.source.images(np.arange(8)))
    )
    wrong = suite.ATTACKS["span"].run(
        target, recording._replace(activations=other), jax.random.key(2), EFFORT
    )
    assert wrong.figures[0].value < 0.9


def test_alignment_needs_tiles():
    assert "not cut into tiles" in alignment.ALIGNMENT.unsuitable(
        attacks.Target(
            model=models.build(ModelConfig(width=8), image_size=(64, 56)),
            defense=defenses.facemix(group_size=4),
            variables={},
            source=PatchworkSource(),
        )
    )


def test_the_suite_gives_tiles_to_separation_and_whole_maps_to_the_others(monkeypatch):
    shapes = {}

    def fake(name, by_tile):
        def run(target, recording, rng_key, config):
            shapes[name] = recording.activations.shape
            assert target.model.spec.activation_shape == recording.activations.shape[1:]
            return attacks.Result((attacks.Figure(name, 0.0, 0.0, 1.0, "nothing"),))

        return attacks.Attack(name, "nothing", run, by_tile=by_tile)

    fakes = {"learned": fake("learned", False), suite.STRONGEST: fake(suite.STRONGEST, True)}
    monkeypatch.setattr(suite, "ATTACKS", fakes)
    suite.run_suite(make_tiled_target(), ["learned"], rng_key=jax.random.key(0), config=EFFORT)
    assert shapes == {"learned": (8, 16, 14, 8), suite.STRONGEST: (32, 8, 7, 8)}
    assert alignment.ALIGNMENT.by_tile
    assert separation.GRADIENT_ICA.by_tile
