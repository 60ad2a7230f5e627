"""What theory says about the unmix error: rounding, constants, and one ReLU."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from facemix_jax import _validate, mixing
from facemix_jax._types import Array, Variables


def unit_roundoff(dtype: jnp.dtype) -> float:
    """``u``: rounding to nearest changes a number by a factor of at most ``1 +- u``."""
    return float(jnp.finfo(dtype).eps) / 2


def rounding_bound(
    dtype: jnp.dtype,
    *,
    group_size: int,
    fan_ins: Sequence[int],
    condition: float = 1.0,
) -> float:
    """A bound on the relative unmix error of a linear main, from its sizes alone.

    A sum of ``n`` products rounds its ``n`` partial sums, each by at most ``u`` times itself, and
    in the mean square by a third of that. For terms of random sign the mean squares of partial
    sums grow in proportion to the number of terms, so that errors of independent sign add up to
    ``n / 6 * u**2`` relative to the square of the result (the probabilistic analysis of Higham
    and Mary, 2019, in the root mean square; for terms of one sign it is ``n / 9``); ``n / 4``
    leaves a margin. Sums are taken in float32 or wider and their result rounded to ``dtype``.
    Mixing and unmixing (``M`` terms each, in float32 or wider), what the drawn matrix lacks of
    orthogonality, and every layer, in the direct and the mixed pass, contribute; layers are
    assumed to enlarge errors as they enlarge their input. Errors of the mixed pass are enlarged
    by ``condition``.

    It holds for norms over many outputs (a few hundred) with the margin that roundings are on
    average smaller than ``u``, not for single numbers. It is no worst case: weights chosen by an
    adversary, or a layer whose results cancel for its input, exceed it. With the matrix's largest
    singular value over its smallest as ``condition`` it holds for every key; with the mean over
    directions, as in ``UnmixError.condition``, for the root mean square over keys.

    Args:
        dtype: of main.
        group_size: ``M``.
        fan_ins: terms per output of each layer, in any order; 1 for an elementwise one.
        condition: of the matrix, at its worst or in the mean; 1 for orthogonal ones.

    Returns:
        The bound on ``||unmix(main(mix(x))) - main(x)|| / ||main(x)||``.
    """
    _validate.positive(group_size=group_size)
    rounding, adding = (unit_roundoff(d) ** 2 for d in (dtype, _accumulator(dtype)))
    mixing_part = group_size / 4 * adding
    layers = sum(n / 4 * adding + rounding for n in fan_ins)
    # QR leaves a matrix orthogonal only nearly. Measured for M = 2 to 1,024: a mean squared defect
    # of 3 to 120 u^2 per row, and up to 74 u^2 in single small matrices.
    defect = (74 + group_size / 2) * adding
    mixed_pass = mixing_part + rounding + layers + mixing_part + adding + defect
    return math.sqrt(condition**2 * mixed_pass + layers)


def _accumulator(dtype: jnp.dtype) -> jnp.dtype:
    return dtype if dtype.itemsize > 4 else jnp.dtype("float32")


def fan_ins(variables: Variables) -> list[int]:
    """Terms per output of every convolution, dense layer and BatchNorm, read off the variables.

    Args:
        variables: of a segment.
    """
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables.get("params", {})):
        if path[-1].key == "kernel":
            found.append(math.prod(leaf.shape[:-1]))
        elif path[-1].key == "scale":
            found.append(1)
    return found


def affine_error(mix_key: mixing.MixKey, constant: Array) -> Array:
    """The exact unmix error of ``main(x) = L(x) + constant`` with a linear ``L``.

    Mixed and direct results differ by ``(1 - A 1) constant`` before unmixing and therefore by
    ``(inverse(A) 1 - 1) constant`` after it: the same constant in all rows, each with a weight
    that depends on the key alone.

    Args:
        mix_key: for ``B`` examples.
        constant: ``[...]``, what main adds to every row.

    Returns:
        float ``[B, ...]``, ``unmix(main(mix(x))) - main(x)``.
    """
    ones = jnp.ones((mix_key.batch_size, *(1,) * constant.ndim), mix_key.inverse.dtype)
    return (mixing.unmix(mix_key, ones) - ones) * constant[None]


EXPECTED_AFFINE = math.sqrt(2)
"""Root mean square over Haar matrices of ``affine_error``, in units of the constant's norm, per
row: ``E ||A^T 1 - 1||^2 = 2 M``, as ``E A = 0``."""


def relu_error(x: Array) -> Array:
    """Expected relative unmix error of one ReLU on given activations, over Haar matrices.

    With ``r(x) = (x + |x|) / 2`` for ReLU, ``A^T r(A x)`` is ``x / 2`` plus a part that changes
    its sign with ``A``, and so does not correlate with anything in the mean over matrices. Hence
    ``E ||A^T r(A x) - r(x)||^2 = ||x||^2 / 2`` exactly, whatever the activations and the group
    size, for every orthogonal family in which ``A`` and ``-A`` are equally likely. As ``x`` is no
    smaller than ``r(x)``, one ReLU makes an error of at least ``sqrt(1/2)``, reached where all
    activations are positive and the ReLU changes nothing but the mixtures.

    Args:
        x: what ReLU gets, any shape.

    Returns:
        A scalar, ``sqrt(E ||A^T r(A x) - r(x)||^2 / ||r(x)||^2)``.
    """
    x = x.ravel()
    return jnp.linalg.norm(x) / jnp.linalg.norm(jnp.maximum(x, 0)) * math.sqrt(0.5)


def relu_error_gaussian(mean: float = 0.0) -> float:
    """``relu_error`` of independent activations ``N(mean, 1)``, in closed form.

    ``sqrt((1 + m^2) / (2 (1 + m^2) Phi(m) + 2 m phi(m)))``: 1 for mean 0, ``sqrt(1/2)`` for a
    large mean.

    Args:
        mean: ``m``, what activations share, in units of their standard deviation.
    """
    upper = math.erfc(-mean / math.sqrt(2)) / 2
    density = math.exp(-(mean**2) / 2) / math.sqrt(2 * math.pi)
    square = 1 + mean**2
    return math.sqrt(square / (2 * square * upper + 2 * mean * density))


NONNEGATIVE_FLOOR = math.sqrt(0.5)
"""No main whose results are never negative has a smaller relative unmix error, in the root mean
square over keys of an orthogonal family in which ``A`` and ``-A`` are equally likely. Any network
whose main ends with ReLU and average pooling is of this kind, however it was trained.

Proof: with ``o`` and ``g`` the odd and even parts of main at ``z = A x``, the keys ``A`` and
``-A`` recover ``A^T o + A^T g`` and ``A^T o - A^T g``, so that their mean squared error is
``||A^T o - y||^2 + ||g||^2``. Results at ``z`` and ``-z`` are not negative, so ``||g|| >= ||o||``,
and with ``q = ||o|| / ||y||`` the error is at least ``(1 - q)^2 + q^2 >= 1/2`` of ``||y||^2``.
Only what reads main's result, the head, can do better, by ignoring the even part."""
