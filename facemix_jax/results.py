"""What an experiment found, as tables and charts of marked values, and the file that keeps it.

Every value says where it comes from: ``paper`` (printed there), ``measured`` (on a machine, with
seeds and an interval) or ``derived`` (from the architecture). Experiments write such files;
``facemix report`` reads them.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from facemix_jax import metrics
from facemix_jax._files import write_atomically
from facemix_jax._validate import UsageError, one_of

MARKS = ("paper", "measured", "derived")
FORMATS = ("text", "percent", "fixed3", "fixed2", "integer", "millions", "billions")

_LARGEST = 1e300
"""Of what a chart shows."""

TRUTH = (
    "Mixing is not a cipher. Blind source separation on image gradients undoes it in about a "
    "second, without the key, the weights or any other picture."
)
"""Stands above everything that is shown to people."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Value:
    """One number or word, and where it comes from.

    Attributes:
        value: a number, or text as the paper prints it.
        mark: one of ``MARKS``.
        half_width: half the 95% interval of the mean over seeds; None with fewer than two seeds.
        seeds: how many seeds are averaged; None where nothing is drawn.
    """

    value: float | str
    mark: str
    half_width: float | None = None
    seeds: int | None = None

    def __post_init__(self) -> None:
        """Checks the mark, the numbers, and that there is something to show."""
        one_of(MARKS, mark=self.mark)
        if not isinstance(self.value, (int, float, str)):
            raise UsageError(f"value is {self.value!r}, but must be a number or text.")
        if not isinstance(self.value, str):
            _numbers(value=(self.value,))
        _numbers(seeds=(self.seeds,))
        _half_widths(self.half_width)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Column:
    """A column.

    Attributes:
        name: heading.
        format: one of ``FORMATS``; percentages are stored as shares.
        strongest: name of the column whose stronger attacker must stand beside this one; None
            for columns that are no privacy figures, or the strongest themselves.
    """

    name: str
    format: str = "text"
    strongest: str | None = None

    def __post_init__(self) -> None:
        """Checks the format."""
        one_of(FORMATS, format=self.format)
        _texts(name=self.name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A row: for each column the values that there are, with different marks."""

    label: str
    cells: tuple[tuple[Value, ...], ...]

    def __post_init__(self) -> None:
        """Checks the label."""
        _texts(label=self.label)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResultTable:
    """A table.

    Attributes:
        title: above it, with data set, split and size.
        columns: without the first, which holds the rows' labels.
        rows: one cell for each column.
        note: below it: what was found, and what it does not show.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    note: str = ""

    def __post_init__(self) -> None:
        """Checks that rows fit, and that every weak attacker has its strongest beside it."""
        _texts(title=self.title, note=self.note)
        names = {column.name for column in self.columns}
        for column in self.columns:
            if column.strongest is not None and column.strongest not in names:
                raise UsageError(
                    f"column {column.name!r} shows a weak attacker, and its strongest "
                    f"{column.strongest!r} is not in the table. Show both, or neither."
                )
        for row in self.rows:
            if len(row.cells) != len(self.columns):
                raise UsageError(
                    f"row {row.label!r} has {len(row.cells)} cells for {len(self.columns)} columns."
                )
            for cell, column in zip(row.cells, self.columns, strict=True):
                if len({value.mark for value in cell}) < len(cell):
                    raise UsageError(
                        f"row {row.label!r} has two values of one mark in {column.name!r}. Give "
                        f"each a column of its own."
                    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
    """Points of one curve; ``half_widths`` as in ``Value``, or empty."""

    label: str
    mark: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    half_widths: tuple[float | None, ...] = ()

    def __post_init__(self) -> None:
        """Checks the mark, the points and their number."""
        one_of(MARKS, mark=self.mark)
        _texts(label=self.label)
        if None in (*self.x, *self.y):
            raise UsageError(f"curve {self.label!r} has a point without a value. Leave it out.")
        _numbers(x=self.x, y=self.y)
        _half_widths(*self.half_widths)
        for value in (*self.x, *self.y, *self.half_widths):
            # Beyond, the length of an axis is no float.
            if value is not None and _LARGEST < abs(value) < math.inf:
                raise UsageError(
                    f"curve {self.label!r} holds {value}, but charts reach to {_LARGEST:g}. Choose "
                    f"a larger unit."
                )
        if len(self.x) != len(self.y) or len(self.half_widths) not in (0, len(self.x)):
            raise UsageError(f"curve {self.label!r}: x, y and half_widths differ in length.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chart:
    """Curves over one axis.

    Attributes:
        title: above it.
        x_label: with the unit.
        y_label: with the unit.
        curves: what is drawn.
        log2_x: whether the axis doubles at equal distances, as suits group sizes.
        points: whether points are left unconnected.
        note: below it.
    """

    title: str
    x_label: str
    y_label: str
    curves: tuple[Curve, ...]
    log2_x: bool = False
    points: bool = False
    note: str = ""

    def __post_init__(self) -> None:
        """Checks the words."""
        _texts(title=self.title, x_label=self.x_label, y_label=self.y_label, note=self.note)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Results:
    """An experiment's file.

    Attributes:
        name: of the script, with the scale.
        tables: summaries of the cells.
        charts: likewise.
        provenance: of the last writing; see ``facemix_jax.provenance``.
        config: the script's options.
        cells: single measurements, each with what it is a measurement of.
    """

    name: str
    tables: tuple[ResultTable, ...] = ()
    charts: tuple[Chart, ...] = ()
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    cells: Sequence[Mapping[str, Any]] = ()

    def __post_init__(self) -> None:
        """Checks the name, and that what is looked up in is a mapping."""
        if not isinstance(self.cells, (list, tuple)):
            raise UsageError(f"cells is {self.cells!r}, but must be a list.")
        for cell in self.cells:
            _mappings(cell=cell)
        _texts(name=self.name)
        _mappings(provenance=self.provenance, config=self.config)
        _mappings(versions=self.provenance.get("versions", {}))


def _texts(**values: Any) -> None:
    for name, value in values.items():
        if not isinstance(value, str):
            raise UsageError(f"{name} is {value!r}, but must be text.")


def _mappings(**values: Any) -> None:
    for name, value in values.items():
        if not isinstance(value, Mapping):
            raise UsageError(f"{name} is {value!r}, but must be a mapping.")


def _numbers(**values: Sequence[Any]) -> None:
    for name, several in values.items():
        for value in several:
            if value is None:
                continue
            if not isinstance(value, (int, float)):
                raise UsageError(f"{name} is {value!r}, but must be a number.")
            try:
                float(value)
            except OverflowError:
                raise UsageError(f"{name} is larger than any float. Give a smaller one.") from None


def _half_widths(*values: Any) -> None:
    _numbers(half_width=values)
    for value in values:
        if value is not None and value < 0:
            raise UsageError(f"half_width is {value!r}, but must be at least 0.")


def select(table: ResultTable, names: Sequence[str]) -> ResultTable:
    """The table with some of its columns, in the order of the names.

    Raises:
        UsageError: there is no such column, or a weak attacker's would stand alone.
    """
    places = {column.name: place for place, column in enumerate(table.columns)}
    for name in names:
        one_of(places, column=name)
    chosen = [places[name] for name in names]
    return dataclasses.replace(
        table,
        columns=tuple(table.columns[place] for place in chosen),
        rows=tuple(
            dataclasses.replace(row, cells=tuple(row.cells[place] for place in chosen))
            for row in table.rows
        ),
    )


def mean_over_seeds(values: Sequence[float]) -> Value:
    """Mean and, from two values on, half its 95% interval."""
    mean, half_width = metrics.mean_interval(values)
    return Value(value=mean, mark="measured", half_width=half_width, seeds=len(values))


def save(path: Path, results: Results) -> None:
    """Writes the file whole or not at all, and its folder where that is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(dataclasses.asdict(results), indent=1) + "\n")


def load(path: Path) -> Results:
    """Reads a file of ``save``.

    Raises:
        UsageError: it is missing or no such file.
    """
    try:
        stored = json.loads(path.read_text())
        return Results(
            **{
                **stored,
                "tables": tuple(_table(table) for table in stored["tables"]),
                "charts": tuple(_chart(chart) for chart in stored["charts"]),
            }
        )
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error}. Name a file of an experiment."
        ) from error
    except KeyError as error:
        raise UsageError(
            f"{path} is not a results file: it has no {error}. Benchmarks write plain numbers; "
            f"older experiments have to be measured again."
        ) from error
    except (ValueError, TypeError) as error:
        raise UsageError(
            f"{path} is not a results file: {error!r}. Name a file that an experiment wrote."
        ) from error


def _table(stored: dict[str, Any]) -> ResultTable:
    rows = tuple(
        Row(
            label=row["label"],
            cells=tuple(tuple(Value(**value) for value in cell) for cell in row["cells"]),
        )
        for row in stored["rows"]
    )
    columns = tuple(Column(**column) for column in stored["columns"])
    return ResultTable(**{**stored, "columns": columns, "rows": rows})


def _chart(stored: dict[str, Any]) -> Chart:
    points = ("x", "y", "half_widths")
    curves = tuple(
        Curve(**{**curve, **{name: tuple(curve[name]) for name in points}})
        for curve in stored["curves"]
    )
    return Chart(**{**stored, "curves": curves})
