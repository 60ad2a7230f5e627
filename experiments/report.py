"""What the scripts of this folder share: reading CelebA, and reports that keep finished cells."""

import contextlib
import dataclasses
import fcntl
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import scale as scales
import tyro

from facemix_jax import attacks, cli, data, results, runs, sweep
from facemix_jax._files import write_atomically
from facemix_jax._types import Array, Variables
from facemix_jax._validate import UsageError
from facemix_jax.output import figure_dict
from facemix_jax.provenance import provenance

Summary = tuple[Sequence[results.ResultTable], Sequence[results.Chart]]

QUICK = "Gradient ICA is a quick attack, not the strongest: facemix attack runs that."
"""Stands below its figures where nothing stronger was run."""


def script(main: Callable[[Any], None], config: type[Any]) -> NoReturn:
    """Runs a script with the command line's options; what goes wrong is said in a paragraph."""
    sys.exit(cli.guarded(lambda: main(tyro.cli(config))))


def faces(data_dir: str | None, cache_dir: str | None, image_size: tuple[int, int]) -> data.Source:
    """CelebA from its official files; drawn faces, a few, where there is no folder."""
    if data_dir is not None:
        return celeba(data_dir, cache_dir, image_size)
    few = data.DataConfig(image_size=image_size, train_examples=256, test_examples=64)
    return data.load_source(few)


def celeba(data_dir: str, cache_dir: str | None, image_size: tuple[int, int]) -> data.Source:
    """CelebA from its official files."""
    return data.load_source(
        data.DataConfig(
            dataset="celeba", data_dir=data_dir, cache_dir=cache_dir, image_size=image_size
        )
    )


def without_main(target: attacks.Target) -> attacks.Target:
    """The same target for attacks that read only what is sent.

    Main would be computed for nothing, and compiled anew for every defence.
    """
    model = target.model
    main, post = model.main._replace(apply=_mean), model.post._replace(apply=_same)
    return dataclasses.replace(target, model=model._replace(main=main, post=post))


def _mean(variables: Variables, z: Array) -> Array:
    return z.mean((1, 2))


def _same(variables: Variables, x: Array) -> Array:
    return x


def options(config: Any) -> dict[str, Any]:
    """A script's options without those that name places on this machine."""
    return {
        name: value
        for name, value in dataclasses.asdict(config).items()
        if not isinstance(value, Path) and not name.endswith(("_dir", "workdirs"))
    }


def run_hash(run: runs.Run) -> str:
    """Which network a cell measured, wherever its work directory lies."""
    return f"{sweep.config_hash(run.config)}-{run.step}"


def figures(found: Sequence[attacks.Figure]) -> list[dict[str, Any]]:
    """Figures ready for JSON, rounded."""

    def rounded(value: Any) -> Any:
        return round(value, 4) if isinstance(value, float) else value

    return [
        {name: rounded(value) for name, value in figure_dict(figure).items()} for figure in found
    ]


def write(output: Path, report: dict[str, Any]) -> None:
    """Writes the JSON file, and its folder where that is missing."""
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, json.dumps(report, indent=1) + "\n")


def derived(value: float) -> results.Value:
    """What follows without anything being run: a guess, or what is sent as it is."""
    return results.Value(value=value, mark="derived")


def measured(value: float | str | results.Value | None) -> tuple[results.Value, ...]:
    """A table's cell: a measurement with one seed, a count, or words; empty where nothing is."""
    if value is None:
        return ()
    if isinstance(value, results.Value):
        return (value,)
    if isinstance(value, str):
        return (results.Value(value=value, mark="measured"),)
    if isinstance(value, int):
        return (results.Value(value=value, mark="derived"),)
    return (results.mean_over_seeds([value]),)


def rows(
    cells: Sequence[Mapping[str, Any]],
    label: Callable[[Mapping[str, Any]], str],
    columns: Mapping[str, results.Column],
) -> tuple[results.Row, ...]:
    """A row for each cell: what stands in its fields, one seed each.

    Args:
        cells: of a results file.
        label: of a cell's row.
        columns: by field; a cell need not have all of them.
    """
    return tuple(
        results.Row(label=label(cell), cells=tuple(measured(cell.get(name)) for name in columns))
        for cell in cells
    )


def curve(label: str, points: Sequence[tuple[float, float]]) -> results.Curve:
    """Measured points of one seed."""
    x, y = zip(*points, strict=True)
    return results.Curve(label=label, mark="measured", x=x, y=y)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Waits for other processes that write in a folder; a kill lets go of it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _holds(cells: Sequence[Mapping[str, Any]], what: Mapping[str, Any]) -> bool:
    return any(what.items() <= cell.items() for cell in cells)


def _script(config: Any) -> str:
    """The name of the file that a script's options are defined in."""
    return Path(inspect.getfile(type(config))).stem


class Cells:
    """Measurements in a results file, written one by one: a script goes on where it stopped.

    Several processes may add to one file at the same time; of two that measure the same cell the
    first counts. The file names the devices of all of its cells.

    Args:
        output: the file.
        config: the script's options.
        name: of the script, with its scale; None for that of the file that it is.
        chooses: options that only choose among cells; the others must be those that the file was
            begun with.
        summarize: makes tables and charts of all cells, after each.

    Attributes:
        cells: what there was when this process last looked.

    Raises:
        UsageError: the file was begun with other options, or holds something else.
    """

    def __init__(
        self,
        output: Path,
        config: Any,
        *,
        name: str | None = None,
        chooses: Sequence[str] = (),
        summarize: Callable[[list[dict[str, Any]]], Summary] = lambda cells: ((), ()),
    ) -> None:
        self._output, self._options, self._summarize = output, options(config), summarize
        self._name = name or _script(config)
        self._missing: list[dict[str, Any]] = []
        stored = self._stored()
        self.cells: list[dict[str, Any]] = stored.get("cells", [])
        begun = stored.get("name", self._name)
        # Scripts were once named after their files.
        if begun != self._name and begun not in (
            f"{self._name}_{scale}" for scale in scales.SCALES
        ):
            raise UsageError(
                f"{output} holds results of {begun!r}, but this is {self._name!r}. Give another "
                f"--output."
            )
        # As JSON has them: tuples are lists there.
        mine = json.loads(json.dumps(self._options))
        for option, value in stored.get("config", {}).items():
            if option not in chooses and mine.get(option, value) != value:
                raise UsageError(
                    f"{output} was begun with {option} {value}, but {option} is {mine[option]}. "
                    "Use that value, or another --output."
                )

    def has(self, of_run: str | None = None, /, **what: Any) -> bool:
        """Whether there is a cell of this description.

        Args:
            of_run: the network's ``run_hash``, where its work directory is an option.
            **what: the description.

        Raises:
            UsageError: there is one, of another network.
        """
        for cell in self.cells:
            if what.items() <= cell.items():
                if of_run and cell.get("run_hash", of_run) != of_run:
                    raise UsageError(
                        f"{self._output} holds {what} of another network, {cell['run_hash']}, but "
                        f"this one is {of_run}. Use that work directory, or another --output."
                    )
                return True
        self._missing.append(what)
        return False

    def add(self, cell: dict[str, Any], *, instead_of: Mapping[str, Any] | None = None) -> None:
        """Prints the cell and writes all of them.

        Args:
            cell: what was measured, with ``device`` where that is not this process's.
            instead_of: description of cells that it takes the place of.
        """
        print(json.dumps(cell), flush=True)
        here = provenance()
        where = {"device": here["device"], **cell}["device"]
        self.save({**cell, "commit": here["commit"], "device": where}, instead_of=instead_of)

    def save(self, *more: dict[str, Any], instead_of: Mapping[str, Any] | None = None) -> None:
        """Writes all cells, those of other processes as well, and what they come to."""
        self._output.parent.mkdir(parents=True, exist_ok=True)
        with _alone(self._output.parent):
            stored = self._stored()
            before = stored.get("provenance", {})
            kept = [
                # Older cells do not say where they were measured, but their file does.
                {**cell, "device": cell.get("device", before["device"])}
                for cell in stored.get("cells", [])
                if instead_of is None or not instead_of.items() <= cell.items()
            ]
            there = [what for what in self._missing if _holds(kept, what)]
            new = [cell for cell in more if not any(_holds([cell], what) for what in there)]
            self.cells = [*kept, *new]
            self._write(provenance() if new or not before else before)

    def _stored(self) -> dict[str, Any]:
        try:
            stored = json.loads(self._output.read_text()) if self._output.exists() else {}
        except ValueError:
            stored = None
        if not isinstance(stored, dict):
            raise UsageError(
                f"{self._output} is there and holds no results. Give another --output, or restore "
                f"or remove it."
            )
        return stored

    def _write(self, made: dict[str, Any]) -> None:
        tables, charts = self._summarize(self.cells)
        devices = {name for cell in self.cells for name in cell["device"].split(", ") if name}
        if devices:
            made = {**made, "device": ", ".join(sorted(devices))}
        results.save(
            self._output,
            results.Results(
                name=self._name,
                tables=tuple(tables),
                charts=tuple(charts),
                provenance=made,
                config=self._options,
                cells=self.cells,
            ),
        )
