"""Clouds of all kinds for the tests of the edge: real ones, lying ones, slow links, processes."""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time

import grpc
import numpy as np
from tiny_source import TinySource

from facemix_jax.serving import wire
from facemix_jax.serving import wire_pb2 as pb
from facemix_jax.serving.edge import Connection, EdgeClient, EdgeConfig


class Loop:
    """An event loop in a thread, for servers beside a synchronous test."""

    def __enter__(self):
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        return self

    def do(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(60)

    def __exit__(self, *error):
        async def cancel_all():
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self.do(cancel_all())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


class FakeCloud:
    """Answers every Run by ``answer(request) -> RunResponse | bytes | StatusCode``."""

    def __init__(self, loop, answer):
        self.requests = []
        self.max_rows = 1024
        self.described = 0
        self.metadata = []
        self._loop = loop
        self.answer = answer

        async def run(body, context):
            request = pb.RunRequest.FromString(body)
            self.requests.append(request)
            self.metadata.append(dict(context.invocation_metadata()))
            answered = self.answer(request)
            if isinstance(answered, grpc.StatusCode):
                await context.abort(answered, "On purpose.")
            if isinstance(answered, float):
                await asyncio.sleep(answered)
                await context.abort(grpc.StatusCode.INTERNAL, "too late")
            return answered if isinstance(answered, bytes) else answered.SerializeToString()

        async def describe(_, context):
            self.described += 1
            return pb.DescribeResponse(max_rows=self.max_rows).SerializeToString()

        async def start():
            self._server = grpc.aio.server(
                options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)]
            )
            calls = {"Run": run, "Describe": describe}
            methods = {n: grpc.unary_unary_rpc_method_handler(f) for n, f in calls.items()}
            handler = grpc.method_handlers_generic_handler(wire.SERVICE, methods)
            self._server.add_generic_rpc_handlers((handler,))
            self.port = self._server.add_insecure_port("127.0.0.1:0")
            await self._server.start()

        loop.do(start())
        self.address = f"127.0.0.1:{self.port}"

    def stop(self):
        async def stop():
            await self._server.stop(0)
            self._server = None  # its finaliser needs the loop
            await asyncio.sleep(0.05)

        self._loop.do(stop())


def honest(model, variables, chunk=4):
    """An answer function that runs main as the real cloud does."""
    from cloud_support import reference

    def answer(request):
        rows = wire.decode(
            request.activations, row_shape=model.spec.activation_shape, max_rows=1024
        )
        return pb.RunResponse(
            version=request.version,
            model_id=request.model_id,
            request_id=request.request_id,
            responses=wire.encode(np.asarray(reference(model, variables, rows, chunk))),
        )

    return answer


class Proxy:
    """A TCP link to ``port``: keeps what passes, delays it, and limits the bytes per second."""

    def __init__(self, loop, port, *, delay=0.0, up=None, down=None):
        self.up, self.down = bytearray(), bytearray()
        self._loop = loop
        self._writers = []
        self._lost = set()

        async def pump(reader, writer, kept, rate):
            queue = asyncio.Queue()

            async def deliver():
                while True:
                    due, chunk = await queue.get()
                    await asyncio.sleep(max(due - loop.loop.time(), 0))
                    if not chunk:
                        break
                    writer.write(chunk)
                    await writer.drain()
                writer.close()

            delivering = asyncio.create_task(deliver())
            free_at = 0.0
            with contextlib.suppress(ConnectionError):
                while chunk := await reader.read(4096):
                    kept += chunk
                    if writer in self._lost:
                        continue
                    # The link is busy for as long as the bytes take, one chunk after the other.
                    free_at = max(free_at, loop.loop.time()) + (len(chunk) / rate if rate else 0)
                    queue.put_nowait((free_at + delay, chunk))
            queue.put_nowait((loop.loop.time() + delay, b""))
            with contextlib.suppress(ConnectionError):
                await delivering

        async def connect(reader, writer):
            there = await asyncio.open_connection("127.0.0.1", port)
            self._writers += [writer, there[1]]
            await asyncio.gather(
                pump(reader, there[1], self.up, up), pump(there[0], writer, self.down, down)
            )

        async def start():
            self._server = await asyncio.start_server(connect, "127.0.0.1", 0)
            return self._server.sockets[0].getsockname()[1]

        self.port = loop.do(start())
        self.address = f"127.0.0.1:{self.port}"

    @property
    def connections(self):
        """How many were made."""
        return len(self._writers) // 2

    def lose(self):
        """Swallows from now on what is sent over the connections that there are."""
        self._lost.update(self._writers)

    def close(self):
        async def close():
            self._server.close()
            for writer in self._writers:
                writer.close()
            for writer in self._writers:
                with contextlib.suppress(ConnectionError):
                    await writer.wait_closed()

        self._loop.do(close())


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Process:
    """``facemix serve`` in a process of its own, on a fixed port."""

    def __init__(self, workdir, *options):
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self._command = [sys.executable, "-m", "facemix_jax", "serve"]
        self._command += ["--workdir", str(workdir), "--port", str(self.port), *options]
        self.start()

    def start(self):
        self.process = subprocess.Popen(
            self._command, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
        )
        self.ready = threading.Event()
        threading.Thread(target=self._read, args=(self.process,), daemon=True).start()

    def _read(self, process):
        with process.stderr as lines:
            for line in lines:
                with contextlib.suppress(ValueError):
                    if "serving" in json.loads(line).values():
                        self.ready.set()

    def wait(self, seconds=90):
        start = time.monotonic()
        while not self.ready.wait(0.1):
            assert self.process.poll() is None, "the server ended"
            assert time.monotonic() - start < seconds, "the server does not get ready"
        return self

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        self.process.terminate()
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()
            return None


M = 4


FAST = {"timeout_s": 10.0, "give_up_s": 10.0}


def client_of(trained, root, *addresses, say=lambda text: None, **options):
    config = EdgeConfig(**{**FAST, **options})
    return EdgeClient(trained[0], root, Connection(clouds=addresses), config, say)


def pictures(count, start=0):
    return TinySource().images(np.arange(start, start + count))


def sent_rows(request):
    tensor = request.activations
    return np.frombuffer(tensor.data, np.float32).reshape(tensor.shape[0], -1)


def with_response(change):
    """Turns an honest answer into another one."""

    def make(answer):
        def lie(request):
            response = answer(request)
            change(response)
            return response

        return lie

    return make
