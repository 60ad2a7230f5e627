"""Serving: throughput, latency, the edge's share, bytes and accuracy of each encoding, in one run.

A cloud in a process of its own serves a trained work directory on loopback; a second process keeps
a number of calls open with requests mixed beforehand, so that the edge's own work does not compete
for the cores. In turns with it, main runs bare, jitted, in this process, at the batch size that the
cloud runs (a group); the cloud's throughput counts relative to the bare one of the same round.
Then one edge client measures its own parts, and the test images go through once in each encoding
under the same keys, so that accuracies differ by the encoding alone.

Wanted: at least 0.9 of the bare throughput at 32 clients; mixing and unmixing at most 2% of pre;
bfloat16 and int8 under 0.2 points of accuracy. A few minutes on two cores; everything else on the
machine should rest.

    python experiments/benchmarks/serving_speed.py --workdir runs/m8
"""

import argparse
import asyncio
import dataclasses
import json
import pathlib
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import numpy as np

from facemix_jax import _runtime
from facemix_jax._files import write_atomically

HERE = pathlib.Path(__file__).parent
RESULT = HERE.parent / "results" / "serving_speed.json"
PAUSE_S = 0.5
"""Between turns, so that the threads of the last one sleep."""


class Cloud:
    """``facemix serve`` in a process of its own."""

    def __init__(self, workdir: pathlib.Path, clients: int, rows: int) -> None:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{s.getsockname()[1]}"
        queue = str(2 * clients * rows)  # nothing is refused: that would be another measurement
        command = [sys.executable, "-m", "facemix_jax", "serve", "--workdir", str(workdir)]
        command += ["--port", self.address.rpartition(":")[2], "--max-rows", str(rows)]
        command += ["--queue-rows", queue, "--client-rows", queue]
        with tempfile.NamedTemporaryFile(delete=False, suffix=".log") as log:
            self._log = pathlib.Path(log.name)
            self.process = subprocess.Popen(command, stderr=log)
        while '"serving"' not in self._log.read_text():
            if self.process.poll() is not None:
                raise SystemExit(f"The cloud stopped:\n{self._log.read_text()}")
            time.sleep(0.2)

    def stop(self) -> None:
        """Drains it."""
        self.process.terminate()
        self.process.wait()
        self._log.unlink()


def load(address: str, body_file: str, clients: int, seconds: float) -> None:
    """The second process: keeps ``clients`` calls open and prints when each began and ended."""
    import grpc

    from facemix_jax.serving import wire

    body = pathlib.Path(body_file).read_bytes()
    calls: list[tuple[float, float]] = []

    async def client(number: int, start: float) -> None:
        options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(address, options) as channel:
            call = channel.unary_unary(wire.RUN)
            while (began := time.perf_counter()) < start + seconds:
                await call(body)
                calls.append((began - start, time.perf_counter() - start))

    async def all_clients() -> None:
        start = time.perf_counter()
        await asyncio.gather(*(client(number, start) for number in range(clients)))

    asyncio.run(all_clients())
    print(json.dumps(calls))


def served(address: str, body: pathlib.Path, clients: int, seconds: float, rows: int) -> Any:
    """Rows per second and seconds of each call, in the steady middle of a turn."""
    command = [sys.executable, __file__, "--load", address, str(body), str(clients), str(seconds)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    calls = json.loads(done.stdout)
    # The first and last calls of each client overlap with starting and stopping.
    low, high = 0.2 * seconds, seconds
    inside = [end - begin for begin, end in calls if low <= end < high]
    return len(inside) * rows / (high - low), [e - b for b, e in calls if b >= low]


def bare(main: Callable[[Any], Any], batches: Sequence[Any], seconds: float) -> float:
    """Rows per second of main alone; rows come from and go to the host, as in the cloud."""
    start, rows = time.perf_counter(), 0
    while time.perf_counter() < start + seconds:
        for batch in batches:
            np.asarray(main(batch))
            rows += len(batch)
    return rows / (time.perf_counter() - start)


def throughput(options: argparse.Namespace, segments: Any, images: Any, address: str) -> Any:
    """The cloud and bare main in turns."""
    from facemix_jax import keys
    from facemix_jax.serving import segments as parts
    from facemix_jax.serving import wire
    from facemix_jax.serving import wire_pb2 as pb

    size, rows = segments.group_size, options.request_rows
    identifier = secrets.token_bytes(16)
    root = keys.RootSecret(secrets.token_bytes(32))
    key = keys.fresh_mix_key(root, identifier, rows // size, size, shuffle=True)
    groups = images[:rows].reshape(-1, size, *images.shape[1:])
    sent = parts.in_order(key, parts.mix(key, [segments.pre(group) for group in groups]))
    request = pb.RunRequest(
        version=wire.VERSION,
        model_id=segments.model_id,
        request_id=identifier,
        activations=wire.encode(sent),
    )
    batches = list(sent.reshape(-1, size, *sent.shape[1:]))
    rates: dict[str, list[float]] = {"bare": [], "served": []}
    seconds: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        body = pathlib.Path(folder) / "request"
        body.write_bytes(request.SerializeToString())
        for index in range(options.rounds + 1):
            time.sleep(PAUSE_S)
            alone = bare(segments.main, batches, options.seconds)
            time.sleep(PAUSE_S)
            through, taken = served(address, body, options.clients, options.seconds, rows)
            print(f"round {index}: bare {alone:.1f}, served {through:.1f} rows/s", file=sys.stderr)
            if index:  # one round before is not counted
                rates["bare"].append(alone)
                rates["served"].append(through)
                seconds += taken
    share = statistics.median(s / b for s, b in zip(rates["served"], rates["bare"], strict=True))
    return {
        "rows_per_second": rates,
        "served_over_bare": share,
        "latency_s": {f"p{q}": float(np.percentile(seconds, q)) for q in (50, 99)},
        "calls_counted": len(seconds),
    }


def edge_share(options: argparse.Namespace, client: Any, images: Any) -> Any:
    """What the edge does, by part, while nothing else runs."""
    batch = images[: options.request_rows]
    client.infer(batch)
    timings = [dataclasses.asdict(client.infer(batch).timing) for _ in range(options.repeats)]
    seconds = {part: statistics.median(t[part] for t in timings) for part in timings[0]}
    shares = [(t["mix"] + t["unmix"]) / t["pre"] for t in timings]
    return {
        "seconds": seconds,
        "images": len(batch),
        "mixing_and_unmixing_over_pre": statistics.median(shares),
    }


def encodings(options: argparse.Namespace, root: Any, address: str, source: Any) -> Any:
    """Bytes per image and accuracy of each encoding under the same keys."""
    from facemix_jax.metrics import accuracy, attribute_counts, balanced_accuracy
    from facemix_jax.serving import edge, wire

    indices = source.splits["test"][: options.test_images]
    result: dict[str, Any] = {}
    for name in wire.DTYPES:
        counts, up, down = np.zeros((len(source.attribute_names), 2, 2), np.int64), 0, 0
        connection, config = edge.Connection(clouds=(address,)), edge.EdgeConfig(wire=name)
        with edge.EdgeClient(options.workdir, root, connection, config) as client:
            for start in range(0, len(indices), options.request_rows):
                part = indices[start : start + options.request_rows]
                # The same identifier, and so the same key, in each encoding: a study, no service.
                identifier = start.to_bytes(16, "big")
                with mock.patch.object(secrets, "token_bytes", return_value=identifier):
                    found = client.infer(source.images(part))
                mask = np.ones(len(part), bool)
                counts += attribute_counts(found.logits, source.attributes[part], mask)
                up, down = up + found.bytes_up, down + found.bytes_down
        result[name] = {
            "accuracy": float(accuracy(counts).mean()),
            "balanced_accuracy": float(balanced_accuracy(counts).mean()),
            "bytes_up_per_image": up / len(indices),
            "bytes_down_per_image": down / len(indices),
        }
    exact = result["float32"]
    for values in result.values():
        values["points_lost"] = 100 * (exact["accuracy"] - values["accuracy"])
        values["bytes_up_over_float32"] = values["bytes_up_per_image"] / exact["bytes_up_per_image"]
    return {"images": len(indices), **result}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints and writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=pathlib.Path)
    parser.add_argument("--load", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--request-rows", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=10.0, help="of a turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=30, help="of the edge's parts")
    parser.add_argument("--test-images", type=int, default=2048)
    parser.add_argument("--json", type=pathlib.Path, default=RESULT)
    options = parser.parse_args(arguments)
    if options.load:
        address, body, clients, seconds = options.load
        load(address, body, int(clients), float(seconds))
        return
    if options.workdir is None:
        parser.error("--workdir is needed: of a training run that mixes")
    _runtime.configure()
    from facemix_jax import data, keys, runs
    from facemix_jax.provenance import provenance
    from facemix_jax.serving import edge, segments

    record: dict[str, Any] = {"what": __doc__.splitlines()[0], **provenance()}
    config = runs.read_config(options.workdir)
    source = data.load_source(config.data)
    images = source.images(source.splits["test"][: options.request_rows])
    root = keys.RootSecret(secrets.token_bytes(32))
    cloud = Cloud(options.workdir, options.clients, options.request_rows)
    try:
        loaded = segments.load(options.workdir, with_main=True)
        record |= {
            "network": dataclasses.asdict(config.model),
            "image_size": loaded.spec.image_size,
            "group_size": loaded.group_size,
            "clients": options.clients,
            "request_rows": options.request_rows,
            "throughput": throughput(options, loaded, images, cloud.address),
        }
        with edge.EdgeClient(
            options.workdir, root, edge.Connection(clouds=(cloud.address,))
        ) as client:
            record["edge"] = edge_share(options, client, images)
        record["encodings"] = encodings(options, root, cloud.address, source)
    finally:
        cloud.stop()
    _print(record)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(options.json, json.dumps(record, indent=1) + "\n")


def _print(record: dict[str, Any]) -> None:
    speed, share = record["throughput"], record["edge"]
    for name in ("date", "commit", "processor", "cores", "load_average"):
        print(f"{name:14} {record[name]}")
    for name, rates in speed["rows_per_second"].items():
        print(f"{name:14} {statistics.median(rates):8.1f} rows/s")
    print(f"served / bare  {speed['served_over_bare']:.3f} (wanted: 0.9 or more)")
    latency = speed["latency_s"]
    print(f"latency        p50 {latency['p50']:.3f} s, p99 {latency['p99']:.3f} s")
    print(f"(mix + unmix) / pre  {share['mixing_and_unmixing_over_pre']:.2%} (wanted: 2% or less)")
    for part, seconds in share["seconds"].items():
        print(f"  {part:12} {1e3 * seconds:8.2f} ms")
    for name in ("float32", "bfloat16", "int8"):
        values = record["encodings"][name]
        print(
            f"{name:9} {values['accuracy']:.2%}, {values['points_lost']:+.3f} points lost, "
            f"{values['bytes_up_per_image']:,.0f} bytes up ({values['bytes_up_over_float32']:.3f})"
        )


if __name__ == "__main__":
    main()
