"""The notebooks run from top to bottom, and what is committed of them is small and clean."""

import copy
import json
import re

import nbformat
import pytest
from notebook_support import NOTEBOOKS, execute, read

MAX_BYTES = 150_000
MAX_LINES = 40
ABSOLUTE = re.compile(r"(?<![\w.:/])/(?:tmp|home|root|usr|opt|work|var|Users|private)/|[A-Z]:\\\\")


def faults(notebook: nbformat.NotebookNode) -> list[str]:
    """What must not be committed."""
    found = []
    if len(nbformat.writes(notebook)) > MAX_BYTES:
        found.append("large")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        found.append("not run from top to bottom")
    if any(len(cell.source.splitlines()) > MAX_LINES for cell in code):
        found.append("long cell")
    for output in (output for cell in code for output in cell.outputs):
        if output.output_type == "error" or output.get("name") == "stderr":
            found.append("error")
        if ABSOLUTE.search(json.dumps(output)):
            found.append("path")
    return found


def printed(notebook: nbformat.NotebookNode) -> str:
    """All that the notebook prints; numbers differ a little between machines and are left out."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    text = "".join(output.get("text", "") for cell in cells for output in cell.outputs)
    return re.sub(r" *-?\d[\d.]*(e[+-]?\d+)?", " #", text)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_notebooks_are_small_and_clean(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert faults(notebook) == []
    # Links between pages are written differently on the site and in Jupyter.
    assert "](" not in "".join(cell.source for cell in notebook.cells)


def test_faults_are_noticed():
    good = read(NOTEBOOKS[0])
    first = next(i for i, cell in enumerate(good.cells) if cell.cell_type == "code")

    def broken(**changes):
        notebook = copy.deepcopy(good)
        notebook.cells[first].update(changes)
        return faults(notebook)

    def text(content, name="stdout"):
        return [nbformat.v4.new_output("stream", name=name, text=content)]

    assert broken(outputs=text("File /home/me/x.py")) == ["path"]
    assert broken(outputs=text("trials and/or errors, a://b/tmp/c")) == []
    assert broken(outputs=text("a warning", name="stderr")) == ["error"]
    assert broken(
        outputs=[nbformat.v4.new_output("error", ename="E", evalue="", traceback=[])]
    ) == ["error"]
    assert broken(outputs=text("x" * MAX_BYTES)) == ["large"]
    assert broken(execution_count=None) == ["not run from top to bottom"]
    assert broken(source="x\n" * (MAX_LINES + 1)) == ["long cell"]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run_and_print_what_is_committed(path):
    assert printed(execute(path)) == printed(read(path))
