"""What attacker, owner and those who attack nothing reach once all rows are filtered alike."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from facemix_jax import attacks
from facemix_jax._types import HostArray
from facemix_jax.attacks import denoising
from facemix_jax.attacks.base import by_group, truth_by_group
from facemix_jax.results import Column

COLUMNS = {
    "guess, filtered": Column(name="guess, filtered", format="fixed3"),
    "floor, filtered": Column(name="no attack, filtered", format="fixed3"),
    "value, filtered": Column(name="strongest, filtered", format="fixed3"),
    "granted, filtered": Column(name="matrix granted, filtered", format="fixed3"),
    "owner, filtered": Column(name="owner, filtered", format="fixed3"),
}
"""Of ``named`` figures; tables leave out the sides that they do not have."""


def named(figures: Mapping[str, float]) -> dict[str, float]:
    """Figures of the sides by the names of ``COLUMNS``."""
    return {f"{side}, filtered": value for side, value in figures.items()}


class Sides:
    """Mean matched |correlation| of one recording's rows, each with the filter that does best.

    Args:
        filters: of the system (``facemix_jax.attacks.denoising``).
        recording: what was sent, and the truth.
        others: rows of further sides by name, ``[G, n, ...]``.

    Attributes:
        truth: activations ``[G, M, ...]``.
        alike: of every side but the attacker: ``floor`` (the rows that were sent), ``owner``,
            ``guess`` (the attacker's own images instead), and the others.
    """

    def __init__(
        self, filters: denoising.Filters, recording: attacks.Recording, **others: HostArray
    ) -> None:
        self._filters = filters
        self.truth = np.asarray(truth_by_group(recording.activations, recording))
        sides: dict[str, ArrayLike] = {
            "floor": by_group(recording.view.mixtures, recording),
            "owner": truth_by_group(recording.owner_activations, recording),
            **others,
        }
        self.alike = {name: self._filtered(rows) for name, rows in sides.items()}
        self.alike["guess"] = round(denoising.guessed_correlation(filters, self.truth), 4)

    def __call__(self, recovered: ArrayLike) -> dict[str, float]:
        """The attacker's, ``value``, beside all others."""
        return {"value": self._filtered(recovered), **self.alike}

    def _filtered(self, rows: ArrayLike) -> float:
        found = denoising.filtered_correlation(self._filters, np.asarray(rows), self.truth)
        return round(found, 4)
