"""The pages under docs/: their Python runs as written, their commands and files exist."""

import dataclasses
import re
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import pytest
import yaml
from notebook_support import NOTEBOOKS

from facemix_jax import cli
from facemix_jax._validate import UsageError
from facemix_jax.attacks import suite

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
PYTHON = {
    page.name: re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL) for page in PAGES
}


ELSEWHERE = "# own.py only\n"
"""Begins the block that is for that file and would end a session."""


def run_page(name, monkeypatch, folder):
    """All blocks of a page as one script, and what it leaves: ``python page.py``."""
    monkeypatch.chdir(folder)
    page = folder / "page.py"
    blocks = (block for block in PYTHON[name] if not block.startswith(ELSEWHERE))
    page.write_text("\n".join(blocks))
    monkeypatch.setattr(sys, "argv", [page.name])
    return runpy.run_path(page.name, run_name="__main__")


@pytest.mark.filterwarnings("default")
@pytest.mark.library_promotes
def test_the_tour_runs_as_written(tmp_path, monkeypatch, capsys):
    names = run_page("tour.md", monkeypatch, tmp_path)
    assert names["figure"].value > 0.9
    assert "unmixed again" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.library_promotes
def test_bring_your_own_runs_as_written(tmp_path, monkeypatch):
    from facemix_jax.attacks.suite import ATTACKS
    from facemix_jax.commands import check_defense
    from facemix_jax.defenses import DEFENSES, DefenseConfig
    from facemix_jax.models import MODELS, ModelConfig, build, operations

    monkeypatch.setitem(MODELS, "small", None)  # restored, whatever the page registers
    monkeypatch.setitem(DEFENSES, "scaled", None)
    monkeypatch.setitem(ATTACKS, "loudest", None)
    names = run_page("bring_your_own.md", monkeypatch, tmp_path)
    assert names["source"].attribute_names == ("Smiling", "Young")
    assert {"loudest", "robust"} <= names["found"].results.keys()
    model, main = names["model"], names["variables"]["main"]
    x = jax.ShapeDtypeStruct((1, *model.spec.activation_shape), "float32")
    assert operations.kinds_in(model.main.apply, main, x) == ("shift", "relu")
    for block in PYTHON["bring_your_own.md"]:
        assert block.count("\n") < 60

    small = ModelConfig(network="small", width=4, centre=True, tile=(20, 17))
    model = build(small, image_size=(80, 68))
    assert model.spec.grid == (2, 2)
    assert model.spec.activation_shape == (20, 17, 4)
    with pytest.raises(UsageError, match="small has no other norm"):
        build(dataclasses.replace(small, norm="none"), image_size=(80, 68))

    own = "".join(
        block
        for block in PYTHON["bring_your_own.md"]
        if block.startswith(("# own.py\n", ELSEWHERE))
    )
    assert own.count("# own.py") == 2
    command = ["own.py", "evaluate", "--workdir", "runs/small"]
    monkeypatch.setattr(sys, "argv", command)
    # Restored, as the program sets it for good.
    monkeypatch.setenv("PYTHON_TYRO_ANSI_CODES", "False")
    with pytest.raises(SystemExit) as exit_:
        exec(compile(own, "own.py", "exec"), {"__name__": "__main__"})
    assert exit_.value.code == 0
    check_defense(DefenseConfig(defense="scaled", group_size=4))  # it may read any option
    assert " ".join(command) in (ROOT / "docs/bring_your_own.md").read_text()


@pytest.mark.slow
@pytest.mark.library_promotes
def test_the_examples_of_defenses_run_as_written():
    from facemix_jax import defenses

    names = {}
    for block in PYTHON["tour.md"][:2]:  # which make all names that the page takes from there
        exec(compile(block, "tour.md", "exec"), names)
    first, second = PYTHON["defenses.md"]
    exec(compile(first, "defenses.md", "exec"), names)
    assert names["logits"].shape == (16, 40, 2)
    second = second.replace('attribute="Male"', 'attribute="Male", steps=2')  # it takes minutes
    exec(compile(second, "defenses.md", "exec"), names)
    assert isinstance(names["defense"], defenses.Defense)


def test_no_page_has_python_that_no_test_runs():
    tested = {"tour.md", "bring_your_own.md", "defenses.md", "deploying.md"}
    assert {name for name, blocks in PYTHON.items() if blocks} == tested


def test_every_command_of_the_pages_is_understood(capsys):
    found = 0
    for page in PAGES:
        text = page.read_text().replace("\\\n", "")
        for command in re.findall(r"^ *facemix (.*?)(?:#.*)?$", text, re.MULTILINE):
            found += 1
            with pytest.raises(SystemExit) as exit_:
                cli.main([*command.split(), "--help"])
            assert exit_.value.code == 0
            known = capsys.readouterr().out
            for option in re.findall(r"--[a-z-]+", command):
                assert option in known, (page.name, command, option)
    assert found >= 12


def test_the_help_of_attack_lists_the_names_that_it_takes(capsys):
    with pytest.raises(SystemExit):
        cli.main(["attack", "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert re.search(r"all that apply: (.*?)\.", text)[1].split(", ") == [*suite.ATTACKS]


def test_every_script_and_file_that_pages_name_exists():
    for page in PAGES:
        for name in re.findall(
            r"`((?:experiments|facemix_jax|tests|deploy)/[\w./-]+)", page.read_text()
        ):
            assert (ROOT / name).exists(), (page.name, name)


def test_every_page_is_in_the_navigation():
    # mkdocs.yml has no custom tags, so that a safe loader reads it.
    navigation = str(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    listed = re.findall(r"[\w/]+\.(?:md|ipynb)", navigation)
    pages = [*PAGES, *NOTEBOOKS]
    assert sorted(listed) == sorted(str(p.relative_to(ROOT / "docs")) for p in pages)


def test_the_site_builds_strictly(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Mixing is not a cipher" in (tmp_path / "index.html").read_text()
