"""Where a root secret is kept: in a file (``keys``), or in the system's keyring.

``keyring:NAME`` names an entry of the keyring (``keyring:`` alone that called ``default``), every
other text a file. The keyring is what the Python package ``keyring`` finds: the Secret Service or
KWallet on Linux, the Keychain on macOS. It protects the secret at rest as well as it protects
passwords: while it is unlocked, other programs of the same user may read the entry. And as with a
file, mixing is not a cipher.

Words of the keyring's own errors are never repeated, since they might hold what was to be stored.
"""

import dataclasses
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from facemix_jax import keys
from facemix_jax._files import expanded
from facemix_jax._validate import FacemixError, UsageError
from facemix_jax.keys import SECRET_BYTES, RootSecret

PREFIX = "keyring:"
SERVICE = "facemix"
"""Under which the keyring files all entries."""

DEFAULT_NAME = "default"


class KeyRingError(FacemixError):
    """A keyring, or an entry of it, that cannot be used."""


class Place(Protocol):
    """Where one root secret is kept."""

    @property
    def path(self) -> Path | None:
        """Its file; None for an entry of the keyring."""

    def create(self) -> RootSecret:
        """Draws a secret and keeps it here; refuses to replace one."""

    def rotate(self) -> RootSecret:
        """Replaces the secret that is here by a new one."""

    def load(self) -> RootSecret:
        """Reads the secret."""

    def show(self) -> dict[str, str]:
        """What may be shown of it, by name; never the secret."""


def place(location: str | None = None) -> Place:
    """The place that a text means.

    Args:
        location: ``keyring:NAME``, or a file's path, of which ``~`` is the user's folder; None
            for ``keys.default_path``.

    Raises:
        UsageError: the name of an entry is none, or the path names no file or an unknown user, or
            there is no home folder for the default path.
    """
    if location is None:
        return SecretFile(keys.default_path())
    if location.startswith(PREFIX):
        return Entry(location.removeprefix(PREFIX) or DEFAULT_NAME)
    path = expanded(location)
    if path.name in ("", ".."):
        raise UsageError(f"{location!r} names no file. Give the path of the secret's file.")
    return SecretFile(path)


@dataclasses.dataclass(frozen=True)
class SecretFile:
    """A file as a ``Place``; errors are those of the functions of ``keys``."""

    path: Path

    def create(self) -> RootSecret:
        """See ``keys.create``."""
        return keys.create(self.path)

    def rotate(self) -> RootSecret:
        """See ``keys.rotate``."""
        return keys.rotate(self.path)

    def load(self) -> RootSecret:
        """See ``keys.load``."""
        return keys.load(self.path)

    def show(self) -> dict[str, str]:
        """Path, fingerprint, time and mode; see ``keys.show``."""
        file = keys.show(self.path)
        return {
            "path": str(file.path),
            "fingerprint": file.fingerprint,
            "created": file.created.isoformat(),
            "mode": file.mode,
        }


@dataclasses.dataclass(frozen=True)
class Entry:
    """An entry of the system's keyring as a ``Place``.

    Every method raises ``KeyRingError`` where the keyring is missing, locked or fails, and
    ``UsageError`` where the package ``keyring`` is not installed.

    Raises:
        UsageError: the name has other characters than letters, digits, ``.``, ``_`` and ``-``,
            or not 1 to 64 of them.
    """

    name: str
    path = None

    def __post_init__(self) -> None:
        """Checks the name."""
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", self.name):
            raise UsageError(
                f"{self.name[:80]!a} names no entry of a keyring. Give {PREFIX}NAME with 1 to 64 "
                f"letters, digits, dots, underscores and hyphens."
            )

    def __str__(self) -> str:
        return PREFIX + self.name

    def create(self) -> RootSecret:
        """Draws a root secret and stores it in a new entry.

        Keyrings know no exclusive creation: of two calls at the same moment the later one wins,
        and the other raises if it notices.

        Raises:
            UsageError: the entry exists; it is not touched.
        """
        if self._read() is not None:
            raise UsageError(
                f"{self} exists and is left as it is. Replace it with facemix key rotate --path "
                f"{self}, or choose another name."
            )
        return self._write()

    def rotate(self) -> RootSecret:
        """Replaces the entry by a new root secret in one call; the old one need not be whole.

        Processes that have loaded the old one go on with it until they end.

        Raises:
            KeyRingError: there is none.
        """
        if self._read() is None:
            raise self._missing()
        return self._write()

    def load(self) -> RootSecret:
        """Reads the root secret.

        Raises:
            KeyRingError: there is none, or the entry is no root secret.
        """
        text = self._read()
        if text is None:
            raise self._missing()
        length, whole = len(text), re.fullmatch(f"[0-9a-f]{{{2 * SECRET_BYTES}}}", text)
        if whole:
            return RootSecret(bytes.fromhex(text))
        del text  # some reporters show the local variables of what raises
        raise KeyRingError(
            f"{self} is no root secret: it is not {2 * SECRET_BYTES} hexadecimal digits (it has "
            f"{length} characters). Restore it, or replace it with facemix key rotate --path "
            f"{self}."
        )

    def show(self) -> dict[str, str]:
        """The entry, its fingerprint and the keyring that holds it."""
        fingerprint = self.load().fingerprint
        return {
            "path": str(self),
            "fingerprint": fingerprint,
            "keyring": str(self._ask(lambda ring: ring.get_keyring().name)),
        }

    def _read(self) -> str | None:
        text: str | None = self._ask(lambda ring: ring.get_password(SERVICE, self.name))
        return text

    def _write(self) -> RootSecret:
        def store(ring: ModuleType) -> RootSecret | None:
            secret = secrets.token_bytes(SECRET_BYTES)
            ring.set_password(SERVICE, self.name, secret.hex())
            kept = ring.get_password(SERVICE, self.name) == secret.hex()
            return RootSecret(secret) if kept else None

        root: RootSecret | None = self._ask(store)
        if root is None:
            raise KeyRingError(
                f"{self} was written, but the keyring does not return what was written: it keeps "
                f"nothing, or another process wrote too. Look with facemix key show --path {self}, "
                f"or keep the secret in a file."
            )
        return root

    def _ask(self, call: Callable[[ModuleType], Any]) -> Any:
        try:
            import keyring
            import keyring.errors
        except ModuleNotFoundError as error:
            raise UsageError(
                f"{error.name} is not installed, which {self} needs. Install the extra: pip "
                f"install 'facemix-jax[keyring]', or keep the secret in a file."
            ) from None
        try:
            return call(keyring)
        except Exception as error:
            kind = type(error)
        # Raised out here, so that not even the context of the exception holds the keyring's own.
        if issubclass(kind, keyring.errors.NoKeyringError):
            raise KeyRingError(
                f"{self} cannot be used: this system offers no keyring. Start one (on Linux a "
                f"Secret Service such as GNOME Keyring), or keep the secret in a file."
            )
        if issubclass(kind, keyring.errors.KeyringLocked):
            raise KeyRingError(
                f"{self} cannot be used: the keyring is locked. Unlock it and try again."
            )
        raise KeyRingError(
            f"{self} cannot be used: the keyring failed with {kind.__name__}. Look at the entry "
            f"with your system's keyring program, or keep the secret in a file."
        )

    def _missing(self) -> KeyRingError:
        return KeyRingError(
            f"There is no root secret at {self}. Make one with facemix key create --path {self}."
        )
