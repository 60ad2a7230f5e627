"""Preparation: whole or nothing, resumable, checked; and reading back what was prepared."""

import errno
import json
import resource
import shutil
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from layouts import write_celeba

from facemix_jax import _files
from facemix_jax._validate import DataError, UsageError
from facemix_jax.data import DataConfig, celeba, eval_batches, load_source, prepare, prepared

COUNT = 12
SIZE = (24, 20)
SHARDS = {f"celeba-{s}.array_record-00000-of-00001" for s in ("train", "validation", "test")}


@pytest.fixture
def folder(tmp_path):
    """Official CelebA files: 12 noisy pictures, 3 attributes, splits of 4."""
    names = ("Male", "Bald", "Young")
    return write_celeba(tmp_path / "celeba", names, [i // 4 for i in range(COUNT)])


def run(folder, output, store_size=SIZE, show_progress=False):
    config = DataConfig(dataset="celeba", data_dir=str(folder))
    return prepare.prepare(config, output, store_size=store_size, show_progress=show_progress)


def contents(path):
    return {p.name: p.read_bytes() for p in sorted(path.iterdir())}


def read_all(path):
    files = prepared.read(path)
    return [files.images.read(name) for name in files.file_names]


def assert_same_labels(found, expected):
    assert found.file_names == expected.file_names
    assert found.attribute_names == expected.attribute_names
    np.testing.assert_array_equal(found.attributes, expected.attributes)
    np.testing.assert_array_equal(found.identities, expected.identities)
    assert found.attributes.dtype == np.int8
    assert found.identities.dtype == np.int32
    for split, rows in expected.splits.items():
        np.testing.assert_array_equal(found.splits[split], rows)


@pytest.mark.parametrize("sidecar", [True, False])
def test_native_labels_and_bytes_equal_the_official_files(folder, tmp_path, sidecar):
    path = run(folder, tmp_path / "out", store_size=None)
    if not sidecar:  # as plain TFDS leaves it
        (path / prepared.LABELS).unlink()
        (path / prepared.CHECKSUMS).unlink()
    expected, found = celeba.read(folder), prepared.read(tmp_path / "out")
    assert_same_labels(found, expected)
    for name in expected.file_names:
        assert found.images.read(name) == expected.images.read(name)
        assert found.images.sizes[name] == expected.images.sizes[name]
    assert_same_labels(prepared.read(path), expected)
    # Control: the comparison notices one wrong label.
    expected.attributes[3, 1] ^= 1
    with pytest.raises(AssertionError):
        assert_same_labels(found, expected)


def test_resized_images_are_close_and_load_as_a_source(folder, tmp_path):
    run(folder, tmp_path / "out")
    options = {"image_size": SIZE, "cache_dir": str(tmp_path / "cache")}
    direct = load_source(DataConfig(dataset="celeba", data_dir=str(folder), **options))
    stored = load_source(DataConfig(dataset="prepared", data_dir=str(tmp_path / "out"), **options))
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 2
    rows = np.arange(COUNT)
    gap = direct.images(rows).astype(int) - stored.images(rows)
    assert np.abs(gap).mean() < 3
    # Control: another order of the images is far off.
    assert np.abs(direct.images(rows[::-1]).astype(int) - stored.images(rows)).mean() > 20
    batches = [list(eval_batches(s, split="test", batch_size=4)) for s in (direct, stored)]
    np.testing.assert_array_equal(batches[0][0].attributes, batches[1][0].attributes)


def test_a_finished_data_set_is_left_alone(folder, tmp_path, monkeypatch, capsys):
    path = run(folder, tmp_path / "out")
    assert path == tmp_path / "out" / "celeba" / "24x20-3_attributes" / "1.0.0"
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["celeba"]
    before = {p: p.stat().st_mtime_ns for p in path.rglob("*")}
    monkeypatch.setattr(prepare, "_write_chunk", lambda *_: pytest.fail("resized again"))
    monkeypatch.setattr(prepare, "_write_shards", lambda *_: pytest.fail("written again"))
    assert run(folder, tmp_path / "out", show_progress=True) == path
    assert {p: p.stat().st_mtime_ns for p in path.rglob("*")} == before
    assert "nothing to do" in capsys.readouterr().err


def test_other_files_are_not_mixed_in(folder, tmp_path):
    run(folder, tmp_path / "out")
    labels = folder / celeba.IDENTITIES
    labels.write_text(labels.read_text().replace(" 105", " 777"))
    with pytest.raises(DataError, match=r"made from other files.*another output"):
        run(folder, tmp_path / "out")


KILLED = """
import os, sys
from pathlib import Path
from facemix_jax.data import DataConfig, prepare

prepare._CHUNK = 3
calls = []
real_chunk, real_save = prepare._write_chunk, prepare.prepared.save_labels

def chunk(path, *rest):
    if sys.argv[3] == "chunk" and len(calls) == 2:
        path.with_name(path.name + ".part").write_bytes(b"half")
        os._exit(9)
    calls.append(path.name)
    real_chunk(path, *rest)

prepare._write_chunk = chunk
if sys.argv[3] == "shards":
    prepare.prepared.save_labels = lambda *_: os._exit(9)
config = DataConfig(dataset="celeba", data_dir=sys.argv[1])
prepare.prepare(config, Path(sys.argv[2]), store_size=(24, 20), show_progress=False)
print(" ".join(calls))
"""


@pytest.mark.parametrize(("where", "redone"), [("chunk", "00002.zip 00003.zip"), ("shards", "")])
def test_killed_run_is_taken_up(folder, tmp_path, where, redone):
    def start(when):
        command = [sys.executable, "-c", KILLED, str(folder), str(tmp_path / "out"), when]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert start(where).returncode == 9
    assert [p.name[:8] for p in (tmp_path / "out").iterdir()] == [".partial"]
    with pytest.raises(DataError, match="no prepared data set"):
        prepared.read(tmp_path / "out")
    second = start("never")
    assert second.returncode == 0, second.stderr
    assert second.stdout.strip() == redone
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["celeba"]
    # Chunks of any size give the same images and labels as a run in one go. The shards may
    # differ: protobuf writes the features of a record in an order that changes with the process.
    (path,) = (tmp_path / "out").glob("celeba/*/*")
    whole = run(folder, tmp_path / "whole")
    assert read_all(path) == read_all(whole)
    varying = {*SHARDS, prepared.CHECKSUMS}
    assert {n: d for n, d in contents(path).items() if n not in varying} == {
        n: d for n, d in contents(whole).items() if n not in varying
    }


def test_damaged_chunk_is_made_anew(folder, tmp_path, monkeypatch):
    whole = run(folder, tmp_path / "whole")
    monkeypatch.setattr(prepare, "_CHUNK", 3)

    def stop(*_):
        raise DataError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(prepare, "_write_shards", stop)
        with pytest.raises(DataError, match="stopped"):
            run(folder, tmp_path / "out")
    (work,) = (tmp_path / "out").iterdir()
    cut, changed = work / "00000.zip", work / "00001.zip"
    cut.write_bytes(cut.read_bytes()[:-20])
    data = changed.read_bytes()
    changed.write_bytes(data[:100] + bytes([data[100] ^ 255]) + data[101:])
    with pytest.raises(DataError, match="Run the command again"):
        run(folder, tmp_path / "out")
    assert contents(run(folder, tmp_path / "out")) == contents(whole)


@pytest.mark.parametrize("size", [SIZE, None])
def test_bad_image_is_named_and_nothing_appears(folder, tmp_path, size):
    with zipfile.ZipFile(folder / "img_align_celeba.zip") as archive:
        members = {n: archive.read(n) for n in archive.namelist()}
    members["img_align_celeba/000007.jpg"] = members["img_align_celeba/000007.jpg"][:-300]
    with zipfile.ZipFile(folder / "img_align_celeba.zip", "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    with pytest.raises(DataError, match=r"000007\.jpg.*cannot be decoded"):
        run(folder, tmp_path / "out", store_size=size)
    assert not list((tmp_path / "out").iterdir())


def test_full_disk(folder, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    with monkeypatch.context() as patch:
        patch.setattr(prepare.shutil, "disk_usage", lambda _: usage)
        for size in (SIZE, None):
            with pytest.raises(DataError, match=r"needs about .* MB, but .* 0\.0 MB free"):
                run(folder, tmp_path / "out", store_size=size)
    assert not list((tmp_path / "out").iterdir())

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(prepare.prepared, "save_labels", full)
        with pytest.raises(DataError, match=r"is full .* goes on where it stopped"):
            run(folder, tmp_path / "out")
    (work,) = (tmp_path / "out").iterdir()
    assert sorted(p.name for p in work.iterdir()) == ["00000.zip", "lock"]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in (SIZE, None):
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        try:
            with pytest.raises(DataError, match=r"cannot be written.*File too large"):
                run(folder, tmp_path / "out", store_size=size)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.name[:8] for p in (tmp_path / "out").iterdir()] == [".partial"]
    run(folder, tmp_path / "out")  # control: with room, it works


def test_output_that_cannot_be_written(folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        run(folder, tmp_path / "file" / "out")


def test_second_run_at_the_same_time_is_refused(folder, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    with (
        prepare._lock(work),
        pytest.raises(DataError, match="Another run"),
        prepare._lock(work),
    ):
        pass
    with prepare._lock(work) as alone:  # control: let go
        assert alone


@pytest.mark.parametrize("size", [SIZE, None])
def test_disks_without_locks_are_written(folder, tmp_path, monkeypatch, size):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    save = prepared.save_labels

    def meanwhile(*arguments):
        """Another run comes and goes, which does not notice this one and takes nothing from it."""
        (work,) = (tmp_path / "out").glob(".partial*")
        with prepare._lock(work) as alone, prepare._tidied(work, alone=alone) as scratch:
            assert not alone
            assert not any(scratch.iterdir())
        save(*arguments)

    monkeypatch.setattr(prepare.prepared, "save_labels", meanwhile)
    monkeypatch.setattr(_files.fcntl, "flock", none)
    path = run(folder, tmp_path / "out", store_size=size)
    assert prepare.verify(path) == []
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["celeba"]


def test_data_without_files_are_refused(tmp_path):
    with pytest.raises(UsageError, match="cannot be prepared"):
        prepare.prepare(DataConfig(), tmp_path, store_size=None)


def test_verify_and_read_find_damage(folder, tmp_path):
    path = run(folder, tmp_path / "out")
    whole = contents(path)
    assert {*SHARDS, prepared.LABELS, prepared.CHECKSUMS} < set(whole)
    assert prepare.verify(tmp_path / "out") == []
    recorded = json.loads(whole[prepared.CHECKSUMS])["files"]
    assert set(recorded) == set(whole) - {prepared.CHECKSUMS}
    for name in sorted(recorded):
        (path / name).write_bytes(whole[name][:-1])
        assert [name in problem for problem in prepare.verify(path)] == [True]
        with pytest.raises(DataError, match="bytes"):
            prepared.read(path)
        middle = len(whole[name]) // 2
        flipped = bytes([whole[name][middle] ^ 1])
        (path / name).write_bytes(whole[name][:middle] + flipped + whole[name][middle + 1 :])
        assert [name in problem for problem in prepare.verify(path)] == [True]
        (path / name).unlink()
        if name != prepared.INFO:
            assert prepare.verify(path) == [f"{name} is missing."]
        with pytest.raises(DataError):
            prepared.read(path)
        (path / name).write_bytes(whole[name])
    (path / "new.txt").write_text("")
    assert prepare.verify(path) == ["new.txt was added after preparation."]
    (path / "new.txt").unlink()
    assert prepare.verify(path) == []


@pytest.mark.parametrize("recorded", [True, False])
def test_changed_shard_is_noticed_when_it_is_read(folder, tmp_path, recorded):
    path = run(folder, tmp_path / "out", store_size=None)
    if not recorded:
        (path / prepared.LABELS).unlink()
        (path / prepared.CHECKSUMS).unlink()
    for shard in sorted(SHARDS):
        whole = (path / shard).read_bytes()
        # Somewhere inside the pictures, and the same length.
        at = whole.index(b"\xff\xd8\xff") + 400
        (path / shard).write_bytes(whole[:at] + bytes([whole[at] ^ 64]) + whole[at + 1 :])
        with pytest.raises(DataError, match="cannot be read"):
            read_all(path)
        if not recorded:
            (path / shard).write_bytes(whole[: len(whole) // 2])
            with pytest.raises(DataError):
                prepared.read(path)
        (path / shard).write_bytes(whole)
    assert len(read_all(path)) == COUNT


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"files": 3}', '{"files": {"x": {}}}', '{"files": {"../x": 1}}']
)
def test_damaged_checksums(folder, tmp_path, text):
    path = run(folder, tmp_path / "out")
    (path / prepared.CHECKSUMS).write_text(text)
    with pytest.raises(DataError, match=r"checksums\.json"):
        prepared.read(path)


def test_checksums_do_not_lead_outside(folder, tmp_path):
    path = run(folder, tmp_path / "out")
    entry = {"../../x": {"sha256": "0", "bytes": 1}}
    (path / prepared.CHECKSUMS).write_text(json.dumps({"files": entry}))
    with pytest.raises(DataError, match="outside"):
        prepare.verify(path)


def test_labels_of_other_shards(folder, tmp_path):
    path = run(folder, tmp_path / "out")
    (path / prepared.CHECKSUMS).unlink()
    labels = prepared._load_labels(path, {})
    for change, words in (
        ({"split_sizes": {"train": 3, "valid": 5, "test": 4}}, "count different"),
        ({"attribute_names": ("Male", "Bald", "Old")}, "other attributes"),
        ({"attributes": labels.attributes.astype(np.int64)}, "int64"),
        ({"identities": labels.identities[:3]}, "identities"),
        ({"crcs": labels.crcs[::-1]}, "not the one"),
        ({"file_names": labels.file_names[:1] * COUNT}, "occurs twice"),
    ):
        prepared.save_labels(path / prepared.LABELS, prepared.dataclasses.replace(labels, **change))
        with pytest.raises(DataError, match=words):
            read_all(path)


def test_threads_read_the_same_bytes(folder, tmp_path):
    run(folder, tmp_path / "out", store_size=None)
    files, official = prepared.read(tmp_path / "out"), celeba.read(folder)
    names = [official.file_names[i] for i in np.random.default_rng(0).integers(0, COUNT, 400)]
    with ThreadPoolExecutor(8) as executor:
        found = list(executor.map(files.images.read, names))
    assert found == [official.images.read(name) for name in names]


def test_where_there_is_not_one_data_set(folder, tmp_path):
    with pytest.raises(DataError, match="no prepared data set"):
        prepared.read(folder)
    with pytest.raises(DataError, match="cannot be listed"):
        prepared.read(tmp_path / "nowhere")
    run(folder, tmp_path / "out")
    run(folder, tmp_path / "out", store_size=None)
    with pytest.raises(DataError, match=r"2 prepared data sets .*24x20.*native"):
        prepared.read(tmp_path / "out")
    (tmp_path / "file.json").mkdir()
    (tmp_path / "file.json" / prepared.INFO).write_text("{")
    with pytest.raises(DataError, match="not a TFDS data set"):
        prepared.read(tmp_path / "file.json")


@pytest.mark.slow
def test_real_faces_equal_their_label_file(real_data, tmp_path):
    path = run(real_data / "celeba", tmp_path, store_size=(109, 89))
    expected, found = celeba.read(real_data / "celeba"), prepared.read(path)
    assert_same_labels(found, expected)
    assert prepare.verify(path) == []
