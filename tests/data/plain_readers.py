"""Simple readers of label files, written apart from the library, for comparison with it."""

import csv
import functools
import io
import itertools
import re
import struct
import zipfile
import zlib
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

SPLITS = {"0": "train", "train": "train", "1": "valid", "val": "valid", "valid": "valid"}
SPLITS |= {"validation": "valid", "2": "test", "test": "test"}
TRUTH = {"0": 0, "1": 1, "-1": 0, "false": 0, "true": 1, "0.0": 0, "1.0": 1}
KINDS = [{"0", "1"}, {"-1", "1"}, {"false", "true"}, {"0.0", "1.0"}]


class Plain(NamedTuple):
    """Labels as plain lists: a row for each image."""

    names: list
    attribute_names: list
    attributes: list
    people: list
    splits: list


def text_of(path):
    text = path.read_bytes().decode("utf-8-sig")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def celeba(folder):
    lines = [x for x in text_of(folder / "list_attr_celeba.txt").split("\n") if x.strip()]
    pairs = {}
    for name in ("identity_CelebA.txt", "list_eval_partition.txt"):
        rows = (x.split() for x in text_of(folder / name).split("\n") if x.strip())
        pairs[name] = {row[0]: int(row[1]) for row in rows}
    people, partition = pairs.values()
    rows = [line.split() for line in lines[2:]]
    names = [row[0] for row in rows]
    return Plain(
        names,
        lines[1].split(),
        [[{"-1": 0, "1": 1}[v] for v in row[1:]] for row in rows],
        [people[n] for n in names],
        [("train", "valid", "test")[partition[n]] for n in names],
    )


def table(folder):
    """A CSV whose columns are called ``file``, ``identity`` or ``person``, and ``split`` or so."""
    (path,) = folder.glob("*.csv")
    rows = [r for r in csv.reader(io.StringIO(text_of(path))) if r]
    header = [name.strip() or f"column_{i}" for i, name in enumerate(rows[0], 1)]
    rows = [dict(zip(header, [v.strip() for v in row], strict=True)) for row in rows[1:]]
    used = {}
    choices = (("file",), ("identity", "person", "subject", "id"), ("split", "partition", "subset"))
    for role, names in zip(("file", "person", "split"), choices, strict=True):
        used[role] = next((n for n in names if n in header), None)
    if used["file"] is None:  # Some other name: known by what it holds.
        suffixes = (".jpg", ".png")
        used["file"] = next(n for n in header if rows[0][n].lower().endswith(suffixes))
    values = {n: {r[n].lower() for r in rows} - {""} for n in header if n not in used.values()}
    binary = [n for n, v in values.items() if len(v) == 2 and v in KINDS]
    blanks = {n: tuple(i for i, r in enumerate(rows) if not r[n]) for n in binary}
    count = Counter(blanks.values())
    common = sorted(count, key=lambda b: (-count[b] * (len(rows) - len(b)), len(b)))[0]
    attributes = [n for n in binary if blanks[n] == common]
    rows = [r for i, r in enumerate(rows) if i not in common]
    return Plain(
        [r[used["file"]].replace("\\", "/") for r in rows],
        attributes,
        [[TRUTH[r[n].lower()] for n in attributes] for r in rows],
        [r[used["person"]] if used["person"] else i for i, r in enumerate(rows)],
        [SPLITS[r[used["split"]].lower()] for r in rows] if used["split"] else None,
    )


def lfwa(folder):
    found = matlab((folder / "lfw_att_40.mat").read_bytes(), 3)
    names = [n.strip().replace("\\", "/") for n in found["name"]]
    label = found["label"].reshape((len(found["AttrName"]), len(names))).T
    assert set(np.unique(label)) <= {0, 1}
    splits = [None] * len(names)
    rows = matlab((folder / "indices_train_test.mat").read_bytes(), 2)
    for split in ("train", "test"):
        for i in rows[f"indices_img_{split}"].ravel():
            assert splits[int(i) - 1] is None
            assert i == int(i) > 0
            splits[int(i) - 1] = split
    attribute_names = ["_".join(n.replace("'", " ").split()) for n in found["AttrName"]]
    people = [n.rsplit("/", 1)[0] for n in names]
    return Plain(names, attribute_names, label.astype(int).tolist(), people, splits)


NUMBER = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8"}
NUMBER |= {12: "i8", 13: "u8"}
TEXT = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}


def matlab(data, count):
    """The first variables of a MATLAB 5 file: numbers in column order, cells as lists."""
    return dict(variable(*element) for element in itertools.islice(elements(data[128:]), count))


def elements(data):
    start = 0
    while start + 8 <= len(data):
        (word,) = struct.unpack_from("<I", data, start)
        if word >> 16:  # A small element holds its data in the tag.
            yield word & 0xFFFF, data[start + 4 : start + 4 + (word >> 16)]
            start += 8
            continue
        kind, size = struct.unpack_from("<II", data, start)
        assert start + 8 + size <= len(data)
        yield kind, data[start + 8 : start + 8 + size]
        start += 8 + (size if kind == 15 else -(-size // 8) * 8)


def variable(kind, body):
    if kind == 15:
        ((kind, body),) = elements(zlib.decompress(body))
    assert kind == 14
    (_, flags), (_, shape), (_, name), *parts = elements(body)
    kind = flags[0]
    if kind == 1:
        return name.decode(), [variable(*part)[1] for part in parts]
    (stored, values) = parts[0]
    if kind == 4:
        coding = TEXT[stored] + ("-le" if "6" in TEXT[stored] or "32" in TEXT[stored] else "")
        return name.decode(), values.decode(coding)
    count = int(np.prod(np.frombuffer(shape, "<i4").astype(np.int64)))
    return name.decode(), np.frombuffer(values, "<" + NUMBER[stored])[:count]


def stored_images(folder):
    """A way to read every image of a data folder, by its path there or in its archive."""
    for path in (*sorted(folder.glob("*.zip")), folder / "img_align_celeba", folder / "lfw"):
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                infos = [i for i in archive.infolist() if is_image(i)]
            return {i.filename: functools.partial(zip_member, path, i) for i in infos}
        if path.is_dir():
            return loose_images(folder, path)
    return loose_images(folder, folder)


def loose_images(folder, path):
    files = (p for p in path.rglob("*.*g") if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes for p in files}


def zip_member(path, info):
    with zipfile.ZipFile(path) as archive:
        return archive.read(info)


def is_image(info):
    return re.search(r"\.(jpe?g|png)$", info.filename.lower()) and "__MACOSX" not in info.filename


def image_of(name, members):
    """The one member whose path is, or ends in, ``name``."""
    (found,) = [m for m in members if m == name] or [m for m in members if m.endswith("/" + name)]
    return members[found]()


def pixels(data, size):
    """Decoded and resized to height, width."""
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    return np.asarray(picture.resize(size[::-1], Image.Resampling.BICUBIC))


def numbers_of(people):
    """What the library calls people: numbers that fit stay, others are counted."""
    texts = [str(p) for p in people]
    if all(re.fullmatch(r"[0-9]{1,10}", t) and int(t) < 2**31 for t in texts):
        return [int(t) for t in texts]
    order = {t: i for i, t in enumerate(dict.fromkeys(texts))}
    return [order[t] for t in texts]


def compare(source, plain):
    """Asserts that every label of a source is that of the plain reader."""
    assert len(source) == len(plain.names)
    for name, file in zip(plain.names, source.file_names, strict=True):
        assert file == name or file.endswith("/" + name)
    assert list(source.attribute_names) == plain.attribute_names
    assert source.attributes.tolist() == plain.attributes
    assert source.identities.tolist() == numbers_of(plain.people)
    if plain.splits is not None:
        for split, rows in source.splits.items():
            assert rows.tolist() == [i for i, s in enumerate(plain.splits) if s == split]
    assert Path(source.file_names[0]).suffix
