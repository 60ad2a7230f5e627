"""The direction of dependencies, read from the source, and what an import may do."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import facemix_jax

PACKAGE = Path(facemix_jax.__file__).parent
LAYERS = (
    ("_types", "_validate", "_files", "_runtime", "provenance"),
    ("mixing", "metrics", "models", "data"),
    ("costs", "costs_paper", "defenses", "keys", "key_ring"),
    ("inference", "linearity"),
    ("training", "attacks"),
    ("checkpoint",),
    ("runs",),
    ("serving", "onnx_graph"),
    ("export",),
    ("fitting", "evaluation", "report"),
    ("demo", "output"),
    (
        "commands",
        "commands_attack",
        "commands_data",
        "commands_export",
        "commands_infer",
        "commands_key",
        "commands_linearity",
    ),
    ("cli", "__init__"),
    ("__main__",),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
ONLY_IN = {
    "flax": ("models", "attacks/networks.py", "attacks/decoder_network.py"),
    "orbax": ("checkpoint",),
    "grain": ("data",),
    "PIL": ("data",),
    "tensorflow_datasets": ("data",),
    "matplotlib": ("report",),
}


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Dotted names that a module imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def violations(path: Path, part: str) -> list[str]:
    found = []
    for name in imported(path):
        top, *rest = name.split(".")
        if top == "experiments":
            found.append(f"{part} imports experiments")
        if top == "facemix_jax" and rest[0] != part and LEVEL[rest[0]] > LEVEL[part]:
            found.append(f"{part} imports {rest[0]}")
        where = (part, "/".join(path.parts[-2:]))
        if top in ONLY_IN and not set(where) & set(ONLY_IN[top]):
            found.append(f"{part} imports {top}")
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.stem)
def test_dependencies_point_one_way(path):
    assert violations(path, part_of(path)) == []


def test_the_rule_notices_a_wrong_import(tmp_path):
    wrong = tmp_path / "mixing.py"
    wrong.write_text("from facemix_jax.training import fit\nimport flax\n")
    assert sorted(violations(wrong, "mixing")) == [
        "mixing imports flax",
        "mixing imports training",
    ]


def test_the_rule_tells_files_of_one_part_apart(tmp_path):
    for name, expected in (("networks", []), ("base", ["attacks imports flax"])):
        path = tmp_path / "attacks" / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text("from flax import linen\n")
        assert violations(path, "attacks") == expected


def test_import_starts_no_backend():
    program = (
        "import facemix_jax; from jax._src import xla_bridge; "
        "assert not xla_bridge.backends_are_initialized()"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_everything_public_exists_and_is_documented():
    for name in facemix_jax.__all__:
        thing = getattr(facemix_jax, name)
        assert thing.__doc__, name
