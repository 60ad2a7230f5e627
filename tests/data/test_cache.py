"""Decoded images on disk: built once, by one process, and never half."""

import errno
import os
import resource
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from celeba_support import COUNT, edit, expect, jpeg, load, rewrite_zip, write

from facemix_jax import _files
from facemix_jax._validate import DataError
from facemix_jax.data import cache as cache_module
from facemix_jax.data import decode


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "celeba")


def test_cache_is_built_once_and_read_again(folder, monkeypatch):
    first = load(folder).images(np.arange(COUNT))
    monkeypatch.setattr(decode, "rgb", lambda *_, **__: pytest.fail("decoded again"))
    np.testing.assert_array_equal(load(folder).images(np.arange(COUNT)), first)
    assert len(list((folder / ".facemix_cache").glob("*.npy"))) == 1


def test_a_build_says_where_and_how_large_and_a_second_reading_says_nothing(
    folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(cache_module, "_QUIET_BELOW", 1)
    room = tmp_path / "a [long] path" / ("x" * 100)
    load(folder, image_size=(1000, 500), cache_dir=str(room))
    said = capsys.readouterr().err
    megabytes = round(COUNT * 1000 * 500 * 3 / 1e6)
    assert f"Decoding {COUNT} images (once): {megabytes} MB in {room}\n" in said
    load(folder, image_size=(1000, 500), cache_dir=str(room))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b"", lambda b: b + b"x", lambda b: b"?" * len(b)]
)
def test_damaged_cache_is_rebuilt(folder, damage):
    first = load(folder).images(np.arange(COUNT))
    (path,) = (folder / ".facemix_cache").glob("*.npy")
    edit(path, damage)
    np.testing.assert_array_equal(load(folder).images(np.arange(COUNT)), first)


def test_other_images_or_sizes_get_another_cache(folder):
    load(folder)
    load(folder, image_size=(16, 16))
    rewrite_zip(folder, lambda m: m.update({"img_align_celeba/000001.jpg": jpeg(200)}))
    assert abs(int(load(folder).images(np.array([0]))[0, 5, 5, 0]) - 200) <= 4
    assert len(list((folder / ".facemix_cache").glob("*.npy"))) == 3


def test_full_disk_says_so_and_leaves_nothing(folder, tmp_path, monkeypatch):
    room = tmp_path / "cache"
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    with monkeypatch.context() as patch:
        patch.setattr(cache_module.shutil, "disk_usage", lambda _: usage)
        expect(folder, "MB free", "cache_dir", cache_dir=str(room))
    assert not list(room.iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        expect(folder, "cache_dir", cache_dir=str(room))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(room.iterdir())
    load(folder, cache_dir=str(room))  # control: with room, it works


@pytest.mark.parametrize("locks", [True, False])
def test_abandoned_parts_are_removed_before_room_is_counted(folder, monkeypatch, locks):
    load(folder)
    (path,) = (folder / ".facemix_cache").glob("*.npy")
    old, new = path.with_name(path.name + ".a.part"), path.with_name(path.name + ".b.part")
    for part in (old, new):
        part.write_bytes(b"half")
    os.utime(old, (0, 0))
    path.unlink()
    if not locks:
        flock = Mock(side_effect=OSError(errno.ENOLCK, "No locks available"))
        monkeypatch.setattr(_files.fcntl, "flock", flock)
    usage = shutil.disk_usage(folder)

    def disk_usage(place):
        used = sum(p.stat().st_size for p in Path(place).glob("*.part") if p == old or locks)
        return usage._replace(free=0 if used else usage.free)

    monkeypatch.setattr(cache_module.shutil, "disk_usage", disk_usage)
    load(folder)
    assert not old.exists()
    # Without locks another process may be writing the new one.
    assert new.exists() != locks


def test_of_several_who_want_a_cache_one_builds_it(tmp_path, monkeypatch):
    decoded = []

    def decode(i):
        decoded.append(i)
        time.sleep(0.02)
        return np.full((2, 2, 3), i, np.uint8)

    def want(name):
        return cache_module.load_or_build([tmp_path], name, (COUNT, 2, 2, 3), decode)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(want, ["x.npy"] * 4))
    for images in found:
        np.testing.assert_array_equal(images[:, 0, 0, 0], np.arange(COUNT))
    assert len(decoded) == COUNT
    # Where there are no locks, as on some network disks, it is built all the same.
    flock = Mock(side_effect=OSError(errno.ENOLCK, "No locks available"))
    monkeypatch.setattr(_files.fcntl, "flock", flock)
    assert len(want("y.npy")) == COUNT


def test_decoding_runs_only_so_far_ahead_of_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "_cores", lambda: 64)
    decoded, ahead, whole = [], [], cache_module.os.fdatasync

    def slow(descriptor):
        time.sleep(0.2)
        ahead.append(len(decoded) - os.fstat(descriptor).st_size // 48)
        return whole(descriptor)

    def decode(i):
        decoded.append(i)
        return np.zeros((4, 4, 3), np.uint8)

    monkeypatch.setattr(cache_module, "_SYNC_BYTES", 16 * 48 * 40)
    monkeypatch.setattr(cache_module.os, "fdatasync", slow)
    cache_module.load_or_build([tmp_path], "x.npy", (16 * 300, 4, 4, 3), decode)
    # 72 chunks in work, and those that are in the file's buffer.
    assert 0 < max(ahead) <= 16 * (72 + 12)


def test_cache_folder_falls_back(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    (folder / ".facemix_cache").write_text("in the way")
    assert (
        cache_module.directory(cache_module.places(folder, None))
        == tmp_path / "xdg" / "facemix_jax"
    )
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cache_dir"):
        cache_module.directory([tmp_path / "file" / "below"])


def test_without_a_home_folder_the_cache_lies_beside_the_data(tmp_path, monkeypatch):
    def homeless(uid: int):
        raise KeyError(uid)

    monkeypatch.setattr("pwd.getpwuid", homeless)
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_module.places(tmp_path, None) == [tmp_path / ".facemix_cache"]


@pytest.mark.parametrize("given", [False, True])
def test_a_finished_cache_in_a_folder_that_cannot_be_written_is_used(folder, monkeypatch, given):
    options = {"cache_dir": str(folder / ".facemix_cache")} if given else {}
    first = load(folder, **options).images(np.arange(COUNT))
    # Who runs tests may write everywhere, so that taking away permissions would not do.
    readonly = Mock(side_effect=OSError(errno.EROFS, "Read-only file system"))
    monkeypatch.setattr(cache_module.tempfile, "TemporaryFile", readonly)
    np.testing.assert_array_equal(load(folder, **options).images(np.arange(COUNT)), first)
    with pytest.raises(DataError, match="Read-only"):  # control: one that is not there
        load(folder, image_size=(16, 16), **options)
