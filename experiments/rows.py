"""Which rows of a table a script runs, and several of them at the same time."""

import dataclasses
import multiprocessing
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

from systems import SMOKE

from facemix_jax import _runtime
from facemix_jax._validate import FacemixError, one_of, positive


def chosen(config: Any, systems: Iterable[str], parts: Iterable[str]) -> tuple[str, ...]:
    """The rows that a script's options ask for: all of them, or a few at ``smoke``, by default.

    Args:
        config: has ``scale``, ``rows``, ``parts`` and ``jobs``.
        systems: the rows that there are.
        parts: likewise.

    Raises:
        UsageError: an unknown row or part, or no job.
    """
    rows = config.rows or (SMOKE if config.scale == "smoke" else tuple(systems))
    for row in rows:
        one_of(systems, row=row)
    for part in config.parts:
        one_of(parts, part=part)
    positive(jobs=config.jobs)
    return rows


def side_by_side(main: Callable[[Any], None], config: Any, rows: Sequence[str]) -> None:
    """Runs rows of a script in processes of their own, ``config.jobs`` at a time.

    All write into one results file. After Ctrl-C no other row starts, and those that run save what
    they have.

    Args:
        main: of the script.
        config: its options, with ``rows`` and ``jobs``.
        rows: to run.

    Raises:
        FacemixError: rows failed; the others are done.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # they share the memory
    context = multiprocessing.get_context("spawn")

    def run(row: str) -> int | None:
        alone = dataclasses.replace(config, rows=(row,), jobs=1)
        process = context.Process(target=_configured, args=(main, alone))
        process.start()
        process.join()
        return process.exitcode

    with ThreadPoolExecutor(config.jobs) as pool:
        ends = [pool.submit(run, row) for row in rows]
        try:
            wait(ends)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    failed = [row for row, end in zip(rows, ends, strict=True) if end.result() != 0]
    if failed:
        raise FacemixError(
            f"These rows failed, for reasons that stand above: {', '.join(failed)}. The same "
            "command runs them again."
        )


def _configured(main: Callable[[Any], None], config: Any) -> None:
    _runtime.configure(deterministic=True)
    main(config)
