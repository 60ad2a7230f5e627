"""Maps cut into tiles: placement, gradients of nothing else, costs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facemix_jax import costs, defenses, inference, models, training
from facemix_jax._validate import UsageError
from facemix_jax.models import ModelConfig
from facemix_jax.models.split import cut_tiles, put_tiles_back, side_by_side

SIZE = (64, 56)  # 16 x 14 after the stem
IMAGES = jax.random.normal(jax.random.key(1), (4, *SIZE, 3))


def build(**options):
    config = ModelConfig(**{"width": 4, **options})
    return models.build(config, image_size=SIZE, num_attributes=3)


def test_tiles_are_ordered_by_place_and_come_back():
    maps = jax.random.normal(jax.random.key(0), (3, 5, 4, 2))
    rows = cut_tiles(maps, (2, 3))
    assert rows.shape == (3 * 2 * 3, 2, 3, 2)
    for down in range(3):
        for across in range(2):
            for example in range(3):
                row = rows[(2 * down + across) * 3 + example]
                part = maps[example, 2 * down : 2 * down + 2, 3 * across : 3 * across + 3]
                np.testing.assert_array_equal(row[: part.shape[0], : part.shape[1]], part)
                assert not row[part.shape[0] :].any()
                assert not row[:, part.shape[1] :].any()
    np.testing.assert_array_equal(put_tiles_back(rows, (3, 2))[:, :5, :4], maps)


def test_features_of_an_example_lie_side_by_side():
    rows = jnp.arange(2.0 * 3)[:, None] * jnp.ones((1, 2))  # 2 tiles of 3 examples
    np.testing.assert_array_equal(side_by_side(rows, 2)[:, ::2], [[0, 3], [1, 4], [2, 5]])


def test_one_tile_as_large_as_the_map_changes_nothing():
    plain, tiled = build(), build(tile=(16, 14))
    assert tiled.spec.tiles == 1
    variables = plain.init(jax.random.key(0))
    expected, found = (
        inference.infer(m, defenses.none(), variables, jax.random.key(0), IMAGES)
        for m in (plain, tiled)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_main_sees_every_tile_alone_and_the_head_all_of_them():
    model = build(tile=(8, 7))
    variables = model.init(jax.random.key(0))
    assert model.spec.grid == (2, 2)
    assert model.spec.activation_shape == (8, 7, 4)
    assert variables["post"]["params"]["head"]["fc"]["kernel"].shape == (4 * 32, 6)
    rows = model.pre(variables["pre"], IMAGES)
    whole = build().pre(variables["pre"], IMAGES)
    np.testing.assert_allclose(rows[4:8], whole[:, :8, 7:], rtol=1e-6)  # tile 1 of each image
    logits = inference.infer(model, defenses.none(), variables, jax.random.key(0), IMAGES)
    swapped = model.post(variables["post"], model.main(variables["main"], rows[::-1])[::-1])
    np.testing.assert_allclose(swapped, logits, atol=1e-5)


def test_a_group_never_holds_two_tiles_of_an_image():
    model, defense = build(tile=(8, 7)), defenses.facemix(group_size=4, shuffle=False)
    variables = model.init(jax.random.key(0))
    seen = inference.trace(model, defense, variables, jax.random.key(0), IMAGES)
    owner = jnp.arange(16) % 4  # rows of a group belong to four images
    assert (jnp.sort(owner.reshape(4, 4), 1) == jnp.arange(4)[None]).all()
    matrix = seen.secret.matrix
    assert matrix.shape == (4, 4, 4)
    assert jnp.abs(matrix[0] - matrix[1]).max() > 0.1


def test_the_signed_stem_sends_both_signs():
    for stem, signed in (("pool", False), ("signed", True)):
        model = build(stem=stem)
        variables = model.init(jax.random.key(0))
        assert model.spec.activation_shape == (16, 14, 4)
        sent, _ = model.pre.train(variables["pre"], IMAGES)
        assert bool((sent < 0).any()) == signed


@pytest.mark.library_promotes
def test_tiles_train_through_the_encryption_aware_step():
    model = build(tile=(8, 7), stem="signed", centre=True)
    defense = defenses.build(
        defenses.DefenseConfig(group_size=2, noise=0.5, scatter=True), tiles=model.spec.tiles
    )
    config = training.TrainConfig(batch_size=4, learning_rate=3e-3, flip=False)
    state = training.init_state(model, config, 20)
    step = training.make_train_step(model, defense, config, 20)
    images = np.random.default_rng(0).integers(0, 256, (4, *SIZE, 3), np.uint8)
    before = np.asarray(state.variables["post"]["params"]["head"]["fc"]["kernel"])
    state, info = step(state, images, np.ones((4, 3), np.int8))
    state, info = step(state, images, np.ones((4, 3), np.int8))  # the first has a rate of zero
    after = np.asarray(state.variables["post"]["params"]["head"]["fc"]["kernel"])
    assert np.isfinite(float(info.loss))
    moved = np.abs(after - before).reshape(model.spec.tiles, -1).max(1)
    assert (moved > 1e-6).all(), "every tile's features are learned from"


def test_tiles_cost_what_all_of_them_cost():
    plain, tiled = (costs.model_cost(build(tile=t), group_size=8) for t in (None, (8, 7)))
    assert tiled.pre.macs == plain.pre.macs
    assert tiled.mixing_macs == plain.mixing_macs  # 4 tiles fill the map exactly
    assert tiled.up_bytes == plain.up_bytes
    assert tiled.down_bytes == 4 * plain.down_bytes
    assert tiled.post.macs == 4 * plain.post.macs


@pytest.mark.parametrize("tile", [(17, 7), (8, 15)])
def test_a_tile_larger_than_the_map_is_refused(tile):
    with pytest.raises(UsageError, match="16x14"):
        build(tile=tile)


def test_a_tile_of_nothing_is_refused():
    with pytest.raises(UsageError, match="tile_width is 0"):
        ModelConfig(tile=(3, 0))


def test_scatter_without_tiles_is_refused():
    with pytest.raises(UsageError, match="--tile"):
        defenses.build(defenses.DefenseConfig(scatter=True))
