"""Gradient ICA for an attacker who holds only some rows of a group.

A user may send the mixtures of one group to several clouds. Rows ``r`` of ``M`` hold ``M`` images
in ``r`` dimensions, so that no linear map separates them all; what it finds is each image with
the least of the others. Whoever holds all rows is the attacker of ``separation``.
"""

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from facemix_jax import _validate
from facemix_jax._types import HostArray, RngKey
from facemix_jax.attacks.base import (
    Attack,
    AttackConfig,
    Figure,
    Recording,
    Result,
    Target,
    by_group,
    truth_by_group,
)
from facemix_jax.attacks.groups import correlation, matched, needs_groups
from facemix_jax.attacks.separation import separate

THREAT_MODEL = (
    "holds {} of the {} mixtures of each group, as one of several clouds or a few that collude; no "
    "key, no other images"
)


def separate_rows(mixtures: ArrayLike, rows: int, *, rng_key: RngKey) -> HostArray:
    """What an attacker with the first ``rows`` mixtures of each group recovers.

    Args:
        mixtures: ``[G, M, H, W, C]``; rows of a Haar matrix are exchangeable, so that the first
            ones stand for any.
        rows: ``r``, from 1 to ``M``. With a single one there is nothing to separate.
        rng_key: draws the starts of the separation; consumed.

    Returns:
        float32 ``[G, r, H, W, C]``, in no particular order.

    Raises:
        UsageError: ``rows`` is out of range.
    """
    mixtures = np.asarray(mixtures, np.float32)
    _validate.in_range(1, mixtures.shape[1], rows=rows)
    held = mixtures[:, :rows]
    if rows == 1:
        return held
    # Part of an orthogonal matrix: the inverse of what is seen of it need not be orthogonal.
    whole = rows == mixtures.shape[1]
    return np.asarray(separate(jnp.asarray(held), rng_key=rng_key, orthogonal=whole).sources)


def _collusion(
    target: Target, recording: Recording, rng_key: RngKey, config: AttackConfig
) -> Result:
    """One row, half of the rows, all but one: matched |correlation| of what each recovers."""
    mixtures = by_group(recording.view.mixtures, recording)
    truth = truth_by_group(recording.activations, recording)
    owner = float(correlation(recording.owner_activations, recording.activations).mean())
    group_size = mixtures.shape[1]
    figures = []
    for rows in sorted({1, group_size // 2, group_size - 1}):
        recovered = separate_rows(mixtures, rows, rng_key=rng_key)
        figures.append(
            Figure(
                f"mean matched |correlation| with {rows} of {group_size} rows",
                mean_matched(recovered, truth),
                mean_matched(mixtures[:, :rows], truth),
                owner,
                THREAT_MODEL.format(rows, group_size),
            )
        )
    return Result(tuple(figures))


def mean_matched(found: ArrayLike, truth: ArrayLike) -> float:
    """Mean |correlation| of ``[G, r, ...]`` with the members of ``[G, M, ...]`` they match best."""
    pairs = zip(np.asarray(found), np.asarray(truth), strict=True)
    return float(np.mean([matched(first, second) for first, second in pairs]))


COLLUSION = Attack(
    "collusion", THREAT_MODEL.format("some", "M"), _collusion, needs_groups, by_tile=True
)
