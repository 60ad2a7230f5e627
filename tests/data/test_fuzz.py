"""Mutated label files, archives and images: each loads as it now reads, or gives a clear error."""

import contextlib
import dataclasses
import io
import re
import shutil
import warnings
import zipfile

import numpy as np
import plain_readers
import pytest
import scipy.io
from mutations import BYTES, COUNT, FOLDERS, MEMBERS, TEXT, encoded, huge_member, png, zipped
from PIL import Image

from facemix_jax._validate import DataError, FacemixError
from facemix_jax.data import DataConfig, load_source

SIZE = (20, 16)
PEOPLE = ["Ann", "Ann", "Bob", "Bob", "Cid", "Cid", "Dee"]
READERS = {
    "celeba": plain_readers.celeba,
    "folder": plain_readers.table,
    "lfwa": plain_readers.lfwa,
}
ARCHIVE = {"celeba": "img_align_celeba.zip", "folder": "images.zip", "lfwa": "lfw.zip"}
REMEDY = re.compile(
    r"\b(Get|Put|Give|Mend|Name|Add|Use|Keep|Save|Fill|Rename|Write|Convert|Shrink|Check|Set|"
    r"fetch it again)\b"
)


def matrix(values, packed):
    out = io.BytesIO()
    scipy.io.savemat(out, values, do_compression=packed)
    return out.getvalue()


def cells(texts):
    out = np.empty((len(texts), 1), object)
    out[:, 0] = texts
    return out


def original(dataset, rng):
    """The label files by name, and the members of the archive as pairs."""
    values = rng.integers(0, 2, (COUNT, 3), np.uint8)
    values[:2] = [[0, 1, 0], [1, 0, 1]]  # No attribute is constant.
    splits = rng.integers(0, 3, COUNT)
    images = [encoded(rng, "PNG" if i % 3 == 0 else "JPEG") for i in range(COUNT)]
    names = [f"{i:06d}.jpg" for i in range(1, COUNT + 1)]
    if dataset == "celeba":
        rows = [
            f"{n} {' '.join('1' if x else '-1' for x in v)}"
            for n, v in zip(names, values, strict=True)
        ]
        files = {
            "list_attr_celeba.txt": [str(COUNT), "Bald Male Young", *rows],
            "identity_CelebA.txt": [f"{n} {7 + i // 2}" for i, n in enumerate(names)],
            "list_eval_partition.txt": [f"{n} {s}" for n, s in zip(names, splits, strict=True)],
        }
        files = {name: ("\n".join(lines) + "\n").encode() for name, lines in files.items()}
        return files, [(f"img_align_celeba/{n}", d) for n, d in zip(names, images, strict=True)]
    names = [f"{p}/{p}_{i:04d}.jpg" for i, p in enumerate(PEOPLE)]
    if dataset == "folder":
        form = rng.choice(["plain", "deep", "number"])
        header = f"file,{'identity' if form == 'number' else 'person'},split,note,Bald,Male,Young"
        rows = [
            f"{n if form == 'deep' else n.split('/')[1]},{7 + i // 2 if form == 'number' else p},"
            f'{("train", "val", "test")[s]},"n, {i}",{",".join(map(str, v))}'
            for i, (n, p, s, v) in enumerate(zip(names, PEOPLE, splits, values, strict=True))
        ]
        if rng.integers(2):
            rows[3] = ",".join([*rows[3].split(",")[:-3], "", "", ""])
        files = {"labels.csv": ("\n".join([header, *rows]) + "\n").encode()}
        return files, list(zip(names, images, strict=True))
    squeeze = bool(rng.integers(2))
    texts = cells([n.replace("/", "\\") for n in names])
    attributes = cells(["5 o Clock Shadow", "Male", "Young"])
    rows = rng.permutation(COUNT) + 1.0
    files = {
        "lfw_att_40.mat": matrix({"AttrName": attributes, "label": values, "name": texts}, squeeze),
        "indices_train_test.mat": matrix(
            {"indices_img_train": rows[:4, None], "indices_img_test": rows[4:, None]}, squeeze
        ),
    }
    return files, [(f"lfw/{n}", d) for n, d in zip(names, images, strict=True)]


def listing(root):
    """Everything below, but for the cache: kind, size and time."""
    return {
        str(p.relative_to(root)): (p.lstat().st_mode, p.lstat().st_size, p.lstat().st_mtime_ns)
        for p in root.rglob("*")
        if ".facemix_cache" not in p.parts and p.name != "data"
    }


def write_case(folder, seed):
    """Writes a mutated data folder; returns its data set, what must happen and what was done."""
    rng = np.random.default_rng(seed)
    dataset = str(rng.choice(list(READERS)))
    files, members = original(dataset, rng)
    what = rng.choice(["labels", "archive", "members", "folder"], p=[0.5, 0.15, 0.25, 0.1])
    expected, done = "same", [dataset]
    if what == "labels":
        for _ in range(rng.choice([1, 2], p=[0.8, 0.2])):
            name = str(rng.choice(list(files)))
            choice = rng.choice(BYTES if name.endswith(".mat") else TEXT)
            # A second mutation may meet what the first has left.
            with contextlib.suppress(ValueError, IndexError, UnicodeDecodeError):
                files[name], outcome = choice(files[name], rng)
                done += [name, choice.__name__]
                expected = outcome if len(done) == 3 or outcome == expected else "any"
    elif what == "members":
        choice = huge_member if rng.integers(200) == 0 else rng.choice(MEMBERS)
        members, expected = choice(members, rng)
        done.append(choice.__name__)
        if expected == "error" and any(b",,,\n" in data for data in files.values()):
            expected = "any"  # It may be the image that has no labels.
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / ARCHIVE[dataset]).write_bytes(zipped(members))
    if what == "folder":
        unpacked_to = folder / "images" if dataset == "folder" else folder
        with zipfile.ZipFile(folder / ARCHIVE[dataset]) as archive:
            archive.extractall(unpacked_to)
        (folder / ARCHIVE[dataset]).unlink()
        choice = rng.choice(FOLDERS)
        expected = choice(unpacked_to / members[rng.integers(COUNT)][0], rng)
        done.append(choice.__name__)
    elif what == "archive":
        choice = rng.choice(BYTES)
        data, expected = choice((folder / ARCHIVE[dataset]).read_bytes(), rng)
        (folder / ARCHIVE[dataset]).write_bytes(data)
        done.append(choice.__name__)
    return dataset, expected, done


def run_case(root, seed):
    """Checks one mutated input; returns what was done and whether it loaded."""
    root.mkdir()
    folder = root / "data"
    dataset, expected, done = write_case(folder, seed)
    before = listing(root)
    config = DataConfig(dataset=dataset, data_dir=str(folder), image_size=SIZE)
    try:
        source = load_source(config)
    except FacemixError as error:
        source, message = None, str(error)
        assert expected != "same", f"{seed} {done}: {message}"
        names = [p.name for p in folder.rglob("*")] + ["data"]
        assert any(name in message for name in names), f"{seed} {done}: no path in {message}"
        assert REMEDY.search(message), f"{seed} {done}: no remedy in {message}"
        assert not list(folder.glob(".facemix_cache/*")), f"{seed} {done}: a cache remains"
    except BaseException as error:
        raise AssertionError(f"{seed} {done}: {type(error).__name__}: {error}") from error
    assert listing(root) == before, f"{seed} {done}: files appeared or changed"
    if source is not None:
        assert expected != "error", f"{seed} {done}: loaded silently"
        try:
            plain_readers.compare(source, READERS[dataset](folder))
            stored = plain_readers.stored_images(folder)
            images = source.images(np.arange(len(source)))
            for name, image in zip(source.file_names, images, strict=True):
                data = plain_readers.image_of(name, stored)
                np.testing.assert_array_equal(image, plain_readers.pixels(data, SIZE))
        except BaseException as error:
            raise AssertionError(f"{seed} {done}: {type(error).__name__}: {error}") from error
    loaded = source is not None
    del source
    shutil.rmtree(root)
    return done[-1], loaded


def run_cases(tmp_path, seeds):
    """Checks many inputs; every mutation occurs, and enough of them load."""
    outcomes = [run_case(tmp_path / str(seed), seed) for seed in seeds]
    done = {name for name, _ in outcomes}
    if len(outcomes) > 1000:
        assert done == {f.__name__ for f in (*TEXT, *MEMBERS, *FOLDERS, huge_member)}
    loaded = sum(loaded for _, loaded in outcomes)
    assert 0.1 < loaded / len(outcomes) < 0.6
    return outcomes


def test_mutated_inputs_load_as_they_read_or_say_why(tmp_path):
    run_cases(tmp_path, range(400))


@pytest.mark.slow
def test_ten_thousand_mutated_inputs(tmp_path):
    run_cases(tmp_path, range(1000, 11_500))


def first(tmp_path, wanted):
    """The first input from 0 on that is loaded, or not."""
    for seed in range(100):
        if run_case(tmp_path / f"{wanted}{seed}", seed)[1] == wanted:
            return seed
    raise AssertionError("no such input")


def test_the_check_notices_wrong_labels_and_pixels(tmp_path, monkeypatch):
    seed, real = first(tmp_path, True), load_source

    def wrong_label(config):
        source = real(config)
        source.attributes[0, 0] ^= 1
        return source

    def wrong_person(config):
        source = real(config)
        source.identities[0] += 1
        return source

    def wrong_split(config):
        source = real(config)
        return dataclasses.replace(source, splits={**source.splits, "train": np.arange(0)})

    def wrong_pixels(config):
        source = real(config)
        return dataclasses.replace(source, pixels=source.pixels ^ 1)

    for i, wrong in enumerate((wrong_label, wrong_person, wrong_split, wrong_pixels)):
        monkeypatch.setitem(globals(), "load_source", wrong)
        with pytest.raises(AssertionError):
            run_case(tmp_path / f"wrong{i}", seed)


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (KeyError("x"), "KeyError"),
        (UserWarning("x"), "UserWarning"),
        (DataError("bad"), "no path"),
        (DataError("data is bad"), "no remedy"),
    ],
)
def test_the_check_notices_unclear_failures(tmp_path, monkeypatch, failure, words):
    seed = first(tmp_path, False)

    def fail(config):
        raise failure

    monkeypatch.setitem(globals(), "load_source", fail)
    with pytest.raises(AssertionError, match=words):
        run_case(tmp_path / "wrong", seed)


def test_the_check_notices_files_that_appear_outside(tmp_path, monkeypatch):
    seed, real = first(tmp_path, True), load_source

    def litter(config):
        (tmp_path / "wrong" / "passwd").write_text("x")
        return real(config)

    monkeypatch.setitem(globals(), "load_source", litter)
    with pytest.raises(AssertionError, match="files appeared"):
        run_case(tmp_path / "wrong", seed)


def test_the_check_notices_what_loads_silently(tmp_path, monkeypatch):
    # An error is due here, and a library that ignores the input gives the data of another.
    seed = next(
        s for s in range(200) if write_case(tmp_path / f"case{s}", s)[:2] == ("celeba", "error")
    )
    whole = tmp_path / "whole"
    whole.mkdir()
    files, members = original("celeba", np.random.default_rng(0))
    for name, data in files.items():
        (whole / name).write_bytes(data)
    (whole / ARCHIVE["celeba"]).write_bytes(zipped(members))
    source = load_source(DataConfig(dataset="celeba", data_dir=str(whole), image_size=SIZE))
    monkeypatch.setitem(globals(), "load_source", lambda config: source)
    with pytest.raises(AssertionError, match="loaded silently"):
        run_case(tmp_path / "wrong", seed)


def test_no_warning_is_shown_for_a_bomb(tmp_path):
    data = png(12_000, 12_000)
    with pytest.warns(Image.DecompressionBombWarning):  # Pillow itself has one.
        Image.open(io.BytesIO(data)).close()
    (tmp_path / "labels.csv").write_text("file,Male\nx.png,0\ny.png,1\n")
    (tmp_path / "x.png").write_bytes(data)
    (tmp_path / "y.png").write_bytes(data)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        with pytest.raises(DataError, match="decompression bombs"):
            load_source(DataConfig(dataset="folder", data_dir=str(tmp_path)))
    assert not shown


def test_sixteen_bit_colours_need_the_check_of_the_header():
    # Control: Pillow takes this image for an 8-bit one.
    with Image.open(io.BytesIO(png(16, 10, 16, size=10 * 97))) as image:
        image.load()
        assert image.mode == "RGB"
