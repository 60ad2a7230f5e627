"""The commands below ``facemix key``: make, show and replace the edge's root secret."""

import dataclasses
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Union

import tyro

from facemix_jax import output
from facemix_jax._validate import UsageError
from facemix_jax.output import NOTES


@dataclasses.dataclass(frozen=True, kw_only=True)
class _File:
    path: Path | None = None
    """The secret's file; by default facemix/key in $XDG_CONFIG_HOME or ~/.config."""
    json: str | None = None
    """Write what is public as JSON to this path; - for standard output."""

    def _show(self, path: Path) -> None:
        file = _keys().show(path)
        result: dict[str, Any] = {
            "path": str(file.path),
            "fingerprint": file.fingerprint,
            "created": file.created.isoformat(),
            "mode": file.mode,
        }
        output.emit(self.json, result, output.table("root secret", ("",), list(result.items())))

    def _path(self) -> Path:
        return (self.path or _keys().default_path()).expanduser()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Create(_File):
    """Draw a root secret and write it to a new file that only you can read.

    Example: facemix key create
    """

    def run(self) -> None:
        """Runs the command."""
        path = self._path()
        _keys().create(path)
        self._show(path)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Show(_File):
    """Show the secret's file, fingerprint, time and mode; never the secret.

    Example: facemix key show --json -
    """

    def run(self) -> None:
        """Runs the command."""
        self._show(self._path())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rotate(_File):
    """Replace the secret by a new one; the old one is gone from the file.

    Example: facemix key rotate
    """

    def run(self) -> None:
        """Runs the command."""
        path = self._path()
        _keys().rotate(path)
        self._show(path)
        NOTES.print(
            "The old secret is gone from the file; backups may still hold it. Restart edge "
            "processes: they go on with the old one until they end."
        )


_Command = Union[  # noqa: UP007  # tyro reads the annotations of each member
    Annotated[Create, tyro.conf.subcommand("create")],
    Annotated[Show, tyro.conf.subcommand("show")],
    Annotated[Rotate, tyro.conf.subcommand("rotate")],
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Key:
    """Make, show or replace the root secret that every request's mixing is drawn from.

    Mixing is not a cipher: the cloud may undo it without this secret (facemix attack).
    """

    command: tyro.conf.OmitSubcommandPrefixes[tyro.conf.OmitArgPrefixes[_Command]]

    def run(self) -> None:
        """Runs the command."""
        self.command.run()


def _keys() -> ModuleType:
    try:
        from facemix_jax import keys
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{error.name} is not installed, which keys need. Install the extra: pip install "
            f"'facemix-jax[serve]'"
        ) from None
    return keys
