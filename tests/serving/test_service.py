"""What a call holds while its rows wait for main."""

import asyncio
import types
import weakref

import numpy as np
from cloud_support import request

from facemix_jax.serving import service
from facemix_jax.serving import wire_pb2 as pb
from facemix_jax.serving.telemetry import Metrics

SHAPE = (2, 2, 3)


def test_rows_that_wait_are_all_that_is_held_of_a_request(monkeypatch):
    held = []

    class Body(bytes):
        def __del__(self):
            held.remove("body")

    class Message(types.SimpleNamespace):
        """Unlike protobuf's, it can be watched."""

    class Call:
        def __getattr__(self, name):
            return lambda *arguments: {}

        async def read(self):
            held.append("body")
            return Body(request("model", np.ones((4, *SHAPE), np.float32)).SerializeToString())

        def peer(self):
            return "ipv4:127.0.0.1:1"

    class Waiting:
        async def submit(self, served, rows, *arguments):
            waiting.append((rows.shape, list(held)))
            return np.zeros((len(rows), 2), np.float32)

    def parsed(kind, body):
        real = kind.FromString(body)
        message = Message(**{field.name: value for field, value in real.ListFields()})
        held.append("message")
        weakref.finalize(message, held.remove, "message")
        return message

    monkeypatch.setattr(service, "_parse", parsed)
    waiting = []
    spec = types.SimpleNamespace(activation_shape=SHAPE)
    served = types.SimpleNamespace(model_id="model", step=1, spec=spec)
    limits = {"max_rows": 4, "client_rows": 4, "client_calls": 1, "all_calls": 1}
    calls = service.Service(
        served, Waiting(), **limits, tokens=None, receive_seconds=9, metrics=Metrics()
    )
    answer = asyncio.run(calls.answer("Run", Call()))
    assert isinstance(answer, pb.RunResponse)
    assert waiting == [((4, *SHAPE), [])]
