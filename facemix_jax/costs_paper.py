"""The paper's cost figures, derived: Table 1 (VGG-16), edge columns of Tables 2 and 3 (ResNet-18).

Every derived figure comes from ``facemix_jax.costs``; what the paper prints stands beside it, with
how the two relate. Where the paper's accounting leaves something out, both figures are given.
"""

import dataclasses
import math
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from facemix_jax import costs, defenses
from facemix_jax.costs import MIB, Link
from facemix_jax.models import resnet18, vgg16
from facemix_jax.models.generators import resnet9_generator

_UNITS = {"M": 1e6, "G": 1e9, "%": 0.01, " MB": 1.0, " sec": 1.0, "": 1.0}

TABLE1_NOTES = (
    "FLOPs in the paper are multiply-accumulates (MACs), zero padding counted; MB are MiB and "
    "the link's megabits are 2**20 bits.",
    "The edge share counts pre's convolutions only; with all that the edge does it holds mixing "
    "(M = 8), unmixing and the head as well. The printed digits are the same.",
    "Sizes of the cloud and Osia rows are upload only; their times also hold the 1,000 logits that "
    "come back, which change no printed digit. FaceMix's 12.3 MB counts both ways; 3.0 MB is 3.06 "
    "(up) or 3.08 (both ways) truncated.",
    "The last row is cut after pool1: the paper names the output of the second convolution, which "
    "before pooling is as large as the first's (12.25 MiB).",
    "Every round waits 25 ms each way: Slalom's 16 linear layers are 16 rounds.",
    "All that Slalom's edge does while a request runs is Freivalds' test of every answer, twice; "
    "before it, the edge computes all layers once on its pads.",
)
EDGE_NOTES = (
    "Table 2's edge MACs are pre and mixing at M = 8; all that the edge does is also unmixing and "
    "the head, and the printed digits are the same. The image size is inferred from 1.50G. Table 3 "
    "has Table 2's rows but the anonymizer's.",
    "Noise and blurring are 0 in the paper, as no network runs on the edge; all that the edge does "
    "counts blurring's averages and interpolation, and noise multiplies nothing.",
    "Parameters leave BatchNorm out; with BatchNorm its scales and shifts count.",
    "The anonymizer's 47.13G is truncated and leaves its two transposed convolutions out; all that "
    "the edge does counts them.",
)
LEGEND = "In brackets: the paper; *: truncated there, not rounded; -: not derivable."
"""Stands below both tables."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure:
    """One number.

    Attributes:
        derived: computed from the architecture; None where it cannot be.
        paper: as printed, None where the paper prints nothing.
        mark: ``derived``, or ``paper`` where only the paper has it.
        agreement: how the derived figure gives the printed one: ``rounded``, ``truncated`` or
            ``differs``; None where there is only one of them.
    """

    derived: float | None
    paper: str | None
    mark: str
    agreement: str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a table.

    Attributes:
        name: what runs.
        figures: by quantity.
    """

    name: str
    figures: dict[str, Figure]


def _figure(derived: float | None, paper: str | None = None) -> Figure:
    if derived is None:
        return Figure(derived=None, paper=paper, mark="paper", agreement=None)
    return Figure(
        derived=derived,
        paper=paper,
        mark="derived",
        agreement=None if paper is None else _agreement(derived, paper),
    )


def _agreement(derived: float, paper: str) -> str:
    number = paper.rstrip("MGBsec% ")
    decimals = len(number.partition(".")[2])
    value = derived / _UNITS[paper[len(number) :]]
    if round(value, decimals) == float(number):
        return "rounded"
    truncated = math.floor(value * 10**decimals) / 10**decimals
    return "truncated" if truncated == float(number) else "differs"


def _table1_row(
    name: str,
    *,
    edge: dict[str, Figure],
    up: int,
    down: int,
    rounds: int,
    link: Link,
    size_up: str | None = None,
    size: str | None = None,
    seconds: str,
) -> Row:
    figures = {
        **edge,
        "up_bytes": _figure(up),
        "down_bytes": _figure(down),
        "rounds": _figure(rounds),
        "up_mib": _figure(up / MIB, size_up),
        "mib": _figure((up + down) / MIB, size),
        "seconds": _figure(link.seconds(up, down, rounds), seconds),
    }
    return Row(name=name, figures=figures)


def table1(*, link: Link | None = None, group_size: int = 8) -> list[Row]:
    """Table 1: VGG-16 at 224x224, 1,000 classes, float32 on the wire, per image.

    Args:
        link: the paper's 4G LTE by default.
        group_size: ``M`` of the mixing, which ``edge_share`` leaves out.
    """
    link = link or Link()
    names = vgg16().spec.unit_names
    after = {
        unit: costs.model_cost(
            vgg16(cut=names.index(unit) + 1, num_attributes=1, num_classes=1000),
            group_size=group_size,
        )
        for unit in ("conv1_1", "pool1", "conv5_1")
    }
    any_cut = after["conv1_1"]
    layers = (*any_cut.pre.layers, *any_cut.main.layers, *any_cut.post.layers)
    image, logits = (costs.WIRE_BYTES * n for n in (layers[0].input_size, layers[-1].output_size))

    verification = sum(freivalds_macs(layer) for layer in layers)

    def osia() -> Row:
        cost = after["conv5_1"]
        edge = {
            "edge_macs": _figure(cost.pre.macs),
            "edge_share": _figure(cost.pre.macs / cost.macs, "93%"),
        }
        return _table1_row(
            "Osia et al., after conv5_1",
            edge=edge,
            up=cost.up_bytes,
            down=logits,
            rounds=1,
            link=link,
            size_up="0.4 MB",
            seconds="0.3 sec",
        )

    def facemix(unit: str, share: str, size: str, seconds: str) -> Row:
        cost = after[unit]
        edge = {
            "edge_macs": _figure(cost.pre.macs),
            "edge_share": _figure(cost.pre.macs / cost.macs, share),
            "edge_macs_all": _figure(cost.edge_macs),
            "edge_share_all": _figure(cost.edge_macs / cost.macs),
        }
        return _table1_row(
            f"FaceMix, after {unit}",
            edge=edge,
            up=cost.up_bytes,
            down=cost.down_bytes,
            rounds=1,
            link=link,
            size=size,
            seconds=seconds,
        )

    return [
        _table1_row(
            "all on the cloud",
            edge={"edge_macs": _figure(0), "edge_share": _figure(0.0, "0%")},
            up=image,
            down=logits,
            rounds=1,
            link=link,
            size_up="0.6 MB",
            seconds="0.4 sec",
        ),
        osia(),
        _table1_row(
            "Tramer et al. (Slalom), every linear layer",
            # The authors' talk is the paper's source: an enclave's work is not its MACs alone.
            edge={
                "edge_share": _figure(None, "~1%"),
                "edge_macs_all": _figure(verification),
                "edge_share_all": _figure(verification / any_cut.macs),
            },
            up=costs.WIRE_BYTES * sum(layer.input_size for layer in layers),
            down=costs.WIRE_BYTES * sum(layer.output_size for layer in layers),
            rounds=len(layers),
            link=link,
            size="86.5 MB",
            seconds="33.1 sec",
        ),
        facemix("conv1_1", "1%", "12.3 MB", "6.6 sec"),
        facemix("pool1", "13%", "3.0 MB", "1.7 sec"),
    ]


def freivalds_macs(layer: costs.LinearLayer, repetitions: int = 2) -> int:
    """What Slalom's edge multiplies to verify one layer's answer, online.

    The layer with one output in the place of all of them, and a product with the answer.
    """
    outputs = layer.output_size * layer.weights // layer.macs
    return repetitions * (layer.macs // outputs + layer.output_size)


def resnet18_table() -> list[Row]:
    """The edge columns of Tables 2 and 3: ResNet-18 at 218x178, 40 two-way heads, M = 8.

    Image size and heads are inferred from the printed totals.
    """
    whole = costs.model_cost(resnet18(cut=1), group_size=8)
    edge = {
        "parameters": _figure(whole.parameters, "11.21M"),
        "parameters_with_norm": _figure(whole.parameters_with_norm),
        "macs": _figure(whole.macs, "1.50G"),
    }
    return [
        Row(name="all on the edge", figures=edge),
        _perturbed("all on the cloud", defenses.none()),
        *(_perturbed(f"noise N(0, {v})", defenses.noise(variance=v)) for v in (4, 8)),
        *(_perturbed(f"blurring {n}x{n}", defenses.blur(size=n)) for n in (16, 8)),
        _anonymizer(),
        _facemix(1, "0.05M", "0.09G"),
        _facemix(2, "0.12M", "0.28G"),
        _facemix(3, "0.20M", "0.46G"),
    ]


def _perturbed(name: str, defense: defenses.Defense) -> Row:
    """The image itself is sent, whatever was done to it: no network runs on the edge."""
    elements = 3 * math.prod(resnet18().spec.image_size)
    figures = {
        "parameters": _figure(0, "0"),
        "parameters_with_norm": _figure(0),
        "macs": _figure(0, "0"),
        "macs_all": _figure(defense.cost(elements, 0).protect_macs),
    }
    return Row(name=name, figures=figures)


def _facemix(cut: int, parameters: str, macs: str) -> Row:
    cost = costs.model_cost(resnet18(cut=cut), group_size=8)
    figures = {
        "parameters": _figure(cost.edge_parameters, parameters),
        "parameters_with_norm": _figure(cost.edge_parameters_with_norm),
        "macs": _figure(cost.edge_macs_paper, macs),
        "macs_all": _figure(cost.edge_macs),
    }
    return Row(name=f"FaceMix, N_pre = {cut}", figures=figures)


def _anonymizer() -> Row:
    generator = resnet9_generator()
    image = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
    rng_key = jax.eval_shape(lambda: jax.random.key(0))
    variables = jax.eval_shape(generator.init, rng_key, image)
    layers = costs.linear_layers(generator.apply, variables, image)
    figures = {
        "parameters": _figure(costs.parameters(variables)[0], "11.38M"),
        "macs": _figure(sum(x.macs for x in layers if x.kind != "transposed conv"), "47.13G"),
        "macs_all": _figure(sum(x.macs for x in layers)),
    }
    return Row(name="face anonymizer, 256x256", figures=figures)


def table1_report(*, link: Link | None = None) -> dict[str, Any]:
    """Both tables, ready for JSON: each figure with its mark, the paper's value beside it."""
    cost = costs.model_cost(vgg16(cut=1, num_attributes=1, num_classes=1000), group_size=8)
    return {
        "link": dataclasses.asdict(link or Link()),
        "table1": {
            "network": "vgg16",
            "image_size": cost.image_size,
            "num_classes": 1000,
            "macs": dataclasses.asdict(_figure(cost.macs)),
            "parameters": dataclasses.asdict(_figure(cost.parameters)),
            "rows": [dataclasses.asdict(row) for row in table1(link=link)],
        },
        "resnet18": {
            "network": "resnet18",
            "image_size": resnet18().spec.image_size,
            "group_size": 8,
            "rows": [dataclasses.asdict(row) for row in resnet18_table()],
        },
        "notes": [*TABLE1_NOTES, *EDGE_NOTES],
    }


def format_table1(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Text cells of ``table1``, heading first; the paper's value in brackets below.

    Lines are broken so that 80 columns hold the table with every number whole; ``LEGEND`` says
    what the signs mean.
    """
    heading = ("", "edge MACs", "edge\nshare", "MiB\nup", "MiB\nboth\nways", "seconds", "rounds")
    keys = ("edge_macs", "edge_share", "up_mib", "mib", "seconds", "rounds")
    return [heading, *_cells(rows, keys)]


def format_resnet18(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Text cells of ``resnet18_table``, as of ``format_table1``."""
    heading = (
        "",
        "edge\nparameters",
        "with\nBatchNorm",
        "edge MACs",
        "with all that\nthe edge does",
    )
    keys = ("parameters", "parameters_with_norm", "macs", "macs_all")
    return [heading, *_cells(rows, keys)]


def _cells(rows: Sequence[Row], keys: Sequence[str]) -> Iterator[tuple[str, ...]]:
    for row in rows:
        name = textwrap.fill(row.name, 13)  # what Table 1's numbers leave of 80 columns
        yield name, *(_cell(row.figures.get(key), key) for key in keys)


def _cell(figure: Figure | None, key: str) -> str:
    if figure is None:
        return ""
    if figure.derived is None:
        text = "-"
    elif key == "edge_share":
        text = f"{figure.derived:.2%}"
    elif isinstance(figure.derived, int):
        text = f"{figure.derived:,}"
    else:
        text = f"{figure.derived + 1e-9:.3f}"  # halves up, as one does by hand: 6.5875 is 6.588
    if figure.paper is None:
        return text
    number = figure.paper.split()[0]  # MB and seconds stand in the heading
    return f"{text}\n({number}{'*' if figure.agreement == 'truncated' else ''})"
