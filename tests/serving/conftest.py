"""Fixtures of the tests of edge and cloud."""

import pytest
from cloud_support import save_checkpoint
from edge_support import FakeCloud, Loop, Process, honest

from facemix_jax import keys


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Work directory, model and variables."""
    workdir = tmp_path_factory.mktemp("serving") / "run"
    return workdir, *save_checkpoint(workdir)


@pytest.fixture(scope="module")
def loop():
    with Loop() as loop:
        yield loop


@pytest.fixture(scope="module")
def process(trained):
    process = Process(trained[0]).wait()
    yield process
    assert process.stop() == 0


@pytest.fixture(scope="module")
def root():
    return keys.RootSecret(bytes(range(32)))


@pytest.fixture
def fake(trained, loop):
    clouds = []

    def start(answer=None):
        clouds.append(FakeCloud(loop, answer or honest(*trained[1:])))
        return clouds[-1]

    yield start
    for cloud in clouds:
        cloud.stop()
