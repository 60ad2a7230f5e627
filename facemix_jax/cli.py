"""The command line: parses, runs one command, and turns what goes wrong into an exit code.

Exit codes: 0 done, 1 failed, 2 wrong usage. Progress goes to standard error; with ``--json -``
standard output holds nothing but JSON.
"""

import dataclasses
import logging
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import tyro

from facemix_jax._validate import FacemixError, UsageError
from facemix_jax.commands import Cost, Demo, Evaluate, Train
from facemix_jax.commands_anonymize import Anonymize
from facemix_jax.commands_attack import Attack
from facemix_jax.commands_data import Data
from facemix_jax.commands_export import Export
from facemix_jax.commands_infer import Infer
from facemix_jax.commands_key import Key
from facemix_jax.commands_linearity import Linearity
from facemix_jax.commands_report import Report
from facemix_jax.commands_sweep import Sweep
from facemix_jax.output import NOTES


@dataclasses.dataclass(frozen=True)
class _Serve:
    """The cloud's side: main as a gRPC service; facemix serve --help lists its options."""

    def run(self) -> None:
        """Never: ``main`` hands the command over before it parses."""
        raise AssertionError


_Command = (
    Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Anonymize, tyro.conf.subcommand("anonymize")]
    | Annotated[Sweep, tyro.conf.subcommand("sweep")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Attack, tyro.conf.subcommand("attack")]
    | Annotated[Linearity, tyro.conf.subcommand("linearity")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Cost, tyro.conf.subcommand("cost")]
    | Annotated[Data, tyro.conf.subcommand("data")]
    | Annotated[_Serve, tyro.conf.subcommand("serve")]
    | Annotated[Infer, tyro.conf.subcommand("infer")]
    | Annotated[Key, tyro.conf.subcommand("key")]
    | Annotated[Export, tyro.conf.subcommand("export")]
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses and runs one command.

    Args:
        arguments: without the program's name; None for the process's own.

    Returns:
        The exit code.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments[:1] == ["serve"]:
        # ``__main__`` does this before it imports this module, so that a cloud's process holds
        # nothing that could unmix.
        from facemix_jax.serving import cloud

        return cloud.main(arguments[1:])
    # Orbax logs the traces of failures that reach the user as one paragraph anyway.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    try:
        command = tyro.cli(
            _Command,
            prog="facemix",
            description="Mixed split inference: train, run and attack. Mixing is not a cipher.",
            args=arguments,
        )
    except UsageError as error:  # a configuration that refuses its values
        _complain(error)
        return 2
    try:
        command.run()
    except UsageError as error:
        _complain(error)
        return 2
    except FacemixError as error:
        _complain(error)
        return 1
    except KeyboardInterrupt:
        NOTES.print("Interrupted.")
        return 1
    except BrokenPipeError:  # the reader of standard output has gone
        sys.stderr.close()
        return 1
    except Exception:
        traceback.print_exc()
        NOTES.print("This is a fault of facemix, not of your input; please report the above.")
        return 1
    return 0


def _complain(error: FacemixError) -> None:
    NOTES.print(f"facemix: {error}", style="red", markup=False, soft_wrap=True)
