import copy
import errno
import json
import logging
import os
import pickle
import re
import subprocess
import sys
import traceback

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from facemix_jax import keys, mixing
from facemix_jax._validate import UsageError

ROOT = keys.RootSecret(bytes(range(32)))
FALSE_ALARM = 1e-6
"""Of each statistical test, were its draws new every time; they are not, so none comes and goes."""


def request(number):
    return number.to_bytes(16, "big")


def draw(number=0, groups=3, size=8, shuffle=True, root=ROOT):
    return keys.fresh_mix_key(root, request(number), groups, size, shuffle=shuffle)


def flat(key):
    return np.asarray(key.matrix).tobytes() + np.asarray(key.order).tobytes()


@pytest.mark.parametrize("size", [1, 2, 3, 8, 64])
def test_keys_are_orthogonal_to_single_precision(size):
    key = draw(size=size)
    assert key.matrix.dtype == key.inverse.dtype == jnp.float32
    matrix = np.asarray(key.matrix, np.float64)
    errors = np.abs(matrix @ matrix.swapaxes(-1, -2) - np.eye(size))
    assert errors.max() < 1e-6
    np.testing.assert_array_equal(key.inverse, matrix.swapaxes(-1, -2))
    assert key.order.dtype == jnp.int32
    assert sorted(key.order.tolist()) == list(range(3 * size))


@pytest.mark.parametrize("shuffle", [True, False])
def test_what_they_mix_they_unmix(shuffle):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(24, 5, 4)).astype(np.float32))
    key = draw(shuffle=shuffle)
    mixed = mixing.mix(key, x)
    assert float(jnp.abs(mixed - x).max()) > 1
    np.testing.assert_allclose(mixing.unmix(key, mixed), x, atol=3e-6)
    assert (key.order is None) is not shuffle


def test_the_same_secret_and_request_give_the_same_key_in_another_process():
    again = keys.RootSecret(bytes(range(32)))
    assert flat(draw(1)) == flat(draw(1)) == flat(draw(1, root=again))
    program = (
        "import sys, numpy as np; from facemix_jax import keys;"
        "k = keys.fresh_mix_key(keys.RootSecret(bytes(range(32))), (1).to_bytes(16, 'big'), 3, 8,"
        " shuffle=True);"
        "sys.stdout.write((np.asarray(k.matrix).tobytes() + np.asarray(k.order).tobytes()).hex())"
    )
    other = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    assert bytes.fromhex(other.stdout.decode()) == flat(draw(1))


def test_every_request_secret_and_size_has_its_own_key():
    different = [draw(0), draw(1), draw(2**127), draw(root=keys.RootSecret(bytes(32)))]
    matrices = [np.asarray(key.matrix) for key in different]
    matrices += [np.asarray(draw(groups=4).matrix)[:3], np.asarray(draw(shuffle=False).matrix)]
    every = np.concatenate(matrices).reshape(len(matrices) * 3, -1)
    distances = np.abs(every[:, None] - every[None]).max(-1)
    assert distances[~np.eye(len(every), dtype=bool)].min() > 0.1
    assert len({key.order.tobytes() for key in map(jax.device_get, different)}) == len(different)


def sample(matrices):
    """Traces and first entries, which determine little but betray a wrong measure.

    Rounded to 1e-5: half of the 2x2 matrices have trace 0, and the comparison would find in these
    ties how either implementation rounds.
    """
    matrices = np.asarray(matrices, np.float64)
    return np.trace(matrices, axis1=-2, axis2=-1).round(5), matrices[:, 0, 0].round(5)


def p_values(matrices, reference):
    return [
        scipy.stats.ks_2samp(a, b).pvalue
        for a, b in zip(sample(matrices), sample(reference), strict=True)
    ]


@pytest.mark.parametrize("size", [2, 4, 8])
def test_matrices_are_distributed_like_those_of_mixing(size):
    number = 5000
    reference, _ = mixing.haar(jax.random.key(3), number, size)
    drawn = np.asarray(draw(groups=number, size=size).matrix)
    assert min(p_values(drawn, reference)) > FALSE_ALARM
    # Five standard errors of the mean trace (0), of its square (1) and of the determinant (0).
    trace, first = sample(drawn)
    for value, mean in (
        (trace, 0),
        (trace**2, 1),
        (first**2, 1 / size),
        (np.linalg.det(drawn.astype(np.float64)), 0),
    ):
        assert abs(value.mean() - mean) < 5 * value.std() / np.sqrt(number)


def test_the_comparison_notices_qr_whose_signs_were_left_alone():
    reference, _ = mixing.haar(jax.random.key(3), 5000, 4)
    q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(5000, 4, 4)))
    assert max(p_values(q, reference)) < FALSE_ALARM


def test_groups_of_one_request_and_requests_are_uncorrelated():
    number = 1000
    first = np.stack([np.asarray(draw(i, 2, 4, False).matrix)[:, 0, 0] for i in range(number)])
    limit = 5 / np.sqrt(number)  # of standard errors: false alarm below 1e-6
    assert abs(np.corrcoef(first.T)[0, 1]) < limit
    assert abs(np.corrcoef(first[1:, 0], first[:-1, 0])[0, 1]) < limit


def test_every_order_of_sending_is_as_likely():
    orders = [tuple(np.asarray(draw(i, 2, 2).order).tolist()) for i in range(1200)]
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 24
    assert scipy.stats.chisquare(counts).pvalue > FALSE_ALARM


def test_normal_numbers_are_normal():
    numbers = keys._normal(keys._keystream(bytes(32), 20_000))
    assert scipy.stats.kstest(numbers, "norm").pvalue > FALSE_ALARM
    extremes = np.array([0, 0, 2**64 - 1, 2**64 - 1], np.uint64)
    assert np.isfinite(keys._normal(extremes)).all()


def test_the_keystream_is_that_of_rfc_8439():
    # Section 2.3.2's function with the all-zero key, nonce and counter (appendix A.1, vector 1).
    expected = "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
    assert keys._keystream(bytes(32), 4).tobytes().hex() == expected


def test_no_other_randomness_is_used(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("another source of randomness was used")

    expected = flat(draw(5))
    for module in (jax.random, np.random):
        for name in dir(module):
            if not name.startswith("_") and callable(getattr(module, name)):
                monkeypatch.setattr(module, name, refuse)
    monkeypatch.setattr(os, "urandom", refuse)
    assert flat(draw(5)) == expected
    with pytest.raises(AssertionError, match="another source"):
        mixing.haar(None, 1, 2)


@pytest.mark.parametrize("length", [0, 15, 17])
def test_an_identifier_of_another_length_is_refused(length):
    with pytest.raises(UsageError, match=f"{length} bytes, but must have 16"):
        keys.fresh_mix_key(ROOT, bytes(length), 1, 2, shuffle=True)


@pytest.mark.parametrize(("groups", "size"), [(0, 8), (1, 0), (-1, 2)])
def test_sizes_that_make_no_sense_are_refused(groups, size):
    with pytest.raises(UsageError, match="must be greater than 0"):
        draw(groups=groups, size=size)


# The secret itself.


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
    assert flat(draw(root=keys.load(path))) == flat(draw(root=root))


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
    with pytest.raises(keys.KeyFileError, match=f"it has {size}\\).*rotate") as caught:
        keys.load(path)
    assert "s3cret" not in str(caught.value)
    keys.rotate(path)
    keys.load(path)


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
    assert flat(draw(root=old_root)) != flat(draw(root=new_root))


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
        lambda: draw(groups=0, root=root),
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
