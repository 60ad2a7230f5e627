"""Statistics against sums done another way."""

import dataclasses

import numpy as np
import pytest

from facemix_jax.data.statistics import (
    AT_LEAST,
    constant_attributes,
    shared_people,
    statistics,
)


@dataclasses.dataclass
class Labels:
    name: str
    attribute_names: tuple
    attributes: np.ndarray
    identities: np.ndarray
    splits: dict


@pytest.fixture
def labels():
    rng = np.random.default_rng(0)
    attributes = rng.integers(0, 2, (300, 5)).astype(np.int8)
    attributes[:, 3] = 1 - attributes[:, 1]  # opposite
    attributes[:, 4] = 1  # constant
    order = rng.permutation(300)
    return Labels(
        name="made",
        attribute_names=("a", "b", "c", "not b", "always"),
        attributes=attributes,
        identities=np.repeat(np.arange(60), 5).astype(np.int32),
        splits={"train": order[:200], "valid": order[200:260], "test": order[:0]},
    )


def test_counts_equal_a_loop(labels):
    found = statistics(labels)
    assert found.splits == ("train", "valid", "test")
    np.testing.assert_array_equal(found.images, [200, 60, 0])
    for i, rows in enumerate(labels.splits.values()):
        assert found.people[i] == len({int(labels.identities[r]) for r in rows})
        for k in range(5):
            shown = [int(labels.attributes[r, k]) for r in rows]
            expected = sum(shown) / len(shown) if shown else np.nan
            np.testing.assert_allclose(found.rates[i, k], expected)


def test_images_per_person_leave_out_what_is_in_no_split(labels):
    found = statistics(labels)
    used = [int(labels.identities[r]) for rows in labels.splits.values() for r in rows]
    counts = sorted(used.count(person) for person in set(used))
    assert found.images_per_person.tolist() == counts
    assert sum(counts) == 260
    assert found.at_least.tolist() == [sum(c >= n for c in counts) for n in AT_LEAST]


def test_correlations_are_pearsons(labels):
    found = statistics(labels)
    used = np.concatenate(list(labels.splits.values()))
    expected = np.corrcoef(labels.attributes[used][:, :4].astype(float), rowvar=False)
    np.testing.assert_allclose(found.correlations[:4, :4], expected, atol=1e-12)
    assert np.isnan(found.correlations[4]).all()


def test_strongest_pairs_come_first_and_constants_never(labels):
    pairs = statistics(labels).strongest(100)
    assert pairs[0][:2] == ("b", "not b")
    assert pairs[0][2] == pytest.approx(-1)
    assert len(pairs) == 6
    strengths = [abs(r) for *_, r in pairs]
    assert strengths == sorted(strengths, reverse=True)
    assert statistics(labels).strongest(2) == pairs[:2]


def test_people_in_two_splits_are_found(labels):
    people = shared_people(labels)
    train, valid = (set(labels.identities[labels.splits[s]].tolist()) for s in ("train", "valid"))
    assert set(people) == {("train", "valid")}
    assert set(people["train", "valid"].tolist()) == train & valid
    apart = dataclasses.replace(
        labels, splits={"train": np.arange(100), "valid": np.arange(100, 300)}
    )
    assert shared_people(apart) == {}


def test_constant_attributes_are_found(labels):
    assert constant_attributes(labels) == ["always"]
    labels.attributes[labels.splits["valid"][0], 4] = 0
    assert constant_attributes(labels) == []


def test_an_empty_set_has_no_people_and_no_rates(labels):
    nobody = dataclasses.replace(labels, splits={"train": np.arange(0)})
    found = statistics(nobody)
    assert found.images.tolist() == [0]
    assert len(found.images_per_person) == 0
    assert np.isnan(found.rates).all()
    assert found.strongest(3) == []
