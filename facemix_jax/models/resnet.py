"""ResNet-18 (He et al., 2016), the paper's backbone: cuts 0 to 9."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from facemix_jax import _validate
from facemix_jax._types import Array, ImageSize
from facemix_jax.models.initialization import scaled_normal
from facemix_jax.models.operations import ACTIVATIONS, MaxPool
from facemix_jax.models.pure import wide_dtype
from facemix_jax.models.split import Head, SplitModel, Unit, split
from facemix_jax.models.stem import stem_convolution

_STAGES = (1, 1, 2, 2, 4, 4, 8, 8)
"""Width factor of each of the eight basic blocks."""

_EPSILON = 1e-5
"""Added to every variance."""


NORMS = ("batch", "unshifted", "scale", "none")
"""What stands behind a convolution: BatchNorm, BatchNorm without learnt shifts, ``ScaleNorm``, or
nothing. GroupNorm and its like are not among them: they divide every example by a size of its own,
so that no scale survives them, and a mixture is no mixture any more behind them."""


class ScaleNorm(nn.Module):
    """BatchNorm without constants: channels over their root mean square, times a learnt scale.

    No mean is subtracted and no shift added, so that it is linear at inference, and a network of
    such layers, convolutions without bias and ReLUs is homogeneous of degree one, as in the
    bias-free networks of Mohan et al. (2020). Momentum and epsilon are BatchNorm's.
    """

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """``[B, H, W, C]``; statistics in float32, or float64 from that."""
        channels = x.shape[-1:]
        running = self.variable("batch_stats", "mean_square", jnp.ones, channels, jnp.float32)
        scale = self.param("scale", nn.initializers.ones, channels, jnp.float32)
        mean_square = running.value
        if train:
            wide = x.astype(wide_dtype(x))
            mean_square = jnp.mean(jnp.square(wide), axis=tuple(range(x.ndim - 1)))
            if not self.is_initializing():
                running.value = 0.9 * running.value + 0.1 * mean_square
        factor = scale * jax.lax.rsqrt(mean_square + _EPSILON)
        return x.astype(self.dtype) * factor.astype(self.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


class _Norm(nn.Module):
    """One of ``NORMS``; BatchNorm as PyTorch's (momentum 0.1 there is 0.9 here)."""

    norm: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        if self.norm == "none":
            return x
        if self.norm == "scale":
            return ScaleNorm(self.dtype, name="rms")(x, train)
        return nn.BatchNorm(
            use_running_average=not train,
            momentum=0.9,
            epsilon=_EPSILON,
            dtype=self.dtype,
            use_bias=self.norm != "unshifted",
            name="bn",
        )(x)


def _conv(
    features: int,
    size: int,
    stride: int,
    norm: str,
    dtype: jnp.dtype,
    name: str,
    convolve: Callable[..., Array] | None = None,
) -> nn.Conv:
    return nn.Conv(
        features,
        (size, size),
        (stride, stride),
        padding=size // 2,
        use_bias=norm == "none",
        dtype=dtype,
        kernel_init=scaled_normal(2.0, "out"),
        conv_general_dilated=convolve,
        name=name,
    )


class Stem(nn.Module):
    """7x7 convolution, BatchNorm, ReLU, 3x3 max-pool: cut 1 comes after it."""

    features: int
    norm: str
    dtype: jnp.dtype
    activation: str = "relu"

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """``[B, H, W, 3]`` to ``[B, H/4, W/4, features]``, rounded up twice."""
        x = _conv(self.features, 7, 2, self.norm, self.dtype, "conv1", stem_convolution)(x)
        norm = _Norm(self.norm, self.dtype, name="bn1")
        normed = norm(x, train)  # in training for its running statistics alone, where pooled first
        activate = ACTIVATIONS[self.activation](name="relu1")
        pool = MaxPool((3, 3), (2, 2), ((1, 1), (1, 1)))
        if train and self.norm == "batch" and self.activation == "relu":
            learnt = norm.variables["params"]["bn"]
            return activate(_pooled_norm(pool, x, learnt["scale"], learnt["bias"], self.dtype))
        return pool(activate(normed))


def _pooled_norm(
    pool: Callable[[Array], Array], x: Array, scale: Array, bias: Array, dtype: jnp.dtype
) -> Array:
    """Max-pool of a batch that BatchNorm normalises, with a ReLU or without one behind it.

    The very same values, as BatchNorm and ReLU rise or fall with ``x``: but only the largest
    entries are normalised, a quarter of all, and BatchNorm's gradient is as small until it is
    scattered.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean, mean_square = (jnp.mean(v, (0, 1, 2), keepdims=True) for v in (wide, jnp.square(wide)))
    variance = jnp.maximum(0.0, mean_square - jnp.square(mean))  # as Flax computes it
    factor = jax.lax.rsqrt(variance + _EPSILON) * scale[None, None, None]
    sign = jnp.where(factor < 0, -1, 1).astype(x.dtype)
    pooled = pool(x * sign) * sign
    return ((pooled - mean) * factor + bias[None, None, None]).astype(dtype)


class SignedStem(nn.Module):
    """As ``Stem``, but a linear 3x3 convolution of stride 2 with BatchNorm in the max-pool's place.

    Its output has no lower bound, and unmixing cannot be found from nonnegativity; values are
    closer to Gaussian ones than those after a ReLU.
    """

    features: int
    norm: str
    dtype: jnp.dtype
    activation: str = "relu"

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """``[B, H, W, 3]`` to ``[B, H/4, W/4, features]``, rounded up twice."""
        x = _conv(self.features, 7, 2, self.norm, self.dtype, "conv1", stem_convolution)(x)
        x = _Norm(self.norm, self.dtype, name="bn1")(x, train)
        x = ACTIVATIONS[self.activation](name="relu1")(x)
        x = _conv(self.features, 3, 2, self.norm, self.dtype, "conv2")(x)
        return _Norm(self.norm, self.dtype, name="bn2")(x, train)


STEMS = {"pool": Stem, "signed": SignedStem}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut.

    Without BatchNorm the branch is scaled by one learnt number that starts at 0 (SkipInit,
    De and Smith, 2020), so that the network can be trained at all.
    """

    features: int
    stride: int
    norm: str
    dtype: jnp.dtype
    activation: str = "relu"

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """``[B, H, W, C]`` to ``[B, H/stride, W/stride, features]``."""
        branch = _conv(self.features, 3, self.stride, self.norm, self.dtype, "conv1")(x)
        branch = _Norm(self.norm, self.dtype, name="bn1")(branch, train)
        branch = ACTIVATIONS[self.activation](name="relu1")(branch)
        branch = _conv(self.features, 3, 1, self.norm, self.dtype, "conv2")(branch)
        branch = _Norm(self.norm, self.dtype, name="bn2")(branch, train)
        if self.norm == "none":
            scale = self.param("branch_scale", nn.initializers.zeros, ())
            branch = branch * scale.astype(self.dtype)
        if self.stride != 1 or x.shape[-1] != self.features:
            x = _conv(self.features, 1, self.stride, self.norm, self.dtype, "downsample_conv")(x)
            x = _Norm(self.norm, self.dtype, name="downsample_bn")(x, train)
        return ACTIVATIONS[self.activation](name="relu2")(x.astype(branch.dtype) + branch)


class GlobalAveragePool(nn.Module):
    """``[B, H, W, C]`` to ``[B, C]`` in float32 or, from float64, float64: the end of main."""

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """The mean over positions."""
        wide = x.dtype if x.dtype == jnp.float64 else jnp.float32
        return jnp.mean(x, axis=(1, 2), dtype=wide)


def units(
    width: int, norm: str, dtype: jnp.dtype, *, stem: str = "pool", activation: str = "relu"
) -> list[tuple[str, Unit]]:
    """Names and builders of all units but the head; see ``resnet18``."""
    _validate.one_of(NORMS, norm=norm)
    _validate.one_of(STEMS, stem=stem)
    _validate.one_of(ACTIVATIONS, activation=activation)
    _validate.positive(width=width)
    blocks: list[tuple[str, Unit]] = []
    for index, factor in enumerate(_STAGES):
        stride = 2 if index in (2, 4, 6) else 1
        name = f"layer{index // 2 + 1}_{index % 2}"
        block = functools.partial(BasicBlock, width * factor, stride, norm, dtype, activation)
        blocks.append((name, block))
    return [
        ("stem", functools.partial(STEMS[stem], width, norm, dtype, activation)),
        *blocks,
        ("pool", GlobalAveragePool),
    ]


def resnet18(
    *,
    cut: int = 1,
    image_size: ImageSize = (218, 178),
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
    """ResNet-18 split after the stem or any basic block.

    Args:
        cut: 0 mixes the image itself, 1 after the stem (the paper's N_pre = 1), 2 to 9 after
            each basic block.
        image_size: height, width, at least 33; CelebA's aligned size by default.
        width: channels of the stem; 64 is the standard network.
        num_attributes: ``K``.
        num_classes: classes of each attribute.
        norm: one of ``NORMS``.
        centre: subtract running means before mixing and after main (``split.Centre``).
        tile: size of the tiles that pre's map is cut into (``split.cut_tiles``), or None.
        stem: ``pool``, the standard one, or ``signed`` (``SignedStem``).
        activation: one of ``operations.ACTIVATIONS``, in place of every ReLU.
        dtype: of the computation; parameters and statistics stay float32.

    Raises:
        UsageError: a value is out of range.

    Example:
        >>> spec = resnet18(cut=1).spec
        >>> spec.activation_shape, spec.response_shape, spec.logits_shape
        ((55, 45, 64), (512,), (40, 2))
    """
    return split(
        units(width, norm, dtype, stem=stem, activation=activation),
        functools.partial(Head, num_attributes, num_classes),
        name="resnet18",
        cut=cut,
        last_cut=9,
        image_size=image_size,
        smallest=33,
        centre=centre,
        tile=tile,
    )
