"""The attacks of ``frontier.py`` in one registry, and what can be said of a variant without any."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import report
from sides import Sides

from facemix_jax import attacks
from facemix_jax.attacks import (
    alignment,
    blind,
    contrast,
    denoising,
    judge,
    membership,
    recognition,
    reconstruction,
    robust,
    separation,
    tile_faces,
)
from facemix_jax.attacks.base import by_group, truth_by_group
from facemix_jax.attacks.tiles import whole
from facemix_jax.attacks.unmixing import nearest_orthogonal

Found = dict[str, Any]
DELTA = 1e-5
LEARNED_IMAGES = 512
"""Test images that learned attackers are scored on."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frontier:
    """An attack as it is run here.

    Attributes:
        run: ``(target, recording, rng_key, effort) -> cell``.
        unsuitable: reason why not, or None.
        people: whether it needs pictures of people to recognise.
    """

    run: Callable[[attacks.Target, attacks.Recording, Any, attacks.AttackConfig], Found]
    unsuitable: Callable[[attacks.Target], str | None] = lambda target: None
    people: bool = False


_made: dict[tuple[str, int], tuple[Any, Any]] = {}
"""What several attacks on one recording share, by what it is and the recording."""


def _once(name: str, recording: attacks.Recording, make: Callable[[], Any]) -> Any:
    """What ``make`` gives, made once for each recording."""
    place = name, id(recording)
    if place not in _made:
        _made[place] = recording, make()  # the recording stays, and so its id
    return _made[place][1]


def _rated(
    target: attacks.Target, recording: attacks.Recording, recovered: Any, figures: Any
) -> Found:
    """Figures of a separation, as they are and with every side's rows filtered alike."""
    filters = _once("filters", recording, lambda: denoising.fit(target))
    sides = _once("sides", recording, lambda: Sides(filters, recording))
    return {
        "figures": report.figures(figures),
        "filtered": sides(np.asarray(recovered).reshape(sides.truth.shape)),
    }


def _separation(attack: attacks.Attack) -> Frontier:
    def run(target: Any, recording: Any, rng_key: Any, effort: Any) -> Found:
        found = _once(
            attack.name, recording, lambda: attack.run(target, recording, rng_key, effort)
        )
        return _rated(target, recording, found.recovered, found.figures)

    return Frontier(run=run, unsuitable=attack.unsuitable)


def _learned(attack: attacks.Attack, people: bool = False) -> Frontier:
    def run(target: Any, recording: Any, rng_key: Any, effort: Any) -> Found:
        seen = whole(target)
        groups = max(1, LEARNED_IMAGES // target.defense.group_size)
        rows = attacks.recorded_rows(seen, groups)
        recorded = attacks.record(seen, rows, rng_key=jax.random.fold_in(rng_key, 1))
        found = attack.run(seen, recorded, rng_key, effort)
        return {"figures": report.figures(found.figures)}

    return Frontier(run=run, unsuitable=lambda t: attack.unsuitable(whole(t)), people=people)


def _rotations(target: Any, recording: Any, rng_key: Any) -> tuple[Any, Any]:
    """Rotations that bring tiles under a common one, and the rows that they turn."""

    def make() -> tuple[Any, Any]:
        precision_key, align_key = jax.random.split(rng_key)
        axes, inverse = (jnp.asarray(x) for x in alignment.precision(target, precision_key))
        mixtures = by_group(recording.view.mixtures, recording)
        return alignment.common_rotation(mixtures, axes, inverse, rng_key=align_key)

    found: tuple[Any, Any] = _once("rotations", recording, make)
    return found


def _aligned_sources(target: Any, recording: Any, rng_key: Any) -> Any:
    """What ``alignment`` finds, one image in all tiles of a source."""
    rotation_key, separate_key = jax.random.split(rng_key)
    shape = recording.view.mixtures.shape[1:]

    def make() -> Any:
        rotations, by_tile = _rotations(target, recording, rotation_key)
        return alignment.separate_under_common(
            rotations, by_tile, shape, target.model.spec.grid, rng_key=separate_key
        ).sources

    return _once("aligned", recording, make)


def _alignment(target: Any, recording: Any, rng_key: Any, effort: Any) -> Found:
    sources = _aligned_sources(target, recording, rng_key)
    found = blind.score(recording, sources, alignment.THREAT_MODEL)
    return _rated(target, recording, found.recovered, found.figures)


def _granted_sources(target: Any, recording: Any, rng_key: Any) -> Any:
    """Aligned tiles under the best common rotation, which the truth shows: ``[T * G, M, ...]``."""
    truth = truth_by_group(recording.activations, recording)
    rotations, by_tile = _rotations(target, recording, jax.random.split(rng_key)[0])
    aligned = rotations @ by_tile
    true = truth.reshape(by_tile.shape)
    common = nearest_orthogonal(jnp.einsum("tgmp,tgnp->gmn", true, aligned))
    return (common[None] @ aligned).reshape(truth.shape)


def _granted_rotation(target: Any, recording: Any, rng_key: Any, effort: Any) -> Found:
    """A bound, no attack: tiles are aligned, and their best common rotation is granted."""
    sources = _granted_sources(target, recording, rng_key)
    figures = blind.score(recording, sources, "granted the common rotation").figures
    return _rated(target, recording, sources, figures)


def _faces(target: Any, recording: Any, rng_key: Any, effort: Any) -> Found:
    """The identity chain: separation, assembly, pictures, and whom a public recogniser sees.

    Whole maps by ``robust``. Of tiles, the attacker's own assembly is ``alignment``'s; the granted
    one is an upper bound, with the common rotation, the order and the sign of every tile granted.
    """
    decoder_key = jax.random.fold_in(rng_key, 1)
    truth = truth_by_group(recording.activations, recording)
    if target.model.spec.tiles > 1:
        aligned = _aligned_sources(target, recording, rng_key)
        granted = _granted_sources(target, recording, rng_key)
        separations = {
            "own assembly": (np.asarray(aligned), False),
            "granted assembly": (np.asarray(granted), True),
        }
    else:
        best = _once(
            robust.ROBUST.name,
            recording,
            lambda: robust.ROBUST.run(target, recording, rng_key, effort),
        ).recovered
        separations = {"granted assembly": (np.asarray(best).reshape(truth.shape), True)}
    pictures, losses = tile_faces.invert_tiles(
        target, recording, separations, rng_key=decoder_key, config=effort
    )
    verdicts = judge.judge_pictures(target, recording, pictures, judge.dlib_recogniser())
    size, judged = target.defense.group_size, len(verdicts["owner"].distance)
    return {
        "judged": judged,
        "decoder_loss": round(float(np.mean(losses[-10:])), 4),
        "chance": {"rank1_group": round(1 / size, 4), "rank1_gallery": round(1 / (judged + 64), 4)},
        "verdicts": {
            who: {
                "distance": round(float(verdict.distance.mean()), 4),
                "same_person": round(verdict.same_person, 4),
                "rank1_group": round(verdict.rank1_group, 4),
                "rank1_gallery": round(verdict.rank1_gallery, 4),
            }
            for who, verdict in verdicts.items()
        },
    }


def _members(target: Any, recording: Any, rng_key: Any, effort: Any) -> Found:
    found = membership.MEMBERSHIP.run(target, recording, rng_key, effort)
    return {"figures": report.figures(found.figures)}


def _needs_tiles(target: attacks.Target) -> str | None:
    return None if target.model.spec.tiles > 1 else "The maps are whole."


ATTACKS = {
    **{
        attack.name: _separation(attack)
        for attack in (
            separation.GRADIENT_ICA,
            robust.ROBUST,
            contrast.CONTRAST,
        )
    },
    "alignment": Frontier(run=_alignment, unsuitable=alignment.ALIGNMENT.unsuitable),
    "granted_rotation": Frontier(run=_granted_rotation, unsuitable=_needs_tiles),
    "faces": Frontier(run=_faces, unsuitable=judge.JUDGE.unsuitable),
    "membership": Frontier(run=_members, unsuitable=membership.MEMBERSHIP.unsuitable, people=True),
    "set_identity": _learned(recognition.SET_IDENTITY, people=True),
    "set_attributes": _learned(recognition.SET_ATTRIBUTES),
    "identity": _learned(recognition.IDENTITY, people=True),
    "attributes": _learned(recognition.ATTRIBUTES),
    "pix2pix": _learned(reconstruction.PIX2PIX),
}
"""By name."""

SEPARATIONS = ("gradient_ica", "robust", "alignment", "contrast")
"""Those that are compared by the mean matched |correlation|."""


def formal(target: attacks.Target, recording: attacks.Recording) -> Found:
    """What follows from the noise alone: differential privacy, and how well its owner can do.

    The Gaussian mechanism (Balle and Wang 2018, theorem 8) with the largest distance between two
    images of the recording as sensitivity: mixing with an orthogonal matrix keeps distances, so
    that the key changes nothing of this. Were a group's matrix known, this is what would be left.

    The owner's correlation without filtering is ``1 / sqrt(1 + noise^2)`` for rows whose entries
    vary equally. The best linear filter (Bayes' estimator under Gaussian statistics) reaches
    ``sqrt(1 - error / energy)``, the energies from the attacker's own images.
    """
    filters = _once("filters", recording, lambda: denoising.fit(target))
    deviation = float(jnp.std(recording.owner_activations - recording.activations))
    if deviation < 1e-3:
        return {"noise": 0.0, "epsilon": None, "owner_unfiltered": 1.0, "owner_bayes": 1.0}
    tiles = target.model.spec.tiles
    whole_maps = np.asarray(recording.activations, np.float64)
    by_tile = whole_maps.reshape(tiles, -1, math.prod(whole_maps.shape[1:]))
    order = np.argsort(recording.examples.reshape(tiles, -1), axis=1, kind="stable")
    maps = np.concatenate([rows[o] for rows, o in zip(by_tile, order, strict=True)], axis=1)
    squares = (maps**2).sum(1)
    distance = np.sqrt(np.maximum(squares[:, None] + squares - 2 * maps @ maps.T, 0))
    np.fill_diagonal(distance, np.nan)
    energy, noise = filters.energy.astype(np.float64), deviation**2
    error = (energy * noise / (energy + noise)).sum()
    relative = noise / maps.var()
    return {
        "noise": round(deviation / float(maps.std()), 4),
        "delta": DELTA,
        "sensitivity_over_noise": round(float(np.nanmax(distance)) / deviation, 1),
        "epsilon": round(gaussian_epsilon(float(np.nanmax(distance)) / deviation), 1),
        "epsilon_closest_pair": round(gaussian_epsilon(float(np.nanmin(distance)) / deviation), 1),
        "owner_unfiltered": round(1 / math.sqrt(1 + relative), 4),
        "owner_bayes": round(math.sqrt(1 - error / energy.sum()), 4),
    }


def gaussian_epsilon(ratio: float, delta: float = DELTA) -> float:
    """The exact epsilon of the Gaussian mechanism (Balle and Wang 2018).

    Args:
        ratio: sensitivity over the noise's standard deviation.
        delta: of (epsilon, delta)-differential privacy.
    """
    from scipy.optimize import brentq
    from scipy.special import log_ndtr

    def excess(epsilon: float) -> float:
        """Log of the least delta, minus the wanted one's; falls in ``epsilon``."""
        first = log_ndtr(ratio / 2 - epsilon / ratio)
        second = epsilon + log_ndtr(-ratio / 2 - epsilon / ratio)
        return float(first + np.log1p(-np.exp(min(second - first, -1e-15))) - math.log(delta))

    return float(brentq(excess, 0.0, ratio**2 / 2 + 10 * ratio + 1))
