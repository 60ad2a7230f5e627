"""The face anonymizer of Table 2 (Ren et al., 2018): a generator before a ResNet-18."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from facemix_jax import _validate
from facemix_jax._types import Array, ImageSize
from facemix_jax.data.pipeline import denormalize, normalize
from facemix_jax.models import resnet
from facemix_jax.models.generators import ResNetGenerator
from facemix_jax.models.split import Head, SplitModel, split

_STEP = 4
"""The generator halves images twice, so their sides have to be multiples of it."""


class Anonymizer(nn.Module):
    """The generator between normalised images; borders are repeated where a side does not fit.

    Attributes:
        features: channels of the generator's first convolution.
        num_blocks: residual blocks.
        dtype: of its convolutions.
    """

    features: int
    num_blocks: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Normalised images ``[B, H, W, 3]`` to the same; ``train`` changes nothing."""
        height, width = x.shape[1:3]
        padding = ((0, 0), (0, -height % _STEP), (0, -width % _STEP), (0, 0))
        padded = jnp.pad(to_unit(x), padding, mode="edge")
        generator = ResNetGenerator(
            self.features, self.num_blocks, dtype=self.dtype, name="resnet9"
        )
        return from_unit(generator(padded)[:, :height, :width]).astype(x.dtype)


def to_unit(x: Array) -> Array:
    """Normalised images to ``[-1, 1]``, the generator's range."""
    return 2 * denormalize(x) - 1


def from_unit(x: Array) -> Array:
    """The inverse of ``to_unit``."""
    return normalize(127.5 * (x + 1))


def angular_logits(
    features: Array, people: Array, labels: Array | None, *, margin: float, scale: float
) -> Array:
    """Scaled cosines; that of the true person as if its angle were larger by the margin.

    Args:
        features: ``[B, D]``.
        people: ``[P, D]``, one direction for each person.
        labels: int ``[B]``, or None for no margin.
        margin: in radians. Where angle and margin pass pi, the cosine is lowered by as much as
            keeps the logit falling with the angle.
        scale: of the cosines.

    Returns:
        float32 ``[B, P]``.
    """
    unit_features, unit_people = (
        x / jnp.maximum(jnp.linalg.norm(x, axis=1, keepdims=True), 1e-6) for x in (features, people)
    )
    cosine = jnp.clip(unit_features @ unit_people.T, -1 + 1e-6, 1 - 1e-6)
    if labels is None:
        return scale * cosine
    sine = jnp.sqrt(1 - cosine**2)
    turned = cosine * np.cos(margin) - sine * np.sin(margin)
    lowered = cosine - 1 + np.cos(margin)
    shifted = jnp.where(cosine > np.cos(np.pi - margin), turned, lowered)
    true = jax.nn.one_hot(labels, people.shape[0], dtype=bool)
    return scale * jnp.where(true, shifted, cosine)


def anonymizer(
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
    num_blocks: int = 9,
) -> SplitModel:
    """Pre is the generator, main a whole ResNet-18: what is sent are anonymized images.

    ``facemix_jax.anonymizing`` trains it against a face identifier.

    Args:
        cut: 1, after the generator; 0 sends the image itself.
        image_size: height, width, at least 33.
        width: channels of the first convolution of both networks; 64 is the paper's.
        num_attributes: ``K``.
        num_classes: classes of each attribute.
        norm: of the ResNet-18, one of ``resnet.NORMS``.
        centre: subtract running means after pre and after main (``split.Centre``).
        tile: size of the tiles that what is sent is cut into (``split.cut_tiles``), or None.
        stem: of the ResNet-18, ``pool`` or ``signed``.
        activation: of the ResNet-18, one of ``operations.ACTIVATIONS``.
        dtype: of the convolutions.
        num_blocks: residual blocks of the generator.

    Raises:
        UsageError: a value is out of range.
    """
    _validate.positive(num_blocks=num_blocks)
    return split(
        [
            ("generator", functools.partial(Anonymizer, width, num_blocks, dtype)),
            *resnet.units(width, norm, dtype, stem=stem, activation=activation),
        ],
        functools.partial(Head, num_attributes, num_classes),
        name="anonymizer",
        cut=cut,
        last_cut=1,
        image_size=image_size,
        smallest=33,
        centre=centre,
        tile=tile,
    )
