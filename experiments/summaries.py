"""Tables and charts of measured cells, with what the paper prints and what follows from both."""

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import report
from scale import Scale
from systems import CLOUD, EDGE, PAPER_EDGE, STRONGER, SYSTEMS

from facemix_jax import costs_paper, results
from facemix_jax.results import Chart, Column, Curve, ResultTable, Row, Value

Cells = Sequence[Mapping[str, Any]]

TRUTH = (
    "Mixing is not a cipher: the strongest attackers separate mixed rows first and then ask what "
    "the paper's attackers ask; without mixing the two are the same."
)


def values(cells: Cells, row: str, part: str, name: str) -> dict[int, Any]:
    """Seed to what one field of one row holds, mostly a number."""
    return {
        cell["seed"]: cell[name]
        for cell in cells
        if cell.get("row") == row and cell.get("part") == part and cell.get(name) is not None
    }


def measured(cells: Cells, row: str, part: str, name: str) -> tuple[Value, ...]:
    """Mean over the seeds that there are."""
    found = values(cells, row, part, name)
    return (results.mean_over_seeds(list(found.values())),) if found else ()


def difference(cells: Cells, row: str, name: str, part: str = "utility") -> tuple[Value, ...]:
    """To the plain network in points, seed by seed."""
    own, plain = (values(cells, r, part, name) for r in (row, CLOUD))
    both = [100 * (own[seed] - plain[seed]) for seed in own if seed in plain]
    return (results.mean_over_seeds(both),) if both and row != CLOUD else ()


def _paper(text: str) -> tuple[Value, ...]:
    return (Value(value=text, mark="paper"),) if text else ()


def _points(own: str, plain: str) -> tuple[Value, ...]:
    """The difference of two printed percentages, with as many decimals."""
    if not own:
        return ()
    points = float(own.rstrip("%")) - float(plain.rstrip("%"))
    return (Value(value=f"{points:.1f}", mark="derived"),)


def accuracy(
    cells: Cells, row: str, paper: str, paper_plain: str
) -> tuple[tuple[Value, ...], tuple[Value, ...]]:
    """Test accuracy, and its difference to the plain network: as printed, and as measured."""
    return (
        (*_paper(paper), *measured(cells, row, "utility", "test_accuracy")),
        (*_points(paper, paper_plain), *difference(cells, row, "test_accuracy")),
    )


_edge_rows = functools.cache(costs_paper.resnet18_table)
"""Takes seconds, and is asked for after every cell."""


DIFFERENCES = "Differences marked derived are those of the paper's figures."
MAJORITY = "always the more frequent answer"


def majority(cells: Cells, columns: Sequence[Column]) -> Row:
    """What needs no picture at all."""
    # The same pictures whatever the seed.
    found = list(values(cells, CLOUD, "utility", "majority_accuracy").values())[:1]
    half = (Value(value=0.5, mark="derived"),)
    known = {
        "test acc.": tuple(Value(value=v, mark="measured") for v in found),
        "balanced acc.": half,
    }
    return Row(label=MAJORITY, cells=tuple(known.get(column.name, ()) for column in columns))


def edge_columns(row: str) -> tuple[tuple[Value, ...], tuple[Value, ...]]:
    """Edge parameters and MACs at 218x178, as printed and derived."""
    names = {EDGE: EDGE} | {name: system.edge for name, system in SYSTEMS.items()}
    for costed in _edge_rows():
        if costed.name == names.get(row):
            parameters, macs = (
                (*_paper(f.paper or ""), Value(value=float(f.derived or 0), mark="derived"))
                for f in (costed.figures["parameters"], costed.figures["macs"])
            )
            return parameters, macs
    return (), ()


ACTIVATION_COLUMNS = (
    Column(name="activations recovered", format="fixed3"),
    Column(name="without an attack", format="fixed3"),
    Column(name="owner", format="fixed3"),
)
EDGE_COLUMNS = (
    Column(name="edge params", format="millions"),
    Column(name="edge MACs", format="billions"),
)


def table2(cells: Cells, scale: Scale) -> tuple[list[ResultTable], list[Chart]]:
    """Table 2, and accuracy against what the paper's attacker finds."""
    columns = (
        *EDGE_COLUMNS,
        Column(name="valid acc.", format="percent"),
        Column(name="test acc.", format="percent"),
        Column(name="test minus cloud, points", format="fixed2"),
        Column(name="person ID", format="percent", strongest="person ID, strongest"),
        Column(name="person ID, strongest", format="percent"),
        Column(name="attributes", format="percent", strongest="attributes, strongest"),
        Column(name="attributes, strongest", format="percent"),
        *ACTIVATION_COLUMNS,
    )
    plain = SYSTEMS[CLOUD].table2[1]

    def row(name: str, paper: tuple[str, ...]) -> Row:
        valid, test, person, attributes = paper or ("",) * 4
        source = CLOUD if name == EDGE else name
        privacy = _privacy(cells, name, person, attributes)
        return Row(
            label=name,
            cells=(
                *edge_columns(name),
                (*_paper(valid), *measured(cells, source, "utility", "valid_accuracy")),
                *accuracy(cells, source, test, plain),
                *privacy,
            ),
        )

    rows = [row(EDGE, PAPER_EDGE["table2"])]
    rows += [row(name, system.table2) for name, system in {**SYSTEMS, **STRONGER}.items()]
    rows.append(majority(cells, columns))
    table = ResultTable(
        title=f"Table 2: {images(scale, 'CelebA')}. Measured at {size(scale)}; edge columns at "
        "218x178, width 64",
        columns=columns,
        rows=tuple(rows),
        note=f"{TRUTH} Attributes: balanced accuracy. Persons: share of pictures named right, "
        f"{people(cells)}of about a thousand in the paper, if its 0.1% is a guess. Activations: "
        "mean matched |correlation| of the strongest attack on what is sent; without a key the "
        f"owner has no more than it. {DIFFERENCES}",
    )
    return [table], [accuracy_against_attack(cells)]


def people(cells: Cells) -> str:
    """Of how many persons a guess picks one."""
    chances = list(values(cells, CLOUD, "identity", "chance").values())
    return f"of {round(1 / chances[0])} people here and " if chances else ""


def _privacy(
    cells: Cells, name: str, person: str, attributes: str
) -> tuple[tuple[Value, ...], ...]:
    if name == EDGE:  # nothing is sent: a guess
        half = (Value(value=0.5, mark="derived"),)
        chance = values(cells, CLOUD, "identity", "chance")
        guess = tuple(Value(value=c, mark="derived") for c in list(chance.values())[:1])
        nothing = (Value(value=0.0, mark="derived"),)
        persons, found = (*_paper(person), *guess), (*_paper(attributes), *half)
        return persons, guess, found, half, nothing, nothing, ()
    return (
        (*_paper(person), *measured(cells, name, "identity", "value")),
        measured(cells, name, "identity", "strongest"),
        (*_paper(attributes), *measured(cells, name, "attributes", "value")),
        measured(cells, name, "attributes", "strongest"),
        *activations(cells, name),
    )


def activations(cells: Cells, row: str) -> tuple[tuple[Value, ...], ...]:
    """``ACTIVATION_COLUMNS`` of one row; where nothing is hidden, no attack was run."""
    names = "value", "floor", "owner"
    if "none needed" in values(cells, row, "separation", "attack").values():
        return ((report.derived(1.0),),) * len(names)
    return tuple(measured(cells, row, "separation", name) for name in names)


def accuracy_against_attack(cells: Cells) -> Chart:
    """What hiding costs: test accuracy over the attacker's success on attributes."""
    families = {
        "noise": [n for n in {**SYSTEMS, **STRONGER} if n.startswith("noise")],
        "blurring": [n for n in {**SYSTEMS, **STRONGER} if n.startswith("blurring")],
        "FaceMix": [n for n in SYSTEMS if n.startswith("FaceMix")],
        "anonymizer": ["face anonymizer"],
        "nothing hidden": [CLOUD],
    }
    curves = []
    for label, names in families.items():
        for kind, suffix in (("value", "paper's attacker"), ("strongest", "strongest")):
            points = [
                (
                    results.mean_over_seeds(list(x.values())),
                    results.mean_over_seeds(list(y.values())),
                )
                for name in names
                if (x := values(cells, name, "attributes", kind))
                and (y := values(cells, name, "utility", "test_accuracy"))
            ]
            if points and (kind == "value" or label == "FaceMix"):
                curves.append(
                    Curve(
                        label=f"{label}, {suffix}",
                        mark="measured",
                        x=tuple(float(x.value) for x, _ in points),
                        y=tuple(float(y.value) for _, y in points),
                        half_widths=tuple(y.half_width for _, y in points),
                    )
                )
    return Chart(
        title="Accuracy against the attacker's success on attributes",
        x_label="attributes found, balanced accuracy of the attacker",
        y_label="test accuracy",
        curves=tuple(curves),
        points=True,
        note="Where no key is involved the paper's attacker is the strongest one.",
    )


def table3(cells: Cells, scale: Scale) -> tuple[list[ResultTable], list[Chart]]:
    """Table 3."""
    columns = (
        *EDGE_COLUMNS,
        Column(name="test acc.", format="percent"),
        Column(name="test minus cloud, points", format="fixed2"),
        Column(name="balanced acc.", format="percent"),
        Column(name="faces, Pix2Pix", format="fixed3", strongest="faces, strongest"),
        Column(name="faces, strongest", format="fixed3"),
        Column(name="attributes", format="percent", strongest="attributes, strongest"),
        Column(name="attributes, strongest", format="percent"),
        *ACTIVATION_COLUMNS,
    )
    systems = {name: system for name, system in SYSTEMS.items() if system.table3}
    plain = systems[CLOUD].table3[0]

    def row(name: str, paper: tuple[str, ...]) -> Row:
        test, balanced, faces, attributes = paper
        source = CLOUD if name == EDGE else name
        mean_face = values(cells, CLOUD, "faces", "floor")
        guess = tuple(Value(value=v, mark="measured") for v in list(mean_face.values())[:1])
        # Mixed images do not depend on where the network is cut: measured once.
        drawn = name.replace("N_pre = 2", "N_pre = 1").replace("N_pre = 3", "N_pre = 1")
        found = tuple(measured(cells, drawn, "faces", n) for n in ("value", "strongest"))
        if name == EDGE:
            found = guess, guess
        _, _, *others = _privacy(cells, name, "", attributes)
        return Row(
            label=name,
            cells=(
                *edge_columns(name),
                *accuracy(cells, source, test, plain),
                (*_paper(balanced), *measured(cells, source, "utility", "balanced_accuracy")),
                (*_paper(faces), *found[0]),
                found[1],
                *others,
            ),
        )

    rows = [row(EDGE, PAPER_EDGE["table3"])]
    rows += [row(name, system.table3) for name, system in systems.items()]
    rows.append(majority(cells, columns))
    table = ResultTable(
        title=f"Table 3: {images(scale, 'LFWA')}. Measured at {size(scale)}; edge columns at "
        "218x178, width 64",
        columns=columns,
        rows=tuple(rows),
        note=f"{TRUTH.rstrip('.')}, but for faces in blurred images, which ridge regression "
        "restores better than Pix2Pix. Pix2Pix sees all mixtures of a group, the paper's one only: "
        "ours is the stronger. Faces: minus the mean squared error in [-1, 1]; of FaceMix, "
        "as in the paper, from mixed images without pre. Where nothing is sent: the mean face (the "
        "paper: -0.56, about what another person's face scores). "
        f"{DIFFERENCES}",
    )
    return [table], []


def figure4(cells: Cells, scale: Scale) -> tuple[list[ResultTable], list[Chart]]:
    """Both halves of Figure 4, and the cells as a table."""

    def curve(
        label: str, points: Sequence[tuple[float, str]], part: str, figure: str
    ) -> list[Curve]:
        found = [(x, measured(cells, row, part, figure)) for x, row in points]
        known = [(x, value[0]) for x, value in found if value]
        if not known:
            return []
        return [
            Curve(
                label=label,
                mark="measured",
                x=tuple(x for x, _ in known),
                y=tuple(float(v.value) for _, v in known),
                half_widths=tuple(v.half_width for _, v in known),
            )
        ]

    found = (re.fullmatch(r"FaceMix, M = (\d+), N_pre = (\d+)", cell["row"]) for cell in cells)
    there = sorted({(int(match[1]), int(match[2]), match[0]) for match in found if match})
    by_size = [(float(m), row) for m, cut, row in there if cut == 1]
    macs = {row.name: row.figures["macs"].derived for row in _edge_rows()}
    by_cut = [
        (float(macs[f"FaceMix, N_pre = {cut}"] or 0) / 1e9, row) for m, cut, row in there if m == 8
    ]
    charts = [
        Chart(
            title="Figure 4a: accuracy and privacy over the group size",
            x_label="group size M (N_pre = 1)",
            y_label="accuracy; attacker's balanced accuracy; |correlation|",
            curves=(
                *curve("test accuracy", by_size, "utility", "test_accuracy"),
                *curve("attributes, paper's attacker", by_size, "attributes", "value"),
                *curve("attributes, strongest", by_size, "attributes", "strongest"),
                *curve("activations recovered, strongest", by_size, "separation", "value"),
            ),
            log2_x=True,
            note=TRUTH,
        ),
        Chart(
            title="Figure 4b: accuracy over the edge's work",
            x_label="edge GMACs at 218x178, width 64 (M = 8, N_pre = 1, 2, 3)",
            y_label="test accuracy",
            curves=(*curve("test accuracy", by_cut, "utility", "test_accuracy"),),
        ),
    ]
    columns = (
        Column(name="test acc.", format="percent"),
        Column(name="attributes", format="percent", strongest="attributes, strongest"),
        Column(name="attributes, strongest", format="percent"),
        *ACTIVATION_COLUMNS,
    )
    rows = [
        Row(
            label=row,
            cells=(
                measured(cells, row, "utility", "test_accuracy"),
                measured(cells, row, "attributes", "value"),
                measured(cells, row, "attributes", "strongest"),
                *activations(cells, row),
            ),
        )
        for row in dict.fromkeys(r for _, r in (*by_size, *by_cut))
    ]
    title = f"Figure 4 in numbers: {images(scale, 'CelebA')}, measured at {size(scale)}"
    return [ResultTable(title=title, columns=columns, rows=tuple(rows), note=TRUTH)], charts


def images(scale: Scale, dataset: str) -> str:
    """What a table was measured on, for its title."""
    return f"drawn faces in place of {dataset}" if scale.drawn else dataset


def size(scale: Scale) -> str:
    """In words: pictures, network, training."""
    height, width = scale.image_size
    train = "all" if scale.train_examples is None else f"{scale.train_examples:,}"
    epochs = scale.train.num_epochs
    return (
        f"{height}x{width}, ResNet-18 of width {scale.width}, {train} training images, "
        f"{epochs} epoch{'s' * (epochs > 1)}"
    )
