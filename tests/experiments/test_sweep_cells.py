"""The results file of a sweep: one row for each setting, whatever was swept when."""

import json

import pytest
import sweep

from facemix_jax.results import load


def row(accuracy, *, seeds=1, device="an accelerator", **setting):
    """As ``facemix sweep`` sums up a setting."""
    interval = None if seeds == 1 else 0.01
    leaks = {"leak_strongest_attack": 0.98, "leak_no_attack": 0.6, "leak_owner": 1.0}
    figures = {"accuracy": accuracy, "accuracy.interval": interval, "balanced_accuracy": 0.6}
    measured = {"split": "test", "device": device, "seeds": seeds, "failed": 0}
    return {**{name.replace("__", "."): v for name, v in setting.items()}, **measured} | (
        figures | leaks
    )


@pytest.fixture
def keep(tmp_path):
    config = sweep.Config(scale="smoke", output=tmp_path / "sweep.json")

    def kept(*rows):
        sweep.keep(config, list(rows))
        (table,) = load(config.output).tables
        stored = json.loads(config.output.read_text())
        return {each.label: each.cells[0][0] for each in table.rows}, table, stored

    return kept


def test_more_seeds_take_the_place_of_fewer(keep):
    keep(row(0.7, defense__group_size=2), row(0.6, defense__group_size=8))
    rows, _, stored = keep(row(0.72, seeds=4, defense__group_size=2))
    assert {label: (value.value, value.seeds) for label, value in rows.items()} == {
        "group_size 2": (0.72, 4),
        "group_size 8": (0.6, 1),
    }
    assert len(stored["cells"]) == 2


def test_grids_over_other_fields_stand_side_by_side(keep):
    keep(row(0.7, defense__group_size=2))
    rows, _, _ = keep(row(0.6, model__cut=3, defense__group_size=2), row(0.5, model__cut=1))
    assert {label: value.value for label, value in rows.items()} == {
        "group_size 2": 0.7,
        "cut 3, group_size 2": 0.6,
        "cut 1": 0.5,
    }


def test_the_runs_device_is_named_and_so_is_what_their_attack_is(keep):
    _, table, stored = keep(row(0.7, model__cut=1), row(0.6, device="another", model__cut=3))
    assert stored["provenance"]["device"] == "an accelerator, another"
    names = [column.name for column in table.columns]
    assert "strongest attack" in names
    assert "gradient ICA" not in names
    assert "the strongest of gradient ICA" in table.note
