"""The split of the identity attack: the same people on both sides, no image on both."""

import dataclasses

import numpy as np
import pytest

from facemix_jax._validate import UsageError
from facemix_jax.data.identities import identity_split


@dataclasses.dataclass(frozen=True)
class People:
    """Person ``p`` of twelve has ``p + 1`` images, in mixed order."""

    name: str = "people"
    identities = np.random.default_rng(1).permutation(np.repeat(np.arange(12), np.arange(1, 13)))

    @property
    def splits(self):
        rows = np.arange(len(self.identities))
        return {"train": rows[:60], "valid": rows[60:60], "test": rows[60:]}


def test_everybody_is_on_both_sides_and_no_image_is():
    source = People()
    split = identity_split(source, min_images=5, test_share=0.25)
    np.testing.assert_array_equal(split.people, np.arange(4, 12))
    assert not set(split.train) & set(split.test)
    for indices, classes in (
        (split.train, split.train_classes),
        (split.test, split.test_classes),
    ):
        np.testing.assert_array_equal(source.identities[indices], split.people[classes])
        assert set(classes) == set(range(8))
    assert len(split.train) + len(split.test) == sum(range(5, 13))
    np.testing.assert_array_equal(
        np.bincount(split.test_classes), [round(n / 4) for n in range(5, 13)]
    )


def test_the_split_follows_the_seed():
    first, again, other = (identity_split(People(), min_images=4, seed=s) for s in (0, 0, 1))
    np.testing.assert_array_equal(first.test, again.test)
    assert set(first.test) != set(other.test)


def test_people_can_be_limited_and_splits_chosen():
    split = identity_split(People(), min_images=4, max_people=3)
    assert len(split.people) == 3
    only = identity_split(People(), splits=("train",), min_images=2)
    assert np.concatenate([only.train, only.test]).max() < 60


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_extreme_shares_leave_an_image_on_either_side(share):
    split = identity_split(People(), min_images=2, test_share=share)
    for classes in (split.train_classes, split.test_classes):
        assert np.bincount(classes, minlength=11).min() >= 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"min_images": 13}, "most is 12"),
        ({"min_images": 1}, "min_images"),
        ({"test_share": 1.5}, "test_share"),
        ({"splits": ("tests",)}, "Did you mean"),
        ({"max_people": 1}, "max_people"),
    ],
)
def test_wrong_requests_say_what_to_do(options, words):
    with pytest.raises(UsageError, match=words):
        identity_split(People(), **options)
