"""The programs that a sweep starts: what becomes of them, and of it, when either dies."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from sweep_support import SMALL, write_results

from facemix_jax import cli, runs, sweep_runners


def test_a_program_that_dies_is_named(tmp_path):
    missing = tmp_path / "nowhere" / "trial"
    options = {"split": "test", "method": "auto", "folder": tmp_path, "options": {}, "say": print}
    with pytest.raises(sweep_runners.DiedError, match=r"trial .*exit code 1"):
        sweep_runners.run([[missing]], runner="process", parallel=1, **options)


@pytest.mark.filterwarnings("ignore:.*Journal.*:Warning")
@pytest.mark.parametrize("way", ["--grid", "--search"])
def test_a_sweep_goes_on_past_programs_that_die(tmp_path, monkeypatch, capsys, way):
    if way == "--search":
        pytest.importorskip("optuna")
    asked = []

    def stand_in(groups, **options):
        fitting = [[w] for g in groups for w in g if runs.read_config(w).model.width < 64]
        asked.extend(w for group in groups for w in group)
        write_results(fitting, lambda c: 0.5)
        if len(fitting) < len(groups):
            raise sweep_runners.DiedError("1 of the sweep's programs died: exit code -9.")

    monkeypatch.setattr(sweep_runners, "run", stand_in)
    command = ["sweep", "--workdir", str(tmp_path), way, "model.width=8,64"]
    command += ["--trials", "8"] if way == "--search" else []
    assert cli.main(command) == 1
    assert "exit code -9" in capsys.readouterr().err
    rows = json.loads((tmp_path / "summary.json").read_text())["rows"]
    assert {row["model.width"]: row["seeds"] for row in rows} == {8: 1, 64: 0}
    asked.clear()
    cli.main(command)
    assert len(asked) == (way == "--grid"), "what died counts as tried in a search"


STAND_IN = """
import sys, time
from facemix_jax import hosts, trials

def run(workdirs, split, method):
    (workdir,) = workdirs
    with hosts.StopSignals() as stop:
        (workdir / "begun").touch()
        ends = time.monotonic() + float((workdir / "seconds").read_text())
        while not stop.asked and time.monotonic() < ends:
            time.sleep(0.05)
        (workdir / ("stopped" if stop.asked else "ended")).touch()

trials.run = run
sys.exit(trials.main(sys.argv[3:]))
"""
"""Stands in for ``python -m facemix_jax.trials``: its ``main``, without training."""

SWEEP = """
import sys
from pathlib import Path
from facemix_jax import sweep_runners
sys.executable = sys.argv[1]
groups = [[Path(folder)] for folder in sys.argv[2:]]
options = {"split": "test", "method": "auto", "folder": None, "options": {}, "say": print}
sweep_runners.run(groups, runner="process", parallel=2, **options)
"""


def appear(*paths):
    """Whether files are there within a minute."""
    deadline = time.monotonic() + 60
    while not all(path.exists() for path in paths):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def stand_ins(folder, seconds):
    """A Python that runs the stand-in, and folders of two trials."""
    script, python = folder / "stand_in.py", folder / "python"
    script.write_text(STAND_IN)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{script}" "$@"\n')
    python.chmod(0o755)
    workdirs = [folder / name for name in "ab"]
    for workdir in workdirs:
        workdir.mkdir()
        (workdir / "seconds").write_text(str(seconds))
    return python, workdirs


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_programs_of_a_sweep_stop_when_it_is_killed(tmp_path, number):
    python, workdirs = stand_ins(tmp_path, seconds=60)
    command = [sys.executable, "-c", SWEEP, str(python), *map(str, workdirs)]
    killed = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        assert appear(*(workdir / "begun" for workdir in workdirs))
    finally:
        killed.send_signal(number)
        killed.wait()
    assert appear(*(workdir / "stopped" for workdir in workdirs))


def test_programs_of_a_sweep_that_goes_on_run_to_their_end(tmp_path, monkeypatch):
    python, workdirs = stand_ins(tmp_path, seconds=0.2)
    monkeypatch.setattr(sys, "executable", str(python))
    options = {"split": "test", "method": "auto", "folder": tmp_path, "options": {}, "say": print}
    sweep_runners.run([[w] for w in workdirs], runner="process", parallel=2, **options)
    assert all((workdir / "ended").exists() for workdir in workdirs)


def test_programs_that_others_start_heed_no_input(tmp_path):
    """A job step's may be a pipe that has ended."""
    python, (workdir, _) = stand_ins(tmp_path, seconds=0.5)
    command = [str(python), "-m", "facemix_jax.trials", "test", "auto", str(workdir)]
    subprocess.run(command, input=b"", check=True)
    assert (workdir / "ended").exists()


@pytest.mark.slow
@pytest.mark.parametrize("runner", ["process", "submitit_local"])
def test_a_sweep_survives_a_kill(tmp_path, runner):
    """A killed sweep's processes save and stop, and its jobs go on; the next one waits for both."""
    if runner != "process":
        pytest.importorskip("submitit")
    command = [sys.executable, "-m", "facemix_jax", "sweep", "--workdir", str(tmp_path), *SMALL]
    command += ["--grid", "train.learning_rate=1e-3,3e-3", "--runner", runner, "--json"]
    command += [str(tmp_path / "result.json")]
    first = subprocess.Popen(command, start_new_session=True)
    while not list(tmp_path.glob("*/metrics.jsonl")):
        assert first.poll() is None
        time.sleep(0.1)
    first.send_signal(signal.SIGKILL)
    first.wait()
    subprocess.run(command, check=True, env={**os.environ})
    rows = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert [row["seeds"] for row in rows] == [1, 1]
    for workdir in tmp_path.glob("*/config.json"):
        steps = [
            json.loads(line)["step"]
            for line in (workdir.parent / "metrics.jsonl").read_text().splitlines()
        ]
        assert steps == [1, 2, 3, 4]
