"""Benchmarks that are stopped: what goes on computing, and what becomes of the published file."""

import fcntl
import subprocess
import sys
import time
from types import SimpleNamespace

import accelerator

SCRIPT = """
import fcntl, pathlib, subprocess, sys, time
if "endless" in sys.argv[0]:
    held = open(pathlib.Path(__file__).parent / "held", "w")
    fcntl.flock(held, fcntl.LOCK_EX)
    subprocess.Popen(["sleep", "60"], pass_fds=[held.fileno()])
pathlib.Path(sys.argv[2]).write_text("measured here")
time.sleep(60 * ("endless" in sys.argv[0]))
sys.exit("broken" in sys.argv[0])
"""


def is_held(path):
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_what_is_stopped_computes_no_longer_and_replaces_nothing(tmp_path, monkeypatch):
    here, results = tmp_path / "benchmarks", tmp_path / "results" / "a-device"
    results.mkdir(parents=True)
    here.mkdir()
    names = ("endless", "broken", "whole")
    for name in names:
        (here / f"{name}.py").write_text(SCRIPT)
        (results / f"{name}.json").write_text("published")
    monkeypatch.setattr(accelerator, "HERE", here)
    monkeypatch.setattr(accelerator, "MEASUREMENTS", {n: (3, []) for n in names})
    monkeypatch.setattr(accelerator, "UNREHEARSED", names)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stdout="A device\n"))
    monkeypatch.setattr(sys, "argv", ["accelerator.py", "--only", *names])
    assert accelerator.main() == 2
    end = time.monotonic() + 5
    while is_held(here / "held"):
        assert time.monotonic() < end, "what it started goes on"
        time.sleep(0.05)
    for name in names[:2]:
        assert (results / f"{name}.json").read_text() == "published"
        assert (results / f"{name}.partial.json").read_text() == "measured here"
    assert (results / "whole.json").read_text() == "measured here"
