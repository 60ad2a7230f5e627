"""What the scripts of this folder share: reading CelebA, and reports that keep finished cells."""

import contextlib
import dataclasses
import hashlib
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import scale as scales
import tyro

from facemix_jax import attacks, cli, data, results, run_images, runs, sweep
from facemix_jax._files import lock, write_atomically
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


def images_of(config: data.DataConfig) -> dict[str, Any]:
    """What tells the images of a folder from others, wherever it lies; ready for JSON.

    Names, encoded bytes, labels, people and splits count, of all images that are there; none is
    read.

    Returns:
        How many images each split has, and a digest; empty where faces are drawn.

    Raises:
        FacemixError: files are missing or damaged.
    """
    if config.data_dir is None:
        return {}
    files = data.open_files(config)
    digest = hashlib.sha256()
    for split, rows in sorted(files.splits.items()):
        digest.update(f"{split} {run_images.labels_of(files, rows)}\n".encode())
        for name in (files.file_names[row] for row in rows):
            digest.update(f"{name} {files.images.sizes[name]}\n".encode())
    counts = {split: len(rows) for split, rows in files.splits.items()}
    return {**counts, "digest": digest.hexdigest()[:16]}


def celeba_images(data_dir: str | None) -> dict[str, dict[str, Any]]:
    """``images_of`` CelebA from its official files, for ``Cells``; empty without a folder.

    Raises:
        FacemixError: files are missing or damaged.
    """
    if data_dir is None:
        return {}
    return {"data": images_of(data.DataConfig(dataset="celeba", data_dir=data_dir))}


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
    return _without_places(dataclasses.asdict(config))


def _without_places(options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in options.items()
        if not isinstance(value, Path) and not name.endswith(("_dir", "workdirs"))
    }


def _defaults(config: Any) -> dict[str, Any]:
    """What ``options`` are where a call gives none; without those that have to be given."""
    fields = dataclasses.fields(config)
    found = {f.name: f.default for f in fields if f.default is not dataclasses.MISSING}
    made = {
        f.name: f.default_factory() for f in fields if f.default_factory is not dataclasses.MISSING
    }
    return _without_places({**found, **made})


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


SEPARATION = {
    "gradient_ica": results.Column(name="gradient ICA", format="fixed3", strongest="strongest"),
    "value": results.Column(name="strongest", format="fixed3"),
    "floor": results.Column(name="no attack", format="fixed3"),
    "owner": results.Column(name="owner", format="fixed3"),
}
"""Columns of what ``strongest`` returns; of a plain network all follow without an attack."""
SEPARATED = (
    "Mean matched |correlation| with the activations by gradient ICA, by the stronger of it and "
    "robust, of what is sent, and the owner's; the plain network sends the activations as they are."
)
"""Stands below tables with them."""


def strongest(leakage: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """What ``evaluate_leakage`` found: each attack's value, and the largest as ``value``.

    With the ``floor`` and ``owner`` of the attack that found most.
    """
    best = max(leakage.values(), key=lambda figure: figure["value"])
    each = {name: figure["value"] for name, figure in leakage.items()}
    return {**each, **{name: best[name] for name in ("value", "floor", "owner")}}


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
        lock(handle, wait=True)
        yield
    finally:
        os.close(handle)


def _holds(cells: Sequence[Mapping[str, Any]], what: Mapping[str, Any]) -> bool:
    return any(what.items() <= cell.items() for cell in cells)


def _is_written_here(stored: Any) -> bool:
    """Whether this is what ``Cells`` writes, as far as it is read again."""
    kinds = {"name": str, "provenance": dict, "config": dict, "cells": list}
    if not isinstance(stored, dict):
        return False
    if not all(isinstance(stored.get(name), kind) for name, kind in kinds.items()):
        return False
    before = stored["provenance"]
    # Older cells do not say where they were measured, but their file does.
    return isinstance(before.get("images", {}), dict) and all(
        isinstance(cell, dict) and isinstance(cell.get("device", before.get("device")), str)
        for cell in stored["cells"]
    )


def _script(config: Any) -> str:
    """The name of the file that a script's options are defined in."""
    return Path(inspect.getfile(type(config))).stem


class Cells:
    """Measurements in a results file, written one by one: a script goes on where it stopped.

    Several processes may add to one file at the same time; of two that measure the same cell the
    first counts. The file names the devices of all of its cells, and the images.

    Args:
        output: the file.
        config: the script's options.
        name: of the script, with its scale; None for that of the file that it is.
        formerly: what the name was in older files.
        images: ``images_of`` what is measured, by what it is for: the file's cells must be of the
            same. Older files do not say, and what is empty is not compared.
        chooses: options that only choose among cells; the others must be those that the file was
            begun with.
        summarize: makes tables and charts of all cells, after each.

    Attributes:
        cells: what there was when this process last looked.

    Raises:
        UsageError: the file was begun with other options or images, or holds something else.
    """

    def __init__(
        self,
        output: Path,
        config: Any,
        *,
        name: str | None = None,
        formerly: str | None = None,
        images: Mapping[str, Mapping[str, Any]] | None = None,
        chooses: Sequence[str] = (),
        summarize: Callable[[list[dict[str, Any]]], Summary] = lambda cells: ((), ()),
    ) -> None:
        self._output, self._options, self._summarize = output, options(config), summarize
        self._defaults, self._chooses = _defaults(config), chooses
        self._name, self._formerly = name or _script(config), formerly
        self._images = {what: dict(found) for what, found in (images or {}).items() if found}
        self._missing: list[dict[str, Any]] = []
        self.cells: list[dict[str, Any]] = self._stored().get("cells", [])

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
                {**cell, "device": cell.get("device", before.get("device"))}
                for cell in stored.get("cells", [])
                if instead_of is None or not instead_of.items() <= cell.items()
            ]
            there = [what for what in self._missing if _holds(kept, what)]
            new = [cell for cell in more if not any(_holds([cell], what) for what in there)]
            self.cells = [*kept, *new]
            if new or not before:
                images = {**before.get("images", {}), **self._images}
                before = {**provenance(), **({"images": images} if images else {})}
            self._write(before)

    def _stored(self) -> dict[str, Any]:
        """What the file holds, which this script may go on with; empty where there is none."""
        if not self._output.exists():
            return {}
        try:
            stored = json.loads(self._output.read_text())
        except ValueError:
            stored = None
        except IsADirectoryError:
            raise UsageError(f"{self._output} is a folder. Give a file as --output.") from None
        if not _is_written_here(stored):
            raise UsageError(
                f"{self._output} is there and holds no results of an experiment, or damaged ones. "
                f"Give another --output, or restore or remove it."
            )
        self._check(stored)
        return dict(stored)

    def _check(self, stored: Mapping[str, Any]) -> None:
        """Raises ``UsageError`` where a file was begun by another script, or otherwise."""
        # Scripts were once named after their files.
        older = (self._formerly, *(f"{self._name}_{scale}" for scale in scales.SCALES))
        if stored["name"] not in (self._name, *older):
            raise UsageError(
                f"{self._output} holds results of {stored['name']!r}, but this is {self._name!r}. "
                f"Give another --output."
            )
        # As JSON has them: tuples are lists there.
        mine = json.loads(json.dumps(self._options))
        # An option that is newer than the file was at its default.
        begun = {**json.loads(json.dumps(self._defaults)), **stored["config"]}
        for option, value in mine.items():
            if option not in self._chooses and begun.get(option, value) != value:
                raise UsageError(
                    f"{self._output} was begun with {option} {begun[option]}, but {option} is "
                    f"{value}. Use that value, or another --output."
                )
        for what, found in stored["provenance"].get("images", {}).items():
            if self._images.get(what, found) != found:
                raise UsageError(
                    f"{self._output} was begun with other images ({what}): {found} there, "
                    f"{self._images[what]} here. Give the folder of the same ones, or another "
                    f"--output."
                )

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
