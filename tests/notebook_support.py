"""Runs the notebooks of docs/notebooks; as a program, writes their outputs anew."""

from pathlib import Path

import nbclient
import nbformat

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs" / "notebooks").glob("*.ipynb"))


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def execute(path: Path) -> nbformat.NotebookNode:
    """The notebook with the outputs of a fresh kernel; nothing is written.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    notebook = read(path)
    # Times and the interpreter's version would make a difference between any two runs.
    client = nbclient.NotebookClient(
        notebook, kernel_name="python3", timeout=600, record_timing=False
    )
    client.execute()
    notebook.metadata.language_info = {"name": "python"}
    return notebook


if __name__ == "__main__":
    for notebook_path in NOTEBOOKS:
        print(notebook_path.name)
        nbformat.write(execute(notebook_path), notebook_path)
