"""The network that turns activations of a public pre-model back into images."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from facemix_jax._types import Array, ImageSize, RngKey, Variables
from facemix_jax.models.initialization import scaled_normal
from facemix_jax.models.pure import evaluate


class Decoder(NamedTuple):
    """Two pure functions.

    Attributes:
        init: ``(rng_key, z) -> variables``; ``z`` an array or ``jax.ShapeDtypeStruct``.
        apply: ``(variables, z) -> images``, ``[B, h, w, c]`` to float32 ``[B, H, W, 3]`` in [0, 1].
    """

    init: Callable[[RngKey, Any], dict[str, Any]]
    apply: Callable[[Variables, Array], Array]


class _Network(nn.Module):
    """Residual 3x3 convolutions at the activations' size, then pixels out of channels.

    All the work is done at the small size, and the last layer gives every position its block of
    pixels (Shi et al., 2016).

    Attributes:
        image_size: height, width of the images.
        features: channels.
        num_blocks: residual convolutions.
    """

    image_size: ImageSize
    features: int
    num_blocks: int

    @nn.compact
    def __call__(self, z: Array) -> Array:
        """``[B, h, w, c]`` to ``[B, H, W, 3]``."""

        def conv(features: int, name: str, scale: float = 2.0) -> nn.Conv:
            init = scaled_normal(scale, "in")
            return nn.Conv(features, (3, 3), padding=1, kernel_init=init, name=name)

        batch, height, width, _ = z.shape
        y = nn.relu(conv(self.features, "conv_in")(z))
        for index in range(self.num_blocks):
            # The branch starts small, so that depth does not raise the scale.
            y = y + 0.3 * nn.relu(conv(self.features, f"conv{index}")(y))
        rows, columns = -(-self.image_size[0] // height), -(-self.image_size[1] // width)
        y = conv(rows * columns * 3, "conv_out", 0.1)(y)
        y = y.reshape(batch, height, width, rows, columns, 3).transpose(0, 1, 3, 2, 4, 5)
        y = y.reshape(batch, height * rows, width * columns, 3)
        return nn.sigmoid(y[:, : self.image_size[0], : self.image_size[1]])


def decoder(image_size: ImageSize, *, features: int = 32, num_blocks: int = 3) -> Decoder:
    """A decoder for images of one size.

    Args:
        image_size: height, width.
        features: channels.
        num_blocks: residual convolutions.
    """
    network = _Network(image_size=image_size, features=features, num_blocks=num_blocks)

    def init(rng_key: RngKey, z: Any) -> dict[str, Any]:
        return dict(network.lazy_init(rng_key, jax.ShapeDtypeStruct(z.shape, jnp.float32)))

    def apply(variables: Variables, z: Array) -> Array:
        return evaluate(network, variables, z)

    return Decoder(init, apply)
