"""Noise on what is sent."""

import jax
import numpy as np
import pytest

from facemix_jax import defenses, mixing
from facemix_jax._validate import UsageError

# 16 rows of 5,000 values: a standard deviation is known to 0.25% (one standard error).
Z = 3 + 2 * jax.random.normal(jax.random.key(0), (16, 25, 20, 10))


@pytest.mark.parametrize("inner", [defenses.none(), defenses.facemix(group_size=8)])
def test_noise_has_the_promised_size_for_the_cloud_and_for_the_owner(inner):
    noisy = defenses.with_noise(inner, 0.5)
    secret = noisy.init(jax.random.key(1), 16, False)
    clean, sent = inner.protect(secret.inner, Z), noisy.protect(secret, Z)
    assert abs(float((sent - clean).std() / clean.std()) / 0.5 - 1) < 0.02  # 8 standard errors
    owner = noisy.recover(secret, sent) - Z
    assert abs(float(owner.std() / clean.std()) / 0.5 - 1) < 0.02  # orthogonal mixing keeps it
    assert noisy.group_size == inner.group_size


def test_every_request_has_noise_of_its_own():
    noisy = defenses.with_noise(defenses.none(), 0.5)
    first, second = (
        noisy.protect(noisy.init(jax.random.key(seed), 16, False), Z) for seed in (1, 2)
    )
    assert np.abs(np.corrcoef((first - Z).ravel(), (second - Z).ravel())[0, 1]) < 0.02


def test_the_mix_key_is_found_inside():
    noisy = defenses.build(defenses.DefenseConfig(group_size=8, noise=0.1))
    secret = noisy.init(jax.random.key(1), 16, False)
    assert isinstance(defenses.mix_key_of(secret), mixing.MixKey)
    assert defenses.mix_key_of(()) is None


def test_no_noise_is_refused_where_noise_was_asked_for():
    with pytest.raises(UsageError, match="noise is 0"):
        defenses.with_noise(defenses.none(), 0.0)
