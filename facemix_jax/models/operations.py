"""The nonlinear operations of a network as modules, so that a study can take hold of each.

They have no variables: networks built from them keep the names and shapes of theirs.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from facemix_jax._types import Array, Variables
from facemix_jax.models.split import Centre

KINDS = ("bias", "shift", "relu", "max_pool")
"""What keeps main from being linear: constants added by convolutions and dense layers, those
added by BatchNorm and ``Centre``, ReLUs, max-pools."""

Around = Callable[[str, Callable[[Array], Array], Array], Array]
"""Called as ``(kind, operation, x)`` in place of ``operation(x)``; ``kind`` is one of ``KINDS``."""

Apply = Callable[[Variables, Array], Array]


class Relu(nn.Module):
    """ReLU as a module, which ``intercept`` can find."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Elementwise, any shape."""
        return nn.relu(x)


class MaxPool(nn.Module):
    """Max-pool as a module, for the same reason."""

    window: tuple[int, int]
    strides: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0))

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """``[B, H, W, C]`` to ``[B, h, w, C]``."""
        return nn.max_pool(x, self.window, self.strides, self.padding)


def _kind(module: nn.Module) -> str | None:
    match module:
        case Relu():
            return "relu"
        case MaxPool():
            return "max_pool"
        case nn.BatchNorm() | Centre():
            return "shift"
        case nn.Conv(use_bias=True) | nn.Dense(use_bias=True):
            return "bias"
    return None


def intercept(apply: Apply, around: Around) -> Apply:
    """A segment's ``apply`` in which ``around`` stands in place of every nonlinear operation.

    Args:
        apply: of a ``Segment``, or one of its layers.
        around: called while the network is traced, in the order of computation.
    """

    def interceptor(
        call: Callable[..., Array],
        args: tuple,
        options: dict,
        context: nn.module.InterceptorContext,
    ) -> Array:
        kind = _kind(context.module) if context.method_name == "__call__" else None
        if kind is None:
            return call(*args, **options)
        x, *rest = args
        return around(kind, lambda value: call(value, *rest, **options), x)

    def run(variables: Variables, x: Array) -> Array:
        with nn.intercept_methods(interceptor):
            return apply(variables, x)

    return run


def kinds_in(apply: Apply, variables: Variables, x: Array) -> tuple[str, ...]:
    """The kinds of nonlinear operation that a segment has, in the order of ``KINDS``."""
    found = set()

    def note(kind: str, operation: Callable[[Array], Array], value: Array) -> Array:
        found.add(kind)
        return operation(value)

    jax.eval_shape(intercept(apply, note), variables, x)
    return tuple(kind for kind in KINDS if kind in found)


def linear_twin(apply: Apply) -> Apply:
    """The same network made linear: no constants, no ReLU, averages in place of maxima.

    Weights, BatchNorm's scales and the number of operations stay, and so does rounding.
    """

    def interceptor(
        call: Callable[..., Array],
        args: tuple,
        options: dict,
        context: nn.module.InterceptorContext,
    ) -> Array:
        module = context.module
        if context.method_name == "__call__" and isinstance(module, Relu):
            return args[0]
        if context.method_name == "__call__" and isinstance(module, MaxPool):
            return nn.avg_pool(args[0], module.window, module.strides, module.padding)
        return call(*args, **options)

    def run(variables: Variables, x: Array) -> Array:
        with nn.intercept_methods(interceptor):
            return apply(without_constants(variables), x)

    return run


def without_constants(variables: Variables) -> Variables:
    """Variables with zeros for all biases and running means, which leaves a linear BatchNorm."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.zeros_like(leaf) if path[-1].key in ("bias", "mean") else leaf,
        variables,
    )
