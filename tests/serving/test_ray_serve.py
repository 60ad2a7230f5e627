"""The cloud as a Ray Serve application, on a Ray of its own on this machine."""

import asyncio
import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from cloud_support import Client, activations, reference, request, save_checkpoint
from edge_support import FakeCloud, Loop, free_port, honest
from tiny_source import TinySource

from facemix_jax import keys
from facemix_jax._validate import UsageError
from facemix_jax.serving import edge
from facemix_jax.serving.edge import Connection, EdgeClient

pytest.importorskip("ray")
yaml = pytest.importorskip("yaml")
pytestmark = pytest.mark.slow

DRIVER = """
import json, sys
import ray
from ray import serve
from facemix_jax.serving import ray_serve

workdir, tokens, port, http_port = sys.argv[1:]
ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
serve.start(
    http_options={"port": int(http_port)},
    grpc_options={
        "port": int(port),
        "grpc_servicer_functions": ["facemix_jax.serving.ray_serve.add_to_server"],
    },
)
serve.run(ray_serve.app({"workdir": workdir, "tokens": tokens}), name="facemix")
named = ray.util.list_named_actors(all_namespaces=True)
(replica,) = [a for a in named if a["name"].startswith("SERVE_REPLICA::")]
replica = ray.get_actor(replica["name"], namespace=replica["namespace"])
print("ready", flush=True)
for line in sys.stdin:  # names to be imported in the replica, then its modules are told
    told = "(list(map(__import__, names)), sorted(__import__('sys').modules))[1]"
    call = eval(f"lambda replica, names: {told}")
    print(json.dumps(ray.get(replica.__ray_call__.remote(call, line.split()))), flush=True)
serve.shutdown()
"""
EDGES = {f"facemix_jax.{part}" for part in ("mixing", "keys", "key_ring", "defenses", "attacks")}
ALLOWED = (("authorization", "Bearer correct-horse"),)


@pytest.fixture(scope="module")
def served(trained, tmp_path_factory):
    """A port, and a function that tells which modules the replica has imported."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "tokens").write_text("phone correct-horse\n")
    (folder / "tokens").chmod(0o600)
    (folder / "token").write_text("correct-horse\n")
    port, log = free_port(), folder / "log"
    with log.open("wb") as file:
        driver = subprocess.Popen(
            [sys.executable, "-c", DRIVER]
            + [str(a) for a in (trained[0], folder / "tokens", port, free_port())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            env={**os.environ, "HOME": str(folder), "RAY_USAGE_STATS_ENABLED": "0"},
        )

    def line():
        for text in driver.stdout:
            if text.startswith(("ready", "[")):
                return text
        raise AssertionError(log.read_text())

    def modules(*imported):
        driver.stdin.write(" ".join(imported) + "\n")
        driver.stdin.flush()
        return set(json.loads(line()))

    try:
        line()
        yield SimpleNamespace(port=port, modules=modules, token=folder / "token")
        driver.stdin.close()
        assert driver.wait(60) == 0, log.read_text()
    finally:
        driver.kill()
        driver.wait()
        driver.stdout.close()


def called(served, use):
    """What ``use`` makes of a client."""

    async def call():
        async with Client(served) as client:
            return await use(client)

    return asyncio.run(call())


@pytest.fixture(scope="module")
def model_id(served):
    return called(served, lambda client: client.describe(metadata=ALLOWED)).model_id


def test_what_is_described_is_the_checkpoints_network(trained, served):
    answer = called(served, lambda client: client.describe(metadata=ALLOWED))
    spec = trained[1].spec
    assert tuple(answer.activation_shape) == spec.activation_shape
    assert tuple(answer.response_shape) == spec.response_shape


@pytest.mark.parametrize("rows", [1, 8, 64])
def test_responses_are_mains_bit_for_bit(trained, served, model_id, rows):
    _, model, variables = trained
    x = activations(model, rows)
    got = called(served, lambda client: client.rows(request(model_id, x), metadata=ALLOWED))
    np.testing.assert_array_equal(got, reference(model, variables, x))
    assert np.abs(got - reference(model, variables, x + 1)).max() > 0


def test_calls_at_once_get_their_own_answers(trained, served, model_id):
    _, model, variables = trained
    inputs = [activations(model, 4, seed) for seed in range(20)]

    async def all_of_them(client):
        one = functools.partial(client.rows, metadata=ALLOWED)
        return await asyncio.gather(*(one(request(model_id, x)) for x in inputs))

    for x, got in zip(inputs, called(served, all_of_them), strict=True):
        np.testing.assert_array_equal(got, reference(model, variables, x))


def test_the_edge_gets_what_it_gets_from_any_cloud(trained, served, monkeypatch):
    images = TinySource().images(np.arange(8))
    root = keys.RootSecret(bytes(range(32)))

    def infer(address, request_id, **options):
        # The same identifier gives the same matrices.
        monkeypatch.setattr(edge.secrets, "token_bytes", lambda count: request_id)
        with EdgeClient(trained[0], root, Connection(clouds=(address,), **options)) as client:
            return client.infer(images)

    found = infer(f"127.0.0.1:{served.port}", bytes(16), token=served.token)
    with Loop() as loop:
        cloud = FakeCloud(loop, honest(*trained[1:]))
        expected, other = (infer(cloud.address, bytes([i] * 16)) for i in (0, 1))
        cloud.stop()
    np.testing.assert_array_equal(found.logits, expected.logits)
    assert not np.array_equal(other.logits, expected.logits)
    assert found.timing.main > 0  # what the replica measured has arrived


def test_what_is_wrong_gets_the_status_that_facemix_serve_gives(trained, served, model_id):
    x = activations(trained[1], 4)
    proper = request(model_id, x)
    for message, metadata, status, words in (
        (b"\xff\xff", ALLOWED, "INVALID_ARGUMENT", "The 2 bytes are no facemix.v1.RunRequest"),
        (request(model_id, x, version=9), ALLOWED, "INVALID_ARGUMENT", "version is 9"),
        (request(model_id, x[:, :1]), ALLOWED, "INVALID_ARGUMENT", "shape"),
        (request("other", x), ALLOWED, "FAILED_PRECONDITION", "model 'other'"),
        (proper, (), "UNAUTHENTICATED", "no bearer token"),
        (proper, (("authorization", "Bearer wrong"),), "UNAUTHENTICATED", "unknown"),
    ):
        refused = functools.partial(Client.refusal, message=message, metadata=metadata)
        got, told = called(served, refused)
        assert (got, words in told) == (status, True), told
    got = called(served, lambda client: client.rows(proper, metadata=ALLOWED))
    np.testing.assert_array_equal(got, reference(*trained[1:], x))


def test_the_replica_has_imported_nothing_of_the_edge(trained, served, model_id):
    x = activations(trained[1], 4)
    called(served, lambda client: client.rows(request(model_id, x), metadata=ALLOWED))
    loaded = served.modules()
    assert {"facemix_jax.serving.service", "facemix_jax.models"} <= loaded
    assert not EDGES & loaded
    assert "facemix_jax.mixing" in served.modules("facemix_jax.mixing")


def test_a_newer_checkpoint_is_taken_over(trained, served, model_id):
    _, variables = save_checkpoint(trained[0], 2, seed=1)

    async def until_it_is_served(client):
        for _ in range(600):
            described = await client.describe(metadata=ALLOWED)
            if described.model_id != model_id:
                return described.model_id
            await asyncio.sleep(0.1)
        raise AssertionError("it was not")

    x = activations(trained[1], 4)
    message = request(called(served, until_it_is_served), x)
    got = called(served, lambda client: client.rows(message, metadata=ALLOWED))
    np.testing.assert_array_equal(got, reference(trained[1], variables, x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's own, of Pydantic
def test_the_application_names_what_is_wrong_with_its_arguments():
    from facemix_jax.serving import ray_serve

    with pytest.raises(UsageError, match="No workdir"):
        ray_serve.app({})
    with pytest.raises(UsageError, match=r"'token' is unknown.*'tokens'"):
        ray_serve.app({"workdir": "run", "token": "file"})


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_file_in_deploy_is_one_of_ray_serve_and_names_what_exists():
    from ray.serve.schema import ServeDeploySchema

    from facemix_jax.serving import ray_serve

    text = (Path(__file__).parents[2] / "deploy" / "ray-serve.yaml").read_text()
    config = ServeDeploySchema(**yaml.safe_load(text))
    (application,) = config.applications
    (deployment,) = application.deployments
    name = ray_serve.__name__
    assert config.grpc_options.grpc_servicer_functions == [
        f"{name}.{ray_serve.add_to_server.__name__}"
    ]
    assert application.import_path == f"{name}:{ray_serve.app.__name__}"
    assert deployment.name == ray_serve.app(application.args)._bound_deployment.name
