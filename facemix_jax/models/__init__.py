"""Split networks: ``build(ModelConfig(...))`` gives a ``SplitModel``."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from facemix_jax import _validate
from facemix_jax._types import ImageSize
from facemix_jax.models.anonymizer import anonymizer
from facemix_jax.models.isometry import isometry_penalty
from facemix_jax.models.operations import ACTIVATIONS
from facemix_jax.models.resnet import NORMS, STEMS, resnet18
from facemix_jax.models.split import Segment, Spec, SplitModel, split, with_prior
from facemix_jax.models.torch_weights import from_torch
from facemix_jax.models.vgg import vgg16

__all__ = [
    "MODELS",
    "ModelConfig",
    "Segment",
    "Spec",
    "SplitModel",
    "anonymizer",
    "build",
    "from_torch",
    "isometry_penalty",
    "resnet18",
    "split",
    "vgg16",
    "with_prior",
]

MODELS: dict[str, Callable[..., SplitModel]] = {
    "resnet18": resnet18,
    "vgg16": vgg16,
    "anonymizer": anonymizer,
}

_LARGEST_WIDTH = 1024
"""Weights are drawn in blocks whose number grows with the square of the width: far beyond this even
reckoning what a network costs, which draws none, would not end."""

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A network and where it is cut.

    Attributes:
        network: ``resnet18``, ``vgg16`` or ``anonymizer`` (a generator before a ResNet-18).
        cut: units that run on the edge before mixing. ResNet-18: 0 the image itself, 1 the stem
            (the paper's N_pre = 1), 2 to 9 basic blocks. VGG-16: 1 conv1_1, 3 pool1, up to 18.
            The anonymizer: 1, the generator.
        width: channels of the first stage, 1024 at most; 64 is the standard network.
        norm: ``batch``, or for ResNet-18 ``unshifted`` (BatchNorm without learnt shifts),
            ``scale`` (``resnet.ScaleNorm``: no constants at all) or ``none``.
        centre: subtract running means before mixing and after main, which makes unmixing exact
            for constants too; not in the paper.
        tile: height, width of the tiles that the map is cut into before mixing, each (group, tile)
            under a matrix of its own; main runs on tiles, the head reads the features of all. None
            for the whole map, as in the paper.
        stem: ``pool``, the standard one, or for ResNet-18 ``signed``, which ends in a linear
            convolution, so that cut 1 sends signed values; not in the paper.
        activation: ``relu``; ``prelu``, with a learnt slope per channel, or ``shifted``, with a
            learnt threshold per channel, which can become linear (``operations.ACTIVATIONS``);
            not in the paper.
        compute_dtype: ``float32`` or ``bfloat16``; parameters, statistics and mixing stay float32.
    """

    network: str = "resnet18"
    cut: int = 1
    width: int = 64
    norm: str = "batch"
    centre: bool = False
    tile: tuple[int, int] | None = None
    stem: str = "pool"
    activation: str = "relu"
    compute_dtype: str = "float32"

    def __post_init__(self) -> None:
        """Checks names and ranges."""
        _validate.one_of(MODELS, network=self.network)
        _validate.one_of(NORMS, norm=self.norm)
        _validate.one_of(STEMS, stem=self.stem)
        _validate.one_of(ACTIVATIONS, activation=self.activation)
        _validate.one_of(_DTYPES, compute_dtype=self.compute_dtype)
        _validate.in_range(1, _LARGEST_WIDTH, width=self.width)
        if self.tile is not None:
            _validate.pair(tile=self.tile)
            height, width = self.tile
            _validate.positive(tile_height=height, tile_width=width)
            object.__setattr__(self, "tile", (height, width))  # a list where it was read from JSON


def build(
    config: ModelConfig,
    *,
    image_size: ImageSize,
    num_attributes: int = 40,
    num_classes: int = 2,
    dtype: jnp.dtype | None = None,
) -> SplitModel:
    """Builds the split network for images of one size.

    Args:
        config: the network and its cut.
        image_size: height, width.
        num_attributes: ``K``.
        num_classes: classes of each attribute.
        dtype: computes in this dtype instead of the configuration's; for studies of rounding.

    Raises:
        UsageError: the cut does not exist, or the image is too small for the network.
    """
    _validate.pair(image_size=image_size)
    return _built(
        (MODELS[config.network], ACTIVATIONS[config.activation]),
        config,
        (image_size[0], image_size[1]),
        num_attributes,
        num_classes,
        _DTYPES[config.compute_dtype] if dtype is None else dtype,
    )


@functools.lru_cache(maxsize=32)
def _built(
    registered: tuple[Callable[..., Any], ...],
    config: ModelConfig,
    image_size: ImageSize,
    num_attributes: int,
    num_classes: int,
    dtype: jnp.dtype,
) -> SplitModel:
    """The same object for the same network: JAX compiles again for every new function.

    Of what is registered under the names in the configuration, too: others may be next time.
    """
    return registered[0](
        cut=config.cut,
        image_size=image_size,
        width=config.width,
        num_attributes=num_attributes,
        num_classes=num_classes,
        norm=config.norm,
        centre=config.centre,
        tile=config.tile,
        stem=config.stem,
        activation=config.activation,
        dtype=dtype,
    )
