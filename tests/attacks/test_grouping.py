import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pictures import mixed, patchwork

from facemix_jax._validate import UsageError
from facemix_jax.attacks import grouping

RNG_KEY = jax.random.key(5)


def shuffled(seed, num_groups, group_size, **sizes):
    """Mixtures ``[B, H, W, C]`` in random order, and the group of each."""
    mixtures, _ = mixed(patchwork(seed, num_groups, group_size, **sizes))
    order = np.random.default_rng(seed).permutation(num_groups * group_size)
    return mixtures.reshape(-1, *mixtures.shape[2:])[order], order // group_size


@pytest.mark.parametrize(("num_groups", "group_size"), [(12, 8), (16, 4), (20, 2)])
def test_shuffled_mixtures_are_regrouped(num_groups, group_size):
    sent, groups = shuffled(0, num_groups, group_size)
    found = grouping.regroup(sent, group_size, rng_key=RNG_KEY)
    assert (np.bincount(found) == group_size).all()
    # A pair may hardly be mixed at all, and then nothing ties its two rows together.
    wanted = 1.0 if group_size > 2 else 0.8
    assert grouping.match_groups(found, groups).share_right >= wanted


def test_noise_without_images_is_grouped_at_random():
    sent = jax.random.normal(jax.random.key(1), (64, 24, 24, 3))
    groups = np.random.default_rng(0).permutation(64) // 8
    found = grouping.balanced_groups(grouping.similarity(sent), 8)
    # A random grouping gets 0.28 right; its standard deviation is 0.03.
    assert grouping.match_groups(found, groups).share_right < 0.4


def test_directions_tell_groups_apart_better_than_energies():
    sent, groups = shuffled(1, 24, 8)
    same = groups[:, None] == groups
    other = ~same
    np.fill_diagonal(same, False)
    energy = grouping.gradient_vectors(sent)
    maps = np.log((np.asarray(energy) ** 2).sum(2) + 1e-6)
    energies = np.corrcoef(maps - maps.mean(0))

    def gap(similarity):
        return (similarity[same].mean() - similarity[other].mean()) / similarity[other].std()

    assert gap(grouping.similarity(sent)) > 1.2 * gap(energies) > 2


def test_order_and_sign_of_rows_do_not_matter():
    sent, _ = shuffled(2, 6, 4)
    agreement = grouping.similarity(sent)
    order = np.random.default_rng(1).permutation(24)
    signs = jnp.asarray(np.where(order % 2, 1.0, -1.0), jnp.float32).reshape(-1, 1, 1, 1)
    changed = grouping.similarity(sent[order] * signs)
    np.testing.assert_allclose(changed, agreement[np.ix_(order, order)], atol=1e-4)
    np.testing.assert_allclose(np.diag(agreement), 1, atol=1e-4)


def test_wide_maps_are_reduced_to_their_axes():
    sent, groups = shuffled(3, 12, 8, channels=16)
    found = grouping.regroup(sent, 8, rng_key=RNG_KEY)
    assert grouping.match_groups(found, groups).share_right == 1


def test_blank_mixtures_stay_finite():
    sent = shuffled(4, 4, 4)[0].at[3].set(0.0)
    agreement = grouping.similarity(sent)
    assert np.isfinite(agreement).all()
    assert (np.bincount(grouping.balanced_groups(agreement, 4)) == 4).all()


def planted(seed, num_groups, group_size, noise):
    """A similarity with groups in it, and the groups."""
    rng = np.random.default_rng(seed)
    groups = rng.permutation(num_groups * group_size) // group_size
    errors = rng.normal(0, noise, (len(groups),) * 2)
    return (groups[:, None] == groups) + (errors + errors.T) / 2**0.5, groups


@pytest.mark.parametrize("seed", range(5))
def test_groups_have_equal_size_and_no_exchange_helps(seed):
    similarity, _ = planted(seed, 8, 4, 0.6)
    found = grouping.balanced_groups(similarity, 4)
    assert (np.bincount(found) == 4).all()

    def inside(groups):
        same = groups[:, None] == groups
        np.fill_diagonal(same, False)
        return similarity[same].sum()

    best = inside(found)
    for a in range(32):
        for b in range(a):
            swapped = found.copy()
            swapped[[a, b]] = found[[b, a]]
            assert inside(swapped) <= best + 1e-3


def test_size_limits_help_where_plain_linkage_fails():
    from scipy.cluster.hierarchy import fcluster, linkage

    scores = []
    for seed in range(5):
        similarity, groups = planted(seed, 32, 8, 0.45)
        distance = (similarity.max() - similarity)[np.triu_indices(256, 1)]
        linked = fcluster(linkage(distance, "average"), 32, "maxclust") - 1
        found = grouping.balanced_groups(similarity, 8)
        scores.append([grouping.match_groups(g, groups).share_right for g in (found, linked)])
    balanced, plain = np.mean(scores, 0)
    assert balanced > 0.97
    assert balanced > plain + 0.02


def test_matching_of_groups_ignores_their_numbers():
    match = grouping.match_groups(np.array([2, 2, 0, 0, 1, 1]), np.array([0, 0, 1, 1, 2, 1]))
    assert match.share_right == pytest.approx(5 / 6)
    assert match.truth_of.tolist() == [1, 2, 0]


def test_wrong_input_is_an_error():
    with pytest.raises(UsageError, match="grouping needs"):
        grouping.similarity(jnp.zeros((4, 1, 8, 3)))
    with pytest.raises(UsageError, match="must be \\[B, B\\]"):
        grouping.balanced_groups(np.zeros((4, 3)), 2)
    with pytest.raises(UsageError, match="does not divide"):
        grouping.balanced_groups(np.zeros((4, 4)), 3)


def test_joint_ica_ties_rows_of_a_group():
    sent, groups = shuffled(5, 4, 4)
    ties = grouping.joint_similarity(sent, rng_key=RNG_KEY)
    found = grouping.balanced_groups(ties, 4)
    assert grouping.match_groups(found, groups).share_right == 1
