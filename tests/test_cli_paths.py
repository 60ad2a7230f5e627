"""Paths on the command line: files and folders that are written, replaced, refused or damaged."""

import errno
import json
import os
from pathlib import Path

import pytest
from cli_support import run

from facemix_jax._files import write_atomically
from facemix_jax._validate import UsageError
from facemix_jax.data import cache

pytestmark = pytest.mark.library_promotes  # Optax


def test_results_go_into_pipes_and_behind_links_and_neither_is_replaced(capsys, tmp_path):
    pipe, link, file = (tmp_path / name for name in ("pipe", "link", "file"))
    os.mkfifo(pipe)
    link.symlink_to(file)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)  # a pipe without a reader cannot be opened
    for path in (pipe, link):
        assert run(capsys, "cost", "--json", path)[0] == 0
    through, behind = json.loads(os.read(reader, 2**16)), json.loads(file.read_text())
    os.close(reader)
    del through["provenance"], behind["provenance"]  # dates
    assert through == behind
    assert pipe.is_fifo()
    assert link.is_symlink()


def test_a_circle_of_links_is_refused_and_stays(capsys, tmp_path):
    circle = tmp_path / "circle"
    circle.symlink_to(circle)
    code, out, err = run(capsys, "cost", "--json", circle)
    assert (code, out) == (2, "")
    assert "circle cannot be written" in err
    assert circle.is_symlink()
    with pytest.raises(OSError, match="symbolic links"):
        write_atomically(circle, "{}")


@pytest.mark.skipif(not os.path.exists("/dev/stdout"), reason="Linux has /dev/stdout")
def test_a_file_that_standard_output_goes_into_is_written_into_and_not_replaced(tmp_path):
    file = tmp_path / "out"
    kept = os.dup(1)
    try:
        with file.open("wb") as out:
            os.dup2(out.fileno(), 1)
        os.write(1, b"table\n")
        write_atomically(Path("/dev/stdout"), "json\n")
        os.write(1, b"end\n")
    finally:
        os.dup2(kept, 1)
        os.close(kept)
    assert file.read_text() == "table\njson\nend\n"


@pytest.mark.parametrize(
    "command",
    [
        ("train", "--workdir", "w", "--dataset", "folder", "--data-dir", "~no-such-user/faces"),
        ("train", "--workdir", "~no-such-user/run"),
        ("sweep", "--workdir", "~no-such-user/sweep", "--grid", "train.learning_rate=1"),
        ("linearity", "--workdir", "~no-such-user/run"),
        ("report", "--workdirs", "w", "~no-such-user/run"),
        ("data", "show", "--dataset", "folder", "--data-dir", "~no-such-user/faces"),
        ("data", "check", "--dataset", "folder", "--data-dir", "~no-such-user/faces"),
    ],
    ids=" ".join,
)
def test_folders_of_unknown_users_are_wrong_usage(capsys, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, *command)
    assert (code, "whom this system does not know" in err) == (2, True)
    assert not list(tmp_path.iterdir())


def test_folders_of_users_are_found(capsys, tmp_path, monkeypatch):
    """Shells leave the ~ of ``--workdir=~/run``."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for command in ("evaluate", "attack", "linearity"):
        code, _, err = run(capsys, command, "--workdir=~/run")
        assert (code, f"{tmp_path}/run is no work directory" in err) == (2, True)
    assert f"{tmp_path}/run is not" in run(capsys, "report", "--workdirs", "~/run")[2]


@pytest.mark.parametrize(
    "command",
    [
        *(f"{name} --workdir=" for name in ("train", "anonymize", "evaluate", "attack", "serve")),
        *(f"{name} --workdir=" for name in ("sweep --grid train.seed=1", "infer face.png")),
        *(f"{name} --out=" for name in ("export --workdir w", "linearity", "demo")),
        "report --workdirs=",
        "data prepare --dataset celeba --data-dir d --output=",
        "data show --dataset celeba --data-dir=",
    ],
)
def test_empty_paths_are_wrong_usage(capsys, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, *command.split())
    assert (code, "A path is empty" in err) == (2, True)
    assert not list(tmp_path.iterdir())


def test_a_cache_of_an_unknown_user_is_wrong_usage(tmp_path):
    with pytest.raises(UsageError, match="whom this system does not know"):
        cache.places(tmp_path, "~no-such-user/cache")


def test_damaged_data_exits_1(capsys, tmp_path):
    folder = tmp_path / "celeba"
    folder.mkdir()
    code, _, err = run(
        capsys, "train", "--workdir", tmp_path / "w", "--dataset", "celeba", "--data-dir", folder
    )
    assert code == 1
    assert "list_attr_celeba.txt" in err
    assert "Traceback" not in err
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "Free space"),
        (PermissionError(errno.EACCES, "Permission denied", "there/x"), "there/x: Permission"),
    ],
)
def test_full_disks_and_missing_permissions_show_no_trace(capsys, monkeypatch, error, words):
    def refused(*args, **options):
        raise error

    monkeypatch.setattr("facemix_jax.costs.cost_report", refused)
    code, _, err = run(capsys, "cost")
    assert code == 1
    assert words in err
    assert "Traceback" not in err
