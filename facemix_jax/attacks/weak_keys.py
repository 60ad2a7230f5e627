"""Secrets that come from JAX's generator are found by trying its seeds.

``jax.random.key(int)`` keeps 32 bits, so that a matrix drawn from it is one of four billion,
however Haar it looks. Every rotation of a group has the same Gram matrix and row space: those
cannot tell the right one. The images can: their gradients are far from Gaussian, mixtures' are
close to it, so that the right matrix stands out by the contrast of what it unmixes.

``facemix_jax.keys`` draws secrets of 256 bits from the operating system, which no search finds;
this attack is the reason. The search gives order and sign too, and what it finds gives every
other draw of the same generator.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from facemix_jax import _validate, defenses
from facemix_jax._types import Array, HostArray, RngKey
from facemix_jax.attacks.base import (
    Attack,
    AttackConfig,
    Figure,
    Recording,
    Result,
    Target,
    truth_by_group,
)
from facemix_jax.attacks.groups import correlation, matched
from facemix_jax.attacks.unmixing import contrast, gradients
from facemix_jax.defenses import Defense

SEED_BITS = 12
"""Of the seeds that the attack's own requests are drawn from, so that a search takes seconds."""

_CHUNK = 256
"""Seeds tried in one call."""

_SAMPLES = 1024
"""Differences per row; more would hardly sharpen the contrast of partly unmixed rows."""

_OUTSTANDING = 2.0
"""How far the best seed must lie from the median, in distances of the second best. On real faces,
1.46 was the largest of 128 windows of 4,096 wrong seeds, and the right seed reached 2.4 or more
at M = 8 and 7.7 at M = 16. Groups of 2 and 4 have so few rotations that wrong seeds come close to
the right one: it does not stand out, but whichever is best unmixes."""

THREAT_MODEL = (
    "knows how the user draws matrices, and that each request's secret comes from a JAX seed below "
    f"2^{SEED_BITS} (all 2^32 take 2^{32 - SEED_BITS} times as long); the recording's images are "
    "sent again with such seeds, one group a request"
)


class SeedSearch(NamedTuple):
    """What a search over seeds found for ``G`` requests.

    Attributes:
        seed: int64 ``[G]``, the best seed of the window.
        found: bool ``[G]``, whether it stands out as none of a window of wrong seeds does.
        outstanding: float64 ``[G]``, its distance from the median, in the second best's.
        contrast: float32 ``[seeds, G]``, of every seed tried.
    """

    seed: HostArray
    found: HostArray
    outstanding: HostArray
    contrast: HostArray


def search_seeds(
    defense: Defense, mixtures: Array, *, first_seed: int = 0, num_seeds: int = 4096
) -> SeedSearch:
    """Tries a window of seeds on requests of one group each, all requests at once.

    Args:
        defense: how secrets are drawn and undone; public.
        mixtures: float ``[G, M, H, W, C]``, one request of a single group in each row.
        first_seed: start of the window.
        num_seeds: its length, at least 4; chunks of 256 are fastest.

    Raises:
        UsageError: a window outside of 32 bits, or too short.
    """
    _validate.in_range(0, 2**32 - 4, first_seed=first_seed)
    _validate.in_range(4, 2**32 - first_seed, num_seeds=num_seeds)
    samples = _samples(mixtures)
    seeds = np.arange(first_seed, first_seed + num_seeds, dtype=np.uint32)
    chunks = np.split(seeds, range(_CHUNK, num_seeds, _CHUNK))
    contrast = np.concatenate(
        [np.asarray(_contrasts(defense, jnp.asarray(c), samples)) for c in chunks]
    )
    ranked = np.sort(contrast, axis=0).astype(np.float64)
    middle = np.median(ranked, axis=0)
    spread = ranked[-2] - middle
    outstanding = (ranked[-1] - middle) / np.where(spread > 0, spread, np.inf)
    return SeedSearch(
        seeds[contrast.argmax(0)].astype(np.int64),
        outstanding >= _OUTSTANDING,
        outstanding,
        contrast,
    )


def _samples(mixtures: Array) -> Array:
    """Evenly spaced first differences down and across of every row: float32 ``[G, M, N]``."""
    flat = jax.vmap(gradients)(mixtures.astype(jnp.float32))
    return flat[:, :, :: max(1, flat.shape[2] // _SAMPLES)]


@functools.partial(jax.jit, static_argnums=0)
def _contrasts(defense: Defense, seeds: Array, samples: Array) -> Array:
    """Approximate negentropy of what every seed unmixes, float32 ``[seeds, G]``."""
    group_size = samples.shape[1]

    def of_seed(seed: Array) -> Array:
        # The order of sending is left out, as everywhere in this attack.
        secret = defense.init(jax.random.key(seed), group_size, True)
        unmixed = jax.vmap(lambda rows: defense.recover(secret, rows))(samples)
        scale = jnp.sqrt(jnp.mean(unmixed**2, axis=2, keepdims=True))
        return jax.vmap(contrast)(unmixed / jnp.where(scale > 0, scale, 1.0))

    return jax.vmap(of_seed)(seeds)


def _weak_randomness(
    target: Target, recording: Recording, rng_key: RngKey, config: AttackConfig
) -> Result:
    """Plays one request per group, each with a secret from a small seed, and searches for it."""
    truth = jnp.asarray(truth_by_group(recording.activations, recording))
    seeds = jax.random.randint(rng_key, (len(truth),), 0, 1 << SEED_BITS)
    group_size = truth.shape[1]
    secrets = [target.defense.init(jax.random.key(int(s)), group_size, True) for s in seeds]
    mixtures = jnp.stack(
        [target.defense.protect(s, x) for s, x in zip(secrets, truth, strict=True)]
    )
    owner = jnp.stack(
        [target.defense.recover(s, x) for s, x in zip(secrets, mixtures, strict=True)]
    )
    search = search_seeds(target.defense, mixtures, num_seeds=1 << SEED_BITS)
    recovered = jnp.stack(
        [
            target.defense.recover(
                target.defense.init(jax.random.key(int(seed)), group_size, True), sent
            )
            for seed, sent in zip(search.seed, mixtures, strict=True)
        ]
    )
    flat = [np.asarray(x).reshape(-1, *truth.shape[2:]) for x in (recovered, truth, owner)]
    attacker, originals, owners = flat
    floor = np.mean([matched(m, t) for m, t in zip(mixtures, truth, strict=True)])
    right = search.seed == np.asarray(seeds)
    return Result(
        (
            Figure(
                "mean |correlation| with a secret from a small seed",
                float(correlation(attacker, originals).mean()),
                float(floor),
                float(correlation(owners, originals).mean()),
                THREAT_MODEL,
            ),
            Figure(
                "share of secrets found from a small seed",
                float(right.mean()),
                0.0,
                1.0,
                THREAT_MODEL,
                chance=2.0**-SEED_BITS,
            ),
        ),
        attacker,
    )


def _unsuitable(target: Target) -> str | None:
    defense = target.defense
    secret = jax.eval_shape(lambda: defense.init(jax.random.key(0), defense.group_size, True))
    if defense.group_size < 2 or defenses.mix_key_of(secret) is None:
        return f"The defence {defense.name!r} draws no matrix for each group: no seed to search."
    if math.prod(target.model.spec.activation_shape[:2]) < 2:
        return "The maps have a single position, so no differences by which a seed is told."
    return None


WEAK_RANDOMNESS = Attack(
    "weak_randomness", THREAT_MODEL, _weak_randomness, _unsuitable, one_matrix=True
)
