"""Who is shown, and with which attributes? The paper's attackers (section 4), and fairer ones.

How an attacker is trained stands in ``recognition_training``. The paper asks it about single rows:
what shows ``x_k`` in mixture ``k``? Nothing does: every member of a group is equally likely behind
any of its mixtures, so that even an attacker that knows the whole group errs. The set-valued
attackers are asked about a whole group instead: who and what is in it? And who separates the rows
first asks the paper's very question of what comes out: that figure stands beside the paper's.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from facemix_jax._types import Array, RngKey
from facemix_jax._validate import UsageError
from facemix_jax.attacks import learning
from facemix_jax.attacks import recognition_scores as scores
from facemix_jax.attacks.base import (
    Attack,
    AttackConfig,
    Figure,
    Recording,
    Result,
    Target,
    record,
    truth_by_group,
)
from facemix_jax.attacks.blind import Separate
from facemix_jax.attacks.groups import (
    correlations,
    in_order,
    match,
    needs_attributes,
    needs_groups_of_images,
    rehearses,
    separation_for,
    unmix,
)
from facemix_jax.attacks.recognition_training import (
    attribute_loss,
    identity_loss,
    presence,
    train_networks,
)
from facemix_jax.data import IdentitySplit, identity_split

_WANTED_PEOPLE, _WANTED_IMAGES = 100, 20
"""People with so many images are recognised; with fewer images where there are fewer people."""

_FEWEST_IMAGES = 5
"""Of a person: four to learn from and one to recognise."""

_MOST_PEOPLE = 300

_GUESSES = 8
"""Draws of other people's attributes that the floor is the mean of."""

_KNOWS = "knows the network's weights and the defence's algorithm, no key; has labelled images "
ATTRIBUTES_THREAT = f"{_KNOWS}of other people; sees single rows"
IDENTITY_THREAT = f"{_KNOWS}of the very people; sees single rows"
AFTER_ICA, AFTER_ROBUST = SEPARATED = (" after gradient ICA", " after robust separation")
"""End the names of figures of attackers who separate first (``groups.rehearses``)."""
SET_ATTRIBUTES_THREAT = f"{_KNOWS}of other people; sees which rows form a group"
SET_IDENTITY_THREAT = f"{_KNOWS}of the very people; sees which rows form a group"


def _separates(target: Target) -> bool:
    """Whether rows are mixtures of whole maps, which separation can take apart."""
    return target.defense.group_size > 1 and target.defense.one_matrix


def unseparated(name: str) -> str:
    """The name of the figure of the same attacker who does not separate first."""
    return functools.reduce(str.removesuffix, SEPARATED, name)


def _opened(weak: Figure, value: float, threat_model: str, target: Target) -> Figure:
    """The figure of an attacker who separates first, beside that of the one who does not."""
    ending = AFTER_ICA
    if rehearses(target):
        ending = AFTER_ROBUST
        threat_model += "; rehearses separations on images of its own"
    return Figure(
        weak.name + ending, value, weak.floor, weak.owner, threat_model, chance=weak.chance
    )


def _separated(
    target: Target, recording: Recording, rng_key: RngKey, separate: Separate | None = None
) -> Array:
    """Activations ``[B, ...]`` by ``unmix``; the true ones are used for their order alone.

    Where there are fewer rows than images, and so fewer sources, each image gets the nearest one.
    """
    sources = unmix(target, recording, rng_key=rng_key, separate=separate).sources
    truth = truth_by_group(recording.activations, recording)
    if sources.shape[1] == truth.shape[1]:
        order = match(sources, truth)
    else:
        pairs = [correlations(s, t) for s, t in zip(sources, np.asarray(truth), strict=True)]
        order = np.argmax(pairs, axis=1)
    return jnp.asarray(in_order(sources, order))


def _run_attributes(
    target: Target,
    recording: Recording,
    rng_key: RngKey,
    config: AttackConfig,
    *,
    set_valued: bool,
) -> Result:
    group_size = target.defense.group_size if set_valued else 1
    rows, labels = target.source.splits[target.auxiliary_split], target.source.attributes
    rates = labels[rows].mean(0)
    true = recording.attributes
    decided = (rates > 0) & (rates < 1) & (true.min(0) < true.max(0))
    scores.check_decided(decided, len(true))
    train_key, guess_key = jax.random.split(rng_key)
    separates = not set_valued and _separates(target)
    predictors = train_networks(
        target,
        group_size,
        labels.shape[1],
        attribute_loss,
        rows,
        labels,
        train_key,
        config,
        separates=separates,
    )
    seen = (learning.grouped_mixtures(recording), recording.owner_activations)
    # Answers are probabilities; compared with the attribute's frequency instead of with 1/2, they
    # are the best ones for balanced accuracy. Compared with 1/2, rare attributes never show.
    clipped = np.clip(rates, 1e-6, 1 - 1e-6)
    odds = np.log(clipped) - np.log1p(-clipped)
    logits = [predict(z) for predict, z in zip(predictors[:2], seen, strict=True)]
    value, owner = (scores.matched_balanced_accuracy(x > odds, true, decided) for x in logits)
    threat_model = SET_ATTRIBUTES_THREAT if set_valued else ATTRIBUTES_THREAT
    if not set_valued:
        name = "balanced attribute accuracy of single rows"
        ceiling = None
        if target.defense.group_size > 1 and not target.defense.dealt:
            ceiling = scores.attribute_ceiling(
                true[:, decided].reshape(-1, target.defense.group_size, decided.sum())
            )
        figures = [Figure(name, value, 0.5, owner, threat_model, 0.5, ceiling)]
        if separates:
            answers = predictors.separated(_separated(target, recording, guess_key)) > odds
            opened = scores.matched_balanced_accuracy(answers, true, decided)
            figures.append(_opened(figures[0], opened, SET_ATTRIBUTES_THREAT, target))
        return Result(tuple(figures))
    rng = np.random.default_rng(np.asarray(jax.random.key_data(guess_key)))
    shape = (-1, group_size, labels.shape[1])
    guesses = [labels[rng.choice(rows, len(true))].reshape(shape) > 0 for _ in range(_GUESSES)]
    matched = [scores.matched_balanced_accuracy(guess, true, decided) for guess in guesses]
    floor = max(0.5, float(np.mean(matched)))
    name = "balanced attribute accuracy, answers matched with a group's members"
    figures = [Figure(name, value, floor, owner, threat_model, floor)]
    counted, own = (scores.count_r2(x, true, rates, decided) for x in logits)
    if counted is not None and own is not None:
        name = "R2 of how many of a group's members have an attribute"
        figures.append(Figure(name, counted, 0.0, own, threat_model, 0.0))
    return Result(tuple(figures))


def people_of(target: Target) -> IdentitySplit | None:
    """The people to recognise; None where there are not two of them, or not one group."""
    source = target.source
    indices = np.concatenate(list(source.splits.values()))
    counts = np.sort(np.unique(source.identities[indices], return_counts=True)[1])[::-1]
    if not len(counts):
        return None
    wanted = counts[min(_WANTED_PEOPLE, len(counts)) - 1]
    min_images = int(np.clip(wanted, _FEWEST_IMAGES, _WANTED_IMAGES))
    if (counts >= min_images).sum() < 2:
        return None
    people = identity_split(
        source, splits=tuple(source.splits), min_images=min_images, max_people=_MOST_PEOPLE
    )
    return people if len(people.test) >= target.defense.group_size else None


def _no_people(target: Target) -> str | None:
    if people_of(target) is not None:
        return None
    return (
        f"{target.source.name} shows too few people with {_FEWEST_IMAGES} images: at least two, "
        f"and one group of {target.defense.group_size} images to be recognised, are needed."
    )


def _run_identity(
    target: Target,
    recording: Recording,
    rng_key: RngKey,
    config: AttackConfig,
    *,
    set_valued: bool,
) -> Result:
    people = people_of(target)
    if people is None:
        raise UsageError(f"{_no_people(target)} Use a source with more images of each person.")
    group_size = target.defense.group_size if set_valued else 1
    num_people = len(people.people)
    classes = np.zeros(len(target.source), np.int32)
    classes[people.train], classes[people.test] = people.train_classes, people.test_classes
    train_key, record_key, separate_key = jax.random.split(rng_key, 3)
    separates = not set_valued and _separates(target)
    predictors = train_networks(
        target,
        group_size,
        num_people,
        identity_loss,
        people.train,
        classes,
        train_key,
        config,
        separates=separates,
    )
    rng = np.random.default_rng(0)  # which of the test images share a group
    order = rng.permutation(people.test)
    size = learning.batch_size(config, target.defense.group_size)
    if len(order) < size:
        size = len(order) - len(order) % target.defense.group_size
    order = order[: len(order) - len(order) % size]
    separate = None
    if separates:
        separate = separation_for(target, jax.random.fold_in(separate_key, len(order)))
    shares: list[list[float]] = []
    for part, chosen in enumerate(order.reshape(-1, size)):
        # These people's requests, not those of the recording, whose people may be unknown.
        request = record(target, chosen, rng_key=jax.random.fold_in(record_key, part))
        asked = [
            (predictors.attacker, learning.grouped_mixtures(request)),
            (predictors.owner, request.owner_activations),
        ]
        if separates:
            part_key = jax.random.fold_in(separate_key, part)
            asked.append((predictors.separated, _separated(target, request, part_key, separate)))
        true = classes[chosen].reshape(-1, group_size)
        shares.append(
            [
                scores.named_share(np.asarray(presence(jnp.asarray(predict(z)))), true)
                for predict, z in asked
            ]
        )
    value, owner, *opened = (float(share) for share in np.mean(shares, axis=0))
    true = classes[order].reshape(-1, group_size)
    floor = scores.named_by_frequency(people.train_classes, num_people, true)
    ceiling = None
    if not set_valued and target.defense.group_size > 1 and not target.defense.dealt:
        ceiling = scores.identity_ceiling(classes[order].reshape(-1, target.defense.group_size))
    name, known = "identity success rate of single rows", IDENTITY_THREAT
    if set_valued:
        name, known = "share of a group's people among the M named", SET_IDENTITY_THREAT
    chance = min(1.0, group_size / num_people)
    figures = [Figure(name, value, floor, owner, known, chance, ceiling)]
    figures += [_opened(figures[0], share, SET_IDENTITY_THREAT, target) for share in opened]
    return Result(tuple(figures))


def _attack(
    name: str,
    threat_model: str,
    run: Callable[..., Result],
    set_valued: bool,
    unsuitable: Callable[[Target], str | None] = lambda target: None,
) -> Attack:
    def run_one(
        target: Target, recording: Recording, rng_key: RngKey, config: AttackConfig
    ) -> Result:
        return run(target, recording, rng_key, config, set_valued=set_valued)

    return Attack(name, threat_model, run_one, unsuitable, fewer_rows=True)


ATTRIBUTES = _attack("attributes", ATTRIBUTES_THREAT, _run_attributes, False, needs_attributes)
IDENTITY = _attack("identity", IDENTITY_THREAT, _run_identity, False, _no_people)
SET_ATTRIBUTES = _attack(
    "set_attributes",
    SET_ATTRIBUTES_THREAT,
    _run_attributes,
    True,
    lambda target: needs_attributes(target) or needs_groups_of_images(target),
)
SET_IDENTITY = _attack(
    "set_identity",
    SET_IDENTITY_THREAT,
    _run_identity,
    True,
    lambda target: needs_groups_of_images(target) or _no_people(target),
)
