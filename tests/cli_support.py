"""Runs the command line in this process, as the tests of commands do."""

from facemix_jax import cli

SMALL = ["--image-size", "40", "36", "--train-examples", "64", "--test-examples", "32"]
TRAIN = [*SMALL, "--width", "4", "--num-epochs", "1", "--batch-size", "16", "--log-every", "1"]


def run(capsys, *arguments):
    """Exit code, standard output, standard error on one line."""
    try:
        code = cli.main(list(map(str, arguments)))
    except SystemExit as exit_:  # the parser's
        code = exit_.code
    captured = capsys.readouterr()
    return code, captured.out, " ".join(captured.err.split())
