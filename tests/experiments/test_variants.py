"""Variants of mixing: what is measured, and what the table says of given cells."""

from types import SimpleNamespace

import numpy as np
import pytest
import report
import variants
import variants_summary

from facemix_jax import defenses, results

FILTERED = {"floor": 0.6, "owner": 1.0, "granted": 1.0, "guess": 0.5}


def attack_cell(part, value, filtered):
    return {
        "variant": "4 decoys",
        "seed": 0,
        "part": part,
        "value": value,
        "floor": 0.5,
        "owner": 1.0,
        "key_advantage": 1 - value,
        "filtered": {"value": filtered, **FILTERED},
    }


CELLS = [
    {
        "variant": "4 decoys",
        "seed": 0,
        "part": "utility",
        "accuracy": 0.85,
        "balanced_accuracy": 0.6,
        "rows_sent": 1.5,
        "rows_ahead": 0.0,
    },
    attack_cell("gradient_ica", 0.9, 0.95),
    attack_cell("robust", 0.8, 0.97),
]


def test_the_strongest_is_the_larger_of_both_attacks():
    row = variants_summary.row_of(CELLS, "4 decoys")
    assert (row["gradient_ica"], row["robust"], row["value"]) == (0.9, 0.8, 0.9)
    assert row["value, filtered"] == 0.97
    assert row["rows_sent"] == report.derived(1.5)
    assert "value" not in variants_summary.row_of(CELLS[:1], "4 decoys")


def test_no_weak_attack_stands_alone_in_the_table():
    table = variants_summary.table(CELLS, "drawn faces")
    names = {column.name for column in table.columns}
    weak = [column for column in table.columns if column.name in ("gradient ICA", "robust")]
    assert len(weak) == 2
    assert {column.strongest for column in weak} <= names
    assert len(table.rows[0].cells) == len(table.columns)


def test_every_variant_has_a_defence_of_eight_images():
    for variant in variants.VARIANTS.values():
        assert defenses.build(variant.defense).group_size == 8
    assert set(variants.SMOKE) <= set(variants.VARIANTS)


def test_images_without_a_source_are_left_out():
    rows = np.arange(1.0, 13.0).reshape(2, 3, 2)
    rows[0, 1] = rows[1, 0] = 0
    np.testing.assert_array_equal(variants._found_only(rows, 2), [rows[0, [0, 2]], rows[1, 1:]])
    assert variants._found_only(rows, 4) is rows


def test_what_is_recognised_stands_beside_what_separation_finds():
    figure = {"value": 0.5, "floor": 0.4, "chance": 0.4}
    cells = [*CELLS, {"variant": "4 decoys", "seed": 0, "part": "pix2pix", "figures": [figure]}]
    _, table = variants_summary.tables(cells, "drawn faces")
    names = [column.name for column in table.columns]
    (row,) = table.rows
    for column in table.columns:
        assert column.strongest is None or column.strongest in names
    assert row.cells[names.index("activations, strongest")][0].value == 0.9
    assert row.cells[names.index("faces, Pix2Pix")][0].value == 0.5
    assert len(variants_summary.tables(CELLS, "drawn faces")) == 1


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"parts": ("robust",), "variants": ("int4",)}, {("int4", "robust")}),
        ({"variants": ("int4",)}, {("int4", "utility"), ("int4", "gradient_ica")}),
        ({}, {(name, part) for name, parts in variants.SMOKE.items() for part in parts}),
    ],
)
def test_what_is_asked_for_is_measured_at_every_scale(tmp_path, monkeypatch, asked, expected):
    monkeypatch.setattr(variants, "trained", lambda *arguments: None)
    monkeypatch.setattr(variants, "utility", lambda *arguments: {})
    scene = SimpleNamespace(attacked=lambda part: {})
    monkeypatch.setattr(variants, "Scene", lambda *arguments: scene)
    monkeypatch.setattr(variants_summary, "tables", lambda *arguments: ())
    output = tmp_path / "v.json"
    variants.main(variants.Config(scale="smoke", output=output, **asked))
    assert {(c["variant"], c["part"]) for c in results.load(output).cells} == expected
