"""The command line as a process: interrupted, piped, coloured, completed by a shell."""

import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from facemix_jax import cli

COMMAND = [sys.executable, "-m", "facemix_jax"]
TINY = [
    "--image-size",
    "40",
    "36",
    "--train-examples",
    "64",
    "--test-examples",
    "32",
    "--width",
    "4",
    "--batch-size",
    "16",
]
COLOUR = re.compile(r"\x1b\[(\d+;)*3\d")


@pytest.fixture(autouse=True)
def hear_interrupts():
    """Programs started here hear Ctrl-C even where the tests run in a shell's background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt(*arguments, at):
    """Runs a command and interrupts it when ``at`` shows on standard error.

    Returns:
        Exit code, standard output, standard error.
    """
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    killer = threading.Timer(900, process.kill)
    killer.start()
    before = ""
    while at not in before:
        read = process.stderr.read(1)
        assert read, before
        before += read
    process.send_signal(signal.SIGINT)
    out, after = process.communicate()
    killer.cancel()
    return process.returncode, out, before + after


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A training that was interrupted, and what it said."""
    workdir = tmp_path_factory.mktemp("run") / "w"
    command = ("train", "--workdir", workdir, *TINY, "--num-epochs", 100_000, "--log-every", 1)
    process = subprocess.Popen(
        [*COMMAND, *map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    records = workdir / "metrics.jsonl"
    while process.poll() is None and not (records.exists() and records.read_text()):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=900)
    return workdir, process.returncode, out, err


def test_an_interrupted_training_is_saved_and_says_so(interrupted):
    workdir, code, out, err = interrupted
    assert code == 130
    assert out == ""
    assert "goes on from there" in err
    assert "Traceback" not in err
    assert any((workdir / "checkpoints").iterdir())


def test_what_is_no_terminal_gets_neither_colours_nor_a_moving_bar(interrupted):
    _, _, _, err = interrupted
    assert "\x1b" not in err
    assert "\r" not in err
    assert len(err.splitlines()) < 10


def test_an_interrupted_attack_says_so(interrupted):
    workdir = interrupted[0]
    code, out, err = interrupt("attack", "--workdir", workdir, "--steps", 5, at=" ...")
    assert code == 130
    assert out == ""
    assert err.endswith("Interrupted.\n")
    assert "Traceback" not in err


@pytest.mark.slow
def test_other_interrupted_commands_say_so(tmp_path):
    code, _, err = interrupt("demo", "--out", tmp_path / "d", at="training plain")
    assert code == 130
    assert "goes on from there" in err or err.endswith("Interrupted.\n")
    options = ("--workdir", tmp_path / "a", *TINY, "--num-epochs", 100_000, "--log-every", 1)
    code, _, err = interrupt("anonymize", *options, at="step 2")
    assert code == 130
    assert "goes on from there" in err
    assert any((tmp_path / "a" / "checkpoints").iterdir())


def test_an_interrupt_during_the_imports_shows_no_trace():
    program = """
import os, signal, sys
class Interrupt:
    def find_spec(self, name, *rest):
        if name == "jax":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
sys.argv[1:] = ["cost"]
from facemix_jax.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "Interrupted.\n")


def on_terminal(*arguments, **environment):
    """What a command shows on a terminal of 80 columns."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", **environment},
    )
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 4096):
            shown += part
    except OSError:  # the other end is closed
        pass
    process.wait()
    os.close(ours)
    return shown.decode()


def test_no_color_is_heeded():
    wrong = ("evaluate", "--workdir", "missing")
    assert COLOUR.search(on_terminal(*wrong))
    assert not COLOUR.search(on_terminal(*wrong, NO_COLOR="1"))
    assert COLOUR.search(on_terminal("nonsense"))
    assert "\x1b" not in on_terminal("nonsense", NO_COLOR="1")


def completion(capsys, shell):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["--tyro-print-completion", shell])
    assert not exit_.value.code
    return capsys.readouterr().out


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands_and_options(capsys, tmp_path):
    script = tmp_path / "facemix"
    script.write_text(completion(capsys, "bash"))

    def offered(*words):
        typed = " ".join(f"'{word}'" for word in ("facemix", *words))
        program = (
            f"source {script}; complete -p facemix; COMP_WORDS=({typed}); "
            f"COMP_CWORD={len(words)}; _tyro_facemix; echo ${{COMPREPLY[@]}}"
        )
        done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
        registered, names = done.stdout.splitlines()
        assert registered == "complete -F _tyro_facemix facemix"
        return names.split()

    assert offered("tra") == ["train"]
    assert {"create", "show", "rotate"} <= set(offered("key", ""))
    assert "--workdir" in offered("train", "--work")
    assert offered("nothing-like-this") == []


def test_zsh_completion_is_for_the_program_and_parses(capsys):
    script = completion(capsys, "zsh")
    assert script.startswith("#compdef facemix\n")
    for name in ("train", "attack", "rotate"):
        assert name in script
    if zsh := shutil.which("zsh"):
        subprocess.run([zsh, "-n"], input=script, text=True, check=True)


def test_the_program_prints_the_completion():
    program = Path(sys.executable).with_name("facemix")
    command = [program] if program.exists() else COMMAND
    done = subprocess.run(
        [*command, "--tyro-print-completion", "bash"], capture_output=True, text=True, check=True
    )
    assert "complete -F _tyro_facemix facemix" in done.stdout
    assert done.stderr == ""
