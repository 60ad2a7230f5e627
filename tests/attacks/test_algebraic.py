import jax
import numpy as np
import pytest
from attack_support import make_target, run

from facemix_jax import mixing
from facemix_jax._validate import UsageError
from facemix_jax.attacks import algebraic


def mixed(images, seed=0):
    """``[M, P]`` under a Haar matrix, as float32 arithmetic sends it; and the matrix."""
    key = mixing.sample_mix_key(jax.random.key(seed), 1, len(images), shuffle=False)
    return np.asarray(mixing.mix(key, images)), np.asarray(key.matrix[0])


def faces(count, shape=(9, 7, 3), seed=0):
    """Positive maps with a large common part, which makes them hard to tell apart."""
    rng = np.random.default_rng(seed)
    common = rng.uniform(1, 2, shape)
    return (common + 0.2 * rng.normal(size=(count, *shape))).astype(np.float32)


def test_gram_matrix_over_positions_is_that_of_the_images():
    images = faces(6)
    mixtures, _ = mixed(images[:4])
    assert algebraic.gram_residual(mixtures, images[:4]) < 1e-5
    assert algebraic.gram_residual(mixtures, images[[3, 1, 0, 2]]) < 1e-5
    assert algebraic.gram_residual(mixtures, images[[0, 1, 2, 5]]) > 0.01
    flat = (x.reshape(len(x), -1).astype(np.float64) for x in (mixtures, images[1:5]))
    c, x = flat
    direct = np.linalg.norm(c.T @ c - x.T @ x) / np.linalg.norm(c.T @ c)
    assert algebraic.gram_residual(mixtures, images[1:5]) == pytest.approx(direct, rel=1e-6)


def test_members_and_their_combinations_lie_in_the_row_space():
    images = faces(8)
    mixtures, _ = mixed(images[:4])
    residuals = algebraic.span_residuals(mixtures, images)
    assert residuals[:4].max() < 1e-5
    assert residuals[4:].min() > 0.05
    assert algebraic.span_residuals(mixtures, images[:1] - 2 * images[1:2]).max() < 1e-5
    assert algebraic.span_residuals(mixtures, np.zeros_like(images[:1])) == [0]


def test_row_space_of_repeated_pictures_holds_no_noise_direction():
    images = faces(4)
    mixtures, _ = mixed(images[[0, 1, 1, 1]])
    assert algebraic.span_residuals(mixtures, images).round(4).tolist()[:2] == [0, 0]
    assert algebraic.span_residuals(mixtures, images)[2:].min() > 0.05


@pytest.mark.parametrize("number", [1, 3, 4])
def test_known_members_give_their_columns(number):
    images = faces(4)
    mixtures, matrix = mixed(images)
    columns = algebraic.known_columns(mixtures, images[:number])
    np.testing.assert_allclose(columns, matrix[:, :number], atol=1e-4)
    wrong = algebraic.known_columns(mixtures, faces(number, seed=1))
    assert np.abs(wrong - matrix[:, :number]).max() > 0.05


def test_without_known_members_the_others_are_left_mixed_orthogonally():
    images = faces(5)
    mixtures, matrix = mixed(images)
    rest = algebraic.without_known(mixtures, matrix[:, :3])
    assert rest.shape == (2, 9, 7, 3)
    assert algebraic.gram_residual(rest, images[3:]) < 1e-5


def test_the_last_unknown_member_needs_no_statistics():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(1, 4, 9, 7, 3)).astype(np.float32)  # Gaussian: ICA finds nothing
    mixtures, _ = mixed(images[0])
    found = algebraic.recover_unknown(mixtures[None], images[:, :3], rng_key=jax.random.key(0))
    sign = np.sign((found * images[:, 3:]).sum())
    np.testing.assert_allclose(sign * found, images[:, 3:], atol=1e-3)


def test_a_known_batch_gives_any_matrix():
    images = faces(4)
    key = mixing.sample_mix_key(jax.random.key(1), 1, 4, family=mixing.gaussian, shuffle=False)
    found = algebraic.mixing_from_known(mixing.mix(key, images), images)
    np.testing.assert_allclose(found, key.matrix[0], atol=1e-4)


def test_a_picture_sent_twice_is_the_intersection():
    images = faces(7)
    first, _ = mixed(images[:4])
    second, _ = mixed(images[[4, 0, 5, 6]], seed=1)
    found, cosines = algebraic.shared_member(first, second)
    np.testing.assert_allclose(found, images[0], atol=2e-3)
    assert cosines[0] > 1 - 1e-6
    third, _ = mixed(images[4:], seed=2)
    assert algebraic.shared_member(first, third)[1][0] < 1 - 1e-3


def test_area_under_the_curve_counts_pairs():
    rng = np.random.default_rng(0)
    positive, negative = rng.normal(0.5, 1, 40), rng.normal(0, 1, 60)
    pairs = (positive[:, None] > negative).mean()
    assert algebraic.auc(positive, negative) == pytest.approx(pairs)
    assert algebraic.auc(negative, positive) == pytest.approx(1 - pairs)
    assert algebraic.true_positive_rate(negative, negative, 0.1) == pytest.approx(0.1, abs=0.02)


def test_maps_of_different_shapes_are_an_error():
    with pytest.raises(UsageError, match="one shape"):
        algebraic.span_residuals(np.zeros((4, 5, 5, 1)), np.zeros((2, 5, 4, 1)))


def test_candidates_are_told_from_others():
    figures, _ = run(algebraic.SPAN)
    area, rate = figures.values()
    assert area.value == rate.value == 1
    assert area.chance < area.floor <= 1


def test_span_works_where_every_example_stands_alone():
    figures, _ = run(algebraic.SPAN, group_size=1)
    assert all(figure.value == figure.owner == 1 for figure in figures.values())


@pytest.mark.slow
def test_known_plaintext_reports_every_number_known():
    figures, _ = run(algebraic.KNOWN_PLAINTEXT)
    assert len(figures) == 3
    last = figures["mean |correlation| of the unknown pictures, 3 of 4 known"]
    assert last.floor < 0.98 < 0.9999 < last.value


@pytest.mark.parametrize("attack", [algebraic.REUSED_KEY, algebraic.INTERSECTION])
def test_what_is_used_twice_is_open(attack):
    (figure,) = run(attack)[0].values()
    assert figure.floor < 0.98 < 0.999 < figure.value


def test_without_groups_there_is_nothing_to_solve():
    for attack in (algebraic.KNOWN_PLAINTEXT, algebraic.REUSED_KEY, algebraic.INTERSECTION):
        assert "mixes nothing" in attack.unsuitable(make_target(group_size=1))
