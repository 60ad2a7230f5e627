"""Rounding on the device at hand: dtype, precision of products, order of summation, conditioning.

Every function returns rows ready for JSON and runs on any device.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from facemix_jax import mixing
from facemix_jax._types import Array, RngKey
from facemix_jax.linearity.end_to_end import UnmixError, at_least_float32, finite, measure
from facemix_jax.linearity.theory import rounding_bound

PRECISIONS = ("default", "high", "highest")
"""Of matrix products: a GPU computes float32 in tf32, a TPU in bf16, unless told otherwise."""

DTYPES = ("float64", "float32", "bfloat16", "float16", "float8_e4m3fn")

_REFUSALS = (
    TypeError,
    NotImplementedError,
    jax.errors.JaxRuntimeError,
    jax.dtypes.TypePromotionError,
)
"""How backends and Flax say that they do not compute in a dtype."""

TF32_BITS = (8, 10)
"""Exponent and mantissa: what a tensor core keeps of a float32 operand."""


def mixing_errors(
    x: Array,
    *,
    rng_key: RngKey,
    group_sizes: Sequence[int],
    dtypes: Sequence[str] = DTYPES,
    precisions: Sequence[str] = PRECISIONS,
) -> list[dict[str, Any]]:
    """Relative error of mixing and unmixing with nothing between: the library's and a plain one.

    The plain one multiplies in the given dtype at the process's default precision; ``mixing``
    asks for the highest precision itself and keeps its matrix in float32 or wider. The plain
    product is also shown with its operands rounded to tf32 by hand, as a GPU does it.

    Args:
        x: float ``[B, ...]``.
        rng_key: draws one matrix for each group size; consumed.
        group_sizes: ``M``, each dividing ``B``.
        dtypes: of the activations; float64 is measured in a 64-bit context.
        precisions: for ``jax.default_matmul_precision``.

    Returns:
        Rows ``{"group_size", "dtype", "precision", "ours", "plain", "plain_tf32_emulated"}``;
        None where the device cannot do it (the reason in ``"unavailable"``), where results leave
        the dtype's range, or where emulation says nothing.
    """
    rows = []
    for group_size in group_sizes:
        for dtype in dtypes:
            for precision in precisions:
                with (
                    jax.enable_x64(dtype == "float64"),
                    jax.default_matmul_precision(precision),
                ):
                    row = {"group_size": group_size, "dtype": dtype, "precision": precision}
                    rows.append(row | _round_trips(x, rng_key, group_size, dtype))
    return rows


def _round_trips(x: Array, rng_key: RngKey, group_size: int, dtype: str) -> dict[str, Any]:
    values = jnp.asarray(x, dtype)
    mix_key = mixing.sample_mix_key(rng_key, x.shape[0] // group_size, group_size, shuffle=False)

    def ours(values: Array) -> Array:
        # A compiler that fused both might leave the rounding of what is sent out.
        sent = jax.lax.optimization_barrier(mixing.mix(mix_key, values).astype(values.dtype))
        return mixing.unmix(mix_key, sent)

    def plain(values: Array, rounded: Callable[[Array], Array] = lambda a: a) -> Array:
        matrix = rounded(mix_key.matrix.astype(values.dtype))
        groups = values.reshape(-1, group_size, values[0].size)
        mixed = jnp.matmul(matrix, rounded(groups))
        return jnp.matmul(matrix.mT, rounded(mixed)).reshape(values.shape)

    found: dict[str, Any] = {}
    for name, function in (("ours", ours), ("plain", plain)):
        try:
            found[name] = _relative(jax.jit(function)(values), values)
        except _REFUSALS as error:
            found |= {name: None, "unavailable": _first_line(error)}
    emulate = dtype == "float32"
    with jax.default_matmul_precision("highest"):
        found["plain_tf32_emulated"] = (
            _relative(jax.jit(lambda v: plain(v, _to_tf32))(values), values) if emulate else None
        )
    return found


def _to_tf32(x: Array) -> Array:
    return jax.lax.reduce_precision(x, *TF32_BITS)


def main_errors(
    build: Callable[[jnp.dtype], Callable[[Array], Array]],
    x: Array,
    *,
    rng_key: RngKey,
    group_sizes: Sequence[int],
    fan_ins: Sequence[int] | None = None,
    dtypes: Sequence[str] = DTYPES,
    precisions: Sequence[str] = ("highest",),
    num_keys: int = 4,
    family: mixing.Family = mixing.haar,
) -> list[dict[str, Any]]:
    """The unmix error of one main in several dtypes, and the bound on rounding.

    Args:
        build: makes main for a dtype; called within a 64-bit context for float64.
        x: float32 ``[B, ...]``.
        rng_key: draws the keys; consumed.
        group_sizes: ``M``, each dividing ``B`` and one that the family has matrices for.
        fan_ins: of a linear main, for ``theory.rounding_bound``; None leaves the bound out.
        dtypes: of the computation.
        precisions: for ``jax.default_matmul_precision``.
        num_keys: averaged.
        family: of matrices.

    Returns:
        Rows ``{"group_size", "dtype", "precision", "mean", "standard_deviation", "bound"}``;
        ``mean`` is None where the device cannot do it, with the reason in ``"unavailable"`` and no
        bound, and where results leave the dtype's range; ``standard_deviation`` for one key, too.
        The bound takes the condition of the matrices that were drawn.
    """
    rows: list[dict[str, Any]] = []
    for dtype in dtypes:
        for precision in precisions:
            with jax.enable_x64(dtype == "float64"), jax.default_matmul_precision(precision):
                values = jnp.asarray(x, dtype)
                try:
                    main = build(jnp.dtype(dtype))
                    errors = [
                        measure(
                            main,
                            values,
                            rng_key=rng_key,
                            group_size=m,
                            num_keys=num_keys,
                            family=family,
                        )
                        for m in group_sizes
                    ]
                    found: list[dict[str, Any]] = [
                        {
                            "mean": finite(e.mean),
                            "standard_deviation": finite(e.standard_deviation),
                            **_bound(dtype, m, fan_ins, e),
                        }
                        for m, e in zip(group_sizes, errors, strict=True)
                    ]
                except _REFUSALS as error:
                    found = [{"mean": None, "unavailable": _first_line(error)} for _ in group_sizes]
            for group_size, measured in zip(group_sizes, found, strict=True):
                row = {"group_size": group_size, "dtype": dtype, "precision": precision}
                rows.append(row | measured)
    return rows


def _bound(
    dtype: str, group_size: int, fan_ins: Sequence[int] | None, error: UnmixError
) -> dict[str, float]:
    """Of the root mean square over the keys that were drawn, which is no less than their mean."""
    if fan_ins is None:
        return {}
    condition = float(jnp.sqrt(jnp.mean(jnp.square(error.condition))))
    bound = rounding_bound(
        jnp.dtype(dtype), group_size=group_size, fan_ins=fan_ins, condition=condition
    )
    return {"bound": bound}


def order_errors(x: Array, *, rng_key: RngKey, group_sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Mixing's sums of ``M`` terms taken in three orders, against float64.

    Args:
        x: float32 ``[B, ...]``.
        rng_key: draws the matrices; consumed.
        group_sizes: ``M``, each dividing ``B``.

    Returns:
        Rows ``{"group_size", "product", "one_after_another", "pairwise"}``: relative errors of
        mixing alone; ``product`` is the library's.
    """
    rows = []
    for group_size in group_sizes:
        mix_key = mixing.sample_mix_key(
            rng_key, x.shape[0] // group_size, group_size, shuffle=False
        )
        groups = mixing.group(x.reshape(x.shape[0], -1), group_size)
        with jax.enable_x64(True):
            exact = jnp.matmul(
                mix_key.matrix.astype(jnp.float64), groups.astype(jnp.float64), precision="highest"
            )
        sums = {
            "product": jax.jit(mixing.mix)(mix_key, groups.reshape(x.shape[0], -1)),
            "one_after_another": jax.jit(_one_after_another)(mix_key.matrix, groups),
            "pairwise": jax.jit(_pairwise)(mix_key.matrix, groups),
        }
        row: dict[str, Any] = {"group_size": group_size}
        with jax.enable_x64(True):
            row |= {k: _relative(v.reshape(exact.shape), exact) for k, v in sums.items()}
        rows.append(row)
    return rows


def _one_after_another(matrix: Array, groups: Array) -> Array:
    terms = (jnp.moveaxis(matrix, 2, 0), jnp.moveaxis(groups, 1, 0))
    start = jnp.zeros(groups.shape, groups.dtype)
    return jax.lax.scan(
        lambda total, term: (total + term[0][:, :, None] * term[1][:, None], None), start, terms
    )[0]


def _pairwise(matrix: Array, groups: Array) -> Array:
    terms = matrix[..., None] * groups[:, None]  # [G, M, M, N]
    while terms.shape[2] > 1:
        odd = terms[:, :, terms.shape[2] // 2 * 2 :]  # waits for the next round
        paired = terms[:, :, : terms.shape[2] // 2 * 2]
        terms = jnp.concatenate([paired[:, :, ::2] + paired[:, :, 1::2], odd], axis=2)
    return terms[:, :, 0]


def conditioned(condition_number: float) -> mixing.Family:
    """A family of random matrices with one condition number, for studies.

    Left and right singular vectors are Haar; singular values lie evenly on a logarithmic scale
    around 1.

    Args:
        condition_number: largest over smallest singular value; 1 is ``mixing.haar``.
    """

    def family(rng_key: RngKey, num_groups: int, group_size: int) -> tuple[Array, Array]:
        left_key, right_key = jax.random.split(rng_key)
        left, right = (
            jax.random.orthogonal(k, group_size, (num_groups,)) for k in (left_key, right_key)
        )
        half = float(condition_number) ** 0.5
        values = jnp.geomspace(half, 1 / half, group_size, dtype=left.dtype)[None, None, :]
        return (
            jnp.matmul(left * values, right.mT, precision=mixing.PRECISION),
            jnp.matmul(right / values, left.mT, precision=mixing.PRECISION),
        )

    return family


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:200]


def _relative(value: Array, wanted: Array) -> float | None:
    value, wanted = at_least_float32(value.ravel(), wanted.ravel())
    return finite(float(jnp.linalg.norm(value - wanted) / jnp.linalg.norm(wanted)))
