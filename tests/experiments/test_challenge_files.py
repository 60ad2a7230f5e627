"""Submissions to the challenge as they are read, from people who are not trusted."""

import struct
import zipfile

import challenge_files as files
import numpy as np
import pytest

from facemix_jax._validate import UsageError

SHAPE = (8, 5, 4, 2)


def normal(seed):
    return np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32)


def submitted(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_a_submission_is_read_as_it_is(tmp_path):
    path = submitted(tmp_path / "mine.npz", recovered=normal(0))
    np.testing.assert_array_equal(files.read_submission(path, SHAPE), normal(0))


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"mine": normal(0)}, "not recovered.npy alone"),
        ({"recovered": normal(0), "more": normal(0)}, "not recovered.npy alone"),
        ({"recovered": normal(0)[1:]}, "holds shape"),
        ({"recovered": normal(0).astype(np.int32)}, "holds int32"),
        ({"recovered": np.full(SHAPE, np.nan)}, "NaN, or numbers"),
        ({"recovered": np.full(SHAPE, 1e200)}, "numbers beyond 1e[+]100"),
        ({"recovered": np.zeros((80, 50, 4, 2))}, "more than float64"),
        ({"recovered": np.array([{}], object)}, "holds object"),
    ],
)
def test_malformed_submissions_are_refused(tmp_path, arrays, reason):
    with pytest.raises(UsageError, match=reason):
        files.read_submission(submitted(tmp_path / "mine.npz", **arrays), SHAPE)


def test_files_that_are_no_submission_are_refused(tmp_path):
    text = tmp_path / "mine.npz"
    text.write_text("rows")
    for path in (text, tmp_path / "missing.npz"):
        with pytest.raises(UsageError, match="cannot be read"):
            files.read_submission(path, SHAPE)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ("{'descr': '<f8', 'fortran_order': False, 'shape': (10000000000000,)}", "holds shape"),
        ("{'descr': '<f8', (((", "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_what_a_submission_says_of_itself_is_not_trusted(tmp_path, header, reason):
    path = tmp_path / "mine.npz"
    magic = b"" if header is None else b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("recovered.npy", magic + (header or "abc").encode())
    with pytest.raises(UsageError, match=reason):
        files.read_submission(path, SHAPE)


def test_a_damaged_submission_is_refused(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez_compressed(path, recovered=normal(0))
    raw = bytearray(path.read_bytes())
    raw[200:260] = b"\xff" * 60
    path.write_bytes(raw)
    with pytest.raises(UsageError, match="cannot be read"):
        files.read_submission(path, SHAPE)


def test_an_encrypted_submission_is_refused(tmp_path):
    path = submitted(tmp_path / "mine.npz", recovered=normal(0))
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"PK\x01\x02") + 8] |= 1  # general purpose flag, bit 0, of the directory's entry
    path.write_bytes(raw)
    with pytest.raises(UsageError, match="encrypted"):
        files.read_submission(path, SHAPE)
