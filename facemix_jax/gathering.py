"""Results files and runs, gathered into one folder: a page, and files for papers and programs."""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from facemix_jax import charts, rendering, report, results
from facemix_jax._files import write_atomically
from facemix_jax._validate import FacemixError, UsageError
from facemix_jax.provenance import commits, provenance
from facemix_jax.rendering import MEANING
from facemix_jax.report import Labelled, Note, Section, Small, Table
from facemix_jax.results import TRUTH, Results
from facemix_jax.run_files import check_not_own

PAGE = "index.html"
RUNS = "runs"


class Read(NamedTuple):
    """What there was to read.

    Attributes:
        found: name for files to what was read, in the order of the paths.
        skipped: path to the reason why it was left out.
    """

    found: dict[str, Results]
    skipped: dict[Path, str]


def read(paths: Sequence[Path]) -> Read:
    """Reads results files; of several, those that are none are left out.

    Raises:
        UsageError: a path is missing, or nothing is left.
    """
    for path in paths:
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "is not there"
            raise UsageError(
                f"{path} {what}. Give results files, as in --results experiments/results/*.json."
            )
    found: dict[str, Results] = {}
    skipped: dict[Path, str] = {}
    for path in dict.fromkeys(paths):
        try:
            loaded = results.load(path)
        except UsageError as error:
            skipped[path] = str(error)
            continue
        if loaded.tables or loaded.charts:
            found[_unused(path.stem, found)] = loaded
        else:
            skipped[path] = (
                f"{path} holds no tables and no charts. Run its experiment again, which makes them."
            )
    if paths and not found:
        first, *more = skipped.values()
        others = f" Nor can the {len(more)} other files be used." if more else ""
        raise UsageError(first + others)
    return Read(found, skipped)


def _unused(name: str, taken: Mapping[str, Any]) -> str:
    """The name, or with a number where it is taken; ``runs`` is for work directories."""
    names = (name if number == 1 else f"{name}-{number}" for number in range(1, len(taken) + 3))
    return next(each for each in names if each not in taken and each != RUNS)


def check_folder(out: Path) -> None:
    """Makes the folder, or checks that it can be written.

    Raises:
        UsageError: it cannot, or is a folder that a run keeps.
    """
    check_not_own(out, "--out")
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".probe.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(
            f"The folder {out} cannot be written: {error}. Choose another --out."
        ) from error


def write(
    out: Path,
    found: Mapping[str, Results],
    *,
    remarks: Sequence[str] = (),
    say: Callable[[str], None] = lambda text: None,
) -> list[str]:
    """Writes ``index.html`` and, beside it, every table and chart in files of their own.

    Args:
        out: the folder.
        found: name for files to results.
        remarks: about the whole, for the page.
        say: told what is drawn.

    Returns:
        The files' names, the page first.

    Raises:
        FacemixError: a file cannot be written.
    """
    sections: list[Section] = []
    names: list[str] = []
    for name, each in found.items():
        say(f"drawing {each.name}")
        files: dict[str, str | bytes] = {}
        blocks: list[report.Block] = [Small(_source(each.provenance, each.cells))]
        for stem, content, shown in _parts(name, each):
            files |= {f"{stem}.{ending}": value for ending, value in content.items()}
            blocks += [*shown, Small(f"Files: {', '.join(f'{stem}.{e}' for e in content)}")]
        for file, value in files.items():
            _write(out / file, value)
        names += files
        sections.append(Section(each.name, blocks))
    _write(out / PAGE, _page(sections, remarks))
    return [PAGE, *names]


def _parts(
    name: str, each: Results
) -> Iterator[tuple[str, dict[str, str | bytes], list[report.Block]]]:
    """Name, files by their ending, and blocks for the page, of every table and chart."""
    for number, table in enumerate(each.tables, 1):
        stem = f"{name}-table{number}"
        yield (
            stem,
            {
                "csv": rendering.as_csv(table),
                "md": rendering.markdown(table),
                "tex": rendering.latex(table, label=f"tab:{re.sub('[^A-Za-z0-9_-]', '-', stem)}"),
            },
            rendering.for_page(table),
        )
    for number, chart in enumerate(each.charts, 1):
        drawn = charts.draw(chart)
        picture = report.Drawing(drawn.light, drawn.dark, charts.describe(chart), chart.note)
        files: dict[str, str | bytes] = {"svg": drawn.svg, "png": drawn.png}
        yield f"{name}-chart{number}", files, [report.Heading(chart.title), picture]


def _page(sections: Sequence[Section], remarks: Sequence[str]) -> str:
    legend = Table(
        ("mark", "what it says of a value"),
        [([Labelled(mark, "", f"mark {mark}")], MEANING[mark]) for mark in results.MARKS],
        words=True,
    )
    return report.page(
        "FaceMix: what was measured",
        [Note(TRUTH), legend, *map(Small, remarks)],
        sections,
        f"Written by facemix report. {_source(provenance())}",
    )


def _source(made: Mapping[str, Any], cells: Sequence[Mapping[str, Any]] = ()) -> str:
    """Date, commits, device and versions in one line, as far as they are known.

    Args:
        made: provenance; of a results file that of its last writing.
        cells: of the file, of several commits perhaps.
    """
    names = commits(made, cells) or ("unknown",)
    cores = f", {made['cores']} cores" if made.get("cores") else ""
    processor = f" ({made['processor']}{cores})" if made.get("processor") else cores
    versions = ", ".join(f"{name} {version}" for name, version in made.get("versions", {}).items())
    known = {
        "last written" if cells else "date": str(made.get("date", ""))
        .replace("T", " ")
        .replace("+00:00", " UTC"),
        "commit" if len(names) == 1 else "commits": ", ".join(names),
        "device": f"{made.get('device', 'unknown')}{processor}",
        "versions": f"{versions}, Python {made['python']}" if "python" in made else versions,
    }
    line = "; ".join(f"{name} {value}" for name, value in known.items() if value)
    return f"{line[:1].upper()}{line[1:]}."


def _write(path: Path, content: str | bytes) -> None:
    try:
        write_atomically(path, content)
    except OSError as error:
        raise FacemixError(
            f"{path} cannot be written: {error}. Free space, or choose another --out."
        ) from error
