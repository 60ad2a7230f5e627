"""Table 1 and the edge columns of Tables 2 and 3, derived from the architectures.

Takes about ten seconds on a CPU; expected: every printed figure but Slalom's edge share is met, two
of them truncated.

    python experiments/table1.py
"""

import argparse
import pathlib
from collections.abc import Sequence
from typing import Any

from facemix_jax import _runtime, costs_paper, results
from facemix_jax.provenance import provenance
from facemix_jax.results import Column, ResultTable, Row, Value

RESULT = pathlib.Path(__file__).parent / "results" / "table1.json"
TABLE1 = "Table 1: VGG-16, 224x224, per image"
EDGE = "Tables 2 and 3, edge columns: ResNet-18, 218x178, M = 8, per image"


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints both tables and writes them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=pathlib.Path, default=RESULT, help="where the figures go")
    options = parser.parse_args(arguments)
    _runtime.configure()
    for title, table in (
        (TABLE1, costs_paper.format_table1(costs_paper.table1())),
        (EDGE, costs_paper.format_resnet18(costs_paper.resnet18_table())),
    ):
        print(f"\n{title} (in brackets: the paper)")
        widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
        for row in table:
            print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)))
    found = costs_paper.table1_report()
    print("\n" + "\n".join(f"- {note}" for note in found["notes"]))
    results.save(
        options.json,
        results.Results(
            name="table1",
            tables=tables(found),
            provenance=provenance(),
            config={"link": found["link"]},
            cells=[{"part": part, **found[part]} for part in ("table1", "resnet18")],
        ),
    )


def tables(found: dict[str, Any]) -> tuple[ResultTable, ...]:
    """Table 1 and the edge columns, what the paper prints beside what is derived."""
    return (
        _table(
            TABLE1,
            found["table1"]["rows"],
            {
                "edge_macs": Column(name="edge MACs", format="billions"),
                "edge_share": Column(name="edge share", format="percent"),
                "edge_share_all": Column(name="with all that the edge does", format="percent"),
                "up_mib": Column(name="MiB up", format="fixed3"),
                "mib": Column(name="MiB both ways", format="fixed3"),
                "seconds": Column(name="seconds", format="fixed3"),
                "rounds": Column(name="rounds", format="integer"),
            },
            " ".join(costs_paper.TABLE1_NOTES),
        ),
        _table(
            EDGE,
            found["resnet18"]["rows"],
            {
                "parameters": Column(name="edge parameters", format="millions"),
                "parameters_with_norm": Column(name="with BatchNorm", format="millions"),
                "macs": Column(name="edge MACs", format="billions"),
                "macs_all": Column(name="with all that the edge does", format="billions"),
            },
            " ".join(costs_paper.EDGE_NOTES),
        ),
    )


def _table(
    title: str, rows: Sequence[dict[str, Any]], columns: dict[str, Column], note: str
) -> ResultTable:
    def cell(figure: dict[str, Any] | None) -> tuple[Value, ...]:
        found = figure or {}
        pairs = (("paper", found.get("paper")), ("derived", found.get("derived")))
        return tuple(Value(value=v, mark=mark) for mark, v in pairs if v is not None)

    return ResultTable(
        title=title,
        columns=tuple(columns.values()),
        rows=tuple(
            Row(label=row["name"], cells=tuple(cell(row["figures"].get(n)) for n in columns))
            for row in rows
        ),
        note=note,
    )


if __name__ == "__main__":
    main()
