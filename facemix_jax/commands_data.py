"""The commands below ``facemix data``: prepare, show and check a data set."""

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Any

import tyro

from facemix_jax import data, output
from facemix_jax._arguments import Folder
from facemix_jax._files import expanded
from facemix_jax._validate import DataError, one_of, positive
from facemix_jax.commands import check_unused
from facemix_jax.data import folder, lfwa, sheet
from facemix_jax.data.config import FILES
from facemix_jax.data.source import SPLITS
from facemix_jax.data.statistics import AT_LEAST, Statistics, statistics
from facemix_jax.data.tables import NO_PEOPLE
from facemix_jax.output import NOTES
from facemix_jax.run_files import check_not_own

_PAIRS = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Files:
    dataset: str
    """Which data set: celeba, lfwa, folder or prepared; as in facemix train."""
    data_dir: str | None = None
    """Folder with its files."""
    labels: str | None = None
    """The CSV file in the folder, if there are several."""
    columns: str | None = None
    """What the CSV's columns hold, as in "identity=person ignore=source"; the rest is guessed."""

    def _config(self, **values: Any) -> data.DataConfig:
        return data.DataConfig(
            dataset=self.dataset,
            data_dir=self.data_dir,
            labels=self.labels,
            columns=self.columns,
            **values,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepare(_Files):
    """Write a data set as TFDS shards with checksums, to be used with --dataset prepared.

    Example: facemix data prepare --dataset celeba --data-dir ~/celeba --output ~/celeba-109
    --image-size 109 89
    """

    output: Folder
    """Folder for prepared data sets; this one gets a folder in it."""
    image_size: tuple[int, int] | None = None
    """Height and width of the stored images; by default they are stored as they are."""

    def run(self) -> None:
        """Runs the command."""
        from facemix_jax.data import prepare

        check_not_own(self.output, "--output")
        # The configuration refuses sizes that make no sense.
        size = {} if self.image_size is None else {"image_size": self.image_size}
        written = prepare.prepare(
            self._config(**size), self.output, store_size=self.image_size, show_progress=True
        )
        NOTES.print(f"Written: {written}", soft_wrap=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Show(_Files):
    """Count what a data set holds, and draw a sheet of its faces with their labels.

    Example: facemix data show --dataset celeba --data-dir ~/celeba --out sheet.png --people
    """

    dataset: str = data.DataConfig.dataset
    """Which data set; as in facemix train."""
    out: Path | None = None
    """Write a sheet of faces to this PNG file."""
    people: bool = False
    """Every row of the sheet shows one person."""
    split: str = "train"
    """Split that the sheet's faces are from."""
    rows: int = 4
    """Rows of the sheet."""
    per_row: int = 6
    """Faces in a row of the sheet."""
    image_size: tuple[int, int] = data.DataConfig.image_size
    """Height and width to which images are scaled, as in training."""
    json: str | None = None
    """Write the numbers as JSON to this path; - for standard output."""

    def run(self) -> None:
        """Runs the command."""
        positive(rows=self.rows, per_row=self.per_row)
        one_of(SPLITS, split=self.split)
        output.check_png(self.out, "--out")
        results = {"--out": self.out, "--json": self.json}
        output.check_apart(results, [])
        output.check_outside(results, self.data_dir)
        config = self._config(image_size=self.image_size)
        if self.out is None:
            sheet_only = ("people", "split", "rows", "per_row", "image_size")
            check_unused(self, Show(), "without --out no sheet of faces is drawn", sheet_only)
        # Of files only the shown faces are decoded, so that a look at a large set takes seconds.
        source: data.Source = (
            sheet.Undecoded(data.open_files(config), config.image_size)
            if config.dataset in FILES
            else data.load_source(config)
        )
        if self.out is not None:
            self._draw(source, self.out)
        roles = self._roles()
        counted = statistics(source)
        output.emit(
            self.json,
            {
                "dataset": source.name,
                **({"columns": dataclasses.asdict(roles)} if roles else {}),
                **summary(counted),
                "sheet": str(self.out) if self.out else None,
            },
            *([output.table("columns are taken for", ("",), _role_rows(roles))] if roles else []),
            *_tables(counted),
        )
        if self.out is not None:
            NOTES.print(f"Sheet: {self.out}", soft_wrap=True)

    def _roles(self) -> folder.Roles | None:
        """What the columns of a table of labels were taken for; None where there is no table."""
        if self.dataset not in ("folder", "lfwa") or self.data_dir is None:
            return None
        place = expanded(self.data_dir)
        if self.dataset == "lfwa" and not lfwa.has_table(place, self.labels, self.columns):
            return None
        return folder.roles(place, labels=self.labels, columns=self.columns)

    def _draw(self, source: data.Source, out: Path) -> None:
        choose = sheet.choose_people if self.people else sheet.choose
        chosen = choose(source, self.split, rows=self.rows, columns=self.per_row)
        height, width = source.image_size
        size = f"{len(source.splits[self.split]):,} images, {height}x{width}"
        pixels = sheet.contact_sheet(source, chosen, title=f"{source.name}, {self.split}: {size}")
        sheet.save_png(out, pixels)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check(_Files):
    """Read and decode every image of a data set, compare checksums, and say what looks odd.

    Images that cannot be decoded are found. Bytes changed within a JPEG are found by a checksum
    only: that of a zip file or of a prepared data set.

    Example: facemix data check --dataset celeba --data-dir ~/celeba
    """

    image_size: tuple[int, int] = data.DataConfig.image_size
    """Height and width to which images are decoded, as in training."""
    cache_dir: str | None = None
    """Where decoded images lie, if not in the usual place."""
    json: str | None = None
    """Write the findings as JSON to this path; - for standard output."""

    def run(self) -> None:
        """Runs the command."""
        # Imported here: only this command needs it.
        from facemix_jax.data.check import check

        output.check_outside({"--json": self.json}, self.data_dir)
        report = check(self._config(image_size=self.image_size, cache_dir=self.cache_dir))
        problems = [problem._asdict() for problem in report.problems]
        result = {"whole": not problems, **dataclasses.asdict(report), "problems": problems}
        if self.json != "-":
            # Plain lines, not a table: names and places stay whole, to be copied and searched.
            lines = [
                *(f"good: {text}" for text in report.confirmed),
                *(f"note: {text}" for text in report.remarks),
                *(f"BAD ({p.kind}) {p.name}: {p.reason}" for p in report.problems),
            ]
            print("\n".join(lines))
        output.emit(self.json, result)
        if problems:
            raise DataError(
                f"{report.dataset} in {self.data_dir} is not whole; problems found: "
                f"{len(problems):,}. Mend what is marked BAD, then check again."
            )


_Command = (
    Annotated[Prepare, tyro.conf.subcommand("prepare")]
    | Annotated[Show, tyro.conf.subcommand("show")]
    | Annotated[Check, tyro.conf.subcommand("check")]
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """Show what a data set holds, check that it is whole, or prepare it for training.

    Example: facemix data show --out sheet.png
    """

    command: tyro.conf.OmitSubcommandPrefixes[tyro.conf.OmitArgPrefixes[_Command]]

    def run(self) -> None:
        """Runs the command."""
        self.command.run()


def summary(counted: Statistics) -> dict[str, Any]:
    """Statistics as JSON has them: names instead of places, None instead of NaN."""
    per_person = _per_person(counted)
    return {
        "splits": {
            split: {
                "images": int(counted.images[i]),
                "people": int(counted.people[i]),
                "rates": {
                    name: None if math.isnan(rate) else float(rate)
                    for name, rate in zip(counted.attribute_names, counted.rates[i], strict=True)
                },
            }
            for i, split in enumerate(counted.splits)
        },
        "people": len(counted.images_per_person),
        "images_per_person": per_person,
        "people_with_at_least": dict(
            zip(map(str, AT_LEAST), counted.at_least.tolist(), strict=True)
        ),
        "strongest_correlations": [list(pair) for pair in counted.strongest(_PAIRS)],
    }


def _role_rows(roles: folder.Roles) -> list[tuple[str, str]]:
    """One row for every column of the table of labels, and for what no column gives."""
    dealt = "split: 80/10/10 by a hash of the person"
    left_out = f"{roles.unlabelled:,} rows without attributes"
    return [
        (roles.file, "name of the image"),
        (roles.identity, "person") if roles.identity else ("(no column)", NO_PEOPLE),
        (roles.split, "split") if roles.split else ("(no column)", dealt),
        *((name, "attribute") for name in roles.attributes),
        *((name, f"ignored: {reason}") for name, reason in roles.ignored.items()),
        *([("(left out)", left_out)] if roles.unlabelled else []),
    ]


def _per_person(counted: Statistics) -> dict[str, float | None]:
    ordered = counted.images_per_person
    if not len(ordered):
        return {"min": None, "median": None, "max": None}
    middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    return {"min": int(ordered[0]), "median": float(middle), "max": int(ordered[-1])}


def _tables(counted: Statistics) -> list[Any]:
    splits = [
        (name, f"{images:,}", f"{people:,}")
        for name, images, people in zip(counted.splits, counted.images, counted.people, strict=True)
    ]
    per_person = _per_person(counted)
    persons = [
        ("people", f"{len(counted.images_per_person):,}"),
        *((f"images of one person, {k}", f"{v:g}") for k, v in per_person.items() if v is not None),
        *(
            (f"people with {n} images or more", f"{number:,}")
            for n, number in zip(AT_LEAST, counted.at_least, strict=True)
        ),
    ]
    rates = [
        (name, *("" if math.isnan(r) else f"{r:.1%}" for r in counted.rates[:, k]))
        for k, name in enumerate(counted.attribute_names)
    ]
    pairs = [(f"{a}, {b}", f"{r:+.2f}") for a, b, r in counted.strongest(_PAIRS)]
    return [
        output.table(counted.name, ("images", "people"), splits),
        output.table("all splits", ("",), persons),
        output.table("share of images with", counted.splits, rates),
        output.table("strongest correlations", ("",), pairs),
    ]
