"""The shell commands of README and docs run as written, with options that make them small."""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from data.layouts import noisy_jpeg, write_celeba
from PIL import Image

ROOT = Path(__file__).parents[1]
PAGES = (
    "README.md",
    "docs/bring_your_own.md",
    "docs/defenses.md",
    "docs/deploying.md",
    "docs/reproduction.md",
    "docs/scaling.md",
    "docs/tour.md",
)
ELSEWHERE = {
    "python3 -m venv": ".ci/run calls the README's test command",
    "python experiments/reproduce.py": "tests/experiments/test_reproduce.py",
}
"""How blocks begin that do not run here, and what runs them."""
SMALLER = {
    "train": "--num-epochs 1 --train-examples 128 --test-examples 64",
    "attack": "--num-groups 2 --steps 2",
    "anonymize": "--num-epochs 1 --train-examples 64 --width 8",
    "linearity": "--num-keys 2 --num-images 16",
}


def blocks(page):
    """The shell blocks of a page."""
    return re.findall(r"```bash\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def ready(process, port):
    """Waits until a server answers on the port."""
    for _ in range(1200):
        assert process.poll() is None, "the server stopped"
        with contextlib.suppress(OSError), socket.create_connection(("localhost", port), 1):
            return
        time.sleep(0.1)
    raise AssertionError("the server never answered")


def run(script, folder):
    """One block in bash, stopped by the first command that fails."""
    cases = "\n".join(f"{name}) more='{options}' ;;" for name, options in SMALLER.items())
    beginning = textwrap.dedent(f"""
        set -euo pipefail
        facemix() {{
            local more=''
            case $1 in
            {cases}
            esac
            "{sys.executable}" -m facemix_jax "$@" $more
        }}
        python() {{ "{sys.executable}" "$@"; }}
        pip() {{ :; }}  # the extras are there
    """)
    environment = os.environ | {
        "HOME": str(folder),
        "XDG_CONFIG_HOME": str(folder / ".config"),
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.Popen(
        ["bash", "-c", beginning + script],
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A home with a CelebA, a folder with a CSV file, eight pictures, and the README's run."""
    folder = tmp_path_factory.mktemp("home")
    names = [f"Attribute_{i}" for i in range(40)]
    write_celeba(folder / "celeba", names, [0] * 160 + [1] * 16 + [2] * 80)
    rng = np.random.default_rng(0)
    lines = ["file,person,Smiling,Hat"]
    (folder / "faces" / "images").mkdir(parents=True)
    for i in range(24):
        (folder / "faces" / "images" / f"{i}.jpg").write_bytes(noisy_jpeg(rng, (89, 109)))
        lines.append(f"{i}.jpg,p{i // 3},{i % 2},{i // 2 % 2}")
        if i < 8:
            Image.open(folder / "faces" / "images" / f"{i}.jpg").save(folder / "faces" / f"{i}.jpg")
    (folder / "faces" / "labels.csv").write_text("\n".join(lines) + "\n")
    command = [sys.executable, "-m", "facemix_jax", "train", "--workdir", "runs/m8"]
    command += ["--dataset", "celeba", "--data-dir", "celeba", "--image-size", "109", "89"]
    command += ["--width", "4", *SMALLER["train"].split()]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_a_page_runs_as_written(page, home, tmp_path):
    folder = tmp_path / "home"
    shutil.copytree(home, folder)
    if page == "README.md":
        shutil.rmtree(folder / "runs")  # it trains that run itself
    if page == "docs/reproduction.md":
        (folder / "experiments").symlink_to(ROOT / "experiments")
    if page in {"docs/bring_your_own.md", "docs/tour.md"}:  # their shell goes on with Python's runs
        code = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
        own = "\n".join(block for block in code if block.startswith("# own.py"))
        (folder / "own.py").write_text(own)
        session = (block for block in code if not block.startswith("# own.py only\n"))
        (folder / "page.py").write_text("\n".join(session))
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, "page.py"]
        subprocess.run(command, cwd=folder, env=environment, check=True)
    ran = 0
    for block in blocks(page):
        if block.endswith("/facemix demo\n"):
            block = "facemix demo"  # without the set-up; other blocks read its report
        if block.startswith(tuple(ELSEWHERE)):
            continue
        ran += 1
        server = None
        if "facemix serve" in block:
            line = re.search(r"^facemix serve.*$", block, re.MULTILINE)[0]
            block = block.replace(line, "").replace("faces/*.jpg", "faces/[0-7].jpg")
            server = run(line, folder)
            ready(server, 50051)
        try:
            process = run(block, folder)
            output, _ = process.communicate(timeout=1800)
            assert process.returncode == 0, f"{block}\n{output}"
            assert "Traceback" not in output
        finally:
            if server:
                subprocess.run(["pkill", "-INT", "-P", str(server.pid)], check=False)
                server.communicate(timeout=60)
    assert ran


def test_no_block_is_left_out():
    for page in [Path("README.md"), *(p.relative_to(ROOT) for p in (ROOT / "docs").rglob("*.md"))]:
        for block in blocks(page):
            assert str(page) in PAGES or block.startswith(tuple(ELSEWHERE)), (page, block)
