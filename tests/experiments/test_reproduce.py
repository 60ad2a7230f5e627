"""The paper in one command: what is called, and all of it at the smoke scale."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import reproduce

from facemix_jax import results
from facemix_jax._validate import UsageError

ROOT = Path(__file__).parents[2]


def config(tmp_path, **options):
    return reproduce.Config(out=tmp_path, **options)


def test_real_scales_name_their_data(tmp_path):
    found = reproduce.commands(config(tmp_path, scale="gpu", celeba="C", lfwa="L", people="P"))
    assert {"table1", "accuracy_cpu", *reproduce.STEPS} == set(found)
    assert "--data-dir=L" in found["table3"]
    assert {"--data-dir=C", "--identity-dir=P", "--scale=gpu"} <= set(found["table2"])
    # These have no larger scale.
    assert "--scale=cpu" in found["linearity"]
    assert list(found).index("accuracy_cpu") < list(found).index("linearity")
    both = {name: words[1:] for name, words in found.items() if name.startswith("training_length")}
    assert both["training_length_lfwa"][0] == both["training_length"][0]
    assert {"--data-dir=L", "--dataset=lfwa"} <= set(both["training_length_lfwa"])


def test_smoke_needs_no_files(tmp_path):
    words = [
        w for words in reproduce.commands(config(tmp_path, scale="smoke")).values() for w in words
    ]
    assert not any("data-dir" in word or "identity-dir" in word for word in words)
    assert not any("dataset" in word for word in words), "drawn faces are of none"
    assert all(str(tmp_path) in w for w in words if w.startswith(("--output", "--json", "--work")))


def test_missing_data_is_said_before_any_work(tmp_path):
    with pytest.raises(UsageError, match="--celeba and --lfwa missing"):
        reproduce.commands(config(tmp_path))
    assert reproduce.commands(config(tmp_path, only=("table1",))).keys() == {"table1"}
    with pytest.raises(UsageError, match="'table4' is unknown"):
        reproduce.commands(config(tmp_path, scale="smoke", only=("table4",)))


def test_every_argument_is_one_of_the_script(tmp_path):
    import dataclasses
    import importlib

    for scale in ("smoke", "gpu"):
        options = {} if scale == "smoke" else {"celeba": "C", "lfwa": "L", "people": "P"}
        called = reproduce.commands(config(tmp_path, scale=scale, cache_dir="K", **options))
        for name, words in called.items():
            if name == "table1":
                continue
            script = Path(words[1]).stem
            fields = {f.name for f in dataclasses.fields(importlib.import_module(script).Config)}
            for word in words[2:]:
                assert word[2:].partition("=")[0].replace("-", "_") in fields, (name, word)


def test_the_report_is_in_the_order_of_the_scripts(tmp_path):
    names = ["phase_smoke", "table2_smoke", "table1", "accuracy_cpu", "linearity_cpu"]
    (tmp_path / "results").mkdir()
    for name in names:
        (tmp_path / "results" / f"{name}.json").touch()
    found = [path.stem for path in reproduce.results_of(tmp_path)]
    assert found == ["table1", "accuracy_cpu", "table2_smoke", "linearity_cpu", "phase_smoke"]


def test_a_finished_script_is_started_again_only_for_a_reason(tmp_path):
    words = reproduce.commands(config(tmp_path, scale="smoke"))["table2"]
    (tmp_path / "results").mkdir()
    reproduce.output_of(words).touch()
    assert not reproduce.Finished(tmp_path).has("table2", words, "code")
    reproduce.Finished(tmp_path).add("table2", words, "code")
    again = reproduce.Finished(tmp_path)
    assert again.has("table2", words, "code")
    assert not again.has("table2", words, "other code")
    assert not again.has("table2", [*words, "--rows=some"], "code")
    reproduce.output_of(words).unlink()
    assert not again.has("table2", words, "code")


@pytest.mark.parametrize("content", ['{"table2": [', "[1]", "null", "\xff"])
def test_where_it_is_not_known_what_is_finished_nothing_is(tmp_path, content):
    (tmp_path / "finished.json").write_bytes(content.encode("latin-1"))
    words = reproduce.commands(config(tmp_path, scale="smoke"))["table2"]
    found = reproduce.Finished(tmp_path)
    assert not found.has("table2", words, "code")
    found.add("table2", words, "code")
    assert set(json.loads((tmp_path / "finished.json").read_text())) == {"table2"}


@pytest.mark.parametrize("place", ["file", "file/below", "results"])
def test_a_file_where_the_folder_should_be_is_said_in_a_paragraph(
    tmp_path, place, monkeypatch, capsys
):
    (tmp_path / "file").touch()
    if place == "results":
        (tmp_path / place).touch()
    out = tmp_path if place == "results" else tmp_path / place
    monkeypatch.setattr("sys.argv", ["reproduce.py", "--scale", "smoke", "--out", str(out)])
    with pytest.raises(SystemExit) as stopped:
        reproduce.start()
    said = capsys.readouterr().err
    assert stopped.value.code == 2
    assert "Choose another --out" in said
    assert "Traceback" not in said


def test_failures_are_counted_in_one_exit_code(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reproduce, "main", lambda config: 2)
    monkeypatch.setattr("sys.argv", ["reproduce.py", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        reproduce.start()
    assert stopped.value.code == 1
    assert "2 of the scripts" in capsys.readouterr().err


def test_scripts_wait_for_those_that_they_go_on_from(tmp_path, monkeypatch, capfd):
    note = (
        "import pathlib, sys, time; file = pathlib.Path(sys.argv[1]).open('a'); "
        "file.write(f'{sys.argv[2]} begins '); file.flush(); time.sleep(.5); "
        "file.write(f'{sys.argv[2]} ends '); sys.exit(int(sys.argv[3]))"
    )
    order = tmp_path / "order"

    def words(name, code=0):
        return [sys.executable, "-c", note, str(order), name, str(int(code))]

    planned = {
        "table2": words("table2", 1),
        "figure4": words("figure4"),
        "phase": words("phase"),
    }
    monkeypatch.setattr(reproduce, "commands", lambda config: planned)
    # The report finds nothing, which counts, too.
    assert reproduce.main(config(tmp_path, scale="smoke")) == 2
    found = order.read_text()
    assert found.index("phase begins") < found.index("table2 ends") < found.index("figure4 begins")
    assert "table2: FAILED" in capfd.readouterr().out
    assert set(json.loads((tmp_path / "finished.json").read_text())) == {"figure4", "phase"}
    order.unlink()
    (tmp_path / "finished.json").unlink()
    reproduce.main(config(tmp_path, scale="cpu"))
    ends = ["table2 begins", "table2 ends", "figure4 begins", "figure4 ends", "phase begins"]
    assert order.read_text().startswith(" ".join(ends)), "one after another at other scales"


def test_compiled_programs_are_shared_and_the_users_settings_left(tmp_path, monkeypatch):
    name = "JAX_COMPILATION_CACHE_DIR"
    monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XLA_FLAGS", "--mine")
    smoke = reproduce.environment(config(tmp_path, scale="smoke"))
    assert smoke[name] == str(tmp_path / "compiled")
    assert smoke["XLA_FLAGS"].startswith("--mine --xla_backend")
    # What is measured at other scales is compiled as always.
    assert reproduce.environment(config(tmp_path))["XLA_FLAGS"] == "--mine"
    monkeypatch.setenv(name, "elsewhere")
    assert reproduce.environment(config(tmp_path))[name] == "elsewhere"


@pytest.mark.slow
def test_everything_at_the_smoke_scale(tmp_path):
    command = [sys.executable, "experiments/reproduce.py", "--scale", "smoke", "--out", tmp_path]
    # The tests' own cache would take the place of the one in the folder.
    env = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}

    def cells():
        done = subprocess.run(
            command, cwd=ROOT, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        files = {
            name: tmp_path / "results" / f"{name}_smoke.json" for name in reproduce.steps("smoke")
        }
        found = {name: results.load(path) for name, path in files.items()}
        assert all(each.tables or each.charts for each in found.values())
        return {name: each.cells for name, each in found.items()}

    first = cells()
    assert "Mixing is not a cipher" in (tmp_path / "report" / "index.html").read_text()
    # Else no script is started again.
    (tmp_path / "finished.json").unlink()
    assert cells() == first, "nothing is measured again"
