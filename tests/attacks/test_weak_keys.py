import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attack_support import PatchworkSource, make_target, run

from facemix_jax import data, defenses
from facemix_jax._validate import UsageError
from facemix_jax.attacks import weak_keys

DEFENSE = defenses.facemix(group_size=8)
SEEDS = (2**31 + 5, 2**31 + 700)
"""Beyond what a signed number holds."""


@pytest.fixture(scope="module")
def requests():
    """Two requests of one group each, under ``SEEDS``."""
    images = data.normalize(PatchworkSource().images(np.arange(16)))
    pairs = zip(SEEDS, images.reshape(2, 8, *images.shape[1:]), strict=True)
    return jnp.stack(
        [DEFENSE.protect(DEFENSE.init(jax.random.key(s), 8, True), x) for s, x in pairs]
    )


def test_the_seed_is_found_in_a_window_that_holds_it(requests):
    found = weak_keys.search_seeds(DEFENSE, requests, first_seed=2**31, num_seeds=1024)
    assert found.seed.tolist() == list(SEEDS)
    assert found.found.all()
    assert found.contrast.shape == (1024, 2)


def test_no_seed_is_found_in_a_window_without_it(requests):
    found = weak_keys.search_seeds(DEFENSE, requests, first_seed=2**31 + 701, num_seeds=1024)
    assert not found.found.any()
    assert found.outstanding.max() < 1.7


def test_only_the_request_of_a_found_seed_is_opened(requests):
    found = weak_keys.search_seeds(DEFENSE, requests, first_seed=2**31, num_seeds=512)
    assert found.found.tolist() == [True, False]


def test_a_secret_of_the_operating_system_is_not_found(requests):
    keys = pytest.importorskip("facemix_jax.keys")
    root = keys.RootSecret(bytes(range(32)))
    key = keys.fresh_mix_key(root, bytes(16), 2, 8, shuffle=False)
    images = data.normalize(PatchworkSource().images(np.arange(16)))
    sent = DEFENSE.protect(key, images).reshape(requests.shape)
    assert not weak_keys.search_seeds(DEFENSE, sent, num_seeds=512).found.any()


@pytest.mark.slow
def test_the_attack_opens_requests_of_small_seeds(monkeypatch):
    monkeypatch.setattr(weak_keys, "SEED_BITS", 9)
    figures, recovered = run(weak_keys.WEAK_RANDOMNESS, cut=0)
    correlation, share = figures.values()
    assert share.value == 1
    assert correlation.value == pytest.approx(1, abs=1e-5)
    assert correlation.floor < 0.95
    assert recovered.shape == (16, 64, 56, 3)


def test_windows_outside_of_32_bits_are_an_error(requests):
    with pytest.raises(UsageError, match="num_seeds"):
        weak_keys.search_seeds(DEFENSE, requests, first_seed=2**32 - 10, num_seeds=20)


def test_noise_does_not_keep_a_small_seed_from_being_searched():
    noisy = defenses.build(defenses.DefenseConfig(group_size=4, noise=0.1))
    target = dataclasses.replace(make_target(), defense=noisy)
    assert weak_keys.WEAK_RANDOMNESS.unsuitable(target) is None
    images = data.normalize(PatchworkSource().images(np.arange(4)))
    sent = noisy.protect(noisy.init(jax.random.key(77), 4, True), images)
    for first, found in ((64, True), (128, False)):
        search = weak_keys.search_seeds(noisy, sent[None], first_seed=first, num_seeds=64)
        assert search.found.tolist() == [found]
        assert (search.seed.tolist() == [77]) == found


def test_a_single_position_shows_no_seed():
    target = make_target()
    spec = dataclasses.replace(target.model.spec, activation_shape=(1, 1, 8))
    one = dataclasses.replace(target, model=target.model._replace(spec=spec))
    assert weak_keys.WEAK_RANDOMNESS.unsuitable(target) is None
    assert "a single position" in weak_keys.WEAK_RANDOMNESS.unsuitable(one)


def test_where_no_matrix_is_drawn_there_is_no_seed_to_find():
    assert "no seed" in weak_keys.WEAK_RANDOMNESS.unsuitable(make_target(group_size=1))
