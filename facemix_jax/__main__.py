"""``facemix`` and ``python -m facemix_jax``."""

import sys

from facemix_jax import _runtime


def main() -> None:
    """Runs the command line; settings come first because JAX reads them once."""
    _runtime.configure()
    if sys.argv[1:2] == ["serve"]:
        # The cloud's process never imports the other commands: they hold what could unmix.
        try:
            from facemix_jax.serving import cloud
        except ModuleNotFoundError as error:
            raise SystemExit(
                f"facemix: 'facemix serve' needs {error.name}: pip install 'facemix-jax[serve]'"
            ) from None

        raise SystemExit(cloud.main(sys.argv[2:]))
    from facemix_jax import cli

    raise SystemExit(cli.main())


if __name__ == "__main__":
    main()
