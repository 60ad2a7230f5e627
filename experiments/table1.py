"""Table 1 and the edge columns of Tables 2 and 3, derived from the architectures.

Takes about ten seconds on a CPU; expected: every printed figure is met, two of them truncated.

    python experiments/table1.py
"""

import argparse
import json
import pathlib
from collections.abc import Sequence

from facemix_jax import _runtime, costs_paper

RESULT = pathlib.Path(__file__).parent / "results" / "table1.json"


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints both tables and writes them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=pathlib.Path, default=RESULT, help="where the figures go")
    options = parser.parse_args(arguments)
    _runtime.configure()
    for title, table in (
        ("Table 1: VGG-16, 224x224, per image", costs_paper.format_table1(costs_paper.table1())),
        (
            "Tables 2 and 3, edge columns: ResNet-18, 218x178, M = 8, per image",
            costs_paper.format_resnet18(costs_paper.resnet18_table()),
        ),
    ):
        print(f"\n{title} (in brackets: the paper)")
        widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
        for row in table:
            print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)))
    print("\n" + "\n".join(f"- {note}" for note in costs_paper.NOTES))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(costs_paper.table1_report(), indent=1) + "\n")


if __name__ == "__main__":
    main()
