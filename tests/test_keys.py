import os
import subprocess
import sys

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
