"""The root secret: it shows itself to nobody, and its file is its owner's alone."""

import copy
import errno
import json
import logging
import os
import pickle
import re
import traceback

import jax.numpy as jnp
import numpy as np
import pytest

from facemix_jax import keys
from facemix_jax._validate import UsageError

ROOT = keys.RootSecret(bytes(range(32)))


def drawn(root):
    """The bytes of a key of this root."""
    key = keys.fresh_mix_key(root, bytes(16), 3, 8, shuffle=True)
    return np.asarray(key.matrix).tobytes() + np.asarray(key.order).tobytes()


def test_a_secret_shows_nothing_but_its_fingerprint(caplog):
    secret = bytes(range(100, 132))
    root = keys.RootSecret(secret)
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("any").debug("%s %r %s", root, root, [root])
    shown = f"{root} {root!r} {[root]} {format(root)} {caplog.text}"
    assert root.fingerprint in shown
    for form in (secret.hex(), str(secret)[2:-1], str(list(secret)), secret.decode("latin1")):
        assert form not in shown
    assert not hasattr(root, "__dict__")
    assert root.fingerprint not in secret.hex()
    assert re.fullmatch("[0-9a-f]{16}", root.fingerprint)
    assert root.fingerprint != ROOT.fingerprint


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_secret_is_not_pickled(protocol):
    with pytest.raises(TypeError, match="neither pickled nor copied"):
        pickle.dumps({"inside": ROOT}, protocol)


def test_a_secret_gets_into_no_copy_json_or_checkpoint():
    for attempt in (copy.copy, copy.deepcopy, json.dumps, jnp.asarray, ROOT.__class__.__getstate__):
        with pytest.raises(TypeError):
            attempt(ROOT)


def test_a_secret_of_another_length_is_refused_without_showing_it():
    with pytest.raises(UsageError, match="31 were given") as caught:
        keys.RootSecret(b"s3cret-" * 4 + b"abc")
    assert "s3cret" not in str(caught.value)


# Its file.


@pytest.fixture
def path(tmp_path):
    return tmp_path / "config" / "facemix" / "key"


def mode(path):
    return path.stat().st_mode & 0o7777


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o277])
def test_a_new_file_is_the_owners_alone(path, umask):
    path.parent.mkdir(parents=True)
    before = os.umask(umask)
    try:
        root = keys.create(path)
    finally:
        os.umask(before)
    assert mode(path) == 0o600
    assert path.stat().st_size == 32
    assert os.listdir(path.parent) == ["key"]
    assert keys.load(path).fingerprint == root.fingerprint
    assert drawn(keys.load(path)) == drawn(root)


def test_its_folder_is_made_for_the_owner_alone(path):
    keys.create(path)
    assert mode(path.parent) == 0o700


def test_no_two_secrets_are_equal(tmp_path):
    assert len({keys.create(tmp_path / str(i)).fingerprint for i in range(20)}) == 20


def test_an_existing_file_is_left_alone(path):
    keys.create(path)
    before = path.read_bytes()
    with pytest.raises(UsageError, match="exists and is left as it is"):
        keys.create(path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["key"]


@pytest.mark.parametrize("content", [b"a thesis", bytes(33)])
def test_no_one_is_told_to_rotate_a_file_that_is_no_secret(path, content):
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"left as it is.*no root secret.*another path") as caught:
        keys.create(path)
    assert "key rotate" not in str(caught.value)
    assert path.read_bytes() == content


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(keys.KeyFileError, match=r"file/key cannot be written.*another path"):
        keys.create(tmp_path / "file" / "key")


def test_a_missing_file_is_named_with_its_remedy(path):
    for use in (keys.load, keys.show, keys.rotate):
        with pytest.raises(keys.KeyFileError, match="facemix key create"):
            use(path)
    assert not path.parent.exists()


@pytest.mark.parametrize("open_mode", [0o640, 0o604, 0o620, 0o601, 0o666])
def test_a_file_that_others_may_use_is_refused(path, open_mode):
    keys.create(path)
    path.chmod(open_mode)
    with pytest.raises(keys.KeyFileError, match=rf"mode {open_mode:04o}.*chmod 600"):
        keys.load(path)
    keys.rotate(path)  # the remedy
    assert mode(path) == 0o600
    keys.load(path)


def test_a_read_only_file_will_do(path):
    keys.create(path)
    path.chmod(0o400)
    assert keys.show(path).mode == "0400"


@pytest.mark.parametrize("size", [0, 31, 33, 4096])
def test_a_file_of_another_size_is_refused_without_showing_it(path, size):
    keys.create(path)
    path.write_bytes((b"s3cret-" * 600)[:size])
    with pytest.raises(
        keys.KeyFileError, match=f"it has {size}\\).*move it away.*create"
    ) as caught:
        keys.load(path)
    assert "s3cret" not in str(caught.value)


def test_what_is_no_file_is_refused_at_once(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o600)
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for place in (pipe, tmp_path, loop):
        for use in (keys.create, keys.rotate, keys.load):
            expected = "symbolic links" if (place, use) == (loop, keys.load) else "no plain file"
            with pytest.raises(keys.KeyFileError, match=expected):
                use(place)


def test_another_users_file_is_refused(path, monkeypatch):
    keys.create(path)
    monkeypatch.setattr(os, "getuid", lambda: path.stat().st_uid + 1)
    with pytest.raises(keys.KeyFileError, match="belongs to user"):
        keys.load(path)


def test_rotation_leaves_no_copy_of_the_old_secret(path):
    old_root = keys.create(path)
    old = path.read_bytes()
    new_root = keys.rotate(path)
    assert new_root.fingerprint == keys.load(path).fingerprint != old_root.fingerprint
    assert [file.read_bytes() == old for file in path.parent.iterdir()] == [False]
    assert mode(path) == 0o600
    assert drawn(old_root) != drawn(new_root)


@pytest.mark.parametrize("content", [b"a thesis", bytes(33)])
def test_rotation_leaves_a_file_that_is_no_secret(path, content):
    keys.create(path)
    path.write_bytes(content)
    with pytest.raises(keys.KeyFileError, match=f"it has {len(content)}\\).*move it away"):
        keys.rotate(path)
    assert path.read_bytes() == content


def test_rotation_replaces_an_empty_file(path):
    keys.create(path)
    path.write_bytes(b"")  # as after a crash
    assert keys.rotate(path).fingerprint == keys.load(path).fingerprint


def test_rotation_through_a_link_replaces_the_secret_itself(path, tmp_path):
    keys.create(path)
    old = path.read_bytes()
    link = tmp_path / "link"
    link.symlink_to(path)
    root = keys.rotate(link)
    assert link.is_symlink()
    assert path.read_bytes() != old
    assert keys.load(link).fingerprint == root.fingerprint


@pytest.mark.parametrize("failing", ["fsync", "fchmod", "open"])
def test_on_a_full_disk_nothing_is_lost_or_left(path, monkeypatch, failing):
    keys.create(path)
    before = path.read_bytes()
    real_open = os.open

    def full(*args, **kwargs):
        if failing == "open" and not args[1] & os.O_CREAT:
            return real_open(*args, **kwargs)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, full)
        for attempt in (lambda: keys.rotate(path), lambda: keys.create(path.with_name("other"))):
            with pytest.raises(keys.KeyFileError, match=r"No space left.*Free space"):
                attempt()
    assert os.listdir(path.parent) == ["key"]
    assert path.read_bytes() == before


def test_a_folder_that_cannot_be_opened_is_no_failure_once_the_secret_is_in_place(
    path, monkeypatch
):
    real_open = os.open

    def open_no_folder(name, *rest, **more):
        if os.path.isdir(name):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real_open(name, *rest, **more)

    monkeypatch.setattr(os, "open", open_no_folder)
    for write in (keys.create, keys.rotate):
        assert write(path).fingerprint == keys.load(path).fingerprint


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has /dev/full")
def test_a_disk_that_fills_while_the_secret_is_written(path, monkeypatch):
    path.parent.mkdir(parents=True)
    real_open = os.open
    monkeypatch.setattr(
        os,
        "open",
        lambda name, flags, *rest, **more: (
            real_open("/dev/full", os.O_WRONLY)
            if flags & os.O_CREAT
            else real_open(name, flags, *rest, **more)
        ),
    )
    monkeypatch.setattr(os, "fchmod", lambda *_: None)
    with pytest.raises(keys.KeyFileError, match="No space left"):
        keys.create(path)
    assert os.listdir(path.parent) == []


def test_what_goes_wrong_carries_no_secret(path):
    """Also with the local variables of every frame, as debuggers and some reporters add them."""
    root = keys.create(path)
    secret = path.read_bytes()
    path.chmod(0o644)
    attempts = (
        lambda: keys.load(path),
        lambda: keys.create(path),
        lambda: pickle.dumps(root),
        lambda: keys.fresh_mix_key(root, bytes(16), 0, 8, shuffle=True),
        lambda: keys.fresh_mix_key(root, b"", 1, 2, shuffle=True),
    )
    for attempt in attempts:
        with pytest.raises((keys.KeyFileError, UsageError, TypeError)) as caught:
            attempt()
        told = "".join(
            traceback.TracebackException.from_exception(
                caught.value, capture_locals=True, limit=-2
            ).format()
        )
        assert secret.hex() not in told
        assert repr(secret)[2:-1] not in told
