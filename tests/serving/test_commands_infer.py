"""``facemix infer`` as a user meets it."""

import csv
import json
import os
import re
import shutil
from pathlib import Path

import cli_support
import grpc
import numpy as np
import pytest
from cloud_support import save_checkpoint
from edge_support import FakeCloud, Loop, honest
from PIL import Image
from tiny_source import TinySource

from facemix_jax import keys


def run(capsys, *arguments):
    return cli_support.run(capsys, "infer", *arguments)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a run, a key and three pictures of other sizes."""
    folder = tmp_path_factory.mktemp("infer")
    save_checkpoint(folder / "run")
    keys.create(folder / "key")
    for index, pixels in enumerate(TinySource().images(np.arange(3))):
        Image.fromarray(pixels).resize((50 + index, 60)).save(folder / f"face{index}.png")
    return folder


@pytest.fixture(scope="module")
def cloud(tmp_path_factory):
    with Loop() as loop:
        cloud = FakeCloud(loop, honest(*save_checkpoint(tmp_path_factory.mktemp("same") / "run")))
        yield cloud
        cloud.stop()


@pytest.fixture
def common(place, cloud):
    pictures = [place / f"face{i}.png" for i in range(3)]
    return ["--workdir", place / "run", "--key", place / "key", "--cloud", cloud.address, *pictures]


def test_json_csv_and_sheet_say_the_same(capsys, common, tmp_path):
    code, out, err = run(
        capsys,
        *common,
        *("--json", "-", "--csv", tmp_path / "a.csv", "--sheet", tmp_path / "a.png", "--timing"),
    )
    assert code == 0
    result = json.loads(out)
    assert [Path(i["image"]).name for i in result["images"]] == [f"face{i}.png" for i in range(3)]
    assert result["fillers"] == 1
    assert result["wire"] == "float32"
    assert "1 drawn pictures completed the last group" in err
    parts = {"pre", "mix", "serialise", "network", "queue", "main", "unmix", "post"}
    assert set(result["seconds"]) == parts
    rows = list(csv.reader((tmp_path / "a.csv").read_text().splitlines()))
    assert rows[0] == ["image", "attribute 1", "attribute 2", "attribute 3"]
    for row, image in zip(rows[1:], result["images"], strict=True):
        assert row[0] == image["image"]
        np.testing.assert_allclose(
            [float(p) for p in row[1:]], list(image["attributes"].values()), atol=1e-6
        )
        assert all(0 <= p <= 1 for p in image["attributes"].values())
    with Image.open(tmp_path / "a.png") as drawn:
        assert drawn.width > 400


def test_names_that_are_no_utf8_are_written_as_they_are(capsys, place, cloud, tmp_path):
    picture = tmp_path / os.fsdecode(b"fa\xe7ade.png")
    shutil.copy(place / "face0.png", picture)
    options = ["--workdir", place / "run", "--key", place / "key", "--cloud", cloud.address]
    files = ["--csv", tmp_path / "a.csv", "--sheet", tmp_path / "a.png"]
    code, out, err = run(capsys, *options, picture, *files, "--json", tmp_path / "a.json")
    assert code == 0, err
    assert "fa\N{REPLACEMENT CHARACTER}ade.png" in out
    assert b"fa\xe7ade.png" in (tmp_path / "a.csv").read_bytes()
    (image,) = json.loads((tmp_path / "a.json").read_text())["images"]
    assert image["image"] == str(picture)


def test_table_shows_pictures_and_where_time_went(capsys, common):
    code, out, _ = run(capsys, *common, "--wire", "int8", "--timing")
    assert code == 0
    for word in ("face0.png", "face2.png", "network", "unmix", "queue", "ms"):
        assert word in out
    assert "network" not in run(capsys, *common)[1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"--cloud": None}, "No cloud is given.*facemix serve"),
        ({"--cloud": "localhost"}, "HOST:PORT"),
        ({"--wire": "float16"}, "'float16' is unknown.*bfloat16"),
        ({"--spot-checks": "-1"}, "spot_checks is -1"),
        ({"--sheet": "missing/a.png"}, "cannot be written.*--sheet"),
        ({"--sheet": "a.jpg"}, "a.jpg does not end in .png.*--sheet"),
        ({"--csv": "same", "--json": "./same"}, "--csv and --json name the same file"),
        ({"--token": "missing"}, "missing cannot be read"),
        ({"--workdir": "missing"}, "no work directory"),
        ({"images": []}, "No picture is given"),
        ({"images": ["nobody.jpg"]}, "nobody.jpg is no file"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_wrong_usage_exits_2_before_anything_is_sent(
    capsys, place, cloud, tmp_path, monkeypatch, change, words
):
    monkeypatch.chdir(tmp_path)
    asked = len(cloud.requests)
    options = {
        "--workdir": place / "run",
        "--key": place / "key",
        "--cloud": cloud.address,
        "images": [place / "face0.png"],
        **change,
    }
    images = options.pop("images")
    given = [word for option, v in options.items() if v is not None for word in (option, v)]
    code, out, err = run(capsys, *given, *images)
    assert (code, out) == (2, "")
    assert re.search(words, err), err
    assert "Traceback" not in err
    assert len(cloud.requests) == asked
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["--csv", "--sheet", "--json"])
@pytest.mark.parametrize("read", ["face0.png", "key", "token", "ca.pem", "phone.pem", "phone.key"])
def test_no_result_replaces_what_is_read(capsys, place, tmp_path, option, read):
    for name in ("face0.png", "key"):
        shutil.copy(place / name, tmp_path / name)
    for name in ("token", "ca.pem", "phone.pem", "phone.key"):
        (tmp_path / name).write_text(name)
    before = (tmp_path / read).read_bytes()
    (tmp_path / "link.png").symlink_to(tmp_path / read)
    given = ["--workdir", place / "run", "--key", tmp_path / "key", "--cloud", "localhost:1"]
    given += ["--token", tmp_path / "token", "--ca", tmp_path / "ca.pem"]
    given += ["--certificate", tmp_path / "phone.pem", "--private-key", tmp_path / "phone.key"]
    code, out, err = run(capsys, *given, option, tmp_path / "link.png", tmp_path / "face0.png")
    assert (code, out) == (2, "")
    assert re.search(f"{option} .*link.png is a file that this .*reads.*another {option}", err)
    assert (tmp_path / read).read_bytes() == before


def test_the_key_may_lie_in_the_systems_keyring(capsys, common, monkeypatch):
    keyring = pytest.importorskip("keyring")
    asked = []
    monkeypatch.setattr(
        keyring, "get_password", lambda service, name: asked.append((service, name)) or "0f" * 32
    )
    common[common.index("--key") + 1] = "keyring:work"
    assert run(capsys, *common)[0] == 0
    assert asked == [("facemix", "work")]
    monkeypatch.setattr(keyring, "get_password", lambda service, name: None)
    code, _, err = run(capsys, *common)
    assert code == 1
    assert "facemix key create --path keyring:work" in err


def test_missing_key_and_damaged_picture_exit_1_with_a_remedy(capsys, common, tmp_path):
    key = common.index("--key") + 1
    code, _, err = run(capsys, *common[:key], tmp_path / "none", *common[key + 1 :])
    assert code == 1
    assert "facemix key create" in err
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8 no picture")
    code, _, err = run(capsys, *common, tmp_path / "bad.jpg")
    assert code == 1
    assert "bad.jpg" in err
    assert "cannot be decoded" in err


def test_a_cloud_that_refuses_exits_1_and_says_what_to_do(capsys, common, cloud, monkeypatch):
    monkeypatch.setattr(cloud, "answer", lambda request: grpc.StatusCode.UNAUTHENTICATED)
    code, out, err = run(capsys, *common)
    assert (code, out) == (1, "")
    assert "UNAUTHENTICATED" in err
    assert "valid token" in err


def test_help_has_an_example(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    assert "Example: facemix infer" in " ".join(out.split())
