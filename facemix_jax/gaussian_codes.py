"""Codes that look the same after a rotation: what training adds so that mixing could hide them.

Blind separation finds the matrix of a group because single activations (codes) are not Gaussian:
rotate them, and they look different. Codes that are jointly Gaussian with equal covariance and mean
zero have rotations of exactly their own distribution, and nobody could tell which one was applied.
Two terms bring codes nearer to that: the negentropy of their gradients, on which gradient ICA
feeds, and the advantage of a discriminator that learns to tell single codes from mixed ones.

Codes of a network have a mean that all share. The negentropy is of what deviates from it, and the
discriminator need not drive it to zero. Mixture ``k`` holds the mean times the sum of row ``k`` of
the matrix. Whoever has codes of other images knows the mean, estimates these sums, and with them,
the matrix being orthogonal, the sum of the group's codes. The rotations left to guess are those
that keep it.

Gram matrices and row spaces of a group are what they were: an orthogonal matrix keeps them,
whatever the distribution.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from facemix_jax import mixing
from facemix_jax._types import Array, RngKey

_ODD, _EVEN = 36 / (8 * math.sqrt(3) - 9), 24 / (16 * math.sqrt(3) - 27)
"""Hyvarinen (1998), equation 23: factors of the two terms, in nats."""

_SLICES = 16
"""Random directions, besides the axes."""

_CHANNELS = 32
"""Of the discriminator's layers."""

_TINY = 1e-6

Discriminator = dict[str, Array]
"""Kernels, biases and the weights of the last layer, by name."""


def sliced_negentropy(samples: Array, rng_key: RngKey, *, slices: int = _SLICES) -> Array:
    """How far samples are from Gaussian, along the axes and along random directions.

    At every position the samples are brought to mean 0 and deviation 1 along each direction, so
    that a scale that all examples share counts for nothing: a rotation of examples keeps it, and
    it tells nothing of the rotation. Then, over examples and positions together,

        J = 36 / (8 sqrt(3) - 9) E[y exp(-y^2 / 2)]^2
            + 24 / (16 sqrt(3) - 27) (E[exp(-y^2 / 2)] - sqrt(1 / 2))^2

    (Hyvarinen 1998, "New approximations of differential entropy for independent component analysis
    and projection pursuit", equations 22 and 23), averaged over directions. It is 0 for Gaussian
    samples but for an error of the order of one over their number.

    Args:
        samples: float ``[N, P, D]``: examples, positions, numbers at a position.
        rng_key: draws the directions; consumed.
        slices: random directions besides the ``D`` axes; projections on them are sums of many
            numbers and nearer to Gaussian than these.

    Returns:
        float32 scalar, in nats: along the axes, .087 for Laplace samples (exactly: .072).

    Example:
        >>> keys = jax.random.split(jax.random.key(0), 3)
        >>> gaussian = jax.random.normal(keys[0], (256, 16, 4))
        >>> laplace = jax.random.laplace(keys[1], (256, 16, 4))
        >>> found = [float(sliced_negentropy(x, keys[2])) for x in (gaussian, laplace)]
        >>> found[0] < 0.001 < 0.01 < found[1]
        True
    """
    width = samples.shape[-1]
    drawn = jax.random.normal(rng_key, (width, slices))
    directions = jnp.concatenate([jnp.eye(width), drawn], axis=1)
    y = jnp.matmul(samples.astype(jnp.float32), directions, precision="highest")
    y = y - y.mean(0, keepdims=True)
    y = y * jax.lax.rsqrt((y**2).mean(0, keepdims=True) + _TINY)
    bell = jnp.exp(-(y**2) / 2)
    odd, even = (y * bell).mean((0, 1)), bell.mean((0, 1)) - math.sqrt(0.5)
    return (_ODD * odd**2 + _EVEN * even**2).mean()


def code_gradients(codes: Array, *, tiles: int = 1) -> Array:
    """First differences down and across at each position, as ``sliced_negentropy`` takes them.

    Args:
        codes: float ``[T * B, h, w, C]``, tile by tile.
        tiles: ``T``.

    Returns:
        ``[B, T * (h - 1) * (w - 1), 2 C]``.
    """
    corner = codes[:, :-1, :-1]
    both = jnp.concatenate([codes[:, 1:, :-1] - corner, codes[:, :-1, 1:] - corner], axis=3)
    by_tile = both.reshape(tiles, len(codes) // tiles, -1, both.shape[3])
    return by_tile.swapaxes(0, 1).reshape(len(codes) // tiles, -1, both.shape[3])


def init_discriminator(rng_key: RngKey, channels: int) -> Discriminator:
    """A discriminator of maps with ``C`` channels; it starts without an opinion."""
    first_key, second_key = jax.random.split(rng_key)

    def kernel(rng_key: RngKey, inputs: int) -> Array:
        return jax.random.normal(rng_key, (3, 3, inputs, _CHANNELS)) * math.sqrt(2 / (9 * inputs))

    return {
        "first": kernel(first_key, channels),
        "first_bias": jnp.zeros(_CHANNELS),
        "second": kernel(second_key, _CHANNELS),
        "second_bias": jnp.zeros(_CHANNELS),
        "last": jnp.zeros(_CHANNELS),
        "last_bias": jnp.zeros(()),
    }


def judge(discriminator: Discriminator, codes: Array) -> Array:
    """Logits ``[B]`` of codes ``[B, h, w, C]`` being single: two convolutions and an average."""
    x = codes
    for name, stride in (("first", 1), ("second", 2)):
        x = jax.lax.conv_general_dilated(
            x,
            discriminator[name].astype(x.dtype),
            (stride, stride),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        x = jax.nn.leaky_relu(x + discriminator[f"{name}_bias"].astype(x.dtype), 0.2)
    pooled = x.mean((1, 2), dtype=jnp.float32)
    last = discriminator["last"]
    return jnp.matmul(pooled, last, precision="highest") + discriminator["last_bias"]


def advantage(
    discriminator: Discriminator, codes: Array, rng_key: RngKey, *, group_size: int
) -> Array:
    """How much better than by guessing single codes are told from mixed ones.

    The same codes are mixed in groups under fresh Haar matrices, without the defence's noise,
    and all are brought to the scale that they share.

    Args:
        discriminator: see ``init_discriminator``.
        codes: float ``[B, h, w, C]``.
        rng_key: draws the matrices; consumed.
        group_size: ``M``, which divides ``B``.

    Returns:
        float32 scalar, in nats: log 2 minus the cross-entropy; at most log 2, which is certainty.
    """
    mix_key = mixing.sample_mix_key(rng_key, len(codes) // group_size, group_size, shuffle=False)
    both = jnp.concatenate([codes, mixing.mix(mix_key, codes)])
    logits = judge(discriminator, both / (jnp.std(codes) + _TINY))
    single = jnp.arange(len(both)) < len(codes)
    return math.log(2) - optax.sigmoid_binary_cross_entropy(logits, single).mean()


OPTIMIZER = optax.adam(2e-3, b1=0.5)
"""The discriminator's."""


def improve(
    discriminator: Discriminator,
    opt_state: Any,
    codes: Array,
    rng_key: RngKey,
    *,
    group_size: int,
) -> tuple[Discriminator, Any]:
    """One step of the discriminator; arguments as those of ``advantage``."""
    loss = functools.partial(advantage, group_size=group_size)
    slope = jax.grad(lambda d: -loss(d, jax.lax.stop_gradient(codes), rng_key))(discriminator)
    change, opt_state = OPTIMIZER.update(slope, opt_state)
    return optax.apply_updates(discriminator, change), opt_state


def penalty(
    codes: Array,
    discriminator: Discriminator | None,
    rng_key: RngKey,
    *,
    negentropy_weight: float,
    discriminator_weight: float,
    group_size: int,
    tiles: int = 1,
) -> Array:
    """What training adds to the loss of pre.

    Args:
        codes: float ``[T * B, h, w, C]``, tile by tile, before protection.
        discriminator: None where ``discriminator_weight`` is 0.
        rng_key: consumed.
        negentropy_weight: of the sliced negentropy of the codes' gradients; 0 leaves it out.
        discriminator_weight: of the discriminator's advantage. Below zero the discriminator is
            wrong, and would be right with its sign turned: that is no gain, and counts as zero.
        group_size: ``M``.
        tiles: ``T``.

    Returns:
        float32 scalar.
    """
    slice_key, mix_rng_key = jax.random.split(rng_key)
    added = jnp.zeros(())
    if negentropy_weight:
        found = sliced_negentropy(code_gradients(codes, tiles=tiles), slice_key)
        added = added + negentropy_weight * found
    if discriminator is not None:
        found = advantage(discriminator, codes, mix_rng_key, group_size=group_size)
        added = added + discriminator_weight * jnp.maximum(found, 0.0)
    return added
