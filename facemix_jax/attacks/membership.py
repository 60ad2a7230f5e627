"""Who is in a group? Pictures of candidates held against the row spaces that mixing leaves open.

An orthogonal matrix changes no row space, whatever the tiles: the very picture lies in that of its
group (``algebraic.SPAN``). Another picture of the same person is like it, so that a part of it may
lie there, too. In every tile the rows are whitened by the statistics of faces and noise, and a
person's score is the largest share of one of their pictures that lies in a group's row space.
"""

import jax
import numpy as np

from facemix_jax._types import HostArray, RngKey
from facemix_jax.attacks import recognition_scores as scores
from facemix_jax.attacks.base import (
    Attack,
    AttackConfig,
    Figure,
    Recording,
    Result,
    Target,
    by_group,
    record,
    truth_by_group,
)
from facemix_jax.attacks.groups import (
    activations,
    auxiliary_by_tile,
    needs_groups_of_images,
    noise_of,
)
from facemix_jax.attacks.recognition import people_of

THREAT_MODEL = (
    "knows which mixtures form a group, that it holds the same images in every tile, and the "
    "public network; has other pictures of the very people, and statistics of images among which "
    "some of the attacked may be; no key"
)

_AXES = 160
"""Directions of a row that are looked at."""

_MOST_GROUPS = 64
_AUXILIARY = 512
"""The attacker's own images."""


def whitening(target: Target, rng_key: RngKey) -> HostArray:
    """Matrices ``[T, P, D]`` that give rows, noise included, unit second moments along axes.

    The people's attacked pictures are drawn from all splits, so that some may be among the
    attacker's own here; of these, only statistics are used.

    Args:
        target: the system; its auxiliary images are the attacker's own.
        rng_key: draws a rehearsal's secret, which shows how much noise there is; consumed.
    """
    own = auxiliary_by_tile(target, _AUXILIARY)
    noise = noise_of(target, rng_key)
    made = []
    for rows in own:
        # Rows of whole maps are longer than there are images: their own products are smaller.
        axes = np.linalg.svd(rows, full_matrices=False)[2][:_AXES].T
        energy = ((rows @ axes) ** 2).mean(0)
        sizes = np.sqrt(energy + noise**2 + 1e-6 * energy.max())
        made.append(axes / np.where(sizes > 0, sizes, 1))  # zero in a tile that is dead
    return np.stack(made)


def share_inside(rows: HostArray, candidates: HostArray) -> HostArray:
    """Share of each candidate's energy in the row spaces of groups, mean of all tiles.

    A candidate that is zero in a tile, as all are in one that is dead after a ReLU, has no share
    there.

    Args:
        rows: ``[T, G, M, D]``, whitened.
        candidates: ``[T, n, D]``, whitened.

    Returns:
        ``[G, n]``.
    """
    _, _, basis = np.linalg.svd(rows, full_matrices=False)
    inside = np.einsum("tgmd,tnd->tgmn", basis, candidates, optimize=True)
    energy = (candidates**2).sum(2)[:, None]
    share = (inside**2).sum(2) / np.where(energy > 0, energy, 1)
    return share.mean(0)


def _run(target: Target, recording: Recording, rng_key: RngKey, config: AttackConfig) -> Result:
    people = people_of(target)
    assert people is not None
    record_key, noise_key = jax.random.split(rng_key)
    size, tiles = target.defense.group_size, target.model.spec.tiles
    order = np.random.default_rng(0).permutation(people.test)
    groups = min(_MOST_GROUPS, len(order) // size)
    order = order[: groups * size]
    request = record(target, order, rng_key=record_key)
    white = whitening(target, noise_key)

    def whitened(rows: HostArray) -> HostArray:
        """Rows tile by tile, ``[T, n, D]``."""
        flat = rows.reshape(tiles, -1, white.shape[1])
        return np.einsum("tnp,tpd->tnd", flat, white, optimize=True)

    images = np.asarray(target.source.images(people.train))
    candidates = whitened(activations(target, images))
    classes = np.zeros(len(target.source), np.int32)
    classes[people.test] = people.test_classes
    true = classes[order].reshape(groups, size)

    def named(shares: HostArray) -> float:
        best = [shares[:, people.train_classes == i].max(1) for i in range(len(people.people))]
        return scores.named_share(np.stack(best, axis=1), true)

    mixtures = whitened(np.asarray(by_group(request.view.mixtures, request)))
    seen = request.view.group_size  # fewer than members where there are several clouds
    value = named(share_inside(mixtures.reshape(tiles, groups, seen, -1), candidates))
    own = whitened(np.asarray(truth_by_group(request.owner_activations, request)))
    singles = share_inside(own.reshape(tiles, groups * size, 1, -1), candidates)
    owner = named(singles.reshape(groups, size, -1).max(1))
    floor = scores.named_by_frequency(people.train_classes, len(people.people), true)
    chance = min(1.0, size / len(people.people))
    name = "share of a group's people among the M named"
    return Result((Figure(name, value, floor, owner, THREAT_MODEL, chance),))


def _unsuitable(target: Target) -> str | None:
    if people_of(target) is None:
        return f"{target.source.name} shows too few people with several images."
    if target.defense.group_size < 2:
        return "Nothing is mixed: a group has one row."
    return needs_groups_of_images(target)


MEMBERSHIP = Attack("membership", THREAT_MODEL, _run, _unsuitable, by_tile=True, fewer_rows=True)
"""Candidates' pictures against the row spaces of all tiles; grouping granted."""
