"""A split network in fixed point, its linear layers taken out of the traced program.

The program is what JAX traces of pre, main and post; convolutions and dense layers are found in
it by name, and everything between them (BatchNorm, ReLU, pooling, shortcuts, biases) runs as it
is, in float32, on the edge.

Fixed point: activations are integers up to ``activation_max`` in absolute value, one scale a
layer, set by the largest value on calibration images (larger ones are clipped); weights are
integers with one scale for each output. That scale is made so coarse that no result can wrap:
``sum |w| * activation_max <= (prime - 1) / 2`` for every output, whatever the activations are. So
the integers are those of ordinary arithmetic, and the prime shows in nothing but the precision.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.extend import core as jax_core

from facemix_jax import _validate, inference
from facemix_jax._types import Array, HostArray, Variables
from facemix_jax.models import SplitModel
from facemix_jax.slalom.field import PRIME, Geometry, check_prime, linear

Linear = Callable[[int, HostArray, HostArray, Geometry | None], HostArray]
"""``(index, x, kernel, geometry) -> y``: takes the place of a linear layer, float32 to float32."""


@dataclasses.dataclass(frozen=True)
class Layer:
    """One linear layer in fixed point; the bias is the edge's.

    Attributes:
        weights: int32 ``[kh, kw, I, O]``, or ``[I, O]`` of a dense layer.
        weight_scale: float64 ``[O]``.
        input_scale: activations are multiples of it.
        geometry: of a convolution; None for a dense layer.
        input_shape: of one example, ``[H, W, I]`` or ``[I]``.
    """

    weights: HostArray
    weight_scale: HostArray
    input_scale: float
    geometry: Geometry | None
    input_shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class QuantizedNetwork:
    """A network whose linear layers are in fixed point.

    Attributes:
        model: the split network; where it is cut has no meaning here.
        variables: ``{"pre", "main", "post"}``.
        layers: in the order in which they run.
        prime: of the field.
        activation_max: the largest integer that stands for an activation.
    """

    model: SplitModel
    variables: Variables = dataclasses.field(repr=False)
    layers: tuple[Layer, ...] = dataclasses.field(repr=False)
    prime: int
    activation_max: int

    @functools.cached_property
    def digest(self) -> str:
        """Of all that pads and challenges depend on: the prime, the weights and their geometry.

        Scales are left out: networks that differ in these alone ask the same of the cloud.
        """
        found = hashlib.sha256(str(self.prime).encode())
        for layer in self.layers:
            what = layer.weights.shape, layer.geometry, layer.input_shape
            found.update(repr(what).encode())
            found.update(np.ascontiguousarray(layer.weights).data)
        return found.hexdigest()

    def encode(self, index: int, x: HostArray) -> HostArray:
        """Activations float32 to integers int64 of layer ``index``.

        Raises:
            DataError: NaN or infinities, for which no integer stands.
        """
        if not np.isfinite(x).all():
            raise _validate.DataError(
                f"What layer {index} reads holds NaN or infinities, which have no fixed point. "
                f"Use variables of a training that did not diverge."
            )
        scaled = np.rint(np.asarray(x, np.float64) / self.layers[index].input_scale)
        return np.clip(scaled, -self.activation_max, self.activation_max).astype(np.int64)

    def decode(self, index: int, y: HostArray) -> HostArray:
        """Results int64 of layer ``index`` to float32."""
        layer = self.layers[index]
        return (y * (layer.input_scale * layer.weight_scale)).astype(np.float32)


def quantize(
    model: SplitModel,
    variables: Variables,
    images: HostArray | Array,
    *,
    prime: int = PRIME,
    activation_max: int = 255,
    weight_max: int = 127,
) -> QuantizedNetwork:
    """Puts a network's linear layers into fixed point.

    Args:
        model: any split network without tiles.
        variables: ``{"pre", "main", "post"}``.
        images: normalised float ``[B, H, W, 3]``, at least one, whose activations set the scales.
        prime: of the field, at most ``2**31 - 1``.
        activation_max: the largest integer that stands for an activation.
        weight_max: the largest that stands for a weight; less where the prime asks for it.

    Raises:
        UsageError: a number is out of range, a layer is of a kind that is not outsourced, the
            network has tiles, or the images have another size or type.
        DataError: weights, images or activations are NaN or infinite.
    """
    check_prime(prime)
    _validate.positive(activation_max=activation_max, weight_max=weight_max)
    if model.spec.tiles > 1:
        raise _validate.UsageError(
            f"The network cuts its maps into {model.spec.tiles} tiles, but Slalom takes whole "
            f"maps, one pad for each image. Build the network without a tile size."
        )
    check_images(model, images)
    limit = (prime - 1) // 2 // activation_max
    layers: list[Layer] = []

    def calibrate(
        index: int, x: HostArray, kernel: HostArray, geometry: Geometry | None
    ) -> HostArray:
        weights, scale = _fixed_point(kernel.astype(np.float64), weight_max, limit)
        largest = float(np.abs(x).max()) or 1.0
        layers.append(Layer(weights, scale, largest / activation_max, geometry, x.shape[1:]))
        network = QuantizedNetwork(model, variables, tuple(layers), prime, activation_max)
        return network.decode(index, _product(network, index, network.encode(index, x)))

    run(model, variables, images, calibrate)
    return QuantizedNetwork(model, variables, tuple(layers), prime, activation_max)


def run_plain(network: QuantizedNetwork, images: HostArray | Array) -> HostArray:
    """Logits float32 ``[B, K, classes]`` of the fixed-point network, without prime or blinding."""

    def plain(index: int, x: HostArray, *_: Any) -> HostArray:
        return network.decode(index, _product(network, index, network.encode(index, x)))

    return run(network.model, network.variables, images, plain)


def _product(network: QuantizedNetwork, index: int, x: HostArray) -> HostArray:
    layer = network.layers[index]
    return linear(x, layer.weights, layer.geometry, network.activation_max)


def _fixed_point(kernel: HostArray, weight_max: int, limit: int) -> tuple[HostArray, HostArray]:
    """Integers and one scale for each output, absolute sums at most ``limit``."""
    if not np.isfinite(kernel).all():
        raise _validate.DataError(
            "A linear layer's weights hold NaN or infinities, which have no fixed point. Use "
            "variables of a training that did not diverge."
        )
    flat = np.abs(kernel).reshape(-1, kernel.shape[-1])
    if limit < 1:
        raise _validate.UsageError(
            "The prime is too small: not even a weight of 1 could be used without results that "
            "wrap. Use a larger prime or a smaller activation_max."
        )
    scale = np.maximum(flat.max(0) / weight_max, flat.sum(0) / limit)
    scale[scale == 0] = 1.0
    while True:
        sums = np.rint(flat / scale).sum(0)
        if (sums <= limit).all():
            break
        # Rounding added a little: the outputs concerned become a little coarser.
        scale = np.where(sums > limit, scale * 1.01 * sums / limit, scale)
    return np.rint(kernel / scale).astype(np.int32), scale


def check_images(model: SplitModel, images: HostArray | Array) -> None:
    """Raises an error unless there are images, floats of the network's size and finite."""
    inference.check_images(model, images)
    if not len(images):
        raise _validate.UsageError(
            f"images have shape {images.shape}, but there must be at least one. Give some."
        )
    if not np.isfinite(images).all():
        raise _validate.DataError(
            "images hold NaN or infinities, which have no fixed point. Give finite images."
        )


def run(
    model: SplitModel, variables: Variables, images: HostArray | Array, linear: Linear
) -> HostArray:
    """The network with ``linear`` in the place of every linear layer; logits float32.

    Args:
        model: the network.
        variables: ``{"pre", "main", "post"}``.
        images: normalised float ``[B, H, W, 3]``.
        linear: called layer by layer.
    """

    def whole(variables: Variables, images: Array) -> Array:
        features = model.main(variables["main"], model.pre(variables["pre"], images))
        return model.post(variables["post"], features)

    variables = {name: variables[name] for name in ("pre", "main", "post")}
    arguments = (variables, jax.numpy.asarray(images, jax.numpy.float32))
    program = jax.make_jaxpr(whole)(*arguments)
    return np.asarray(_Interpreter(linear).run(program, jax.tree.leaves(arguments))[0])


class _Interpreter:
    """Runs a program operation by operation."""

    def __init__(self, linear: Linear) -> None:
        self._linear, self._count = linear, 0

    def run(self, program: Any, arguments: list[Any]) -> list[Any]:
        values = dict(zip(program.jaxpr.constvars, program.consts, strict=True))
        values |= dict(zip(program.jaxpr.invars, arguments, strict=True))

        def value(atom: Any) -> Any:
            return atom.val if isinstance(atom, jax_core.Literal) else values[atom]

        for equation in program.jaxpr.eqns:
            results = self._apply(equation, [value(atom) for atom in equation.invars])
            values |= dict(zip(equation.outvars, results, strict=True))
        return [value(atom) for atom in program.jaxpr.outvars]

    def _apply(self, equation: Any, inputs: list[Any]) -> list[Any]:
        name, params = equation.primitive.name, equation.params
        if name in ("conv_general_dilated", "dot_general"):
            geometry = _geometry(name, params)
            x, kernel = (np.asarray(part) for part in inputs)
            index, self._count = self._count, self._count + 1
            made = self._linear(index, x, kernel, geometry)
            return [jax.numpy.asarray(made, equation.outvars[0].aval.dtype)]
        inner = params.get("jaxpr") or params.get("call_jaxpr")
        if params.get("branches_platforms"):
            # The last way of writing it is for all platforms not named.
            inner, inputs = params["branches"][-1], inputs[1:]
        if isinstance(inner, jax_core.ClosedJaxpr):  # ReLU, and whatever is jitted by itself
            return self.run(inner, inputs)
        result = equation.primitive.bind(*inputs, **params)
        return list(result) if equation.primitive.multiple_results else [result]


def _geometry(name: str, params: Any) -> Geometry | None:
    numbers = params["dimension_numbers"]
    if name == "dot_general":
        if numbers == (((1,), (0,)), ((), ())):
            return None
    elif (
        (numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec)
        == ((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))
        and {*params["lhs_dilation"], *params["rhs_dilation"]} == {1}
        and params["feature_group_count"] == params["batch_group_count"] == 1
    ):
        down, right = params["window_strides"]
        above, left = params["padding"]
        return Geometry((down, right), (tuple(above), tuple(left)))
    raise _validate.UsageError(
        f"A layer {name} with {numbers} is not outsourced: only plain convolutions of [B, H, W, C] "
        f"and products [B, I] with [I, O] are. Use ResNet-18 or VGG-16."
    )
