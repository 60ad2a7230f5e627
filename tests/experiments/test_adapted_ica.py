"""The separation that looks for the filters in which codes are least Gaussian."""

import adapted_ica
import numpy as np


def peaked(side, rng):
    """Codes whose one direction among four is far from Gaussian, and of little energy."""
    codes = rng.normal(size=(64, side, side, 4))
    codes[..., 0] = 0.1 * rng.laplace(size=(64, side, side))
    mixing = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    return (codes @ mixing).astype(np.float32), mixing[0]


def test_the_first_filter_is_the_least_gaussian_direction_whatever_its_energy():
    codes, wanted = peaked(16, np.random.default_rng(0))
    first = adapted_ica.filters(codes, 0)[:, 0].reshape(9, 4)
    place = first[np.argmax(np.abs(first).sum(1))]
    assert abs(place @ wanted) / np.linalg.norm(place) > 0.99
    assert np.linalg.norm(place) / np.linalg.norm(first) > 0.95  # at one place of the patch
