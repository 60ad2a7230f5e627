"""The commands below ``facemix key``: make, show and replace the edge's root secret."""

import dataclasses
from typing import TYPE_CHECKING, Annotated

import tyro

from facemix_jax import output
from facemix_jax._validate import UsageError
from facemix_jax.output import NOTES

if TYPE_CHECKING:
    from facemix_jax.key_ring import Place


@dataclasses.dataclass(frozen=True, kw_only=True)
class _File:
    path: Annotated[str | None, tyro.conf.arg(metavar="FILE|keyring:NAME")] = None
    """The secret's file, by default facemix/key in $XDG_CONFIG_HOME or ~/.config; or an entry of
    the system's keyring."""
    json: str | None = None
    """Write what is public as JSON to this path; - for standard output."""

    def _place(self) -> "Place":
        try:
            from facemix_jax import key_ring
        except ModuleNotFoundError as error:
            raise UsageError(
                f"{error.name} is not installed, which keys need. Install the extra: pip install "
                f"'facemix-jax[serve]'"
            ) from None
        place = key_ring.place(self.path)
        output.check_apart({"--json": self.json}, [place.path])
        return place

    def _show(self, place: "Place") -> None:
        result = place.show()
        output.emit(self.json, result, output.table("root secret", ("",), list(result.items())))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Create(_File):
    """Draw a root secret and write it to a new file that only you can read, or to the keyring.

    Example: facemix key create

    Example: facemix key create --path keyring:
    """

    def run(self) -> None:
        """Runs the command."""
        place = self._place()
        place.create()
        self._show(place)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Show(_File):
    """Show the secret's place, fingerprint and, of a file, time and mode; never the secret.

    Example: facemix key show --json -
    """

    def run(self) -> None:
        """Runs the command."""
        self._show(self._place())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rotate(_File):
    """Replace the secret by a new one; the old one is gone from its place.

    Example: facemix key rotate
    """

    def run(self) -> None:
        """Runs the command."""
        place = self._place()
        place.rotate()
        self._show(place)
        NOTES.print(
            "The old secret is gone from its place; backups may still hold it. Restart edge "
            "processes: they go on with the old one until they end."
        )


_Command = (
    Annotated[Create, tyro.conf.subcommand("create")]
    | Annotated[Show, tyro.conf.subcommand("show")]
    | Annotated[Rotate, tyro.conf.subcommand("rotate")]
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Key:
    """Make, show or replace the root secret that every request's mixing is drawn from.

    Mixing is not a cipher: the cloud may undo it without this secret (facemix attack).
    """

    command: tyro.conf.OmitSubcommandPrefixes[tyro.conf.OmitArgPrefixes[_Command]]

    def run(self) -> None:
        """Runs the command."""
        self.command.run()
