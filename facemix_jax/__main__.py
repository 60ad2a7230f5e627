"""``facemix`` and ``python -m facemix_jax``."""

import os
import signal
import sys
from types import FrameType

from facemix_jax import _runtime

INTERRUPTED = 130
"""What shells say of programs that Ctrl-C ended: 128 and the signal's number."""


def main() -> None:
    """Runs the command line; settings come first because JAX and the parser read them once."""
    catch = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if catch:  # imports of extensions make other errors of a KeyboardInterrupt
        signal.signal(signal.SIGINT, _leave)
    _runtime.configure()
    # gRPC's core writes lines of its own about each failed handshake; read when it is imported.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    if os.environ.get("NO_COLOR") or not sys.stderr.isatty():
        # The parser asks neither NO_COLOR nor where its errors go.
        os.environ.setdefault("PYTHON_TYRO_ANSI_CODES", "False")
    if sys.argv[1:2] == ["serve"]:
        # The cloud's process never imports the other commands: they hold what could unmix.
        try:
            from facemix_jax.serving import cloud
        except ModuleNotFoundError as error:
            raise SystemExit(
                f"facemix: 'facemix serve' needs {error.name}: pip install 'facemix-jax[serve]'"
            ) from None

        raise SystemExit(cloud.main(sys.argv[2:]))
    import jax

    from facemix_jax import cli, hosts

    if catch:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    code = cli.main()
    if code == INTERRUPTED or (code and jax.distributed.is_initialized()):
        # Computations may still run in other threads, and would crash in the interpreter's end;
        # and that waits minutes for processes of this run that did not fail.
        try:
            sys.stdout.flush()
            sys.stderr.flush()
            hosts.let_go()
        finally:  # the readers of both may be gone
            os._exit(code)
    raise SystemExit(code)


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, b"Interrupted.\n")
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    main()
