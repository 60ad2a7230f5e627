"""The rows of each group side by side, and their separation, as several attacks need them.

The grouping is granted. The sign that separation leaves open is settled by the attacker's own
images.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from facemix_jax._types import HostArray, RngKey
from facemix_jax.attacks import blind, robust
from facemix_jax.attacks.base import Recording, Target, by_group, record
from facemix_jax.attacks.separation import separation_of
from facemix_jax.attacks.unmixing import with_positions
from facemix_jax.data import normalize
from facemix_jax.defenses import rows_of
from facemix_jax.metrics import matched_correlation, standardise

_AUXILIARY_IMAGES = 256
_RIDGE = 0.01
"""Relative to the mean energy of an auxiliary activation."""


class Unmixed(NamedTuple):
    """What separation makes of a recording; ``M`` may be 1, where nothing is mixed.

    Attributes:
        unmixing: float32 ``[G, M, M]``.
        sources: float32 ``[G, M, h, w, c]``, ``unmixing`` applied to the mixtures; in no
            particular order, in the sign and the scale that the attacker guessed.
    """

    unmixing: HostArray
    sources: HostArray


def rehearses(target: Target) -> bool:
    """Whether ``unmix`` takes the separation that does best in rehearsals, not gradient ICA.

    Behind noise, blinding or rounding gradient ICA is far from the strongest. Maps of a single
    position, and single rows, leave nothing to choose from.
    """
    height, width = target.model.spec.activation_shape[:2]
    mixed = rows_of(target.defense).seen > 1
    return not target.defense.exact and mixed and height * width > 1


def separation_for(target: Target, rng_key: RngKey) -> blind.Separate:
    """What ``unmix`` separates with: gradient ICA, or what ``robust`` chooses (``rehearses``).

    Args:
        target: gives the public network and defence, and the attacker's own images.
        rng_key: draws rehearsals; consumed.
    """
    if rehearses(target):
        return robust.choose(target, rng_key).separate
    return separation_of(target)


def unmix(
    target: Target,
    recording: Recording,
    *,
    rng_key: RngKey,
    separate: blind.Separate | None = None,
) -> Unmixed:
    """Separates every group and settles the signs, and the scales that no orthogonal matrix fixes.

    Sign: either the larger excursion of a source counts as positive, as ``separate`` has it, or a
    linear function does that is fitted to be 1 on activations of auxiliary images (ridge
    regression; it is odd, so it is -1 on their negatives). The attacker takes whichever is right
    more often on auxiliary images that were not fitted.

    Scale: that of an orthogonal mixing is known (``apply_unmixing``). Of any other, every source is
    taken to be as large as the auxiliary activations are, in the root mean square.

    Args:
        target: gives the public network and defence, and the attacker's own images.
        recording: only the view and the groups are used.
        rng_key: draws rehearsals and the starts of the separation; consumed.
        separate: ``separation_for`` the target, where several recordings share it.
    """
    mixtures = np.asarray(by_group(recording.view.mixtures, recording))
    if mixtures.shape[1] == 1:
        return Unmixed(np.ones((len(mixtures), 1, 1), np.float32), mixtures)
    if separate is None:
        separate = separation_for(target, jax.random.fold_in(rng_key, 1))
    found = separate(with_positions(jnp.asarray(mixtures)), rng_key=rng_key)
    unmixing, sources = (
        np.asarray(found.unmixing),
        np.asarray(found.sources).reshape(mixtures.shape),
    )
    auxiliary = auxiliary_activations(target, _AUXILIARY_IMAGES)
    flat, factors = sources.reshape(*sources.shape[:2], -1), np.ones(sources.shape[:2], np.float32)
    upright = _sign_filter(auxiliary)
    if upright is not None:
        factors[flat @ upright < 0] = -1
    if not target.defense.orthogonal:
        sizes = np.sqrt((flat**2).mean(2))
        factors *= np.sqrt((auxiliary**2).mean()) / np.where(sizes > 0, sizes, 1)
    return Unmixed(factors[:, :, None] * unmixing, factors[:, :, None, None, None] * sources)


def auxiliary_activations(target: Target, count: int) -> HostArray:
    """Activations float32 ``[n, h, w, c]`` of the attacker's first ``count`` images or all."""
    rows = target.source.splits[target.auxiliary_split][:count]
    return activations(target, np.asarray(target.source.images(rows)))


def activations(target: Target, images: HostArray) -> HostArray:
    """What the public pre-model makes of uint8 ``[n, H, W, 3]``: float32 ``[T * n, h, w, c]``.

    Rows are ordered as those of one call of pre, tile by tile.
    """
    pre, tiles = jax.jit(target.model.pre.apply), target.model.spec.tiles
    made = [
        np.asarray(pre(target.variables["pre"], normalize(part)), np.float32)
        for part in np.array_split(images, -(-len(images) // 64))
    ]
    by_tile = [rows.reshape(tiles, -1, *rows.shape[1:]) for rows in made]
    return np.concatenate(by_tile, axis=1).reshape(-1, *made[0].shape[1:])


def auxiliary_by_tile(target: Target, count: int) -> HostArray:
    """Rows float32 ``[T, n, P]`` of the attacker's first ``count`` images or all, by tile."""
    own = auxiliary_activations(target, count)
    return own.reshape(target.model.spec.tiles, -1, math.prod(own.shape[1:]))


def noise_of(target: Target, rng_key: RngKey) -> float:
    """Standard deviation of what the public defence adds to the activations, in a rehearsal.

    What the owner is left with, and the blinding that only the owner is rid of. Blinded rows have
    unit deviation; mixed ones are as large as activations are in the root mean square.
    """
    rows = target.source.splits[target.auxiliary_split]
    count = min(4, len(rows) // target.defense.group_size) * target.defense.group_size
    own = record(target, rows[:count], rng_key=rng_key)
    blinding = rows_of(target.defense).blinding
    size = float(jnp.sqrt(jnp.mean(own.activations**2)))
    recovered = own.owner_activations * (size if blinding else 1.0)
    return math.hypot(float(jnp.std(recovered - own.activations)), blinding * size)


def match(sources: ArrayLike, truth: ArrayLike) -> HostArray:
    """For scoring: int ``[G, M]``; source ``[g, result[g, i]]`` belongs to true row ``[g, i]``.

    Rows of a Haar matrix are exchangeable, so that no attacker can know the order; it labels
    nothing but the rows of one user's request.
    """
    pairs = zip(np.asarray(sources), np.asarray(truth), strict=True)
    return np.stack([matched_correlation(s, t).permutation for s, t in pairs])


def in_order(rows: ArrayLike, order: HostArray) -> HostArray:
    """``[G, M, ...]`` in an order that ``match`` found, as ``[B, ...]``."""
    rows = np.asarray(rows)
    ordered = rows[np.arange(len(rows))[:, None], order]
    return ordered.reshape(-1, *rows.shape[2:])


def correlation(recovered: ArrayLike, truth: ArrayLike) -> HostArray:
    """|Pearson correlation| of each row with the true one, float64 ``[B]``; 0 for constants."""
    return np.abs((standardise(recovered) * standardise(truth)).sum(1))


def correlations(first: ArrayLike, second: ArrayLike) -> HostArray:
    """|Pearson correlation| of all pairs of rows, float64 ``[m, n]``; 0 for constants."""
    return np.abs(standardise(first) @ standardise(second).T)


def matched(found: ArrayLike, truth: ArrayLike) -> HostArray:
    """|Correlation| under the best one-to-one assignment, where the numbers of rows may differ.

    Args:
        found: ``[m, ...]``.
        truth: ``[n, ...]``.

    Returns:
        float64 ``[min(m, n)]``.
    """
    from scipy.optimize import linear_sum_assignment  # slow to import

    pairs = correlations(found, truth)
    return pairs[linear_sum_assignment(-pairs)]


def _sign_filter(auxiliary: HostArray) -> HostArray | None:
    """Weights ``[P]`` whose product is positive for upright rows; None where excursions do."""
    flat = auxiliary.reshape(len(auxiliary), -1)
    fitted, held_out = flat[::2], flat[1::2]
    gram = fitted @ fitted.T
    ridge = _RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram), dtype=gram.dtype)
    weights = fitted.T @ np.linalg.solve(gram + ridge, np.ones(len(gram), gram.dtype))
    by_excursion = np.mean(held_out.max(1) + held_out.min(1) >= 0)
    return weights if np.mean(held_out @ weights >= 0) > by_excursion else None


def needs_attributes(target: Target) -> str | None:
    """Why an attack on attributes has nothing to work with, or None."""
    return None if target.source.attributes.shape[1] else "The source has no attributes."


def needs_groups(target: Target) -> str | None:
    """Why an attack on groups has nothing to work with, or None."""
    if target.defense.group_size > 1:
        return None
    return f"The defence {target.defense.name!r} mixes nothing: a group has one row."


def needs_groups_of_images(target: Target) -> str | None:
    """Why an attack that asks who or what is in a group cannot be scored, or None."""
    if not target.defense.dealt:
        return None
    return (
        "Images are dealt to groups anew in every tile: there is no group of images to ask about."
    )
