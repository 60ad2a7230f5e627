"""Everything the laboratory says about one network, as numbers ready for JSON."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from facemix_jax import mixing
from facemix_jax._types import Array, HostArray, RngKey, Variables
from facemix_jax.linearity import local, precision, theory
from facemix_jax.linearity.causes import cause_errors
from facemix_jax.linearity.end_to_end import UnmixError, draw_keys, finite, measure
from facemix_jax.linearity.layers import layer_errors
from facemix_jax.models import SplitModel, operations

SWEEP_DTYPES = ("float64", "float32", "bfloat16", "float16")
FRACTIONS = (0.01, 0.1, 1.0)
"""Of the way from an activation to a mixture, where the Jacobian is compared."""


def examine(
    model: SplitModel,
    variables: Variables,
    x: Array,
    *,
    rng_key: RngKey,
    group_size: int,
    num_keys: int = 8,
    family: mixing.Family = mixing.haar,
) -> dict[str, Any]:
    """End to end, layer by layer, by cause, and linearity without mixing.

    Args:
        model: the split network.
        variables: ``{"main", "post"}``.
        x: activations at the cut, ``[B, ...]``, ``B`` a multiple of ``group_size``.
        rng_key: draws the keys; consumed.
        group_size: ``M``.
        num_keys: how many.
        family: of matrices.

    Returns:
        ``{"relative_unmix_error", "nonnegative_floor", "layers", "causes", "local"}``. Means and
        standard deviations are over keys, in ``"local"`` over rows (examples, or their tiles), of
        which those are left out (and counted in ``"left_out"``) whose result is zero or not
        finite. What no number says is None, as the deviation of a single value, and the causes'
        shares and interaction where ``"unknown"``, as in ``CauseErrors``. The floor is None
        where it does not apply: where main does not end with a ReLU, averages aside.

    Raises:
        UsageError: a size is out of range, or the group size does not divide the batch.
    """
    options: dict[str, Any] = {
        "rng_key": rng_key,
        "group_size": group_size,
        "num_keys": num_keys,
        "family": family,
    }
    main = functools.partial(model.main.apply, variables["main"])
    post = functools.partial(model.post.apply, variables["post"])
    layers = [(name, functools.partial(f, variables["main"])) for name, f in model.main.layers]
    errors = {
        "features": _end_to_end(measure(main, x, **options)),
        "logits": _end_to_end(measure(main, x, read=post, **options)),
    }
    stretches = layer_errors(layers, x, **options)
    causes = cause_errors(model.main.apply, variables["main"], x, **options)
    mixed = mixing.mix(draw_keys(rng_key, x, group_size, 1, family)[0], x)
    nonnegative = operations.ends_with_relu(model.main.apply, variables["main"], x)
    return {
        "relative_unmix_error": errors,
        "nonnegative_floor": theory.NONNEGATIVE_FLOOR if nonnegative else None,
        "layers": {
            "names": list(stretches.names),
            "pairs": _mean_and_deviation(stretches.pairs),
            "made": _mean_and_deviation(stretches.made),
            "shares": _mean_and_deviation(stretches.shares),
        },
        "causes": {
            "names": list(causes.causes),
            "total": _mean_and_deviation(causes.total),
            "alone": _mean_and_deviation(causes.alone),
            "without": _mean_and_deviation(causes.without),
            "shares": _mean_and_deviation(causes.shares),
            "interaction": _mean_and_deviation(causes.interaction),
            "interaction_share": _mean_and_deviation(causes.interaction_share),
            "rounding": _mean_and_deviation(causes.rounding),
            "unknown": causes.unknown,
        },
        "local": {
            "additivity": _over_examples(local.additivity_error(main, _pairs(x, model.spec.tiles))),
            "homogeneity": {
                str(scale): _over_examples(local.homogeneity_error(main, x, scale))
                for scale in (0.5, 2.0, -1.0)
            },
            "jacobian": {
                str(fraction): _over_examples(local.jacobian_error(main, x, mixed, fraction))
                for fraction in FRACTIONS
            },
        },
    }


def sweep(
    rebuild: Callable[[jnp.dtype], SplitModel],
    variables: Variables,
    x: Array,
    *,
    rng_key: RngKey,
    group_sizes: Sequence[int],
    num_keys: int = 4,
    family: mixing.Family = mixing.haar,
) -> list[dict[str, Any]]:
    """The error against ``M`` and dtype, of the network and of its linear twin, with the bound.

    Args:
        rebuild: the same network in another dtype.
        variables: ``variables["main"]``.
        x: activations at the cut, ``[B, ...]``.
        rng_key: draws the keys; consumed.
        group_sizes: ``M``, each dividing ``B`` and one that the family has matrices for.
        num_keys: averaged.
        family: of matrices.

    Returns:
        Rows of ``precision.main_errors`` with ``"main"``: ``network`` or ``linear twin``; only
        the twin has a bound.
    """

    def build(linear: bool, dtype: jnp.dtype) -> Callable[[Array], Array]:
        apply = rebuild(dtype).main.apply
        own = variables
        if dtype == jnp.float64:
            own = jax.tree_util.tree_map(lambda leaf: leaf.astype(dtype), variables)
        return functools.partial(operations.linear_twin(apply) if linear else apply, own)

    rows = []
    for linear in (False, True):
        for row in precision.main_errors(
            functools.partial(build, linear),
            x,
            rng_key=rng_key,
            group_sizes=group_sizes,
            fan_ins=theory.fan_ins(variables) if linear else None,
            dtypes=SWEEP_DTYPES,
            num_keys=num_keys,
            family=family,
        ):
            rows.append({"main": "linear twin" if linear else "network", **row})
    return rows


def _pairs(x: Array, tiles: int) -> Array:
    """Rows in the order of ``local.additivity_error``: each tile with that of another example.

    An example without another is left out, the only one paired with itself.
    """
    by_tile = x.reshape(tiles, -1, *x.shape[1:])  # row t * B + b is tile t of example b
    half = by_tile.shape[1] // 2
    first, second = (by_tile[:, :half], by_tile[:, half : 2 * half]) if half else (by_tile, by_tile)
    return jnp.concatenate([first, second]).reshape(-1, *x.shape[1:])


def _end_to_end(error: UnmixError) -> dict[str, Any]:
    return {
        "mean": finite(error.mean),
        "standard_deviation": finite(error.standard_deviation),
        "standard_deviation_over_inputs": finite(error.standard_deviation_over_inputs),
        "per_key": [finite(float(e)) for e in error.per_key],
    }


def _mean_and_deviation(values: Array) -> dict[str, Any]:
    """Over the first axis; nested lists, None for what is not finite and deviations of one."""
    host = np.asarray(values, np.float64)
    with np.errstate(invalid="ignore"):  # infinity less infinity
        deviation = host.std(0) if len(host) > 1 else np.full_like(host[0], np.nan)
        return {"mean": _listed(host.mean(0)), "standard_deviation": _listed(deviation)}


def _over_examples(errors: Array) -> dict[str, Any]:
    """Of relative errors: an example whose result is zero has none, and counts as left out."""
    kept = errors[jnp.isfinite(errors)]
    left_out = len(errors) - len(kept)
    if not len(kept):
        return {"mean": None, "standard_deviation": None, "left_out": left_out}
    return {**_mean_and_deviation(kept), "left_out": left_out}


def _listed(values: HostArray) -> Any:
    if np.ndim(values):
        return [_listed(value) for value in values]
    return finite(float(f"{values:.6g}"))
