"""Gaussian noise on what is sent, on top of any defence."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from facemix_jax._types import Array, RngKey
from facemix_jax._validate import positive
from facemix_jax.defenses.base import Defense, unless_none
from facemix_jax.mixing import MixKey


class NoisySecret(NamedTuple):
    """A defence's secret, and what draws the noise.

    Attributes:
        inner: the defence's own.
        noise_key: a JAX key; the edge need not keep it.
    """

    inner: Any
    noise_key: RngKey


def with_noise(defense: Defense, noise: float) -> Defense:
    """Adds noise to whatever ``defense`` sends; the owner recovers signal and noise.

    Args:
        defense: mixes or not.
        noise: standard deviation, in units of that of the request's protected values, so that a
            network cannot escape by sending larger ones.

    Raises:
        UsageError: ``noise`` is not positive.
    """
    positive(noise=noise)

    def init(rng_key: RngKey, batch_size: int, training: bool) -> NoisySecret:
        inner_key, noise_key = jax.random.split(rng_key)
        return NoisySecret(defense.init(inner_key, batch_size, training), noise_key)

    def protect(secret: NoisySecret, z: Array) -> Array:
        sent = defense.protect(secret.inner, z)
        wide = sent.astype(jnp.float32)
        drawn = jax.random.normal(secret.noise_key, sent.shape)
        return (wide + noise * jnp.std(wide) * drawn).astype(sent.dtype)

    def recover(secret: NoisySecret, y: Array) -> Array:
        return defense.recover(secret.inner, y)

    name = unless_none(defense.name, "noise")
    return defense._replace(name=name, init=init, protect=protect, recover=recover, exact=False)


def mix_key_of(secret: Any) -> MixKey | None:
    """The mix key in a defence's secret, or None where nothing is mixed."""
    if isinstance(secret, NoisySecret):
        return mix_key_of(secret.inner)
    return secret if isinstance(secret, MixKey) else None
