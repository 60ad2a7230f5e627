"""``facemix export`` as a user meets it: results, exit codes, errors, and what is left behind."""

import json
import re

import cli_support
import pytest
from cloud_support import save_checkpoint

from facemix_jax import export

pytest.importorskip("onnxruntime", reason="the extra export is not installed")
pytest.importorskip("flatbuffers")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "run"
    save_checkpoint(folder)
    return folder


def run(capsys, *arguments):
    return cli_support.run(capsys, "export", *arguments)


def test_writes_and_reports(capsys, workdir, tmp_path):
    common = ["--workdir", workdir, "--out", tmp_path / "phone"]
    code, out, err = run(capsys, *common, "--json", "-")
    assert code == 0
    found = json.loads(out)
    written = json.loads((tmp_path / "phone" / export.MANIFEST).read_text())
    assert {k: v for k, v in found.items() if k != "provenance"} == written
    assert "sent as float32 in training. Draw a fresh matrix" in " ".join(err.split())
    code, out, _ = run(capsys, *common, "--format", "onnx")
    assert code == 0
    assert "protect.onnx" in out
    assert "stablehlo" not in out
    assert not (tmp_path / "phone" / "protect.stablehlo").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"--workdir": "missing"}, "no work directory"),
        ({"--workdir": "empty"}, "no checkpoint.*facemix train"),
        ({"--out": "file"}, "is a file.*another --out"),
        ({"--format": "tflite"}, "'tflite' is unknown.*stablehlo"),
        ({"--workdir": None}, "--workdir"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_wrong_usage_exits_2_and_writes_nothing(
    capsys, workdir, tmp_path, monkeypatch, change, words
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    config = (workdir / "config.json").read_text()
    (tmp_path / "empty" / "config.json").write_text(config)
    options = {"--workdir": workdir, "--out": "phone", **change}
    given = [word for name, v in options.items() if v is not None for word in (name, v)]
    code, out, err = run(capsys, *given)
    assert (code, out) == (2, "")
    assert re.search(words, err), err
    assert "Traceback" not in err
    assert not (tmp_path / "phone").exists()
    assert (tmp_path / "file").read_text() == "mine"


def test_the_manifest_replaces_no_exported_file(capsys, workdir, tmp_path):
    phone = tmp_path / "phone"
    assert run(capsys, "--workdir", workdir, "--out", phone)[0] == 0
    before = {path.name: path.read_bytes() for path in phone.iterdir()}
    assert before.keys() == set(export.FILES)
    for name in export.FILES:
        code, out, err = run(
            capsys, "--workdir", workdir, "--out", phone, "--format", "onnx", "--json", phone / name
        )
        assert (code, out) == (2, "")
        assert f"{name} of --out and --json name the same file" in " ".join(err.split())
    assert {path.name: path.read_bytes() for path in phone.iterdir()} == before


@pytest.mark.parametrize("package", ["onnx", "flatbuffers"])
def test_a_missing_package_is_named(capsys, workdir, tmp_path, monkeypatch, package):
    installed = export._installed
    monkeypatch.setattr(export, "_installed", lambda n: None if n == package else installed(n))
    code, _, err = run(capsys, "--workdir", workdir, "--out", tmp_path / "phone")
    assert code == 2
    assert f"{package} is not installed" in err
    assert "facemix-jax[export]" in err
    assert not (tmp_path / "phone").exists()


def test_help_says_what_mixing_is_not(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    assert "not a cipher" in " ".join(out.split())
    assert "Example: facemix export" in " ".join(out.split())
