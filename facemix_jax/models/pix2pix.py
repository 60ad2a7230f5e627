"""Pix2Pix (Isola et al., 2017): a U-Net that draws images, and the PatchGAN that judges them.

Instance norm without scale and shift, as this project's other generator has. The original's
dropout, its source of noise, is left out: the attack that uses these networks is scored by its
mean squared error, which noise can only raise.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from facemix_jax import _validate
from facemix_jax._types import Array, ImageSize, RngKey, Variables
from facemix_jax.models.generators import instance_norm
from facemix_jax.models.pure import evaluate

_SMALLEST = 8
"""Pixels a side: below, the U-Net would have a single level."""

_WIDEST = 8
"""Deeper levels stop doubling at this many times the first one's channels."""

_KERNEL_INIT = nn.initializers.normal(0.02)


class Network(NamedTuple):
    """Two pure functions.

    Attributes:
        init: ``(rng_key, x) -> variables``; ``x`` an array or ``jax.ShapeDtypeStruct``.
        apply: ``(variables, x) -> y``.
    """

    init: Callable[[RngKey, Any], dict[str, Any]]
    apply: Callable[[Variables, Array], Array]


def unet_depth(image_size: ImageSize) -> int:
    """How often the U-Net halves images of this size: until a side has 4 to 7 positions.

    The original goes down to a single one; maps that small are slow on a CPU.

    Raises:
        UsageError: images under 8 pixels a side.

    Example:
        >>> unet_depth((109, 89)), unet_depth((256, 256))
        (4, 6)
    """
    smallest = min(image_size)
    if smallest < _SMALLEST:
        raise _validate.UsageError(
            f"image_size is {image_size[0]}x{image_size[1]} (height x width), but the U-Net needs "
            f"at least {_SMALLEST} pixels a side. Use larger images."
        )
    return smallest.bit_length() - 3


def _conv(features: int, size: int, stride: int, name: str) -> nn.Conv:
    return nn.Conv(
        features, (size, size), stride, padding="SAME", kernel_init=_KERNEL_INIT, name=name
    )


def _double(x: Array) -> Array:
    """Channels to positions: ``[B, H, W, 4 C]`` to ``[B, 2 H, 2 W, C]`` (Shi et al., 2016)."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, 2, 2, channels // 4).swapaxes(2, 3)
    return x.reshape(batch, 2 * height, 2 * width, channels // 4)


class UNet(nn.Module):
    """4x4 convolutions that halve, 3x3 ones that double, and skips between equal sizes.

    A 3x3 convolution with four times the channels, dealt out to positions, can do all that the
    original's transposed 4x4 convolution does, and trains five to twenty times faster on a CPU.

    Attributes:
        channels: of the images it draws.
        features: channels of the first level; doubled at each further one, up to eight times.
    """

    channels: int
    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """``[B, H, W, any]`` to ``[B, H, W, channels]`` in [-1, 1]; H and W at least 8.

        Sizes that cannot be halved so often are padded by their border, and cropped at the end.
        """
        height, width = x.shape[1:3]
        depth = unet_depth((height, width))
        down, right = -height % 2**depth, -width % 2**depth
        x = jnp.pad(x, ((0, 0), (0, down), (0, right), (0, 0)), mode="edge")
        widths = [self.features * min(2**level, _WIDEST) for level in range(depth)]
        skips = []
        for level, features in enumerate(widths):
            x = _conv(features, 4, 2, f"down{level}")(nn.leaky_relu(x, 0.2) if level else x)
            # The first level keeps the input's scale, and the last the strength of what is there.
            if 0 < level < depth - 1:
                x = instance_norm(x)
            skips.append(x)
        for level in reversed(range(depth)):
            if level < depth - 1:
                x = jnp.concatenate([x, skips[level]], axis=-1)
            features = widths[level - 1] if level else self.channels
            x = _double(_conv(4 * features, 3, 1, f"up{level}")(nn.relu(x)))
            if level:
                x = instance_norm(x)
        return jnp.tanh(x[:, :height, :width])


class PatchDiscriminator(nn.Module):
    """Judges every patch: three 4x4 convolutions that halve, two that do not.

    Attributes:
        features: channels of the first convolution.
    """

    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """``[B, H, W, any]``, condition and images stacked, to logits ``[B, H/8, W/8, 1]``."""
        for level, stride in enumerate((2, 2, 2, 1)):
            x = _conv(self.features * 2**level, 4, stride, f"conv{level}")(x)
            x = nn.leaky_relu(instance_norm(x) if level else x, 0.2)
        return _conv(1, 4, 1, "conv4")(x)


def unet(*, channels: int, features: int = 64) -> Network:
    """The generator; its input may have any number of channels.

    Args:
        channels: of the images it draws.
        features: channels of the first level.
    """
    return _pure(UNet(channels=channels, features=features))


def patch_discriminator(*, features: int = 64) -> Network:
    """The 70x70 PatchGAN.

    Args:
        features: channels of the first convolution.
    """
    return _pure(PatchDiscriminator(features=features))


def _pure(network: nn.Module) -> Network:
    def init(rng_key: RngKey, x: Any) -> dict[str, Any]:
        # Lazily and as one program: nothing but the parameters is computed.
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return dict(jax.jit(lambda k: network.lazy_init(k, shape))(rng_key))

    def apply(variables: Variables, x: Array) -> Array:
        return evaluate(network, variables, x)

    return Network(init, apply)
