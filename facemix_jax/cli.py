"""The command line: parses, runs one command, and turns what goes wrong into an exit code.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 stopped by Ctrl-C; trainings and sweeps, which save
then, also by SIGTERM. Progress goes to standard error; with ``--json -`` standard output holds
nothing but JSON.
"""

import contextlib
import dataclasses
import io
import logging
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import tyro

import facemix_jax
from facemix_jax import hosts, output
from facemix_jax._files import explain
from facemix_jax._validate import FacemixError, UsageError, one_of
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
from facemix_jax.fitting import StoppedError
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
    if arguments == ["--version"]:
        print("facemix", facemix_jax.__version__)
        return 0

    def run() -> None:
        command = _parse(arguments)
        output.check_file(getattr(getattr(command, "command", command), "json", None), "--json")
        command.run()

    return guarded(run)


def guarded(work: Callable[[], None]) -> int:
    """Runs a program and says on standard error what goes wrong, in one paragraph.

    Args:
        work: the program, parsing included.

    Returns:
        The exit code.
    """
    try:
        work()
    except UsageError as error:
        _complain(error)
        return 2
    except StoppedError as error:
        _complain(error)
        return 130
    except FacemixError as error:
        _complain(error)
        return 1
    except KeyboardInterrupt:
        NOTES.print("Interrupted.")
        return 130
    except BrokenPipeError:  # the reader of standard output has gone
        sys.stderr.close()
        return 1
    except Exception as error:
        if (reason := explain(error) or hosts.lost(error)) is not None:
            _complain(reason)
            return 1
        traceback.print_exc()
        NOTES.print("This is a fault of facemix, not of your input; please report the above.")
        return 1
    return 0


def _parse(arguments: Sequence[str]) -> Any:
    """The command with its options.

    Raises:
        UsageError: a configuration refuses its values.
        SystemExit: from the parser, which has printed help or what it does not understand.
    """
    if arguments[:1] == ["--tyro-print-completion"] and len(arguments) > 1:
        one_of(("bash", "zsh"), shell=arguments[1])
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                _Command,
                prog="facemix",
                description="Mixed split inference: train, run and attack. Mixing is not a cipher. "
                "--version says which facemix this is.",
                args=arguments,
            )
    except SystemExit as exit_:
        # The parser puts a name of its own before what a configuration says.
        cause = exit_.__context__
        while cause is not None and not isinstance(cause, UsageError):
            cause = cause.__context__
        if cause is not None:
            raise cause from None
        sys.stderr.write(said.getvalue())
        raise


def _complain(error: FacemixError | str) -> None:
    NOTES.print(f"facemix: {error}", style="red", soft_wrap=True)
