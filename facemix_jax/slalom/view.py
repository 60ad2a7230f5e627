"""What the cloud sees of the first layer, in the form that attacks take."""

import jax
import jax.numpy as jnp

from facemix_jax import _validate
from facemix_jax._types import Array, RngKey
from facemix_jax.defenses.base import Defense, DefenseCost
from facemix_jax.slalom.field import PRIME
from facemix_jax.slalom.network import QuantizedNetwork


def first_layer(network: QuantizedNetwork, *, group_size: int = 1) -> Defense:
    """The blinding of the first layer's input as a ``Defense`` of the image (cut 0).

    For attacks only: it shows them the very field elements that ``infer`` sends in its first
    round, drawn by JAX's generator, and lets the owner unblind them. The responses of the target's
    float main to such numbers mean nothing: Slalom's cloud never computes a whole main. So attacks
    on what is sent have their figures, attacks on responses have none.

    Args:
        network: in fixed point; its first layer reads images.
        group_size: rows that attacks by separation are told to treat as a group.

    Raises:
        UsageError: the prime is larger than float32 is exact, or the group is not positive.
    """
    _validate.positive(group_size=group_size)
    if network.prime > PRIME:
        raise _validate.UsageError(
            f"prime is {network.prime}, but attacks read float32, exact up to {PRIME}. Quantize "
            f"with a prime of at most {PRIME}."
        )
    prime, scale = jnp.int32(network.prime), network.layers[0].input_scale
    bound = network.activation_max

    def init(rng_key: RngKey, batch_size: int, training: bool) -> Array:
        shape = (batch_size, *network.layers[0].input_shape)
        return jax.random.randint(rng_key, shape, 0, prime, jnp.int32)

    def protect(secret: Array, z: Array) -> Array:
        levels = jnp.clip(jnp.rint(z / scale), -bound, bound).astype(jnp.int32)
        return ((levels + secret) % prime).astype(jnp.float32)

    def recover(secret: Array, sent: Array) -> Array:
        if sent.shape != secret.shape:  # responses of a main that Slalom does not have
            return sent
        levels = (sent.astype(jnp.int32) - secret) % prime
        levels = jnp.where(levels > prime // 2, levels - prime, levels)
        return levels.astype(jnp.float32) * scale

    return Defense("slalom", group_size, init, protect, recover, lambda z, y: DefenseCost(0, 0))
