"""``facemix key`` as a user meets it: results, exit codes, errors, and a clean standard output."""

import json
import pwd
import re
import shlex
import subprocess
import sys

import pytest

from facemix_jax import cli, keys


@pytest.fixture
def run(capsys):
    """Runs a command: exit code, standard output, standard error on one line."""

    def run(*arguments):
        try:
            code = cli.main(["key", *map(str, arguments)])
        except SystemExit as exit_:  # the parser's
            code = exit_.code
        captured = capsys.readouterr()
        return code, captured.out, " ".join(captured.err.split())

    return run


@pytest.fixture
def path(tmp_path):
    return tmp_path / "facemix" / "key"


def absent(secret, *texts):
    """None of the ways in which bytes are usually written."""
    for text in texts:
        for form in (secret.hex(), repr(secret)[2:-1], str(list(secret)), secret.decode("latin1")):
            assert form not in text


def test_create_show_and_rotate(run, path):
    code, out, err = run("create", "--path", path, "--json", "-")
    created = json.loads(out)
    first = path.read_bytes()
    assert code == 0
    assert created["mode"] == "0600"
    assert created["path"] == str(path)
    absent(first, out, err)

    code, out, err = run("show", "--path", path, "--json", "-")
    shown = json.loads(out)
    assert code == 0
    assert {k: shown[k] for k in ("path", "fingerprint", "created", "mode")} == {
        k: v for k, v in created.items() if k != "provenance"
    }
    assert shown["fingerprint"] == keys.load(path).fingerprint
    absent(first, out, err)

    code, out, err = run("rotate", "--path", path, "--json", "-")
    assert code == 0
    assert json.loads(out)["fingerprint"] != shown["fingerprint"]
    assert path.read_bytes() != first
    assert "old secret is gone" in err
    absent(first, out, err)
    absent(path.read_bytes(), out, err)


def test_the_table_shows_what_is_public(run, path):
    run("create", "--path", path)
    code, out, err = run("show", "--path", path)
    assert code == 0
    assert keys.load(path).fingerprint in out
    assert "0600" in out
    absent(path.read_bytes(), out, err)


def test_the_default_place(run, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert run("create")[0] == 0
    assert keys.load(tmp_path / "facemix" / "key").fingerprint in run("show", "--json", "-")[1]


def test_create_replaces_nothing(run, path):
    run("create", "--path", path)
    before = path.read_bytes()
    code, out, err = run("create", "--path", path)
    assert (code, out) == (2, "")
    assert "facemix key rotate" in err
    assert path.read_bytes() == before


def test_the_result_does_not_replace_the_secret(run, path):
    path.parent.mkdir()
    same = path.parent / ".." / path.parent.name / path.name

    def refused(command):
        code, out, err = run(command, "--path", path, "--json", same)
        assert (code, out) == (2, "")
        assert "another --json path" in err

    refused("create")
    assert not path.exists()
    run("create", "--path", path)
    before = path.read_bytes()
    for command in ("show", "rotate"):
        refused(command)
        assert path.read_bytes() == before


def test_a_circle_of_links_is_no_secret(run, path):
    path.parent.mkdir()
    path.symlink_to(path)
    code, out, err = run("show", "--path", path)
    assert (code, out) == (1, "")
    assert "cannot be read: Too many levels of symbolic links" in err


@pytest.mark.parametrize("command", ["show", "rotate"])
def test_a_missing_secret(run, path, command):
    code, out, err = run(command, "--path", path)
    assert (code, out) == (1, "")
    assert "facemix key create" in err


def test_a_secret_open_to_others(run, path):
    run("create", "--path", path)
    path.chmod(0o644)
    code, out, err = run("show", "--path", path)
    assert (code, out) == (1, "")
    assert "chmod 600" in err


def damaged(path):
    path.write_bytes(b"short")


def open_to_others(path):
    path.chmod(0o644)


@pytest.mark.parametrize(
    ("spoil", "command"),
    [
        (lambda path: path.unlink(), "show"),
        (damaged, "show"),
        (open_to_others, "show"),
        (lambda path: None, "create"),
    ],
    ids=["missing", "damaged", "open", "there"],
)
def test_remedies_act_on_the_secret_they_speak_of(run, tmp_path, monkeypatch, spoil, command):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    run("create")
    default = (tmp_path / "facemix" / "key").read_bytes()
    path = tmp_path / "of work's" / "key"
    run("create", "--path", path)
    before = path.read_bytes()
    spoil(path)
    _, _, err = run(command, "--path", path)
    if spoil is damaged:
        path.unlink()  # as the message says: what is no secret may be anything, and is left
    shown = re.search("facemix key ((?:rotate|create) .*?key['\"]?)[.,]", err)[1]
    assert run(*shlex.split(shown))[0] == 0
    assert keys.load(path).fingerprint != keys.RootSecret(before).fingerprint
    assert (tmp_path / "facemix" / "key").read_bytes() == default


@pytest.mark.parametrize("name", ["keyring:a", "-x", "~no-such-user"])
def test_remedies_act_on_files_with_names_that_mean_something_else(
    run, tmp_path, monkeypatch, name
):
    monkeypatch.chdir(tmp_path)
    given = f"--path=./{name}"
    _, _, missing = run("show", given)
    assert run(*shlex.split(re.search("facemix key (create .*)[.]", missing)[1]))[0] == 0
    (tmp_path / name).chmod(0o644)
    before = (tmp_path / name).read_bytes()
    _, _, opened = run("show", given)
    chmod, rotate = re.search("Run (chmod .*), then facemix key (rotate .*)[.]", opened).groups()
    subprocess.run(shlex.split(chmod), check=True)
    assert run(*shlex.split(rotate))[0] == 0
    assert (tmp_path / name).read_bytes() != before
    assert run("show", given)[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_without_the_extra_it_is_named(run, path, monkeypatch):
    import facemix_jax

    for name in ("keys", "key_ring"):
        monkeypatch.delattr(facemix_jax, name, raising=False)
        monkeypatch.delitem(sys.modules, f"facemix_jax.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers", None)
    code, _, err = run("create", "--path", path)
    assert code == 2
    assert "facemix-jax[serve]" in err


def test_help_says_what_mixing_is_not(run):
    code, out, _ = run("--help")
    assert code == 0
    assert "not a cipher" in out


def test_the_default_place_is_the_users_configuration(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert keys.default_path() == tmp_path / "facemix" / "key"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert keys.default_path() == tmp_path / ".config" / "facemix" / "key"
    for none in ("", ".", "config"):
        monkeypatch.setenv("XDG_CONFIG_HOME", none)
        assert keys.default_path() == tmp_path / ".config" / "facemix" / "key"


def test_a_user_without_a_home_folder_is_told_where_to_keep_the_secret(run, monkeypatch):
    def unknown(uid):
        raise KeyError(uid)

    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    code, out, err = run("show")
    assert (code, out) == (2, "")
    assert re.search("no home folder.*--path FILE.*XDG_CONFIG_HOME", err)
