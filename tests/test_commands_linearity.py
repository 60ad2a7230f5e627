"""``facemix linearity`` as a user meets it."""

import csv
import dataclasses
import json
from types import SimpleNamespace

import jax
import matplotlib.image
import numpy as np
import pytest

from facemix_jax import cli, commands_linearity, fitting, runs
from facemix_jax.data import DataConfig
from facemix_jax.defenses import DefenseConfig
from facemix_jax.models import ModelConfig, resnet18
from facemix_jax.models.torch_weights import _torch_name
from facemix_jax.runs import RunConfig
from facemix_jax.training import TrainConfig

pytestmark = pytest.mark.library_promotes  # Optax; BatchNorm in bfloat16


def run(capsys, *arguments):
    """Exit code, standard output, standard error on one line."""
    code = cli.main(["linearity", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, " ".join(captured.err.split())


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, tiny_source):
    workdir = tmp_path_factory.mktemp("run") / "m8"
    config = RunConfig(
        data=DataConfig(image_size=(40, 36), train_examples=32, test_examples=32),
        model=ModelConfig(width=4, cut=7),
        train=TrainConfig(num_epochs=1, batch_size=16),
    )
    fitting.fit(config, workdir)
    return workdir


def test_a_run_is_examined_end_to_end_by_layer_and_by_cause(capsys, workdir):
    code, out, _ = run(
        capsys, "--workdir", workdir, "--num-keys", 2, "--num-images", 20, "--json", "-"
    )
    assert code == 0
    result = json.loads(out)
    assert result["trained_steps"] == 2
    assert (result["group_size"], result["images"]) == (8, 16)
    errors = result["relative_unmix_error"]
    assert len(errors["features"]["per_key"]) == 2
    assert errors["logits"]["mean"] > 0
    layers, causes = result["layers"], result["causes"]
    assert layers["names"] == ["layer4_0", "layer4_1", "pool"]
    assert layers["pairs"]["mean"][2][0] is None
    end = layers["pairs"]["mean"][0][2]
    assert end == pytest.approx(errors["features"]["mean"], rel=1e-4)
    assert causes["total"]["mean"] == pytest.approx(end, rel=1e-4)
    assert causes["names"] == ["shift", "relu"]
    assert sum(layers["shares"]["mean"]) == pytest.approx(1, abs=1e-4)
    assert "sweep" not in result


def test_tables_name_every_part(capsys, workdir):
    code, out, _ = run(capsys, "--workdir", workdir, "--num-keys", 1, "--num-images", 16)
    assert code == 0
    for word in ("features", "logits", "at least", "relu", "interaction", "rounding", "layer4_1"):
        assert word in out


@pytest.mark.slow
def test_a_main_without_weights_or_layers_of_its_own_is_examined(capsys, tmp_path):
    """All that is left for it is averaging, which is exact: there are shares of no error."""
    code, out, _ = run(
        capsys,
        *("--width", 4, "--cut", 9, "--num-keys", 1, "--num-images", 8, "--group-size", 8),
        *("--out", tmp_path / "out"),
    )
    assert code == 0
    assert "interaction" in out
    assert len(rows_of(tmp_path / "out" / "sweep.csv")) == 2 * 4 * 3


def test_tables_leave_out_what_no_number_says():
    none = {"mean": None, "standard_deviation": None}
    of_one = {"mean": [None], "standard_deviation": [None]}
    of_pairs = {"mean": [[None]], "standard_deviation": [[None]]}
    result = {
        **{"group_size": 8, "images": 8, "keys": 1, "nonnegative_floor": None},
        "relative_unmix_error": {"features": {**none, "standard_deviation_over_inputs": None}},
        "causes": {
            **{"names": ["relu"], "alone": of_one, "without": of_one, "shares": of_one},
            **{"interaction": none, "interaction_share": none, "rounding": none, "unknown": False},
        },
        "layers": {"names": ["pool"], "pairs": of_pairs, "made": of_one, "shares": of_one},
    }
    ends, causes, layers = commands_linearity._tables(result)
    for made, first in ((ends, "of the features"), (causes, "relu"), (layers, "pool")):
        assert str(next(iter(made.columns[0].cells))) == first
        assert {str(cell) for column in made.columns[1:] for cell in column.cells} == {""}
    assert str(list(causes.columns[0].cells)[-1]) == "rounding"
    assert causes.caption is None
    result["causes"]["unknown"] = True
    _, causes, _ = commands_linearity._tables(result)
    assert str(list(causes.columns[0].cells)[-1]) == "rounding and what is unknown"
    assert "facemix_jax.models.operations" in causes.caption


def test_wrong_usage_says_what_to_do(capsys, workdir):
    for arguments, words in (
        (("--workdir", workdir, "--weights", "w.npz"), ("Leave one of them out",)),
        (
            ("--workdir", workdir, "--num-images", 3),
            ("num_images is 3, fewer than one group of 8",),
        ),
        (("--family", "haa"), ("'haa' is unknown", "haar")),
    ):
        code, out, err = run(capsys, *arguments)
        assert code == 2
        assert out == ""
        for word in words:
            assert word in err


def test_a_network_trained_without_mixing_is_measured_with_groups_of_eight(capsys, monkeypatch):
    part = SimpleNamespace(
        defense=SimpleNamespace(group_size=1), source=SimpleNamespace(splits={"test": range(7)})
    )
    monkeypatch.setattr(commands_linearity.Linearity, "_part", lambda *_: part)
    code, _, err = run(capsys, "--num-images", 64)
    assert code == 2
    assert "the test split has 7 images, fewer than one group of 8. Use a --data-dir" in err


def test_a_family_that_does_not_fit_the_group_size_is_refused_before_loading(capsys, monkeypatch):
    monkeypatch.setattr(commands_linearity.Linearity, "_part", None)
    code, _, err = run(capsys, "--family", "hadamard", "--group-size", 6)
    assert (code, "needs a power of two" in err) == (2, True)


def test_matrices_are_those_of_the_run_unless_others_are_asked_for(capsys, monkeypatch, workdir):
    part = runs.load(workdir)
    own = DefenseConfig(family="conditioned", condition=100.0)
    part = part._replace(config=dataclasses.replace(part.config, defense=own))
    monkeypatch.setattr(commands_linearity.Linearity, "_part", lambda *_: part)
    monkeypatch.setattr(commands_linearity, "_tables", lambda *_: [])
    found = []
    monkeypatch.setattr(
        commands_linearity.study, "examine", lambda *_, family, **__: found.append(family) or {}
    )
    for asked in ((), ("--family", "conditioned"), ("--family", "haar")):
        assert run(capsys, "--num-images", 8, *asked)[0] == 0
    numbers = [np.linalg.cond(family(jax.random.key(0), 9, 8)[0]).max() for family in found]
    assert 10 < numbers[0] == numbers[1] < 100
    assert numbers[2] == pytest.approx(1, abs=1e-3)


def test_the_sweep_holds_the_chosen_group_size():
    assert commands_linearity._sweep_sizes(9, 3) == [3]
    assert commands_linearity._sweep_sizes(64, 8) == [2, 4, 8, 16, 32, 64]


def test_the_sweep_takes_the_family_and_the_number_of_keys(capsys, monkeypatch, workdir, tmp_path):
    """Only the sweep's float32: all else is measured, and compiled, in other tests."""
    monkeypatch.setattr(commands_linearity.study, "examine", lambda *_, **__: {})
    monkeypatch.setattr(commands_linearity.study, "SWEEP_DTYPES", ("float32",))
    monkeypatch.setattr(commands_linearity, "write_files", lambda *_: None)
    monkeypatch.setattr(commands_linearity, "_tables", lambda *_: [])
    found = []
    for family, num_keys in (("haar", 2), ("gaussian", 1)):
        code, out, _ = run(
            capsys,
            *("--workdir", workdir, "--num-images", 4, "--group-size", 4, "--json", "-"),
            *("--family", family, "--num-keys", num_keys, "--out", tmp_path),
        )
        assert code == 0
        rows = json.loads(out)["sweep"]
        assert [row["group_size"] for row in rows] == [2, 4] * 2
        assert all((row["standard_deviation"] is None) == (num_keys == 1) for row in rows)
        found.append(rows)
    for orthogonal, other in zip(*found, strict=True):
        assert orthogonal["mean"] != other["mean"]
        if other["main"] == "linear twin":  # whose bound knows the matrices' condition
            assert other["mean"] < other["bound"]
            assert other["bound"] > 1.1 * orthogonal["bound"]


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_folder_holds_tables_and_figures(capsys, workdir, tmp_path):
    code, out, _ = run(
        capsys,
        *("--workdir", workdir, "--num-keys", 2, "--num-images", 16),
        *("--out", tmp_path / "new" / "out", "--json", "-"),
    )
    assert code == 0
    folder = tmp_path / "new" / "out"
    result = json.loads(out)
    assert len(rows_of(folder / "end_to_end.csv")) == 4
    assert len(rows_of(folder / "layers.csv")) == 6
    assert [row["cause"] for row in rows_of(folder / "causes.csv")] == ["shift", "relu"]
    sweep = rows_of(folder / "sweep.csv")
    assert len(sweep) == len(result["sweep"]) == 2 * 4 * 4
    for row in sweep:
        if row["main"] == "linear twin":
            assert float(row["mean"]) < float(row["bound"])
    for name in ("layers", "causes", "sweep"):
        assert matplotlib.image.imread(folder / f"{name}.png").size > 10_000


@pytest.mark.slow
def test_fresh_network_and_imported_weights(capsys, tmp_path):
    common = ("--width", 4, "--cut", 8, "--num-keys", 1, "--num-images", 8, "--json", "-")
    code, out, _ = run(capsys, *common)
    assert code == 0
    fresh = json.loads(out)["relative_unmix_error"]["features"]["mean"]

    variables = resnet18(width=4, cut=8, image_size=(109, 89)).init(jax.random.key(7))
    state = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        names = tuple(str(key.key) for key in path)[2:]
        if names[0] != "head":
            value = np.asarray(leaf)
            if value.ndim == 4:
                value = value.transpose(3, 2, 0, 1)
            state[_torch_name(names, is_vgg=False)] = value
    np.savez(tmp_path / "w.npz", **state)
    code, out, _ = run(capsys, *common, "--weights", tmp_path / "w.npz")
    assert code == 0
    imported = json.loads(out)["relative_unmix_error"]["features"]["mean"]
    assert imported != fresh


def test_figures_of_made_up_numbers(tmp_path):
    values = {"mean": [[0.5, 1.0], [None, 0.2]], "standard_deviation": [[0, 0], [None, 0]]}
    parts = {"mean": [0.4, 0.6], "standard_deviation": [0.1, 0.1]}
    whole = {"mean": 1.0, "standard_deviation": 0.1}
    rows = [
        {"main": main, "dtype": dtype, "precision": "highest", "group_size": m, "mean": value}
        | ({"bound": 3 * value} if main == "linear twin" else {})
        for main in ("network", "linear twin")
        for dtype, value in (("float32", 1e-6), ("bfloat16", 1e-2))
        for m in (2, 8)
    ]
    rows.append(
        {"main": "network", "dtype": "float8", "precision": "highest", "group_size": 2}
        | {"mean": None, "unavailable": "not here"}
    )
    result = {
        **{"network": "n", "cut": 1, "group_size": 8, "trained_steps": 0, "sweep": rows},
        "relative_unmix_error": {"features": {"per_key": [1.0, 2.0]}},
        "layers": {"names": ["a", "b"], "pairs": values},
        "causes": {
            **{"names": ["shift", "relu"], "total": whole, "interaction": whole},
            **{"rounding": whole, "alone": parts, "without": parts, "shares": parts},
        },
    }
    commands_linearity.write_files(tmp_path, result)
    assert len(list(tmp_path.glob("*.png"))) == 3
    assert rows_of(tmp_path / "layers.csv")[1]["unmixed_after"] == "b"
    assert rows_of(tmp_path / "sweep.csv")[-1]["unavailable"] == "not here"
