import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_python_example_runs_as_written():
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {}
    exec(compile(example, "README.md", "exec"), names)
    assert names["logits"].shape == (16, 40, 2)
    assert names["stolen"].shape == (2, 8, 28, 23, 16)


def test_every_file_of_the_layout_exists():
    layout = re.search(r"## Layout\n+```\n(.*?)```", README, re.DOTALL).group(1)
    for line in layout.splitlines():
        folder = "facemix_jax" if line.startswith("  ") else "."
        for name in re.findall(r"^ *((?:[a-z_]+(?:\.py|/) ?)+)", line)[0].split():
            assert (ROOT / folder / name).exists(), name


def test_every_command_of_the_readme_is_understood(capsys):
    from facemix_jax import cli

    commands = re.findall(r"^facemix (.*?)(?:#.*)?$", README.replace("\\\n", ""), re.MULTILINE)
    assert len(commands) == 19
    for command in commands:
        with pytest.raises(SystemExit) as exit_:
            cli.main([*command.split(), "--help"])
        assert exit_.value.code == 0
        known = capsys.readouterr().out
        for option in re.findall(r"--[a-z-]+", command):
            assert option in known, (command, option)


def test_ci_runs_exactly_the_readmes_test_command():
    script = (ROOT / ".ci" / "run").read_text()
    assert "<!-- test command -->" in script
    block = README.split("<!-- test command -->")[1].split("<!-- end -->")[0]
    assert block.count("\n") == 4
    assert ".venv/bin/pytest" in block
