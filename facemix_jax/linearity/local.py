"""Linearity without mixing: additivity, homogeneity, and the Jacobian against finite steps."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from facemix_jax import _validate
from facemix_jax._types import Array
from facemix_jax.linearity.end_to_end import at_least_float32


def additivity_error(main: Callable[[Array], Array], x: Array) -> Array:
    """``||f(a + b) - f(a) - f(b)|| / ||f(a) + f(b)||`` for pairs of rows.

    Args:
        main: any function of a batch that treats its rows alike.
        x: ``[B, ...]``, ``B`` even: the first half are the ``a``, the second the ``b``. Where
            maps are cut into tiles, the caller sees to it that each meets the same tile of another
            example.

    Returns:
        float ``[B / 2]``; 0 where main is additive.

    Raises:
        UsageError: ``B`` is odd.
    """
    _validate.divides(2, divisor_name="the size of a pair", batch_size=x.shape[0])
    run = jax.jit(main)
    both = run(x)
    half = x.shape[0] // 2
    # In a batch of the same size, which needs no second compilation.
    together = run(jnp.concatenate([x[:half] + x[half:]] * 2))[:half]
    return _relative(together, both[:half] + both[half:])


def homogeneity_error(main: Callable[[Array], Array], x: Array, scale: float) -> Array:
    """``||f(s x) - s f(x)|| / ||s f(x)||`` for each example.

    ReLU and max-pool are homogeneous for positive scales, and constants for none; at -1 an odd
    function is.

    Args:
        main: any function of a batch that treats its rows alike.
        x: ``[B, ...]``.
        scale: ``s``, not 0.

    Returns:
        float ``[B]``.
    """
    run = jax.jit(main)
    direct = run(x)
    factor = jnp.asarray(scale, x.dtype)
    return _relative(run(x * factor), direct * jnp.asarray(scale, direct.dtype))


def jacobian_error(
    main: Callable[[Array], Array], x: Array, target: Array, fraction: float
) -> Array:
    """How far main bends on the way from an activation to a mixture.

    ``||f(x + t d) - f(x) - t J d|| / ||t J d||`` with ``d = target - x`` and ``J`` main's Jacobian
    at ``x``: 0 for an affine main at any ``t``, and near 0 for small ``t`` where the error of a
    finite step comes from far away.

    Args:
        main: any function of a batch that treats its rows alike.
        x: ``[B, ...]``.
        target: ``[B, ...]``, mixtures or other activations.
        fraction: ``t``; 1 reaches the target.

    Returns:
        float ``[B]``.
    """
    direction = (target - x).astype(x.dtype) * jnp.asarray(fraction, x.dtype)
    value, slope = jax.jit(lambda x, d: jax.jvp(main, (x,), (d,)))(x, direction)
    return _relative(jax.jit(main)(x + direction) - value, slope)


def _relative(value: Array, wanted: Array) -> Array:
    value, wanted = at_least_float32(value, wanted)
    rows = value.shape[0]
    difference = jnp.linalg.norm((value - wanted).reshape(rows, -1), axis=1)
    return difference / jnp.linalg.norm(wanted.reshape(rows, -1), axis=1)
