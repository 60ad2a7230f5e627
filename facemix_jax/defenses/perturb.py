"""The paper's hand-crafted baselines: Gaussian noise and blurring of what is sent (section 4).

Nobody undoes them: the owner works with the perturbed rows, and sees no more than the cloud does.
They are meant for the image itself (cut 0), but take activations of any cut.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from facemix_jax import _validate
from facemix_jax._types import Array, HostArray, RngKey
from facemix_jax.defenses.base import Defense, DefenseCost


def noise(*, variance: float) -> Defense:
    """Adds independent ``N(0, variance)`` to every element, in the units of what is sent.

    The paper's N(0, 4) and N(0, 8) do not say of which units: read here as variances in
    ImageNet-normalised ones. Read as standard deviations they are the variances 16 and 64.

    Args:
        variance: of the noise; at cut 0 a pixel's own variance is about 1.

    Raises:
        UsageError: the variance is not positive.
    """
    _validate.positive(variance=variance)
    deviation = math.sqrt(variance)

    def init(rng_key: RngKey, batch_size: int, training: bool) -> RngKey:
        return rng_key

    def protect(secret: RngKey, z: Array) -> Array:
        return z + deviation * jax.random.normal(secret, z.shape, z.dtype)

    return Defense("noise", 1, init, protect, _as_it_is, lambda z, y: DefenseCost(0, 0), False)


def blur(*, size: int) -> Defense:
    """Averages areas down to ``size`` x ``size`` positions, then enlarges bilinearly.

    Args:
        size: positions a side that are left: 16 or 8 in the paper.

    Raises:
        UsageError: the size is not positive; when used, that a map is smaller.
    """
    _validate.positive(size=size)

    def init(rng_key: RngKey, batch_size: int, training: bool) -> tuple[()]:
        return ()

    def protect(secret: tuple[()], z: Array) -> Array:
        if min(z.shape[1:3]) < size:
            raise _validate.UsageError(
                f"blur_size is {size}, but what is sent has {z.shape[1]} x {z.shape[2]} positions. "
                f"Choose a smaller blur_size, or an earlier cut."
            )
        rows, columns = (jnp.asarray(area_weights(n, size), z.dtype) for n in z.shape[1:3])
        averages = jnp.einsum("ih,bhwc,jw->bijc", rows, z, columns, precision="highest")
        return jax.image.resize(averages, z.shape, "bilinear")

    def cost(activation_elements: int, response_elements: int) -> DefenseCost:
        # Each element enters one average in either direction, and is made of four averages.
        return DefenseCost(6 * activation_elements, 0)

    return Defense("blur", 1, init, protect, _as_it_is, cost, False)


def area_weights(length: int, size: int) -> HostArray:
    """Weights ``[size, length]`` of averages over ``size`` equal stretches of an axis.

    A position on the border of two stretches counts in both, by the part that lies there.

    Example:
        >>> area_weights(3, 2)
        array([[0.66666667, 0.33333333, 0.        ],
               [0.        , 0.33333333, 0.66666667]])
    """
    borders = np.linspace(0, length, size + 1)
    positions = np.arange(length)
    ends = np.minimum(borders[1:, None], positions + 1)
    overlap = np.clip(ends - np.maximum(borders[:-1, None], positions), 0, None)
    return overlap * (size / length)


def _as_it_is(secret: object, x: Array) -> Array:
    return x
