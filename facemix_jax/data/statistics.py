"""What a labelled set holds: sizes, base rates, people, correlations."""

import dataclasses

import numpy as np

from facemix_jax._types import HostArray
from facemix_jax.data.source import Labels

AT_LEAST = (2, 5, 10, 20)
"""Numbers of images for which people are counted."""


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Counts over ``S`` splits, ``K`` attributes and ``P`` people.

    Attributes:
        name: of the data set.
        attribute_names: ``K`` names.
        splits: ``S`` names.
        images: int64 ``[S]``, images of each split.
        people: int64 ``[S]``, people of each split.
        rates: float64 ``[S, K]``, share of images that show an attribute; NaN without images.
        images_per_person: int64 ``[P]``, over all splits, ascending.
        correlations: float64 ``[K, K]``, Pearson's over all splits (of two binary attributes:
            phi); NaN where an attribute is constant.
    """

    name: str
    attribute_names: tuple[str, ...]
    splits: tuple[str, ...]
    images: HostArray
    people: HostArray
    rates: HostArray
    images_per_person: HostArray
    correlations: HostArray

    @property
    def at_least(self) -> HostArray:
        """How many people have at least 2, 5, 10 and 20 images, int64 ``[4]``."""
        return np.array([np.sum(self.images_per_person >= n) for n in AT_LEAST], np.int64)

    def strongest(self, count: int) -> list[tuple[str, str, float]]:
        """The ``count`` pairs of different attributes with the largest absolute correlation."""
        rows, columns = np.triu_indices(len(self.attribute_names), k=1)
        values = self.correlations[rows, columns]
        order = np.argsort(-np.abs(values), kind="stable")  # NaN comes last
        names = self.attribute_names
        return [
            (names[rows[i]], names[columns[i]], float(values[i]))
            for i in order[:count]
            if np.isfinite(values[i])
        ]


def statistics(labels: Labels) -> Statistics:
    """Counts what the splits of ``labels`` hold; images outside of every split are left out.

    Args:
        labels: a ``Source``, or a ``FileSet`` that is not decoded.
    """
    splits = {name: np.asarray(rows) for name, rows in labels.splits.items()}
    used = np.concatenate([np.empty(0, np.int64), *splits.values()])
    _, per_person = np.unique(labels.identities[used], return_counts=True)
    return Statistics(
        name=labels.name,
        attribute_names=tuple(labels.attribute_names),
        splits=tuple(splits),
        images=np.array([len(rows) for rows in splits.values()], np.int64),
        people=np.array(
            [len(np.unique(labels.identities[rows])) for rows in splits.values()], np.int64
        ),
        rates=np.array([_rates(labels.attributes[rows]) for rows in splits.values()]),
        images_per_person=np.sort(per_person).astype(np.int64),
        correlations=_correlations(labels.attributes[used]),
    )


def shared_people(labels: Labels) -> dict[tuple[str, str], HostArray]:
    """People that occur in two splits, by pair of splits; pairs without any are left out."""
    names = list(labels.splits)
    shared = {
        (left, right): np.intersect1d(
            labels.identities[labels.splits[left]], labels.identities[labels.splits[right]]
        )
        for i, left in enumerate(names)
        for right in names[i + 1 :]
    }
    return {pair: people for pair, people in shared.items() if len(people)}


def constant_attributes(labels: Labels) -> list[str]:
    """Attributes with the same value in every image of every split."""
    used = np.concatenate([np.empty(0, np.int64), *labels.splits.values()])
    values = labels.attributes[used]
    constant = np.all(values == values[:1], axis=0)
    return [name for name, same in zip(labels.attribute_names, constant, strict=True) if same]


def _rates(attributes: HostArray) -> HostArray:
    """Share of ones in each column, float64 ``[K]``."""
    if not len(attributes):
        return np.full(attributes.shape[1], np.nan)
    return attributes.mean(axis=0, dtype=np.float64)


def _correlations(attributes: HostArray) -> HostArray:
    """Pearson's, float64 ``[K, K]``; NaN where a column is constant."""
    # The product is exact in float64 and, unlike that of integers, goes through BLAS.
    values = attributes.astype(np.float64)
    rates = _rates(attributes)
    covariance = values.T @ values / max(len(values), 1) - np.outer(rates, rates)
    deviation = np.sqrt(rates * (1 - rates))
    deviation[deviation == 0] = np.nan
    return covariance / np.outer(deviation, deviation)
