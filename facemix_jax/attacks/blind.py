"""Scores of blind separation, and the attack that every kind of it becomes."""

from collections.abc import Callable
from typing import Protocol

import jax
import numpy as np
from numpy.typing import ArrayLike

from facemix_jax import _validate, metrics
from facemix_jax._types import Array, HostArray, RngKey
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
from facemix_jax.attacks.unmixing import Separation

CORRELATION = "mean matched |correlation|"
RECOVERED = "share of images recovered at |correlation| 0.9 or more"


class Separate(Protocol):
    """Separates groups."""

    def __call__(self, mixtures: Array, *, rng_key: RngKey) -> Separation:
        """Mixtures float ``[G, M, H, W, C]``; ``rng_key`` is consumed."""
        ...


def no_attack(mixtures: Array) -> Array:
    """The floor: the mixtures themselves, ``[G, M, ...]``, already resemble the images."""
    return mixtures


def recovery(sources: ArrayLike, truth: ArrayLike) -> HostArray:
    """Matched |correlation| of every image, float64 ``[G, n]``.

    Where there are fewer sources than images, ``[G, m]``: of the images that they match best.

    Args:
        sources: ``[G, m, ...]``, recovered in any order, sign and scale.
        truth: ``[G, n, ...]``.

    Raises:
        DataError: values that are not finite.
        UsageError: other numbers of groups, or rows of other shapes.
    """
    sources, truth = np.asarray(sources), np.asarray(truth)
    if (len(sources), *sources.shape[2:]) != (len(truth), *truth.shape[2:]):
        raise _validate.UsageError(
            f"sources have shape {sources.shape} and true images {truth.shape}, but both must be "
            f"[G, M, ...] alike. Pass the groups that were mixed."
        )
    scores = [_match(s, t).per_source for s, t in zip(sources, truth, strict=True)]
    images, found = truth.shape[1], min(sources.shape[1], truth.shape[1])
    kept = np.stack(scores)[:, :images]
    return kept if found == images else -np.sort(-kept)[:, :found]


def _match(sources: HostArray, truth: HostArray) -> metrics.MatchedCorrelation:
    """The assignment of one group, whichever side is shorter."""
    size = max(len(sources), len(truth))
    return metrics.matched_correlation(_filled(sources, size), _filled(truth, size))


def _filled(rows: HostArray, size: int) -> HostArray:
    """``[size, ...]``: zeros, which correlate with nothing, after what there is."""
    return np.concatenate([rows, np.zeros((size - len(rows), *rows.shape[1:]), rows.dtype)])


def needs_both_directions(target: Target) -> str | None:
    """Why an attack on differences down and across has nothing to work with, or None."""
    height, width = target.model.spec.activation_shape[:2]
    if min(height, width) > 1:
        return None
    return f"The maps are {height} x {width}, with no differences in both directions."


def needs_orthogonal(target: Target) -> str | None:
    """Why an attack that takes the matrix for orthogonal has nothing to work with, or None."""
    if target.defense.orthogonal:
        return None
    return "It takes the mixing matrix for orthogonal, but this family is not."


def figures(
    attacker: HostArray, floor: HostArray, owner: HostArray, threat_model: str
) -> tuple[Figure, ...]:
    """The two figures of a separation from matched |correlations|, as ``recovery`` gives them.

    Where there are fewer rows than images, the correlation is that of as many images as there are
    rows, which the threat model says; the share is one of all images.
    """
    known = threat_model
    if attacker.size < owner.size:
        known += "; correlation of the images that the rows match best"

    def figure(name: str, known: str, scored: Callable[[HostArray], float]) -> Figure:
        return Figure(name, scored(attacker), scored(floor), scored(owner), known)

    return (
        figure(CORRELATION, known, lambda score: float(score.mean())),
        figure(RECOVERED, threat_model, lambda score: float((score >= 0.9).sum() / owner.size)),
    )


def matched(sources: HostArray, truth: HostArray) -> HostArray:
    """Sources ``[G, m, ...]`` in the order and sign of the truth ``[G, n, ...]``.

    Images for which no source is left get zeros.
    """
    groups = []
    for found, images in zip(sources, truth, strict=True):
        match = _match(found, images)
        signs = match.signs.astype(found.dtype).reshape(-1, *(1,) * (found.ndim - 1))
        ordered = _filled(found, len(match.permutation))[match.permutation] * signs
        groups.append(ordered[: len(images)])
    return np.stack(groups)


def score(recording: Recording, sources: Array, threat_model: str) -> Result:
    """Scores what was recovered of a recording whose groups were granted.

    Args:
        recording: the request.
        sources: float ``[G, m, ...]``, group by group.
        threat_model: of the attack.
    """
    truth, owner = (
        np.asarray(truth_by_group(rows, recording))
        for rows in (recording.activations, recording.owner_activations)
    )
    found = np.asarray(sources)
    mixtures = by_group(recording.view.mixtures, recording)
    attacker, floor, own = (recovery(a, truth) for a in (found, mixtures, owner))
    recovered = matched(found, truth).reshape(recording.activations.shape)
    return Result(figures(attacker, floor, own, threat_model), recovered)


def attack(
    name: str,
    threat_model: str,
    prepare: Callable[[Target, Recording, RngKey, AttackConfig], Separate],
    *,
    unsuitable: Callable[[Target], str | None] = lambda target: None,
    any_rows: bool = False,
) -> Attack:
    """The attack that separates a recording's groups.

    Without groups there is nothing to separate: what is recovered are the mixtures.

    Args:
        name: registry name.
        threat_model: one line; the grouping is granted, which it must say.
        prepare: ``(target, recording, rng_key, config)`` to the separation, which may be trained
            on the attacker's own images first.
        unsuitable: as ``Attack.unsuitable``; maps of one position are refused in any case.
        any_rows: as ``Attack.any_rows``.
    """

    def run(target: Target, recording: Recording, rng_key: RngKey, config: AttackConfig) -> Result:
        mixtures = by_group(recording.view.mixtures, recording)
        if recording.view.group_size == 1:
            return score(recording, mixtures, threat_model)
        prepare_key, separate_key = jax.random.split(rng_key)
        separate = prepare(target, recording, prepare_key, config)
        return score(recording, separate(mixtures, rng_key=separate_key).sources, threat_model)

    def reason(target: Target) -> str | None:
        if target.defense.name != "none" and not target.defense.keyed:
            return f"The defence {target.defense.name!r} mixes nothing that could be separated."
        height, width = target.model.spec.activation_shape[:2]
        if height * width < 2 and target.defense.group_size > 1:
            return (
                "The activations are 1 x 1 maps, without samples. Attack what tiles.spread gives."
            )
        return unsuitable(target)

    return Attack(name, threat_model, run, reason, by_tile=True, any_rows=any_rows)
