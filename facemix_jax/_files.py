"""Files that are there whole or not at all, and their checksums."""

import contextlib
import errno
import fcntl
import hashlib
import os
from pathlib import Path
from typing import IO, Any

from facemix_jax._validate import UsageError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a full disk."""

_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def explain(error: BaseException) -> str | None:
    """What the user can do about a full disk or a missing permission; None for other errors."""
    if not isinstance(error, OSError) or error.errno not in (*NO_SPACE, *_FORBIDDEN):
        return None
    what = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if error.errno in NO_SPACE:
        return f"{what}. Free space there, and give the same command again."
    return f"{what}. Give another path, or run as a user who may read and write it."


def expanded(path: Path | str) -> Path:
    """The path, with ``~`` and ``~NAME`` at its beginning as the folder of a user.

    Raises:
        UsageError: this system knows no such user, or the text is empty.
    """
    if path == "":
        raise UsageError("A path is empty. Give one; the folder that you are in is a dot.")
    text = os.path.expanduser(path)  # Path.expanduser takes ./~NAME for ~NAME
    if text.startswith("~"):
        raise UsageError(
            f"{text!r} begins with the folder of a user whom this system does not know. Give the "
            f"whole path; a name that begins with ~ here is {os.path.abspath(text)!r}."
        )
    return Path(text)


def lock(file: int | IO[Any], *, wait: bool) -> bool:
    """Takes an open file's or folder's lock, which ends with the file or the process.

    Args:
        file: as ``fcntl.flock`` takes it.
        wait: for other processes that hold it.

    Returns:
        Whether it is held: file systems without locks, as some network disks, have none.

    Raises:
        BlockingIOError: another process holds it, and ``wait`` is False.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True


def is_special(path: Path) -> bool:
    """Whether no file can take a path's place: a device, pipe, socket, or where output goes."""
    other = path.exists() and not path.is_file() and not path.is_dir()
    return other or _descriptor(path) is not None


def _descriptor(path: Path) -> int | None:
    """Standard output or error where a path is that of one, as of a file that it goes into."""
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):  # no such file, or a descriptor that is closed
            if os.path.samestat(os.stat(path), os.fstat(descriptor)):
                return descriptor
    return None


def behind_links(path: Path) -> Path:
    """What symbolic links lead to, whether it is there or not.

    Raises:
        OSError: they lead in a circle.
    """
    end = Path(os.path.realpath(path))
    if end.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    return end


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file that appears under its name only when it is complete and on the disk.

    What a symbolic link points to is written, not the link. Devices and pipes are written into,
    and so is a file that standard output or error goes into, behind what is there.

    Raises:
        OSError: it cannot be written; what was there is left alone.
    """
    content = content.encode() if isinstance(content, str) else content
    descriptor = _descriptor(path)
    if descriptor is not None:  # not opened anew, which would empty a file
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)
        return
    if is_special(path):
        path.write_bytes(content)
        return
    path = behind_links(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sha256(path: Path) -> str:
    """The hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
