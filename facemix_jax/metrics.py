"""Scores of predictions and of reconstructions. Host side: NumPy and SciPy, pure functions.

The exception is ``ssim``, which dm-pix computes in JAX.
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from facemix_jax import _validate
from facemix_jax._types import HostArray

AttributeCounts: TypeAlias = HostArray
"""int64 ``[K, 2, 2]``: examples per attribute, true class and predicted class. They add up."""


def attribute_counts(
    predictions: ArrayLike, labels: ArrayLike, mask: ArrayLike | None = None
) -> AttributeCounts:
    """Counts the four outcomes of every two-way attribute; counts of several batches add up.

    Args:
        predictions: logits float ``[B, K, 2]`` (the larger one wins), or classes 0/1 ``[B, K]``.
        labels: 0/1 ``[B, K]``.
        mask: bool ``[B]``; rows that are False, such as padding, do not count. None: all count.

    Returns:
        int64 ``[K, 2, 2]``, indexed ``[attribute, true, predicted]``.

    Raises:
        DataError: logits that are not finite, or labels other than 0 and 1.
        UsageError: shapes that do not belong together.

    Example:
        >>> attribute_counts([[1], [0], [1]], [[1], [0], [0]]).tolist()
        [[[1, 1], [0, 1]]]
    """
    predicted, true = np.asarray(predictions), np.asarray(labels)
    if predicted.shape not in (true.shape, (*true.shape, 2)) or true.ndim != 2:
        raise _validate.UsageError(
            f"predictions have shape {predicted.shape} and labels {true.shape}, but [B, K] "
            f"labels go with [B, K, 2] logits or [B, K] classes. Pass matching arrays."
        )
    keep = np.ones(len(true), bool) if mask is None else np.asarray(mask, bool)
    if keep.shape != true.shape[:1]:
        raise _validate.UsageError(
            f"mask has shape {keep.shape}, but must have one entry for each of the "
            f"{len(true)} rows. Pass the mask of the same batch."
        )
    predicted, true = predicted[keep], true[keep]
    if predicted.ndim == 3:
        if not np.isfinite(predicted).all():
            raise _validate.DataError(
                "Logits must be finite, but some are NaN or infinite. The network has diverged, "
                "or its weights are damaged: use an earlier checkpoint or a lower learning rate."
            )
        predicted = predicted.argmax(-1)
    for name, values in (("labels", true), ("predictions", predicted)):
        _check_binary(name, values)
    outcome = 2 * true.astype(np.int64) + predicted.astype(np.int64)
    return np.stack([(outcome == o).sum(0) for o in range(4)], -1).reshape(-1, 2, 2)


def accuracy(counts: AttributeCounts) -> HostArray:
    """Share of right predictions, float64 ``[K]``; ``.mean()`` is the paper's accuracy.

    Raises:
        DataError: an attribute without a single example.

    Example:
        >>> accuracy(np.array([[[3, 1], [2, 4]]])).tolist()
        [0.7]
    """
    _check_counts(counts)
    return np.trace(counts, axis1=1, axis2=2) / counts.sum((1, 2))


def balanced_accuracy(counts: AttributeCounts) -> HostArray:
    """Mean recall of the two classes, float64 ``[K]``: 0.5 for anyone who ignores the input.

    Where the examples hold only one class of an attribute, the other has no recall; it is left
    out, and what is returned is the recall of the class that is there (as scikit-learn does).
    Such an attribute says little: always predicting that class scores 1.

    Raises:
        DataError: an attribute without a single example.

    Example:
        >>> balanced_accuracy(np.array([[[3, 1], [5, 5]]])).tolist()
        [0.625]
    """
    _check_counts(counts)
    examples = counts.sum(2)
    right = np.diagonal(counts, axis1=1, axis2=2)
    recall = right / np.maximum(examples, 1)
    return recall.sum(1) / (examples > 0).sum(1)


class MatchedCorrelation(NamedTuple):
    """How well a set of images was recovered, up to order, sign, offset and scale.

    Attributes:
        mean: mean of ``per_source``.
        per_source: float64 ``[M]``, |Pearson correlation| of each true image with its match.
        permutation: int64 ``[M]``; recovered image ``permutation[i]`` matches true image ``i``.
        signs: float64 ``[M]``, the sign of each match's correlation; 0 where there is none.
    """

    mean: float
    per_source: HostArray
    permutation: HostArray
    signs: HostArray


def matched_correlation(recovered: ArrayLike, truth: ArrayLike) -> MatchedCorrelation:
    """|Pearson correlation| under the assignment of recovered to true images that maximises it.

    A constant image correlates with nothing: 0.

    Args:
        recovered: ``[M, ...]``, in any order, sign, offset and scale.
        truth: ``[M, ...]``.

    Raises:
        DataError: values that are not finite.
        UsageError: arrays of different shapes.

    Example:
        >>> truth = np.eye(3)
        >>> matched_correlation(-2 * truth[[2, 0, 1]] + 7, truth).permutation.tolist()
        [1, 2, 0]
    """
    recovered, truth = _pair(recovered, truth)
    correlation = standardise(truth) @ standardise(recovered).T
    rows, columns = _assign(-np.abs(correlation))
    matched = correlation[rows, columns]
    per_source = np.minimum(np.abs(matched), 1.0)
    return MatchedCorrelation(float(per_source.mean()), per_source, columns, np.sign(matched))


def standardise(rows: ArrayLike) -> HostArray:
    """Rows ``[n, ...]`` with mean 0 and length 1, float64 ``[n, P]``: their products correlate.

    Constant rows become 0, whatever rounding left of them.

    Example:
        >>> standardise([[1.0, 3.0, 1.0, 3.0], [2.0, 2.0, 2.0, 2.0]]).tolist()
        [[-0.5, 0.5, -0.5, 0.5], [0.0, 0.0, 0.0, 0.0]]
    """
    rows = np.asarray(rows, np.float64)
    x = rows.reshape(len(rows), -1)
    centred = x - x.mean(1, keepdims=True)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    constant = length <= 1e-12 * np.linalg.norm(x, axis=1, keepdims=True)
    return np.where(constant, 0.0, centred / np.where(constant, 1.0, length))


def assignment_mse(recovered: ArrayLike, truth: ArrayLike) -> float:
    """Mean squared error under the assignment that minimises it (the paper's attack score).

    The paper prints minus this value (its "inverse"), as we read it of images in [-1, 1].

    Args:
        recovered: ``[M, ...]``, in any order.
        truth: ``[M, ...]``.

    Raises:
        DataError: values that are not finite.
        UsageError: arrays of different shapes.

    Example:
        >>> assignment_mse([[0.0], [3.0]], [[3.0], [1.0]])
        0.5
    """
    recovered, truth = _pair(recovered, truth)
    return float(((recovered[assignment(recovered, truth)] - truth) ** 2).mean())


def assignment(recovered: ArrayLike, truth: ArrayLike) -> HostArray:
    """Which recovered image belongs to which true one: the least mean squared error of all.

    Args:
        recovered: ``[M, ...]``, in any order.
        truth: ``[M, ...]``.

    Returns:
        int64 ``[M]``; recovered image ``assignment[i]`` matches true image ``i``.

    Raises:
        DataError: values that are not finite.
        UsageError: arrays of different shapes.

    Example:
        >>> assignment([[0.0], [3.0]], [[3.0], [1.0]]).tolist()
        [1, 0]
    """
    recovered, truth = _pair(recovered, truth)
    # |a - b|^2 expanded, so that no [M, M, pixels] array is made; the true images' own squares
    # are the same for every assignment.
    return _assign((recovered**2).sum(1) - 2 * truth @ recovered.T)[1]


def psnr(recovered: ArrayLike, truth: ArrayLike, *, max_value: float = 1.0) -> HostArray:
    """Peak signal-to-noise ratio in decibels, float64 ``[B]``; infinite for equal images.

    Args:
        recovered: ``[B, H, W, C]``.
        truth: ``[B, H, W, C]``.
        max_value: range of the values, 1 for images in [0, 1] and 2 for [-1, 1].

    Raises:
        DataError: values that are not finite.
        UsageError: arrays of different shapes, or a range that is not positive.

    Example:
        >>> round(float(psnr(np.full((1, 4, 4, 1), 0.6), np.full((1, 4, 4, 1), 0.5))[0]), 3)
        20.0
    """
    _validate.positive(max_value=max_value)
    recovered, truth = _pair(recovered, truth)
    error = ((recovered - truth) ** 2).mean(1)
    with np.errstate(divide="ignore"):
        return 10 * np.log10(max_value**2 / error)


def ssim(recovered: ArrayLike, truth: ArrayLike, *, max_value: float = 1.0) -> HostArray:
    """Structural similarity (Wang et al. 2004, 11x11 Gaussian window), float32 ``[B]``.

    Args:
        recovered: ``[B, H, W, C]``, H and W at least 11; similarities are averaged over C.
        truth: ``[B, H, W, C]``.
        max_value: range of the values, 1 for images in [0, 1] and 2 for [-1, 1].

    Raises:
        DataError: values that are not finite.
        UsageError: arrays of different shapes or too small, or a range that is not positive.

    Example:
        >>> image = np.random.default_rng(0).random((1, 16, 16, 3))
        >>> ssim(image, image).round(3).tolist()
        [1.0]
    """
    _validate.positive(max_value=max_value)
    shape = np.shape(truth)
    _pair(recovered, truth)
    if len(shape) != 4 or min(shape[1:3]) < 11:
        raise _validate.UsageError(
            f"images have shape {shape}, but SSIM needs [B, H, W, C] with at least 11 pixels a "
            f"side (its window). Use larger images, or PSNR."
        )
    import dm_pix  # here for the sake of the package's import time

    pair = (jnp.asarray(image, jnp.float32) for image in (recovered, truth))
    with jax.numpy_dtype_promotion("standard"):  # dm-pix adds integers to floats
        return np.asarray(dm_pix.ssim(*pair, max_val=max_value))


def amari_distance(unmixing: ArrayLike, mixing: ArrayLike) -> float:
    """Distance of ``unmixing @ mixing`` from a scaled permutation, in [0, 1].

    0 where the unmixing undoes the mixing up to order, sign and scale, 1 where all entries are
    equal in size (Amari et al. 1996, divided by its largest value ``2 M (M - 1)``; another
    common form divides by ``2 M`` and is ``M - 1`` times larger).

    Args:
        unmixing: ``[M, M]``.
        mixing: ``[M, M]``; to compare two unmixings, the inverse of the other one.

    Raises:
        DataError: values that are not finite.
        UsageError: matrices that are not square or of different sizes, or a product with a row
            or column of zeros.

    Example:
        >>> amari_distance([[0.0, -2.0], [0.5, 0.0]], [[3.0, 0.0], [0.0, 1.0]])
        0.0
    """
    unmixing, mixing = np.asarray(unmixing, np.float64), np.asarray(mixing, np.float64)
    size = unmixing.shape[0] if unmixing.ndim else 0
    if unmixing.shape != (size, size) or mixing.shape != (size, size) or size < 2:
        raise _validate.UsageError(
            f"unmixing has shape {unmixing.shape} and mixing {mixing.shape}, but the Amari "
            f"distance compares two [M, M] matrices with M at least 2. Pass one group's matrices."
        )
    if not (np.isfinite(unmixing).all() and np.isfinite(mixing).all()):
        raise _validate.DataError(
            "Matrices must be finite, but some values are NaN or infinite. Look for a separation "
            "that diverged."
        )
    product = np.abs(unmixing @ mixing)
    largest = [product.max(axis, keepdims=True) for axis in (0, 1)]
    if min(m.min() for m in largest) == 0:
        raise _validate.UsageError(
            "unmixing @ mixing has a row or column of zeros, where the Amari distance has no "
            "value. Pass matrices of full rank."
        )
    excess = sum((product / m).sum() - size for m in largest)
    return float(excess / (2 * size * (size - 1)))


def _assign(cost: HostArray) -> tuple[HostArray, HostArray]:
    """Rows and columns of the cheapest one-to-one assignment."""
    from scipy.optimize import linear_sum_assignment  # a third of a second to import

    return linear_sum_assignment(cost)


def _pair(recovered: ArrayLike, truth: ArrayLike) -> tuple[HostArray, HostArray]:
    """Both as float64 ``[M, pixels]``, checked."""
    recovered, truth = np.asarray(recovered, np.float64), np.asarray(truth, np.float64)
    if recovered.shape != truth.shape or truth.ndim < 2 or truth.size == 0:
        raise _validate.UsageError(
            f"recovered images have shape {recovered.shape} and true ones {truth.shape}, but "
            f"both must be [M, ...] alike and not empty. Pass the same group twice."
        )
    if not (np.isfinite(recovered).all() and np.isfinite(truth).all()):
        raise _validate.DataError(
            "Images must be finite, but some values are NaN or infinite. Look for a diverged "
            "network or an empty divisor upstream."
        )
    return recovered.reshape(len(recovered), -1), truth.reshape(len(truth), -1)


def _check_binary(name: str, values: HostArray) -> None:
    wrong = values[(values != 0) & (values != 1)]
    if wrong.size:
        raise _validate.DataError(
            f"{name} hold the value {wrong[0]}, but attributes are 0 or 1. Map -1 to 0, and mask "
            f"rows without labels."
        )


def _check_counts(counts: AttributeCounts) -> None:
    empty = np.flatnonzero(counts.sum((1, 2)) == 0)
    if empty.size:
        raise _validate.DataError(
            f"Attribute {empty[0]} has no examples ({empty.size} attributes have none), so there "
            f"is no accuracy. Evaluate on a split with labelled examples."
        )


def mean_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and half the width of its 95% confidence interval (Student's t); None for one value.

    Example:
        >>> mean, half_width = mean_interval([0.8, 0.9, 1.0])
        >>> f"{mean:.2f} ± {half_width:.2f}"
        '0.90 ± 0.25'
    """
    from scipy.stats import t  # half a second to import

    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, None
    error = float(np.std(values, ddof=1)) / np.sqrt(len(values))
    return mean, float(t.ppf(0.975, len(values) - 1) * error)
