"""Malformed requests by the thousand: each gets its status, memory stays, others are served."""

import asyncio
import collections
import contextlib
import os
import socket
import struct
import threading
import time
import urllib.request

import grpc
import numpy as np
import pytest
from cloud_support import Client, Process, activations, reference, request, save_checkpoint

from facemix_jax.serving import wire
from facemix_jax.serving import wire_pb2 as pb

MIB = 2**20
MAX_ROWS = 8
GOOD, STRANGE, SLOW = ({"metadata": (("authorization", f"Bearer {n}"),)} for n in "gsw")
TOKENS = "good g\nstrange s\nslow w\nold o 2001-01-01T00:00:00+00:00\n"
MUTATED = {"OK", "INVALID_ARGUMENT", "FAILED_PRECONDITION"}


def malformed(rng, model, model_id):
    """Kind, bytes, call options and the statuses that are right."""
    row = model.spec.activation_shape
    x = rng.normal(size=(int(rng.integers(1, 3)), *row)).astype(np.float32)

    def proper(tensor=None, **fields):
        return request(model_id, x if tensor is None else tensor, **fields)

    def tensor(shape=x.shape, dtype="float32", data=None, scales=()):
        data = x.tobytes() if data is None else data
        return pb.Tensor(shape=shape, dtype=dtype, data=data, scales=scales)

    def poisoned():
        bad = x.copy()
        bad.flat[rng.integers(bad.size)] = rng.choice([np.nan, np.inf, -np.inf])
        return tensor(data=bad.tobytes())

    def mutated():
        body = bytearray(proper().SerializeToString())
        for _ in range(int(rng.integers(1, 6))):
            # Mostly in the header, where the structure is.
            place = int(rng.integers(len(body) if rng.random() < 0.3 else min(64, len(body))))
            match rng.integers(4):
                case 0:
                    body[place] = rng.integers(256)
                case 1:
                    del body[place : place + int(rng.integers(1, 9))]
                case 2:
                    body[place:place] = rng.bytes(int(rng.integers(1, 9)))
                case _:
                    del body[place:]
            if not body:
                break
        return bytes(body)

    ints = rng.integers(0, 2**32, size=int(rng.integers(0, 9)))
    wrong_shape = [int(n) for n in ints] if rng.random() < 0.5 else [len(x), *row[:-1], row[-1] + 1]
    argument, caller, condition = {"INVALID_ARGUMENT"}, {"UNAUTHENTICATED"}, {"FAILED_PRECONDITION"}
    kinds = {
        "random bytes": (lambda: rng.bytes(int(rng.integers(0, 400))), argument),
        "mutated": (mutated, MUTATED),
        "shape": (lambda: proper(tensor(wrong_shape)), argument),
        "many axes": (lambda: proper(tensor([1] * 5000)), argument),
        "dtype": (lambda: proper(tensor(dtype=f"f{rng.integers(99)}")), argument),
        "byte count": (lambda: proper(tensor(data=rng.bytes(100))), argument),
        "scales": (lambda: proper(tensor(scales=[1.0] * 7)), argument),
        "not finite": (lambda: proper(poisoned()), argument),
        "rows": (lambda: proper(tensor((MAX_ROWS + 1, *row))), argument),
        "oversize": (lambda: proper(tensor(data=bytes(200_000))), {"RESOURCE_EXHAUSTED"}),
        "version": (lambda: proper(version=int(rng.integers(2, 2**32))), argument),
        "request id": (lambda: proper(request_id=rng.bytes(15)), argument),
        "model": (lambda: proper(model_id=rng.bytes(8).hex()), condition),
        "no token": (proper, caller),
        "wrong token": (proper, caller),
        "old token": (proper, caller),
    }
    # Large ones are rare.
    weights = np.array([0.1 if name in ("oversize", "many axes") else 1.0 for name in kinds])
    name = list(kinds)[rng.choice(len(kinds), p=weights / weights.sum())]
    make, statuses = kinds[name]
    body = make()
    options = {
        "no token": {},
        "wrong token": {"metadata": (("authorization", f"Bearer {rng.bytes(9).hex()}"),)},
        "old token": {"metadata": (("authorization", "Bearer o"),)},
    }.get(name, STRANGE)
    return name, body, options, statuses


def header(name, value):
    """One header for HTTP/2, spelled out (RFC 7541, 6.2.2)."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


def frame(kind, flags, stream, payload):
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADERS = b"".join(
    header(*pair)
    for pair in (
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", wire.RUN.encode()),
        (b":authority", b"x"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
        (b"authorization", b"Bearer w"),
    )
)


def rude_socket(address, kind):
    """A connection that says nothing, half a greeting, garbage, or a tenth of a request."""
    opened = socket.create_connection(address, timeout=10)
    start = PREFACE + frame(4, 0, 0, b"")
    opened.sendall(
        {
            "silent": b"",
            "half": PREFACE[:10],
            "garbage": os.urandom(300),
            "greeted": start,
            # A message of 1000 bytes is announced, 100 come.
            "slow": start
            + frame(1, 4, 1, HEADERS)
            + frame(0, 0, 1, b"\0" + struct.pack(">I", 1000) + bytes(100)),
        }[kind]
    )
    if kind == "slow":
        threading.Thread(target=answer_pings, args=(opened,), daemon=True).start()
    return opened


def answer_pings(opened):
    """Until the connection ends, as every client does: else that is why it is closed."""
    with contextlib.suppress(OSError), opened.makefile("rb") as stream:
        opened.settimeout(None)
        while len(head := stream.read(9)) == 9:
            payload = stream.read(int.from_bytes(head[:3]))
            if head[3] == 6 and not head[4] & 1:
                opened.sendall(frame(6, 1, 0, payload))


async def well_behaved(client, model_id, cases, stop):
    """Calls one after another until stopped; every answer must be right."""
    answered, slowest = 0, 0.0
    while not stop.is_set():
        x, expected = cases[answered % len(cases)]
        start = time.perf_counter()
        answer = await client.rows(request(model_id, x), timeout=60, **GOOD)
        slowest = max(slowest, time.perf_counter() - start)
        np.testing.assert_array_equal(answer, expected)
        answered += 1
        await asyncio.sleep(0.005)
    return answered, slowest


async def bombard(client, model, model_id, count, seed):
    """Sends ``count`` malformed requests, 16 at once; returns how many of each kind."""
    sent = collections.Counter()
    numbers = iter(range(count))

    async def worker(rng):
        for _ in numbers:
            name, body, options, statuses = malformed(rng, model, model_id)
            try:
                await client.run(body, timeout=60, **options)
                status = "OK"
            except grpc.aio.AioRpcError as error:
                status = error.code().name
            assert status in statuses, (name, status)
            sent[name] += 1

    async with asyncio.TaskGroup() as group:
        for generator in np.random.default_rng(seed).spawn(16):
            group.create_task(worker(generator))
    return sent


def deadline_refusals(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as page:
        text = page.read().decode()
    lines = [n for n in text.splitlines() if n.startswith("facemix_requests_total")]
    return sum(float(n.split()[-1]) for n in lines if "DEADLINE_EXCEEDED" in n)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def attack(folder, count, sockets):
    """Runs everything at once; returns the figures."""
    workdir = folder / "run"
    model, variables = save_checkpoint(workdir)
    (folder / "tokens").write_text(TOKENS)
    (folder / "tokens").chmod(0o600)
    metrics_port = free_port()
    process = Process(
        folder,
        *("--workdir", workdir, "--port", 0, "--tokens", folder / "tokens"),
        *("--max-rows", MAX_ROWS, "--queue-rows", 32, "--metrics-port", metrics_port),
    )
    cases = [
        (x, reference(model, variables, x))
        for x in (activations(model, 1 + seed % MAX_ROWS, seed) for seed in range(16))
    ]
    opened = []

    async def go():
        async with Client(process) as strangers, Client(process) as good:
            model_id = (await good.describe(**GOOD)).model_id
            await bombard(strangers, model, model_id, 500, seed=1)
            before = process.resident_bytes
            address = ("127.0.0.1", process.port)
            for kind, number in sockets.items():
                opened.extend((kind, rude_socket(address, kind)) for _ in range(number))
            for _, one in opened[::7]:
                one.close()  # some go without a word
            stop = asyncio.Event()
            friend = asyncio.create_task(well_behaved(good, model_id, cases, stop))
            start = time.perf_counter()
            sent = await bombard(strangers, model, model_id, count, seed=0)
            seconds = time.perf_counter() - start
            stop.set()
            answered, slowest = await friend
            return sent, seconds, answered, slowest, process.resident_bytes - before

    try:
        sent, seconds, answered, slowest, growth = asyncio.run(go())
        figures = {
            "requests": sent.total(),
            "seconds": round(seconds, 1),
            "good answers": answered,
            "slowest good answer (s)": round(slowest, 3),
            "RSS growth (MiB)": round(growth / MIB, 1),
            "refused for slowness": deadline_refusals(metrics_port),
        }
        print(figures, dict(sent))
        for _, one in opened:
            one.close()
        assert process.stop() == 0
    finally:
        process.kill()
        for _, one in opened:
            one.close()
    assert sent.total() == count
    assert len(sent) == 16
    return figures


@pytest.mark.slow
def test_2000_malformed_requests(tmp_path):
    sockets = {"silent": 10, "half": 10, "garbage": 10, "greeted": 10, "slow": 10}
    figures = attack(tmp_path, 2_000, sockets)
    assert figures["good answers"] > 20
    assert figures["RSS growth (MiB)"] < 48


@pytest.mark.slow
def test_100000_malformed_requests(tmp_path):
    sockets = {"silent": 100, "half": 100, "garbage": 100, "greeted": 100, "slow": 40}
    figures = attack(tmp_path, 100_000, sockets)
    assert figures["good answers"] > 1000
    assert figures["RSS growth (MiB)"] < 48
    assert figures["refused for slowness"] >= 30  # less those that went away
