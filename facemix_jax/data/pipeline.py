"""Batches: Grain decides which images, the source delivers them."""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from facemix_jax import _validate
from facemix_jax._types import Array, HostArray
from facemix_jax._validate import UsageError
from facemix_jax.data.source import Batch, Source

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Of RGB values in [0, 1], as torchvision uses them."""

_THREADS, _AHEAD = 2, 4


def train_batches(
    source: Source,
    *,
    split: str = "train",
    batch_size: int,
    seed: int,
    start_step: int = 0,
    distinct_groups: int = 1,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Endless shuffled batches; the one at a step depends on ``seed`` and that step alone.

    Every epoch is a fresh permutation of the split, cut into ``n // batch_size`` batches (the
    rest of that epoch is left out), so no image occurs twice within a batch. Several processes
    share the same batches: each reads its own consecutive part of every one.

    Args:
        source: the data set.
        split: which of its splits.
        batch_size: ``B``, of all processes together.
        seed: of the shuffles, 0 to 2**32 - 1.
        start_step: the first batch is that of this step; a resumed run passes its step.
        distinct_groups: ``M``: rows are ordered so that every ``M`` consecutive ones, a group,
            show different people, unless one person has more rows in the batch than it has groups.
        process_index: which part of every batch to read.
        process_count: how many processes share a batch.

    Raises:
        UsageError: an unknown or too small split, or values out of range.
    """
    indices = _split(source, split)
    _validate.positive(
        batch_size=batch_size, distinct_groups=distinct_groups, process_count=process_count
    )
    _validate.in_range(0, 2**32 - 1, seed=seed)
    _validate.in_range(0, 2**31 - 1, start_step=start_step)
    _validate.in_range(0, process_count - 1, process_index=process_index)
    _validate.divides(process_count, divisor_name="process_count", batch_size=batch_size)
    _validate.divides(distinct_groups, divisor_name="distinct_groups", batch_size=batch_size)
    if batch_size > len(indices):
        raise UsageError(
            f"batch_size is {batch_size}, but split {split!r} has {len(indices)} images. "
            f"Use a batch_size of at most {len(indices)}, or more examples."
        )
    share = batch_size // process_count
    part = slice(process_index * share, (process_index + 1) * share)

    def read(rows: HostArray) -> Batch:
        chosen = indices[rows]
        if distinct_groups > 1:
            chosen = chosen[_deal(source.identities[chosen], distinct_groups)]
        return _gather(source, chosen[part])

    # Imported here: Grain takes most of a second.
    import grain

    dataset = (
        grain.MapDataset.range(len(indices))
        .seed(seed)
        .shuffle()
        # Whole batches of positions go to the source: one call per batch, not one per image.
        .batch(batch_size, drop_remainder=True, batch_fn=np.asarray)
        .repeat()
        .map(read)
    )
    options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_AHEAD)
    return iter(dataset[start_step:].to_iter_dataset(options))


def _deal(people: HostArray, group_size: int) -> HostArray:
    """An order of rows in which groups show different people: person by person, like cards."""
    return np.argsort(people, kind="stable").reshape(group_size, -1).T.ravel()


def eval_batches(source: Source, *, split: str, batch_size: int) -> Iterator[Batch]:
    """One pass in order; the last batch is filled up with its last image, ``mask`` False there.

    Raises:
        UsageError: an unknown or empty split, or a batch size that is not positive.
    """
    indices = _split(source, split)
    _validate.positive(batch_size=batch_size)

    def batches() -> Iterator[Batch]:
        for start in range(0, len(indices), batch_size):
            rows = indices[start : start + batch_size]
            padding = batch_size - len(rows)
            yield _gather(source, np.pad(rows, (0, padding), mode="edge"), padding)

    return batches()


def _split(source: Source, split: str) -> HostArray:
    _validate.one_of(source.splits, split=split)
    indices = source.splits[split]
    if not len(indices):
        raise UsageError(
            f"Split {split!r} of {source.name} has no images. Use one of "
            f"{', '.join(repr(s) for s, i in source.splits.items() if len(i))}."
        )
    return indices


def _gather(source: Source, indices: HostArray, padding: int = 0) -> Batch:
    return Batch(
        images=source.images(indices),
        attributes=source.attributes[indices],
        identities=source.identities[indices],
        mask=np.arange(len(indices)) < len(indices) - padding,
    )


def normalize(images: Array | HostArray) -> Array:
    """uint8 or float images in [0, 255], ``[..., H, W, 3]``, to float32 in ImageNet units."""
    scaled = jnp.asarray(images).astype(jnp.float32) / 255.0
    return (scaled - _per_channel(IMAGENET_MEAN, scaled)) / _per_channel(IMAGENET_STD, scaled)


def denormalize(images: Array | HostArray) -> Array:
    """The inverse of ``normalize`` up to scale: float32 in [0, 1] for real images."""
    images = jnp.asarray(images).astype(jnp.float32)
    return images * _per_channel(IMAGENET_STD, images) + _per_channel(IMAGENET_MEAN, images)


def _per_channel(values: tuple[float, ...], like: Array) -> Array:
    return jnp.asarray(values, jnp.float32).reshape((1,) * (like.ndim - 1) + (3,))
