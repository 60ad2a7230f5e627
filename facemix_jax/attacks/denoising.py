"""What public statistics alone make of rows, with no key and before any separation.

Faces live near few directions and noise does not, so that anyone can filter it out of mixtures; and
what is smooth correlates with whatever is smooth. A matched correlation may therefore rise although
nothing was learnt of the key. An attack is to be compared with this floor as well, its own
result filtered likewise, and the owner's: the owner can filter, too.
"""

from typing import NamedTuple

import numpy as np

from facemix_jax._types import HostArray
from facemix_jax.attacks import blind
from facemix_jax.attacks.base import Target
from facemix_jax.attacks.groups import auxiliary_by_tile

_AUXILIARY = 2048
"""The attacker's own images; a quarter of them for whole maps, whose rows are long."""

STRENGTHS = (0.0, 1e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)
"""Noise that is reckoned with, in shares of the energy along the first axis; 0 filters nothing."""


class Filters(NamedTuple):
    """Linear filters of rows, one for each tile and strength.

    Attributes:
        axes: float32 ``[T, P, D]``, orthonormal.
        energy: float32 ``[T, D]``, mean square of single images along them.
        own: float32 ``[T, n, P]``, rows of the attacker's own images.
    """

    axes: HostArray
    energy: HostArray
    own: HostArray

    def __call__(self, rows: HostArray, strength: float) -> HostArray:
        """Wiener's filter (linear minimum mean square error) for white noise.

        Args:
            rows: float ``[T, n, P]``.
            strength: variance of the noise in units of the largest energy.
        """
        if not strength:
            return rows
        level = strength * self.energy.max(1, keepdims=True)
        gain = self.energy / (self.energy + level)
        along = np.einsum("tnp,tpd->tnd", rows, self.axes, optimize=True) * gain[:, None]
        return np.einsum("tnd,tpd->tnp", along, self.axes, optimize=True)


def fit(target: Target) -> Filters:
    """Learns the axes on the attacker's own images."""
    tiles = target.model.spec.tiles
    return learn(auxiliary_by_tile(target, _AUXILIARY if tiles > 1 else _AUXILIARY // 4))


def learn(own: HostArray) -> Filters:
    """Learns the axes of rows ``[T, n, P]``."""
    decomposed = [np.linalg.svd(rows, full_matrices=False)[1:] for rows in own]
    axes = np.stack([directions.T for _, directions in decomposed])
    energy = np.stack([lengths**2 / own.shape[1] for lengths, _ in decomposed])
    return Filters(axes, energy, own)


def filtered_correlation(filters: Filters, rows: HostArray, truth: HostArray) -> float:
    """Mean matched |correlation| with the filter that does best: an upper bound of any choice.

    Args:
        filters: of the system.
        rows: ``[T * G, M, ...]``, tile by tile.
        truth: likewise.
    """
    by_tile = rows.reshape(len(filters.axes), -1, filters.axes.shape[1])
    return max(
        float(blind.recovery(filters(by_tile, s).reshape(rows.shape), truth).mean())
        for s in STRENGTHS
    )


def guessed_correlation(filters: Filters, truth: HostArray) -> float:
    """What the attacker's own images reach as guesses, filtered as well: nothing was looked at."""
    groups, size = len(truth) // len(filters.own), truth.shape[1]
    guess = np.repeat(filters.own[:, None, :size], groups, axis=1)
    return filtered_correlation(filters, guess.reshape(truth.shape), truth)
