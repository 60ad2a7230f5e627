"""What checkers are told to overlook: little, and each with its reason beside it."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
ALLOWED = 5
# The brackets keep these lines from being taken for exemptions themselves.
COMMENT = re.compile(r"[#] ?(?:noqa|type: ?ignore|mypy: |ruff: |pyright: )")
REASON = re.compile(r"[#] [^#]*  [#] \w.*\w")


def exempt_lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if COMMENT.search(line)]


def exempt_parts(configuration: str) -> list[str]:
    """Whole files or modules that pyproject.toml exempts, each with the comment beside it."""
    tools = tomllib.loads(configuration)["tool"]
    per_file = tools["ruff"]["lint"].get("per-file-ignores", {})
    found = [re.search(rf'^"{re.escape(name)}".*$', configuration, re.M)[0] for name in per_file]
    overrides = re.findall(r"\[\[tool\.mypy\.overrides\]\]\n.*\n", configuration)
    assert len(overrides) == len(tools["mypy"].get("overrides", []))
    return found + overrides


def test_exemptions_are_few_and_each_says_why():
    files = [path for path in ROOT.rglob("*.py*") if not {".venv", "build"} & {*path.parts}]
    lines = [
        line
        for path in [*files, *(ROOT / "docs").rglob("*.ipynb")]
        if path.suffix in (".py", ".pyi", ".ipynb")
        for line in exempt_lines(path.read_text())
    ]
    parts = exempt_parts((ROOT / "pyproject.toml").read_text())
    assert lines
    assert [line for line in lines if not REASON.search(line)] == []
    assert [part for part in parts if not re.search(r"# \w.*\w", part)] == []
    assert len(lines) + len(parts) <= ALLOWED, lines + parts


def test_every_kind_of_exemption_is_seen():
    for exemption in ("noqa: E501", "type: ignore[misc]", "mypy: ignore-errors", "ruff: noqa"):
        line = f"x = 1  {'#'} {exemption}"
        assert exempt_lines(line) == [line]
        assert not REASON.search(line)
        assert REASON.search(f"{line}  {'#'} it has no types")
    head = '[tool.ruff.lint.per-file-ignores]\n"a/**" = ["D"]\n'
    assert len(exempt_parts(f"{head}[tool.mypy]\n[[tool.mypy.overrides]]\nmodule = []\n")) == 2
