"""The official CelebA layout: what is read, and what every kind of damage says."""

import io
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from celeba_support import COUNT, edit, expect, jpeg, load, rewrite_zip, shade, write
from PIL import Image

from facemix_jax._validate import UsageError
from facemix_jax.data import DataConfig, celeba, decode, eval_batches, load_source
from facemix_jax.data.source import take

REAL = (
    Path(os.environ.get("FACEMIX_DATA", Path(__file__).parents[3] / "shared" / "data")) / "celeba"
)


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "celeba")


def test_labels_and_pixels_are_those_of_the_files(folder):
    source = load(folder)
    assert len(source) == COUNT
    assert source.attribute_names == ("Bald", "Male", "Young")
    rows = (folder / celeba.ATTRIBUTES).read_text().split("\n")[2:-1]
    expected = [[int(v == "1") for v in row.split()[1:]] for row in rows]
    np.testing.assert_array_equal(source.attributes, expected)
    assert source.attributes.dtype == np.int8
    np.testing.assert_array_equal(source.identities, 100 + np.arange(COUNT) // 2)
    for i, split in enumerate(("train", "valid", "test")):
        np.testing.assert_array_equal(source.splits[split], np.arange(4 * i, 4 * i + 4))
    images = source.images(np.array([3, 0, 3]))
    assert images.shape == (3, 20, 16, 3)
    assert images.dtype == np.uint8
    assert np.abs(images[:, 5, 5, 0].astype(int) - [shade(3), shade(0), shade(3)]).max() <= 4


def test_unpacked_folder_equals_zip(folder):
    from_zip = load(folder).images(np.arange(COUNT))
    with zipfile.ZipFile(folder / "img_align_celeba.zip") as archive:
        archive.extractall(folder)
    (folder / "img_align_celeba.zip").unlink()
    np.testing.assert_array_equal(load(folder).images(np.arange(COUNT)), from_zip)


@pytest.mark.parametrize("name", [celeba.ATTRIBUTES, celeba.IDENTITIES, celeba.PARTITION])
def test_bom_and_crlf_change_nothing(folder, name):
    plain = load(folder)
    edit(folder / name, lambda b: b"\xef\xbb\xbf" + b.replace(b"\n", b"\r\n"))
    marked = load(folder)
    np.testing.assert_array_equal(marked.attributes, plain.attributes)
    np.testing.assert_array_equal(marked.identities, plain.identities)
    assert marked.attribute_names == plain.attribute_names
    assert marked.file_names == plain.file_names


def test_rows_in_another_order_are_matched_by_name(folder):
    plain = load(folder)
    edit(folder / celeba.IDENTITIES, lambda b: b"\n".join(b.split(b"\n")[::-1]))
    np.testing.assert_array_equal(load(folder).identities, plain.identities)


@pytest.mark.parametrize(
    "name",
    [celeba.ATTRIBUTES, celeba.IDENTITIES, celeba.PARTITION, "img_align_celeba.zip"],
)
def test_missing_file_is_named_with_its_source(folder, name):
    (folder / name).unlink()
    expect(folder, name, celeba.HOME)


def test_missing_folder(tmp_path):
    expect(tmp_path / "nowhere", "nowhere", "does not exist")


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        (celeba.ATTRIBUTES, lambda b: b.replace(b"12\n", b"13\n", 1), ("13", "12 rows")),
        (celeba.ATTRIBUTES, lambda b: b.replace(b"12\n", b"", 1), ("line 1", "number of images")),
        (celeba.ATTRIBUTES, lambda b: b"9" * 5000 + b[2:], ("line 1", "number of images")),
        (celeba.ATTRIBUTES, lambda b: b.replace(b"Male", b"Bald"), ("occurs twice",)),
        (celeba.ATTRIBUTES, lambda b: b[:-4] + b"\n", ("line 14", "3 columns where 4")),
        (celeba.ATTRIBUTES, lambda b: b[:-3] + b"0\n", ("line 14", "-1 or 1")),
        (celeba.ATTRIBUTES, lambda b: b[:-3] + b"x\n", ("line 14", "-1 or 1")),
        (celeba.ATTRIBUTES, lambda b: b"", ("0 lines",)),
        (celeba.ATTRIBUTES, lambda b: b"\xff\xfe\x00" + b, ("not a text file",)),
        (celeba.ATTRIBUTES, lambda b: b.replace(b"000002", b"000001"), ("more than once",)),
        (celeba.ATTRIBUTES, lambda b: b.replace(b"000002", b"000099"), ("000002", "000099")),
        (celeba.IDENTITIES, lambda b: b[: b.rindex(b"000012")], ("000012.jpg", "1 only in")),
        (celeba.IDENTITIES, lambda b: b.replace(b" 100", b" -1", 1), ("line 1", "number from 0")),
        (celeba.IDENTITIES, lambda b: b.replace(b" 100", b" 2147483648", 1), ("line 1",)),
        (celeba.IDENTITIES, lambda b: b.replace(b" 100", b"", 1), ("1 columns where 2",)),
        (celeba.PARTITION, lambda b: b[:-2] + b"3\n", ("line 12", "0, 1 or 2")),
        (celeba.PARTITION, lambda b: b + b"000077.jpg 1\n", ("000077.jpg",)),
        (celeba.PARTITION, lambda b: b"", ("no rows",)),
    ],
)  # fmt: skip
def test_label_errors_are_found_before_decoding(folder, name, change, words, monkeypatch):
    monkeypatch.setattr(decode, "rgb", lambda *_, **__: pytest.fail("decoded"))
    edit(folder / name, change)
    expect(folder, name, *words)


def test_images_and_labels_must_agree(folder):
    rewrite_zip(folder, lambda m: m.pop("img_align_celeba/000005.jpg"))
    expect(folder, "000005.jpg", "1 only in list_attr_celeba.txt")


def test_unlabelled_image_is_refused(folder):
    rewrite_zip(folder, lambda m: m.update({"img_align_celeba/000500.jpg": jpeg(1)}))
    expect(folder, "000500.jpg", "only in img_align_celeba.zip")


def test_duplicate_and_foreign_members(folder):
    rewrite_zip(folder, lambda m: m.update({"__MACOSX/x/000001.jpg": b"", "read.me": b"hello"}))
    assert len(load(folder)) == COUNT
    shutil.rmtree(folder / ".facemix_cache")
    rewrite_zip(folder, lambda m: m.update({"../000001.jpg": jpeg(3)}))
    expect(folder, "000001.jpg more than once")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (jpeg(9)[:-40], ("cannot be decoded",)),
        (jpeg(9)[:200], ("cannot be decoded",)),
        (b"", ("0 bytes", "cannot be decoded")),
        (b"not an image at all", ("cannot be decoded", "neither JPEG nor PNG")),
        (jpeg(9, mode="I;16", kind="PNG"), ("8 bits",)),
        (jpeg(9, size=(8000, 7000), mode="L", kind="PNG"), ("decompression bombs", "8000 x 7000")),
        (jpeg(1, size=(20000, 10000), mode="1", kind="PNG"), ("decompression bombs",)),
    ],
)
def test_bad_image_is_named_and_no_cache_remains(folder, data, words):
    rewrite_zip(folder, lambda m: m.update({"img_align_celeba/000007.jpg": data}))
    expect(folder, "000007.jpg", *words)


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_eight_bit_modes_become_rgb(mode):
    colour = (10, 20, 30, 40)[: len(mode)] if mode != "L" else 9
    out = io.BytesIO()
    Image.new(mode, (30, 40), colour).save(out, "JPEG")
    found = decode.rgb(out.getvalue(), (20, 16), name="x")
    assert found.shape == (20, 16, 3)
    shown = Image.new(mode, (1, 1), colour).convert("RGB").getpixel((0, 0))
    assert np.abs(found.astype(int) - shown).max() <= 4


def png(picture, **options):
    out = io.BytesIO()
    picture.save(out, "PNG", **options)
    return out.getvalue()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_what_is_transparent_is_white_and_hides_nothing(mode):
    grey = np.full((24, 32, 4), (90, 90, 90, 255), np.uint8)
    grey[:, 16:] = (200, 200, 200, 0)
    options = {}
    if mode == "RGB":  # a colour that counts as transparent
        options["transparency"] = (200, 200, 200)
    if mode == "P":
        picture = Image.fromarray((grey[..., 3] == 0).astype(np.uint8), "L").convert("P")
        picture.putpalette([90, 90, 90, 200, 200, 200])
        options["transparency"] = 1
    else:
        picture = Image.fromarray(grey).convert(mode)
    found = decode.rgb(png(picture, **options), (24, 32), name="x")
    assert (found[:, :16] == 90).all()
    assert (found[:, 16:] == 255).all()


def test_half_transparent_is_half_white_and_opaque_is_as_it_was():
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 4), np.uint8)
    pixels[..., 3] = 255
    found = decode.rgb(png(Image.fromarray(pixels)), (24, 32), name="x")
    np.testing.assert_array_equal(found, pixels[..., :3])
    pixels[..., 3] = 128
    found = decode.rgb(png(Image.fromarray(pixels)), (24, 32), name="x")
    assert np.abs(found - (pixels[..., :3] * 128.0 + 255 * 127) / 255).max() <= 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_photos_are_turned_as_their_camera_says(kind):
    picture = Image.new("L", (32, 24))
    picture.paste(255, (0, 0, 20, 8))
    upright = np.asarray(picture)
    turned = [upright, upright[:, ::-1], upright[::-1, ::-1], upright[::-1]]
    for orientation, stored in enumerate([*turned, *(t.T for t in turned)], 1):
        exif = Image.Exif()
        exif[0x112] = orientation
        out = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(stored)).save(out, kind, exif=exif, quality=95)
        found = decode.rgb(out.getvalue(), (24, 32), name="x")[..., 0]
        assert np.abs(found.astype(int) - upright).max() < 60, orientation


def test_odd_metadata_are_no_damage():
    for exif in (b"MM", b"MM\0*\0\0\0\x08\0\1\1\x12\0\2\0\0\0\1\xff\0\0\0", b"MM\0*\0\0"):
        out = io.BytesIO()
        Image.new("L", (32, 24), 7).save(out, "JPEG", exif=exif)
        assert decode.rgb(out.getvalue(), (24, 32), name="x").shape == (24, 32, 3)


def test_zip_bomb_is_refused_unread(folder, monkeypatch):
    monkeypatch.setattr(decode, "MAX_BYTES", 500)
    expect(folder, "000001.jpg", "bytes unpacked")


def test_damaged_archives(folder):
    path = folder / "img_align_celeba.zip"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    expect(folder, "not a complete zip file")
    middle = whole.index(b"000006.jpg") + 300
    path.write_bytes(
        whole[:middle] + bytes(b ^ 255 for b in whole[middle : middle + 8]) + whole[middle + 8 :]
    )
    expect(folder, "000006.jpg", "cannot be read")


def test_resize_is_antialiased():
    stripes = np.zeros((218, 178, 3), np.uint8)
    stripes[:, ::2] = 255
    out = io.BytesIO()
    Image.fromarray(stripes).save(out, "PNG")
    small = decode.rgb(out.getvalue(), (109, 89), name="x")[5:-5, 5:-5]
    assert np.abs(small.astype(int) - 127).max() < 16
    # Control: plain subsampling sees only black or only white.
    assert np.abs(stripes[::2, ::2].astype(int) - 127).min() > 100


def test_the_images_of_a_count_are_drawn_from_the_whole_split():
    """Files often lie sorted by person or place, so the first ones would be alike."""
    rows = np.arange(100, 120)
    np.testing.assert_array_equal(take(rows, 5, option="n"), [102, 104, 106, 113, 119])
    np.testing.assert_array_equal(take(rows, None, option="n"), rows)


def test_example_counts(folder):
    small = load(folder, train_examples=2, test_examples=3)
    larger = load(folder, train_examples=3)
    assert set(small.splits["train"]) < set(larger.splits["train"])
    assert [len(small.splits[s]) for s in ("train", "valid", "test")] == [2, 4, 3]
    with pytest.raises(UsageError, match="train_examples is 5, but the split has 4"):
        load(folder, train_examples=5)


def test_config_errors():
    with pytest.raises(UsageError, match="data_dir"):
        DataConfig(dataset="celeba")
    with pytest.raises(UsageError, match="Did you mean dataset 'celeba'"):
        DataConfig(data_dir="somewhere")
    with pytest.raises(UsageError, match="Did you mean 'celeba'"):
        DataConfig(dataset="celebA")
    with pytest.raises(UsageError, match="image_height"):
        DataConfig(image_size=(4, 89))
    with pytest.raises(UsageError, match="train_examples"):
        DataConfig(train_examples=0)


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real CelebA files at {REAL}")
def test_real_labels_equal_their_files(tmp_path):
    names, attribute_names, attributes = celeba.read_attributes(REAL / celeba.ATTRIBUTES)
    table = np.genfromtxt(REAL / celeba.ATTRIBUTES, skip_header=2, dtype=np.int8)[:, 1:]
    np.testing.assert_array_equal(attributes, table > 0)
    assert len(attribute_names) == 40
    identities = celeba.read_identities(REAL / celeba.IDENTITIES, names)
    assert [f"{n} {i}" for n, i in zip(names, identities, strict=True)] == (
        (REAL / celeba.IDENTITIES).read_text().split("\n")[:-1]
    )
    partition = celeba.read_partition(REAL / celeba.PARTITION, names)
    # The official partition separates people.
    people = [set(identities[partition == i].tolist()) for i in range(3)]
    assert not people[0] & people[1]
    assert not people[0] & people[2]
    assert not people[1] & people[2]


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real CelebA files at {REAL}")
def test_real_images_equal_a_bare_pillow_loop(tmp_path):
    config = DataConfig(dataset="celeba", data_dir=str(REAL), cache_dir=str(tmp_path))
    source = load_source(config)
    seen = 0
    with zipfile.ZipFile(REAL / "img_align_celeba.zip") as archive:
        for split in source.splits:
            for batch, start in zip(
                eval_batches(source, split=split, batch_size=100),
                range(0, 10**6, 100),
                strict=False,
            ):
                rows = source.splits[split][start : start + 100]
                for image, row in zip(batch.images[batch.mask], rows, strict=True):
                    data = archive.read(f"img_align_celeba/{source.file_names[row]}")
                    picture = Image.open(io.BytesIO(data)).convert("RGB")
                    picture = picture.resize((89, 109), Image.Resampling.BICUBIC)
                    assert np.array_equal(image, np.asarray(picture))
                    seen += 1
    assert seen == len(source) == 20_000


def test_options_belong_to_tables():
    for name in ("labels", "columns"):
        with pytest.raises(UsageError, match=f"{name} is for CSV files"):
            DataConfig(dataset="celeba", data_dir="x", **{name: "y"})
        with pytest.raises(UsageError, match=f"{name} is for CSV files"):
            DataConfig(**{name: "y"})
