"""Who may call: TLS, bearer tokens, and how much each client may ask for at once."""

import dataclasses
import datetime
import hashlib
import hmac
import ipaddress
import re
import ssl
import stat
from collections import Counter
from pathlib import Path

from facemix_jax._validate import DataError, FacemixError, UsageError

_HASH = "sha256:"


class UnauthenticatedError(FacemixError):
    """No token, a wrong one, or one that has expired."""


class TooMuchError(FacemixError):
    """A client that asks for more at once than its share."""


def is_loopback(host: str) -> bool:
    """Whether an address is reached from the same machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def read(path: Path, what: str) -> bytes:
    """A file's bytes.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"{what} {path} cannot be read: {error.strerror}. Give the path of a readable file."
        ) from None


def read_pem(path: Path, what: str) -> bytes:
    """A PEM file's bytes.

    Raises:
        UsageError: it cannot be read or holds no PEM.
    """
    content = read(path, what)
    if b"-----BEGIN " not in content:
        raise UsageError(f"{what} {path} holds no PEM block. Give a PEM file.")
    return content


def check_pair(**paths: Path) -> None:
    """Whether a certificate and a key are one another's and can be used.

    Args:
        **paths: two PEM files, by what they are called in messages: the certificate, then the key.

    Raises:
        UsageError: they are not.
    """
    (certificate, chain), (key, secret) = paths.items()
    try:  # an empty password: an encrypted key is none that gRPC can use
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(chain, secret, password="")
    except ssl.SSLError as error:
        raise UsageError(
            f"{certificate} {chain} and {key} {secret} cannot be used together: "
            f"{error.reason or error}. Give a certificate and its own key, which is not encrypted."
        ) from None


def check_authority(path: Path, what: str) -> None:
    """Whether a PEM file holds certificates that can vouch for others.

    Raises:
        UsageError: it does not.
    """
    try:
        ssl.create_default_context(cafile=path)
    except ssl.SSLError as error:
        raise UsageError(
            f"{what} {path} holds no certificate that can be used: {error.reason or error}. Give "
            f"the PEM file of an authority."
        ) from None


@dataclasses.dataclass(frozen=True)
class _Token:
    name: str
    digest: bytes
    expires: datetime.datetime | None


class Tokens:
    """The bearer tokens of a file; kept as hashes only.

    Each line is ``NAME SECRET [EXPIRES]``: who it is for, ``sha256:`` and 64 hexadecimal digits
    or the token itself, and an ISO 8601 time with its zone. ``#`` at the start of a word starts a
    comment; within a token it is part of it. A file with tokens themselves must not be readable
    by others.

    Args:
        path: the file.
        may_be_empty: take a file without a token, which lets nobody in.

    Attributes:
        count: how many there are.

    Raises:
        UsageError: the file cannot be read.
        DataError: a line is wrong; its number is named, never its secret.
    """

    def __init__(self, path: Path, *, may_be_empty: bool = False) -> None:
        lines = read(path, "tokens").decode("utf-8", "replace").splitlines()
        stripped = [re.split(r"(?:^|\s)#", line, maxsplit=1)[0].split() for line in lines]
        self._tokens = [
            _token(words, f"{path}, line {number}")
            for number, words in enumerate(stripped, 1)
            if words
        ]
        self.count = len(self._tokens)
        if not self.count and not may_be_empty:
            raise DataError(f"{path} holds no token, so that nobody could call. Add a line.")
        plain = any(words and not _is_hash(words[1]) for words in stripped)
        if plain and path.stat().st_mode & stat.S_IROTH:
            raise DataError(
                f"{path} holds tokens in plain text and everyone may read it. Write their SHA-256 "
                f"instead, or run chmod o-r."
            )

    def client(self, authorization: str | bytes | None) -> str:
        """The name of the client that sent this ``authorization`` header.

        Raises:
            UnauthenticatedError: it is missing, unknown or expired.
        """
        if isinstance(authorization, bytes):
            authorization = authorization.decode("latin-1")
        scheme, _, secret = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not secret:
            raise UnauthenticatedError(
                "The call carries no bearer token, but this cloud requires one. Send the metadata "
                "'authorization: Bearer TOKEN'."
            )
        digest = hashlib.sha256(secret.strip().encode("utf-8", "replace")).digest()
        found = None
        for token in self._tokens:  # all of them, so that time says nothing about which
            if hmac.compare_digest(token.digest, digest):
                found = token
        if found is None:
            raise UnauthenticatedError("The token is unknown here. Ask the operator for a new one.")
        if found.expires is not None and datetime.datetime.now(datetime.UTC) >= found.expires:
            raise UnauthenticatedError(
                f"The token expired at {found.expires.isoformat()}. Ask the operator for a new one."
            )
        return found.name


def _is_hash(secret: str) -> bool:
    """Whether a word of a file is a token's hash; in capitals, too, lest it become a token."""
    return secret.lower().startswith(_HASH)


def _token(words: list[str], where: str) -> _Token:
    if not 2 <= len(words) <= 3:
        raise DataError(f"{where} has {len(words)} words. Write: NAME SECRET [EXPIRES].")
    name, secret = words[:2]
    if _is_hash(name):  # else what is meant for a name would be the token
        raise DataError(f"{where} starts with a hash. Write the name first: NAME SECRET [EXPIRES].")
    if len(words) == 2 and (expires := _time(secret)) is not None and expires.tzinfo is not None:
        raise DataError(f"{where} holds a name and an expiry. Write: NAME SECRET [EXPIRES].")
    try:
        digest = (
            bytes.fromhex(secret[len(_HASH) :])
            if _is_hash(secret)
            else hashlib.sha256(secret.encode()).digest()
        )
    except ValueError:
        digest = b""
    if len(digest) != hashlib.sha256().digest_size:
        raise DataError(f"{where}: {_HASH} must be followed by 64 hexadecimal digits. Correct it.")
    expires = _time(words[2]) if len(words) == 3 else None
    if len(words) == 3 and (expires is None or expires.tzinfo is None):
        raise DataError(
            f"{where}: the expiry must be an ISO 8601 time with a zone. Write for example "
            f"2030-01-31T00:00:00+00:00."
        )
    return _Token(name, digest, expires)


def _time(word: str) -> datetime.datetime | None:
    """An ISO 8601 time; None where a word is none."""
    try:
        return datetime.datetime.fromisoformat(word)
    except ValueError:
        return None


class Shares:
    """Counts what each client has in hand, so that one cannot fill the queue alone.

    Args:
        limit: the most that one client may have in hand.
        what: of which things, for messages.
    """

    def __init__(self, limit: int, what: str) -> None:
        self._limit = limit
        self._what = what
        self._held: Counter[str] = Counter()

    def take(self, client: str, amount: int) -> None:
        """Takes a share, to be given back.

        Raises:
            TooMuchError: the client would hold more than its limit.
        """
        if self._held[client] + amount > self._limit:
            raise TooMuchError(
                f"This client has {self._held[client]} {self._what} in hand and may have "
                f"{self._limit}, so that another {amount} are too many. Wait for answers first."
            )
        self._held[client] += amount

    def give_back(self, client: str, amount: int) -> None:
        """Gives a share back."""
        self._held[client] -= amount
        if not self._held[client]:
            del self._held[client]  # clients that have gone take no memory
