"""The official LFWA layout: what is read, and what every kind of damage says."""

import io
import zipfile

import numpy as np
import pytest
import scipy.io
from PIL import Image

from facemix_jax._validate import DataError
from facemix_jax.data import DataConfig, lfwa, load_source, open_files
from facemix_jax.data.matlab import read_matlab

PEOPLE = ["Ann_B", "Ann_B", "Cid", "Dan_E", "Dan_E", "Flo"]
NAMES = [f"{p}/{p}_{i:04d}.jpg" for i, p in enumerate(PEOPLE, 1)]
ATTRIBUTES = ["5 o Clock Shadow", "Male", "Wearing Hat"]
LABEL = np.array([[0, 1, 0], [1, 1, 0], [0, 0, 1], [1, 0, 1], [0, 0, 0], [1, 1, 1]], np.uint8)


def cells(texts):
    out = np.empty((len(texts), 1), object)
    out[:, 0] = texts
    return out


def content(**changes):
    names = [name.replace("/", "\\") for name in NAMES]
    return {"AttrName": cells(ATTRIBUTES), "name": cells(names), "label": LABEL, **changes}


def indices(train=(1, 2, 4, 5), test=(6, 3), **changes):
    columns = {"indices_img_train": train, "indices_img_test": test, **changes}
    return {name: np.array(values, np.float64)[:, None] for name, values in columns.items()}


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "lfwa"
    path.mkdir()
    scipy.io.savemat(path / lfwa.ATTRIBUTES, content(), do_compression=True)
    scipy.io.savemat(path / lfwa.INDICES, indices(indices_identity_train=(1, 3)))
    with zipfile.ZipFile(path / "lfw.zip", "w") as archive:
        for i, name in enumerate([*NAMES, "Gus/Gus_0001.jpg"]):
            out = io.BytesIO()
            Image.new("RGB", (25, 25), (30 * i, 100, 50)).save(out, "JPEG")
            archive.writestr(f"lfw/{name}", out.getvalue())
    return path


def load(path):
    return load_source(DataConfig(dataset="lfwa", data_dir=str(path), image_size=(16, 16)))


def check(source):
    assert source.name == "lfwa"
    assert source.attribute_names == ("5_o_Clock_Shadow", "Male", "Wearing_Hat")
    np.testing.assert_array_equal(source.attributes, LABEL)
    assert source.attributes.dtype == np.int8
    np.testing.assert_array_equal(source.identities, [0, 0, 1, 2, 2, 3])
    assert [p.split("/")[-1] for p in source.file_names] == [n.split("/")[-1] for n in NAMES]


def test_labels_and_pixels_are_those_of_the_files(folder):
    source = load(folder)
    check(source)
    np.testing.assert_array_equal(source.splits["train"], [0, 1, 3, 4])
    np.testing.assert_array_equal(source.splits["valid"], [])
    np.testing.assert_array_equal(source.splits["test"], [2, 5])
    assert all(rows.dtype == np.int64 for rows in source.splits.values())
    red = source.images(np.arange(6))[:, 8, 8, 0].astype(int)
    assert np.abs(red - 30 * np.arange(6)).max() <= 4


def test_unpacked_folder_equals_zip(folder):
    from_zip = load(folder).images(np.arange(6))
    with zipfile.ZipFile(folder / "lfw.zip") as archive:
        archive.extractall(folder)
    (folder / "lfw.zip").unlink()
    np.testing.assert_array_equal(load(folder).images(np.arange(6)), from_zip)


def test_without_the_official_split_people_are_dealt_out(folder):
    (folder / lfwa.INDICES).unlink()
    files = lfwa.read(folder)
    rows = np.concatenate(list(files.splits.values()))
    np.testing.assert_array_equal(np.sort(rows), np.arange(6))
    people = [set(files.identities[rows].tolist()) for rows in files.splits.values()]
    assert sum(map(len, people)) == len(set.union(*people))


@pytest.mark.parametrize("dtype", [bool, np.float64, np.int8])
def test_labels_of_any_kind_of_number(folder, dtype):
    scipy.io.savemat(folder / lfwa.ATTRIBUTES, content(label=LABEL.astype(dtype)))
    check(load(folder))


def write_hdf5(path, variables):
    """A MATLAB 7.3 file: HDF5 after 512 bytes, dimensions reversed, cells as references."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, value in variables.items():
            if value.dtype != object:
                file[name] = np.asarray(value, np.float64).T
                continue
            out = np.empty((1, len(value)), h5py.ref_dtype)
            for i, text in enumerate(value.ravel()):
                codes = np.frombuffer(text.encode("utf-16-le"), np.uint16)[:, None]
                out[0, i] = file.create_dataset(f"#refs#/{name}{i}", data=codes).ref
            file.create_dataset(name, data=out, dtype=h5py.ref_dtype)
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: PCWIN64".ljust(512))


def test_matlab_7_3(folder):
    plain = lfwa.read(folder)
    write_hdf5(folder / lfwa.ATTRIBUTES, content())
    write_hdf5(folder / lfwa.INDICES, indices())
    files = lfwa.read(folder)
    check(files)
    for split, rows in plain.splits.items():
        np.testing.assert_array_equal(files.splits[split], rows)
    whole = (folder / lfwa.ATTRIBUTES).read_bytes()
    for size in range(520, len(whole), len(whole) // 20):
        (folder / lfwa.ATTRIBUTES).write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"lfw_att_40.mat is damaged"):
            lfwa.read(folder)


def test_matlab_7_3_needs_its_package(folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    (folder / lfwa.ATTRIBUTES).write_bytes(b"MATLAB 7.3".ljust(512) + b"\x89HDF\r\n\x1a\n" + b"0")
    with pytest.raises(DataError, match=r"7.3.*pip install .facemix-jax.lfwa"):
        lfwa.read(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"label": LABEL[:5]}, r"6 names and 3 attributes, but labels of shape \[5, 3\]"),
        ({"label": LABEL.T}, "shape"),
        ({"label": LABEL * 2}, "Male of Ann_B/Ann_B_0001.jpg is 2"),
        ({"label": np.where(LABEL, np.nan, 0)}, "is nan"),
        ({"label": np.array(["x"])}, "no matrix of real numbers"),
        ({"label": LABEL + 1j}, "no matrix of real numbers"),
        ({"name": cells([*NAMES[:5], NAMES[0]])}, "occurs more than once"),
        ({"name": cells([*NAMES[:5], 7])}, "no list of texts"),
        ({"name": LABEL}, "no list of texts"),
        ({"name": cells([*NAMES[:5], "x.jpg"])}, "not a person's folder"),
        ({"name": cells([*NAMES[:5], "X/x.jpg"])}, "'X/x.jpg'.* not in lfw.zip|lfw.zip: 'X/x.jpg'"),
        ({"AttrName": cells(["Male", "Male", "x"])}, "Male occurs more than once"),
    ],
)
def test_malformed_labels(folder, changes, words):
    scipy.io.savemat(folder / lfwa.ATTRIBUTES, content(**changes))
    with pytest.raises(DataError, match=words):
        lfwa.read(folder)


@pytest.mark.parametrize(
    "rows",
    [
        {"train": (0, 1)},
        {"test": (7,)},
        {"test": (1, 3)},
        {"train": (1, 1, 2)},
        {"train": (1.5,)},
        {"train": (np.nan,)},
    ],
)
def test_malformed_split(folder, rows):
    scipy.io.savemat(folder / lfwa.INDICES, indices(**rows))
    with pytest.raises(DataError, match=r"indices_train_test.mat must hold different row numbers"):
        lfwa.read(folder)


@pytest.mark.parametrize("name", [lfwa.ATTRIBUTES, lfwa.INDICES])
def test_damaged_files(folder, name):
    whole = (folder / name).read_bytes()
    for damaged in (b"", b"no matrix", whole[: len(whole) // 2], whole[:130], b"\0" * 300):
        (folder / name).write_bytes(damaged)
        with pytest.raises(DataError, match=rf"{name} is damaged.*{lfwa.HOME}"):
            lfwa.read(folder)


def test_missing_variable_and_files(folder):
    scipy.io.savemat(folder / lfwa.ATTRIBUTES, {"label": LABEL})
    with pytest.raises(DataError, match="AttrName is missing"):
        lfwa.read(folder)
    scipy.io.savemat(folder / lfwa.ATTRIBUTES, content())
    (folder / "lfw.zip").unlink()
    with pytest.raises(DataError, match=r"neither lfw.zip nor a folder lfw"):
        lfwa.read(folder)
    (folder / lfwa.ATTRIBUTES).unlink()
    with pytest.raises(DataError, match=r"neither lfw_att_40.mat nor a CSV"):
        lfwa.read(folder)


def test_a_csv_will_do(folder):
    rows = [
        f"{n.split('/')[1]},{p},{','.join(map(str, a))}"
        for n, p, a in zip(NAMES, PEOPLE, LABEL, strict=True)
    ]
    header = "file,person,5_o_Clock_Shadow,Male,Wearing_Hat"
    (folder / "labels.csv").write_text("\n".join([header, *rows]))
    # The official file comes first, but for one who names the table.
    assert lfwa.read(folder).attribute_names == ("5_o_Clock_Shadow", "Male", "Wearing_Hat")
    config = DataConfig(
        dataset="lfwa", data_dir=str(folder), labels="labels.csv", columns="attributes=Male"
    )
    assert open_files(config).attribute_names == ("Male",)
    (folder / lfwa.ATTRIBUTES).unlink()
    check(load(folder))


@pytest.mark.parametrize("packed", [False, True])
def test_matlab_reader_equals_scipy(tmp_path, packed):
    rng = np.random.default_rng(0)
    kinds = (np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64)
    values = {k.__name__: rng.integers(0, 100, (5, 3)).astype(k) for k in kinds}
    values |= {"f4": rng.normal(size=(4, 2)).astype("f4"), "f8": rng.normal(size=(1, 7))}
    values |= {
        "flags": rng.integers(0, 2, (3, 3)) > 0,
        "none": np.zeros((0, 3)),
        "cube": np.ones((2, 3, 4)),
    }
    texts = ["a", "abcd", "Grüße", "日本", "x" * 100]
    path = tmp_path / "x.mat"
    scipy.io.savemat(path, {**values, "texts": cells(texts)}, do_compression=packed)
    found_texts, found = read_matlab(path, texts=("texts",), numbers=tuple(values), remedy="")
    expected = scipy.io.loadmat(path)
    assert found_texts["texts"] == texts == [c.item() for c in expected["texts"].ravel()]
    for name, value in values.items():
        np.testing.assert_array_equal(found[name], expected[name])
        np.testing.assert_array_equal(found[name], value)
