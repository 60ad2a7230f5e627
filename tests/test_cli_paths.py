"""Paths on the command line: files and folders that are written, replaced, refused or damaged."""

import errno
import json
import os
from pathlib import Path

import pytest
from cli_support import run
from test_results import RESULTS

from facemix_jax import results
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


@pytest.fixture
def kept(tmp_path):
    """A folder of runs, one of which has begun, and a link to its configuration."""
    for name in ("m8/checkpoints/4", "m8/tensorboard", "new", "anonymizer"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("config.json", "images.json", "metrics.jsonl", "checkpoints/4/weights"):
        (tmp_path / "m8" / name).write_text("{}")
    (tmp_path / "store.json").write_text("{}")
    (tmp_path / "m8" / "scores.json").symlink_to(tmp_path / "store.json")
    (tmp_path / "link.json").symlink_to("m8/config.json")
    (tmp_path / "folder").symlink_to("m8")
    (tmp_path / "face.png").write_bytes(b"")
    return tmp_path


def assert_refused(capsys, folder, option, command):
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    code, out, err = run(capsys, *command)
    assert (code, out) == (2, "")
    assert f"Choose another {option} path" in err
    assert "keeps its own" in err
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    "command",
    [
        "demo --json",
        "train --workdir m8 --json",
        "anonymize --workdir m8 --json",
        "sweep --workdir s --grid train.seed=1 --json",
        "evaluate --workdir m8 --json",
        "attack --workdir m8 --json",
        "attack --workdir m8 --pictures",
        "linearity --workdir m8 --json",
        "report --workdirs m8 --json",
        "cost --json",
        "data show --json",
        "data show --out",
        "data check --dataset celeba --data-dir d --json",
        "infer --workdir m8 --cloud localhost:1 face.png --json",
        "infer --workdir m8 --cloud localhost:1 face.png --csv",
        "infer --workdir m8 --cloud localhost:1 face.png --sheet",
        "key show --json",
        "export --workdir m8 --out phone --json",
    ],
)
def test_no_result_replaces_what_a_run_keeps(capsys, kept, monkeypatch, command):
    monkeypatch.chdir(kept)
    for own in ("m8/config.json", "m8/images.json", "m8/training.lock", "m8/Metrics.JSONL"):
        assert_refused(capsys, kept, command.split()[-1], [*command.split(), own])
    for own in ("m8/scores.json", "link.json", "folder/config.json", "m8/checkpoints/4/weights"):
        assert_refused(capsys, kept, command.split()[-1], [*command.split(), own])
    assert_refused(capsys, kept, command.split()[-1], [*command.split(), kept / "m8/config.json"])


@pytest.mark.parametrize(
    "command",
    [
        "demo --out",
        "linearity --out",
        "export --workdir m8 --out",
        "data prepare --dataset celeba --data-dir d --output",
    ],
)
def test_no_folder_of_results_is_one_that_a_run_keeps(capsys, kept, monkeypatch, command):
    monkeypatch.chdir(kept)
    for own in ("m8/checkpoints", "folder/checkpoints/more"):
        assert_refused(capsys, kept, command.split()[-1], [*command.split(), own])


@pytest.mark.parametrize("command", ["train", "anonymize"])
def test_no_result_replaces_what_a_run_is_going_to_keep(capsys, kept, monkeypatch, command):
    monkeypatch.chdir(kept)
    for own in ("new/config.json", "./m8/../new/anonymizer.json"):
        assert_refused(capsys, kept, "--json", [command, "--workdir", "new", "--json", own])


def test_other_names_in_a_work_directory_are_the_users(capsys, kept):
    for name in ("m8/attack.json", "config.json", "m8/tables/config.json"):
        (kept / name).parent.mkdir(exist_ok=True)
        assert run(capsys, "cost", "--json", kept / name)[0] == 0
        assert json.loads((kept / name).read_text())["provenance"]
    inner = kept / "checkpoints" / "m8"  # config.json lies around it now, too
    inner.mkdir(parents=True)
    (inner / "config.json").write_text("{}")
    assert run(capsys, "cost", "--json", inner / "attack.json")[0] == 0


@pytest.mark.parametrize(
    ("command", "read"),
    [
        ("train --workdir w --initial-weights", "weights.npz"),
        ("linearity --weights", "weights.npz"),
        ("report --results", "results.json"),
    ],
)
def test_no_result_replaces_what_a_command_reads(capsys, tmp_path, monkeypatch, command, read):
    monkeypatch.chdir(tmp_path)
    results.save(tmp_path / read, RESULTS)
    before = (tmp_path / read).read_bytes()
    code, _, err = run(capsys, *command.split(), read, "--json", f"./{read}")
    assert (code, "is a file that this command reads" in err) == (2, True)
    assert (tmp_path / read).read_bytes() == before
    assert list(tmp_path.iterdir()) == [tmp_path / read]


@pytest.mark.parametrize("name", ["summary.json", "summary.png"])
def test_no_result_replaces_the_summary_of_a_sweep(capsys, tmp_path, name):
    given = ("sweep", "--workdir", tmp_path, "--grid", "train.seed=1", "--json", tmp_path / name)
    code, _, err = run(capsys, *given)
    assert (code, f"{name} of --workdir and --json name the same file" in err) == (2, True)
    assert not list(tmp_path.iterdir())


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
