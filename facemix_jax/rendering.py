"""Tables of results as Markdown, LaTeX, CSV, and for an HTML page.

Every value carries its mark. A weak attacker's column never comes without its strongest: tables
without it cannot be made (``results.ResultTable``), and renderers take whole tables only.
"""

import csv
import decimal
import io
import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal

from facemix_jax import report
from facemix_jax.report import Labelled
from facemix_jax.results import MARKS, ResultTable, Row, Value

MEANING = {
    "paper": "printed in the paper",
    "measured": "run by us: the mean over that many seeds ± half its 95% interval (Student's t); "
    "one seed has no interval",
    "derived": "computed from the architecture, the configuration or what the paper prints, "
    "nothing was run",
}
"""What the marks say."""

WEAK = "weak attacker"
MISSING = "not measured"
"""Stands where a weak attacker's figure has none of the strongest attacker beside it."""

_PARTS = {"value": "", "half_width": ", half width", "seeds": ", seeds"}

_NUMBERS: dict[str, Callable[[Decimal], str]] = {
    "text": lambda x: f"{float(decimal.Context(4, decimal.ROUND_HALF_UP).plus(x)):.4g}",
    "percent": lambda x: f"{100 * x:.1f}%",
    "fixed3": lambda x: f"{x:.3f}",
    "fixed2": lambda x: f"{x:.2f}",
    "integer": lambda x: f"{x:,.0f}",
    "millions": lambda x: f"{x / 10**6:.2f}M",
    "billions": lambda x: f"{x / 10**9:.2f}G",
}


def text(value: Value, format: str) -> str:
    """A value and half its interval, without its mark.

    Args:
        value: a number, or text as it is.
        format: of the column, one of ``results.FORMATS``.

    Example:
        >>> text(Value(value=0.873, mark="measured", half_width=0.004, seeds=4), "percent")
        '87.3% ± 0.4'
    """
    if isinstance(value.value, str):
        return value.value
    shown = _number(value.value, format)
    if value.half_width is None:
        return shown
    return f"{shown} ± {_number(value.half_width, format).rstrip('%')}"


def _number(x: float, format: str) -> str:
    """Rounded as people round what is stored: 0.5365 is 0.537, though its binary lies below."""
    if not math.isfinite(x):
        return str(float(x))
    with decimal.localcontext(rounding=decimal.ROUND_HALF_UP):
        return _NUMBERS[format](Decimal(repr(float(x))))


def origin(value: Value) -> str:
    """The mark, and the number of seeds.

    Example:
        >>> origin(Value(value=0.873, mark="measured", half_width=0.004, seeds=4))
        'measured, 4 seeds'
    """
    if value.seeds is None:
        return value.mark
    return f"{value.mark}, {value.seeds} seed{'s' if value.seeds > 1 else ''}"


def remarks(table: ResultTable) -> list[str]:
    """What belongs below a table: its note, and which columns show weak attackers."""
    weak = [
        f"'{column.name}' shows a {WEAK}; the strongest stands in '{column.strongest}'."
        for column in table.columns
        if column.strongest is not None
    ]
    return [line for line in (table.note, " ".join(weak)) if line]


def lines(table: ResultTable) -> list[list[str]]:
    """Each row's label and cells in words, every value with its mark."""
    return [
        [
            label,
            *(
                "; ".join(f"{text} [{mark}]" if mark else text for text, mark, _ in cell)
                for cell in cells
            ),
        ]
        for label, cells in _filled(table)
    ]


def markdown(table: ResultTable) -> str:
    """A table for GitHub and most other readers, with its title above and remarks below."""
    header = ["", *(column.name for column in table.columns)]
    rows = [[_escape_markdown(cell) for cell in line] for line in [header, *lines(table)]]
    rows.insert(1, ["---", *["---:"] * len(table.columns)])
    body = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    below = (_escape_markdown(remark) for remark in remarks(table))
    return "\n\n".join([f"**{_escape_markdown(table.title)}**", body, *below]) + "\n"


def latex(table: ResultTable, *, label: str = "") -> str:
    r"""A floating table for the packages booktabs and graphicx; it shrinks to the text's width.

    Args:
        table: what to show.
        label: for ``\ref``; none where empty.
    """
    heads = [_stacked(_wrapped(column.name), "b") for column in table.columns]
    rows = [
        [_stacked(_wrapped(name), "t", "l"), *(_stacked(map(_latex_value, c), "t") for c in cells)]
        for name, cells in _filled(table)
    ]
    used = [mark for mark in MARKS if any(v.mark == mark for v in _values(table))]
    legend = "; ".join(f"$^{{{mark[0]}}}$ {_escape_latex(MEANING[mark])}" for mark in used)
    below = [*map(_escape_latex, remarks(table)), *([f"{legend}."] if legend else [])]
    return "\n".join(
        [
            r"% Needs \usepackage{booktabs,graphicx} and \usepackage[T1]{fontenc}.",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_escape_latex(table.title)}}}",
            *([rf"\label{{{label}}}"] if label else []),
            r"\setlength{\tabcolsep}{4pt}",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
            r"\toprule",
            " & ".join(["", *heads]) + r" \\",
            r"\midrule",
            *(" & ".join(row) + r" \\ \addlinespace[2pt]" for row in rows),
            r"\bottomrule",
            r"\end{tabular}}",
            *(rf"\par\smallskip\raggedright\footnotesize {line}" for line in below),
            r"\end{table}",
            "",
        ]
    )


def as_csv(table: ResultTable) -> str:
    """Numbers as they are stored: for each column and mark the value, half width and seeds."""
    fields: list[tuple[int, str, str]] = []
    for place in range(len(table.columns)):
        values = [value for row in table.rows for value in row.cells[place]]
        lacking = any(place in _unanswered(table, row) for row in table.rows)
        for mark in MARKS:
            marked = [value for value in values if value.mark == mark]
            if marked or (lacking and mark == "measured"):
                fields.append((place, mark, "value"))
            for part in ("half_width", "seeds"):
                if any(getattr(value, part) is not None for value in marked):
                    fields.append((place, mark, part))
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    names = (f"{table.columns[place].name} ({mark}{_PARTS[part]})" for place, mark, part in fields)
    writer.writerow([table.title, *names])
    for row in table.rows:
        found = [{value.mark: value for value in cell} for cell in row.cells]
        line = [getattr(found[place].get(mark), part, None) for place, mark, part in fields]
        for place in _unanswered(table, row):
            line[fields.index((place, "measured", "value"))] = MISSING
        writer.writerow([row.label, *("" if part is None else part for part in line)])
    return file.getvalue()


def for_page(table: ResultTable) -> list[report.Block]:
    """Heading, table and remarks for ``report.page``."""
    header: list[report.Cell] = [""]
    for column in table.columns:
        label = WEAK if column.strongest else ""
        header.append([Labelled(column.name, label, "weak" if label else "")])
    rows: list[Sequence[report.Cell]] = [[label, *cells] for label, cells in _filled(table)]
    below = map(report.Small, remarks(table))
    return [report.Heading(table.title), report.Table(header, rows), *below]


def _filled(table: ResultTable) -> list[tuple[str, list[list[Labelled]]]]:
    """Rows with their labels; no weak attacker's figure has an empty place beside it."""
    rows = []
    for row in table.rows:
        cells = [
            [Labelled(text(value, column.format), origin(value), value.mark) for value in cell]
            for cell, column in zip(row.cells, table.columns, strict=True)
        ]
        for place in _unanswered(table, row):
            cells[place].append(Labelled(MISSING, "", "missing"))
        rows.append((row.label, cells))
    return rows


def _unanswered(table: ResultTable, row: Row) -> set[int]:
    """Columns of strongest attackers that lack the figure to a weak one's; papers print none."""
    places = {column.name: place for place, column in enumerate(table.columns)}
    asked = {
        places[column.strongest]
        for cell, column in zip(row.cells, table.columns, strict=True)
        if cell and column.strongest is not None
    }
    return {place for place in asked if all(v.mark == "paper" for v in row.cells[place])}


def _values(table: ResultTable) -> list[Value]:
    return [value for row in table.rows for cell in row.cells for value in cell]


def _wrapped(words: str) -> list[str]:
    return [_escape_latex(line) for line in textwrap.wrap(words, _LATEX_WIDTH)]


def _stacked(lines: Iterable[str], position: str, side: str = "r") -> str:
    """Lines of one cell, below each other."""
    several = list(lines)
    if len(several) < 2:
        return "".join(several)
    body = r" \\ ".join(several)
    return rf"\begin{{tabular}}[{position}]{{@{{}}{side}@{{}}}}{body}\end{{tabular}}"


def _latex_value(value: Labelled) -> str:
    shown = _escape_latex(value.text)
    if value.kind not in MARKS:
        return rf"\emph{{{shown}}}"
    seeds = value.label.partition(", ")[2].partition(" ")[0]
    return f"{shown}$^{{{value.kind[0]}{seeds}}}$"


_LATEX_WIDTH = 16
"""Letters in a line of a heading or label."""

_LATEX = {
    "\\": r"\textbackslash{}",
    **{c: f"\\{c}" for c in "{}$&#_%"},
    "[": "{[}",  # bare at the beginning of a line, an option of what ends the line before
    "*": "{*}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "|": r"\textbar{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "\u00d7": r"$\times$",
    "\u2212": "$-$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "·": r"$\cdot$",
    "\u2013": "--",
    "\u2014": "---",
    "\n": " ",
    "\r": " ",
}

_MARKDOWN = {**{c: f"\\{c}" for c in "\\|*_`"}, "<": "&lt;", "&": "&amp;", "\n": " ", "\r": " "}


def _escape_latex(plain: str) -> str:
    return "".join(_LATEX.get(c, c) for c in plain)


def _escape_markdown(plain: str) -> str:
    return "".join(_MARKDOWN.get(c, c) for c in plain)
