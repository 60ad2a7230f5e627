"""What a split network costs: parameters, multiply-accumulates, bytes and link time.

All of it is read off the architecture: the network is traced with abstract values and its linear
layers are listed, so that any model, cut and image size is covered and no number is typed in.
Only the figures printed in the paper are constants here, to stand beside the derived ones.

The paper's "FLOPs" are multiply-accumulates (MACs); its parameter counts leave BatchNorm out.
MACs include those with zero padding, as usual in such tables.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core as jax_core

from facemix_jax import _validate
from facemix_jax._types import ImageSize
from facemix_jax.models import ModelConfig, SplitModel, build

MIB = 2**20
WIRE_BYTES = 4
"""Mixtures and responses travel as float32."""

_CALLS = frozenset(
    {
        "jit",
        "pjit",
        "closed_call",
        "core_call",
        "custom_jvp_call",
        "custom_vjp_call",
        "custom_vjp_call_jaxpr",
        "checkpoint",
        "remat",
        "remat2",
    }
)
"""Primitives that run the program inside them exactly once."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearLayer:
    """One linear layer of a traced program.

    Attributes:
        kind: ``conv``, ``transposed conv`` or ``dense``.
        macs: multiply-accumulates, padding included.
        input_size: elements of the left operand.
        output_size: elements of the result.
        weights: elements of the right operand, where the kernel stands; no bias.
    """

    kind: str
    macs: int
    input_size: int
    output_size: int
    weights: int


def linear_layers(function: Callable[..., Any], *abstract_args: Any) -> tuple[LinearLayer, ...]:
    """Lists the linear layers of a function in the order in which they run.

    Nothing is computed. Counts are those of one call: pass a batch of one for counts per example.

    Args:
        function: any traceable function, for example ``segment.apply``.
        *abstract_args: its arguments, arrays or ``jax.ShapeDtypeStruct``.

    Raises:
        UsageError: a linear layer stands in a loop or branch whose number of runs is unknown.
    """
    return tuple(_walk(jax.make_jaxpr(function)(*abstract_args).jaxpr))


def macs(function: Callable[..., Any], *abstract_args: Any) -> int:
    """Multiply-accumulates of all linear layers of one call of ``function``.

    Raises:
        UsageError: as ``linear_layers``.

    Example:
        >>> image, weights = jax.ShapeDtypeStruct((1, 300), "float32"), jnp.zeros((300, 80))
        >>> macs(lambda x: jax.nn.relu(x @ weights), image)
        24000
    """
    return sum(layer.macs for layer in linear_layers(function, *abstract_args))


def _walk(jaxpr: Any) -> Iterator[LinearLayer]:
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "conv_general_dilated":
            yield _conv(equation)
            continue
        if name == "dot_general":
            yield _dense(equation)
            continue
        inner = tuple(layer for part in _inner_programs(equation.params) for layer in _walk(part))
        if name == "scan":
            inner = inner * equation.params["length"]
        elif inner and name not in _CALLS and not equation.params.get("branches_platforms"):
            raise _validate.UsageError(
                f"{len(inner)} linear layers stand inside {name!r}, and how often they run cannot "
                "be read from the program. Count the function inside it, or write the loop as a "
                "scan of fixed length."
            )
        yield from inner


def _inner_programs(params: Mapping[str, Any]) -> Iterator[Any]:
    if params.get("branches_platforms"):
        # One function, written in several ways: the last is for all platforms not named.
        params = {"default": params["branches"][-1]}
    for value in params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, jax_core.ClosedJaxpr):
                yield part.jaxpr
            elif isinstance(part, jax_core.Jaxpr):
                yield part


def _conv(equation: Any) -> LinearLayer:
    left, right = (variable.aval for variable in equation.invars)
    output = equation.outvars[0].aval
    params = equation.params
    rhs_spec = params["dimension_numbers"].rhs_spec
    transposed = math.prod(params["lhs_dilation"]) > 1
    if transposed:
        # Each input element meets the whole kernel of its channel; inserted zeros cost nothing.
        in_channels = right.shape[rhs_spec[1]]
        count = left.size * right.size // (in_channels * params["feature_group_count"])
    else:
        count = output.size * right.size // right.shape[rhs_spec[0]]
    return LinearLayer(
        kind="transposed conv" if transposed else "conv",
        macs=count,
        input_size=left.size,
        output_size=output.size,
        weights=right.size,
    )


def _dense(equation: Any) -> LinearLayer:
    left, right = (variable.aval for variable in equation.invars)
    output = equation.outvars[0].aval
    (contracted, _), _ = equation.params["dimension_numbers"]
    return LinearLayer(
        kind="dense",
        macs=output.size * math.prod(left.shape[axis] for axis in contracted),
        input_size=left.size,
        output_size=output.size,
        weights=right.size,
    )


def parameters(variables: Mapping[str, Any]) -> tuple[int, int]:
    """Counts the parameters of one segment, ``{"params": ..., "batch_stats": ...}``.

    Args:
        variables: arrays or abstract values.

    Returns:
        ``(without, batch_norm)``: those of all modules but BatchNorm, and BatchNorm's own scales
        and shifts. Running statistics are not parameters.
    """

    def count(params: Any, statistics: Any) -> tuple[int, int]:
        if not isinstance(params, Mapping):
            return math.prod(params.shape), 0
        # A module's statistics are arrays; those of the modules inside it are mappings.
        normalises = any(not isinstance(leaf, Mapping) for leaf in statistics.values())
        without = batch_norm = 0
        for name, child in params.items():
            a, b = count(child, statistics.get(name, {}) if not normalises else {})
            without, batch_norm = without + a, batch_norm + b
        return (0, without + batch_norm) if normalises else (without, batch_norm)

    return count(variables.get("params", {}), variables.get("batch_stats", {}))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentCost:
    """One of pre, main and post, per example.

    Attributes:
        layers: its linear layers.
        macs: multiply-accumulates of them.
        parameters: without BatchNorm, as the paper counts.
        batch_norm_parameters: scales and shifts of BatchNorm.
    """

    layers: tuple[LinearLayer, ...]
    macs: int
    parameters: int
    batch_norm_parameters: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelCost:
    """Cost of one split network, per image; MACs unless said otherwise.

    Attributes:
        network: registry name.
        cut: units on the edge.
        image_size: height, width.
        group_size: ``M``.
        pre: the edge's first part.
        main: the cloud's part.
        post: the head.
        macs: whole network.
        parameters: whole network, without BatchNorm.
        parameters_with_norm: the same with BatchNorm.
        mixing_macs: ``M`` times the activation's elements.
        unmixing_macs: ``M D``.
        edge_parameters: pre and head, without BatchNorm, as the paper counts.
        edge_parameters_with_norm: the same with BatchNorm.
        edge_macs_paper: pre and mixing; the paper's digits, which ``edge_macs`` gives as well.
        edge_macs: everything that the edge computes: pre, mixing, unmixing and the head.
        up_bytes: the mixed activation, float32.
        down_bytes: the response, float32.
    """

    network: str
    cut: int
    image_size: ImageSize
    group_size: int
    pre: SegmentCost
    main: SegmentCost
    post: SegmentCost
    macs: int
    parameters: int
    parameters_with_norm: int
    mixing_macs: int
    unmixing_macs: int
    edge_parameters: int
    edge_parameters_with_norm: int
    edge_macs_paper: int
    edge_macs: int
    up_bytes: int
    down_bytes: int


def model_cost(model: SplitModel, *, group_size: int) -> ModelCost:
    """Costs of a split network per image, from its architecture alone.

    Args:
        model: any split network.
        group_size: ``M``; 1 for a network that mixes nothing counts one product per element.

    Raises:
        UsageError: ``group_size`` is not positive, or as ``linear_layers``.

    Example:
        >>> from facemix_jax import models
        >>> cost = model_cost(models.resnet18(cut=2), group_size=8)
        >>> cost.macs, cost.parameters, cost.edge_parameters, cost.edge_macs_paper
        (1498546112, 11207952, 124176, 275011008)
    """
    _validate.positive(group_size=group_size)
    spec = model.spec
    variables = jax.eval_shape(model.init, jax.eval_shape(lambda: jax.random.key(0)))
    shapes = {
        "pre": (1, *spec.image_size, 3),
        "main": (spec.tiles, *spec.activation_shape),
        "post": (spec.tiles, *spec.response_shape),
    }
    parts = {}
    for name, shape in shapes.items():
        x = jax.ShapeDtypeStruct(shape, jnp.float32)
        layers = linear_layers(getattr(model, name).apply, variables[name], x)
        without, batch_norm = parameters(variables[name])
        parts[name] = SegmentCost(
            layers=layers,
            macs=sum(layer.macs for layer in layers),
            parameters=without,
            batch_norm_parameters=batch_norm,
        )
    pre, main, post = parts["pre"], parts["main"], parts["post"]
    activation, response = math.prod(shapes["main"]), math.prod(shapes["post"])
    mixing_macs, unmixing_macs = group_size * activation, group_size * response
    without = sum(part.parameters for part in parts.values())
    edge_parameters = pre.parameters + post.parameters
    return ModelCost(
        network=spec.name,
        cut=spec.cut,
        image_size=spec.image_size,
        group_size=group_size,
        **parts,
        macs=pre.macs + main.macs + post.macs,
        parameters=without,
        parameters_with_norm=without + sum(part.batch_norm_parameters for part in parts.values()),
        mixing_macs=mixing_macs,
        unmixing_macs=unmixing_macs,
        edge_parameters=edge_parameters,
        edge_parameters_with_norm=edge_parameters
        + pre.batch_norm_parameters
        + post.batch_norm_parameters,
        edge_macs_paper=pre.macs + mixing_macs,
        edge_macs=pre.macs + mixing_macs + unmixing_macs + post.macs,
        up_bytes=WIRE_BYTES * activation,
        down_bytes=WIRE_BYTES * response,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Link:
    """A network between edge and cloud; the paper's 4G LTE by default.

    Attributes:
        up_mbps: megabits per second from edge to cloud, from 1e-6 to 1e9.
        down_mbps: megabits per second from cloud to edge, likewise.
        delay_s: seconds one way, at most 1e9.
    """

    up_mbps: float = 15.0
    down_mbps: float = 30.0
    delay_s: float = 0.025

    def __post_init__(self) -> None:
        """Checks that the link carries something."""
        _validate.positive(up_mbps=self.up_mbps, down_mbps=self.down_mbps)
        _validate.in_range(1e-6, 1e9, up_mbps=self.up_mbps, down_mbps=self.down_mbps)
        _validate.in_range(0, 1e9, delay_s=self.delay_s)

    def seconds(self, up_bytes: float, down_bytes: float, rounds: int = 1) -> float:
        """Time on the wire; each round waits once each way.

        The paper's megabit is 2**20 bits: its seconds come out only so.

        Example:
            >>> round(Link().seconds(up_bytes=MIB, down_bytes=0), 3)
            0.583
        """
        up, down = 8 * up_bytes / MIB / self.up_mbps, 8 * down_bytes / MIB / self.down_mbps
        return up + down + rounds * 2 * self.delay_s


def cost_report(
    model_config: ModelConfig,
    *,
    image_size: ImageSize,
    group_size: int,
    link: Link,
    num_attributes: int = 40,
    num_classes: int = 2,
) -> dict[str, Any]:
    """Everything about one configuration, ready for JSON.

    Raises:
        UsageError: the network cannot be built so.
    """
    model = build(
        model_config,
        image_size=image_size,
        num_attributes=num_attributes,
        num_classes=num_classes,
    )
    cost = model_cost(model, group_size=group_size)
    return {
        **dataclasses.asdict(cost),
        "edge_share": cost.edge_macs / cost.macs,
        "link": dataclasses.asdict(link),
        "link_seconds": link.seconds(cost.up_bytes, cost.down_bytes),
        "per": "image",
        "notes": [
            "FLOPs in the paper are multiply-accumulates (MACs); padding is counted.",
            "edge_macs_paper leaves out unmixing and the head, which the paper's digits hide.",
            "parameters leave BatchNorm out, as the paper does.",
        ],
    }


def format_cost(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Rows ``(quantity, value)`` of ``cost_report`` for a table; the first is the heading."""
    mib_up, mib_down = report["up_bytes"] / MIB, report["down_bytes"] / MIB
    height, width = report["image_size"]
    return [
        ("per image", f"{report['network']}, cut {report['cut']}, {height}x{width}"),
        ("MACs, whole network", f"{report['macs']:,}"),
        ("parameters without BatchNorm (with)", _pair(report, "parameters")),
        ("edge parameters without BatchNorm (with)", _pair(report, "edge_parameters")),
        ("edge MACs: pre", f"{report['pre']['macs']:,}"),
        (f"edge MACs: mixing, M = {report['group_size']}", f"{report['mixing_macs']:,}"),
        ("edge MACs: unmixing and head", f"{report['unmixing_macs'] + report['post']['macs']:,}"),
        (
            "edge MACs (pre and mixing only)",
            f"{report['edge_macs']:,} ({report['edge_macs_paper']:,})",
        ),
        ("edge share of the whole network", f"{report['edge_share']:.2%}"),
        ("MiB up / down", f"{mib_up:.3f} / {mib_down:.3f}"),
        ("seconds on the link", f"{report['link_seconds']:.3f}"),
    ]


def _pair(report: Mapping[str, Any], name: str) -> str:
    return f"{report[name]:,} ({report[f'{name}_with_norm']:,})"
