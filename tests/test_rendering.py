import csv
import dataclasses
import io
import re

import pytest
from test_report import Parser

from facemix_jax import rendering, report, results
from facemix_jax._validate import UsageError
from facemix_jax.results import Column, ResultTable, Row, Value


def measured(value, half_width=None, seeds=1):
    return (Value(value=value, mark="measured", half_width=half_width, seeds=seeds),)


def paper(text):
    return (Value(value=text, mark="paper"),)


TABLE = ResultTable(
    title="Table 2: 50% of A & B_c, |x| < 1",
    columns=(
        Column(name="edge MACs", format="billions"),
        Column(name="accuracy", format="percent"),
        Column(name="attributes", format="percent", strongest="attributes, separated"),
        Column(name="attributes, separated", format="percent"),
        Column(name="|correlation|", format="fixed3"),
    ),
    rows=(
        Row(
            label="FaceMix, M_1 #2",
            cells=(
                (*paper("0.09G"), Value(value=92534208.0, mark="derived")),
                (*paper("90.7%"), *measured(0.8734, 0.0041, 4)),
                (*paper("51.5%"), *measured(0.523, 0.01, 4)),
                measured(0.791, 0.02, 4),
                measured(0.9956),
            ),
        ),
        Row(label="not yet", cells=((), (), paper("50.6%"), (), ())),
    ),
    note="50% is a guess; {x}^2 ~ \\y$.",
)


@pytest.mark.parametrize(
    ("format", "value", "half_width", "shown"),
    [
        ("percent", 0.8734, 0.0041, "87.3% ± 0.4"),
        ("percent", 0.8734, None, "87.3%"),
        ("fixed3", 0.99561, 0.0002, "0.996 ± 0.000"),
        ("fixed3", 0.5365, 0.0475, "0.537 ± 0.048"),  # in binary a little less than these
        ("percent", -0.0465, None, "-4.7%"),
        ("fixed2", -2.4, None, "-2.40"),
        ("integer", 8192, None, "8,192"),
        ("millions", 124176, None, "0.12M"),
        ("billions", 275011008, None, "0.28G"),
        ("text", 0.123456, None, "0.1235"),
        ("text", 1.0005, None, "1.001"),
        ("fixed3", float("inf"), None, "inf"),
        ("percent", "90.7%", None, "90.7%"),
    ],
)
def test_numbers_look_as_their_column_says(format, value, half_width, shown):
    assert (
        rendering.text(Value(value=value, mark="measured", half_width=half_width), format) == shown
    )


def test_every_format_of_results_is_rendered():
    for format in results.FORMATS:
        assert rendering.text(Value(value=1.0, mark="derived"), format)


def test_markdown_shows_marks_seeds_and_intervals():
    lines = rendering.markdown(TABLE).splitlines()
    assert lines[0] == "**Table 2: 50% of A &amp; B\\_c, \\|x\\| &lt; 1**"
    assert lines[4] == (
        "| FaceMix, M\\_1 #2 | 0.09G [paper]; 0.09G [derived] "
        "| 90.7% [paper]; 87.3% ± 0.4 [measured, 4 seeds] "
        "| 51.5% [paper]; 52.3% ± 1.0 [measured, 4 seeds] | 79.1% ± 2.0 [measured, 4 seeds] "
        "| 0.996 [measured, 1 seed] |"
    )
    cells = {len(re.findall(r"(?<!\\)\|", line)) for line in lines[2:6]}
    assert cells == {len(TABLE.columns) + 2}, "every row has its cells, bars within are escaped"


def test_latex_escapes_what_is_special_and_keeps_the_marks():
    text = rendering.latex(TABLE, label="tab:2")
    for wanted in (
        r"\caption{Table 2: 50\% of A \& B\_c, \textbar{}x\textbar{} \textless{} 1}",
        r"\{x\}\textasciicircum{}2 \textasciitilde{} \textbackslash{}y\$",
        r"M\_1 \#2",
        r"90.7\%$^{p}$ \\ 87.3\% $\pm$ 0.4$^{m4}$",
        r"\label{tab:2}",
        r"$^{p}$ printed in the paper",
    ):
        assert wanted in text
    assert re.search(r"(?<!\\)[%#]", text.partition("\n")[2].replace("{%\n", "")) is None
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")
    assert text.count(r"\begin") == text.count(r"\end")
    for rule in ("toprule", "midrule", "bottomrule"):
        assert text.count(rule) == 1


def test_no_line_of_latex_begins_with_an_option():
    columns = tuple(Column(name=f"{c} [dB] *of all*") for c in ("a very long name", "other"))
    row = Row(label="[dB] and a very long name [dB]", cells=(paper("[1]"), paper("*")))
    text = rendering.latex(ResultTable(title="t", columns=columns, rows=(row,)))
    body = text.partition(r"\midrule")[0].partition(r"\toprule")[2] + text.partition(r"\midrule")[2]
    assert "{[}dB]" in text
    # What ends a line or draws a rule looks for these behind spaces and line breaks.
    assert not re.search(r"(\\\\|rule)\s*[*\[]", body)


@pytest.mark.parametrize("render", [rendering.markdown, rendering.latex])
def test_line_breaks_within_words_are_spaces(render):
    row = Row(label="a\rb", cells=())
    text = render(ResultTable(title="c\r\nd", columns=(), rows=(row,)))
    assert "\r" not in text
    assert "a b" in text
    assert "c  d" in text


def test_csv_holds_the_numbers_and_reads_back():
    first, *rows = list(csv.reader(io.StringIO(rendering.as_csv(TABLE))))
    assert first[0] == TABLE.title
    assert {len(row) for row in rows} == {len(first)}
    found = dict(zip(first, rows[0], strict=True))
    assert float(found["accuracy (measured)"]) == 0.8734
    assert float(found["accuracy (measured, half width)"]) == 0.0041
    assert int(found["accuracy (measured, seeds)"]) == 4
    assert found["accuracy (paper)"] == "90.7%"
    assert float(found["edge MACs (derived)"]) == 92534208


def test_the_page_marks_every_value():
    page = report.page("t", [], [report.Section("s", rendering.for_page(TABLE))], "f")
    parser = Parser()
    parser.feed(page)
    assert parser.open == []
    values = [value for row in TABLE.rows for cell in row.cells for value in cell]
    kinds = [kind.split()[-1] for kind in parser.classes if kind.startswith("value ")]
    for mark in results.MARKS:
        assert kinds.count(mark) == sum(value.mark == mark for value in values)
    for text in ("87.3% ± 0.4", "measured, 4 seeds", "weak attacker", "not measured", TABLE.note):
        assert text in parser.text


def test_a_weak_attacker_never_stands_alone():
    with pytest.raises(UsageError, match="'attributes' shows a weak attacker"):
        results.select(TABLE, ["accuracy", "attributes"])
    chosen = results.select(TABLE, ["attributes", "attributes, separated"])
    assert [column.name for column in chosen.columns] == ["attributes", "attributes, separated"]
    assert chosen.rows[0].cells == TABLE.rows[0].cells[2:4]
    results.select(TABLE, ["attributes, separated"])  # the strongest may
    with pytest.raises(UsageError, match="Did you mean 'accuracy'"):
        results.select(TABLE, ["acuracy"])


def test_where_the_strongest_was_not_run_every_format_says_so():
    alone = dataclasses.replace(TABLE, rows=TABLE.rows[1:])
    renderers = (rendering.markdown, rendering.latex, rendering.as_csv)
    for renderer in renderers:
        assert rendering.MISSING in renderer(alone)
    both = dataclasses.replace(TABLE, rows=TABLE.rows[:1])
    for renderer in renderers:
        assert rendering.MISSING not in renderer(both), "the control"
