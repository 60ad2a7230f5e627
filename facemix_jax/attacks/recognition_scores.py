"""How attackers that recognise are scored, and what bounds them. Host side."""

import numpy as np

from facemix_jax import metrics
from facemix_jax._types import HostArray
from facemix_jax._validate import UsageError


def check_decided(decided: HostArray, images: int) -> None:
    """Raises ``UsageError`` unless some attribute of a recording of so many images counts.

    Args:
        decided: bool ``[K]``.
        images: how many were recorded.
    """
    if not decided.any():
        raise UsageError(
            f"In the recording of {images} images no attribute takes both values, so there is no "
            f"balanced accuracy. Record more groups."
        )


def matched_balanced_accuracy(answers: HostArray, true: HostArray, decided: HostArray) -> float:
    """Mean balanced accuracy after matching answers with members, most agreements first.

    Args:
        answers: bool ``[G, m, K]``.
        true: 0/1 ``[G m, K]``.
        decided: bool ``[K]``, attributes that count.
    """
    groups = true.reshape(answers.shape)[..., decided]
    answers = answers[..., decided]
    matched = [a[metrics.assignment(a, t)] for a, t in zip(answers, groups, strict=True)]
    flat = groups.reshape(-1, groups.shape[-1])
    counts = metrics.attribute_counts(np.stack(matched).reshape(flat.shape), flat)
    return float(metrics.balanced_accuracy(counts).mean())


def count_r2(
    logits: HostArray, true: HostArray, rates: HostArray, decided: HostArray
) -> float | None:
    """Share of the squared error of the prior guess that the answers take away; 1 is perfect.

    Args:
        logits: float ``[G, m, K]``; the number of members with an attribute is the sum of the
            answers' probabilities.
        true: 0/1 ``[G m, K]``.
        rates: float ``[K]``, the attributes' frequencies, which are the prior guess.
        decided: bool ``[K]``, attributes that count.

    Returns:
        None where the prior guess is right of every group, so that there is no error to take away.
    """
    counts = true.reshape(logits.shape).sum(1)[:, decided]
    answered = (1 / (1 + np.exp(-logits.astype(np.float64)))).sum(1)[:, decided]
    prior = logits.shape[1] * rates[decided]
    if np.allclose(prior, counts):
        return None
    return float(1 - ((answered - counts) ** 2).sum() / ((prior - counts) ** 2).sum())


def attribute_ceiling(groups: HostArray) -> float:
    """Balanced accuracy of single rows, for one who knows each group but not which row is whose.

    The same answer then suits all rows of a group, and the one that adds more to the mean of the
    two recalls is best.

    Args:
        groups: 0/1 ``[G, M, K]``; each attribute takes both values.
    """
    positive = groups.sum(1)
    negative = groups.shape[1] - positive
    return float(
        np.maximum(positive / positive.sum(0), negative / negative.sum(0)).sum(0).mean() / 2
    )


def named_share(scores: HostArray, true: HostArray) -> float:
    """Share of members who are among the ``m`` people with the largest scores.

    Args:
        scores: float ``[G, P]``.
        true: int ``[G, m]``, the members.
    """
    named = np.argsort(-scores, axis=1, kind="stable")[:, : true.shape[1]]
    return float((true[:, :, None] == named[:, None]).any(-1).mean())


def named_by_frequency(classes: HostArray, num_people: int, true: HostArray) -> float:
    """``named_share`` of one who names those with the most pictures: the floor of all who name.

    Args:
        classes: int ``[n]``, the people of the pictures that are known.
        num_people: how many people there are.
        true: int ``[G, m]``, the members.
    """
    frequency = np.bincount(classes, minlength=num_people)
    return named_share(np.broadcast_to(frequency, (len(true), num_people)), true)


def identity_ceiling(groups: HostArray) -> float:
    """Success rate for one who knows each group but not which row is whose: ``1 / M`` and a bit.

    Args:
        groups: int ``[G, M]``, the members; whoever occurs twice is the better guess.
    """
    return float((groups[:, :, None] == groups[:, None]).sum(-1).max(1).mean() / groups.shape[1])
