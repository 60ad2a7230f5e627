"""An untouched data set passes; every kind of damage is found, with its name."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from facemix_jax._validate import UsageError
from facemix_jax.data import DataConfig, cache, celeba, load_source
from facemix_jax.data.check import check

COUNT = 12
NAMES = [f"{i:06d}.jpg" for i in range(1, COUNT + 1)]


def jpeg(i):
    out = io.BytesIO()
    Image.new("RGB", (44, 54), (10 + 15 * i, 200 - 15 * i, 100)).save(out, "JPEG")
    return out.getvalue()


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "celeba"
    (path / celeba.IMAGES).mkdir(parents=True)
    rows = "".join(f"{n} {1 - 2 * (i % 2)} {1 - 2 * (i // 2 % 2)}\n" for i, n in enumerate(NAMES))
    (path / celeba.ATTRIBUTES).write_text(f"{COUNT}\nMale Young\n{rows}")
    write_rows(path / celeba.IDENTITIES, [i // 2 for i in range(COUNT)])
    write_rows(path / celeba.PARTITION, [i // 4 for i in range(COUNT)])
    for i, name in enumerate(NAMES):
        (path / celeba.IMAGES / name).write_bytes(jpeg(i))
    return path


def write_rows(path, values):
    path.write_text("".join(f"{n} {v}\n" for n, v in zip(NAMES, values, strict=True)))


def config(folder, **options):
    return DataConfig(
        dataset="celeba",
        data_dir=str(folder),
        image_size=(20, 16),
        cache_dir=str(folder / "cache"),
        **options,
    )


def cached(folder):
    load_source(config(folder))
    (path,) = (folder / "cache").glob("*.npy")
    return path


def test_an_untouched_set_passes_without_remarks(folder):
    cached(folder)
    report = check(config(folder))
    assert report.images == COUNT
    assert report.problems == ()
    assert report.remarks == ()
    assert len(report.confirmed) == 3


def test_checking_changes_nothing_on_disk(folder):
    def listing():
        return {p: (p.is_file() and p.read_bytes(), p.stat().st_mtime_ns) for p in all_paths()}

    def all_paths():
        return [folder, *folder.rglob("*")]

    before = listing()
    assert check(config(folder)).problems == ()
    assert listing() == before


def test_every_damaged_image_is_found_and_only_those(folder):
    damaged = {
        NAMES[2]: b"no image",
        NAMES[5]: jpeg(5)[:-60],
        NAMES[9]: b"",
    }
    for name, content in damaged.items():
        (folder / celeba.IMAGES / name).write_bytes(content)
    report = check(config(folder))
    assert [p.name for p in report.problems] == list(damaged)
    assert {p.kind for p in report.problems} == {"image"}
    assert all(p.name in p.reason and "cannot be decoded" in p.reason for p in report.problems)


def test_damage_within_a_zip_is_found_by_its_checksum(folder):
    archive = folder / f"{celeba.IMAGES}.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for i, name in enumerate(NAMES):
            file.writestr(name, jpeg(i))
    assert check(config(folder)).problems == ()
    content = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as file:
        at = file.getinfo(NAMES[3]).header_offset + 30 + len(NAMES[3]) + 400
    content[at] ^= 1
    archive.write_bytes(content)
    (problem,) = check(config(folder)).problems
    assert problem.name == NAMES[3]
    assert "CRC" in problem.reason


def test_files_that_disagree_are_one_problem(folder):
    (folder / celeba.IMAGES / NAMES[0]).unlink()
    report = check(config(folder))
    (problem,) = report.problems
    assert problem.kind == "files"
    assert NAMES[0] in problem.reason
    assert report.images == 0


@pytest.mark.parametrize("place", [0, 90, 128, 500, -1])
def test_a_flipped_bit_of_the_cache_is_found(folder, place):
    path = cached(folder)
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)
    (problem,) = check(config(folder)).problems
    assert problem.kind == "cache"
    assert problem.name == path.name


def test_a_cut_cache_is_found_and_an_old_one_is_not_verifiable(folder):
    path = cached(folder)
    cache.checksum_file(path).unlink()
    report = check(config(folder))
    assert report.problems == ()
    (remark,) = report.remarks
    assert "not verifiable" in remark
    assert path.name in remark
    path.write_bytes(path.read_bytes()[:-1])
    cached(folder)  # rebuilt, with a checksum
    assert check(config(folder)).remarks == ()
    path.write_bytes(path.read_bytes()[:-1])
    assert [p.kind for p in check(config(folder)).problems] == ["cache"]


def test_caches_of_all_sizes_are_checked_and_others_are_not(folder):
    path = cached(folder)
    other = path.with_name(path.name.replace("20x16", "40x32"))
    other.write_bytes(b"damaged")
    cache.checksum_file(other).write_text("0" * 64)
    path.with_name("celeba-0123456789abcdef-20x16.npy").write_bytes(b"of other files")
    assert [p.name for p in check(config(folder)).problems] == [other.name]


def test_bytes_changed_within_a_jpeg_without_a_checksum_are_not_found(folder):
    # What the documentation says; with a checksum they are found, as above.
    path = folder / celeba.IMAGES / NAMES[6]
    pixels = np.random.default_rng(0).integers(0, 256, (54, 44, 3), np.uint8)
    Image.fromarray(pixels).save(path, "JPEG")
    good = path.read_bytes()
    half = len(good) // 2
    path.write_bytes(good[:half] + bytes(len(good) - half))
    assert check(config(folder)).problems == ()


def test_identical_images_are_a_remark_with_their_names(folder):
    (folder / celeba.IMAGES / NAMES[7]).write_bytes(jpeg(0))
    (folder / celeba.IMAGES / NAMES[3]).write_bytes(jpeg(2))  # the same person and split
    report = check(config(folder))
    assert report.problems == ()
    (remark,) = report.remarks
    assert f"{NAMES[0]} = {NAMES[7]}" in remark
    assert f"{NAMES[2]} = {NAMES[3]}" in remark
    assert "byte by byte: 2 (" in remark
    assert remark.endswith("in different splits: 1; as different people: 1.")


def test_people_in_two_splits_are_a_remark(folder):
    write_rows(folder / celeba.IDENTITIES, [i // 3 for i in range(COUNT)])
    report = check(config(folder))
    assert report.problems == ()
    assert report.remarks == (
        "People both in train and in valid: 1 (1).",
        "People both in valid and in test: 1 (2).",
    )


def test_constant_attributes_are_a_remark(folder):
    text = (folder / celeba.ATTRIBUTES).read_text()
    head, rows = text.split("Young\n")
    (folder / celeba.ATTRIBUTES).write_text(f"{head}Young\n" + rows.replace(" -1\n", " 1\n"))
    (remark,) = check(config(folder)).remarks
    assert remark.endswith("1 (Young).")


def test_drawn_faces_have_nothing_to_check():
    with pytest.raises(UsageError, match="no files to check"):
        check(DataConfig())


def test_training_reads_the_cache_without_its_checksum(folder, monkeypatch):
    cached(folder)
    monkeypatch.setattr(cache, "sha256", lambda _: pytest.fail("computed"))
    assert len(load_source(config(folder)).images(np.arange(COUNT))) == COUNT


def test_the_checksum_is_that_of_sha256sum(folder):
    path = cached(folder)
    digest, name = cache.checksum_file(path).read_text().split()
    assert name == path.name
    assert len(digest) == 64
    assert {p.name for p in path.parent.iterdir()} == {path.name, f"{path.name}.sha256"}


def test_a_damaged_prepared_set_is_found(folder, tmp_path):
    prepare = pytest.importorskip("facemix_jax.data.prepare")
    pytest.importorskip("tensorflow_datasets")
    written = prepare.prepare(
        config(folder), tmp_path / "out", store_size=None, show_progress=False
    )
    whole = DataConfig(dataset="prepared", data_dir=str(written), cache_dir=str(tmp_path / "c"))
    assert check(whole).problems == ()
    shard = max(written.glob("*array_record*"), key=lambda p: p.stat().st_size)
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    found = check(whole).problems
    assert "checksum" in {p.kind for p in found}
    assert any(shard.name in p.reason for p in found)
    shard.write_bytes(content[:-1])
    assert {"files", "checksum"} <= {p.kind for p in check(whole).problems}
