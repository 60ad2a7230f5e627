"""A table of labels, and which of its columns hold what."""

import csv
import dataclasses
import io
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from facemix_jax import _validate
from facemix_jax._types import HostArray
from facemix_jax._validate import DataError, UsageError
from facemix_jax.data.archives import SUFFIXES
from facemix_jax.data.labels import read_text, show
from facemix_jax.data.source import SPLITS

ROLES = ("file", "identity", "split", "attributes", "ignore")
NO_PEOPLE = "no column of people: every image counts as its own person"
# Headers as ``_plain`` leaves them.
_FILE = ("file", "filename", "image", "imageid", "path", "name")
_PEOPLE = ("identity", "person", "subject", "celeb")
_IDENTITY = (*_PEOPLE, *(f"{p}{end}" for end in ("id", "name") for p in _PEOPLE), "id")
_SPLIT = ("split", "partition", "set", "subset")
# No and yes, in the ways that tables write them; the last is how pandas writes integers when
# some are missing.
_BINARY = (("0", "1"), ("-1", "1"), ("false", "true"), ("0.0", "1.0"))
_SPLIT_WORDS = {
    **{"0": "train", "1": "valid", "2": "test"},
    **{"train": "train", "valid": "valid", "val": "valid", "validation": "valid", "test": "test"},
    **{"training": "train", "dev": "valid", "testing": "test"},
}
_EXAMPLE = "columns='identity=person split=partition ignore=source attributes=Smiling,Male'"


@dataclasses.dataclass(frozen=True)
class Table:
    """A CSV file as text.

    Attributes:
        path: the file.
        columns: every column's values by its name, blanks as empty strings.
        lines: the line on which each row ends, for messages.
    """

    path: Path
    columns: Mapping[str, list[str]]
    lines: list[int]


@dataclasses.dataclass(frozen=True)
class Roles:
    """What each column of a table is used for.

    Attributes:
        file: the column of image names.
        identity: the column of people; None where every image is its own person.
        split: the column of splits; None where people are dealt out by a hash of their name.
        attributes: columns of 0 and 1, in the order of the table unless asked otherwise.
        ignored: why each other column is not used.
        unlabelled: rows without any attribute, which are left out.
    """

    file: str
    identity: str | None
    split: str | None
    attributes: tuple[str, ...]
    ignored: Mapping[str, str]
    unlabelled: int


def read_table(path: Path) -> Table:
    """Reads a comma-separated file with a header; a BOM and any line ending are fine.

    Raises:
        DataError: not text, separated by something else, a broken quote, a row with too few or
            too many columns, no rows, or two columns of one name.
    """
    text = read_text(path, remedy="Save the labels as comma-separated text in UTF-8.")
    first = text.strip().partition("\n")[0]
    for mark, name in ((";", "semicolons"), ("\t", "tabs")):
        if mark in first and "," not in first:
            raise DataError(
                f"{path}: its header is a single column that holds {name}, but the file must be "
                "comma-separated. Save it as CSV with commas between the columns."
            )
    reader = csv.reader(io.StringIO(text), strict=True)
    lines, rows = [], []
    try:
        for row in reader:
            if row:
                lines.append(reader.line_num)
                rows.append([value.strip() for value in row])
    except csv.Error as error:
        raise DataError(
            f"{path}, line {reader.line_num}: {error}. Mend the quotes of that row."
        ) from error
    if len(rows) < 2:
        raise DataError(
            f"{path} has {len(rows)} lines with text; it needs a header and then one row for "
            "each image. Give a file with rows."
        )
    # Spreadsheets and pandas leave the header of a running number empty.
    header = [name or f"column_{i}" for i, name in enumerate(rows[0], 1)]
    for name, count in Counter(header).items():
        if count > 1:
            raise DataError(
                f"{path}, line {lines[0]}: column {show(name)} occurs {count} times. Rename one."
            )
    for line, row in zip(lines[1:], rows[1:], strict=True):
        if len(row) != len(header):
            raise DataError(
                f"{path}, line {line}: {len(row)} columns where the header has {len(header)} "
                f"({show(','.join(row))}). Mend that row; quote values that hold a comma."
            )
    columns = {name: [row[i] for row in rows[1:]] for i, name in enumerate(header)}
    return Table(path=path, columns=columns, lines=lines[1:])


def find_roles(table: Table, overrides: str | None = None) -> Roles:
    """Guesses what each column is for, except where ``overrides`` says so.

    Args:
        table: the labels.
        overrides: parts such as ``identity=person``, separated by spaces; ``attributes`` and
            ``ignore`` take several columns, separated by commas.

    Raises:
        UsageError: ``overrides`` names an unknown role or column, or a column twice.
        DataError: no column holds image names or attributes, one that holds attributes has a
            few stray or missing values, or one looks like a split under a header that is none.
    """
    asked = _parse(table, overrides)
    taken = [name for names in asked.values() for name in names]
    free = [name for name in table.columns if name not in taken]

    def choose(role: str, names: Iterable[str], fits: Mapping[str, bool]) -> str | None:
        if role in asked:
            return asked[role][0]
        fitting = (name for n in names for name in free if _plain(name) == n and fits[name])
        choice = next(fitting, None)
        if choice is not None:
            free.remove(choice)
        return choice

    images = {n: _mostly(v, lambda x: x.lower().endswith(SUFFIXES)) for n, v in _items(table)}
    file = choose("file", (*_FILE, *map(_plain, free)), images)
    if file is None:
        raise DataError(
            f"No column of {table.path} holds names of images ({', '.join(SUFFIXES)}); there is "
            f"{show(', '.join(table.columns))}. Name one: columns='file=...'."
        )
    filled = {name: any(values) for name, values in _items(table)}
    # A column whose values all differ rather numbers the rows than the people.
    repeats = {n: len(set(v) - {""}) < sum(map(bool, v)) for n, v in _items(table)}
    identity = choose("identity", _IDENTITY, repeats) or choose("identity", _IDENTITY, filled)
    splits = {n: _mostly(v, lambda x: x.lower() in _SPLIT_WORDS) for n, v in _items(table)}
    # Words that are no splits are refused later: dealing people anew would train on test images.
    split = choose("split", _SPLIT, splits) or choose("split", _SPLIT, filled)
    if split is None:
        _refuse_hidden_split(table, free)
    ignored = dict.fromkeys(asked.get("ignore", ()), "as asked")
    if "attributes" in asked:
        attributes = asked["attributes"]
        ignored |= dict.fromkeys(free, "not asked for")
        for name in attributes:
            counts = _counts(table, name)
            pair = min(_BINARY, key=lambda pair: sum(counts[v] for v in counts if v not in pair))
            if not set(counts) <= set(pair):
                raise _stray(table, name, pair)
    else:
        reasons = {name: _not_binary(table, name) for name in free}
        attributes = [name for name, reason in reasons.items() if reason is None]
        ignored |= {name: reason for name, reason in reasons.items() if reason is not None}
    common, other = _blanks(table, attributes, strict="attributes" in asked)
    ignored |= other
    attributes = [name for name in attributes if name not in other]
    if not attributes or len(common) == len(table.lines):
        raise DataError(
            f"No column of {table.path} holds an attribute: only 0 and 1, -1 and 1, or true and "
            f"false, and both of them. There is {show(', '.join(table.columns))}. Add one, or "
            "name columns with columns='attributes=...'."
        )
    return Roles(
        file=file,
        identity=identity,
        split=split,
        attributes=tuple(attributes),
        ignored={name: ignored[name] for name in table.columns if name in ignored},
        unlabelled=len(common),
    )


def attribute_values(table: Table, roles: Roles) -> tuple[HostArray, HostArray]:
    """The labelled rows, int64 ``[N]``, and their attributes, int8 ``[N, K]`` of 0 and 1."""
    texts = [[v.lower() for v in table.columns[name]] for name in roles.attributes]
    kept = np.flatnonzero([bool(v) for v in texts[0]])
    yes = {pair[1] for pair in _BINARY}
    return kept, np.array([[column[i] in yes for column in texts] for i in kept], np.int8)


def split_values(table: Table, column: str, kept: HostArray) -> HostArray:
    """The split of each row of ``kept`` as a position in ``SPLITS``, int64 ``[N]``."""
    found = []
    for i in kept:
        value = table.columns[column][i]
        word = _SPLIT_WORDS.get(value.lower())
        if word is None:
            raise DataError(
                f"{table.path}, line {table.lines[i]}: {show(value)} in column {column} is no "
                "split; it must be train, valid or test, or 0, 1 or 2. Mend that row, or have "
                f"people dealt out by themselves with columns='ignore={column}'."
            )
        found.append(SPLITS.index(word))
    return np.array(found, np.int64)


def _parse(table: Table, overrides: str | None) -> dict[str, list[str]]:
    try:
        parts = shlex.split(overrides or "")
    except ValueError as error:
        raise UsageError(f"columns is {overrides!r}: {error}. Example: {_EXAMPLE}") from error
    asked: dict[str, list[str]] = {}
    seen: set[str] = set()
    for part in parts:
        role, equals, value = part.partition("=")
        names = [name.strip() for name in value.split(",") if name.strip()]
        if not equals or not names or role in asked:
            raise UsageError(
                f"{part!r} in columns must give a role once and its column. Example: {_EXAMPLE}"
            )
        _validate.one_of(ROLES, role=role)
        if role in ROLES[:3] and len(names) > 1:
            raise UsageError(
                f"{part!r} in columns names {len(names)} columns. Give one for {role}."
            )
        for name in names:
            _validate.one_of(table.columns, column=name)
            if name in seen:
                raise UsageError(f"columns names {name!r} twice. Give every column one role.")
            seen.add(name)
        asked[role] = names
    return asked


def _plain(header: str) -> str:
    """A header without case, spaces, hyphens and underscores: ``Person ID`` is ``personid``."""
    return re.sub(r"[\s_-]", "", header.lower())


def _refuse_hidden_split(table: Table, free: Iterable[str]) -> None:
    """Raises ``DataError`` for a column of words such as train and test.

    People dealt out without it would train on the table's own test images. Numbers are left
    alone: 0, 1 and 2 may count anything.
    """
    for name in free:
        words = sorted(_counts(table, name))
        if len(words) > 1 and all(w.isalpha() and w in _SPLIT_WORDS for w in words):
            raise DataError(
                f"{table.path}: column {name} looks like a split ({', '.join(words)}), but its "
                f"header does not say so. Use columns={shlex.quote(f'split={name}')!r} or "
                f"{shlex.quote(f'ignore={name}')!r}."
            )


def _items(table: Table) -> Iterable[tuple[str, list[str]]]:
    return table.columns.items()


def _mostly(values: list[str], good: Callable[[str], bool]) -> bool:
    """Whether more than half of the values that are not blank are good."""
    filled = [value for value in values if value]
    return 2 * sum(map(good, filled)) > len(filled)


def _counts(table: Table, name: str) -> Counter[str]:
    return Counter(value.lower() for value in table.columns[name] if value)


def _few(table: Table) -> int:
    """So few odd values are taken for damage, not for a column of another kind."""
    return max(1, len(table.lines) // 100)


def _not_binary(table: Table, name: str) -> str | None:
    """Why a column holds no attribute; None where it does."""
    counts = _counts(table, name)
    if not counts:
        return "empty"
    if len(counts) == 1:
        return "constant"
    for pair in _BINARY:
        if set(counts) <= set(pair):
            return None
        odd = sum(count for value, count in counts.items() if value not in pair)
        if set(pair) <= set(counts) and odd <= _few(table):
            raise _stray(table, name, pair)
    return "not only 0 and 1"


def _blanks(
    table: Table, names: list[str], *, strict: bool
) -> tuple[frozenset[int], dict[str, str]]:
    """The rows where attributes are blank, and why attributes with other blanks are not used.

    Attributes that are blank in the same rows go together; those with most labels are used.
    """
    blank = {n: frozenset(i for i, v in enumerate(table.columns[n]) if not v) for n in names}
    if not blank:
        return frozenset(), {}
    tally = Counter(blank.values())
    count = len(table.lines)
    common = max(tally, key=lambda rows: (tally[rows] * (count - len(rows)), -len(rows)))
    other = {
        name: "blank in other rows than the attributes"
        if rows - common
        else "has values where the attributes are blank"
        for name, rows in blank.items()
        if rows != common
    }
    for name in other:
        extra = blank[name] - common
        if extra and (strict or (blank[name] > common and len(extra) <= _few(table))):
            raise DataError(
                f"{table.path}, line {table.lines[min(extra)]}: {name} is blank where other "
                f"attributes are not. Fill it in, blank the whole row's attributes, or leave the "
                f"column out with columns='ignore={name}'."
            )
    if strict and other:
        raise DataError(
            f"{table.path}: {', '.join(sorted(other))} have values in rows where the other "
            "attributes are blank. Fill these in, or leave those columns out of 'attributes='."
        )
    return common, other


def _stray(table: Table, name: str, pair: tuple[str, str]) -> DataError:
    row = next(i for i, v in enumerate(table.columns[name]) if v and v.lower() not in pair)
    return DataError(
        f"{table.path}, line {table.lines[row]}: {show(table.columns[name][row])} in column "
        f"{name}, where attributes are {pair[0]} or {pair[1]}. Mend that value, or leave the "
        f"column out with columns='ignore={name}'."
    )
