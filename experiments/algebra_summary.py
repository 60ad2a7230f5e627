"""Tables and charts of the parts of ``algebra_real.py``."""

from collections.abc import Mapping, Sequence
from typing import Any

import report

from facemix_jax.results import Chart, Column, ResultTable, Row


def summarize(cells: Sequence[Mapping[str, Any]]) -> report.Summary:
    """What every attack found, and curves over what it knows."""
    parts = {cell["part"]: cell["found"] for cell in cells}
    tables = [attacks_of(parts), certificates_of(parts)]
    charts = []
    if "known_plaintext" in parts:
        charts.append(
            _chart(
                parts["known_plaintext"],
                "Known pictures of a group of eight",
                ("known", "pictures of the group that are known"),
                {
                    "with_separation": "algebra, then separation",
                    "algebra_alone": "algebra alone",
                    "no_attack": "no attack",
                },
            )
        )
    if "collusion" in parts:
        charts.append(
            _chart(
                parts["collusion"],
                "Some of the eight rows",
                ("rows", "rows held"),
                {"attacker": "gradient ICA", "no_attack": "no attack"},
            )
        )
    return [table for table in tables if table.rows], charts


def _chart(
    found: Sequence[Mapping[str, Any]], title: str, x: tuple[str, str], names: Mapping[str, str]
) -> Chart:
    field, label = x
    return Chart(
        title=title,
        x_label=label,
        y_label="mean matched |correlation| of the others"
        if field == "known"
        else "mean matched |correlation|",
        curves=tuple(
            report.curve(shown, [(row[field], row[name]) for row in found])
            for name, shown in names.items()
        ),
    )


def attacks_of(parts: Mapping[str, Any]) -> ResultTable:
    """All figures, one a row."""
    flat = [
        {"part": part, **figure}
        for part, found in parts.items()
        if isinstance(found, list) and found and "threat_model" in found[0]
        for figure in found
    ]
    if "output" in parts:
        flat.append({"part": "output", "name": "balanced accuracy", **parts["output"]})
    for name in parts.get("inversion_by_optimization", {}).get("attacker", {}):
        both = {who: of[name] for who, of in parts["inversion_by_optimization"].items()}
        flat.append({"part": "inversion by optimization", "name": name, **both})
    columns = {
        "chance": Column(name="chance", format="fixed3"),
        "floor": Column(name="no attack", format="fixed3"),
        "value": Column(name="attacker", format="fixed3"),
        "owner": Column(name="owner", format="fixed3"),
    }
    flat = [{**row, "value": row.get("value", row.get("attacker"))} for row in flat]
    for row in flat:
        if row["part"] in ("span", "weak_randomness") and row["chance"] is not None:
            row["chance"] = report.derived(row["chance"])  # the others' guesses were drawn
    about = parts.get("about", {})
    return ResultTable(
        title=f"Algebra and what separation opens: {about.get('dataset', '')}",
        columns=tuple(columns.values()),
        rows=report.rows(
            flat, lambda row: f"{row['part'].replace('_', ' ')}: {row['name']}", columns
        ),
        note="Each in its own unit, beside what needs no attack and what the key's owner gets.",
    )


def certificates_of(parts: Mapping[str, Any]) -> ResultTable:
    """Certificates of membership, the search for a seed, the judge's own accuracy."""
    names = ("certificates", "seed_search", "judge_verification")
    rows = tuple(
        Row(
            label=f"{part}: {name}".replace("_", " "),
            cells=(report.measured(f"{value:,}" if type(value) is int else _words(value)),),
        )
        for part in names
        for name, value in parts.get(part, {}).items()
    )
    return ResultTable(title="Numbers behind them", columns=(Column(name="value"),), rows=rows)


def _words(value: Any) -> Any:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else value
