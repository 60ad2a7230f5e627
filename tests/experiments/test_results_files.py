"""The committed results files hold tables and charts of their cells, each figure with its mark."""

import dataclasses
import functools
import itertools
from pathlib import Path

import accuracy_cpu
import accuracy_gpu
import algebra_summary
import anonymizer_weights
import between_scales
import challenge_baseline
import frontier_summary
import gaussian_codes
import learned_attackers
import linearity_aids
import linearity_summary
import other_systems
import phase_summary
import places
import pytest
import regroup
import report
import separation_real
import separation_variants
import summaries
import synthetic_faces
import training_length
import variants_summary
from scale import SCALES
from test_tables import ROW, SCALE, cell

from facemix_jax import results

RESULTS = Path(__file__).parents[2] / "experiments" / "results"
SIZE = f"{summaries.images(SCALE, 'CelebA')}, {summaries.size(SCALE)}"

SUMMARIES = {
    "accuracy_cpu": accuracy_cpu.summarize,
    "accuracy_gpu": lambda cells: accuracy_gpu.summarize(cells, accuracy_gpu.native("gpu")),
    "algebra_real": algebra_summary.summarize,
    "anonymizer_weights_cpu": lambda cells: (anonymizer_weights.tables(cells, SCALE), ()),
    "between_scales_cpu": lambda cells: (
        between_scales.tables(cells, "lfwa", between_scales.trained_long("lfwa", "cpu")),
        (),
    ),
    "between_scales_celeba_cpu": lambda cells: (
        between_scales.tables(cells, "celeba", between_scales.trained_long("celeba", "cpu")),
        (),
    ),
    "challenge_baseline_smoke": challenge_baseline.summarize,
    "frontier": frontier_summary.summary,
    "gaussian_codes_cpu": lambda cells: (
        [gaussian_codes.table(cells, gaussian_codes.Config())] if cells else [],
        (),
    ),
    "learned_attackers": learned_attackers.summarize,
    "linearity": linearity_summary.summarize,
    "linearity_aids_cpu": linearity_aids.summarize,
    "other_systems_cpu": functools.partial(other_systems.summarize, size=SIZE),
    "phase_cpu": phase_summary.summarize,
    "regroup": regroup.summarize,
    "separation_real": separation_real.summarize,
    "separation_variants": separation_variants.summarize,
    "synthetic_faces": synthetic_faces.summarize,
    "training_length_cpu": lambda cells: ((), (training_length.chart(cells, SCALE, "celeba"),)),
    "training_length_lfwa_cpu": lambda cells: (
        (),
        (training_length.chart(cells, SCALE, "lfwa"),),
    ),
    "variants_cpu": lambda cells: (variants_summary.tables(cells, SIZE), ()),
}
PAPERS = {
    "table2_cpu": lambda cells: summaries.table2(cells, SCALE),
    "table2_gpu": lambda cells: summaries.table2(cells, SCALES["gpu"]),
    "table3_cpu": lambda cells: summaries.table3(cells, places.scale_of("lfwa", "cpu")),
    "table3_gpu": lambda cells: summaries.table3(cells, places.scale_of("lfwa", "gpu")),
    "figure4_cpu": lambda cells: summaries.figure4(cells, SCALE),
}
"""They show the paper's figures before there are cells."""


@pytest.mark.parametrize("name", [*SUMMARIES, *PAPERS])
def test_a_results_file_holds_the_tables_and_charts_of_its_cells(name):
    found = results.load(RESULTS / f"{name}.json")
    tables, charts = {**SUMMARIES, **PAPERS}[name](list(found.cells))
    assert tables or charts
    assert dataclasses.asdict(dataclasses.replace(found, tables=tuple(tables))) == (
        dataclasses.asdict(found)
    )
    # With their curves: pages and pictures are drawn from what the file holds.
    assert [dataclasses.asdict(chart) for chart in charts] == (
        [dataclasses.asdict(chart) for chart in found.charts]
    )


@dataclasses.dataclass(frozen=True)
class NoOptions:
    pass


def test_results_files_can_be_gone_on_with():
    for name in (*SUMMARIES, *PAPERS):
        path = RESULTS / f"{name}.json"
        found = results.load(path)
        assert report.Cells(path, NoOptions(), name=found.name).cells == found.cells


def test_no_two_results_files_have_the_same_name():
    paths = [path for path in RESULTS.glob("*.json") if '"tables"' in path.read_text()]
    names = [results.load(path).name for path in paths]
    assert len(set(names)) == len(names) > 20


@pytest.mark.parametrize("name", SUMMARIES)
def test_a_script_without_cells_has_nothing_to_show(name):
    tables, _ = SUMMARIES[name]([])
    assert not tables


def test_figures_of_learned_attackers_stand_beside_the_same_after_separation():
    found = results.load(RESULTS / "learned_attackers.json")
    ((table,), _) = learned_attackers.summarize(list(found.cells))
    weak = next(column for column in table.columns if column.name == "attacker")
    assert weak.strongest == "after gradient ICA"
    shown = {row.label: cell(table, row.label, weak.strongest) for row in table.rows}
    paired = {label: of for label, of in shown.items() if "of single rows" in label}
    assert len(paired) == 4
    assert all(of["measured"].value > 0.29 for of in paired.values())
    assert not any(of for label, of in shown.items() if label not in paired)


@pytest.mark.parametrize("name", ["separation_real", "figure5_cpu"])
def test_where_gradient_ica_stands_alone_it_is_called_a_quick_attack(name):
    found = results.load(RESULTS / f"{name}.json")
    alone = [
        table
        for table in found.tables
        for column in table.columns
        if column.name == "gradient ICA" and column.strongest is None
    ]
    assert alone
    assert all(report.QUICK in table.note for table in alone)


def test_no_row_and_no_curve_is_empty():
    for path in RESULTS.glob("*.json"):
        if '"tables"' not in path.read_text():
            continue  # a benchmark's plain numbers
        found = results.load(path)
        assert all(any(row.cells) for table in found.tables for row in table.rows), path.name
        assert all(curve.x for chart in found.charts for curve in chart.curves), path.name


def test_what_is_no_attacker_is_not_called_a_weak_one():
    others = {"chance", "mean face", "own images", "no attack", "owner"}
    shown = set()
    for path in RESULTS.glob("*.json"):
        if '"tables"' not in path.read_text():
            continue  # a benchmark's plain numbers
        for table in results.load(path).tables:
            shown |= {column.name for column in table.columns}
            weak = {column.name for column in table.columns if column.strongest is not None}
            assert not weak & others, (path.name, table.title)
    assert others <= shown


def test_what_follows_without_a_measurement_is_not_called_measured():
    for name, label, columns in (
        ("learned_attackers", "attributes on facemix", ("chance", "no attack")),
        ("algebra_real", "span: ", ("chance",)),
        ("synthetic_faces", "100 people", ("chance",)),
        ("synthetic_faces", "plain", ("gradient ICA", "no attack", "owner")),
        ("accuracy_cpu", "plain", ("gradient ICA", "no attack", "owner")),
        ("variants_cpu", ROW, ("rows sent", "rows ahead")),
    ):
        found = results.load(RESULTS / f"{name}.json")
        tables, _ = SUMMARIES[name](list(found.cells))
        table, label = next(
            (table, row.label)
            for table in tables
            for row in table.rows
            if row.label.startswith(label)
        )
        for column in columns:
            assert list(cell(table, label, column)) == ["derived"], (name, column)


def test_the_options_of_gaussian_codes_by_default_are_those_of_the_committed_run():
    cells = results.load(RESULTS / "gaussian_codes_cpu.json").cells
    names = "map", "group_size", "noise", "attack", "training"
    config = gaussian_codes.Config()
    wanted = set(
        itertools.product(
            config.maps,
            config.group_sizes,
            config.noises,
            (None, *config.attacks),
            gaussian_codes.WEIGHTS,
        )
    )
    measured = {tuple(cell[n] for n in names) for cell in cells if cell["seed"] == config.seed}
    assert wanted <= measured
    assert {cell["attack"] for cell in cells} - {None, *config.attacks} == {"iva", "nonnegative"}
