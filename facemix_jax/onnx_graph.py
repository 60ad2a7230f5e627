"""JAX functions as ONNX models: the few operations that pre, mixing, unmixing and post consist of.

What is converted is the function that JAX runs itself, traced, so that networks are described
once. jax2onnx 0.17.1 would be the library for this, but it cannot be installed with our Orbax,
and the max-pool that it writes is refused by ONNX Runtime.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
from jax import export as jax_export
from jax.extend.core import primitives
from onnx import helper, numpy_helper

from facemix_jax._types import Array, HostArray
from facemix_jax._validate import UsageError

OPSET = 17
"""Of the ONNX operators: in ONNX Runtime since 1.12 (2022), so that phones have it."""
_IR_VERSION = 8
"""Of the file format; belongs to the opset."""

_FIRST = (0, 3, 1, 2)
"""Axes that move channels from last, as here, to first, as in ONNX."""
_LAST = (0, 2, 3, 1)

_CALLS = (
    primitives.jit_p,
    primitives.closed_call_p,
    primitives.custom_jvp_call_p,
    primitives.custom_vjp_call_p,
    primitives.remat_p,
)
"""Operations that do what stands in them once: others that hold a function, such as loops, repeat
it or choose."""

_Value = str | HostArray
"""The name of a tensor of the graph, or what it is where that is known."""


def model(
    function: Callable[..., Array],
    arguments: Mapping[str, jax.ShapeDtypeStruct],
    output: str,
    *,
    producer: str,
) -> bytes:
    """A serialised ONNX model of a function.

    Args:
        function: takes two arguments by position and returns one array.
        arguments: their shapes and dtypes by name, the second float32. At most one axis of each
            array in the function has a symbolic size; it is the first of both arguments.
        output: name of the result.
        producer: name of what wrote the file.

    Raises:
        UsageError: the function uses an operation or dtype that is not converted.
    """
    closed = jax.make_jaxpr(function)(*arguments.values())
    graph = _Graph()
    first, last = arguments
    inputs = [first, _same_groups(graph, first, last)]
    (result,) = _convert(graph, closed.jaxpr, closed.consts, inputs)
    graph.nodes.append(helper.make_node("Identity", [graph.name(result)], [output]))
    made = helper.make_graph(
        graph.nodes,
        output,
        [_described(name, like) for name, like in arguments.items()],
        [_described(output, closed.out_avals[0])],
        graph.constants,
    )
    whole = helper.make_model(
        made,
        producer_name=producer,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=_IR_VERSION,
    )
    onnx.checker.check_model(whole, full_check=True)
    return whole.SerializeToString(deterministic=True)


class _Graph:
    """Nodes and constants so far."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def name(self, value: _Value) -> str:
        """The value's name; a known value becomes a constant of the graph."""
        if isinstance(value, str):
            return value
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def add(self, operation: str, *inputs: _Value, **attributes: Any) -> str:
        """Appends a node and returns its output."""
        output = f"value_{len(self.nodes)}"
        names = [self.name(value) for value in inputs]
        self.nodes.append(helper.make_node(operation, names, [output], **attributes))
        return output


def _same_groups(graph: _Graph, first: str, last: str) -> str:
    """The last argument, refused by the runtime unless its first axis is as long as the first's.

    ONNX's MatMul would mix all groups under one matrix where one is given. So the matrix is
    multiplied by what stands in a table of a single 1 at the squared difference of the lengths.
    (A Reshape to a shape made from the other's does not do: ONNX Runtime simplifies it away.)
    """
    zero, one = np.array(0), np.ones(1, np.float32)
    lengths = [graph.add("Gather", graph.add("Shape", name), zero) for name in (first, last)]
    difference = graph.add("Sub", *lengths)
    squared = graph.add("Mul", difference, difference)
    name = f"{first}_and_{last}_need_equal_numbers_of_groups"
    return graph.add("Mul", last, graph.add("Gather", one, squared, name=name))


def _described(name: str, like: Any) -> onnx.ValueInfoProto:
    shape = [str(n) if jax_export.is_symbolic_dim(n) else n for n in like.shape]
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(like.dtype), shape)


def _convert(
    graph: _Graph, jaxpr: Any, constants: Sequence[Any], arguments: Sequence[_Value]
) -> list[_Value]:
    """Adds a jaxpr's equations; what depends on constants alone is computed here and now."""
    values: dict[Any, _Value] = dict(zip(jaxpr.constvars, map(np.asarray, constants), strict=True))
    values |= zip(jaxpr.invars, arguments, strict=True)

    def read(variable: Any) -> _Value:
        literal = getattr(variable, "val", None)
        return values[variable] if literal is None else np.asarray(literal, variable.aval.dtype)

    for equation in jaxpr.eqns:
        inputs = [read(variable) for variable in equation.invars]
        params, inner = equation.params, None
        if equation.primitive in _CALLS:
            inner = params.get("jaxpr") or params.get("call_jaxpr")
        if params.get("branches_platforms"):
            # The last way of writing it is for all platforms not named.
            inner, inputs = params["branches"][-1], inputs[1:]
        if inner is not None:
            # A rematerialised call gets what others hold as constants as arguments.
            inner_jaxpr, held = getattr(inner, "jaxpr", inner), getattr(inner, "consts", ())
            outputs = _convert(graph, inner_jaxpr, held, inputs)
        elif not any(isinstance(value, str) for value in inputs):
            known = equation.primitive.bind(*map(jnp.asarray, inputs), **params)
            several = known if equation.primitive.multiple_results else [known]
            outputs = [np.asarray(value) for value in several]
        else:
            outputs = [_operation(graph, equation, inputs)]
        values |= zip(equation.outvars, outputs, strict=True)
    return [read(variable) for variable in jaxpr.outvars]


def _operation(graph: _Graph, equation: Any, inputs: list[_Value]) -> str:
    name = equation.primitive.name
    if name not in _OPERATIONS:
        raise UsageError(
            f"The operation {name!r} of this network is not converted to ONNX; there is "
            f"{', '.join(sorted(_OPERATIONS))}. Export it as StableHLO."
        )
    if equation.outvars[0].aval.dtype == jnp.bfloat16:
        raise UsageError(
            "This network computes in bfloat16, which ONNX runtimes on phones do not. Export it "
            "as StableHLO, or train with the compute dtype float32."
        )
    return _OPERATIONS[name](graph, equation, inputs)


def _elementwise(operation: str) -> Callable[[_Graph, Any, list[_Value]], str]:
    return lambda graph, equation, inputs: graph.add(operation, *inputs)


def _max(graph: _Graph, equation: Any, inputs: list[_Value]) -> str:
    value, other = inputs
    is_relu = not isinstance(other, str) and not other.any()
    return graph.add("Relu", value) if is_relu else graph.add("Max", value, other)


def _cast(graph: _Graph, equation: Any, inputs: list[_Value]) -> str:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(equation.params["new_dtype"]))
    return graph.add("Cast", *inputs, to=kind)


def _reshape(graph: _Graph, equation: Any, inputs: list[_Value]) -> str:
    sizes = equation.params["new_sizes"]
    sizes = [-1 if jax_export.is_symbolic_dim(n) else n for n in sizes]
    return graph.add("Reshape", *inputs, np.array(sizes, np.int64))


def _transpose(graph: _Graph, equation: Any, inputs: list[_Value]) -> str:
    return graph.add("Transpose", *inputs, perm=equation.params["permutation"])


def _matmul(graph: _Graph, equation: Any, inputs: list[_Value]) -> str:
    (left, right), (batch, batch_right) = equation.params["dimension_numbers"]
    rank, rank_right = (variable.aval.ndim for variable in equation.invars)
    matrices = len(batch) + 2
    _require(
        batch == batch_right == tuple(range(len(batch)))
        and left == (rank - 1,)
        and right == (len(batch),)
        and rank_right == matrices
        # One matrix is multiplied by what has any number of axes, as a dense layer on a map.
        and (rank == matrices or not batch),
        equation,
    )
    return graph.add("MatMul", *inputs)


def _convolution(graph: _Graph, equation: Any, inputs: list[_Value]) -> str:
    params = equation.params
    image, kernel = inputs
    numbers = params["dimension_numbers"]
    layout = numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec
    _require(
        layout == (_FIRST, (3, 2, 0, 1), _FIRST)
        and not isinstance(kernel, str)
        and set(params["lhs_dilation"]) == {1}
        and params["batch_group_count"] == 1,
        equation,
    )
    out = graph.add(
        "Conv",
        graph.add("Transpose", image, perm=_FIRST),
        np.asarray(kernel).transpose(3, 2, 0, 1),
        strides=params["window_strides"],
        pads=_pads(params["padding"]),
        dilations=params["rhs_dilation"],
        group=params["feature_group_count"],
    )
    return graph.add("Transpose", out, perm=_LAST)


def _max_pool(graph: _Graph, equation: Any, inputs: list[_Value]) -> str:
    params = equation.params
    window, strides = params["window_dimensions"], params["window_strides"]
    padding = params["padding"]
    _require(
        len(window) == 4
        and {window[0], window[3], strides[0], strides[3]} == {1}
        and {*padding[0], *padding[3]} == {0}
        and {*params["base_dilation"], *params["window_dilation"]} == {1},
        equation,
    )
    out = graph.add(
        "MaxPool",
        graph.add("Transpose", *inputs, perm=_FIRST),
        kernel_shape=window[1:3],
        strides=strides[1:3],
        pads=_pads(padding[1:3]),
    )
    return graph.add("Transpose", out, perm=_LAST)


def _pads(padding: Sequence[tuple[int, int]]) -> list[int]:
    """All that come before, then all that come after."""
    return [low for low, _ in padding] + [high for _, high in padding]


def _require(condition: bool, equation: Any) -> None:
    if not condition:
        raise UsageError(
            f"This form of {equation.primitive.name!r} is not converted to ONNX: {equation}. "
            f"Export the network as StableHLO."
        )


_OPERATIONS: dict[str, Callable[[_Graph, Any, list[_Value]], str]] = {
    "add": _elementwise("Add"),
    "sub": _elementwise("Sub"),
    "mul": _elementwise("Mul"),
    "div": _elementwise("Div"),
    "max": _max,
    "convert_element_type": _cast,
    "reshape": _reshape,
    "transpose": _transpose,
    "dot_general": _matmul,
    "conv_general_dilated": _convolution,
    "reduce_window_max": _max_pool,
}
