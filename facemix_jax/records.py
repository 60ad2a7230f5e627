"""What a run writes down while it trains: ``metrics.jsonl`` and TensorBoard."""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from facemix_jax._files import write_atomically
from facemix_jax._validate import FacemixError


class Records:
    """Appends records to ``metrics.jsonl`` and TensorBoard; drops those after ``step`` first.

    Args:
        workdir: of the run.
        step: of the checkpoint that the run goes on from.

    Raises:
        FacemixError: the files cannot be written, for example because the disk is full.
        OSError: they cannot be opened.
    """

    def __init__(self, workdir: Path, step: int) -> None:
        path = workdir / "metrics.jsonl"
        if path.exists():
            kept = [line for line in read_records(workdir) if line["step"] <= step]
            write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._workdir = workdir
        with contextlib.ExitStack() as stack:
            self._file = stack.enter_context(path.open("a"))
            with _explained(workdir):
                self._board = stack.enter_context(_Board(workdir / "tensorboard", step + 1))
            self._close = stack.pop_all().close

    def __enter__(self) -> "Records":
        """Returns itself."""
        return self

    def write(self, step: int, **values: float) -> None:
        """Appends one record.

        Raises:
            FacemixError: it cannot be written.
        """
        with _explained(self._workdir):
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
            self._board.write(step, values)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes both; after a failed write that would raise the same failure again."""
        with contextlib.suppress(OSError) if error else _explained(self._workdir):
            self._close()


class _Board:
    """A file of TensorBoard's events.

    tensorboardX's own writer leaves them to a thread: where that cannot write it ends, and the next
    scalars wait for it for ever. Here the caller writes, and hears of it.
    """

    def __init__(self, folder: Path, purge_step: int) -> None:
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        self._file = RecordWriter(str(folder / name))
        try:
            self._append(Event(wall_time=time.time(), file_version="brain.Event:2"))
            # Of earlier files TensorBoard leaves out what is of this step or later.
            start = SessionLog(status=SessionLog.START)
            self._append(Event(wall_time=time.time(), step=purge_step, session_log=start))
        except OSError:
            self.__exit__()
            raise

    def __enter__(self) -> "_Board":
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    def write(self, step: int, values: dict[str, float]) -> None:
        """Appends one event with all values."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        found = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._append(Event(wall_time=time.time(), step=step, summary=Summary(value=found)))

    def _append(self, event: Any) -> None:
        self._file.write(event.SerializeToString())
        self._file.flush()


@contextlib.contextmanager
def _explained(workdir: Path) -> Iterator[None]:
    """Says where a file could not be written, which failed writes, unlike opening, do not know."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise FacemixError(
            f"The records in {workdir} cannot be written: {error.strerror or error}. Free space "
            f"there, or see what is wrong with the disk, and give the same command again; it goes "
            f"on from the newest checkpoint."
        ) from error


def read_records(workdir: Path) -> list[dict[str, float]]:
    """The records of a run; lines that are damaged, as by a kill, are left out."""
    records = []
    for line in (workdir / "metrics.jsonl").read_text(errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
    return records
