"""Tables and charts of the cells of ``frontier.py``."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import frontier_attacks
import scale as scales
import summaries

from facemix_jax import results
from facemix_jax.results import Chart, Column, Curve, ResultTable, Row, Value

Cell = Mapping[str, Any]
Cells = Sequence[Cell]
Read = Callable[[Cell], float | None]

NOTE = (
    "Mean matched |correlation| of activations, tile by tile. 'Strongest' is the largest of all "
    "separations, over the seeds that met all of them."
)


def summary(cells: Cells, *, beside: bool = True) -> tuple[list[ResultTable], list[Chart]]:
    """What ``report.Cells`` wants.

    Args:
        cells: of the results file.
        beside: whether Table 2's noise and blurring stand in the charts; they are of real faces.
    """
    variants = list(dict.fromkeys(cell["variant"] for cell in cells))
    tables = [separations(cells, variants), filtered(cells, variants), formal(cells, variants)]
    tables += [persons(cells, variants), learned(cells, variants)]
    others = perturbed() if beside else {}
    return [table for table in tables if table.rows], charts(cells, variants, others)


def numbers(cells: Cells, variant: str, attack: str | None, read: Read) -> dict[int, float]:
    """Seed to number."""
    found = {
        cell["seed"]: read(cell)
        for cell in cells
        if cell["variant"] == variant and cell["attack"] == attack
    }
    return {seed: float(value) for seed, value in found.items() if value is not None}


def value(values: Mapping[int, float], mark: str = "measured") -> tuple[Value, ...]:
    """Mean over the seeds that there are, or nothing."""
    if not values:
        return ()
    if mark == "measured":
        return (results.mean_over_seeds(list(values.values())),)
    return (Value(value=sum(values.values()) / len(values), mark=mark),)


def first(name: str) -> Read:
    """Reads the first figure of a cell."""
    return lambda cell: cell["figures"][0][name]


def alike(name: str) -> Read:
    """Reads what filtered rows reach."""
    return within("filtered", name)


def within(*names: str) -> Read:
    """Reads a number that lies deeper; None where it is missing."""

    def read(cell: Cell) -> float | None:
        found: Any = cell
        for name in names:
            found = (found or {}).get(name)
        return found

    return read


def figure_at(index: int, name: str) -> Read:
    """Reads one of several figures."""
    return lambda cell: cell["figures"][index][name]


def strongest(cells: Cells, variant: str, read: Read) -> dict[int, float]:
    """Seed to the maximum over separations, of seeds that met as many as any other.

    A maximum over fewer attacks would pass for a stronger defence.
    """
    found = [
        numbers(cells, variant, attack, read)
        for attack in frontier_attacks.SEPARATIONS
        if numbers(cells, variant, attack, first("value"))
    ]
    seeds = set.intersection(*(set(f) for f in found)) if found else set()
    return {seed: max(f[seed] for f in found) for seed in sorted(seeds)}


def best_of(cells: Cells, variant: str, name: str) -> dict[int, float]:
    """Seed to the maximum over all attacks with a figure of this name."""
    found: dict[int, float] = {}
    for cell in cells:
        for figure in cell.get("figures", ()):
            if cell["variant"] == variant and figure["name"] == name:
                seed = cell["seed"]
                found[seed] = max(found.get(seed, figure["value"]), figure["value"])
    return found


def any_of(cells: Cells, variant: str, read: Read) -> dict[int, float]:
    """Seed to a number that is the same in the cells of all separations."""
    found: dict[int, float] = {}
    for attack in frontier_attacks.SEPARATIONS:
        found |= numbers(cells, variant, attack, read)
    return found


def minus(a: Mapping[int, float], b: Mapping[int, float]) -> dict[int, float]:
    """Seed by seed."""
    return {seed: a[seed] - b[seed] for seed in a if seed in b}


def _columns(*names: str, strongest: str | None = None) -> Any:
    """Columns of numbers; of weak attackers where ``strongest`` names the column beside them."""
    return tuple(Column(name=n, format="fixed3", strongest=strongest) for n in names)


def separations(cells: Cells, variants: Sequence[str]) -> ResultTable:
    """All separations beside accuracy, floor and owner."""
    attacks = frontier_attacks.SEPARATIONS
    columns = (
        Column(name="accuracy", format="percent"),
        *_columns("no attack"),
        *_columns(*attacks, strongest="strongest"),
        *_columns("strongest", "strongest minus no attack", "owner", "key advantage"),
    )
    rows = []
    for variant in variants:
        best = strongest(cells, variant, first("value"))
        floor = any_of(cells, variant, first("floor"))
        owner = any_of(cells, variant, first("owner"))
        if best:
            each = [value(numbers(cells, variant, a, first("value"))) for a in attacks]
            accuracy = value(numbers(cells, variant, None, lambda cell: cell["accuracy"]))
            over, advantage = value(minus(best, floor)), value(minus(owner, best))
            ends = value(best), over, value(owner), advantage
            rows.append(Row(label=variant, cells=(accuracy, value(floor), *each, *ends)))
    return ResultTable(title="Separation", columns=columns, rows=tuple(rows), note=NOTE)


def filtered(cells: Cells, variants: Sequence[str]) -> ResultTable:
    """The same after every side has filtered its rows."""
    attacks = frontier_attacks.SEPARATIONS
    columns = (
        *_columns("own images", "no attack"),
        *_columns(*attacks, strongest="strongest"),
        *_columns("strongest", "strongest minus no attack", "owner", "key advantage"),
        *_columns("common rotation granted"),
    )
    rows = []
    for variant in variants:
        guess, floor, owner = (
            any_of(cells, variant, alike(n)) for n in ("guess", "floor", "owner")
        )
        if floor:
            best = strongest(cells, variant, alike("value"))
            each = [numbers(cells, variant, a, alike("value")) for a in attacks]
            bound = numbers(cells, variant, "granted_rotation", alike("value"))
            over, advantage = minus(best, floor), minus(owner, best)
            row = guess, floor, *each, best, over, owner, advantage, bound
            rows.append(Row(label=variant, cells=tuple(value(v) for v in row)))
    note = (
        "Rows of every side are filtered by public statistics, each with the filter that does "
        "best. 'Own images': the attacker's own faces as guesses. 'Common rotation granted' is a "
        "bound on what alignment of tiles can lead to, no attack. 'Strongest' is empty where a "
        "separation of the table above has not been rated in this way."
    )
    return ResultTable(
        title="Separation, all sides filtered", columns=columns, rows=tuple(rows), note=note
    )


def formal(cells: Cells, variants: Sequence[str]) -> ResultTable:
    """What follows from the noise."""
    names = {
        "epsilon at delta 1e-5": "epsilon",
        "epsilon, closest pair": "epsilon_closest_pair",
        "owner, unfiltered": "owner_unfiltered",
        "owner, best linear filter": "owner_bayes",
    }
    rows = []
    for variant in variants:
        found = [numbers(cells, variant, None, within("formal", name)) for name in names.values()]
        if any(found):
            cells_ = tuple(value(v, "derived") for v in found)
            rows.append(Row(label=variant, cells=cells_))
    return ResultTable(
        title="What follows from the noise alone",
        columns=tuple(Column(name=n, format="fixed3") for n in names),
        rows=tuple(rows),
        note="Epsilons of tens and more promise nothing: the noise protects no one by itself.",
    )


def persons(cells: Cells, variants: Sequence[str]) -> ResultTable:
    """The chain to pictures, judged by a public recogniser."""
    columns = (
        *_columns("chance", "mean face", "no attack"),
        *_columns("own assembly", strongest="granted assembly"),
        *_columns("granted assembly", "owner"),
    )
    who = "blind", "floor", "own assembly", "granted assembly", "owner"
    rows = []
    for variant in variants:
        for kind, label in (("rank1_group", "of its group"), ("rank1_gallery", "of a gallery")):
            chance = numbers(cells, variant, "faces", within("chance", kind))
            found = [
                numbers(
                    cells,
                    variant,
                    "faces",
                    within("verdicts", w, kind),
                )
                for w in who
            ]
            if chance:
                row = (value(chance, "derived"), *(value(v) for v in found))
                rows.append(Row(label=f"{variant}, nearest {label}", cells=row))
    return ResultTable(
        title="Persons in pictures made of separated activations",
        columns=columns,
        rows=tuple(rows),
        note="Share of pictures that a public recogniser finds nearest to their original. Order "
        "and sign of every tile are granted to 'no attack' and 'granted assembly'.",
    )


def learned(cells: Cells, variants: Sequence[str]) -> ResultTable:
    """Learned attackers and row spaces, each as often as it has figures."""
    rows = []
    for variant in variants:
        for attack in (*frontier_attacks.ATTACKS,):
            one = next(
                (c for c in cells if c["variant"] == variant and c["attack"] == attack), None
            )
            rated_above = attack in frontier_attacks.SEPARATIONS or attack == "granted_rotation"
            if one is None or rated_above or "figures" not in one:
                continue
            for index, figure in enumerate(one["figures"]):
                found = [
                    numbers(cells, variant, attack, figure_at(index, n))
                    for n in ("chance", "floor", "value", "owner")
                ]
                found.insert(3, best_of(cells, variant, figure["name"]))
                label = f"{variant}: {attack}, {figure['name']}"
                rows.append(Row(label=label, cells=tuple(value(v) for v in found)))
    return ResultTable(
        title="Learned attackers, and candidates held against row spaces",
        columns=(
            *_columns("chance", "no attack"),
            *_columns("attacker", strongest="strongest"),
            *_columns("strongest", "owner"),
        ),
        rows=tuple(rows),
        note="Attackers that separate first stand in the tables before. 'Strongest' is the "
        "largest of all attacks on the variant that were asked the same. Single rows tell less "
        "than the whole group does, whose rows stand here, too.",
    )


def perturbed() -> dict[str, tuple[float, float]]:
    """Noise and blurring of Table 2: accuracy and what the strongest attack recovers."""
    path = scales.output("table2", "cpu")
    cells = results.load(path).cells if path.exists() else ()
    found = {}
    for row in dict.fromkeys(cell["row"] for cell in cells):
        accuracy = summaries.values(cells, row, "utility", "test_accuracy")
        reached = summaries.values(cells, row, "separation", "value")
        if row.startswith(("noise", "blurring")) and 0 in accuracy and 0 in reached:
            found[row] = accuracy[0], reached[0]
    return found


def charts(
    cells: Cells, variants: Sequence[str], others: Mapping[str, tuple[float, float]]
) -> list[Chart]:
    """Accuracy against the strongest attack, and against the key advantage; others as well."""
    best: list[Curve] = []
    advantage: list[Curve] = []
    for variant in variants:
        accuracy = numbers(cells, variant, None, lambda cell: cell["accuracy"])
        reached = strongest(cells, variant, first("value"))
        kept = minus(any_of(cells, variant, first("owner")), reached)
        for curves, numbers_ in ((best, reached), (advantage, kept)):
            seeds = [s for s in accuracy if s in numbers_]
            if seeds:
                x = tuple(numbers_[s] for s in seeds)
                y = tuple(100 * accuracy[s] for s in seeds)
                curves.append(Curve(label=variant, mark="measured", x=x, y=y))
    for label, (accurate, reached_) in others.items():
        mark, y = "measured", (100 * accurate,)
        best.append(Curve(label=f"{label} (80x68)", mark=mark, x=(reached_,), y=y))
        advantage.append(Curve(label=f"{label} (80x68)", mark=mark, x=(0.0,), y=y))
    title = "Accuracy against the strongest attack"
    note = "Left and up is better. One point a seed" + (
        "; noise and blurring at a smaller size." if others else "."
    )
    kept_note = "Right and up is better. Without a key the advantage is 0."
    return [
        Chart(
            title=title,
            x_label="mean matched |correlation|",
            y_label="accuracy [%]",
            curves=tuple(best),
            points=True,
            note=note,
        ),
        Chart(
            title="Key advantage",
            x_label="owner minus strongest attack",
            y_label="accuracy [%]",
            curves=tuple(advantage),
            points=True,
            note=kept_note,
        ),
    ]
