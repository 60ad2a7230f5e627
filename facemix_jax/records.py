"""What a run writes down while it trains: ``metrics.jsonl`` and TensorBoard."""

import json
from pathlib import Path
from types import TracebackType

from facemix_jax._files import write_atomically


class Records:
    """Appends records to ``metrics.jsonl`` and TensorBoard; drops those after ``step`` first.

    Args:
        workdir: of the run.
        step: of the checkpoint that the run goes on from.
    """

    def __init__(self, workdir: Path, step: int) -> None:
        from tensorboardX import SummaryWriter

        path = workdir / "metrics.jsonl"
        if path.exists():
            kept = [line for line in read_records(workdir) if line["step"] <= step]
            write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a")
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

    def __enter__(self) -> "Records":
        """Returns itself."""
        return self

    def write(self, step: int, **values: float) -> None:
        """Appends one record."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes both."""
        self._board.close()
        self._file.close()


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
