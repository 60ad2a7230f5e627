import dataclasses

import pytest

from facemix_jax import results
from facemix_jax._validate import UsageError
from facemix_jax.results import Chart, Column, Curve, Results, ResultTable, Row, Value

PAPER = Value(value="90.7%", mark="paper")
TABLE = ResultTable(
    title="accuracy",
    columns=(
        Column(name="accuracy", format="percent"),
        Column(name="weak", format="fixed3", strongest="strong"),
        Column(name="strong", format="fixed3"),
    ),
    rows=(
        Row(
            label="FaceMix",
            cells=(
                (PAPER, results.mean_over_seeds([0.87, 0.88])),
                (Value(value=0.51, mark="measured"),),
                (),
            ),
        ),
    ),
)
CHART = Chart(
    title="t",
    x_label="M",
    y_label="accuracy",
    curves=(Curve(label="a", mark="measured", x=(2, 4), y=(0.9, 0.8), half_widths=(None, 0.1)),),
    log2_x=True,
)
RESULTS = Results(name="x", tables=(TABLE,), charts=(CHART,), cells=[{"seed": 0}])


def test_a_file_holds_everything(tmp_path):
    path = tmp_path / "deep" / "x.json"
    results.save(path, RESULTS)
    assert results.load(path) == RESULTS


def test_the_interval_is_students():
    value = results.mean_over_seeds([1.0, 2.0, 3.0])
    # t(0.975, 2) = 4.30265, deviation 1.
    assert value.value == 2.0
    assert value.half_width == pytest.approx(4.30265 / 3**0.5, rel=1e-5)
    assert results.mean_over_seeds([0.5]).half_width is None


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Value(value=1.0, mark="guessed"), "mark 'guessed'"),
        (lambda: Column(name="x", format="percents"), "Did you mean 'percent'"),
        (lambda: dataclasses.replace(TABLE, columns=TABLE.columns[:2]), "strongest 'strong'"),
        (lambda: dataclasses.replace(TABLE, rows=(Row(label="r", cells=((),)),)), "1 cells for 3"),
        (lambda: Curve(label="c", mark="paper", x=(1,), y=()), "differ in length"),
        (lambda: Curve(label="c", mark="paper", x=(1,), y=(None,)), "a point without a value"),
        (lambda: Curve(label="c", mark="paper", x=("1",), y=(1,)), "x is '1'"),
        (lambda: Value(value=1.0, mark="paper", half_width="x"), "half_width is 'x'"),
        (lambda: Value(value=1.0, mark="paper", half_width=-0.1), "half_width is -0.1"),
        (lambda: Value(value=10**400, mark="paper"), "value is larger than any float"),
        (lambda: Curve(label="c", mark="paper", x=(10**400,), y=(1,)), "x is larger"),
        (lambda: Curve(label="c", mark="paper", x=(1, 2), y=(1e308, -1e308)), "reach to 1e[+]300"),
        (
            lambda: Curve(label="c", mark="paper", x=(1,), y=(1,), half_widths=(-1,)),
            "half_width is -1",
        ),
        (lambda: Results(name=3), "name is 3"),
        (lambda: Results(name="x", provenance=None), "provenance is None"),
        (lambda: Results(name="x", provenance={"versions": ["1"]}), r"versions is \['1'\]"),
        (lambda: Results(name="x", provenance={"versions": None}), "versions is None"),
        (lambda: Results(name="x", config=[]), r"config is \[\]"),
        (lambda: Results(name="x", cells=None), "cells is None"),
        (lambda: Results(name="x", cells=[1]), "cell is 1"),
        (lambda: Row(label=None, cells=()), "label is None"),
        (
            lambda: dataclasses.replace(
                TABLE, rows=(Row(label="r", cells=((PAPER, PAPER), (), ())),)
            ),
            "two values of one mark in 'accuracy'",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make, says):
    with pytest.raises(UsageError, match=says):
        make()


@pytest.mark.parametrize("text", ["{", "[]", '{"name": "x"}', '{"tables": [], "charts": []}'])
def test_other_files_are_refused(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UsageError, match="not a results file"):
        results.load(tmp_path / "x.json")
    with pytest.raises(UsageError, match="cannot be read"):
        results.load(tmp_path / "missing.json")
