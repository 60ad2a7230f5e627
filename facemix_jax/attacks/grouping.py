"""Shuffled mixtures put back into their groups.

Where an edge of one face dominates, a mixture's gradient is that edge's gradient times a number:
mixing changes its length, never its direction among axes and colours. Mixtures of one group
therefore agree in these directions, position by position, and mixtures of different groups do not.
Directions without sign are compared by ``cos^2``, the inner product of ``u u^T`` of unit vectors
``u``. (Agreement of gradient energies alone, as in log energy maps, is a weaker sign: it leaves
the direction out.)

Groups have a known size, so that clustering is a balanced one: agglomeration that never exceeds
the size, then exchanges of two rows between groups for as long as one raises the agreement.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from facemix_jax import _validate, mixing
from facemix_jax._types import Array, HostArray, RngKey
from facemix_jax.attacks import blind, robust
from facemix_jax.attacks.base import (
    Attack,
    AttackConfig,
    Figure,
    Recording,
    Result,
    Target,
    by_group,
)
from facemix_jax.attacks.separation import separate
from facemix_jax.attacks.unmixing import gradient_vectors, matmul, principal_axes

THREAT_MODEL = (
    "knows the group size and whether the mixing is orthogonal, not which mixtures form a group; "
    "the public network and defence and own images to rehearse on; no key"
)

_AXES = 6
"""Gradient components kept: all of a colour image's; the principal ones of wider maps."""

_ROWS = 256
"""Mixtures whose gradients are taken at once; the first ones give the axes."""

_BLOCK = 512
"""Positions whose directions are held at once: 21 numbers each for every mixture."""

_JOINT = 64
"""Rows up to which one ICA over all of them is tried."""

_FLAT = 1e-3
"""Relative to a mixture's mean gradient energy: below, a direction is rounding or noise."""


def similarity(mixtures: Array, *, max_positions: int = 2500) -> HostArray:
    """Agreement of gradient directions between all pairs of mixtures, float32 ``[B, B]``.

    The correlation of ``u u^T`` over positions, after what all mixtures share has been taken
    out. Maps with more than three channels are first reduced to the principal axes of all their
    gradients, which mixing leaves alone.

    Args:
        mixtures: float ``[B, H, W, C]``, in any order.
        max_positions: evenly spaced ones are used where maps have more.

    Raises:
        UsageError: another rank, or maps without two positions in both directions.
    """
    if mixtures.ndim != 4 or min(mixtures.shape[1:3]) < 2:
        raise _validate.UsageError(
            f"mixtures have shape {mixtures.shape}, but grouping needs [B, H, W, C] with at least "
            f"2 x 2 positions. Pass mixtures as they were sent."
        )
    _validate.positive(max_positions=max_positions)
    stride = -(-((mixtures.shape[1] - 1) * (mixtures.shape[2] - 1)) // max_positions)
    axes = _gradient_axes(mixtures[:_ROWS])
    parts = [
        _directions(mixtures[start : start + _ROWS], axes, stride)
        for start in range(0, len(mixtures), _ROWS)
    ]
    gradients, energy = (jnp.concatenate(p) for p in zip(*parts, strict=True))
    gram = jnp.zeros((len(mixtures), len(mixtures)), jnp.float32)
    for start in range(0, gradients.shape[1], _BLOCK):
        gram = _add_agreement(gram, gradients[:, start : start + _BLOCK], energy)
    length = np.sqrt(np.maximum(np.diag(gram), np.finfo(np.float32).tiny))
    return np.asarray(gram) / length[:, None] / length[None]


@jax.jit
def _gradient_axes(x: Array) -> Array:
    """Orthonormal axes ``[D, d]`` of gradients, at most six."""
    vectors = gradient_vectors(x.astype(jnp.float32))
    return principal_axes(vectors, min(_AXES, vectors.shape[2]))


@functools.partial(jax.jit, static_argnums=2)
def _directions(x: Array, axes: Array, stride: int) -> tuple[Array, Array]:
    """Gradients ``[B, P, d]`` of every ``stride``-th position, and mean energies ``[B]``."""
    vectors = matmul(gradient_vectors(x.astype(jnp.float32)), axes)
    return vectors[:, ::stride], jnp.sum(vectors**2, axis=2).mean(1)


@functools.partial(jax.jit, donate_argnums=0)
def _add_agreement(gram: Array, gradients: Array, energy: Array) -> Array:
    """Adds the inner products of ``u u^T`` over a block of positions ``[B, P, D]``."""
    rows, columns = np.triu_indices(gradients.shape[2])
    # Off-diagonal entries occur twice in the full matrix.
    weight = np.where(rows == columns, 1.0, np.sqrt(2.0)).astype(np.float32)
    squared = jnp.sum(gradients**2, axis=2, keepdims=True)
    # A blank row has neither gradients nor energy.
    floor = jnp.maximum(_FLAT * energy[:, None, None], jnp.finfo(energy.dtype).tiny)
    outer = gradients[..., rows] * gradients[..., columns] * weight[None, None] / (squared + floor)
    outer = outer.reshape(len(gram), -1)
    outer = outer - outer.mean(0, keepdims=True)
    return gram + matmul(outer, outer.T)


def balanced_groups(similarity: HostArray, group_size: int) -> HostArray:
    """Splits rows into groups of equal size with large similarity inside.

    Args:
        similarity: float ``[B, B]``, symmetric; the diagonal is not used.
        group_size: ``M``, divides ``B``.

    Returns:
        int32 ``[B]``, the group of each row, from 0 to ``B / M - 1``.

    Raises:
        UsageError: a matrix that is not square, or a size that does not divide it.
    """
    if similarity.ndim != 2 or similarity.shape[0] != similarity.shape[1]:
        raise _validate.UsageError(
            f"similarity has shape {similarity.shape}, but must be [B, B]. Pass the result of "
            f"grouping.similarity."
        )
    _validate.positive(group_size=group_size)
    _validate.divides(group_size, divisor_name="group_size", mixtures=len(similarity))
    similarity = np.array(similarity, np.float32)
    np.fill_diagonal(similarity, 0.0)
    groups = _fill(similarity, _agglomerate(similarity, group_size), group_size)
    return _exchange(similarity, groups)


def _agglomerate(similarity: HostArray, limit: int) -> HostArray:
    """Average linkage that never joins clusters of more than ``limit`` rows together.

    Returns:
        int ``[B]``, a row of each one's cluster.
    """
    count = len(similarity)
    label = np.arange(count)
    size = np.ones(count)
    total = similarity.copy()  # sums of similarity between clusters

    def candidates(clusters: HostArray) -> HostArray:
        """Mean similarity ``[clusters, B]`` to clusters that may be joined, else -inf."""
        joined = size[clusters, None] + size
        allowed = (joined <= limit) & (size > 0) & (clusters[:, None] != np.arange(count))
        mean = total[clusters] / np.maximum(size[clusters, None] * size, 1)
        return np.where(allowed, mean, -np.inf)

    best, partner = np.empty(count), np.empty(count, int)

    def refresh(clusters: HostArray) -> None:
        for part in np.array_split(clusters, len(clusters) // 256 + 1):
            scores = candidates(part)
            partner[part], best[part] = scores.argmax(1), scores.max(1)

    refresh(np.arange(count))
    while (a := int(best.argmax())) >= 0 and best[a] > -np.inf:
        b = partner[a]
        total[a] += total[b]
        total[:, a] += total[:, b]
        size[a], size[b], best[b] = size[a] + size[b], 0, -np.inf
        label[label == b] = a
        # What pointed at either is stale, and so is what no longer fits beside the larger one.
        stale = (size > 0) & ((partner == a) | (partner == b))
        stale[a] = True
        refresh(np.flatnonzero(stale))
        # Others may now prefer the joined cluster.
        gain = candidates(np.array([a]))[0]
        better = gain > best
        best[better], partner[better] = gain[better], a
    return label


def _fill(similarity: HostArray, label: HostArray, group_size: int) -> HostArray:
    """Keeps the largest clusters as groups and gives the other rows to the free places."""
    from scipy.optimize import linear_sum_assignment  # a third of a second to import

    clusters, sizes = np.unique(label, return_counts=True)
    num_groups = len(label) // group_size
    kept = clusters[np.argsort(-sizes, kind="stable")[:num_groups]]
    groups = np.full(len(label), -1, np.int32)
    for number, cluster in enumerate(kept):
        groups[label == cluster] = number
    loose = np.flatnonzero(groups < 0)
    if len(loose):
        member = np.eye(num_groups, dtype=np.float32)[groups] * (groups >= 0)[:, None]
        mean = similarity[loose] @ (member / member.sum(0))
        places = np.repeat(np.arange(num_groups), group_size - member.sum(0).astype(int))
        groups[loose] = places[linear_sum_assignment(-mean[:, places])[1]]
    return groups


def _exchange(similarity: HostArray, groups: HostArray) -> HostArray:
    """Swaps rows between groups while that raises the sum of similarity within groups."""
    groups, rows = groups.copy(), np.arange(len(groups))
    while True:
        member = np.eye(groups.max() + 1, dtype=np.float32)[groups]
        to_group = similarity @ member
        change = to_group - to_group[rows, groups][:, None]  # of moving a row, room or not
        moved = change[:, groups]
        gain = moved + moved.T - 2 * similarity
        gain[groups[:, None] == groups] = 0
        partner = gain.argmax(1)
        value = gain[rows, partner]
        touched: set[int] = set()
        for row in np.argsort(-value):
            a, b = groups[row], groups[partner[row]]
            if value[row] <= 1e-4:
                break
            if not touched & {int(a), int(b)}:
                groups[row], groups[partner[row]] = b, a
                touched |= {int(a), int(b)}
        if not touched:
            return groups


def joint_similarity(mixtures: Array, *, rng_key: RngKey) -> HostArray:
    """How far rows share sources of one ICA over all of them, float32 ``[B, B]`` in [0, 1].

    The mixing of all rows together is one orthogonal matrix with a block for every group, and so
    is its inverse: rows of different groups have no source in common. For few rows, since a
    ``[B, B]`` matrix must be found.

    Args:
        mixtures: float ``[B, H, W, C]``, in any order; ``B`` at least 2.
        rng_key: draws the starts; consumed.
    """
    weights = np.abs(np.asarray(separate(mixtures[None], rng_key=rng_key).unmixing[0]))
    return weights.T @ weights


def regroup(mixtures: Array, group_size: int, *, rng_key: RngKey) -> HostArray:
    """The group of each of ``B`` shuffled mixtures, int32 ``[B]``; see the module's text.

    Up to 64 rows, what ICA over all of them says counts too: in groups of two, where rows of one
    group may hardly share an image, it is the better of the two.

    Args:
        mixtures: float ``[B, H, W, C]``, as they were sent.
        group_size: ``M``, public.
        rng_key: consumed.

    Raises:
        UsageError: as ``similarity`` and ``balanced_groups``.
    """
    agreement = similarity(mixtures)
    if 2 <= len(mixtures) <= _JOINT:
        agreement = agreement + joint_similarity(mixtures, rng_key=rng_key)
    return balanced_groups(agreement, group_size)


class Match(NamedTuple):
    """Groups that were found, beside the true ones.

    Attributes:
        share_right: of rows that are in the right group.
        truth_of: int ``[G]``, the true group that each found one stands for.
    """

    share_right: float
    truth_of: HostArray


def match_groups(found: HostArray, truth: HostArray) -> Match:
    """The one-to-one match of found and true groups with most rows right.

    Args:
        found: int ``[B]``, groups from 0.
        truth: int ``[B]``, groups from 0.
    """
    from scipy.optimize import linear_sum_assignment  # a third of a second to import

    size = int(max(found.max(), truth.max())) + 1
    overlap = np.zeros((size, size), int)
    np.add.at(overlap, (found, truth), 1)
    rows, columns = linear_sum_assignment(-overlap)
    return Match(float(overlap[rows, columns].sum() / len(truth)), columns)


def _run(target: Target, recording: Recording, rng_key: RngKey, config: AttackConfig) -> Result:
    """The chain; groups of the recording are forgotten by a shuffle, and serve for scoring."""
    order_key, group_key, choose_key, separate_key, chance_key = jax.random.split(rng_key, 5)
    group_size, count = recording.view.group_size, len(recording.groups)
    if group_size == 1:
        return blind.score(recording, by_group(recording.view.mixtures, recording), THREAT_MODEL)
    order = np.asarray(jax.random.permutation(order_key, count))
    sent, true = recording.view.mixtures[order], recording.groups[order]

    found = regroup(sent, group_size, rng_key=group_key)
    separate_groups = robust.choose(target, choose_key).separate
    together = mixing.group(sent[np.argsort(found, kind="stable")], group_size)
    sources = separate_groups(together, rng_key=separate_key).sources

    # One match over all rows: images of wrongly split groups count wherever they went.
    arrays = sources, sent, recording.owner_activations, recording.activations
    recovered, floor, owner, truth = (
        np.asarray(x).reshape(1, count, *x.shape[-3:]) for x in arrays
    )
    reached, low, high = (blind.recovery(x, truth) for x in (recovered, floor, owner))
    guessed = np.asarray(jax.random.permutation(chance_key, found))
    chance = match_groups(guessed, true).share_right
    regrouped = Figure(
        "share of shuffled mixtures put into the right group",
        match_groups(found, true).share_right,
        chance,
        1.0,
        THREAT_MODEL,
        chance=chance,
        ceiling=1.0,
    )
    separated = blind.figures(reached, low, high, THREAT_MODEL)
    return Result((regrouped, *separated), blind.matched(recovered, truth)[0])


def _unsuitable(target: Target) -> str | None:
    return robust.ROBUST.unsuitable(target) or blind.needs_both_directions(target)


SHUFFLED_CHAIN = Attack("shuffled_chain", THREAT_MODEL, _run, _unsuitable, one_matrix=True)
"""Regroups shuffled mixtures, then separates the groups that were found."""
