"""All attacks on one target, in one order: the paper's first, ``robust`` last.

No weak attacker's figure stands alone: what is known to be stronger runs beside it.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from facemix_jax import _validate
from facemix_jax._types import RngKey
from facemix_jax.attacks import (
    adversarial,
    algebraic,
    alignment,
    collusion,
    contrast,
    grouping,
    inversion,
    judge,
    membership,
    nonnegative,
    output,
    picard,
    recognition,
    reconstruction,
    restoration,
    robust,
    separation,
    vectors,
    weak_keys,
)
from facemix_jax.attacks.base import (
    Attack,
    AttackConfig,
    Recording,
    Result,
    Target,
    record,
    recorded_rows,
)
from facemix_jax.attacks.tiles import spread, whole


def _one_row_each(attack: Attack) -> Attack:
    """The attack, refused where the cloud sees other rows than one for each example."""

    def reason(target: Target) -> str | None:
        rows = target.defense.rows
        if rows is None or (attack.fewer_rows and rows.seen <= target.defense.group_size):
            return attack.unsuitable(target)
        if attack.fewer_rows:
            return "This attack takes one row for each image at most, but decoys are more."
        return (
            "This attack takes one row for each image, but with decoys, blinding or several "
            "clouds the cloud sees others."
        )

    return attack if attack.any_rows else attack._replace(unsuitable=reason)


ATTACKS: dict[str, Attack] = {
    attack.name: _one_row_each(attack)
    for attack in (
        # Blind to the structure of mixing: the paper's, and the fair versions of them.
        recognition.ATTRIBUTES,
        recognition.IDENTITY,
        reconstruction.PIX2PIX,
        recognition.SET_ATTRIBUTES,
        recognition.SET_IDENTITY,
        # Need more than one request's mixtures.
        algebraic.SPAN,
        algebraic.KNOWN_PLAINTEXT,
        algebraic.REUSED_KEY,
        algebraic.INTERSECTION,
        membership.MEMBERSHIP,
        weak_keys.WEAK_RANDOMNESS,
        collusion.COLLUSION,
        # Blind separation.
        nonnegative.NONNEGATIVE,
        adversarial.ADVERSARIAL,
        vectors.IVA,
        contrast.CONTRAST,
        alignment.ALIGNMENT,
        picard.PICARD,
        grouping.SHUFFLED_CHAIN,
        separation.GRADIENT_ICA,
        # Where there is no key.
        restoration.RESTORATION,
        # What separation opens.
        output.OUTPUT,
        inversion.INVERSION,
        judge.JUDGE,
        robust.ROBUST,
    )
}
"""By name."""

_DEFAULT = AttackConfig()

STRONGEST = robust.ROBUST.name
"""Of whole maps behind the image; runs whatever else is asked for."""

ON_TILES = separation.GRADIENT_ICA.name, alignment.ALIGNMENT.name, contrast.CONTRAST.name
"""Each was the strongest on some network with tiles: run as well where maps are cut into them."""

ON_IMAGES = (vectors.IVA.name,)
"""Was the strongest on images, without noise and with a lot of it: runs as well at cut 0."""

WHO = {recognition.IDENTITY.name, recognition.SET_IDENTITY.name}
"""Who is in a group, asked of networks; ``membership``, which names more, runs as well."""

WITHOUT_KEY = reconstruction.PIX2PIX.name, restoration.RESTORATION.name
"""Run as well where noise or blurring has to be undone instead of mixing."""


class Suite(NamedTuple):
    """What every attack reached.

    Attributes:
        recording: the request that was attacked, by tile where there are tiles.
        whole: the same with whole maps.
        results: by the attack's name, in the order of ``ATTACKS``.
        skipped: name to the reason why an attack had nothing to work with.
    """

    recording: Recording
    whole: Recording
    results: dict[str, Result]
    skipped: dict[str, str]


def run_suite(
    target: Target,
    names: Iterable[str] = tuple(ATTACKS),
    *,
    rng_key: RngKey,
    config: AttackConfig = _DEFAULT,
    say: Callable[[str], None] = lambda text: None,
) -> Suite:
    """Attacks one recorded request, and the system behind it, in every way that is asked for.

    An attack's figures do not depend on which others run. Where maps are cut into tiles, blind
    separation gets every tile for itself and the other attacks get whole maps. Where a map has a
    single position, separation gets its channels in the place of positions.

    Args:
        target: the system.
        names: of attacks; those that are known to be stronger are added where they are missing.
        rng_key: draws the recording's secret and the attacks' randomness; consumed.
        config: effort.
        say: told the name of each attack before it starts.

    Raises:
        UsageError: an unknown name, or a split, the attacked or the attacker's own, smaller than
            one group, or what one of the strongest attacks refuses of a recording.
        DataError: the network's activations or what is sent of them are not finite, as of one
            that diverged, or all images have the same, or ``STRONGEST`` or one of ``WITHOUT_KEY``
            diverged where it is needed.
    """
    names = {*names}
    for name in sorted(names):
        _validate.one_of(ATTACKS, attack=name)
    needed = {STRONGEST}
    if target.defense.name != "none" and not target.defense.keyed:
        needed |= {*WITHOUT_KEY}
    wanted = names | needed | _stronger(target, names)
    rows = recorded_rows(target, config.num_groups)
    own = len(target.source.splits[target.auxiliary_split])
    if own < target.defense.group_size:
        raise _validate.UsageError(
            f"the attacker's own images, the {target.auxiliary_split} split, are {own}, fewer than "
            f"one group of {target.defense.group_size}. Attack another split, or use more images."
        )
    record_key = jax.random.fold_in(rng_key, 0)
    recording = record(target, rows, rng_key=record_key)
    if not all(jnp.isfinite(x).all() for x in (recording.activations, recording.view.mixtures)):
        raise _validate.DataError(
            "the network's activations of the attacked images, or what is sent of them, hold NaN "
            "or infinities, from which nothing can be learned. Look whether its training diverged."
        )
    among = 0 if len(recording.activations) > 1 else None  # one row has no other one to differ from
    if not jnp.ptp(recording.activations, axis=among).any():
        raise _validate.DataError(
            "the edge's part is dead: every attacked image gives the same activations, from which "
            "nothing can be learned. Look at its training, or attack other images."
        )
    views = {True: (target, recording), False: (target, recording)}
    for by_tile, seen in ((True, spread(target)), (False, whole(target))):
        if seen is not target:
            views[by_tile] = seen, record(seen, rows, rng_key=record_key)
    results: dict[str, Result] = {}
    skipped: dict[str, str] = {}
    for index, (name, attack) in enumerate(ATTACKS.items(), 1):
        if name not in wanted:
            continue
        seen, recorded = views[attack.by_tile]
        reason = attack.unsuitable(seen)
        if attack.one_matrix and not seen.defense.one_matrix:
            reason = "It looks for one matrix of a group's whole maps, but each tile has its own."
        if reason is not None:
            skipped[name] = reason
            continue
        say(name)
        try:
            results[name] = attack.run(seen, recorded, jax.random.fold_in(rng_key, index), config)
        except (_validate.UsageError, _validate.DataError) as error:
            # Of this recording, such as one in which all images have the same attributes, or of an
            # attacker that diverged: what the others found is not lost.
            if name in needed:
                raise
            skipped[name] = str(error)
    return Suite(recording, views[False][1], results, skipped)


def _stronger(target: Target, names: set[str]) -> set[str]:
    """What is known to be stronger than ``STRONGEST`` or ``names`` on such a target."""
    spec = target.model.spec
    return {
        *(ON_TILES if spec.tiles > 1 else ()),
        *(ON_IMAGES if spec.cut == 0 else ()),
        *((membership.MEMBERSHIP.name,) if names & WHO else ()),
    }
