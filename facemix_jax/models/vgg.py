"""VGG-16 (Simonyan and Zisserman, 2015), the network of the paper's Table 1: cuts 0 to 18."""

import functools

import jax.numpy as jnp
from flax import linen as nn

from facemix_jax import _validate
from facemix_jax._types import Array, ImageSize
from facemix_jax.models.initialization import scaled_normal
from facemix_jax.models.operations import ACTIVATIONS, MaxPool
from facemix_jax.models.split import Head, SplitModel, Unit, split

STAGES = ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3))
"""Width factor and number of convolutions before each max-pool."""
POOLED_SIZE = 7
"""The classifier reads a 7x7 map whatever the image's size, as torchvision's does."""
_HE_NORMAL = scaled_normal(2.0, "out")


class ConvRelu(nn.Module):
    """3x3 convolution with bias, then ReLU."""

    features: int
    dtype: jnp.dtype
    activation: str = "relu"

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """``[B, H, W, C]`` to ``[B, H, W, features]``."""
        conv = nn.Conv(
            self.features, (3, 3), padding=1, dtype=self.dtype, kernel_init=_HE_NORMAL, name="conv"
        )
        return ACTIVATIONS[self.activation](name="relu")(conv(x))


class Pool(nn.Module):
    """2x2 max-pool."""

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """``[B, H, W, C]`` to ``[B, H/2, W/2, C]``, rounded down."""
        return MaxPool((2, 2), (2, 2))(x)


def adaptive_average_pool(x: Array, size: int) -> Array:
    """PyTorch's AdaptiveAvgPool2d: ``[B, H, W, C]`` to ``[B, size, size, C]``.

    Cell ``i`` averages positions ``floor(i H / size)`` to ``ceil((i + 1) H / size)``.
    """
    for axis in (1, 2):
        length = x.shape[axis]
        if length == size:
            continue
        cells = []
        for i in range(size):
            start, stop = i * length // size, -(-(i + 1) * length // size)
            window = x[:, start:stop] if axis == 1 else x[:, :, start:stop]
            cells.append(jnp.mean(window, axis=axis, keepdims=True))
        x = jnp.concatenate(cells, axis=axis)
    return x


class DenseRelu(nn.Module):
    """Fully connected layer with ReLU; a map is pooled to 7x7 and flattened first."""

    features: int
    dtype: jnp.dtype
    activation: str = "relu"

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """``[B, ...]`` to ``[B, features]``."""
        if x.ndim == 4:
            x = adaptive_average_pool(x, POOLED_SIZE).reshape(x.shape[0], -1)
        dense = nn.Dense(self.features, dtype=self.dtype, kernel_init=_HE_NORMAL, name="fc")
        return ACTIVATIONS[self.activation](name="relu")(dense(x))


def vgg16(
    *,
    cut: int = 1,
    image_size: ImageSize = (224, 224),
    width: int = 64,
    num_attributes: int = 40,
    num_classes: int = 2,
    norm: str = "batch",
    centre: bool = False,
    tile: tuple[int, int] | None = None,
    stem: str = "pool",
    activation: str = "relu",
    dtype: jnp.dtype = jnp.float32,
) -> SplitModel:
    """VGG-16 split after any convolution (with its ReLU) or max-pool.

    Main ends with the second fully connected layer (4,096 features at width 64). The original's
    dropout is left out: it would need a key of its own and changes nothing at inference.

    Args:
        cut: 0 mixes the image itself; 1 comes after conv1_1, 3 after pool1, 18 after pool5.
        image_size: height, width, at least 32.
        width: channels of the first stage; the fully connected layers have 64 times as many.
        num_attributes: ``K``; 1 with ``num_classes=1000`` is the ImageNet network.
        num_classes: classes of each attribute.
        norm: ``batch`` or ``none``, which has no effect; VGG-16 has no BatchNorm.
        centre: subtract running means before mixing and after main (``split.Centre``).
        tile: size of the tiles that pre's map is cut into (``split.cut_tiles``), or None.
        stem: ``pool``, which has no effect; VGG-16 has none.
        activation: one of ``operations.ACTIVATIONS``, in place of every ReLU.
        dtype: of the computation; parameters stay float32.

    Raises:
        UsageError: a value is out of range.
    """
    _validate.one_of(("batch", "none"), norm=norm)
    _validate.one_of(("pool",), stem=stem)
    _validate.one_of(ACTIVATIONS, activation=activation)
    _validate.positive(width=width)
    units: list[tuple[str, Unit]] = []
    for stage, (factor, depth) in enumerate(STAGES, start=1):
        for index in range(1, depth + 1):
            units.append(
                (
                    f"conv{stage}_{index}",
                    functools.partial(ConvRelu, width * factor, dtype, activation),
                )
            )
        units.append((f"pool{stage}", Pool))
    return split(
        [
            *units,
            ("fc6", functools.partial(DenseRelu, 64 * width, dtype, activation)),
            ("fc7", functools.partial(DenseRelu, 64 * width, dtype, activation)),
        ],
        functools.partial(Head, num_attributes, num_classes),
        name="vgg16",
        cut=cut,
        last_cut=18,
        image_size=image_size,
        smallest=32,
        centre=centre,
        tile=tile,
    )
