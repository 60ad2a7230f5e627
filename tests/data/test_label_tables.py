"""Which column of a table holds splits or people, under whatever header."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from facemix_jax._validate import DataError
from facemix_jax.data import DataConfig, check, folder, load_source, prepare

COUNT = 12


def picture():
    out = io.BytesIO()
    Image.new("RGB", (16, 20), (200, 100, 50)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def place(tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(COUNT):
        (tmp_path / "images" / f"{i}.png").write_bytes(picture())
    return tmp_path


def write(place, header, values, separator=","):
    """A table with one more column."""
    rows = [f"{i}.png,{i % 2},{i // 2 % 2},{v}" for i, v in enumerate(values)]
    text = "\n".join([f"file,Smiling,Young,{header}", *rows])
    (place / "labels.csv").write_text(text.replace(",", separator))


@pytest.mark.parametrize("header", ["fold", "phase", "usage", "data_split", "Set name"])
@pytest.mark.parametrize("words", [("train", "test"), ("Training", "dev"), ("train", "")])
def test_splits_under_another_header_are_not_ignored(place, header, words):
    write(place, header, [words[i % 2] for i in range(COUNT)])
    if "" in words:  # control: one word is no division
        assert folder.roles(place).split is None
        return
    with pytest.raises(DataError, match=rf"column {header} looks like a split") as caught:
        folder.read(place)
    # What the message says works as it is written there.
    quote = "'" if " " not in header else '"'
    chosen, ignored = str(caught.value).split(quote)[1::2]
    assert folder.roles(place, columns=chosen).split == header
    assert folder.roles(place, columns=ignored).split is None


@pytest.mark.parametrize("values", [("0", "1", "2"), ("train", "test", "other"), ("0", "test")])
def test_what_is_no_split_for_sure_is_left_alone(place, values):
    write(place, "fold", [values[i % len(values)] for i in range(COUNT)])
    assert folder.roles(place).split is None


def test_another_column_of_words_is_left_alone_where_the_split_is_found(place):
    write(place, "split,source", ["train,test" if i % 2 else "test,train" for i in range(COUNT)])
    assert folder.roles(place).split == "split"


@pytest.mark.parametrize(
    "header",
    ["person_id", "subject_id", "identity_name", "Person ID", "celeb", "Celeb-ID", "PersonName"],
)
def test_people_are_found_under_usual_headers(place, header):
    write(place, header, [f"p{i // 4}" for i in range(COUNT)])
    assert folder.roles(place).identity == header
    np.testing.assert_array_equal(folder.read(place).identities, np.arange(COUNT) // 4)


@pytest.mark.parametrize("header", ["name", "user", "camera id"])
def test_headers_that_may_mean_anything_are_not_people(place, header):
    write(place, header, [f"p{i // 4}" for i in range(COUNT)])
    assert folder.roles(place).identity is None


def test_names_of_images_are_found_under_any_header(place):
    write(place, "Image-ID", [f"{i}.png" for i in range(COUNT)])
    assert folder.roles(place, columns="ignore=file").file == "Image-ID"


def test_that_no_column_has_people_is_said_once(place, tmp_path_factory, capsys):
    config = DataConfig(dataset="folder", data_dir=str(place), image_size=(20, 16))
    write(place, "note", range(COUNT))
    for _ in range(2):
        load_source(config)
    said = capsys.readouterr()
    sentence = "no column of people: every image counts as its own person"
    assert (said.out, said.err.count(sentence)) == ("", 1)
    assert sentence in check.check(config).remarks
    # Said before it is forgotten: a prepared set has numbers of people only.
    prepare.prepare(config, tmp_path_factory.mktemp("out"), store_size=None)
    assert capsys.readouterr().err.count(sentence) == 1
    write(place, "person", range(COUNT))
    assert sentence not in check.check(config).remarks


@pytest.mark.parametrize(("separator", "word"), [(";", "semicolons"), ("\t", "tabs")])
@pytest.mark.parametrize("quoted", [False, True])
def test_tables_with_another_separator_are_named(place, separator, word, quoted):
    write(place, "person", range(COUNT), separator)
    if quoted:
        text = (place / "labels.csv").read_text().replace(separator, f'"{separator}"')
        (place / "labels.csv").write_text(text)
    with pytest.raises(DataError, match=rf"labels.csv.*{word}.*comma-separated"):
        folder.read(place)


@pytest.mark.parametrize(
    ("written", "marked"),
    [("\u00e9".encode(), True), ("\u00e9".encode(), False), ("\u00e9".encode("cp437"), False)],
)
def test_names_in_zip_files_are_read_whoever_wrote_them(place, written, marked):
    """Python marks UTF-8 by a flag, Linux's zip does not, and DOS writes code page 437."""
    names = [f"Jos\u00e9 {i}.png" for i in range(COUNT)]
    rows = [f"{name},{i % 2},{i // 2 % 2}" for i, name in enumerate(names)]
    (place / "labels.csv").write_text("\n".join(["file,Smiling,Young", *rows]), "utf-8")
    path = place / "images.zip"
    stand_in = "~" * len(written)  # for which Python sets no flag
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name if marked else name.replace("\u00e9", stand_in), picture())
    path.write_bytes(path.read_bytes().replace(b"Jos" + stand_in.encode(), b"Jos" + written))
    with zipfile.ZipFile(path) as archive:
        assert {bool(info.flag_bits & 0x800) for info in archive.infolist()} == {marked}
    files = folder.read(place)
    assert files.file_names == tuple(names)
    assert files.images.read(names[3]) == picture()
