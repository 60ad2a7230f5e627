"""Records of a training: what TensorBoard reads, and disks that are full."""

import json
import subprocess
import sys

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from facemix_jax.records import Records, read_records

FULL = """
import resource, sys
from pathlib import Path

from facemix_jax import cli
from facemix_jax.records import Records


def work():
    with Records(Path(sys.argv[1]), 1000) as records:
        # Beyond this size writing fails, as where the disk is full.
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, resource.RLIM_INFINITY))
        for step in range(1001, 2000):
            records.write(step, loss=1.0, accuracy=0.5)


sys.exit(cli.guarded(work))
"""


@pytest.mark.parametrize("kept", [0, 100])
def test_a_full_disk_ends_the_training_at_once_and_names_the_folder(tmp_path, kept):
    """TensorBoard's file is the larger one; with old records it is ``metrics.jsonl``."""
    lines = [json.dumps({"step": step, "loss": 1.0}) + "\n" for step in range(kept)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    command = [sys.executable, "-W", "error", "-c", FULL, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    said = " ".join(ended.stderr.split())
    assert said.startswith(f"facemix: The records in {tmp_path} cannot be written: File too large.")
    assert "Traceback" not in said
    assert "Exception" not in said
    full = "metrics.jsonl" if kept else "tensorboard/events*"
    assert [path.stat().st_size for path in tmp_path.glob(full)] == [4000]
    assert len(read_records(tmp_path)) >= kept


def test_tensorboard_gets_every_value_and_from_where_the_run_goes_on(tmp_path):
    with Records(tmp_path, 4) as records:
        records.write(5, loss=0.5, accuracy=0.25)
        records.write(10, loss=0.125, accuracy=1)
    (path,) = (tmp_path / "tensorboard").glob("events.out.tfevents.*")
    events, rest = [], path.read_bytes()
    while rest:
        length = int.from_bytes(rest[:8], "little")
        events.append(Event.FromString(rest[12 : 12 + length]))
        rest = rest[16 + length :]
    version, start, *scalars = events
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (5, SessionLog.START)
    assert [
        (event.step, value.tag, value.simple_value)
        for event in scalars
        for value in event.summary.value
    ] == [(5, "loss", 0.5), (5, "accuracy", 0.25), (10, "loss", 0.125), (10, "accuracy", 1)]
