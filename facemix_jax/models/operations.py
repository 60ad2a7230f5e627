"""The nonlinear operations of a network as modules, so that a study can take hold of each.

ReLU and max-pool have no variables: networks built from them keep the names and shapes of theirs.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from facemix_jax._types import Array, Variables
from facemix_jax.models import stem
from facemix_jax.models.split import Centre

KINDS = ("bias", "shift", "relu", "max_pool")
"""What keeps main from being linear: constants added by convolutions and dense layers, those
added by BatchNorm and ``Centre``, activations (``ACTIVATIONS``), max-pools. The threshold of a
shifted ReLU counts as part of the activation."""

Around = Callable[[str, Callable[[Array], Array], Array], Array]
"""Called as ``(kind, operation, x)`` in place of ``operation(x)``; ``kind`` is one of ``KINDS``."""

Apply = Callable[[Variables, Array], Array]


class Relu(nn.Module):
    """ReLU as a module, which ``intercept`` can find."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Elementwise, any shape."""
        return nn.relu(x)


class PRelu(nn.Module):
    """Parametric ReLU (He et al., 2015): ``x`` where positive, else a learnt slope times ``x``.

    One slope per channel, .25 at first. Homogeneous of degree one for positive factors whatever
    the slopes, and linear where they are 1.
    """

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Elementwise, channels last."""
        slope = _per_channel(self.param("slope", _constant(0.25), x.shape[-1:], jnp.float32), x)
        # This way it is the very ReLU at slope 0 and the very input at 1.
        return slope * x + (1 - slope) * nn.relu(x)


class ShiftedRelu(nn.Module):
    """Shifted ReLU (Qi et al., 2020): ``max(x, t)`` with a learnt threshold per channel.

    It is -1 at first. Linear where nothing lies below the thresholds, and homogeneous for none.
    """

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Elementwise, channels last."""
        threshold = self.param("threshold", _constant(-1.0), x.shape[-1:], jnp.float32)
        return jnp.maximum(x, _per_channel(threshold, x))


_constant = nn.initializers.constant


def _per_channel(parameter: Array, x: Array) -> Array:
    return parameter.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": Relu,
    "prelu": PRelu,
    "shifted": ShiftedRelu,
}
"""By name, as in ``ModelConfig.activation``."""


class MaxPool(nn.Module):
    """Max-pool as a module, for the same reason."""

    window: tuple[int, int]
    strides: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0))

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """``[B, H, W, C]`` to ``[B, h, w, C]``."""
        if (self.window, self.strides, self.padding) == ((3, 3), (2, 2), ((1, 1), (1, 1))):
            return stem.max_pool(x)
        return nn.max_pool(x, self.window, self.strides, self.padding)


def _kind(module: nn.Module) -> str | None:
    match module:
        case Relu() | PRelu() | ShiftedRelu():
            return "relu"
        case MaxPool():
            return "max_pool"
        case nn.BatchNorm() | Centre():
            return "shift"
        case nn.Conv(use_bias=True) | nn.Dense(use_bias=True):
            return "bias"
    return None


def _handled(
    apply: Apply, handle: Callable[[nn.Module, Callable[..., Array], Array], Array]
) -> Apply:
    """``apply`` in which ``handle(module, call, x)`` stands in place of every module's call."""

    def interceptor(
        call: Callable[..., Array],
        args: tuple,
        options: dict,
        context: nn.module.InterceptorContext,
    ) -> Array:
        if context.method_name != "__call__":
            return call(*args, **options)
        x, *rest = args
        return handle(context.module, lambda value: call(value, *rest, **options), x)

    def run(variables: Variables, x: Array) -> Array:
        with nn.intercept_methods(interceptor):
            return apply(variables, x)

    return run


def intercept(apply: Apply, around: Around) -> Apply:
    """A segment's ``apply`` in which ``around`` stands in place of every nonlinear operation.

    Args:
        apply: of a ``Segment``, or one of its layers.
        around: called while the network is traced, in the order of computation.
    """

    def handle(module: nn.Module, call: Callable[[Array], Array], x: Array) -> Array:
        kind = _kind(module)
        return call(x) if kind is None else around(kind, call, x)

    return _handled(apply, handle)


def _nonlinear(apply: Apply, variables: Variables, x: Array) -> list[nn.Module]:
    """The modules of nonlinear operations, in the order in which they end."""
    found = []

    def handle(module: nn.Module, call: Callable[[Array], Array], x: Array) -> Array:
        result = call(x)
        if _kind(module):
            found.append(module)
        return result

    jax.eval_shape(_handled(apply, handle), variables, x)
    return found


def kinds_in(apply: Apply, variables: Variables, x: Array) -> tuple[str, ...]:
    """The kinds of nonlinear operation that a segment has, in the order of ``KINDS``."""
    found = {_kind(module) for module in _nonlinear(apply, variables, x)}
    return tuple(kind for kind in KINDS if kind in found)


def ends_with_relu(apply: Apply, variables: Variables, x: Array) -> bool:
    """Whether the last operation of ``KINDS`` is a plain ReLU, so that no result is negative.

    Averages may follow it. False where there is no such operation.
    """
    found = _nonlinear(apply, variables, x)
    return bool(found) and isinstance(found[-1], Relu)


def linear_twin(apply: Apply) -> Apply:
    """The same network made linear: no constants, no activation, averages in place of maxima.

    Weights, BatchNorm's scales and the number of operations stay, and so does rounding.
    """

    def handle(module: nn.Module, call: Callable[[Array], Array], x: Array) -> Array:
        if _kind(module) == "relu":
            return x
        if isinstance(module, MaxPool):
            return nn.avg_pool(x, module.window, module.strides, module.padding)
        return call(x)

    twin = _handled(apply, handle)
    return lambda variables, x: twin(without_constants(variables), x)


def without_constants(variables: Variables) -> Variables:
    """Variables with zeros for all biases and running means, which leaves a linear BatchNorm."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.zeros_like(leaf) if path[-1].key in ("bias", "mean") else leaf,
        variables,
    )
