"""Exact linear algebra modulo a prime, in float64.

A float64 holds every integer up to ``2**53``. If the absolute values of all terms of a sum add up
to less, each product and each partial sum is exact in whatever order it is computed, also by
BLAS. That bound is checked before every product; where it does not hold, the weights are split
into smaller digits, and where that cannot help, the product is refused.
"""

import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from facemix_jax import _validate
from facemix_jax._types import HostArray

PRIME = 2**24 - 3
"""Slalom's: the largest prime whose elements are exact in float32."""

LARGEST_PRIME = 2**31 - 1
"""Elements take four bytes on the wire, and sums of two of them fit as well."""

_EXACT = 2**53

RandomBytes = Callable[[int], bytes]
"""``count -> bytes``: ``os.urandom``, or in tests ``numpy.random.default_rng(0).bytes``."""


class Geometry(NamedTuple):
    """How a convolution slides.

    Attributes:
        strides: down, right.
        padding: zeros above and below, left and right.
    """

    strides: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]


def check_prime(prime: int) -> None:
    """Raises ``UsageError`` unless it is a prime of at most ``LARGEST_PRIME``."""
    is_prime = 2 < prime <= LARGEST_PRIME and all(
        prime % divisor for divisor in range(2, int(prime**0.5) + 1)
    )
    if not is_prime:
        raise _validate.UsageError(
            f"prime is {prime}, but must be a prime from 3 to {LARGEST_PRIME}. Use {PRIME}, or "
            f"{LARGEST_PRIME} for finer weights."
        )


def uniform(shape: tuple[int, ...], high: int, random_bytes: RandomBytes = os.urandom) -> HostArray:
    """Independent uniform int64 in ``[0, high)``, without bias: numbers too large are redrawn.

    Args:
        shape: of the result.
        high: at most ``2**32``.
        random_bytes: where they come from; the operating system by default.
    """
    mask = np.uint32((1 << (high - 1).bit_length()) - 1)
    found, missing = [], int(np.prod(shape))
    while missing:
        words = np.frombuffer(random_bytes(4 * missing), "<u4") & mask
        found.append(words[words < high])
        missing -= len(found[-1])
    return np.concatenate([*found, np.zeros(0, np.uint32)]).astype(np.int64).reshape(shape)


def linear(x: HostArray, weights: HostArray, geometry: Geometry | None, largest: int) -> HostArray:
    """The exact integer product, int64.

    Args:
        x: integers ``[..., I]``, or ``[B, H, W, I]`` for a convolution; of absolute value up to
            ``largest``.
        weights: integers ``[I, O]``, or ``[kh, kw, I, O]``.
        geometry: of a convolution; None for a dense layer.
        largest: bound of ``x``.

    Raises:
        UsageError: a sum could pass ``2**53``.
    """
    norm = column_norm(weights)
    if norm * largest >= _EXACT:
        raise _validate.UsageError(
            f"Weights of absolute sum {norm} times numbers up to {largest} can pass 2**53, where "
            f"float64 is no longer exact. Use a smaller prime or fewer bits."
        )
    kernel = weights.astype(np.float64)
    if geometry is None:
        return (x.astype(np.float64) @ kernel).astype(np.int64)
    padded = np.pad(x.astype(np.float64), ((0, 0), *geometry.padding, (0, 0)))
    (down, right), (rows, columns) = geometry.strides, kernel.shape[:2]
    height = (padded.shape[1] - rows) // down + 1
    width = (padded.shape[2] - columns) // right + 1
    total = np.zeros((len(x), height, width, kernel.shape[-1]))
    for i in range(rows):
        for j in range(columns):
            seen = padded[:, i : i + down * height : down, j : j + right * width : right]
            total += seen[:, :height, :width] @ kernel[i, j]
    return total.astype(np.int64)


def linear_mod(
    x: HostArray, weights: HostArray, geometry: Geometry | None, prime: int
) -> HostArray:
    """``linear`` modulo a prime, int64 in ``[0, prime)``.

    Args:
        x: field elements, as for ``linear``.
        weights: any integers; small signed ones take one pass, field elements two or more.
        geometry: as for ``linear``.
        prime: the field's.

    Raises:
        UsageError: the layer has so many inputs that no pass would be exact.
    """
    limit = (_EXACT - 1) // (prime - 1)
    if column_norm(weights) <= limit:
        return linear(x, weights, geometry, prime - 1) % prime
    inputs = int(np.prod(weights.shape[:-1]))
    base = 1 << ((limit // inputs) + 1).bit_length() - 1  # inputs * (base - 1) <= limit
    if base < 2:
        raise _validate.UsageError(
            f"A layer of {inputs} inputs is too large for exact sums modulo {prime}. Use a smaller "
            f"prime."
        )
    high, low = np.divmod(weights % prime, base)
    upper = linear_mod(x, high, geometry, prime)
    return (base * upper + linear_mod(x, low, geometry, prime)) % prime


def column_norm(weights: HostArray) -> int:
    """The largest sum of absolute weights of one output."""
    return int(np.abs(weights).reshape(-1, weights.shape[-1]).sum(0, dtype=np.int64).max())
