"""``facemix data`` as a user meets it: results, exit codes, errors, and a clean standard output."""

import json

import cli_support
import numpy as np
import pytest
from PIL import Image

from facemix_jax.data import DataConfig, celeba, load_source

COUNT = 24
SMALL = ("--image-size", "20", "16")


def run(capsys, *arguments):
    return cli_support.run(capsys, "data", *arguments)


@pytest.fixture
def faces(tmp_path):
    """The official layout with 24 plain pictures of 8 people."""
    folder = tmp_path / "celeba"
    (folder / celeba.IMAGES).mkdir(parents=True)
    names = [f"{i:06d}.jpg" for i in range(1, COUNT + 1)]
    for i, name in enumerate(names):
        Image.new("RGB", (44, 54), (10 * i, 100, 255 - 10 * i)).save(folder / celeba.IMAGES / name)
    rows = "".join(f"{n} {1 - 2 * (i % 2)} {1 - 2 * (i % 3 > 0)}\n" for i, n in enumerate(names))
    (folder / celeba.ATTRIBUTES).write_text(f"{COUNT}\nMale Young\n{rows}")
    for file, per in ((celeba.IDENTITIES, 3), (celeba.PARTITION, 9)):
        text = "".join(f"{n} {i // per}\n" for i, n in enumerate(names))
        (folder / file).write_text(text)
    return folder


@pytest.fixture
def table(tmp_path):
    """The same kind of pictures with a CSV file."""
    folder = tmp_path / "mine"
    (folder / "images").mkdir(parents=True)
    lines = ["file,who,Smiling,Hat,camera"]
    for i in range(COUNT):
        Image.new("RGB", (30, 40), (10 * i, 50, 90)).save(folder / "images" / f"{i}.png")
        lines.append(f"{i}.png,p{i // 3},{i % 2},{i // 2 % 2},model {i % 5}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


def of(folder, dataset="celeba"):
    return ("--dataset", dataset, "--data-dir", folder)


def test_show_counts_what_is_there(capsys, faces):
    code, out, _ = run(capsys, "show", *of(faces), "--json", "-")
    assert code == 0
    result = json.loads(out)
    assert {s: v["images"] for s, v in result["splits"].items()} == {
        "train": 9,
        "valid": 9,
        "test": 6,
    }
    assert result["splits"]["train"]["rates"] == {"Male": 5 / 9, "Young": 3 / 9}
    assert result["people"] == 8
    assert result["images_per_person"] == {"min": 3, "median": 3.0, "max": 3}
    assert result["people_with_at_least"] == {"2": 8, "5": 0, "10": 0, "20": 0}
    assert result["strongest_correlations"][0][:2] == ["Male", "Young"]
    assert result["sheet"] is None


def test_show_prints_the_same_as_tables(capsys, faces):
    code, out, _ = run(capsys, "show", *of(faces))
    assert code == 0
    for text in (
        "celeba",
        "train",
        "55.6%",
        "33.3%",
        "people with 2 images or more",
        "Male, Young",
    ):
        assert text in out


@pytest.mark.parametrize("people", [(), ("--people",)])
def test_show_writes_a_sheet_and_decodes_no_other_image(capsys, faces, tmp_path, people):
    before = sorted(p.name for p in faces.iterdir())
    (faces / celeba.IMAGES / "000024.jpg").write_bytes(b"damaged, but in the test split")
    path = tmp_path / "sheet.png"
    code, _, err = run(
        capsys, "show", *of(faces), *SMALL, "--out", path, "--rows", 2, "--per-row", 3, *people
    )
    assert code == 0
    assert "sheet.png" in err
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.width > 3 * 100
    assert sorted(p.name for p in faces.iterdir()) == before
    code, _, err = run(capsys, "show", *of(faces), "--out", path, "--split", "test")
    assert code == 1  # control: this one is asked for
    assert "000024.jpg" in err


@pytest.mark.parametrize(
    ("option", "lost"),
    [("--out", "images/1.png"), ("--json", "labels.csv"), ("--out", "labels.csv")],
)
def test_what_is_shown_replaces_no_file_of_the_data_set(capsys, table, tmp_path, option, lost):
    before = (table / lost).read_bytes()
    (tmp_path / "link.png").symlink_to(table / lost)
    code, out, err = run(capsys, "show", *of(table, "folder"), option, tmp_path / "link.png")
    assert (code, out) == (2, "")
    assert "link.png is there already, in the data set's folder" in " ".join(err.split())
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "other").symlink_to(tmp_path / "elsewhere")
    for name in ("images", "labels.csv"):  # a folder of links
        (tmp_path / "elsewhere" / name).symlink_to(table / name)
    given = of(tmp_path / "other", "folder")
    assert run(capsys, "show", *given, option, tmp_path / "elsewhere" / lost)[0] == 2
    assert (table / lost).read_bytes() == before
    for _ in range(2):  # elsewhere, a second call replaces the result of the first
        assert run(capsys, "show", *given, "--json", tmp_path / "numbers.json")[0] == 0
    same = ("--out", tmp_path / "a.png", "--json", tmp_path / "a.png")
    assert run(capsys, "show", *of(table, "folder"), *same)[0] == 2


def test_show_draws_synthetic_faces(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("facemix_jax.data.synthetic.TRAIN_EXAMPLES", 64)
    path = tmp_path / "sheet.png"
    size = ("--rows", 2, "--per-row", 4)
    code, out, _ = run(capsys, "show", "--image-size", 40, 36, "--out", path, *size)
    assert code == 0
    assert "synthetic" in out
    assert "Wearing_Lipstick" in out
    assert path.stat().st_size > 10_000


def test_show_tells_what_columns_are_taken_for(capsys, table):
    code, out, _ = run(capsys, "show", *of(table, "folder"), "--columns", "identity=who")
    assert code == 0
    for text in ("name of the image", "person", "attribute", "ignored", "camera", "80/10/10"):
        assert text in out
    code, out, _ = run(
        capsys, "show", *of(table, "folder"), "--columns", "identity=who", "--json", "-"
    )
    columns = json.loads(out)["columns"]
    assert columns["identity"] == "who"
    assert columns["attributes"] == ["Smiling", "Hat"]
    assert json.loads(out)["people"] == 8
    code, out, _ = run(capsys, "show", *of(table, "lfwa"), "--json", "-")
    assert json.loads(out)["columns"]["attributes"] == ["Smiling", "Hat"]


def test_an_untouched_set_is_whole(capsys, faces):
    code, out, err = run(capsys, "check", *of(faces), *SMALL)
    assert code == 0
    assert "All 24 images can be decoded" in out
    assert "BAD" not in out
    assert err == ""


def test_all_damage_is_listed_and_exits_1(capsys, faces):
    for name in ("000003.jpg", "000017.jpg"):
        path = faces / celeba.IMAGES / name
        path.write_bytes(path.read_bytes()[:300])
    code, out, err = run(capsys, "check", *of(faces), *SMALL)
    assert code == 1
    bad = [line for line in out.splitlines() if line.startswith("BAD")]
    assert len(bad) == 2
    assert "000003.jpg" in bad[0]
    assert "000017.jpg" in bad[1]
    assert "not whole" in err
    assert "problems found: 2" in err
    assert "Traceback" not in err
    code, out, _ = run(capsys, "check", *of(faces), *SMALL, "--json", "-")
    result = json.loads(out)
    assert code == 1
    assert result["whole"] is False
    assert [p["name"] for p in result["problems"]] == ["000003.jpg", "000017.jpg"]


def test_a_flipped_bit_of_the_cache_exits_1(capsys, faces):
    load_source(DataConfig(dataset="celeba", data_dir=str(faces), image_size=(20, 16)))
    code, out, _ = run(capsys, "check", *of(faces))
    assert code == 0
    assert "as they were written" in out
    (path,) = faces.glob(".facemix_cache/*.npy")
    pixels = np.lib.format.open_memmap(path, mode="r+")
    pixels[7, 3, 3, 0] ^= 1
    pixels.flush()
    code, out, _ = run(capsys, "check", *of(faces))
    assert code == 1
    assert f"BAD (cache) {path.name}" in out


def test_labels_that_disagree_exit_1(capsys, faces):
    (faces / celeba.IMAGES / "000003.jpg").unlink()
    code, out, err = run(capsys, "check", *of(faces))
    assert code == 1
    assert "000003.jpg" in out
    assert "Traceback" not in err


def test_prepared_data_show_and_check_like_their_files(capsys, faces, tmp_path):
    pytest.importorskip("tensorflow_datasets")
    output = tmp_path / "prepared"
    code, _, err = run(capsys, "prepare", *of(faces), "--output", output)
    assert code == 0
    assert "Written:" in err
    code, out, _ = run(capsys, "check", *of(output, "prepared"))
    assert code == 0
    assert "checksum" in out
    shown = [
        json.loads(run(capsys, "show", *arguments, "--json", "-")[1])
        for arguments in (of(faces), of(output, "prepared"))
    ]
    assert shown[0]["splits"] == shown[1]["splits"]
    assert shown[0]["images_per_person"] == shown[1]["images_per_person"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ("prepare", "show", "check")),
        (("chek",), ("check",)),
        (("check",), ("--dataset", "celeba")),
        (("check", "--data-dir", "d"), ("--dataset", "celeba")),
        (("check", "--dataset", "synthetic"), ("no files to check", "'celeba'")),
        (("check", "--dataset", "celeba"), ("needs data_dir",)),
        (("check", "--dataset", "celebA", "--data-dir", "d"), ("Did you mean 'celeba'",)),
        (("show", "--rows", "0"), ("rows is 0", "greater than 0")),
        (("show", "--image-size", "4", "4"), ("image_height is 4", "16")),
        (("show", "--labels", "l.csv"), ("labels", "'folder'")),
        (("show", "--split", "tset"), ("'tset' is unknown", "'test'")),
        (("show", "--people", "--per-row", "5"), ("people is True", "--out")),
        (("show", "--image-size", "20", "16"), ("--image-size", "--out")),
        (("show", "--out", "."), ("a folder", "--out")),
        (("show", "--out", "a.jpg"), ("a.jpg does not end in .png", "--out")),
        (("prepare",), ("output",)),
        (("prepare", "--dataset", "celeba", "--output", "o"), ("needs data_dir",)),
        (("prepare", "--output", "o"), ("--dataset", "celeba")),
        (("prepare", "--dataset", "synthetic", "--output", "o"), ("synthetic", "celeba")),
    ],
    ids=lambda value: "-".join(value) or "none",
)
def test_wrong_usage_exits_2_and_says_what_to_do(capsys, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("facemix_jax.data.synthetic.TRAIN_EXAMPLES", 64)
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert out == ""
    for word in words:
        assert word in err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_an_unknown_split_exits_2_and_writes_nothing(capsys, faces, tmp_path):
    path = tmp_path / "sheet.png"
    code, _, err = run(capsys, "show", *of(faces), "--out", path, "--split", "tset")
    assert code == 2
    assert "'tset' is unknown" in err
    assert not path.exists()


def test_missing_places_are_named(capsys, faces, tmp_path):
    code, _, err = run(capsys, "show", *of(tmp_path / "nowhere"))
    assert code == 1
    assert "does not exist" in err
    code, _, err = run(capsys, "show", *of(faces), "--out", tmp_path / "nowhere" / "sheet.png")
    assert code == 2
    assert "cannot be written" in err


@pytest.mark.parametrize("command", ["prepare", "show", "check"])
def test_every_command_has_help_with_an_example(capsys, command):
    code, out, _ = run(capsys, command, "--help")
    assert code == 0
    assert f"Example: facemix data {command}" in " ".join(out.split())
