"""``facemix train`` in two processes: what fails in one ends both, and standard output is JSON."""

import fcntl
import json
import os
import subprocess
import sys

import pytest
import scale_support as support

SMALL = ["--image-size", "34", "34", "--width", "2", "--num-epochs", "1", "--batch-size", "16"]
DRAWN = ["--train-examples", "16", "--test-examples", "8"]


@pytest.fixture
def train():
    """Starts one process for each list of options; ends what is left of them."""
    started = []

    def start(workdir, *each):
        hosts = ["--coordinator", f"localhost:{support.free_port()}", "--num-processes", len(each)]
        environment = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"}
        for index, options in enumerate(each):
            words = ["train", "--workdir", workdir, *hosts, "--process-index", index, *options]
            started.append(
                subprocess.Popen(
                    [sys.executable, "-m", "facemix_jax", *map(str, words), *SMALL],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    env=environment,
                )
            )
        return started

    yield start
    support.stop_all(started)


def ends(processes):
    """Exit codes, standard outputs and standard errors, each on one line."""
    told = [process.communicate(timeout=100) for process in processes]
    outputs, errors = zip(*told, strict=True)
    codes = [process.returncode for process in processes]
    return codes, outputs, [" ".join(error.split()) for error in errors]


def test_images_that_one_process_lacks_end_both(tmp_path, train):
    lacking = ["--dataset", "folder", "--data-dir", tmp_path / "nowhere"]
    codes, outputs, errors = ends(train(tmp_path / "run", DRAWN, lacking))
    assert codes == [1, 1], errors
    assert outputs == ("", "")
    assert "Another process of this run failed and says why" in errors[0]
    assert "nowhere does not exist" in errors[1]
    assert not (tmp_path / "run").exists()


def test_a_work_directory_in_use_ends_both(tmp_path, train):
    with (tmp_path / "training.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        codes, outputs, errors = ends(train(tmp_path, DRAWN, DRAWN))
    assert codes == [1, 1], errors
    assert outputs == ("", "")
    assert "Another process is training in" in errors[0]
    assert "Another process of this run failed and says why" in errors[1]


_QUIET = """
address, count, index = sys.argv[2], *map(int, sys.argv[3:5])
config = hosts.HostsConfig(coordinator=address, num_processes=count, process_index=index)
with hosts.quiet(config):
    hosts.start(config)
    hosts.wait("something computed in common")
print("the result")
"""


def test_standard_output_holds_results_alone():
    processes = support.together(_QUIET, devices=1)
    assert [process.communicate()[0] for process in processes] == ["the result\n"] * 2


@pytest.mark.slow
def test_a_training_prints_json_alone(tmp_path, train):
    codes, outputs, errors = ends(train(tmp_path, [*DRAWN, "--json", "-"], DRAWN))
    assert codes == [0, 0], errors
    assert "accuracy" in json.loads(outputs[0])["clean"]
    assert outputs[1] == ""


_AGREED = """
address, count, index = sys.argv[2], *map(int, sys.argv[3:5])
hosts.start(hosts.HostsConfig(coordinator=address, num_processes=count, process_index=index))
print(json.dumps([hosts.from_first([2**24 + 1 + index, index]), hosts.from_first([index + 0.5])]))
"""


def test_steps_are_taken_from_the_first_process_exactly():
    processes = support.together(_AGREED, devices=1)
    outputs = [process.communicate()[0].splitlines()[-1] for process in processes]
    assert [json.loads(output) for output in outputs] == [[[2**24 + 1, 0], [0.5]]] * 2


_KILLED = """
address, count, index = sys.argv[2], *map(int, sys.argv[3:5])
hosts.start(hosts.HostsConfig(coordinator=address, num_processes=count, process_index=index))
if index:
    os._exit(3)
try:
    hosts.wait("the other one is gone")
except Exception as error:
    print(json.dumps(hosts.lost(error)), flush=True)
hosts.let_go()
os._exit(0)
"""


def test_a_process_that_is_gone_is_told_and_not_waited_for():
    first, second = support.together(_KILLED, devices=1)
    second.communicate()
    output, _ = first.communicate(timeout=100)  # JAX would wait 300 s
    assert first.returncode == 0
    assert "Another process of this run has ended" in output
