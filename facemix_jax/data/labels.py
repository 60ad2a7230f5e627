"""Label files as text: lines and names, checked."""

from collections.abc import Iterable
from pathlib import Path

from facemix_jax._validate import DataError


def read_text(path: Path, *, remedy: str) -> str:
    """A UTF-8 file, with or without a BOM; every line ending becomes a newline.

    Raises:
        DataError: unreadable, or not text.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not a text file ({error.reason} at byte {error.start}). {remedy}"
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. {remedy}") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def no_repeats(names: Iterable[str], path: Path, *, remedy: str) -> None:
    """Raises ``DataError`` where a name occurs twice."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise DataError(f"{path}: {name} occurs more than once. {remedy}")
        seen.add(name)


def same_names(names: Iterable[str], others: Iterable[str], *, left: str, right: str) -> None:
    """Raises ``DataError`` where two files name different images."""
    only_left, only_right = set(names) - set(others), set(others) - set(names)
    parts = [
        f"{len(only):,} only in {where} ({', '.join(sorted(only)[:3])}{', ...' * (len(only) > 3)})"
        for only, where in ((only_left, left), (only_right, right))
        if only
    ]
    if parts:
        raise DataError(
            f"{left} and {right} name different images: {'; '.join(parts)}. Use files of the same "
            "release, and cut label files and images to the same subset."
        )


def show(text: str) -> str:
    """A value for a message, cut to 60 characters."""
    return repr(text if len(text) <= 60 else text[:57] + "...")
