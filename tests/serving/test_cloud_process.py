"""``facemix serve`` as a process: what it cannot import, signals, exit codes."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
import threading
import time

import grpc
import numpy as np
import pytest
from cloud_support import (
    Client,
    Process,
    activations,
    certificate,
    health_of,
    reference,
    request,
    save_checkpoint,
)

from facemix_jax import cli
from facemix_jax.serving import cloud, probe, wire

BLOCKER = """
import importlib.abc
class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        for part in ("mixing", "keys", "defenses", "inference", "training", "runs", "attacks"):
            if (name + ".").startswith(f"facemix_jax.{part}."):
                raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocker())
"""


def test_a_cloud_without_the_edges_code_answers_reloads_and_drains(tmp_path):
    workdir = tmp_path / "run"
    model, old = save_checkpoint(workdir, 1)
    chain, key = certificate(tmp_path, "cloud", days=(-1, 5))
    files = ("--tls-cert", chain, "--tls-key", key)
    process = Process(tmp_path, "--workdir", workdir, "--port", 0, *files, prologue=BLOCKER)
    credentials = grpc.ssl_channel_credentials(chain.read_bytes())
    ask = ["--address", process.address, "--ca", str(chain)]
    x = activations(model, 8)

    async def answers(variables):
        async with Client(process, credentials=credentials) as client:
            assert await health_of(client) == "SERVING"
            model_id = (await client.describe()).model_id
            rows = await client.rows(request(model_id, x))
            np.testing.assert_array_equal(rows, reference(model, variables, x))
            return model_id

    try:
        first = asyncio.run(answers(old))
        assert probe.main(ask) == 0
        with socket.create_connection(("127.0.0.1", process.port)) as stranger:
            stranger.sendall(b"GET / HTTP/1.0\r\n\r\n")  # of which gRPC would write a line itself
            stranger.recv(100)
        _, new = save_checkpoint(workdir, 2, seed=1)
        process.process.send_signal(signal.SIGHUP)
        process.until("reloaded")
        assert asyncio.run(answers(new)) != first

        async def interrupted():
            """A SIGTERM while calls are open: each is answered, or refused as UNAVAILABLE."""
            async with Client(process, credentials=credentials) as client:
                model_id = (await client.describe()).model_id
                calls = [asyncio.create_task(client.rows(request(model_id, x))) for _ in range(20)]
                await calls[0]
                process.process.send_signal(signal.SIGTERM)
                return await asyncio.gather(*calls, return_exceptions=True)

        expected = reference(model, new, x)
        for outcome in asyncio.run(interrupted()):
            if isinstance(outcome, BaseException):
                assert outcome.code().name == "UNAVAILABLE"
            else:
                np.testing.assert_array_equal(outcome, expected)
        assert process.process.wait(40) == 0
    finally:
        process.kill()
    assert probe.main(ask) == 1
    lines = [json.loads(line) for line in process.log.read_text().splitlines()]
    events = [line["event"] for line in lines]
    assert events[0] == "serving"
    assert events[-1] == "stopped"
    warnings = [line["reason"] for line in lines if line["level"] == "warning"]
    assert len(warnings) == 2  # at the start and with SIGHUP
    assert all(words.endswith("Renew it.") for words in warnings)
    calls = [line for line in lines if line["event"] == "call"]
    assert {"method", "client", "status", "ms", "rows", "request"} <= set(calls[1])
    assert calls[1]["client"].startswith("ipv")  # the peer's address without its port
    assert max(map(len, process.log.read_text().splitlines())) < 300  # no payloads


def test_a_second_signal_does_not_wait_for_open_calls(trained, tmp_path):
    process = Process(tmp_path, "--workdir", trained[0], "--port", 0)
    silent = threading.Event()
    try:
        with grpc.insecure_channel(process.address) as channel:

            def nothing():
                silent.wait(60)
                yield from ()

            call = channel.stream_unary(wire.RUN).future(nothing())
            grpc.channel_ready_future(channel).result(20)
            time.sleep(0.5)  # until the cloud has the call
            start = time.monotonic()
            process.process.send_signal(signal.SIGINT)
            process.until("draining")
            time.sleep(1)
            assert process.process.poll() is None  # as it waits for the call
            process.process.send_signal(signal.SIGINT)
            assert process.process.wait(20) == 0
            assert time.monotonic() - start < 15  # not the 30 s of the grace
            silent.set()
            with pytest.raises(grpc.RpcError):
                call.result(10)
    finally:
        silent.set()
        process.kill()


def test_the_blocker_blocks():
    program = f"import sys\n{BLOCKER}\nfrom facemix_jax import mix"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "facemix_jax.mixing is blocked" in found.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "workdir"),
        (["--workdir", "none", "--host", "0.0.0.0"], "not loopback"),
        (["--workdir", "none", "--max-rows", "many"], "max-rows"),
        (["--workdir", "none"], "no work directory"),
    ],
)
def test_wrong_usage_exits_2_before_anything_is_loaded(
    tmp_path, capsys, monkeypatch, arguments, words
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cloud, "log_to_stderr", lambda: None)
    try:
        code = cloud.main(arguments)
    except SystemExit as exit_:  # the parser's
        code = exit_.code
    assert code == 2
    assert words in " ".join(capsys.readouterr().err.split())


def test_the_command_is_listed_and_handed_over(capsys):
    for arguments, word in ((["--help"], "serve"), (["serve", "--help"], "--queue-rows")):
        with pytest.raises(SystemExit) as caught:
            cli.main(arguments)
        assert caught.value.code == 0
        assert word in capsys.readouterr().out
