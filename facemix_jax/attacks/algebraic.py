"""What follows from ``C = A X`` with orthogonal ``A`` alone: exact algebra, no statistics.

The only secret of a group is a rotation. Its Gram matrix over positions, ``C^T C = X^T X``, and
its row space are those of the images and lie open. So a cloud that has a candidate image tells
for certain whether it is in a group (``SPAN``), a known member gives its column of ``A``
(``KNOWN_PLAINTEXT``), a matrix used twice falls to one known group (``REUSED_KEY``), and a
picture sent twice with other company is the intersection of two row spaces
(``INTERSECTION``). Host side, float64: the matrices are small, and certificates want the digits.

Compare Carlini et al. (arXiv 2011.05315), who break instance encoding by such means.
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
from facemix_jax.attacks.groups import activations, correlation, correlations, matched, needs_groups
from facemix_jax.attacks.separation import separate
from facemix_jax.attacks.unmixing import with_positions

_RANK_TOLERANCE = 1e-5
"""Singular values below this share of the largest are float32 rounding, not directions."""


def gram_residual(mixtures: ArrayLike, candidates: ArrayLike) -> float:
    """``|C^T C - X^T X| / |C^T C|`` in the Frobenius norm: 0 where the candidates are the group.

    The Gram matrices over positions are never formed: products of rows give the same number.

    Args:
        mixtures: ``[M, ...]``, one group.
        candidates: ``[N, ...]``, the images that are suspected to be in it, in any order.

    Raises:
        UsageError: maps of different shapes.
    """
    c, x = _flat_pair(mixtures, candidates)
    own = ((c @ c.T) ** 2).sum()
    difference = own + ((x @ x.T) ** 2).sum() - 2 * ((c @ x.T) ** 2).sum()
    return float(np.sqrt(max(difference, 0.0) / own)) if own else float("inf")


def span_residuals(mixtures: ArrayLike, candidates: ArrayLike) -> HostArray:
    """Share of each candidate's length outside the row space of a group, float64 ``[N]``.

    About 1e-6 (float32 rounding) for members, whatever the matrix, and far from 0 for others.

    Args:
        mixtures: ``[M, ...]``, one group.
        candidates: ``[N, ...]``, for example ``pre(x)`` of suspected images.

    Raises:
        UsageError: maps of different shapes.
    """
    c, x = _flat_pair(mixtures, candidates)
    basis = _row_space(c)
    outside = np.linalg.norm(x - (x @ basis.T) @ basis, axis=1)
    length = np.linalg.norm(x, axis=1)
    return np.where(length > 0, outside / np.where(length > 0, length, 1.0), 0.0)


def known_columns(mixtures: ArrayLike, known: ArrayLike) -> HostArray:
    """Columns of the mixing matrix of known members, float64 ``[M, m]``, by least squares.

    Member ``i`` is ``sum_k A[k, i] mixture_k`` for orthogonal ``A``: as many equations as there
    are positions for ``M`` unknowns. The other members need not be known.

    Raises:
        UsageError: maps of different shapes.
    """
    c, x = _flat_pair(mixtures, known)
    return np.linalg.lstsq(c.T, x.T, rcond=_RANK_TOLERANCE)[0]


def without_known(mixtures: ArrayLike, columns: HostArray) -> HostArray:
    """Takes known members out: ``[M - m, ...]`` mixtures of the others alone, mixed orthogonally.

    With one member unknown, what is left is that member up to its sign.

    Args:
        mixtures: ``[M, ...]``, one group.
        columns: ``[M, m]``, of ``known_columns``, with ``m < M``.
    """
    mixtures = np.asarray(mixtures)
    full, _, _ = np.linalg.svd(columns, full_matrices=True)
    complement = full[:, columns.shape[1] :].T
    flat = complement @ mixtures.reshape(len(mixtures), -1).astype(np.float64)
    return flat.reshape(-1, *mixtures.shape[1:])


def mixing_from_known(mixtures: ArrayLike, known: ArrayLike) -> HostArray:
    """The whole matrix float64 ``[M, M]`` from a group whose members are all known.

    By least squares of the mixtures on the members: it need not be orthogonal.

    Raises:
        UsageError: maps of different shapes.
    """
    c, x = _flat_pair(mixtures, known)
    return np.linalg.lstsq(x.T, c.T, rcond=_RANK_TOLERANCE)[0].T


def shared_member(first: ArrayLike, second: ArrayLike) -> tuple[HostArray, HostArray]:
    """The direction that two groups have in common, and how nearly they have it.

    Args:
        first: ``[M, ...]``, a group.
        second: ``[N, ...]``, another one.

    Returns:
        Float64 ``[...]``, the vector of ``first``'s row space that is closest to ``second``'s, in
        the scale of ``first``'s members where mixing is orthogonal, the larger excursion
        positive; and the cosines of the principal angles, ``[min(M, N)]``, largest first: 1 to
        within rounding for each picture that both groups hold.

    Raises:
        UsageError: maps of different shapes.
    """
    c, other = _flat_pair(first, second)
    basis = _row_space(c)
    left, cosines, _ = np.linalg.svd(basis @ _row_space(other).T)
    direction = left[:, 0] @ basis
    # direction = w C; members have weights of length one.
    weights = np.linalg.lstsq(c.T, direction, rcond=_RANK_TOLERANCE)[0]
    found = direction / np.linalg.norm(weights)
    found = -found if found.max() + found.min() < 0 else found
    return found.reshape(np.shape(first)[1:]), np.minimum(cosines, 1.0)


def auc(positive: ArrayLike, negative: ArrayLike) -> float:
    """Chance that a positive scores higher than a negative (area under the ROC curve).

    Example:
        >>> auc([3.0, 2.0], [1.0, 2.0])
        0.875
    """
    positive, negative = np.ravel(positive), np.sort(np.ravel(negative))
    below = np.searchsorted(negative, positive, "left") + np.searchsorted(
        negative, positive, "right"
    )
    return float(below.mean() / 2 / len(negative))


def true_positive_rate(positive: ArrayLike, negative: ArrayLike, false_positives: float) -> float:
    """Share of positives above the threshold that lets ``false_positives`` of negatives pass."""
    threshold = np.quantile(np.ravel(negative), 1 - false_positives, method="higher")
    return float((np.ravel(positive) > threshold).mean())


_SPAN = (
    "knows which mixtures form a group, the public pre-model and a candidate picture, and asks "
    "whether it is in the group; no key"
)
_KNOWN = (
    "knows which mixtures form a group, the public pre-model and {} of its {} pictures, and wants "
    "the others; no key"
)
_REUSED = (
    "knows all pictures of one earlier request, and the user wrongly mixed this one with the same "
    "matrices, rows in the same order"
)
_TWICE = (
    "knows two groups into which the user mixed the same picture, with fresh matrices and other "
    "company; no key"
)


def _span(target: Target, recording: Recording, rng_key: RngKey, config: AttackConfig) -> Result:
    """Members of each group against the images of the other groups and auxiliary images.

    Where maps are cut into tiles, a tile of a picture against the groups of that tile.
    """
    mixtures = by_group(recording.view.mixtures, recording)
    owner_rows = truth_by_group(recording.owner_activations, recording)
    rows = target.source.splits[target.auxiliary_split][: len(recording.images)]
    others = activations(target, np.asarray(target.source.images(rows)))
    members = np.asarray(recording.activations)
    candidates = np.concatenate([members, others])
    tiles = np.arange(target.model.spec.tiles)
    tile_of = np.concatenate([np.repeat(tiles, len(x) // len(tiles)) for x in (members, others)])
    groups = np.arange(len(mixtures))[:, None]
    inside = np.arange(len(candidates)) // mixtures.shape[1] == groups
    asked = tile_of == groups // (len(mixtures) // len(tiles))
    attacker = np.stack([-span_residuals(c, candidates) for c in mixtures])
    floor, owner = (
        correlations(candidates, rows.reshape(-1, *rows.shape[2:]))
        .reshape(len(candidates), *rows.shape[:2])
        .max(2)
        .T
        for rows in (mixtures, owner_rows)
    )
    scores = [(s[inside], s[asked & ~inside]) for s in (attacker, floor, owner)]
    areas = [auc(*s) for s in scores]
    rates = [true_positive_rate(*s, 0.01) for s in scores]
    area = Figure(
        "AUC of telling members of a group from other pictures",
        areas[0],
        areas[1],
        areas[2],
        _SPAN,
        chance=0.5,
        ceiling=1.0,
    )
    rate = Figure(
        "share of members recognised at 1% false alarms",
        rates[0],
        rates[1],
        rates[2],
        _SPAN,
        chance=0.01,
        ceiling=1.0,
    )
    return Result((area, rate))


def _known_plaintext(
    target: Target, recording: Recording, rng_key: RngKey, config: AttackConfig
) -> Result:
    """One, half and all but one of each group's pictures known; scored on the unknown ones."""
    mixtures = by_group(recording.view.mixtures, recording)
    candidates = truth_by_group(activations(target, recording.images), recording)
    truth = truth_by_group(recording.activations, recording)
    owner = correlation(recording.owner_activations, recording.activations)
    owner_by_group = owner.reshape(truth.shape[:2])
    group_size = mixtures.shape[1]
    figures = []
    for number in sorted({1, group_size // 2, group_size - 1}):
        recovered = recover_unknown(mixtures, candidates[:, :number], rng_key=rng_key)
        figures.append(
            Figure(
                f"mean |correlation| of the unknown pictures, {number} of {group_size} known",
                float(_best_matches(recovered, truth[:, number:]).mean()),
                float(_best_matches(mixtures, truth[:, number:]).mean()),
                float(owner_by_group[:, number:].mean()),
                _KNOWN.format(number, group_size),
            )
        )
    return Result(tuple(figures))


def recover_unknown(mixtures: ArrayLike, known: ArrayLike, *, rng_key: RngKey) -> HostArray:
    """The members that are not known, by taking the known ones out and separating the rest.

    Args:
        mixtures: ``[G, M, H, W, C]``.
        known: ``[G, m, H, W, C]``, ``m < M`` members of each group.
        rng_key: draws the starts of the separation; consumed.

    Returns:
        float32 ``[G, M - m, H, W, C]`` in no particular order; a single one, up to its sign,
        needs no separation.
    """
    rest = np.stack(
        [
            without_known(c, known_columns(c, x))
            for c, x in zip(np.asarray(mixtures), np.asarray(known), strict=True)
        ]
    ).astype(np.float32)
    if rest.shape[1] == 1:
        return rest
    found = separate(with_positions(jnp.asarray(rest)), rng_key=rng_key)
    return np.asarray(found.sources).reshape(rest.shape)


def _reused_key(
    target: Target, recording: Recording, rng_key: RngKey, config: AttackConfig
) -> Result:
    """Plays two requests with one secret: the first of known pictures, the second the attacked."""
    count = len(recording.images)
    auxiliary = target.source.splits[target.auxiliary_split]
    known = activations(target, np.asarray(target.source.images(np.resize(auxiliary, count))))
    # The order of sending is the same in both requests, so it is left out, as in training.
    secret = target.defense.init(rng_key, count, True)
    first, second = (
        np.asarray(target.defense.protect(secret, jnp.asarray(rows)))
        for rows in (known, recording.activations)
    )
    truth = np.asarray(recording.activations)
    owner = correlation(target.defense.recover(secret, jnp.asarray(second)), truth)
    opened = []
    for c, x, sent in zip(
        *(truth_by_group(rows, recording) for rows in (first, known, second)), strict=True
    ):
        inverse = np.linalg.pinv(mixing_from_known(c, x), rcond=_RANK_TOLERANCE)
        opened.append((inverse @ sent.reshape(len(sent), -1)).reshape(sent.shape))
    recovered = np.concatenate(opened).astype(np.float32)
    floor = _best_matches(truth_by_group(second, recording), truth_by_group(truth, recording))
    figure = Figure(
        "mean |correlation| under a key used twice",
        float(correlation(recovered, truth).mean()),
        float(floor.mean()),
        float(owner.mean()),
        _REUSED,
    )
    return Result((figure,), recovered)


def _intersection(
    target: Target, recording: Recording, rng_key: RngKey, config: AttackConfig
) -> Result:
    """Sends the first picture of every group once more, with auxiliary company."""
    truth = truth_by_group(recording.activations, recording)
    num_groups, group_size = truth.shape[:2]
    auxiliary = np.resize(target.source.splits[target.auxiliary_split], num_groups * group_size)
    company = activations(target, np.asarray(target.source.images(auxiliary)))
    again = company.reshape(truth.shape)
    again[:, 0] = truth[:, 0]
    # A fresh secret, as every request has; rows stay with their group, as in the recording.
    secret = target.defense.init(rng_key, num_groups * group_size, True)
    sent = target.defense.protect(secret, jnp.asarray(again.reshape(company.shape)))
    pairs = zip(
        by_group(recording.view.mixtures, recording),
        np.asarray(sent).reshape(truth.shape),
        strict=True,
    )
    found = np.stack([shared_member(first, second)[0] for first, second in pairs])
    floor = _best_matches(by_group(recording.view.mixtures, recording), truth[:, :1])
    owner = correlation(recording.owner_activations, recording.activations)
    figure = Figure(
        "mean |correlation| of the picture sent twice",
        float(correlation(found, truth[:, 0]).mean()),
        float(floor.mean()),
        float(owner.reshape(num_groups, group_size)[:, 0].mean()),
        _TWICE,
    )
    return Result((figure,))


def _needs_orthogonal_groups(target: Target) -> str | None:
    if target.defense.orthogonal:
        return needs_groups(target)
    return "Known pictures are taken out of orthogonal mixtures, but this matrix is another one."


SPAN = Attack("span", _SPAN, _span, by_tile=True)
KNOWN_PLAINTEXT = Attack(
    "known_plaintext",
    _KNOWN.format("some", "M"),
    _known_plaintext,
    _needs_orthogonal_groups,
    one_matrix=True,
)
REUSED_KEY = Attack("reused_key", _REUSED, _reused_key, needs_groups, one_matrix=True)
INTERSECTION = Attack("intersection", _TWICE, _intersection, needs_groups, one_matrix=True)


def _best_matches(found: ArrayLike, truth: ArrayLike) -> HostArray:
    """|Correlation| of each of ``[G, m, ...]`` with its match in ``[G, n, ...]``, float64.

    Under the one-to-one assignment that maximises it: ``[G, min(m, n)]``.
    """
    pairs = zip(np.asarray(found), np.asarray(truth), strict=True)
    return np.stack([matched(first, second) for first, second in pairs])


def _row_space(flat: HostArray) -> HostArray:
    """Orthonormal basis ``[rank, P]``; repeated pictures leave fewer directions than rows."""
    _, values, basis = np.linalg.svd(flat, full_matrices=False)
    return basis[values > _RANK_TOLERANCE * values[0]]


def _flat_pair(first: ArrayLike, second: ArrayLike) -> tuple[HostArray, HostArray]:
    """Both as float64 ``[rows, P]``."""
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if first.shape[1:] != second.shape[1:] or first.ndim < 2:
        raise _validate.UsageError(
            f"mixtures have shape {first.shape} and pictures {second.shape}, but both must be "
            f"rows of maps of one shape. Pass the activations of the pictures at the same cut."
        )
    return first.reshape(len(first), -1), second.reshape(len(second), -1)
