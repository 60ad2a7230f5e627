"""Several processes that train one run: how they find each other, and what they agree on.

Each sees its own devices and all of the others'; ``jit`` runs on all of them, so that every
process must make the same calls in the same order.
"""

import contextlib
import dataclasses
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, TypeVar

import jax
import numpy as np

from facemix_jax import _validate
from facemix_jax._validate import FacemixError, UsageError

_STOPPING = (
    b"\nStopping when the step under way has ended (the first one is compiled, which may take a "
    b"minute) and\nall is saved; Ctrl-C once more stops at once, without saving.\n"
)

_WAYS = ("auto", "none", "slurm", "tpu")

_LET_GO_SECONDS = 5
"""How long a process that failed waits for others that end with it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class HostsConfig:
    """How the processes of one run find each other.

    Attributes:
        coordinator: ``auto`` takes what the environment says (JAX_COORDINATOR_ADDRESS with
            JAX_NUM_PROCESSES and JAX_PROCESS_ID, several tasks of a SLURM step, several workers
            of a TPU slice) and one process where it says nothing; ``slurm``, ``tpu`` or ``none``
            ask for one of these; HOST:PORT is an address on the first process's machine.
        num_processes: with an address, how many.
        process_index: with an address, which one this is, from 0.
    """

    coordinator: str = "auto"
    num_processes: int | None = None
    process_index: int | None = None

    def __post_init__(self) -> None:
        """Checks that the parts fit together."""
        addressed = ":" in self.coordinator
        if addressed:
            _check_address(coordinator=self.coordinator)
        else:
            _validate.one_of([*_WAYS, "HOST:PORT"], coordinator=self.coordinator)
        given = self.num_processes is not None, self.process_index is not None
        if (addressed and not all(given)) or (not addressed and any(given)):
            raise UsageError(
                f"coordinator is {self.coordinator!r}, num_processes {self.num_processes} and "
                f"process_index {self.process_index}, but an address HOST:PORT takes both numbers "
                f"and nothing else does. Give all three, or none."
            )
        if self.num_processes is not None and self.process_index is not None:
            _validate.positive(num_processes=self.num_processes)
            _validate.in_range(0, self.num_processes - 1, process_index=self.process_index)


def _check_address(**values: str) -> None:
    """Raises ``UsageError`` for what JAX would crash on, or wait for without an end."""
    for name, value in values.items():
        found = re.fullmatch(r"(?:[^\s:/\[\]]+|\[[^\s/\[\]]+\]):([0-9]{1,5})", value)
        if found is None or not 1 <= int(found[1]) <= 65535:
            raise UsageError(
                f"{name} is {value!r}, but must be HOST:PORT with a port from 1 to 65535. Write it "
                f"as in first-machine:9911 or [::1]:9911."
            )


def start(config: HostsConfig) -> None:
    """Joins the other processes; must come before the first computation.

    Returns when all are connected: CPUs connect in the first thing that they compute together, and
    give up after 30 s, which one of them may need for its images.

    Raises:
        FacemixError: they cannot be reached, or the environment does not say where they are.
    """
    options = _options(config)
    if options is None or jax.distributed.is_initialized():
        return
    try:
        jax.distributed.initialize(**options)
        wait("all are connected")
    except (RuntimeError, ValueError, OSError) as error:
        raise FacemixError(
            f"The processes of this run cannot find each other ({config.coordinator}): {error}. "
            f"Likely causes: (a) some have not started: start all with the same address, (b) the "
            f"port is closed or taken: choose another, (c) this is one process only: give "
            f"--coordinator none."
        ) from error


def _options(config: HostsConfig) -> dict[str, Any] | None:
    """What ``jax.distributed.initialize`` takes; None for one process."""
    environment = os.environ
    if ":" in config.coordinator:
        return {
            "coordinator_address": config.coordinator,
            "num_processes": config.num_processes,
            "process_id": config.process_index,
        }
    if config.coordinator in ("slurm", "tpu"):
        on_kubernetes = "TPU_WORKER_HOSTNAMES" in environment
        tpu = "gketpu" if on_kubernetes else "gcetpu"
        return {"cluster_detection_method": tpu if config.coordinator == "tpu" else "slurm"}
    if config.coordinator == "none":
        return None
    if "JAX_COORDINATOR_ADDRESS" in environment:
        _check_address(JAX_COORDINATOR_ADDRESS=environment["JAX_COORDINATOR_ADDRESS"])
        try:
            return {
                "coordinator_address": environment["JAX_COORDINATOR_ADDRESS"],
                "num_processes": int(environment["JAX_NUM_PROCESSES"]),
                "process_id": int(environment["JAX_PROCESS_ID"]),
            }
        except (KeyError, ValueError) as error:
            raise UsageError(
                f"JAX_COORDINATOR_ADDRESS is set, but JAX_NUM_PROCESSES or JAX_PROCESS_ID is not a "
                f"number: {error}. Set all three, or give --coordinator none."
            ) from None
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
    if "SLURM_PROCID" in environment and tasks.isdecimal() and int(tasks) > 1:
        return {"cluster_detection_method": "slurm"}
    if "," in environment.get("TPU_WORKER_HOSTNAMES", ""):
        return {"cluster_detection_method": "gketpu"}
    return None


@contextlib.contextmanager
def quiet(config: HostsConfig) -> Iterator[None]:
    """Keeps standard output for results: what libraries write goes to standard error meanwhile.

    Gloo, by which CPUs talk, tells descriptor 1 of every connection. Nothing changes where there
    is one process.
    """
    if sys.stdout is None or _options(config) is None:
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Ends when it has ended in all processes; what goes wrong in one of them ends all.

    Otherwise the others would wait for it in their next common computation. Nothing in it may be
    computed in common.

    Raises:
        FacemixError: another process failed, and says why.
    """
    failed = None
    try:
        yield
    except Exception as error:
        failed = error
    any_failed = any_of(failed is not None)
    if failed is not None:
        raise failed
    if any_failed:
        raise FacemixError(
            "Another process of this run failed and says why; this one ends with it. Start all "
            "again when that is mended."
        )


def lost(error: Exception) -> str | None:
    """What the user can do about processes that are gone; None for other errors."""
    # JAX raises ValueError, too, for what its libraries report without a code.
    if not isinstance(error, RuntimeError | ValueError) or not jax.distributed.is_initialized():
        return None
    if not re.search("gloo|nccl|coordination service|heartbeat", str(error), re.IGNORECASE):
        return None
    return (
        f"Another process of this run has ended or cannot be reached: {error}. If it failed, it "
        f"says why. Start all again; they go on from the last checkpoint."
    )


def let_go() -> None:
    """Parts from the other processes after a failure; the process must end with ``os._exit``.

    Those that failed with this one leave first: without the first process they would be killed
    before they have said why. JAX waits five minutes for those that did not.
    """
    if jax.distributed.is_initialized():
        leaving = threading.Thread(target=jax.distributed.shutdown, daemon=True)
        leaving.start()
        leaving.join(_LET_GO_SECONDS)


def is_first() -> bool:
    """Whether this process writes what is written once."""
    return jax.process_index() == 0


def any_of(flag: bool) -> bool:
    """Whether ``flag`` holds in any process; all processes call it together."""
    if jax.process_count() == 1:
        return flag
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


_Number = TypeVar("_Number", int, float)


def from_first(values: list[_Number]) -> list[_Number]:
    """The first process's numbers in every process; all call it together.

    Args:
        values: all int (taken as int32, so that steps stay exact) or all float (as float32).
    """
    if jax.process_count() == 1:
        return values
    from jax.experimental import multihost_utils

    kind = type(values[0])
    array = np.asarray(values, np.int32 if kind is int else np.float32)
    return [kind(x) for x in multihost_utils.broadcast_one_to_all(array)]


def wait(name: str) -> None:
    """Returns when every process has come here."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def fetch(tree: Any) -> Any:
    """A tree of arrays on the host, whole in every process; all call it together."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    def whole(x: jax.Array) -> Any:
        if x.is_fully_replicated:
            return np.asarray(x.addressable_data(0))
        return multihost_utils.process_allgather(x, tiled=True)

    return jax.tree.map(whole, tree)


class StoppedError(FacemixError):
    """The work was asked to stop; it saved and can go on."""


class StopSignals:
    """Notes SIGINT and SIGTERM, so that the step in hand ends and is saved.

    A second SIGINT does what it did before: by default it raises ``KeyboardInterrupt`` at once.
    A signal that came too late to end anything early raises ``StoppedError`` at the end: a script
    would otherwise go on with its next work.
    """

    asked = False

    def __enter__(self) -> "StopSignals":
        """Returns itself."""
        self._before: dict[int, Any] = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._before[number] = signal.signal(number, self._ask)
            except ValueError:  # not the main thread: the caller handles signals
                break
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        if number == signal.SIGINT:  # not SIGTERM: timeout(1) sends that twice for one stop
            self._put_back(number)
            with contextlib.suppress(OSError):  # print() may be what the signal interrupted
                os.write(2, _STOPPING)

    def _put_back(self, number: int) -> None:
        """What was there before; None stands for a handler that is not Python's."""
        handler = self._before[number]
        signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Puts back what was there before."""
        for number in self._before:
            self._put_back(number)
        if self.asked and kind is None:
            raise StoppedError(
                "Stopped after the last step; everything is saved. The same command goes on from "
                "there."
            )
