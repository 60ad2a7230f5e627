"""Drawn pictures for tests of separation, and their mixtures."""

import jax
import jax.numpy as jnp
import numpy as np

from facemix_jax import mixing


def patchwork(seed, num_groups, group_size, height=40, width=32, channels=3):
    """Overlapping rectangles of one colour: sparse gradients, like photographs.

    Most tests take 4 groups of 4 or of 8, so that the attack compiles few times.
    """
    rng = np.random.default_rng(seed)
    images = np.zeros((num_groups * group_size, height, width, channels), np.float32)
    for image in images:
        for _ in range(12):
            top, left = rng.integers(0, height - 4), rng.integers(0, width - 4)
            bottom, right = top + rng.integers(4, height), left + rng.integers(4, width)
            image[top:bottom, left:right] = rng.normal(size=channels)
    return jnp.asarray(images.reshape(num_groups, group_size, height, width, channels))


def mixed(truth, family=mixing.haar, seed=3):
    """``[G, M, ...]`` mixed within groups, and the key."""
    key = mixing.sample_mix_key(
        jax.random.key(seed), truth.shape[0], truth.shape[1], family=family, shuffle=False
    )
    return jax.vmap(mixing.mix_group)(key.matrix, truth), key
