"""The user's root secret, and from it a fresh ``MixKey`` for each request.

JAX's generator is no source of secrets: its integer seeds can be tried one after another. Here
32 bytes of the operating system's entropy lie in a file that only its owner can read, or in the
system's keyring (``key_ring``); HKDF-SHA256 turns them and a request's random identifier into a
ChaCha20 key, and the keystream into Haar matrices and the order of sending.

What this does and does not give:

- Without the file, matrices of different requests look independent and uniform. Mixing is not a
  cipher all the same: ``facemix_jax.attacks.separation`` needs no key.
- The identifiers travel in the open, so there is no forward secrecy: whoever recorded the traffic
  and later reads the file can unmix every request since the file was made. ``rotate`` ends that
  for the requests before it.
- Python cannot wipe memory: a process that has loaded the secret holds it until it ends, and its
  memory (swap, core dumps) has to be guarded like the file.
"""

import contextlib
import datetime
import os
import secrets
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn

import jax.numpy as jnp
import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from facemix_jax import _validate
from facemix_jax._types import HostArray
from facemix_jax.mixing import MixKey

SECRET_BYTES = 32
_ROTATED_BYTES = (0, SECRET_BYTES)
"""Sizes of files that ``rotate`` replaces: a secret, and what a crash may leave of one."""
REQUEST_ID_BYTES = 16


class KeyFileError(_validate.FacemixError):
    """A file of a root secret that cannot be read or written safely."""


class RootSecret:
    """32 secret bytes that can be used but neither shown, copied nor pickled.

    Args:
        secret: the bytes.

    Raises:
        UsageError: there are not 32 of them.

    Example:
        >>> RootSecret(bytes(32))  # for a real one: keys.create
        RootSecret(fingerprint 4b272ef57e23668b, value hidden)
    """

    __slots__ = ("__secret",)

    def __init__(self, secret: bytes) -> None:
        if len(secret) != SECRET_BYTES:
            raise _validate.UsageError(
                f"A root secret has {SECRET_BYTES} bytes, but {len(secret)} were given. Make one "
                f"with keys.create."
            )
        self.__secret = bytes(secret)

    def derive(self, purpose: bytes, *, salt: bytes = b"") -> bytes:
        """32 bytes that belong to a purpose and a salt (HKDF-SHA256, RFC 5869)."""
        hkdf = HKDF(SHA256(), length=32, salt=salt, info=b"facemix v1 " + purpose)
        return hkdf.derive(self.__secret)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal characters that tell secrets apart and give nothing of them away."""
        return self.derive(b"fingerprint").hex()[:16]

    def __repr__(self) -> str:
        return f"RootSecret(fingerprint {self.fingerprint}, value hidden)"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """Refuses to be pickled or copied."""
        raise TypeError("A RootSecret is neither pickled nor copied. Load it from its file.")

    def __getstate__(self) -> NoReturn:
        """Refuses as well."""
        self.__reduce_ex__(None)


class KeyFile(NamedTuple):
    """What may be shown of a root secret's file.

    Attributes:
        path: where it is.
        fingerprint: of the secret.
        created: when it was written, by the file's time, UTC.
        mode: its permissions in octal digits, such as ``0600``.
    """

    path: Path
    fingerprint: str
    created: datetime.datetime
    mode: str


def default_path() -> Path:
    """``facemix/key`` in ``$XDG_CONFIG_HOME``, or in ``~/.config``.

    A relative ``$XDG_CONFIG_HOME`` counts as none, as its specification says: the secret would
    depend on the current folder.

    Raises:
        UsageError: the user has no home folder, as in some containers.
    """
    try:
        folder = Path(os.environ.get("XDG_CONFIG_HOME", ""))
        if not folder.is_absolute():
            folder = Path.home() / ".config"
    except RuntimeError:
        raise _validate.UsageError(
            f"User {os.getuid()} has no home folder where the root secret could be. Give its file "
            f"(facemix infer --key FILE, facemix key ... --path FILE), or set XDG_CONFIG_HOME."
        ) from None
    return folder / "facemix" / "key"


def create(path: Path) -> RootSecret:
    """Draws a root secret and writes it to a new file with mode 0600, whole or not at all.

    Args:
        path: the file; its folder is made, with mode 0700, if missing.

    Raises:
        UsageError: the file exists; it is not touched.
        KeyFileError: it cannot be written, or the path is no plain file's.
    """
    root = secrets.token_bytes(SECRET_BYTES)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:  # FileExistsError too: a file stands where the folder should
        raise _unwritable(path, error) from None
    try:
        with _temporary(path, root) as temporary:
            os.link(temporary, path)  # unlike a renaming, this replaces nothing
        _sync_folder(path)
    except FileExistsError:
        if not path.is_file():
            raise _no_file(path) from None
        if path.stat().st_size not in _ROTATED_BYTES:
            raise _validate.UsageError(
                f"{path} exists and is left as it is: it is no root secret, which has "
                f"{SECRET_BYTES} bytes. Choose another path."
            ) from None
        raise _validate.UsageError(
            f"{path} exists and is left as it is. Replace it with {_command('rotate', path)}, or "
            f"choose another path."
        ) from None
    except OSError as error:
        raise _unwritable(path, error) from None
    return RootSecret(root)


def rotate(path: Path) -> RootSecret:
    """Replaces a root secret by a new one, at once; the old one is gone from the file.

    Nothing mixed under the old secret can be unmixed with the new one. Processes that have
    loaded the old one go on with it until they end. Backups, snapshots and the disk's free
    blocks may still hold it. The old file need not be readable: this is the remedy where others
    may have seen it. A file of another length, if not empty, may be anything; it is left.

    Args:
        path: the file.

    Raises:
        KeyFileError: there is none, or it is no plain file of 32 bytes (or empty); or it cannot be
            written: then the old one stays.
    """
    path = Path(os.path.realpath(path))  # the old secret itself is replaced, not a link to it
    if not path.is_file():
        raise _no_file(path) if os.path.lexists(path) else _missing(path)
    if (size := path.stat().st_size) not in _ROTATED_BYTES:
        raise _no_secret(path, size)
    root = secrets.token_bytes(SECRET_BYTES)
    try:
        with _temporary(path, root) as temporary:
            os.replace(temporary, path)
        _sync_folder(path)
    except OSError as error:
        raise _unwritable(path, error) from None
    return RootSecret(root)


def load(path: Path) -> RootSecret:
    """Reads a root secret.

    Args:
        path: the file.

    Raises:
        KeyFileError: it is missing, is no plain file of 32 bytes, belongs to another user, or
            others can read or write it.
    """
    return _read(path)[0]


def show(path: Path) -> KeyFile:
    """What may be shown of a root secret's file; errors as of ``load``."""
    root, status = _read(path)
    return KeyFile(
        path=path,
        fingerprint=root.fingerprint,
        created=datetime.datetime.fromtimestamp(int(status.st_mtime), datetime.UTC),
        mode=f"{stat.S_IMODE(status.st_mode):04o}",
    )


def fresh_mix_key(
    root: RootSecret, request_id: bytes, num_groups: int, group_size: int, *, shuffle: bool
) -> MixKey:
    """The secret of one request: Haar matrices and, if wished, the order of sending.

    The same arguments give the same key on the same machine, so that it need not be kept; a
    request identifier is used once.

    Args:
        root: the user's secret.
        request_id: 16 random bytes, for example ``secrets.token_bytes(16)``; no secret.
        num_groups: ``G``.
        group_size: ``M``.
        shuffle: whether mixtures are shuffled across groups (paper, section 3.5).

    Returns:
        A ``MixKey`` for ``B = G * M`` examples, float32, orthogonal to within 1e-6.

    Raises:
        UsageError: a size is not positive, or the identifier has not 16 bytes.

    Example:
        >>> root = RootSecret(secrets.token_bytes(32))
        >>> fresh_mix_key(root, secrets.token_bytes(16), num_groups=2, group_size=8, shuffle=True)
        MixKey(matrix: (2, 8, 8), order: (16,), values hidden)
    """
    _validate.positive(num_groups=num_groups, group_size=group_size)
    if len(request_id) != REQUEST_ID_BYTES:
        raise _validate.UsageError(
            f"request_id has {len(request_id)} bytes, but must have {REQUEST_ID_BYTES}. Draw it "
            f"with secrets.token_bytes({REQUEST_ID_BYTES})."
        )
    entries = num_groups * group_size * group_size
    batch = num_groups * group_size if shuffle else 0
    # Sizes are part of the purpose: requests of different sizes never share a keystream.
    purpose = b"mix key %d %d %d" % (num_groups, group_size, shuffle)
    words = _keystream(root.derive(purpose, salt=request_id), entries + entries % 2 + batch)
    gaussians = _normal(words[: len(words) - batch])[:entries]
    matrix = _orthogonal(gaussians.reshape(num_groups, group_size, group_size))
    # Sorting random 64-bit words: equal ones, which would bias the order, do not occur.
    order = np.argsort(words[len(words) - batch :], kind="stable").astype(np.int32)
    return MixKey(
        matrix=jnp.asarray(matrix),
        inverse=jnp.asarray(matrix.swapaxes(-1, -2)),
        order=jnp.asarray(order) if shuffle else None,
    )


def _keystream(key: bytes, count: int) -> HostArray:
    """uint64 ``[count]`` from ChaCha20. The nonce is fixed, as every key is used once."""
    encryptor = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor()
    return np.frombuffer(encryptor.update(bytes(8 * count)), "<u8")


def _normal(words: HostArray) -> HostArray:
    """Independent standard normal float64 numbers from an even number of words (Box-Muller)."""
    # Above 0, and at most 1: the largest words round to it.
    uniform = ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    radius, angle = np.sqrt(-2 * np.log(uniform[::2])), 2 * np.pi * uniform[1::2]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])


def _orthogonal(gaussians: HostArray) -> HostArray:
    """Haar matrices float32 ``[G, M, M]`` (Mezzadri 2007, arXiv math-ph/0609050).

    QR alone is not Haar: LAPACK chooses the signs of R, so they are moved to Q.
    """
    q, r = np.linalg.qr(gaussians)
    signs = np.where(np.diagonal(r, axis1=-2, axis2=-1) < 0, -1.0, 1.0)
    return (q * signs[:, None, :]).astype(np.float32)


def _read(path: Path) -> tuple[RootSecret, os.stat_result]:
    try:
        # Not blocking: opening a pipe would wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise _missing(path) from None
    except OSError as error:
        raise KeyFileError(
            f"{path} cannot be read: {error.strerror}. Run as its owner, or give another path."
        ) from None
    try:
        status = os.fstat(descriptor)  # of what was opened, whatever the path means by now
        mode = stat.S_IMODE(status.st_mode)
        if not stat.S_ISREG(status.st_mode):
            raise _no_file(path)
        if status.st_size != SECRET_BYTES:
            raise _no_secret(path, status.st_size)
        if status.st_uid != os.getuid():
            raise KeyFileError(
                f"{path} belongs to user {status.st_uid}, not to {os.getuid()}, who runs this. "
                f"Make a secret of your own at another path, with facemix key create --path FILE."
            )
        if mode & 0o077:
            raise KeyFileError(
                f"{path} has mode {mode:04o}, but must be 0600: others may have read or changed "
                f"it. Run chmod 600 {_whole(path)}, then {_command('rotate', path)}."
            )
        return RootSecret(os.read(descriptor, SECRET_BYTES)), status
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _temporary(path: Path, content: bytes) -> Iterator[Path]:
    """A complete file beside ``path`` that only its owner can read; afterwards it is gone."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o600)  # whatever the umask
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(path: Path) -> None:
    """Makes a new name survive a loss of power, where the file system can."""
    with contextlib.suppress(OSError):  # the file is in place by now
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _missing(path: Path) -> KeyFileError:
    return KeyFileError(
        f"There is no root secret at {path}. Make one with {_command('create', path)}."
    )


def _no_file(path: Path) -> KeyFileError:
    return KeyFileError(
        f"{path} is no root secret: it exists, but is no plain file. Give the path of a file."
    )


def _no_secret(path: Path, size: int) -> KeyFileError:
    return KeyFileError(
        f"{path} is no root secret: it is not a file of {SECRET_BYTES} bytes (it has {size}). "
        f"Restore it, or move it away and make another with {_command('create', path)}."
    )


def _command(name: str, path: Path) -> str:
    """A command for a shell that acts on this secret, not on the one of the default path."""
    # Whole, and in one word with the option: some names begin with keyring:, ~ or -.
    return f"facemix key {name} --path={_whole(path)}"


def _whole(path: Path) -> str:
    return shlex.quote(os.path.abspath(path))


def _unwritable(path: Path, error: OSError) -> KeyFileError:
    return KeyFileError(
        f"{path} cannot be written: {error.strerror}. Free space there or choose another path on "
        f"a local disk; a secret that was there before is still there."
    )
