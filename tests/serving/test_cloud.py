"""The service: right answers, a status for everything wrong, and what changes while it runs."""

import asyncio
import logging
import re
import socket
import urllib.request

import jax
import numpy as np
import pytest
from cloud_support import (
    Client,
    activations,
    certificate,
    health_of,
    reference,
    request,
    running,
)
from cryptography.hazmat.primitives import serialization
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from facemix_jax._validate import FacemixError, UsageError
from facemix_jax.serving import wire
from facemix_jax.serving import wire_pb2 as pb
from facemix_jax.serving.batching import Runner
from facemix_jax.serving.cloud import Cloud
from facemix_jax.serving.cloud_config import CloudConfig


def test_answers_equal_main_in_this_process_bit_for_bit(trained):
    workdir, model, variables = trained

    async def go():
        async with running(workdir) as cloud, Client(cloud) as client:
            for rows in (1, 4, 6, 16, 64):
                x = activations(model, rows, seed=rows)
                answer = await client.rows(request(cloud, x))
                np.testing.assert_array_equal(answer, reference(model, variables, x))
            # One group: the jitted main itself.
            x = activations(model, 4)
            whole = jax.jit(model.main.apply)(variables["main"], x)
            np.testing.assert_array_equal(await client.rows(request(cloud, x)), whole)

    asyncio.run(go())


@pytest.mark.parametrize("exact", [True, False])
def test_requests_served_together_get_their_own_rows(trained, exact):
    workdir, model, variables = trained

    async def go():
        options = {"exact": exact, "max_wait_ms": 20, "max_rows": 16}
        async with running(workdir, **options) as cloud, Client(cloud) as client:
            xs = [activations(model, 1 + i % 7, seed=i) for i in range(40)]
            answers = await asyncio.gather(*(client.rows(request(cloud, x)) for x in xs))
            batches = cloud.metrics.registry.get_sample_value("facemix_batch_rows_count")
        for x, answer in zip(xs, answers, strict=True):
            expected = reference(model, variables, x)
            if exact:
                np.testing.assert_array_equal(answer, expected)
            else:
                np.testing.assert_allclose(answer, expected, rtol=1e-4, atol=1e-5)
        assert batches < 40  # rows of several requests ran together

    asyncio.run(go())


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.05), ("int8", 0.05)])
def test_shorter_encodings_are_decoded(trained, dtype, tolerance):
    workdir, model, variables = trained

    async def go():
        x = activations(model, 4)
        async with running(workdir) as cloud, Client(cloud) as client:
            sent = wire.encode(x, dtype)
            answer = await client.rows(request(cloud, sent))
            received = wire.decode(sent, row_shape=x.shape[1:], max_rows=4)
            np.testing.assert_array_equal(answer, reference(model, variables, received))
            exact = reference(model, variables, x)
            assert np.abs(answer - exact).max() < tolerance * np.abs(exact).max()

    asyncio.run(go())


def test_it_describes_itself_and_is_healthy(trained):
    workdir, model, variables = trained

    async def go():
        async with running(workdir, max_rows=32) as cloud, Client(cloud) as client:
            about = await client.describe()
            assert about.version == wire.VERSION
            assert about.model_id == wire.model_id(variables["main"], model.spec)
            assert tuple(about.activation_shape) == model.spec.activation_shape
            assert tuple(about.response_shape) == model.spec.response_shape
            assert (about.max_rows, tuple(about.dtypes)) == (32, wire.DTYPES)
            assert await health_of(client) == "SERVING"
            assert await health_of(client, wire.SERVICE) == "SERVING"
            stub = reflection_pb2_grpc.ServerReflectionStub(client.channel)
            ask = reflection_pb2.ServerReflectionRequest(file_containing_symbol=wire.SERVICE)
            [answer] = [a async for a in stub.ServerReflectionInfo(iter([ask]))]
            [file] = answer.file_descriptor_response.file_descriptor_proto
            found = descriptor_pb2.FileDescriptorProto.FromString(file)
            assert [method.name for method in found.service[0].method] == ["Run", "Describe"]

    asyncio.run(go())


def test_a_request_of_as_many_rows_as_it_says_is_never_more_than_a_clients_share(trained):
    workdir, model, _ = trained

    async def go():
        async with running(workdir, client_rows=8) as cloud, Client(cloud) as client:
            assert (await client.describe()).max_rows == 8
            assert len(await client.rows(request(cloud, activations(model, 8)))) == 8
            status, words = await client.refusal(request(cloud, activations(model, 9)))
            assert (status, "1 to 8" in words) == ("INVALID_ARGUMENT", True)  # for good

    asyncio.run(go())


def test_every_wrong_request_gets_its_status(trained):
    workdir, model, _ = trained
    x = activations(model, 4)
    tensor = wire.encode(x)
    nan = pb.Tensor(shape=x.shape, dtype="float32", data=np.full_like(x, np.nan).tobytes())

    def changed(**fields):
        other = pb.Tensor()
        other.CopyFrom(tensor)
        for name, value in fields.items():
            if name == "shape":
                del other.shape[:]
                other.shape.extend(value)
            else:
                setattr(other, name, value)
        return other

    async def go():
        async with running(workdir, max_rows=8, queue_rows=16) as cloud, Client(cloud) as client:
            for message, status, words in (
                (b"\xff\xff", "INVALID_ARGUMENT", "2 bytes are no facemix.v1.RunRequest"),
                (b"", "INVALID_ARGUMENT", "version is 0.*speaks 1"),
                (request(cloud, x, version=2), "INVALID_ARGUMENT", "version is 2.*speaks 1"),
                (request(cloud, x, request_id=b"1"), "INVALID_ARGUMENT", "1 bytes.*have 16"),
                (request(cloud, x, model_id="other"), "FAILED_PRECONDITION", "'other'.*step 1"),
                (request(cloud, nan), "INVALID_ARGUMENT", "NaN"),
                (request(cloud, changed(dtype="f64")), "INVALID_ARGUMENT", "f64.*float32"),
                (request(cloud, changed(shape=[4, 1])), "INVALID_ARGUMENT", "2 axes"),
                (request(cloud, changed(data=b"12")), "INVALID_ARGUMENT", "2 bytes"),
                (request(cloud, activations(model, 9)), "INVALID_ARGUMENT", "9 rows.*1 to 8"),
                (request(cloud, activations(model, 80)), "RESOURCE_EXHAUSTED", "larger than max"),
            ):
                found, details = await client.refusal(message)
                assert found == status, details
                assert re.search(words, details), details
            # Nothing is left behind, and the next request is answered.
            assert (cloud.rows, cloud.service.open_calls) == (0, 0)
            assert len(await client.rows(request(cloud, x))) == 4

    asyncio.run(go())


def test_a_fault_of_main_reaches_its_own_requests_only(trained, monkeypatch, caplog):
    workdir, model, _ = trained

    async def go():
        async with running(workdir) as cloud, Client(cloud) as client:
            x = activations(model, 1)
            with monkeypatch.context() as patch:
                patch.setattr(Runner, "__call__", lambda *arguments: 1 / 0)
                status, words = await client.refusal(request(cloud, x))
            assert (status, "fault of the cloud" in words) == ("INTERNAL", True)
            assert "zero" not in words
            assert len(await client.rows(request(cloud, x))) == 1

    with caplog.at_level(logging.CRITICAL, "facemix.cloud"):
        asyncio.run(go())


def test_what_cannot_start_is_explained(trained, tmp_path):
    workdir, _, _ = trained
    with pytest.raises(UsageError, match=r"no work directory.*--workdir"):
        Cloud(CloudConfig(workdir=tmp_path))
    with pytest.raises(UsageError, match=r"no work directory"):
        Cloud(CloudConfig(workdir=workdir / "config.json"))
    (tmp_path / "config.json").write_text((workdir / "config.json").read_text())
    with pytest.raises(UsageError, match="Train first"):
        Cloud(CloudConfig(workdir=tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(FacemixError, match="cannot be read"):
        Cloud(CloudConfig(workdir=tmp_path))
    with pytest.raises(UsageError, match=r"groups of 4.*--max-rows 4"):
        Cloud(CloudConfig(workdir=workdir, max_rows=2))
    with pytest.raises(UsageError, match=r"client_rows is 3.*groups of 4.*--client-rows 4"):
        Cloud(CloudConfig(workdir=workdir, client_rows=3))
    with pytest.raises(UsageError, match=r"below 2 GiB.*at most --max-rows \d+\.$") as refused:
        Cloud(CloudConfig(workdir=workdir, max_rows=10**9, queue_rows=10**9))
    most = int(str(refused.value).rpartition(" ")[2].rstrip("."))
    Cloud(CloudConfig(workdir=workdir, max_rows=most, queue_rows=most))
    with pytest.raises(UsageError, match=r"tls_cert .*cannot be read"):
        Cloud(CloudConfig(workdir=workdir, tls_cert=tmp_path / "no", tls_key=tmp_path / "no"))
    (chain, key), (_, other) = (certificate(tmp_path, name) for name in ("server", "other"))
    garbage, locked = tmp_path / "garbage", tmp_path / "locked"
    garbage.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    locked.write_bytes(
        serialization.load_pem_private_key(key.read_bytes(), None).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"word"),
        )
    )
    for pair in ((chain, other), (garbage, key), (key, chain), (chain, locked)):
        files = f"tls_cert {pair[0]} and tls_key {pair[1]} cannot be used together"
        with pytest.raises(UsageError, match=re.escape(files)):  # before the work directory's
            Cloud(CloudConfig(workdir=tmp_path, tls_cert=pair[0], tls_key=pair[1]))
    pair = {"tls_cert": chain, "tls_key": key}
    for authority in (garbage, key):
        with pytest.raises(UsageError, match=f"client_ca {authority} holds no certificate"):
            Cloud(CloudConfig(workdir=tmp_path, client_ca=authority, **pair))
    with pytest.raises(FacemixError, match="cannot be read"):  # of config.json: the control
        Cloud(CloudConfig(workdir=tmp_path, client_ca=chain, **pair))

    async def go():
        async with running(workdir) as cloud:
            second = Cloud(CloudConfig(workdir=workdir, port=cloud.port))
            with pytest.raises(FacemixError, match=r"cannot listen.*--port"):
                await second.start()
            third = Cloud(CloudConfig(workdir=workdir, port=0, metrics_port=cloud.port))
            with pytest.raises(FacemixError, match=f"127.0.0.1, metrics_port {cloud.port}:"):
                await third.start()

    asyncio.run(go())


def test_metrics_are_told_on_an_ipv6_host_in_brackets(trained):
    with socket.socket(socket.AF_INET6) as taken:
        try:
            taken.bind(("::1", 0))
        except OSError:
            pytest.skip("no IPv6 here")
        port = taken.getsockname()[1]

    async def go():
        async with running(trained[0], host="[::1]", metrics_port=port):
            address = f"http://[::1]:{port}/metrics"
            page = await asyncio.to_thread(urllib.request.urlopen, address)
            with page:
                assert b"facemix_" in page.read()

    asyncio.run(go())


def test_packed_sizes_are_powers_of_two():
    assert Runner(24, None).sizes == (1, 2, 4, 8, 16, 32)
    assert Runner(1, None).sizes == (1,)
    assert Runner(64, 8).sizes == (8,)
