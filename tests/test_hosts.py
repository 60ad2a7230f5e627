"""How processes find each other, and how one process behaves like many."""

import contextlib
import signal

import pytest

from facemix_jax import hosts
from facemix_jax._validate import FacemixError, UsageError
from facemix_jax.hosts import HostsConfig

NOTHING = (
    "JAX_COORDINATOR_ADDRESS",
    "SLURM_PROCID",
    "SLURM_STEP_NUM_TASKS",
    "TPU_WORKER_HOSTNAMES",
)


@pytest.fixture
def environment(monkeypatch):
    for name in NOTHING:
        monkeypatch.delenv(name, raising=False)

    def put(values):
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return put


ADDRESS = {
    "JAX_COORDINATOR_ADDRESS": "first:1234",
    "JAX_NUM_PROCESSES": "4",
    "JAX_PROCESS_ID": "2",
}
SLURM = {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}
TPU = {"TPU_WORKER_HOSTNAMES": "a,b"}
FOUR = {"coordinator_address": "first:1234", "num_processes": 4, "process_id": 2}


@pytest.mark.parametrize(
    ("coordinator", "values", "expected"),
    [
        ("auto", {}, None),
        ("auto", ADDRESS, FOUR),
        ("auto", SLURM, {"cluster_detection_method": "slurm"}),
        ("auto", {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, None),
        ("auto", TPU, {"cluster_detection_method": "gketpu"}),
        ("auto", {"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ("none", {**ADDRESS, **SLURM, **TPU}, None),
        ("slurm", {}, {"cluster_detection_method": "slurm"}),
        ("tpu", {}, {"cluster_detection_method": "gcetpu"}),
    ],
)
def test_the_environment_says_who_there_is(environment, coordinator, values, expected):
    environment(values)
    assert hosts._options(HostsConfig(coordinator=coordinator)) == expected


def test_jax_knows_the_ways_to_find_out_by_these_names():
    from jax._src import clusters

    known = {c.name for c in clusters.ClusterEnv._cluster_types}
    assert {"slurm", "gketpu", "gcetpu"} <= known


def test_an_address_takes_its_numbers(environment):
    config = HostsConfig(coordinator="first:1234", num_processes=4, process_index=2)
    assert hosts._options(config) == FOUR
    environment({**ADDRESS, "JAX_PROCESS_ID": "two"})
    with pytest.raises(UsageError, match="JAX_PROCESS_ID"):
        hosts._options(HostsConfig())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"coordinator": "slrum"}, "Did you mean 'slurm'"),
        ({"coordinator": "first:1234"}, "takes both numbers"),
        ({"num_processes": 2, "process_index": 0}, "address HOST:PORT"),
        ({"coordinator": "a:1", "num_processes": 2, "process_index": 2}, "process_index is 2"),
    ],
)
def test_half_an_address_is_refused(options, words):
    with pytest.raises(UsageError, match=words):
        HostsConfig(**options)


@pytest.mark.parametrize(
    "address",
    ["first:abc", "first:", ":1234", "first:0", "first:70000", "first:1_0", "http://first:1234"],
)
def test_what_is_no_address_is_refused(environment, address):
    """JAX crashes on some, and waits for others without an end."""
    words = "must be HOST:PORT with a port from 1 to 65535"
    with pytest.raises(UsageError, match=words):
        HostsConfig(coordinator=address, num_processes=2, process_index=0)
    environment({**ADDRESS, "JAX_COORDINATOR_ADDRESS": address})
    with pytest.raises(UsageError, match=f"JAX_COORDINATOR_ADDRESS is .*{words}"):
        hosts._options(HostsConfig())


@pytest.mark.parametrize(
    "address", ["first.example:1", "127.0.0.1:65535", "[::1]:1234", "[fe80::1%eth0]:1"]
)
def test_names_and_numbers_are_addresses(environment, address):
    environment({**ADDRESS, "JAX_COORDINATOR_ADDRESS": address})
    config = HostsConfig(coordinator=address, num_processes=4, process_index=2)
    wanted = {**FOUR, "coordinator_address": address}
    assert hosts._options(config) == hosts._options(HostsConfig()) == wanted


def test_what_goes_wrong_says_what_to_do(environment, monkeypatch):
    def fail(**options):
        raise RuntimeError("deadline exceeded")

    monkeypatch.setattr(hosts.jax.distributed, "initialize", fail)
    with pytest.raises(FacemixError, match=r"deadline exceeded.*same address.*--coordinator none"):
        hosts.start(HostsConfig(coordinator="a:1", num_processes=2, process_index=0))
    hosts.start(HostsConfig())  # one process needs nothing


def test_a_handler_that_is_not_pythons_is_put_back_as_the_default(monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    try:
        with contextlib.suppress(hosts.StoppedError), hosts.StopSignals() as stop:
            stop._before[signal.SIGTERM] = None  # as JAX's own leaves it
            signal.raise_signal(signal.SIGTERM)
            assert stop.asked
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_second_interrupt_stops_at_once_but_a_second_sigterm_does_not(capfd):
    class KilledError(Exception):
        pass

    def kill(number, frame):
        raise KilledError

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, kill)
        with contextlib.suppress(hosts.StoppedError), hosts.StopSignals() as stop:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
            assert capfd.readouterr().err == ""
            signal.raise_signal(signal.SIGINT)
            said = " ".join(capfd.readouterr().err.split())
            assert "the step under way" in said
            assert "the first one is compiled, which may take a minute" in said
            assert "once more" in said
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            assert stop.asked
        assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
        assert signal.getsignal(signal.SIGTERM) == kill
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])
