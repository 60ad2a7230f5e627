"""Runs that go on with other devices or processes, and what signals to them leave."""

import json
import signal
import time

import numpy as np
import pytest
import scale_support as support

from facemix_jax import checkpoint, fitting

TOLERANCE = 1e-5

_RESUME = """
use_tiny_model()
from test_fitting import _Stopping
config = tiny_config(learning_rate=5e-4)
folder = Path(sys.argv[2])

def fit(name, devices, after=None):
    mesh = MeshConfig(seed_devices=1, data_devices=devices[0], model_devices=devices[1])
    source = TinySource() if after is None else _Stopping(TinySource(), 15, after)
    here = dataclasses.replace(config, mesh=mesh)
    try:
        return fitting.fit(here, folder / name, source=source, show_progress=False)
    except fitting.StoppedError as error:
        return str(error)

alone = fit("alone", (1, 1))
stopped = [fit("moving", (4, 2), after=1), fit("moving", (2, 1), after=1)]
end = fit("moving", (1, 1))
from facemix_jax.serving import loading
loading.models.build = lambda config, **sizes: model
model = tiny_model()
served = [loading.load(folder / "moving", model_devices=n) for n in (1, 4)]
rows = np.random.default_rng(0).normal(size=(4, *model.spec.activation_shape)).astype(np.float32)
answers = [np.asarray(each.apply(each.variables, rows)) for each in served]
print(json.dumps({
    "stopped": stopped, "difference": difference(end.variables, alone.variables),
    "moments": difference(end.opt_state, alone.opt_state), "step": int(end.step),
    "served": float(np.abs(answers[0] - answers[1]).max()),
    "names": [each.model_id for each in served],
    "where": sorted({str(x.sharding.spec) for x in jax.tree.leaves(served[1].variables)}),
}))
"""


def test_a_checkpoint_of_eight_devices_goes_on_with_two_and_with_one(tmp_path):
    found = support.result(support.start(_RESUME, tmp_path))
    assert all("everything is saved" in message for message in found["stopped"])
    assert found["step"] == 8
    assert found["difference"] < TOLERANCE
    assert found["moments"] < TOLERANCE
    # Main alone, served by four devices.
    assert found["served"] < TOLERANCE
    assert found["names"][0] == found["names"][1]
    assert all("'model'" in spec for spec in found["where"])


_FEWER = """
use_tiny_model()
config = tiny_config(batch_size=8)
sizes = []
fitting.loop.train = lambda members, plan, mesh, *rest, **more: sizes.append(mesh.devices.shape)
for count in (4, 3, 1):
    trains = [dataclasses.replace(config.train, seed=seed) for seed in range(count)]
    fitting.fit_together(
        [dataclasses.replace(config, train=train) for train in trains],
        [Path(sys.argv[2]) / str(seed) for seed in range(count)], source=TinySource(),
    )
print(json.dumps(sizes))
"""


def test_runs_that_are_left_take_as_many_devices_as_their_batch_has_groups(tmp_path):
    """Two groups in a batch: of eight devices four runs take all, and three or one take two."""
    found = support.result(support.start(_FEWER, tmp_path))
    assert found == [[4, 2, 1], [1, 2, 1], [1, 2, 1]]


_HOSTS = """
use_tiny_model()
address, count, index, folder, epochs = sys.argv[2], *map(int, sys.argv[3:5]), *sys.argv[5:7]
if count > 1:
    hosts.start(hosts.HostsConfig(coordinator=address, num_processes=count, process_index=index))
mesh = MeshConfig(*[], **json.loads(sys.argv[7]))
config = dataclasses.replace(tiny_config(learning_rate=5e-4, num_epochs=int(epochs)), mesh=mesh)
count_of_runs = int(sys.argv[8])
configs = [
    dataclasses.replace(config, train=dataclasses.replace(config.train, seed=seed))
    for seed in range(count_of_runs)
]
folders = [Path(folder) / f"seed-{seed}" for seed in range(count_of_runs)]
try:
    states = fitting.fit_together(
        configs, folders, source=TinySource(), method="loop",
        options=fitting.Options(show_progress=False),
    )
except fitting.StoppedError as error:
    print(json.dumps({"stopped": str(error)}))
else:
    ends = np.concatenate([numbers(state.variables) for state in states])
    np.save(Path(folder) / f"process-{index}.npy", ends)
    print(json.dumps({"devices": jax.device_count(), "bits": [digest(s) for s in states]}))
"""


def fit_in_processes(folder, *, processes, devices, mesh=None, runs=1, epochs=2):
    folder.mkdir(exist_ok=True)
    arguments = (folder, epochs, json.dumps(mesh or {}), runs)
    if processes == 1:
        return [support.start(_HOSTS, "none", 1, 0, *arguments, devices=devices)]
    return support.together(_HOSTS, *arguments, processes=processes, devices=devices)


def test_two_processes_equal_one(tmp_path):
    two = fit_in_processes(tmp_path / "two", processes=2, devices=2, mesh={"model_devices": 2})
    found = [support.result(process) for process in two]
    one = support.result(fit_in_processes(tmp_path / "one", processes=1, devices=1)[0])
    assert [f["devices"] for f in found] == [4, 4]
    assert one["devices"] == 1
    left, right = (np.load(tmp_path / "two" / f"process-{i}.npy") for i in range(2))
    alone = np.load(tmp_path / "one" / "process-0.npy")
    np.testing.assert_array_equal(left, right)
    assert np.max(np.abs(left - alone)) < TOLERANCE
    records = [fitting.read_records(tmp_path / name / "seed-0") for name in ("two", "one")]
    assert [r["step"] for r in records[0]] == [r["step"] for r in records[1]]
    for a, b in zip(*records, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=TOLERANCE)


@pytest.mark.slow
def test_two_processes_train_two_runs_and_a_third_device_count_goes_on(tmp_path):
    alone = fit_in_processes(tmp_path / "one", processes=1, devices=1, runs=2, epochs=6)
    support.result(alone[0])
    two = fit_in_processes(tmp_path / "two", processes=2, devices=2, runs=2, epochs=6)
    records = tmp_path / "two" / "seed-0" / "metrics.jsonl"
    wait_for_size(two, records, 0)
    two[1].send_signal(signal.SIGTERM)
    stopped = [support.result(process) for process in two]
    assert all("everything is saved" in s["stopped"] for s in stopped)
    rest = fit_in_processes(tmp_path / "two", processes=1, devices=8, runs=2, epochs=6)
    support.result(rest[0])
    found, wanted = (np.load(tmp_path / name / "process-0.npy") for name in ("two", "one"))
    assert np.max(np.abs(found - wanted)) < 10 * TOLERANCE


def wait_for_size(processes, path, size):
    while all(process.poll() is None for process in processes):
        if path.exists() and path.stat().st_size > size:
            return
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_ten_signals_at_random_moments_change_no_bit(tmp_path, number):
    """On eight devices; SIGTERM goes to one of two processes with four devices each."""
    processes = 2 if number == signal.SIGTERM else 1
    options = {"processes": processes, "devices": 8 // processes, "epochs": 40}
    whole = fit_in_processes(tmp_path / "whole", **options)
    uninterrupted = [support.result(process) for process in whole]
    rng = np.random.default_rng(0)
    records = tmp_path / "signals" / "seed-0" / "metrics.jsonl"
    done = 0
    while True:
        running = fit_in_processes(tmp_path / "signals", **options)
        if done < 10:
            wait_for_size(running, records, records.stat().st_size if records.exists() else 0)
            time.sleep(rng.uniform(0, 0.2))
            before = fitting.read_records(records.parent)[-1]["step"]
            running[int(rng.integers(processes))].send_signal(number)
        if number == signal.SIGKILL and done < 10:
            running[0].communicate()
            assert running[0].returncode in (0, -number)
            finished = running[0].returncode == 0
        else:
            found = [support.result(process) for process in running]
            finished = "bits" in found[0]
        if finished:
            break
        done += 1
        saved = checkpoint.newest(records.parent / "checkpoints") or 0
        if number == signal.SIGTERM:
            assert saved >= before, "what was done is saved"
        else:
            assert saved > before - 2 * 3, "at most the steps since the last save are lost"
    assert done == 10
    if number == signal.SIGKILL:
        found = [support.result(fit_in_processes(tmp_path / "signals", **options)[0])]
    assert [f["bits"] for f in found] == [f["bits"] for f in uninterrupted]
