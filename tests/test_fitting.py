import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from fitting_support import config_of, fit_in

from facemix_jax import checkpoint, claims, fitting, loop, runs, training
from facemix_jax._files import write_atomically
from facemix_jax._validate import FacemixError, UsageError
from facemix_jax.checkpoint import CheckpointError, Checkpoints
from facemix_jax.data import DataConfig
from facemix_jax.defenses import DefenseConfig
from facemix_jax.models import ModelConfig
from facemix_jax.runs import RunConfig

pytestmark = pytest.mark.library_promotes  # Optax


def assert_same(first, second):
    jax.tree.map(
        lambda a, b: (
            np.testing.assert_array_equal(jax.random.key_data(a), jax.random.key_data(b))
            if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key)
            else np.testing.assert_array_equal(a, b)
        ),
        first,
        second,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_source):
    workdir = tmp_path_factory.mktemp("finished")
    return workdir, fit_in(workdir, tiny_source)


def test_a_run_leaves_config_records_and_checkpoints(finished):
    workdir, state = finished
    assert int(state.step) == 8
    assert runs.read_config(workdir) == config_of()
    records = fitting.read_records(workdir)
    assert [r["step"] for r in records] == [2, 3, 4, 6, 8]
    assert {"loss", "accuracy", "learning_rate", "epoch", "images_per_second"} <= set(records[0])
    assert list((workdir / "tensorboard").iterdir())
    assert sorted(int(p.name) for p in (workdir / "checkpoints").iterdir()) == [6, 8]


def test_a_second_call_changes_nothing(finished, tiny_source):
    workdir, state = finished
    before = (workdir / "metrics.jsonl").read_text()
    assert_same(state, fit_in(workdir, tiny_source))
    assert (workdir / "metrics.jsonl").read_text() == before


def test_images_on_the_device_train_the_same(finished, tiny_source, tmp_path):
    workdir, state = finished
    config = config_of()
    resident = dataclasses.replace(config, data=DataConfig(device_resident=True))
    assert_same(state, fit_in(tmp_path, tiny_source, resident))
    claims.check_claim(workdir, resident)  # where the images are is no part of a run


class _Stopping:
    """Sends a signal to this process while the given batch is fetched."""

    def __init__(self, source, number, after):
        self._source, self._number, self._left = source, number, after

    def __getattr__(self, name):
        return getattr(self._source, name)

    def __len__(self):
        return len(self._source)

    def images(self, indices):
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), self._number)
        return self._source.images(indices)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_same_call_goes_on_exactly(finished, tiny_source, tmp_path, number):
    _, uninterrupted = finished
    before = signal.getsignal(number)
    with pytest.raises(fitting.StoppedError, match="goes on"):
        fit_in(tmp_path, _Stopping(tiny_source, number, 2))
    assert signal.getsignal(number) == before
    stopped = fitting.read_records(tmp_path)[-1]["step"]
    assert stopped < 8
    assert_same(uninterrupted, fit_in(tmp_path, tiny_source))


@pytest.mark.parametrize("at", [loop._Notes, checkpoint.Checkpoints])
def test_a_signal_after_the_last_step_stops_as_well(
    finished, tiny_source, tmp_path, monkeypatch, at
):
    """While the last steps are waited for, and while a finished run is read."""
    workdir, uninterrupted = finished
    name, left = ("write", 5) if at is loop._Notes else ("restore", 1)
    real, calls = getattr(at, name), []

    def signalled(*args):
        calls.append(args)
        if len(calls) == left:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*args)

    monkeypatch.setattr(at, name, signalled)
    workdir = tmp_path if name == "write" else workdir
    with pytest.raises(fitting.StoppedError, match="after the last step; everything is saved"):
        fit_in(workdir, tiny_source)
    assert_same(uninterrupted, fit_in(workdir, tiny_source))


def test_a_run_goes_on_with_other_intervals(finished, tiny_source, tmp_path):
    _, uninterrupted = finished
    with pytest.raises(fitting.StoppedError):
        fit_in(tmp_path, _Stopping(tiny_source, signal.SIGTERM, 1))
    before = [record["step"] for record in fitting.read_records(tmp_path)]
    other = config_of(log_every=1, checkpoint_every=5)
    assert_same(uninterrupted, fit_in(tmp_path, tiny_source, other))
    assert runs.read_config(tmp_path) == other
    after = [record["step"] for record in fitting.read_records(tmp_path)]
    assert after == [*before, *range(before[-1] + 1, 9)]
    assert checkpoint.newest(tmp_path / "checkpoints") == 8
    assert (tmp_path / "checkpoints" / "5").exists()


def test_records_after_the_checkpoint_are_dropped_on_resume(finished, tiny_source, tmp_path):
    with pytest.raises(fitting.StoppedError):
        fit_in(tmp_path, _Stopping(tiny_source, signal.SIGTERM, 1))
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'7\n\xff\n{"loss": 99}\n{"step": "1", "loss": 99}\n')  # damaged
        file.write(b'{"step": 7, "loss": 99}\n{"step": 8, "lo')
    fit_in(tmp_path, tiny_source)
    losses = [r["loss"] for r in fitting.read_records(tmp_path)]
    assert 99 not in losses
    assert losses[-1] == fitting.read_records(finished[0])[-1]["loss"]


_PROGRAM = """
import sys
from pathlib import Path
from facemix_jax import _runtime; _runtime.configure()
sys.path.insert(0, {tests!r})
from tiny_source import TinySource
from fitting_support import config_of, fit_in
import hashlib, jax, numpy as np
state = fit_in(Path(sys.argv[1]), TinySource(), config_of(num_epochs={epochs}))
digest = hashlib.sha256()
for leaf in jax.tree.leaves((state.variables, state.opt_state)):
    digest.update(np.asarray(leaf).tobytes())
print(digest.hexdigest())
"""


def killed_and_resumed(workdir, *, kills, epochs, seed):
    """Runs in a process of its own, killed at random moments; returns digest and kills done."""
    program = _PROGRAM.format(tests=str(Path(__file__).parent), epochs=epochs)
    command = [sys.executable, "-c", program, str(workdir)]
    rng = np.random.default_rng(seed)
    done = 0
    records = workdir / "metrics.jsonl"

    def size():
        return records.stat().st_size if records.exists() else 0

    while True:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        if done < kills:
            # From the first new record on, so that kills hit steps, records and saves.
            before = size()
            while process.poll() is None and size() <= before:
                time.sleep(0.02)
            time.sleep(rng.uniform(0, 0.6))
            process.send_signal(signal.SIGKILL)
        output, _ = process.communicate()
        if process.returncode == 0:
            return output.strip(), done
        assert process.returncode == -signal.SIGKILL
        done += 1


@pytest.mark.slow
def test_ten_sigkills_at_random_moments_change_no_bit(tmp_path):
    uninterrupted, _ = killed_and_resumed(tmp_path / "whole", kills=0, epochs=30, seed=0)
    killed, kills = killed_and_resumed(tmp_path / "killed", kills=10, epochs=30, seed=1)
    assert kills == 10
    assert killed == uninterrupted


@pytest.mark.slow
def test_a_sigkill_changes_no_bit(tmp_path):
    uninterrupted, _ = killed_and_resumed(tmp_path / "whole", kills=0, epochs=10, seed=0)
    killed, kills = killed_and_resumed(tmp_path / "killed", kills=1, epochs=10, seed=1)
    assert kills == 1
    assert killed == uninterrupted


def test_initial_variables_are_where_training_starts(tiny_source, tmp_path):
    seen = []

    def note(variables):
        seen.append(variables)
        return jax.tree.map(lambda leaf: leaf * 0, variables)

    state = fit_in(
        tmp_path, tiny_source, config_of(num_epochs=1, learning_rate=1e-12), initial_variables=note
    )
    assert len(seen) == 1
    kernel = state.variables["post"]["params"]["head"]["fc"]["kernel"]
    assert float(np.abs(kernel).max()) < 1e-6


def test_a_work_directory_belongs_to_one_configuration(finished, tiny_source):
    workdir, _ = finished
    with pytest.raises(UsageError, match=r"num_epochs is 2 there and 5 here.*another folder"):
        fit_in(workdir, tiny_source, config_of(num_epochs=5))


class _Other:
    """The tiny source with other training images or labels."""

    def __init__(self, source, *, count=128, **changed):
        self._source = source
        self.splits = {**source.splits, "train": source.splits["train"][:count]}
        self.__dict__ |= changed

    def __getattr__(self, name):
        return getattr(self._source, name)

    def __len__(self):
        return len(self._source)


def test_a_run_on_other_images_is_refused_and_keeps_its_checkpoints(finished, tiny_source):
    """96 images are 6 steps: the finished run's checkpoint 8 would go, and 6 count as its end."""
    workdir, state = finished
    words = r"images.training_images is 128 there and 96 here.*--data-dir.*or another --workdir"
    with pytest.raises(UsageError, match=words):
        fit_in(workdir, _Other(tiny_source, count=96))
    flipped = 1 - tiny_source.attributes
    with pytest.raises(UsageError, match=r"images.labels is"):
        fit_in(workdir, _Other(tiny_source, attributes=flipped))
    assert sorted(int(p.name) for p in (workdir / "checkpoints").iterdir()) == [6, 8]
    assert_same(state, fit_in(workdir, _Other(tiny_source)))


def test_a_run_goes_on_from_the_same_initial_weights_only(finished, tiny_source, tmp_path):
    def zeros(variables):
        return jax.tree.map(lambda leaf: leaf * 0, variables)

    workdir, _ = finished
    with pytest.raises(UsageError, match=r"initial_weights is None there and 'a' here.*--initial"):
        fit_in(workdir, tiny_source, initial_variables=zeros, initial_digest="a")
    config, weights = config_of(num_epochs=1), {"initial_variables": zeros}
    first = fit_in(tmp_path, tiny_source, config, **weights, initial_digest="a")
    for other in ({}, weights, {**weights, "initial_digest": "b"}):
        with pytest.raises(UsageError, match="initial_weights is 'a' there and"):
            fit_in(tmp_path, tiny_source, config, **other)
    told = json.loads((tmp_path / "images.json").read_text())
    del told["initial_weights"]  # as in runs from before they were kept
    (tmp_path / "images.json").write_text(json.dumps(told))
    assert_same(first, fit_in(tmp_path, tiny_source, config))


def test_a_checkpoint_of_another_model_is_refused(finished, tiny_source):
    workdir, _ = finished
    config = RunConfig(model=ModelConfig(width=8), train=config_of().train)
    model = runs.build_model(config, tiny_source)
    state = training.init_state(model, config.train, 8)
    with (
        Checkpoints(workdir / "checkpoints", runs.identity(config, model)) as checkpoints,
        pytest.raises(CheckpointError, match="width is 4 in the checkpoint and 8 here"),
    ):
        checkpoints.restore(state)


def test_main_is_restored_alone(finished, tiny_source):
    workdir, state = finished
    config = config_of()
    model = runs.build_model(config, tiny_source)
    like = jax.eval_shape(model.init, jax.random.key(0))
    restored = checkpoint.restore_segment(workdir / "checkpoints", 8, "main", like["main"])
    assert_same(restored, state.variables["main"])


def test_no_checkpoint_says_how_to_get_one(tmp_path, tiny_source):
    model = runs.build_model(config_of(), tiny_source)
    like = jax.eval_shape(model.init, jax.random.key(0))
    with pytest.raises(CheckpointError, match="Train first"):
        checkpoint.restore_variables(tmp_path / "checkpoints", {}, like)


def test_a_failed_save_keeps_earlier_checkpoints(finished, tiny_source, tmp_path, monkeypatch):
    config, (_, state) = config_of(), finished
    model = runs.build_model(config, tiny_source)
    with Checkpoints(tmp_path / "checkpoints", runs.identity(config, model)) as checkpoints:
        checkpoints.save(state)

        def full(*args, **options):
            raise OSError(28, f"No space left on device: {'array, ' * 1000}")

        monkeypatch.setattr(checkpoints._checkpointer, "save_checkpointables", full)
        with pytest.raises(CheckpointError, match=r"No space left.*free space") as refused:
            checkpoints.save(state)
        assert len(str(refused.value)) < 1000
        assert checkpoints.latest() == 8
        assert_same(checkpoints.restore(state), state)


def test_a_second_training_is_refused_while_the_first_runs(finished, tiny_source):
    workdir, state = finished
    with (
        claims.alone(workdir, config_of()),
        # The demo has no --workdir.
        pytest.raises(FacemixError, match=r"Another process is .*choose another folder"),
    ):
        fit_in(workdir, tiny_source)
    assert_same(fit_in(workdir, tiny_source), state)


def test_atomic_writes_leave_nothing_half_written(tmp_path, monkeypatch):
    path = tmp_path / "out.txt"
    write_atomically(path, "old")

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out.txt"]


def test_batch_must_be_a_multiple_of_the_group():
    with pytest.raises(UsageError, match=r"group_size 8 does not divide batch_size 20.*16 or 24"):
        config_of(batch_size=20)


def test_too_few_images_are_named(tiny_source, tmp_path):
    with pytest.raises(UsageError, match=r"256.*128 training images"):
        fit_in(tmp_path, tiny_source, config_of(batch_size=256))


def test_fit_works_outside_the_main_thread(tiny_source, tmp_path):
    states = []
    thread = threading.Thread(target=lambda: states.append(fit_in(tmp_path, tiny_source)))
    thread.start()
    thread.join()
    assert int(states[0].step) == 8


def test_perturbed_images_train_at_cut_0_and_are_restored(tmp_path, tiny_source):
    """Pre has no variables there; group_size, which the defence does not use, need not fit."""
    config = dataclasses.replace(
        config_of(num_epochs=1),
        model=ModelConfig(cut=0, width=4),
        defense=DefenseConfig(defense="noise", group_size=7),
    )
    state = fit_in(tmp_path, tiny_source, config)
    model = runs.build_model(config, tiny_source)
    with Checkpoints(tmp_path / "checkpoints", runs.identity(config, model)) as checkpoints:
        kept = checkpoints.restore(state)
    assert_same(kept.variables, state.variables)
