"""Root secrets in the system's keyring, which is an imitation in memory here."""

import json
import logging
import re
import sys
import traceback

import pytest

from facemix_jax import cli, key_ring, keys
from facemix_jax._validate import UsageError

keyring = pytest.importorskip("keyring")


class Memory(keyring.backend.KeyringBackend):
    """Keeps entries as long as it lives; ``before`` may raise with what was to be stored."""

    priority = 1
    name = "memory"

    def __init__(self):
        super().__init__()
        self.entries = {}
        self.before = lambda method, value: None

    def get_password(self, service, username):
        self.before("get", self.entries.get((service, username)))
        return self.entries.get((service, username))

    def set_password(self, service, username, password):
        self.before("set", password)
        self.entries[service, username] = password

    def delete_password(self, service, username):
        raise AssertionError("nothing is ever deleted")


@pytest.fixture
def memory():
    before = keyring.get_keyring()
    backend = Memory()
    keyring.set_keyring(backend)
    yield backend
    keyring.set_keyring(before)


@pytest.fixture
def run(capsys):
    """Runs a command: exit code, standard output, standard error on one line."""

    def run(*arguments):
        code = cli.main(["key", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, " ".join(captured.err.split())

    return run


def everything_told(error, modules=(key_ring, keys)):
    """Texts of chained exceptions, and local variables of the frames of some modules."""
    told = []
    files = {module.__file__ for module in modules}
    while error is not None:
        shown = traceback.TracebackException.from_exception(error, capture_locals=True)
        told += shown.format_exception_only()
        told += [str(frame.locals) for frame in shown.stack if frame.filename in files]
        error = error.__cause__ or error.__context__
    return "\n".join(told)


def test_a_text_means_an_entry_or_a_file(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    assert key_ring.place("keyring:") == key_ring.Entry("default")
    assert key_ring.place("keyring:work.2") == key_ring.Entry("work.2")
    assert key_ring.place() == key_ring.SecretFile(keys.default_path())
    assert key_ring.place("~/k") == key_ring.SecretFile(tmp_path / "k")
    assert isinstance(key_ring.place("./keyring:work"), key_ring.SecretFile)


@pytest.mark.parametrize(
    ("path", "words"),
    [("", "path is empty"), *((path, f"'{path}' names no file") for path in ("/", ".", "~/.."))],
)
def test_what_names_no_file_is_refused(path, words):
    with pytest.raises(UsageError, match=words):
        key_ring.place(path)


def test_the_folder_of_an_unknown_user_is_refused():
    with pytest.raises(UsageError, match=r"whom this system does not know.*whole path"):
        key_ring.place("~no-such-user/key")


def test_the_remedy_for_an_unknown_user_leads_to_the_file_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as refused:
        key_ring.place("~no-such-user")
    (path,) = re.findall(rf"{tmp_path}/[\w~-]+", str(refused.value))
    assert key_ring.place(path).path == tmp_path / "~no-such-user"
    key_ring.place("./~no-such-user").create()
    assert key_ring.place(path).load()


@pytest.mark.parametrize("name", ["a/b", "a b", "ä", "a" * 65, "a:b", "a\n"])
def test_names_that_a_keyring_might_read_otherwise_are_refused(name):
    with pytest.raises(UsageError, match="letters, digits"):
        key_ring.place(f"keyring:{name}")


def test_what_was_created_is_loaded_and_belongs_to_its_name(memory):
    first, other = (key_ring.place(f"keyring:{n}").create() for n in ("", "other"))
    assert key_ring.place("keyring:").load().fingerprint == first.fingerprint
    assert key_ring.place("keyring:other").load().fingerprint == other.fingerprint
    assert first.fingerprint != other.fingerprint
    assert sorted(memory.entries) == [("facemix", "default"), ("facemix", "other")]


def test_create_replaces_nothing_even_if_malformed(memory):
    for text in ("", "no secret", "0" * 64):
        memory.entries["facemix", "default"] = text
        with pytest.raises(
            UsageError, match=r"keyring:default exists.*rotate --path keyring:default,"
        ):
            key_ring.place("keyring:").create()
        assert memory.entries == {("facemix", "default"): text}


def test_rotation_replaces_the_entry_in_one_call(memory):
    place = key_ring.place("keyring:")
    old, calls = place.create(), []
    memory.before = lambda method, value: calls.append(method)
    new = place.rotate()
    assert calls.count("set") == 1
    assert old.fingerprint != new.fingerprint == place.load().fingerprint
    assert len(memory.entries) == 1


def test_a_missing_entry_is_named_with_its_remedy(memory):
    place = key_ring.place("keyring:none")
    for use in (place.load, place.show, place.rotate):
        with pytest.raises(key_ring.KeyRingError, match="facemix key create --path keyring:none"):
            use()
    assert memory.entries == {}


@pytest.mark.parametrize("text", ["", "s3cret" * 10, "0" * 63, "0" * 66, "G" * 64, "0" * 64 + "\n"])
def test_a_malformed_entry_is_refused_without_showing_it_and_can_be_replaced(memory, text):
    memory.entries["facemix", "default"] = text
    place = key_ring.place("keyring:")
    with pytest.raises(
        key_ring.KeyRingError, match=f"has {len(text)} char.*rotate --path keyring:default"
    ) as caught:
        place.load()
    told = everything_told(caught.value)
    assert "s3cret" not in told
    assert "0" * 63 not in told
    place.rotate()
    place.load()


def broken_by(kind):
    def before(method, value):
        if value is not None:
            raise kind(f"cannot handle {value!r}")

    return before


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (RuntimeError, "failed with RuntimeError"),
        (keyring.errors.PasswordSetError, "failed with PasswordSetError"),
        (keyring.errors.KeyringLocked, "is locked. Unlock it"),
        (keyring.errors.NoKeyringError, "offers no keyring. Start one"),
    ],
)
def test_errors_of_the_keyring_that_hold_the_secret_do_not_pass_it_on(memory, kind, words, caplog):
    place = key_ring.place("keyring:")
    place.create()
    kept = memory.entries["facemix", "default"]
    offered = []

    def noting(method, value):
        offered.append(value)
        broken_by(kind)(method, value)

    def noting_writes(method, value):
        if method == "set":
            noting(method, value)

    for before, use in (
        (noting, place.load),
        (noting, place.show),
        (noting, key_ring.place("keyring:new").create),
        (noting_writes, place.rotate),
    ):
        memory.before = before
        with (
            caplog.at_level(logging.DEBUG),
            pytest.raises(key_ring.KeyRingError, match=words) as caught,
        ):
            use()
        told = everything_told(caught.value) + caplog.text
        for text in filter(None, offered):
            assert text not in told
            assert repr(bytes.fromhex(text))[2:-1] not in told
    assert len({text for text in offered if text}) == 3  # the kept one and two new ones
    assert memory.entries == {("facemix", "default"): kept}


def test_the_search_for_leaks_finds_them(memory, monkeypatch):
    memory.before = broken_by(RuntimeError)
    text = "ab" * 32

    def careless(entry):
        kept = text
        try:
            keyring.set_password("facemix", entry.name, kept)
        except RuntimeError:
            raise key_ring.KeyRingError("it failed") from None

    monkeypatch.setattr(key_ring.Entry, "load", careless)
    with pytest.raises(key_ring.KeyRingError) as caught:
        key_ring.place("keyring:").load()
    assert text in everything_told(caught.value)  # in the context that "from None" only hides
    caught.value.__context__ = None
    assert text not in everything_told(caught.value)
    assert text in everything_told(caught.value, [sys.modules[__name__]])  # a local variable


def test_a_keyring_that_keeps_nothing_is_noticed():
    before = keyring.get_keyring()
    null = pytest.importorskip("keyring.backends.null").Keyring()
    keyring.set_keyring(null)
    try:
        with pytest.raises(key_ring.KeyRingError, match="does not return what was written"):
            key_ring.place("keyring:").create()
    finally:
        keyring.set_keyring(before)


def test_a_system_without_keyring_is_told(memory):
    keyring.set_keyring(pytest.importorskip("keyring.backends.fail").Keyring())
    for use in ("create", "load", "show", "rotate"):
        with pytest.raises(key_ring.KeyRingError, match="offers no keyring"):
            getattr(key_ring.place("keyring:"), use)()


def test_without_the_extra_it_is_named_and_files_still_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "keyring", None)
    with pytest.raises(UsageError, match=r"facemix-jax\[keyring\]"):
        key_ring.place("keyring:").load()
    place = key_ring.place(str(tmp_path / "key"))
    assert place.create().fingerprint == place.load().fingerprint


def test_the_commands_create_show_and_rotate_an_entry(run, memory):
    shown = []
    for command in ("create", "show", "rotate", "show"):
        code, out, err = run(command, "--path", "keyring:work", "--json", "-")
        assert code == 0
        shown.append(json.loads(out))
        secret = memory.entries["facemix", "work"]
        for form in (secret, repr(bytes.fromhex(secret))[2:-1]):
            assert form not in out + err
    assert {k: shown[0][k] for k in ("path", "keyring")} == {
        "path": "keyring:work",
        "keyring": "memory",
    }
    created, again, rotated, last = (s["fingerprint"] for s in shown)
    assert created == again != rotated == last


def test_the_commands_exit_codes(run, memory):
    assert run("show", "--path", "keyring:")[0] == 1
    assert run("create", "--path", "keyring:a/b")[0] == 2
    assert run("create", "--path", "keyring:")[0] == 0
    code, out, err = run("create", "--path", "keyring:")
    assert (code, out) == (2, "")
    assert "rotate" in err
