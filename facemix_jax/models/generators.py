"""Image-to-image generators (Zhu et al., 2017): the face anonymizer's network of Table 2."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from facemix_jax._types import Array, RngKey, Variables
from facemix_jax.models.initialization import normal
from facemix_jax.models.pure import evaluate, wide_dtype

_KERNEL_INIT = normal(0.02)
UP_PADDING = ((1, 2), (1, 2))
"""PyTorch's padding 1 and output padding 1 of a 3x3 stride 2, seen from the output's side."""


class Generator(NamedTuple):
    """Two pure functions.

    Attributes:
        init: ``(rng_key, x) -> variables``; ``x`` an array or ``jax.ShapeDtypeStruct``.
        apply: ``(variables, x) -> y``, images in ``[-1, 1]`` to images in ``[-1, 1]``.
    """

    init: Callable[[RngKey, Any], dict[str, Any]]
    apply: Callable[[Variables, Array], Array]


def instance_norm(x: Array, epsilon: float = 1e-5) -> Array:
    """Centres and scales each channel of each example, ``[B, H, W, C]``; nothing is learnt.

    It computes in float32 at least and returns the dtype of ``x``.
    """
    wide = x.astype(wide_dtype(x))
    mean = jnp.mean(wide, axis=(1, 2), keepdims=True)
    variance = jnp.mean(jnp.square(wide - mean), axis=(1, 2), keepdims=True)
    return ((wide - mean) * jax.lax.rsqrt(variance + epsilon)).astype(x.dtype)


def _reflect_pad(x: Array, size: int) -> Array:
    return jnp.pad(x, ((0, 0), (size, size), (size, size), (0, 0)), mode="reflect")


def _conv(
    features: int, size: int, dtype: jnp.dtype, name: str, stride: int = 1, padding: int = 0
) -> nn.Conv:
    return nn.Conv(
        features,
        (size, size),
        stride,
        padding=padding,
        dtype=dtype,
        kernel_init=_KERNEL_INIT,
        name=name,
    )


class _ResidualBlock(nn.Module):
    """Two reflect-padded 3x3 convolutions with instance norm, added to the input."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = _conv(x.shape[-1], 3, self.dtype, "conv1")(_reflect_pad(x, 1))
        y = nn.relu(instance_norm(y))
        y = _conv(x.shape[-1], 3, self.dtype, "conv2")(_reflect_pad(y, 1))
        return x + instance_norm(y)


class ResNetGenerator(nn.Module):
    """CycleGAN's ``resnet_9blocks``.

    A 7x7 convolution, two that halve the size, residual blocks, two transposed convolutions that
    double it again, a 7x7 convolution and tanh. Instance norm without scale and shift, biases in
    every convolution, reflected borders.

    Attributes:
        features: channels of the first convolution (``ngf``).
        num_blocks: residual blocks.
        channels: of the images.
        dtype: of the convolutions; parameters, norms and what comes out are float32.
    """

    features: int = 64
    num_blocks: int = 9
    channels: int = 3
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """``[B, H, W, channels]`` to the same shape; H and W divisible by 4, at least 8."""
        y = _conv(self.features, 7, self.dtype, "conv_in")(_reflect_pad(x, 3))
        y = nn.relu(instance_norm(y))
        for i in (1, 2):
            y = _conv(self.features * 2**i, 3, self.dtype, f"down{i}", stride=2, padding=1)(y)
            y = nn.relu(instance_norm(y))
        for i in range(self.num_blocks):
            y = _ResidualBlock(self.dtype, name=f"block{i}")(y)
        for i in (1, 2):
            y = nn.ConvTranspose(
                self.features * 2 ** (2 - i),
                (3, 3),
                (2, 2),
                padding=UP_PADDING,
                dtype=self.dtype,
                kernel_init=_KERNEL_INIT,
                name=f"up{i}",
            )(y)
            y = nn.relu(instance_norm(y))
        y = _conv(self.channels, 7, self.dtype, "conv_out")(_reflect_pad(y, 3))
        return jnp.tanh(y.astype(wide_dtype(y)))


def resnet9_generator(*, features: int = 64, num_blocks: int = 9) -> Generator:
    """The generator of the paper's face anonymizer (Ren et al., 2018), 11,378,179 parameters.

    Args:
        features: channels of the first convolution (``ngf``).
        num_blocks: residual blocks.
    """
    network = ResNetGenerator(features=features, num_blocks=num_blocks)

    def init(rng_key: RngKey, x: Any) -> dict[str, Any]:
        return dict(network.init(rng_key, jnp.zeros(x.shape, x.dtype)))

    def apply(variables: Variables, x: Array) -> Array:
        return evaluate(network, variables, x)

    return Generator(init, apply)
