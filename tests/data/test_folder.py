"""Images with a CSV: what columns are taken for, and what every disagreement says."""

import hashlib
import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from facemix_jax._validate import DataError, UsageError
from facemix_jax.data import DataConfig, archives, folder, lfwa, load_source, open_files

PEOPLE = ["ann", "ann", "bob", "bob", "cid", "cid"]
NAMES = [f"{p}_{i}.png" for i, p in enumerate(PEOPLE)]
HEADER = "file,person,split,Smiling,Male,note"
ROWS = [
    "ann_0.png,ann,train,1,0,x",
    "ann_1.png,ann,Training,0,0,y",
    'bob_2.png,bob,val,1,1,"a, b"',
    "bob_3.png,bob,dev,0,1,z",
    "cid_4.png,cid,testing,1,0,",
    "cid_5.png,cid,2,1,1,",
]


def picture(shade):
    out = io.BytesIO()
    Image.new("RGB", (16, 20), (shade, 100, 255 - shade)).save(out, "PNG")
    return out.getvalue()


def pack(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, shade in members.items():
            archive.writestr(name, picture(shade))


def write(tmp_path, header=HEADER, rows=ROWS, name="labels.csv"):
    (tmp_path / name).write_text("\n".join([header, *rows]) + "\n")


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data"
    path.mkdir()
    write(path)
    pack(path / "images.zip", {name: 10 * i for i, name in enumerate(NAMES)})
    return path


def column(data, name, values):
    """A table of its own, with one more column."""
    rows = [f"{row},{v}" for row, v in zip(ROWS, values, strict=True)]
    write(data, f"{HEADER},{name}", rows)


def test_labels_and_pixels_are_those_of_the_files(data):
    source = load_source(DataConfig(dataset="folder", data_dir=str(data), image_size=(20, 16)))
    assert source.name == "folder"
    assert source.file_names == tuple(NAMES)
    assert source.attribute_names == ("Smiling", "Male")
    np.testing.assert_array_equal(
        source.attributes, [[1, 0], [0, 0], [1, 1], [0, 1], [1, 0], [1, 1]]
    )
    assert source.attributes.dtype == np.int8
    np.testing.assert_array_equal(source.identities, [0, 0, 1, 1, 2, 2])
    assert source.identities.dtype == np.int32
    for i, split in enumerate(("train", "valid", "test")):
        np.testing.assert_array_equal(source.splits[split], [2 * i, 2 * i + 1])
    np.testing.assert_array_equal(source.images(np.arange(6))[:, 0, 0, 0], 10 * np.arange(6))


def test_caches_of_before_pictures_were_turned_are_not_read(data):
    files = folder.read(data)
    mark = archives.fingerprint(files.file_names, files.images)
    (data / ".facemix_cache").mkdir()
    old = data / ".facemix_cache" / f"folder-{mark}-20x16.npy"
    np.save(old, np.full((6, 20, 16, 3), 255, np.uint8))
    source = load_source(DataConfig(dataset="folder", data_dir=str(data), image_size=(20, 16)))
    np.testing.assert_array_equal(source.images(np.arange(6))[:, 0, 0, 0], 10 * np.arange(6))


def test_roles_are_shown(data):
    column(data, "Odd", ["1", "", "0", "", "", "1"])
    roles = folder.roles(data)
    assert (roles.file, roles.identity, roles.split) == ("file", "person", "split")
    assert roles.attributes == ("Smiling", "Male")
    assert roles.ignored == {
        "note": "not only 0 and 1",
        "Odd": "blank in other rows than the attributes",
    }
    assert roles.unlabelled == 0


@pytest.mark.parametrize(
    ("values", "attributes", "ignored", "unlabelled"),
    [
        ("1__0__", ("Smiling",), dict.fromkeys("ab", "blank in other rows than the attributes"), 0),
        ("1_0__0", ("Smiling",), dict.fromkeys("ab", "blank in other rows than the attributes"), 0),
        ("1_00_0", ("a", "b"), {"Smiling": "has values where the attributes are blank"}, 2),
    ],
)
def test_the_attributes_with_most_labels_are_used(data, values, attributes, ignored, unlabelled):
    sparse = values.replace("_", " ")
    rows = [f"{n},{i % 2},{v},{v}" for i, (n, v) in enumerate(zip(NAMES, sparse, strict=True))]
    write(data, "file,Smiling,a,b", rows)
    found = folder.roles(data)
    assert (found.attributes, found.ignored) == (attributes, ignored)
    assert found.unlabelled == unlabelled


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ("attributes=Male", {"attributes": ("Male",)}),
        ("attributes=Male,Smiling", {"attributes": ("Male", "Smiling")}),
        ("ignore=Male,person", {"attributes": ("Smiling",), "identity": None}),
        ("identity=note ignore=split", {"identity": "note", "split": None}),
        ("", {"identity": "person"}),
    ],
)
def test_roles_can_be_chosen(data, columns, expected):
    roles = folder.roles(data, columns=columns)
    assert {name: getattr(roles, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ("identity=persom", "Did you mean 'person'"),
        ("person=identity", "role 'person' is unknown"),
        ("identity", "Example"),
        ("identity=", "Example"),
        ("split=split split=note", "once"),
        ("split=split,note", "2 columns"),
        ("file=file ignore=file", "twice"),
        ("ignore='note", "Example"),
    ],
)
def test_wrong_choices_are_usage_errors(data, columns, words):
    with pytest.raises(UsageError, match=words):
        folder.read(data, columns=columns)


def test_a_name_with_a_space_can_be_chosen(data):
    write(data, HEADER.replace("Male", "Is Male"))
    assert folder.roles(data, columns="'attributes=Is Male'").attributes == ("Is Male",)


@pytest.mark.parametrize(
    "values",
    [
        ["-1", "1", "1", "1", "-1", "-1"],
        ["true", "False", "TRUE", "true", "false", "true"],
        ["0.0", "1.0", "1.0", "1.0", "0.0", "0.0"],
    ],
)
def test_other_ways_to_write_no_and_yes(data, values):
    column(data, "Bald", values)
    files = folder.read(data)
    assert files.attribute_names[-1] == "Bald"
    expected = [v.lower() in ("1", "1.0", "true") for v in values]
    np.testing.assert_array_equal(files.attributes[:, -1], expected)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (["1"] * 6, "constant"),
        ([""] * 6, "empty"),
        (["1", "2", "0", "1", "2", "3"], "not only 0 and 1"),
        (["0.5", "0.1", "0.2", "0.5", "0.1", "0.3"], "not only 0 and 1"),
    ],
)
def test_columns_that_are_no_attributes(data, values, reason):
    column(data, "Odd", values)
    roles = folder.roles(data)
    assert "Odd" not in roles.attributes
    assert roles.ignored["Odd"] == reason


def test_one_odd_value_is_an_error_and_does_not_drop_the_column(data):
    column(data, "Odd", ["0", "1", "0", "1", "q", "1"])
    with pytest.raises(DataError, match=r"line 6: 'q' in column Odd.*ignore=Odd"):
        folder.read(data)
    column(data, "Odd", ["0", "1", "", "1", "0", "1"])
    with pytest.raises(DataError, match=r"line 4: Odd is blank.*ignore=Odd"):
        folder.read(data)
    assert folder.roles(data, columns="ignore=Odd").attributes == ("Smiling", "Male")


def test_chosen_attributes_must_be_attributes(data):
    with pytest.raises(DataError, match="line 2: 'x' in column note"):
        folder.read(data, columns="attributes=note")
    column(data, "Odd", ["1", "", "0", "", "", "1"])
    with pytest.raises(DataError, match="line 3: Odd is blank"):
        folder.read(data, columns="attributes=Male,Smiling,Odd")


def test_unlabelled_rows_are_left_out(data):
    rows = [*ROWS[:3], "bob_3.png,bob,,,,", *ROWS[4:]]
    write(data, rows=rows)
    files = folder.read(data)
    assert files.file_names == (*NAMES[:3], *NAMES[4:])
    np.testing.assert_array_equal(files.identities, [0, 0, 1, 2, 2])
    assert folder.roles(data).unlabelled == 1


def test_integers_stay_identities(data):
    for people, expected in (
        (["7", "7", "0", "2147483647", "12", "12"], [7, 7, 0, 2147483647, 12, 12]),
        (["7", "7", "0", "2147483648", "12", "12"], [0, 0, 1, 2, 3, 3]),
        (["7", "7", "-1", "3", "12", "12"], [0, 0, 1, 2, 3, 3]),
    ):
        column(data, "identity", people)
        np.testing.assert_array_equal(folder.read(data).identities, expected)


@pytest.mark.parametrize("name", ["id", "identity", "Subject"])
def test_a_running_number_is_no_person_where_another_column_has_people(data, name):
    column(data, name, range(6))
    assert folder.roles(data).identity == "person"
    assert folder.roles(data, columns=f"identity={name}").identity == name
    # Alone it is all there is, and every image is its own person.
    np.testing.assert_array_equal(folder.read(data, columns="ignore=person").identities, range(6))


def test_without_people_every_image_is_its_own(data):
    files = folder.read(data, columns="ignore=person,split")
    np.testing.assert_array_equal(files.identities, np.arange(6))


def test_people_are_dealt_out_disjointly_and_steadily():
    people = [f"p{i}" for i in np.random.default_rng(0).integers(0, 2000, 5000)]
    splits = folder.split_by_person(people)
    sets = {s: {people[i] for i in rows} for s, rows in splits.items()}
    assert sum(len(rows) for rows in splits.values()) == 5000
    assert not sets["train"] & (sets["valid"] | sets["test"])
    assert not sets["valid"] & sets["test"]
    shares = [len(sets[s]) / len(set(people)) for s in ("train", "valid", "test")]
    np.testing.assert_allclose(shares, [0.8, 0.1, 0.1], atol=0.03)
    # A person stays where they are when others come or go.
    fewer = folder.split_by_person(people[:100])
    for s, rows in fewer.items():
        np.testing.assert_array_equal(rows, splits[s][splits[s] < 100])
    numbers = [f"{i:03d}" for i in range(50)]
    alone, among = folder.split_by_person(numbers), folder.split_by_person([*numbers, "ann"])
    for s, rows in alone.items():
        np.testing.assert_array_equal(rows, among[s][among[s] < 50])
    # The rule itself, once.
    tenth = int(hashlib.sha256(b"p1").hexdigest(), 16) % 10
    (split,) = [s for s, rows in folder.split_by_person(["p1"]).items() if len(rows)]
    assert split == ("train" if tenth < 8 else "valid" if tenth == 8 else "test")


def test_the_same_number_is_the_same_person(data):
    assert [len(rows) for rows in folder.split_by_person(["7", "007"]).values()].count(2) == 1
    np.testing.assert_array_equal(folder.number_people(["7", "007"]), [7, 7])


@pytest.mark.parametrize("place", ["images.zip", "faces.zip", "images", "."])
@pytest.mark.parametrize("deep", [False, True])
def test_images_are_found_in_every_place(data, place, deep):
    (data / "images.zip").unlink()
    members = {f"{p}/{n}" if deep else n: 3 for p, n in zip(PEOPLE, NAMES, strict=True)}
    pack(data / "faces.zip" if place != "images.zip" else data / place, members)
    if not place.endswith("zip"):
        with zipfile.ZipFile(data / "faces.zip") as archive:
            archive.extractall(data / place)
        (data / "faces.zip").unlink()
    # Bare names find images in folders; names with folders find their own.
    assert folder.read(data).file_names == tuple(members)
    # So do paths from where the table lies, as scripts write them.
    above = "" if place == "." else f"{place.removesuffix('.zip')}/"
    for start in (above, f"./{above}", f".\\{above}"):
        paths = [f"{start}{name}" for name in members]
        write(data, rows=[f"{p}{r[9:]}" for p, r in zip(paths, ROWS, strict=True)])
        assert folder.read(data).file_names == tuple(members)
    if deep:
        write(data, rows=[f"{p}/{r}" for p, r in zip(PEOPLE, ROWS, strict=True)])
        assert folder.read(data).file_names == tuple(members)
        write(data, rows=[f"{p}\\{r}" for p, r in zip(PEOPLE, ROWS, strict=True)])
        assert folder.read(data).file_names == tuple(members)


def test_the_folder_images_comes_before_archives_of_other_names(data):
    (data / "images").mkdir()
    (data / "images.zip").rename(data / "backup.zip")
    for name in NAMES:
        (data / "images" / name).write_bytes(picture(200))
    assert folder.read(data).images.label == "images/"


def test_accents_are_found_however_they_are_written(data):
    composed, apart = "jos\u00e9/0.png", "jose\u0301/0.png"
    for there, here in ((composed, apart), (apart, composed)):
        pack(data / "images.zip", dict.fromkeys([there, *NAMES[1:]], 3))
        write(data, rows=[f"{here},{ROWS[0][10:]}", *ROWS[1:]])
        assert folder.read(data).file_names == (there, *NAMES[1:])
    pack(data / "images.zip", dict.fromkeys([composed, apart, *NAMES[1:]], 3))
    assert folder.read(data).file_names[0] == composed
    pack(data / "images.zip", dict.fromkeys([f"a/{apart}", f"b/{apart}", *NAMES[1:]], 3))
    with pytest.raises(DataError, match="more than one image"):
        folder.read(data)


def test_linked_folders_are_looked_into_once(data, tmp_path):
    (data / "images").mkdir()
    with zipfile.ZipFile(data / "images.zip") as archive:
        archive.extractall(tmp_path / "elsewhere")
    (data / "images.zip").unlink()
    (data / "images" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "around").symlink_to(data / "images")
    assert folder.read(data).file_names == tuple(f"linked/{name}" for name in NAMES)


def test_ambiguous_and_doubled_names(data):
    members = {n: 3 for n in NAMES[1:]} | {"a/ann_0.png": 1, "b/ann_0.png": 2}
    pack(data / "images.zip", members)
    with pytest.raises(DataError, match=r"ann_0.png of labels.csv is more than one image"):
        folder.read(data)
    pack(data / "images.zip", {f"a/{n}": 1 for n in NAMES})
    write(data, rows=[*ROWS, "a/" + ROWS[0]])
    with pytest.raises(DataError, match=r"ann_0.png occurs more than once"):
        folder.read(data)


def test_images_without_rows_are_fine_but_not_rows_without_images(data):
    write(data, rows=ROWS[:5])
    assert len(folder.read(data).file_names) == 5
    write(data, rows=[*ROWS, *(f"dan_{i}.png,dan,test,0,1," for i in range(4))])
    with pytest.raises(DataError, match=r"4 images of labels.csv .* 'dan_0.png', .*, \.\.\."):
        folder.read(data)


@pytest.mark.parametrize(
    ("header", "rows", "words"),
    [
        (HEADER, [], "1 lines"),
        (HEADER, [*ROWS, "ann_0.png,ann"], "line 8: 2 columns where the header has 6"),
        (HEADER, [*ROWS, "a,b,c,0,1,d,e"], "line 8: 7 columns"),
        (HEADER, [*ROWS, 'a,b,c,0,1,"d'], "line 8|line 9"),
        (HEADER.replace("Male", "Smiling"), ROWS, "occurs 2 times"),
        (HEADER, [ROWS[0].replace("train", "tr"), *ROWS[1:]], "'tr' in column split"),
        (HEADER, [ROWS[0].replace("train", ""), *ROWS[1:]], "'' in column split"),
        (HEADER, [f"{r[:9]},a,fold {i},{i % 2},0," for i, r in enumerate(ROWS)], "ignore=split"),
        (HEADER, [ROWS[0].replace(",ann", ","), *ROWS[1:]], "line 2: column person is blank"),
        (HEADER, [*ROWS, ROWS[0]], "occurs more than once"),
        ("a,b", ["1,0", "0,1"], "names of images"),
        ("file,b", ["ann_0.png,x", "ann_1.png,y"], "holds an attribute"),
    ],
)
def test_malformed_tables(data, header, rows, words):
    write(data, header, rows)
    with pytest.raises(DataError, match=words) as caught:
        folder.read(data)
    assert "labels.csv" in str(caught.value)


def test_the_table_must_be_one_or_named(data):
    write(data, name="other.csv", rows=ROWS[:2])
    with pytest.raises(DataError, match=r"2 CSV files \(labels.csv, other.csv\)"):
        folder.read(data)
    config = DataConfig(dataset="folder", data_dir=str(data), labels="other.csv")
    assert len(open_files(config).file_names) == 2
    with pytest.raises(DataError, match=r"nowhere.csv does not exist"):
        folder.read(data, labels="nowhere.csv")
    for path in data.glob("*.csv"):
        path.unlink()
    with pytest.raises(DataError, match="no CSV"):
        folder.read(data)


def test_tables_and_archives_are_known_by_their_suffix_and_hidden_files_are_none(data):
    for name, capital in (("labels.csv", "Labels.CSV"), ("images.zip", "FACES.ZIP")):
        (data / name).rename(data / capital)
        (data / f"._{name}").write_bytes(b"\0\5\x16\7")
    write(data, name="Labels.CSV", rows=[f"FACES/{row}" for row in ROWS])
    assert folder.read(data).file_names == tuple(NAMES)
    assert lfwa.read(data).file_names == tuple(NAMES)


def test_missing_images(data):
    (data / "images.zip").unlink()
    with pytest.raises(DataError, match="holds no image"):
        folder.read(data)
    pack(data / "a.zip", {})
    pack(data / "b.zip", {})
    with pytest.raises(DataError, match="2 zip files"):
        folder.read(data)


def test_empty_headers_and_spaces_are_taken(data):
    rows = [f"{i}, {row}" for i, row in enumerate(ROWS)]
    write(data, "," + HEADER.replace("Male", " Male "), rows)
    assert folder.roles(data).attributes == ("Smiling", "Male")
    assert folder.read(data).file_names == tuple(NAMES)
