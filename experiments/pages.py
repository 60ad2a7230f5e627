"""Puts the tables of results files into the documentation, between markers that name them.

    python experiments/pages.py

A page says ``<!-- results: table2_cpu -->`` where the tables of ``results/table2_cpu.json`` go, and
``<!-- end -->`` below them; what stands between is replaced. Takes a second.
"""

import re
from pathlib import Path

from facemix_jax import rendering, results
from facemix_jax._files import write_atomically
from facemix_jax.provenance import commits

ROOT = Path(__file__).parents[1]
PAGES = tuple(ROOT / "docs" / f"{name}.md" for name in ("defenses", "linearity", "reproduction"))
_MARKED = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(page: str) -> str:
    """A page with the tables of the files that it names."""

    def tables(match: re.Match[str]) -> str:
        found = results.load(Path(__file__).parent / "results" / f"{match[2]}.json")
        by = commits(found.provenance, found.cells)  # outside a checkout it is not known
        made_by = f", commits {', '.join(by)}" * bool(by)
        made = [rendering.markdown(table) for table in found.tables]
        source = (
            f"*{found.provenance['device']}, {found.provenance['cores']} cores, "
            f"{str(found.provenance['date'])[:10]}{made_by}; "
            f"`experiments/results/{match[2]}.json`.*\n"
        )
        return match[1] + "\n" + "\n".join([*made, source]) + "\n" + match[3]

    return _MARKED.sub(tables, page)


if __name__ == "__main__":
    for page in PAGES:
        write_atomically(page, filled(page.read_text()))
