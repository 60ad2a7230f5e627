"""Split inference: pre, protect, main, recover, post (equation 2 of the paper)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from facemix_jax import _validate, mixing
from facemix_jax._types import Array, HostArray, RngKey, Variables
from facemix_jax.defenses import Defense, rows_of
from facemix_jax.models import SplitModel


class Trace(NamedTuple):
    """Everything that exists during one request, in order.

    Attributes:
        secret: the edge's secret.
        activations: ``[T * B, H, W, C]``, on the edge; ``T`` is 1 unless maps are cut into tiles.
        sent: ``[R, H, W, C]``, what main runs on: ``T * B`` rows unless the defence has others.
        responses: ``[R, D]``, what main returns.
        features: ``[T * B, D]``, recovered on the edge.
        logits: float32 ``[B, K, classes]``.
    """

    secret: Any
    activations: Array
    sent: Array
    responses: Array
    features: Array
    logits: Array


def trace(
    model: SplitModel, defense: Defense, variables: Variables, rng_key: RngKey, images: Array
) -> Trace:
    """Runs one request and keeps every intermediate.

    Args:
        model: the split network.
        defense: how activations are protected.
        variables: ``{"pre", "main", "post"}``.
        rng_key: draws the request's secret; consumed.
        images: float32 ``[B, H, W, 3]``, normalised.

    Raises:
        UsageError: images of another size or type, or the group size does not divide ``B``.
    """
    check_images(model, images)
    activations = model.pre(variables["pre"], images)
    secret = defense.init(rng_key, activations.shape[0], False)
    sent = defense.protect(secret, activations)
    responses = model.main(main_variables(variables, defense), sent)
    features = defense.recover(secret, responses)
    logits = model.post(variables["post"], features)
    return Trace(secret, activations, sent, responses, features, logits)


def infer(
    model: SplitModel, defense: Defense, variables: Variables, rng_key: RngKey, images: Array
) -> Array:
    """Logits float32 ``[B, K, classes]`` for any number of images.

    An incomplete last group is filled with the batch's own first images. See ``trace`` for the
    arguments.

    Raises:
        UsageError: as ``trace``, but for the number of images; or a single image with decoys.
    """
    check_images(model, images)
    if len(images) == 1 and rows_of(defense).sent > defense.group_size:
        raise _validate.UsageError(
            "There is 1 image, but decoys are drawn with the mean and the deviation of a request's "
            "images: those of one image would be that image itself. Send 2 different images or "
            "more at a time."
        )
    padded = mixing.pad_groups(images, defense.group_size)
    return trace(model, defense, variables, rng_key, padded).logits[: images.shape[0]]


def main_variables(variables: Variables, defense: Defense) -> Variables:
    """Main's variables with the BatchNorm statistics that belong to what main sees.

    Main's ``batch_stats`` are those of protected activations; where training also kept those of
    clean ones (``clean_stats``), unprotected inference uses them.
    """
    main = dict(variables["main"])
    clean = main.pop("clean_stats", None)
    if clean is not None and defense.name == "none":
        main["batch_stats"] = clean
    return main


def check_images(model: SplitModel, images: HostArray | Array | jax.ShapeDtypeStruct) -> None:
    """Raises ``UsageError`` unless images are floats of the size that the model was built for."""
    expected = (*model.spec.image_size, 3)
    if images.ndim != 4 or images.shape[1:] != expected:
        raise _validate.UsageError(
            f"images have shape {images.shape}, but this {model.spec.name} reads "
            f"[B, {', '.join(map(str, expected))}] (height, width, RGB). Resize the images, or "
            f"build the model for their size."
        )
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise _validate.UsageError(
            f"images are {images.dtype}, but the network reads normalised floats. Call "
            f"facemix_jax.data.normalize(images) first."
        )
