"""Whether files have changed, for those who read them again when they have."""

from pathlib import Path


class Changes:
    """Looks at some files now and then; make it before they are read, lest a change be missed.

    Args:
        *paths: the files; None stands for one that is not used.
    """

    def __init__(self, *paths: Path | None) -> None:
        self._paths = [path for path in paths if path is not None]
        self._seen = self._look()

    def found(self, *, force: bool = False) -> bool:
        """Whether a file has changed since the last look; ``force`` takes all for changed."""
        before, self._seen = self._seen, self._look()
        return bool(self._paths) and (force or self._seen != before)

    def _look(self) -> list[tuple[int, ...] | None]:
        return [_state(path) for path in self._paths]


def _state(path: Path) -> tuple[int, ...] | None:
    """What changes with a file; None where it cannot be reached."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
