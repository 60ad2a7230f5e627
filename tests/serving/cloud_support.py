"""A tiny work directory and a running cloud, for the tests of serving."""

import asyncio
import contextlib
import dataclasses
import datetime
import functools
import ipaddress
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import grpc
import jax
import jax.numpy as jnp
import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from flax import linen as nn
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tiny_source import TinySource

from facemix_jax import runs, training
from facemix_jax.checkpoint import Checkpoints
from facemix_jax.defenses import DefenseConfig
from facemix_jax.models import ModelConfig
from facemix_jax.models.split import split
from facemix_jax.runs import RunConfig
from facemix_jax.serving import wire
from facemix_jax.serving import wire_pb2 as pb
from facemix_jax.serving.batching import Runner
from facemix_jax.serving.cloud import Cloud
from facemix_jax.serving.cloud_config import CloudConfig
from facemix_jax.training import TrainConfig

SQUARES = ("var", "mean_square")
"""Statistics that are never negative."""


def run_config(**model):
    return RunConfig(
        model=ModelConfig(width=4, **model),
        defense=DefenseConfig(group_size=4),
        train=TrainConfig(batch_size=8),
    )


def half(*, num_attributes, num_classes, dtype, cut, image_size, width, **options):
    """A network of somebody's own, to be registered, that computes in bfloat16 to its very end."""
    conv = functools.partial(_Half, nn.Conv(width, (3, 3), strides=4, dtype=jnp.bfloat16), None)
    pool = functools.partial(_Half, lambda x: x.mean((1, 2)), None)
    dense = nn.Dense(num_attributes * num_classes, dtype=jnp.bfloat16)
    head = functools.partial(_Half, dense, (num_attributes, num_classes))
    units = [("first", conv), ("second", conv), ("pool", pool)]
    return split(units, head, name="half", cut=cut, last_cut=2, image_size=image_size)


class _Half(nn.Module):
    layer: Any
    shape: tuple[int, int] | None

    @nn.compact
    def __call__(self, x, train):
        y = self.layer(x)
        return y if self.shape is None else y.reshape(-1, *self.shape)


@functools.cache
def _network(config):
    model = runs.build_model(config, TinySource())
    return model, jax.eval_shape(lambda: training.init_state(model, config.train, 16))


def _drawn(like, seed):
    """A state of random numbers: drawing a proper one compiles for seconds."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.key(seed)
        scale = 0.3 if len(leaf.shape) > 1 else 1.0
        values = scale * rng.normal(size=leaf.shape)
        values = np.abs(values) + 0.1 if any(n in str(path[-1]) for n in SQUARES) else values
        return jnp.asarray(values.astype(leaf.dtype))

    return jax.tree_util.tree_map_with_path(draw, like)


def save_checkpoint(workdir, step=1, seed=0, change=lambda variables: variables, config=None):
    """Writes a freshly drawn network as a checkpoint, and config.json once."""
    config = config or run_config()
    model, like = _network(config)
    state = _drawn(like, seed)
    state = dataclasses.replace(state, step=jnp.int32(step), variables=change(state.variables))
    workdir.mkdir(parents=True, exist_ok=True)
    if not (workdir / "config.json").exists():
        (workdir / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    with Checkpoints(workdir / "checkpoints", runs.identity(config, model)) as checkpoints:
        checkpoints.save(state)
    return model, state.variables


@contextlib.asynccontextmanager
async def running(workdir, *, receive_seconds=30.0, **options):
    """A cloud on a free port of this machine."""
    cloud = Cloud(CloudConfig(workdir=workdir, port=0, **options), receive_seconds=receive_seconds)
    await cloud.start()
    try:
        yield cloud
    finally:
        await cloud.stop(grace=1)


def activations(model, rows, seed=0):
    shape = (rows, *model.spec.activation_shape)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def request(cloud, rows, **fields):
    """A proper request for a cloud in this process, or for a model's name."""
    values = {
        "version": wire.VERSION,
        "model_id": cloud if isinstance(cloud, str) else cloud.service.served.model_id,
        "request_id": os.urandom(16),
        "activations": wire.encode(rows) if isinstance(rows, np.ndarray) else rows,
    }
    return pb.RunRequest(**(values | fields))


class Process:
    """``facemix serve`` in a process of its own; its log lines go to a file."""

    def __init__(self, folder, *arguments, prologue=""):
        self.log = folder / "log.jsonl"
        program = (
            f"import sys\n{prologue}\nsys.argv[1:] = {['serve', *map(str, arguments)]}\n"
            "from facemix_jax.__main__ import main\nmain()"
        )
        with self.log.open("wb") as file:
            self.process = subprocess.Popen([sys.executable, "-c", program], stderr=file)
        try:
            self.address = self.until("serving")["address"]
        except BaseException:
            self.kill()
            raise
        self.port = int(self.address.rpartition(":")[2])

    def until(self, event, timeout=60):
        """The first line of an event."""
        give_up = time.monotonic() + timeout
        while time.monotonic() < give_up:
            text = self.log.read_text()
            for line in text.splitlines():
                if f'"event": "{event}"' in line:
                    return json.loads(line)
            assert self.process.poll() is None, text
            time.sleep(0.05)
        raise AssertionError(self.log.read_text())

    def stop(self, number=signal.SIGTERM):
        """Its exit code."""
        self.process.send_signal(number)
        try:
            return self.process.wait(40)
        finally:
            self.kill()

    def kill(self):
        self.process.kill()
        self.process.wait()

    @property
    def resident_bytes(self):
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(status.partition("VmRSS:")[2].split()[0])


class Client:
    """Calls with raw or proper messages over one channel."""

    def __init__(self, cloud, *, credentials=None, host="127.0.0.1"):
        address = f"{host}:{cloud.port}"
        options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
        self.channel = (
            grpc.aio.insecure_channel(address, options)
            if credentials is None
            else grpc.aio.secure_channel(address, credentials, options)
        )
        self._raw = self.channel.unary_unary(wire.RUN)
        self._describe = self.channel.unary_unary(
            wire.DESCRIBE,
            request_serializer=pb.DescribeRequest.SerializeToString,
            response_deserializer=pb.DescribeResponse.FromString,
        )

    async def __aenter__(self):
        return self

    async def __aexit__(self, *error):
        await self.channel.close()

    async def describe(self, **options):
        return await self._describe(pb.DescribeRequest(), timeout=20, **options)

    async def run(self, message, **options):
        """The response to a message or to bytes."""
        body = message if isinstance(message, bytes) else message.SerializeToString()
        answer = await self._raw(body, **({"timeout": 20} | options))
        return pb.RunResponse.FromString(answer)

    async def rows(self, message, **options):
        response = await self.run(message, **options)
        wire.check_response(message, response)
        return np.frombuffer(response.responses.data, np.float32).reshape(response.responses.shape)

    async def refusal(self, message, **options):
        """Status and words of a call that must fail."""
        try:
            await self.run(message, **options)
        except grpc.aio.AioRpcError as error:
            return error.code().name, error.details()
        raise AssertionError("the call was answered")


def reference(model, variables, rows, chunk=4):
    """Main in this process, in chunks; a function of its own, so that it compiles its own."""
    main = jax.jit(lambda variables, x: model.main.apply(variables, x))
    padded = np.concatenate([rows, np.zeros((-len(rows) % chunk, *rows.shape[1:]), np.float32)])
    parts = [main(variables["main"], padded[i : i + chunk]) for i in range(0, len(rows), chunk)]
    return np.concatenate(parts)[: len(rows)]


async def health_of(client, service=""):
    stub = health_pb2_grpc.HealthStub(client.channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
    return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


class Blocked:
    """Holds main's thread until released, so that rows pile up."""

    def __init__(self, monkeypatch):
        self.entered, self._gate = threading.Event(), threading.Event()
        run = Runner.__call__

        def wait_and_run(runner, served, requests):
            self.entered.set()
            assert self._gate.wait(20)
            return run(runner, served, requests)

        monkeypatch.setattr(Runner, "__call__", wait_and_run)

    async def until_entered(self):
        assert await asyncio.to_thread(self.entered.wait, 20)

    def release(self):
        self._gate.set()


def certificate(folder, name, days=(-1, 30)):
    """Writes a self-signed certificate, valid from and to so many days from now, and its key.

    Returns:
        Their paths.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    local = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + datetime.timedelta(days=days[0]))
        .not_valid_after(now + datetime.timedelta(days=days[1]))
        .add_extension(x509.SubjectAlternativeName([local]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = folder / f"{name}.pem", folder / f"{name}.key"
    paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return paths
