import dataclasses

import jax
import numpy as np
import pytest
from attack_support import make_recording, make_target

from facemix_jax import attacks, data, defenses
from facemix_jax.attacks import algebraic, groups
from facemix_jax.attacks.base import by_group, truth_by_group
from facemix_jax.defenses import DefenseConfig


@pytest.mark.parametrize("shuffled", [False, True])
def test_rows_of_a_group_lie_side_by_side(shuffled):
    recording = make_recording(shuffled=shuffled)
    sent = by_group(recording.view.mixtures, recording)
    truth = truth_by_group(recording.activations, recording)
    for mixtures, members in zip(sent, truth, strict=True):
        assert algebraic.gram_residual(mixtures, members) < 1e-4


def test_order_puts_every_source_beside_its_truth():
    truth = np.random.default_rng(0).normal(size=(3, 4, 6, 5, 2))
    shuffled = -truth[:, [2, 0, 3, 1]]
    found = groups.in_order(shuffled, groups.match(shuffled, truth))
    np.testing.assert_array_equal(found, -truth.reshape(12, 6, 5, 2))


def test_correlation_ignores_sign_scale_and_offset():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(4, 6, 5))
    np.testing.assert_allclose(groups.correlation(3 - 2 * rows, rows), 1)
    reference = np.abs(np.corrcoef(rows.reshape(4, -1)))
    np.testing.assert_allclose(groups.correlations(rows, rows), reference)
    assert groups.correlation(np.ones((1, 6, 5)), rows[:1]) == [0]
    assert groups.matched(rows[[2, 0]], rows).tolist() == pytest.approx([1, 1])


class LightSource:
    """Pictures of which the larger excursion is below: few black spots on a lighter ground."""

    def __init__(self, source) -> None:
        self._source = source
        self.image_size, self.splits = source.image_size, source.splits
        self.attributes, self.identities = source.attributes, source.identities

    def images(self, indices):
        images = self._source.images(indices)
        return np.where(images > 240, 10, 120 + images // 6).astype(np.uint8)


def test_signs_come_from_the_attackers_own_images():
    target = make_target(cut=0)
    recording = make_recording(cut=0)
    found = groups.unmix(target, recording, rng_key=jax.random.key(0))
    truth = truth_by_group(recording.activations, recording)
    in_order = groups.in_order(found.sources, groups.match(found.sources, truth))
    assert ((in_order * np.asarray(recording.activations)).sum((1, 2, 3)) > 0).mean() > 0.8
    again = np.einsum(
        "gij,gj...->gi...", found.unmixing, by_group(recording.view.mixtures, recording)
    )
    np.testing.assert_allclose(again, found.sources, atol=1e-4)


def test_sources_of_a_matrix_that_is_not_orthogonal_are_as_large_as_the_attackers_own_images():
    """Within a factor of two; rows of unit length alone leave sizes four times too small."""
    defense = defenses.facemix(group_size=4, family="conditioned", condition=10.0)
    target = dataclasses.replace(make_target(cut=0), defense=defense)
    recording = attacks.record(target, target.source.splits["test"][:16], rng_key=jax.random.key(3))
    found = groups.unmix(target, recording, rng_key=jax.random.key(0))
    truth = truth_by_group(recording.activations, recording)
    in_order = groups.in_order(found.sources, groups.match(found.sources, truth))
    sizes, true = (
        np.sqrt((np.asarray(x) ** 2).mean((1, 2, 3))) for x in (in_order, recording.activations)
    )
    assert 0.5 < (sizes / true).min() < (sizes / true).max() < 2
    again = np.einsum(
        "gij,gj...->gi...", found.unmixing, by_group(recording.view.mixtures, recording)
    )
    np.testing.assert_allclose(again, found.sources, atol=1e-4)


def test_signs_of_light_pictures_are_right_where_excursions_are_not():
    target = make_target(cut=0)
    target = dataclasses.replace(target, source=LightSource(target.source))
    recording = attacks.record(target, target.source.splits["test"][:16], rng_key=jax.random.key(3))
    truth = truth_by_group(recording.activations, recording)
    found = groups.unmix(target, recording, rng_key=jax.random.key(0)).sources
    bare = attacks.separate(
        by_group(recording.view.mixtures, recording), rng_key=jax.random.key(0)
    ).sources
    right, without = (
        (
            (groups.in_order(s, groups.match(s, truth)) * np.asarray(recording.activations)).sum(
                (1, 2, 3)
            )
            > 0
        ).mean()
        for s in (found, bare)
    )
    assert right > 0.9
    assert without < right - 0.1


def test_activations_are_those_of_the_public_model():
    target, recording = make_target(), make_recording()
    made = groups.activations(target, recording.images)
    np.testing.assert_allclose(made, recording.activations, atol=1e-5)
    assert groups.auxiliary_activations(target, 5).shape[0] == 5
    assert data.normalize(recording.images).dtype == np.float32


def test_maps_of_a_single_position_are_separated_by_their_channels():
    """Channels of three rows are sparse, so that their mixtures can be told from them."""
    truth = np.random.default_rng(0).laplace(size=(2, 3, 1, 1, 400)).astype(np.float32) ** 3
    mixtures = np.asarray(jax.random.orthogonal(jax.random.key(0), 3, (2,)) @ truth[:, :, 0, 0])
    mixtures = mixtures.reshape(truth.shape)
    recording = make_recording()._replace(groups=np.repeat(np.arange(2), 3))
    view = dataclasses.replace(
        recording.view, mixtures=mixtures.reshape(6, *truth.shape[2:]), group_size=3
    )
    found = groups.unmix(
        make_target(), recording._replace(view=view), rng_key=jax.random.key(1)
    ).sources
    assert found.shape == truth.shape
    assert np.mean([groups.matched(s, t) for s, t in zip(found, truth, strict=True)]) > 0.98
    unknown = algebraic.recover_unknown(mixtures, truth[:, :1], rng_key=jax.random.key(1))
    assert unknown.shape == (2, 2, 1, 1, 400)
    for rows, members in zip(unknown, truth[:, 1:], strict=True):
        assert groups.matched(rows, members).mean() > 0.98


def test_gradient_ica_is_left_where_something_stays_that_it_is_weak_against():
    exact = make_target()
    for layer, rehearses in (
        ({}, False),
        ({"clouds": 2}, False),
        ({"noise": 0.5}, True),
        ({"blinding": 0.5}, True),
        ({"wire": "int4"}, True),
        ({"noise": 0.5, "clouds": 4}, False),  # single rows
    ):
        defense = defenses.build(DefenseConfig(group_size=4, **layer))
        assert groups.rehearses(dataclasses.replace(exact, defense=defense)) == rehearses, layer


@pytest.mark.parametrize("layer", [{"blinding": 0.5}, {"noise": 0.5}])
def test_the_noise_reckoned_with_is_the_one_in_what_is_seen(layer):
    target = dataclasses.replace(
        make_target(), defense=defenses.build(DefenseConfig(group_size=4, **layer))
    )
    rows = target.source.splits["train"][:16]
    own = attacks.record(target, rows, rng_key=jax.random.key(3))
    seen, truth = (
        np.asarray(x).reshape(4, 4, -1).astype(np.float64)
        for x in (by_group(own.view.mixtures, own), truth_by_group(own.activations, own))
    )
    # What no mixture of the members explains, over how much of them is in a row.
    matrix = seen @ np.linalg.pinv(truth)
    true = (seen - matrix @ truth).std() / np.sqrt((matrix**2).sum(2).mean())
    assert groups.noise_of(target, jax.random.key(3)) == pytest.approx(true, rel=0.03)
