"""Training and test images of the same people, for attackers that recognise persons."""

import dataclasses

import numpy as np

from facemix_jax import _validate
from facemix_jax._types import HostArray
from facemix_jax._validate import UsageError
from facemix_jax.data.source import Source


@dataclasses.dataclass(frozen=True)
class IdentitySplit:
    """Images of ``P`` people, each with some images to learn from and others to be tested on.

    Attributes:
        people: int32 ``[P]``, identities as the source numbers them; class ``p`` is ``people[p]``.
        train: int64 ``[n]``, indices of images to learn from.
        test: int64 ``[m]``, indices of images to be recognised.
        train_classes: int32 ``[n]``, from 0 to ``P - 1``.
        test_classes: int32 ``[m]``.
    """

    people: HostArray
    train: HostArray
    test: HostArray
    train_classes: HostArray
    test_classes: HostArray


def identity_split(
    source: Source,
    *,
    splits: tuple[str, ...] = ("train", "valid", "test"),
    min_images: int = 20,
    max_people: int | None = None,
    test_share: float = 0.2,
    seed: int = 0,
) -> IdentitySplit:
    """Divides every person's images at random into some to learn from and some to recognise.

    The paper's identity attacker (section 4) is trained on the very people it is tested on. A
    partition by person, like CelebA's official one, cannot serve it.

    Args:
        source: the data set.
        splits: of the source from which images are taken.
        min_images: people with fewer images are left out; at least 2.
        max_people: how many people at most, drawn at random; None for all.
        test_share: share of a person's images to be recognised, rounded, at least one.
        seed: of both draws.

    Raises:
        UsageError: a value is out of range, or fewer than two people have so many images.
    """
    for split in splits:
        _validate.one_of(source.splits, split=split)
    _validate.in_range(2, float("inf"), min_images=min_images)
    _validate.in_range(0, 1, test_share=test_share)
    if max_people is not None:
        _validate.in_range(2, float("inf"), max_people=max_people)
    rng = np.random.default_rng(seed)
    indices = np.sort(np.concatenate([source.splits[split] for split in splits]))
    everybody, counts = np.unique(source.identities[indices], return_counts=True)
    people = everybody[counts >= min_images]
    if len(people) < 2:
        raise UsageError(
            f"min_images is {min_images}, but only {len(people)} people of {source.name} have so "
            f"many images (the most is {counts.max(initial=0)}). Use a smaller min_images."
        )
    people = np.sort(rng.permutation(people)[:max_people])
    train: list[HostArray] = []
    test: list[HostArray] = []
    for person in people:
        theirs = rng.permutation(indices[source.identities[indices] == person])
        held_out = min(max(1, round(test_share * len(theirs))), len(theirs) - 1)
        test.append(theirs[:held_out])
        train.append(theirs[held_out:])

    def classes(parts: list[HostArray]) -> HostArray:
        return np.repeat(np.arange(len(parts), dtype=np.int32), [len(part) for part in parts])

    return IdentitySplit(
        people=people.astype(np.int32),
        train=np.concatenate(train),
        test=np.concatenate(test),
        train_classes=classes(train),
        test_classes=classes(test),
    )
