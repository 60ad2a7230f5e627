"""The command line: parses, runs one command, and turns what goes wrong into an exit code.

Exit codes: 0 done, 1 failed, 2 wrong usage. Progress goes to standard error; with ``--json -``
standard output holds nothing but JSON.
"""

import logging
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Union

import tyro

from facemix_jax._validate import FacemixError, UsageError
from facemix_jax.commands import Attack, Cost, Demo, Evaluate, Linearity, Train
from facemix_jax.output import NOTES

_Command = Union[  # noqa: UP007  # tyro reads the annotations of each member
    Annotated[Demo, tyro.conf.subcommand("demo")],
    Annotated[Train, tyro.conf.subcommand("train")],
    Annotated[Evaluate, tyro.conf.subcommand("evaluate")],
    Annotated[Attack, tyro.conf.subcommand("attack")],
    Annotated[Linearity, tyro.conf.subcommand("linearity")],
    Annotated[Cost, tyro.conf.subcommand("cost")],
]


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses and runs one command.

    Args:
        arguments: without the program's name; None for the process's own.

    Returns:
        The exit code.
    """
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
