"""What an attacker sees, what else it may use, and what an attack yields."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from facemix_jax import _validate, defenses, inference, mixing
from facemix_jax._types import Array, HostArray, RngKey, Variables
from facemix_jax.data import Source, normalize
from facemix_jax.defenses import Defense
from facemix_jax.models import SplitModel

_PART = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """Everything that an honest but curious cloud sees of one request.

    ``R`` rows are seen: as many as there are examples, or tiles of examples, unless the defence has
    decoys or divides rows among clouds.

    Attributes:
        mixtures: float ``[R, ...]``, activations as they were sent.
        responses: float ``[R, D]``, what main made of them.
        main_variables: main's weights and statistics: the cloud runs it.
        group_size: ``M``, rows of a group that the cloud sees; public.
    """

    mixtures: Array
    responses: Array
    main_variables: Variables
    group_size: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """A trained system under attack, and the public knowledge that attacks are granted.

    The network and its weights are public (the paper's section 3.1), and, we assume, the defence's
    algorithm; secrets are not, and every request has a fresh one. Images of ``auxiliary_split`` and
    their labels are the attacker's own; images of ``split`` are attacked, and serve for scoring
    only.

    Attributes:
        model: the split network.
        defense: how activations are protected.
        variables: ``{"pre", "main", "post"}``.
        source: the images.
        split: the attacked split.
        auxiliary_split: the attacker's own images.
    """

    model: SplitModel
    defense: Defense
    variables: Variables
    source: Source
    split: str = "test"
    auxiliary_split: str = "train"

    def __post_init__(self) -> None:
        """Checks the splits."""
        for split in (self.split, self.auxiliary_split):
            _validate.one_of(self.source.splits, split=split)
        if self.split == self.auxiliary_split:
            raise _validate.UsageError(
                f"The {self.split} split is attacked and holds the attacker's own images, too, but "
                f"an attacker that has the attacked images has won. Choose two splits."
            )


def own_split(split: str) -> str:
    """The split whose images are the attacker's own where ``split`` is attacked."""
    return "test" if split == "train" else "train"


class Recording(NamedTuple):
    """One request as both sides know it.

    The cloud's side is ``view``; the rest is for scoring.

    Attributes:
        view: what the cloud saw.
        images: uint8 ``[B, H, W, 3]``.
        attributes: int8 ``[B, K]``.
        identities: int32 ``[B]``.
        activations: float32 ``[N, ...]``, before protection, ``N`` examples or tiles of them.
        owner_activations: float32 ``[N, ...]``, what the owner recovers from all that was sent.
        owner_logits: float32 ``[B, K, 2]``, what the owner gets as the answer.
        groups: int32 ``[R]``, the group of each row of ``view.mixtures``; an attack that is granted
            the grouping may use it, and its threat model says so.
        examples: int32 ``[N]``, which image each row of ``activations`` is of. The rows of a group
            follow one another there, and in ``owner_activations``.
    """

    view: View
    images: HostArray
    attributes: HostArray
    identities: HostArray
    activations: Array
    owner_activations: Array
    owner_logits: Array
    groups: HostArray
    examples: HostArray


class Figure(NamedTuple):
    """One privacy figure: never without its floor and the owner's own value.

    Larger values mean that the attacker learns more.

    Attributes:
        name: what is measured, with its unit.
        value: what the attacker reaches.
        floor: what anyone reaches with no attack at all. A defence hides nothing where the
            floor is already high.
        owner: what the owner of the secret reaches through the same protection.
        threat_model: one line: what the attacker knows.
        chance: what a guess without looking at anything reaches; None where a guess has no value.
        ceiling: what no attacker can exceed, by argument; None where no bound is known.
    """

    name: str
    value: float
    floor: float
    owner: float
    threat_model: str
    chance: float | None = None
    ceiling: float | None = None

    @property
    def key_advantage(self) -> float:
        """``owner - value``: what holding the secret is worth. 0: the secret protects nothing."""
        return self.owner - self.value


class Result(NamedTuple):
    """What one attack reached on one target.

    Attributes:
        figures: the scores.
        recovered: float32 ``[B, h, w, c]`` or None: what the attack makes of the recording's
            rows, in the order and sign of the truth: activations at the cut, or images in [0, 1].
    """

    figures: tuple[Figure, ...]
    recovered: HostArray | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttackConfig:
    """How much effort attacks may take.

    Attributes:
        num_groups: groups in the recording that is attacked.
        steps: training steps of each learned attacker.
        batch_size: examples in such a step, rounded up to whole groups.
    """

    num_groups: int = 16
    steps: int = 300
    batch_size: int = 64

    def __post_init__(self) -> None:
        """Checks the ranges."""
        _validate.positive(num_groups=self.num_groups, steps=self.steps, batch_size=self.batch_size)


class Attack(NamedTuple):
    """Tries to learn the activations, or what they show, from a ``View`` and public knowledge.

    Attributes:
        name: registry name.
        threat_model: one line: what the attacker knows beyond the view.
        run: ``(target, recording, rng_key, config) -> result``. Only ``recording.view`` and, where
            the threat model says so, ``recording.groups`` may enter the attack itself.
        unsuitable: ``target -> reason``, a sentence, where the attack has nothing to work with,
            such as no person with two images; None where it can run.
        by_tile: whether it attacks every tile for itself where maps are cut into tiles. Others
            get whole maps (``attacks.tiles.whole``).
        any_rows: whether it takes other rows than one for each example: decoys beside them, a
            part of them, or some that never leave the edge (``defenses.Rows``).
        fewer_rows: whether it takes any but more rows than images.
        one_matrix: whether it takes a group's maps to be mixed by one matrix; it has nothing to
            find where every tile has its own.
    """

    name: str
    threat_model: str
    run: Callable[[Target, Recording, RngKey, AttackConfig], Result]
    unsuitable: Callable[[Target], str | None] = lambda target: None
    by_tile: bool = False
    any_rows: bool = False
    fewer_rows: bool = False
    one_matrix: bool = False


def record(
    target: Target, rows: HostArray, *, rng_key: RngKey, shuffled: bool = False
) -> Recording:
    """Plays one request of ``rows`` with a fresh secret and keeps what everyone saw.

    Args:
        target: the system.
        rows: int ``[B]``, indices of the source; ``B`` a multiple of the group size.
        rng_key: draws the secret; consumed.
        shuffled: whether mixtures are shuffled across groups; otherwise rows ``M g`` to
            ``M g + M - 1`` are those of group ``g``.

    Raises:
        UsageError: the group size does not divide the number of rows.
    """
    group_size = target.defense.group_size
    _validate.divides(group_size, divisor_name="group_size", rows=len(rows))
    images = np.asarray(target.source.images(rows))
    # As in training, rows stay with their group: `init` leaves the order out.
    sent = target.model.spec.tiles * len(rows)
    secret = target.defense.init(rng_key, sent, not shuffled)
    activations, mixtures, responses, recovered, logits = _play(
        target.model, target.defense, target.variables, secret, normalize(images)
    )
    mix_key = defenses.mix_key_of(secret)
    examples = np.arange(sent, dtype=np.int32) % len(rows)
    of_group = defenses.rows_of(target.defense)
    places = np.arange(sent // group_size * of_group.sent, dtype=np.int32)
    if mix_key is not None and mix_key.order is not None:
        places = places[np.asarray(mix_key.order)]
    if target.defense.rows is not None:
        seen = np.flatnonzero(places % of_group.sent < of_group.seen)
        places, mixtures, responses = places[seen], mixtures[seen], responses[seen]
    if mix_key is not None and mix_key.deal is not None:
        activations, recovered = activations[mix_key.deal], recovered[mix_key.deal]
        examples = examples[np.asarray(mix_key.deal)]
    return Recording(
        View(
            mixtures=mixtures,
            responses=responses,
            main_variables=inference.main_variables(target.variables, target.defense),
            group_size=of_group.seen,
        ),
        images,
        target.source.attributes[rows],
        target.source.identities[rows],
        activations,
        recovered,
        logits,
        places // of_group.sent,
        examples,
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _play(
    model: SplitModel, defense: Defense, variables: Variables, secret: object, images: Array
) -> tuple[Array, Array, Array, Array, Array]:
    def pre(images: Array) -> Array:
        return model.pre(variables["pre"], images).astype(jnp.float32)

    def main(mixtures: Array) -> Array:
        return model.main(inference.main_variables(variables, defense), mixtures)

    # Tiles of all images come tile by tile, not image by image.
    activations = _in_parts(pre, images) if model.spec.tiles == 1 else pre(images)
    mixtures = defense.protect(secret, activations)
    responses = _in_parts(main, mixtures)
    features = defense.recover(secret, responses)
    logits = model.post(variables["post"], features)
    return activations, mixtures, responses, defense.recover(secret, mixtures), logits


def _in_parts(function: Callable[[Array], Array], rows: Array) -> Array:
    """``function`` of ``[N, ...]``, row by row the same, of ``_PART`` rows at a time.

    A network's widest maps (float32, width 64, 218x178: 2.5 MB an image) then need no room for all.
    """
    if len(rows) <= _PART:
        return function(rows)
    whole = len(rows) // _PART * _PART
    parts = jax.lax.map(function, rows[:whole].reshape(-1, _PART, *rows.shape[1:]))
    found = parts.reshape(-1, *parts.shape[2:])
    return found if whole == len(rows) else jnp.concatenate([found, function(rows[whole:])])


def by_group(rows: Array | HostArray, recording: Recording) -> Array:
    """``[R, ...]`` in the order of sending to ``[G, M, ...]``, the rows of each group together.

    For attacks that are granted the grouping. Which of a group's rows comes first means nothing:
    rows of a Haar matrix are exchangeable.
    """
    order = jnp.asarray(np.argsort(recording.groups, kind="stable"))
    return mixing.group(jnp.asarray(rows)[order], recording.view.group_size)


def truth_by_group(rows: Array | HostArray, recording: Recording) -> Array:
    """``[N, ...]`` in the order of the examples to ``[G, n, ...]``, as ``by_group`` groups them."""
    num_groups = len(recording.groups) // recording.view.group_size
    return mixing.group(jnp.asarray(rows), len(rows) // num_groups)


def recorded_rows(target: Target, num_groups: int) -> HostArray:
    """The first rows of the attacked split, ``num_groups`` whole groups or as many as there are.

    Raises:
        UsageError: the split is smaller than one group.
    """
    rows, group_size = target.source.splits[target.split], target.defense.group_size
    count = min(num_groups, len(rows) // group_size) * group_size
    if not count:
        raise _validate.UsageError(
            f"the {target.split} split has {len(rows)} images, fewer than one group of "
            f"{group_size}. Attack another split."
        )
    return rows[:count]
