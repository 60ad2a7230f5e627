"""Tables 2 and 3 and Figure 4: what they say of given cells, and the scripts as they are run."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pages
import pytest
import regroup
import report
import rows
import scale as scales
import summaries
import systems

from facemix_jax import costs_paper, results
from facemix_jax._validate import FacemixError, UsageError

ROOT = Path(__file__).parents[2]
SCALE = scales.SCALES["cpu"]
SIZE = f"{summaries.images(SCALE, 'CelebA')}, {summaries.size(SCALE)}"
PAPER = Path(ROOT.parent / "shared" / "paper" / "facemix.txt")
needs_paper = pytest.mark.skipif(not PAPER.exists(), reason="the paper's text is not here")
ROW = "FaceMix, M = 8, N_pre = 1"
CELLS = [
    {
        "row": row,
        "part": "utility",
        "seed": seed,
        "test_accuracy": accuracy + seed / 1000,
        "majority_accuracy": 0.8,
    }
    for row, accuracy in ((systems.CLOUD, 0.875), (ROW, 0.862))
    for seed in range(3)
] + [
    {"row": ROW, "part": "attributes", "seed": 0, "value": 0.51, "strongest": 0.73},
    {"row": ROW, "part": "identity", "seed": 0, "skipped": "no one"},
]


def cell(table, label, column):
    (row,) = (row for row in table.rows if row.label == label)
    names = [c.name for c in table.columns]
    return {value.mark: value for value in row.cells[names.index(column)]}


def test_table2_sets_measured_beside_printed():
    (table,), (chart,) = summaries.table2(CELLS, SCALE)
    found = cell(table, ROW, "test acc.")
    assert found["paper"].value == "90.7%"
    assert found["measured"].value == pytest.approx(0.863)
    assert (found["measured"].seeds, found["measured"].half_width > 0) == (3, True)
    # Seed by seed the difference is the same, so that its interval is empty.
    minus = cell(table, ROW, "test minus cloud, points")
    assert minus["derived"].value == "-0.3"
    assert minus["measured"].value == pytest.approx(-1.3)
    assert minus["measured"].half_width == pytest.approx(0, abs=1e-9)
    assert cell(table, ROW, "attributes, strongest")["measured"].value == 0.73
    assert "measured" not in cell(table, ROW, "person ID")
    assert cell(table, summaries.MAJORITY, "test acc.")["measured"].value == 0.8
    # Nothing was measured of this one, and the paper's figures stand there all the same.
    assert cell(table, "blurring 8x8", "test acc.").keys() == {"paper"}
    assert [curve.label for curve in chart.curves] == [
        "FaceMix, paper's attacker",
        "FaceMix, strongest",
    ]


def test_the_edge_columns_are_the_derived_ones():
    (table,), _ = summaries.table3([], SCALE)
    derived = {row.name: row.figures for row in costs_paper.resnet18_table()}
    for label, name in {ROW: "FaceMix, N_pre = 1", systems.EDGE: systems.EDGE}.items():
        macs = cell(table, label, "edge MACs")
        assert macs["derived"].value == derived[name]["macs"].derived
        assert macs["paper"].value == derived[name]["macs"].paper


def printed(columns):
    """The tables of so many columns in the paper's text: label to cells, both spelled plainly."""
    tables = []
    for line in PAPER.read_text().replace("\u00d7", "x").splitlines():
        label, *cells = line.split("\t")
        if len(cells) == columns and not label:
            tables.append({})
        elif len(cells) == columns:
            label = re.sub(r"\\mathcal|[${}]| ?\[[\d, ]+\]", "", label)
            tables[-1][label] = [cell.rstrip("*") for cell in cells]
    return [table for table in tables if table]


PRINTED = {
    systems.EDGE: "Baseline (all on Edge)",
    systems.CLOUD: "Baseline (all on Cloud)",
    **{f"noise N(0, {v})": f"Adding Noise N(0, {v})" for v in (4, 8)},
    **{f"blurring {n}x{n}": f"Blurring ({n}x{n})" for n in (16, 8)},
    systems.ANONYMIZER: "Face Anonymizer",
    **{f"FaceMix, M = 8, N_pre = {n}": f"FaceMix (Ours) (S_G = 8, N_pre = {n})" for n in (1, 2, 3)},
}


@needs_paper
def test_every_printed_figure_is_the_papers():
    """Each row's figures, and no others, are those of the paper's row of that name."""
    made = summaries.table2([], SCALE), summaries.table3([], SCALE)
    for ((table,), _), wanted in zip(made, printed(6), strict=True):
        rows = {
            row.label: [v.value for cell in row.cells for v in cell if v.mark == "paper"]
            for row in table.rows
        }
        assert {PRINTED[label]: figures for label, figures in rows.items() if figures} == wanted


@needs_paper
def test_every_figure_of_table_1_is_the_papers():
    found = next(table for table in printed(4) if "Transmission size" in table)
    rows = costs_paper.table1()
    for label, keys in {
        "Computation (on edge)": ("edge_share",),
        "Transmission size": ("up_mib", "mib"),
        "Transmission time": ("seconds",),
    }.items():
        ours = [row.figures[key].paper for row in rows for key in keys if row.figures[key].paper]
        assert " ".join(ours) == " ".join(found[label])  # the last cell holds two rows of ours


def test_a_privacy_column_never_stands_alone():
    for make, other in ((summaries.table2, "person ID"), (summaries.table3, "faces, Pix2Pix")):
        (table,), _ = make(CELLS, SCALE)
        found = {column.name: column.strongest for column in table.columns if column.strongest}
        strongest = f"{other.partition(',')[0]}, strongest"
        assert found == {"attributes": "attributes, strongest", other: strongest}


def test_figure4_leaves_out_what_is_not_measured():
    _, (by_size, by_cut) = summaries.figure4(CELLS, SCALE)
    assert {curve.label: curve.x for curve in by_size.curves} == {
        "test accuracy": (8.0,),
        "attributes, paper's attacker": (8.0,),
        "attributes, strongest": (8.0,),
    }
    # The paper's 0.09G.
    assert by_cut.curves[0].x == (pytest.approx(0.0925, abs=1e-4),)


def test_the_page_holds_the_tables_of_the_results():
    """``python experiments/pages.py`` puts them there."""
    for page in pages.PAGES:
        assert pages.filled(page.read_text()) == page.read_text()


@pytest.mark.parametrize(
    ("commits", "words"),
    [
        ([None, "b" * 40, "a" * 40], "commits aaaaaaaaa, bbbbbbbbb;"),
        (["a" * 40, "a" * 40 + "-dirty"], "commits aaaaaaaaa, aaaaaaaaa with changes;"),
        ([None], "2026-01-01;"),
    ],
)
def test_pages_name_the_commits_that_are_known(monkeypatch, commits, words):
    made = {"device": "cpu", "cores": 2, "date": "2026-01-01T00", "commit": None}
    found = results.Results(name="x", provenance=made, cells=[{"commit": c} for c in commits])
    monkeypatch.setattr(results, "load", lambda path: found)
    page = pages.filled("<!-- results: x -->\n<!-- end -->\n")
    assert words in page
    assert "None" not in page


def test_older_files_name_their_commit_below_their_tables():
    page = pages.filled("<!-- results: table1 -->\n<!-- end -->")
    assert "commits e7ef9b91f;" in page
    assert "| all on the cloud |" in page


def test_a_file_of_other_options_is_not_continued(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Config:
        rows: tuple[str, ...]
        scale: str

    output = tmp_path / "x.json"
    cells = report.Cells(output, Config(("a",), "cpu"), chooses=("rows",))
    cells.add({"row": "a"})
    again = report.Cells(output, Config(("b",), "cpu"), chooses=("rows",))
    assert again.has(row="a")
    with pytest.raises(UsageError, match="begun with scale cpu, but scale is gpu"):
        report.Cells(output, Config(("a",), "gpu"), chooses=("rows",))


@dataclasses.dataclass(frozen=True)
class Choice:
    rows: tuple[str, ...]
    output: Path
    jobs: int


def write_row(config):
    (row,) = config.rows
    assert "--xla_gpu_deterministic_ops=true" in os.environ["XLA_FLAGS"]
    cells = report.Cells(config.output, config, chooses=("rows", "jobs"))
    for seed in range(5):
        cells.add({"row": row, "seed": seed})
    if row == "broken":
        raise UsageError("This row is broken.")


def test_rows_in_processes_of_their_own_fill_one_file(tmp_path):
    names, output = ("a", "broken", "b"), tmp_path / "new" / "x.json"
    config = Choice(names, output, jobs=3)
    with pytest.raises(FacemixError, match="stand above: broken\\. The"):
        rows.side_by_side(write_row, config, names)
    found = [(cell["row"], cell["seed"]) for cell in results.load(output).cells]
    assert sorted(found) == sorted((row, seed) for row in names for seed in range(5))


@pytest.mark.parametrize(
    ("script", "wrong", "says"),
    [("table2", "blurring 7x7", "Did you mean 'blurring"), ("table3", "face", "unknown")],
)
def test_an_unknown_row_is_refused_before_any_work(script, wrong, says):
    done = run(script, "--scale", "smoke", "--rows", wrong)
    assert done.returncode != 0
    assert says in done.stderr


@pytest.mark.parametrize("script", ["table2", "table3"])
def test_missing_files_are_named_once_before_rows_start(script, tmp_path):
    missing = tmp_path / "missing"
    done = run(script, "--scale", "cpu", "--jobs", "2", "--data-dir", str(missing))
    assert done.returncode != 0
    assert done.stderr.count(f"folder {missing} does not exist") == 1
    assert "rows failed" not in done.stderr


def run(script, *arguments):
    command = [sys.executable, f"experiments/{script}.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("script", ["table2", "table3", "figure4", "accuracy_gpu"])
def test_the_smoke_scale_runs_and_goes_on(script, tmp_path):
    output = tmp_path / "out.json"
    arguments = ["--scale", "smoke", "--workdirs", str(tmp_path), "--output", str(output)]
    if script == "figure4":
        arguments += ["--group-sizes", "2", "8", "--cuts", "1"]
    done = run(script, *arguments)
    assert done.returncode == 0, done.stderr
    first = results.load(output)
    assert first.tables
    assert first.cells
    again = run(script, *arguments)
    assert again.returncode == 0, again.stderr
    assert results.load(output).cells == first.cells


def test_regrouping_is_shown_by_its_strongest_way():
    cell = {"setting": "image", "group_size": 2, "groups": 4, "mixtures": 8, "share_right": 0.5}
    cell |= {"average_linkage_of_energies": 0.75, "chain": 0.9, "chain_worst_image": 0.8}
    (table,), (chart,) = regroup.summarize([cell | {"floor": 0.7, "joint_ica": 0.95}])
    names = [column.name for column in table.columns]
    for column, best in (("groups, strongest", 0.75), ("recovered, strongest", 0.95)):
        assert table.rows[0].cells[names.index(column)][0].value == best
    assert chart.curves[0].y == (0.75,)


def test_drawn_faces_are_never_called_by_a_data_sets_name():
    smoke = scales.SCALES["smoke"]
    found = (summaries.table2([], smoke), summaries.table3([], smoke))
    for (table,), _ in (*found, summaries.figure4([], smoke)):
        assert re.search("drawn faces in place of (CelebA|LFWA)", table.title)
    (table,), _ = summaries.table2([], SCALE)
    assert "Table 2: CelebA. Measured at 80x68" in table.title
