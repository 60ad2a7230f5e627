"""``facemix report``: results files and runs as one page, and as files for papers."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

from facemix_jax import output
from facemix_jax._arguments import Folder, Folders
from facemix_jax._validate import UsageError, one_of
from facemix_jax.commands import Output
from facemix_jax.data.source import SPLITS
from facemix_jax.output import NOTES
from facemix_jax.results import TRUTH, Results, ResultTable, select


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report(Output):
    """One HTML page of experiments' results and of runs; their tables and charts as files, too.

    Example: facemix report --results experiments/results/*.json --workdirs runs/m8 runs/seeds
    --out report
    """

    results: tuple[Path, ...] = ()
    """Results files of experiments; of several, those without tables and charts are left out."""
    workdirs: Folders = ()
    """Work directories of training runs, or folders that hold such, of which those without a
    checkpoint are left out; runs that differ in their seed only are averaged. Scores against the
    strongest attack are computed once and kept in each."""
    out: Folder = Path("report")
    """Folder for index.html; each table as .csv, .md and .tex, each chart as .svg and .png."""
    split: str = "test"
    """Split of the runs that is scored and attacked."""
    data_dir: str | None = None
    """Where the runs' images are now; by default where they were in training."""

    def run(self) -> None:
        """Runs the command."""
        # Imported here: matplotlib takes time.
        from facemix_jax import gathering, run_images, run_tables, scores
        from facemix_jax.provenance import provenance

        if not self.results and not self.workdirs:
            raise UsageError("There is nothing to report. Give --results, --workdirs or both.")
        one_of(SPLITS, split=self.split)
        read = gathering.read(self.results)
        steps, unfinished = run_tables.find(self.workdirs)
        run_tables.check_distinct(steps)
        page = {f"{gathering.PAGE} of --out": self.out / gathering.PAGE}
        output.check_apart({**page, "--json": self.json}, self.results)
        gathering.check_folder(self.out)
        skipped = {**read.skipped, **unfinished}
        for reason in skipped.values():
            NOTES.print(f"left out: {reason}", soft_wrap=True)

        found = dict(read.found)
        if steps:
            digest = functools.cache(run_images.scored)  # seeds have the same images
            scored = [
                run_tables.Scored(
                    workdir,
                    scores.scores(
                        workdir,
                        split=self.split,
                        data_dir=self.data_dir,
                        say=lambda text: NOTES.print(text, soft_wrap=True),
                        digest=digest,
                    ),
                )
                for workdir in steps
            ]
            tables, charts = run_tables.summarize(scored)
            found[gathering.RUNS] = Results(
                name="Runs", tables=tuple(tables), charts=tuple(charts), provenance=provenance()
            )
        left_out = (
            ("they hold no tables and no charts (benchmarks' never do)", read.skipped),
            ("they have no checkpoint", unfinished),
        )
        remarks = [
            f"Left out, as {why}: {', '.join(path.name for path in paths)}."
            for why, paths in left_out
            if paths
        ]
        files = gathering.write(self.out, found, remarks=remarks)
        output.emit(
            self.json,
            {
                "page": str(self.out / gathering.PAGE),
                "files": files,
                "left_out": {str(path): reason for path, reason in skipped.items()},
                "tables": {
                    name: [dataclasses.asdict(table) for table in each.tables]
                    for name, each in found.items()
                },
            },
            *([_shown(found[gathering.RUNS].tables[0])] if steps else []),
        )
        NOTES.print(f"{TRUTH}\nReport: {self.out / gathering.PAGE}")


def _shown(table: ResultTable) -> Any:
    """What a terminal has room for; all of it is measured."""
    from facemix_jax import rendering, run_tables

    chosen = select(table, run_tables.IN_SHORT)
    rows = []
    for row in chosen.rows:
        cells = zip(row.cells, chosen.columns, strict=True)
        shown = (
            "; ".join(rendering.text(v, column.format) for v in cell) for cell, column in cells
        )
        rows.append((row.label, *shown))
    return output.table("runs", run_tables.IN_SHORT, rows)
