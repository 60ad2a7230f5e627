"""What the scripts of this folder share: reading CelebA, and reports that keep finished cells."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from facemix_jax import attacks, data
from facemix_jax._files import write_atomically
from facemix_jax.output import figure_dict
from facemix_jax.provenance import provenance


def celeba(data_dir: str, cache_dir: str | None, image_size: tuple[int, int]) -> data.Source:
    """CelebA from its official files."""
    return data.load_source(
        data.DataConfig(
            dataset="celeba", data_dir=data_dir, cache_dir=cache_dir, image_size=image_size
        )
    )


def options(config: Any) -> dict[str, Any]:
    """A script's options without those that name places on this machine."""
    return {
        name: value
        for name, value in dataclasses.asdict(config).items()
        if not isinstance(value, Path) and not name.endswith(("_dir", "workdirs"))
    }


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


class Cells:
    """Measurements in a JSON file, written one by one, so that a script goes on where it stopped.

    Args:
        output: the file.
        config: the script's options.
    """

    def __init__(self, output: Path, config: Any) -> None:
        self._output, self._config = output, config
        self._cells = json.loads(output.read_text())["cells"] if output.exists() else []

    def has(self, **what: Any) -> bool:
        """Whether there is a cell of this description."""
        return any(what.items() <= cell.items() for cell in self._cells)

    def add(self, cell: dict[str, Any]) -> None:
        """Prints the cell and writes all of them."""
        self._cells.append(cell)
        print(json.dumps(cell), flush=True)
        write(
            self._output,
            {
                "mark": "measured",
                "provenance": provenance(),
                "config": options(self._config),
                "cells": self._cells,
            },
        )
