"""How submissions to a challenge are read and scored; ``challenge.py`` is the program.

Maps of faces are smooth and alike, so that faces of other people correlate well with the hidden
ones. With noise on the mixtures they lie above the owner of the matrices who filters nothing. A
score alone therefore says little: it is compared with what needs no method, all sides filtered.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import report
from challenge_files import KNOWN, PUBLIC, public_target, read_private, read_public, read_submission

from facemix_jax import metrics, mixing
from facemix_jax._types import HostArray
from facemix_jax.attacks import denoising
from facemix_jax.attacks.groups import auxiliary_by_tile
from facemix_jax.output import check_apart

NO_METHOD = ("chance", "mean of known activations", "other faces", "no attack")
"""What can be submitted by somebody who attacks nothing."""
FILTERED = ", filtered"
MARGIN = 0.05
"""By how much a finding lies above what needs no method. It covers the luck of which other faces
are drawn, and what averages of many faces have over as many single ones."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """Scores a submission against the hidden truth.

    Command: ``python experiments/challenge.py score --public CHALLENGE --private HIDDEN.npz
    --submission MINE.npz``

    Run time: under half a minute at ``smoke`` on two cores, most of it drawing other faces.

    Expected: a random submission at ``chance``, the mixtures themselves at ``no attack``, faces of
    other people at ``other faces``, and none of them a finding.

    Attributes:
        public: folder of the challenge.
        private: file with the hidden truth, as ``make`` wrote it.
        submission: NPZ file with one float array ``recovered``, shaped as the mixtures, rows in
            any order and with any sign.
        output: JSON file for the scores; None prints them only.
    """

    public: Path
    private: Path
    submission: Path
    output: Path | None = None


class Secrets(NamedTuple):
    """What ``make`` draws from the operating system's entropy, as arrays.

    Attributes:
        people: uint32 ``[B, 2]``, JAX key data of each person.
        pictures: uint32 ``[B, 2]``, likewise of each picture.
        noise: uint32 ``[2]``, likewise of the noise.
        matrix: float32 ``[G, M, M]``.
        order: int32 ``[R]``.
        nonce: uint8 ``[32]``: without it, a guess at the truth could be checked against the
            commitment.
    """

    people: HostArray
    pictures: HostArray
    noise: HostArray
    matrix: HostArray
    order: HostArray
    nonce: HostArray


class Scores(NamedTuple):
    """How much of the truth a submission holds, whatever its order and signs.

    Attributes:
        correlation: mean matched |correlation| of rows.
        recovered: share of rows at 0.9 or more.
        squared_error: of matched rows with their best sign, over the variance within true rows;
            0 is perfect, 1 what the mean of each row alone would give.
    """

    correlation: float
    recovered: float
    squared_error: float


def score(config: Score) -> dict[str, Any]:
    """Scores of the submission, of what needs no method and of the owner; prints and writes them.

    Args:
        config: whose ``output`` is none of the files that are read.

    Returns:
        What is printed, ready for JSON: all scores, best first, and the verdict.

    Raises:
        UsageError: a path is wrong, or the submission is none.
        DataError: a public file was changed.
    """
    public = (config.public / name for name in PUBLIC)
    check_apart({"--output": config.output}, (config.private, config.submission, *public))
    about, sent = read_public(config.public)
    hidden = read_private(config.private, about)
    truth = hidden["truth"]
    mine = read_submission(config.submission, truth.shape)
    with np.load(config.public / KNOWN) as known:
        mean = known["activations"].mean(0)
    drawn = Secrets(**{name: hidden[name] for name in Secrets._fields})
    rng = np.random.default_rng(0)
    own = drawn_activations(config.public, about, len(truth))
    found = {
        "submission": mine,
        "chance": rng.standard_normal(truth.shape),
        "mean of known activations": np.broadcast_to(mean, truth.shape),
        "other faces": own[:, : len(truth) // len(own)].reshape(truth.shape),
        "no attack": sent,
        "owner": np.asarray(mixing.unmix(keys_of(drawn), jnp.asarray(sent))),
    }
    by_tile, shuffled = denoising.learn(own), denoising.learn(own.reshape(1, -1, own.shape[2]))
    scores = {name: scores_of(rows, truth) for name, rows in found.items()}
    for name, rows in found.items():
        # Mixtures are shuffled among tiles: without the key nobody knows the tile of a row.
        filters = by_tile if name in ("owner", "other faces") else shuffled
        scores[name + FILTERED] = best_filtered(filters, rows, truth)
    answer = {
        "commitment": about["commitment"],
        "rows": len(truth),
        "scores": {
            name: rounded(scores[name])
            for name in sorted(scores, key=lambda name: -scores[name].correlation)
        },
        **judged({name: found.correlation for name, found in scores.items()}),
    }
    print(json.dumps(answer, indent=1))
    if config.output is not None:
        report.write(config.output, answer)
    return answer


def scores_of(recovered: HostArray, truth: HostArray) -> Scores:
    """Compares rows ``[R, ...]`` in any order and with any sign; both finite and shaped alike."""
    # The scale of a row does not count, however small its squares are.
    largest = np.abs(recovered).max(tuple(range(1, truth.ndim)), keepdims=True)
    scaled = recovered / np.where(largest > 0, largest, 1.0)
    match = metrics.matched_correlation(scaled, truth)
    signs = np.where(match.signs < 0, -1.0, 1.0).reshape(-1, *(1,) * (truth.ndim - 1))
    rows = np.asarray(recovered, np.float64)[match.permutation] * signs
    wide = np.asarray(truth, np.float64)
    spread = wide - wide.mean(tuple(range(1, wide.ndim)), keepdims=True)
    return Scores(
        correlation=match.mean,
        recovered=float((match.per_source >= 0.9).mean()),
        squared_error=float(((rows - wide) ** 2).sum() / (spread**2).sum()),
    )


def best_filtered(filters: denoising.Filters, rows: HostArray, truth: HostArray) -> Scores:
    """Scores with the filter that does best: an upper bound of any choice.

    Args:
        filters: of ``T`` tiles.
        rows: ``[R, ...]``, finite; tile by tile where ``T`` is more than 1.
        truth: likewise.
    """
    flattened = rows.reshape(len(filters.axes), -1, filters.axes.shape[1])
    return max(
        (
            scores_of(filters(flattened, strength).reshape(truth.shape), truth)
            for strength in denoising.STRENGTHS
        ),
        key=lambda scores: scores.correlation,
    )


def judged(correlations: Mapping[str, float]) -> dict[str, Any]:
    """Whether a submission says anything of the hidden faces that anybody could not have said.

    Args:
        correlations: of the submission, the owner and ``NO_METHOD``, as they are and filtered.

    Returns:
        The best that needs no method, how far the filtered submission and owner lie above it,
        whether the submission is a finding, and the same in words.
    """
    needless = [name for name in correlations if name.removesuffix(FILTERED) in NO_METHOD]
    best = max(needless, key=lambda name: correlations[name])
    leads = {
        side: round(correlations[side + FILTERED] - correlations[best], 4)
        for side in ("submission", "owner")
    }
    finding = leads["submission"] > MARGIN
    verdict = (
        f"{'A finding' if finding else 'No finding'}: filtered, the submission has "
        f"{correlations['submission' + FILTERED]:.3f}, and {best!r}, the best that needs no "
        f"method, {correlations[best]:.3f}. A finding lies more than {MARGIN} above that."
    )
    if leads["owner"] <= MARGIN:
        verdict += " Not even the owner does: the noise has left nothing to find."
    return {"best without a method": best, "leads": leads, "finding": finding, "verdict": verdict}


def rounded(scores: Scores) -> dict[str, float]:
    """Ready for JSON."""
    return {name: round(value, 4) for name, value in scores._asdict().items()}


def keys_of(drawn: Secrets) -> mixing.MixKey:
    """The mix key."""
    matrix = jnp.asarray(drawn.matrix)
    return mixing.MixKey(matrix=matrix, inverse=matrix.mT, order=jnp.asarray(drawn.order))


def drawn_activations(public: Path, about: Mapping[str, Any], rows: int) -> HostArray:
    """Of drawn faces that have nothing to do with the hidden ones: float32 ``[T, n, P]``.

    ``n`` is at least the number of images that ``rows`` are of.
    """
    target = public_target(public, about, rows)
    return auxiliary_by_tile(target, len(target.source.splits[target.auxiliary_split]))
