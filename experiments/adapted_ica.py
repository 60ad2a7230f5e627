"""Separation adapted to a network: ICA on the filters in which its codes are least Gaussian.

Training makes the codes' gradients Gaussian, and the attacker has the network that came of it.
Mixing commutes with every linear filter, so that the attacker looks in patches of codes of its own
for filters whose answers are least Gaussian (FastICA over the numbers of a patch), whatever their
energy, and separates the mixtures' answers to those. Where the defence adds noise, it looks in
codes with such noise as well, as answers that drown in it help no one. Which filters and how many,
a rehearsal on own images says.
"""

import functools
import itertools
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from facemix_jax import attacks
from facemix_jax._types import Array, HostArray
from facemix_jax.attacks import blind
from facemix_jax.attacks.base import by_group
from facemix_jax.attacks.groups import auxiliary_activations, noise_of
from facemix_jax.attacks.separation import fast_ica
from facemix_jax.attacks.unmixing import Separation, apply_unmixing, contrast, matmul, whiten

THREAT_MODEL = (
    "knows which mixtures form a group and that the mixing is orthogonal; the public network and "
    "own images to learn filters from and to rehearse on; no key"
)

_IMAGES, _PATCHES, _REHEARSED, _RESTARTS = 256, 20_000, 4, 3
_SIDE = 3
_NO_NOISE = 1e-3
"""Of the codes' deviation: what rounding leaves."""
_SHARES = (0.1, 0.3, 1.0)
"""Of the filters, the least Gaussian first."""


def _patches(codes: Array) -> Array:
    """``[B, H, W, C]`` to ``[B, P, side * side * C]``."""
    height, width = codes.shape[1] - _SIDE + 1, codes.shape[2] - _SIDE + 1
    moved = [codes[:, i : i + height, j : j + width] for i in range(_SIDE) for j in range(_SIDE)]
    return jnp.concatenate(moved, axis=3).reshape(len(codes), height * width, -1)


def filters(codes: HostArray, seed: int) -> HostArray:
    """Filters ``[D, K]`` of patches, the least Gaussian answers first, of equal energy."""
    from sklearn.decomposition import FastICA  # slow to import
    from sklearn.exceptions import ConvergenceWarning

    rows = np.asarray(_patches(jnp.asarray(codes)))
    # In float32 the decorrelation of so many filters may break down to one filter.
    rows = rows.reshape(-1, rows.shape[-1]).astype(np.float64)
    rng = np.random.default_rng(seed)
    rows = rows[rng.choice(len(rows), min(_PATCHES, len(rows)), replace=False)]
    ica = FastICA(whiten="unit-variance", max_iter=50, tol=1e-2, random_state=seed)
    with warnings.catch_warnings():  # as far as it comes in so many steps
        warnings.simplefilter("ignore", ConvergenceWarning)
        answers = jnp.asarray(ica.fit_transform(rows), jnp.float32).T
    scores = np.asarray(jax.vmap(lambda y: contrast(y[None]))(answers / answers.std(1)[:, None]))
    return np.asarray(ica.components_[np.argsort(-scores)].T, np.float32)


@jax.jit
def _separate_group(mixture: Array, evidence: Array, starts: Array) -> tuple[Array, Array]:
    whitening, white = whiten(evidence)

    def one(start: Array) -> tuple[Array, Array]:
        rotation, _, _ = fast_ica(white, start, 100, 1e-4)
        return rotation, contrast(matmul(rotation, white))

    rotations, contrasts = jax.lax.map(one, starts)
    best = rotations[jnp.argmax(contrasts)]
    return apply_unmixing(matmul(best, whitening), mixture, True)


def _separate(chosen: HostArray, mixtures: Array, *, rng_key: Any) -> Separation:
    groups, size = mixtures.shape[:2]
    starts = jax.random.orthogonal(rng_key, size, (groups, _RESTARTS))
    found = []
    for mixture, start in zip(mixtures.astype(jnp.float32), starts, strict=True):
        answers = matmul(_patches(mixture), jnp.asarray(chosen)).reshape(size, -1)
        found.append(_separate_group(mixture, answers, start))
    unmixing, sources = (jnp.stack(part) for part in zip(*found, strict=True))
    return Separation(unmixing, sources, jnp.zeros(groups, jnp.int32), jnp.ones(groups, bool))


def _prepare(target: Any, recording: Any, rng_key: Any, config: Any) -> blind.Separate:
    record_key, separate_key, noise_key = jax.random.split(rng_key, 3)
    codes = auxiliary_activations(target, _IMAGES)
    banks = [filters(codes, 0)]
    noise = noise_of(target, noise_key)
    if noise > _NO_NOISE * codes.std():
        drawn = np.random.default_rng(0).normal(0, noise, codes.shape)
        banks.append(filters(codes + drawn.astype(np.float32), 0))
    rows = target.source.splits[target.auxiliary_split]
    own = attacks.record(target, rows[: _REHEARSED * target.defense.group_size], rng_key=record_key)
    best: tuple[float, Any] = (-1.0, None)
    for learnt, share in itertools.product(banks, _SHARES):
        some = learnt[:, : max(1, round(share * learnt.shape[1]))]
        candidate = functools.partial(_separate, some)
        found = candidate(by_group(own.view.mixtures, own), rng_key=separate_key)
        reached = blind.score(own, found.sources, THREAT_MODEL).figures[0].value
        if reached > best[0]:
            best = reached, candidate
    chosen: blind.Separate = best[1]
    return chosen


ADAPTED = blind.attack("adapted_ica", THREAT_MODEL, _prepare)
"""Grouping granted."""
