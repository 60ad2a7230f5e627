"""``facemix`` and ``python -m facemix_jax``."""

from facemix_jax import _runtime


def main() -> None:
    """Runs the command line; settings come first because JAX reads them once."""
    _runtime.configure()
    from facemix_jax import cli

    raise SystemExit(cli.main())


if __name__ == "__main__":
    main()
