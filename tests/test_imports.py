"""The direction of dependencies, read from the source, and what an import may do."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import facemix_jax

PACKAGE = Path(facemix_jax.__file__).parent
LAYERS = (
    ("_arguments", "_types", "_validate", "_files", "_runtime", "provenance", "run_files"),
    ("hosts", "sharding"),
    ("mixing", "group_products", "metrics", "models", "data"),
    ("costs", "costs_paper", "defenses", "gaussian_codes", "keys", "key_ring", "results"),
    ("inference", "linearity"),
    ("training", "attacks"),
    ("slalom", "osia"),
    ("checkpoint", "population", "records", "speed"),
    ("run_images",),
    ("runs",),
    ("claims",),
    ("serving", "onnx_graph"),
    ("export",),
    ("loop", "evaluation", "report", "charts"),
    ("rendering", "gathering"),
    ("fitting",),
    ("anonymizing",),
    ("demo", "output"),
    ("trials",),
    ("scores", "run_tables"),
    ("sweep",),
    ("sweep_summary",),
    ("sweep_runners", "sweep_search"),
    (
        "commands",
        "commands_anonymize",
        "commands_attack",
        "commands_data",
        "commands_export",
        "commands_infer",
        "commands_key",
        "commands_linearity",
        "commands_report",
        "commands_sweep",
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
    "matplotlib": ("report", "charts"),
}


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


class WithoutTypes(ast.NodeTransformer):
    def visit_If(self, node: ast.If) -> ast.AST | None:
        return None if ast.unparse(node.test) == "TYPE_CHECKING" else self.generic_visit(node)


def imported(path: Path, *, for_types: bool = True) -> set[str]:
    """Dotted names that a module imports, also inside functions, and if wished for types only."""
    names = set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree if for_types else WithoutTypes().visit(tree)):
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
        if top == "facemix_jax" and rest and rest[0] != part and LEVEL[rest[0]] > LEVEL[part]:
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


def reached(path: Path) -> set[str]:
    """Parts of the package that a module imports when it runs, directly or through others."""
    found: set[Path] = set()
    waiting = [path]
    while waiting:
        for name in imported(waiting.pop(), for_types=False):
            top, *rest = name.split(".")
            # The package itself imports its names when they are first used.
            for depth in range(1, len(rest) + 1) if top == "facemix_jax" else ():
                place = PACKAGE.joinpath(*rest[:depth])
                for file in (place.with_suffix(".py"), place / "__init__.py"):
                    if file.is_file() and file not in found:
                        found.add(file)
                        waiting.append(file)
    return {part_of(file) for file in found}


@pytest.mark.parametrize("name", ["cloud", "ray_serve"])
def test_no_cloud_reaches_what_could_unmix(name):
    parts = reached(PACKAGE / "serving" / f"{name}.py")
    assert "models" in parts
    assert not parts & {
        "mixing",
        "group_products",
        "keys",
        "key_ring",
        "defenses",
        "attacks",
        "runs",
    }


def test_the_search_finds_what_the_edge_reaches():
    assert {"mixing", "keys"} <= reached(PACKAGE / "serving" / "edge.py")


def test_dataclasses_are_frozen():
    # What changes while something runs: counters, members of a loop, what TFDS wants to change.
    mutable = {
        "Blinding",
        "FaceConfig",
        "Member",
        "Part",
        "Timing",
        "Trace",
        "Traffic",
        "Work",
        "_Waiting",
    }
    thawed = {
        node.name
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
        for decorator in map(ast.unparse, node.decorator_list)
        if "dataclasses.dataclass" in decorator and "frozen=True" not in decorator
    }
    assert thawed == mutable


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
