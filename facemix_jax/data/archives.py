"""Encoded images in a zip file or a folder, by name."""

import contextlib
import dataclasses
import hashlib
import lzma
import os
import struct
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from facemix_jax._validate import DataError

_UTF8 = 0x800
"""Flag of a zip file's member; ``zipfile`` reads names without it as code page 437."""

SUFFIXES = (".jpg", ".jpeg", ".png")
# What ``zipfile`` raises for damaged, encrypted or unsupported archives.
_UNREADABLE = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, OSError, EOFError),
    *(RuntimeError, ValueError, NotImplementedError),
)


@dataclasses.dataclass(frozen=True)
class EncodedImages:
    """Encoded images by file name.

    Attributes:
        label: what to call the archive in messages.
        sizes: bytes of each image, unpacked.
        stamps: changes whenever the image does: size and checksum (folder: size and time).
        read: ``name -> bytes``; may be called from several threads.
    """

    label: str
    sizes: Mapping[str, int]
    stamps: Mapping[str, str]
    read: Callable[[str], bytes]

    def where(self, name: str) -> str:
        """An image's place, for messages."""
        return f"{name} in {self.label}"


def open_images(path: Path, *, folders: bool = False, remedy: str) -> EncodedImages:
    """Opens a zip file or a folder of JPEG and PNG files; nothing is extracted.

    Args:
        path: the archive or the folder.
        folders: whether names keep their folders, as in ``person/person_0001.jpg``; otherwise
            images are known by their last part.
        remedy: one sentence for errors: where to get a good archive.

    Raises:
        DataError: damaged, or two images of one name.
    """
    return _open_folder(path, folders) if path.is_dir() else _open_zip(path, folders, remedy)


def fingerprint(names: Iterable[str], images: EncodedImages) -> str:
    """16 hexadecimal digits that change with any image or their order."""
    digest = hashlib.sha256()
    for name in names:
        digest.update(f"{name} {images.stamps[name]}\n".encode())
    return digest.hexdigest()[:16]


def _open_zip(path: Path, folders: bool, remedy: str) -> EncodedImages:
    try:
        archive = zipfile.ZipFile(path)
    except _UNREADABLE as error:
        raise DataError(
            f"{path} is not a complete zip file ({error}): the download was probably cut short. "
            + remedy
        ) from error
    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        name = _name(info)
        if not _is_image(name) or name.startswith("__MACOSX/"):
            continue
        # Names are only looked up and nothing is extracted, so a path cannot lead anywhere.
        name = name if folders else name.rsplit("/", 1)[-1]
        if name in members:
            raise DataError(f"{path} holds {name} more than once. {remedy}")
        members[name] = info
    lock = threading.Lock()

    def read(name: str) -> bytes:
        try:
            with lock:
                return archive.read(members[name])
        except _UNREADABLE as error:
            raise DataError(
                f"Image {name} cannot be read from {path}: {error}. {remedy}"
            ) from error

    return EncodedImages(
        label=path.name,
        sizes={name: info.file_size for name, info in members.items()},
        stamps={name: f"{info.file_size} {info.CRC:08x}" for name, info in members.items()},
        read=read,
    )


def _name(info: zipfile.ZipInfo) -> str:
    """A member's name; UTF-8, too, where it is not marked so, as by zip on Linux and macOS."""
    if not info.flag_bits & _UTF8:
        with contextlib.suppress(UnicodeError):
            return info.filename.encode("cp437").decode()
    return info.filename


def _open_folder(path: Path, folders: bool) -> EncodedImages:
    found = _below(path) if folders else path.iterdir()
    try:
        stats = {
            p.relative_to(path).as_posix(): p.stat()
            for p in found
            if _is_image(p.name) and p.is_file()
        }
    except OSError as error:
        raise DataError(
            f"Folder {path} cannot be read: {error}. Check the disk and the files' permissions."
        ) from error

    def read(name: str) -> bytes:
        try:
            return (path / name).read_bytes()
        except OSError as error:
            raise DataError(
                f"Image {path / name} cannot be read: {error.strerror}. Check the disk and "
                "the file's permissions."
            ) from error

    return EncodedImages(
        label=f"{path.name}/",
        sizes={name: stat.st_size for name, stat in stats.items()},
        stamps={name: f"{stat.st_size} {stat.st_mtime_ns}" for name, stat in stats.items()},
        read=read,
    )


def _below(path: Path) -> Iterator[Path]:
    """All files below a folder, linked folders included, each folder once."""
    seen = set()
    for folder, folders, names in os.walk(path, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(folder, name) for name in names)


def _is_image(name: str) -> bool:
    last = name.rsplit("/", 1)[-1]
    return last.lower().endswith(SUFFIXES) and not last.startswith(".")
