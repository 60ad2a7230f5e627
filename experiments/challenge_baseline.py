"""The challenge made, attacked by our own baseline and scored: what plain FaceMix withstands."""

import dataclasses
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import challenge
import report
from challenge_scoring import FILTERED, MARGIN, NO_METHOD, Score, score
from scale import output

from facemix_jax import _runtime
from facemix_jax.results import Column, ResultTable

NOISES = (0.0, 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """``challenge.py`` from end to end, without and with noise; both sides are thrown away.

    Command: ``python experiments/challenge_baseline.py``, which needs no files at any scale. A
    finished challenge is not made again.

    Run time: 9 minutes at ``smoke`` on two busy CPU cores (load 8; not taken on quiet ones);
    ``cpu`` trains on 8,192 drawn faces and has not been run.

    Expected: without noise the baseline recovers rows at a mean matched |correlation| above .98,
    and is a finding.

    Attributes:
        scale: of the images and the network.
        output: JSON file; None for the scale's in ``results``.
    """

    scale: Literal["smoke", "cpu"] = "cpu"
    output: Path | None = None


def main(config: Config) -> None:
    """Makes, attacks and scores what the JSON file lacks."""
    cells = report.Cells(
        config.output or output("challenge_baseline", config.scale),
        config,
        name=f"challenge, scale {config.scale}",
        summarize=summarize,
    )
    for noise in NOISES:
        if not cells.has(noise=noise):
            began = time.perf_counter()
            found = solved(config, noise)
            cells.add({"noise": noise, **found, "seconds": round(time.perf_counter() - began, 1)})
    cells.save()


def solved(config: Config, noise: float) -> dict[str, Any]:
    """The scores of one challenge."""
    with tempfile.TemporaryDirectory() as folder:
        public, private, mine = (Path(folder, n) for n in ("public", "hidden.npz", "mine.npz"))
        challenge.make(
            challenge.Make(public=public, private=private, scale=config.scale, noise=noise)
        )
        challenge.baseline(challenge.Baseline(public=public, submission=mine))
        return score(Score(public=public, private=private, submission=mine))


def summarize(cells: Sequence[Mapping[str, Any]]) -> report.Summary:
    """Mean matched |correlation| of the baseline beside what needs no method."""
    named = {name: name for name in (*NO_METHOD, "owner")} | {"submission": "baseline"}
    columns = {
        side + how: Column(
            name=name + how,
            format="fixed3",
            strongest="strongest" if side == "submission" else None,
        )
        for how in ("", FILTERED)
        for side, name in named.items()
    }
    columns["strongest"] = Column(name="strongest", format="fixed3")
    columns["finding"] = Column(name="a finding")
    flat = [
        {
            "noise": cell["noise"],
            "rows": cell["rows"],
            **{who: scores["correlation"] for who, scores in cell["scores"].items()},
            "strongest": max(
                scores["correlation"]
                for who, scores in cell["scores"].items()
                if who.removesuffix(FILTERED) != "owner"
            ),
            "finding": "yes" if cell["finding"] else "no",
        }
        for cell in cells
    ]
    table = ResultTable(
        title="The challenge: plain FaceMix, M = 8, cut 1, rows shuffled",
        columns=tuple(columns.values()),
        rows=report.rows(flat, lambda c: f"{c['rows']} rows, noise {c['noise']:g}", columns),
        note="Mean matched |correlation| with hidden drawn faces' activations. The baseline sees "
        "the public folder alone; other faces have nothing to do with the hidden ones. Filtered: "
        "by the best of seven linear filters from public statistics. A finding lies, filtered, "
        f"more than {MARGIN:g} above the best of what needs no method. Noise in standard "
        "deviations of the mixtures.",
    )
    return ((table,), ()) if cells else ((), ())


if __name__ == "__main__":
    _runtime.configure()
    report.script(main, Config)
