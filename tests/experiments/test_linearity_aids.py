"""Aids to linearity: what a call asks for."""

from pathlib import Path

import linearity_aids
import pytest

from facemix_jax import results
from facemix_jax._validate import UsageError

RESULTS = Path(__file__).parents[2] / "experiments" / "results"


def test_a_call_without_options_asks_for_the_committed_cells():
    asked = linearity_aids.wanted(linearity_aids.Config())
    cells = results.load(RESULTS / "linearity_aids_cpu.json").cells
    assert len(asked) == len(set(asked)) == 18
    assert set(asked) == {(c["row"], c["group_size"], c["seed"]) for c in cells}


def test_smoke_asks_for_two_networks():
    asked = linearity_aids.wanted(linearity_aids.Config(scale="smoke"))
    assert asked == [("no aid", 8, 0), ("no constants, PReLU", 8, 0)]


def test_further_seeds_are_those_of_chosen_aids():
    chosen = linearity_aids.Config(aids=("PReLU", "centred"), larger=("PReLU",), seeds=(2, 3))
    asked = linearity_aids.wanted(chosen)
    assert asked == [("PReLU", 8, 2), ("centred", 8, 2), ("PReLU", 32, 2), ("PReLU", 8, 3)]
    with pytest.raises(UsageError, match="'PreLU' is unknown"):
        linearity_aids.wanted(linearity_aids.Config(larger=("PreLU",)))
