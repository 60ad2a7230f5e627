"""The contact sheet: which faces, where they are, and that print stays within its place."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from facemix_jax._validate import DataError, UsageError
from facemix_jax.data import sheet

NAMES = ("Wearing_Hat", "Mouth_Slightly_Open", "5_o_Clock_Shadow", "Young")


class Plain:
    """Every image is of one colour, its number's; five images a person."""

    name = "plain"
    image_size = (40, 32)
    attribute_names = NAMES

    def __init__(self):
        self.attributes = (np.arange(60)[:, None] >> np.arange(4) & 1).astype(np.int8)
        self.identities = (np.arange(60) // 5).astype(np.int32)
        self.splits = {
            "train": np.arange(48),
            "test": np.arange(48, 60),
            "valid": np.arange(0),
        }

    def __len__(self):
        return 60

    def images(self, indices):
        colour = np.stack([indices * 4, 255 - indices * 4, np.full_like(indices, 128)], -1)
        return np.broadcast_to(colour[:, None, None], (len(indices), 40, 32, 3)).astype(np.uint8)


def colour(index):
    return (index * 4, 255 - index * 4, 128)


def test_every_chosen_face_is_on_the_sheet_and_no_other():
    chosen = np.array([[3, 40, 7], [12, -1, 59]])
    pixels = sheet.contact_sheet(Plain(), chosen, title="plain")
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    shown = {i for i in range(60) if (pixels == colour(i)).all(-1).any()}
    assert shown == {3, 40, 7, 12, 59}


def test_faces_keep_their_shape_and_lie_in_rows():
    pixels = sheet.contact_sheet(Plain(), np.array([[1, 2], [3, 4]]), title="plain")
    boxes = []
    for i in (1, 2, 3, 4):
        rows, columns = np.nonzero((pixels == colour(i)).all(-1))
        boxes.append((rows.min(), columns.min(), rows.max() + 1, columns.max() + 1))
    for top, left, bottom, right in boxes:
        assert (bottom - top) / (right - left) == pytest.approx(40 / 32, rel=0.01)
    assert boxes[0][0] == boxes[1][0] < boxes[0][2] < boxes[2][0] == boxes[3][0]
    assert boxes[0][3] < boxes[1][1]
    assert boxes[0][1] == boxes[2][1]


def test_print_stays_below_its_face_and_off_its_neighbours():
    """With the longest possible labels, the gaps between columns and rows stay white."""
    source = Plain()
    source.attribute_names = tuple(f"{'Very_' * 3}long_{i}{'x' * 40 * (i % 2)}" for i in range(40))
    source.attributes = np.ones((60, 40), np.int8)
    source.identities = source.identities + np.int32(2**31 - 100)
    pixels = sheet.contact_sheet(source, np.array([[1, 2], [3, 4]]), title="T" * 500)
    rows, columns = np.nonzero((pixels == colour(2)).all(-1))
    below = pixels[rows.min() :]
    gap = below[:, columns.min() - 8 : columns.min()]
    assert (gap == 255).all()
    assert (pixels[:, -20:] == 255).all()
    (dark,) = np.nonzero((pixels[:, columns.min() :] < 200).all(-1).any(-1))
    lower = np.nonzero((pixels == colour(4)).all(-1))[0].min()
    assert dark[dark < lower].max() <= lower - 8
    assert (pixels[-20:] == 255).all()


def test_more_labels_make_a_higher_sheet():
    source = Plain()
    few = sheet.contact_sheet(source, np.array([[0]]), title="")
    many = sheet.contact_sheet(source, np.array([[15]]), title="")
    assert many.shape[0] > few.shape[0]
    assert many.shape[1] == few.shape[1]


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("Wearing_Hat", "hat"),
        ("Mouth_Slightly_Open", "mouth open"),
        ("5_o_Clock_Shadow", "5 o'clock shadow"),
        ("Arched_Eyebrows", "arched brows"),
        ("Receding_Hairline", "receding hair"),
        ("Wearing_", "wearing_"),
        ("Glasses", "glasses"),
    ],
)
def test_short_names(name, short):
    assert sheet.short_name(name).lower() == short


def test_wrapped_lines_hold_all_words_in_order_or_say_how_many_are_missing():
    words = [f"word {i}" for i in range(30)]
    lines = sheet.wrap(words, width=150)
    assert " ".join(lines).split(", ") == words
    lines = sheet.wrap([f"word {i}" for i in range(300)], width=150)
    *shown, last = lines
    assert last == f"and {300 - ' '.join(shown).count('word')} more"
    assert len(lines) == 12
    assert sheet.wrap([], width=150) == []
    (cut,) = sheet.wrap(["x" * 100], width=150)
    assert cut.endswith("...")
    assert len(cut) < 60


def test_choices_are_of_the_split_distinct_and_always_the_same():
    source = Plain()
    chosen = sheet.choose(source, "train", rows=4, columns=6)
    assert chosen.shape == (4, 6)
    assert len(set(chosen.ravel())) == 24
    assert set(chosen.ravel()) <= set(range(48))
    np.testing.assert_array_equal(chosen, sheet.choose(source, "train", rows=4, columns=6))
    for choose in (sheet.choose, sheet.choose_people):  # an array of that width fits no memory
        assert choose(source, "train", rows=4, columns=10**15).shape[1] <= len(source)
    small = sheet.choose(source, "test", rows=4, columns=5)
    assert small.shape == (3, 5)
    assert sorted(small[small >= 0]) == list(range(48, 60))


def test_rows_of_people_hold_one_person_each():
    source = Plain()
    source.identities[:3] = 99  # somebody with three images only
    chosen = sheet.choose_people(source, "train", rows=4, columns=4)
    people = source.identities[chosen]
    assert (people == people[:, :1]).all()
    assert len(set(people[:, 0])) == 4
    assert 99 not in people
    everyone = sheet.choose_people(source, "train", rows=100, columns=8)
    assert len(everyone) == len(set(source.identities[:48]))
    assert everyone.shape[1] == 5  # nobody has more
    assert sorted(everyone[everyone >= 0]) == list(range(48))


def test_wrong_choices_are_refused():
    for choose in (sheet.choose, sheet.choose_people):
        with pytest.raises(UsageError, match="'tset' is unknown"):
            choose(Plain(), "tset", rows=1, columns=1)
        with pytest.raises(UsageError, match="'valid' of plain has no images"):
            choose(Plain(), "valid", rows=1, columns=1)
        with pytest.raises(UsageError, match="rows is 0"):
            choose(Plain(), "train", rows=0, columns=1)


def test_saved_png_is_the_sheet(tmp_path):
    pixels = sheet.contact_sheet(Plain(), np.array([[1, 2]]), title="plain")
    sheet.save_png(tmp_path / "sheet.png", pixels)
    with Image.open(io.BytesIO((tmp_path / "sheet.png").read_bytes())) as image:
        assert image.format == "PNG"
        np.testing.assert_array_equal(np.asarray(image), pixels)
    assert [p.name for p in tmp_path.iterdir()] == ["sheet.png"]
    with pytest.raises(DataError, match="nowhere"):
        sheet.save_png(tmp_path / "nowhere" / "sheet.png", pixels)


def test_undecoded_images_equal_decoded_ones(tmp_path):
    from facemix_jax.data import archives, files

    rng = np.random.default_rng(0)
    names = tuple(f"{i}.png" for i in range(4))
    for name in names:
        Image.fromarray(rng.integers(0, 255, (50, 40, 3), np.uint8)).save(tmp_path / name)
    made = files.FileSet(
        name="made",
        file_names=names,
        images=archives.open_images(tmp_path, remedy=""),
        attribute_names=("a",),
        attributes=np.ones((4, 1), np.int8),
        identities=np.arange(4, dtype=np.int32),
        splits={"train": np.arange(4)},
    )
    source = sheet.Undecoded(made, (20, 16))
    cached = files.decoded(
        dataclasses.replace(made, splits={s: np.arange(4) for s in ("train", "test")}),
        (20, 16),
        cache_dirs=[tmp_path],
    )
    order = np.array([2, 0, 2])
    np.testing.assert_array_equal(source.images(order), cached.images(order))
    assert len(source) == 4
    (tmp_path / "1.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"1\.png"):
        source.images(np.array([1]))
