"""Certificates of the cloud that are renewed while it runs, and those about to end."""

import asyncio
import shutil

import grpc
import pytest
from cloud_support import Client, activations, certificate, request, running

from facemix_jax.serving.certificates import Certificates


def test_renewed_certificates_are_taken_over(trained, tmp_path, caplog):
    workdir, model, _ = trained
    new, new_key = certificate(tmp_path, "new")
    old = shutil.copy(certificate(tmp_path, "server")[0], tmp_path / "old.pem")
    used = tmp_path / "server.pem", tmp_path / "server.key"
    phone, tablet = certificate(tmp_path, "phone"), certificate(tmp_path, "tablet")
    clients = shutil.copy(phone[0], tmp_path / "clients.pem")

    async def go():
        options = {"tls_cert": used[0], "tls_key": used[1], "client_ca": clients}
        async with running(workdir, **options) as cloud:
            message = request(cloud, activations(model, 1))

            async def answers(chain, client):
                """Whether a new connection is."""
                pem = [path.read_bytes() for path in (chain, *reversed(client))]
                credentials = grpc.ssl_channel_credentials(*pem)
                async with Client(cloud, credentials=credentials) as caller:
                    try:
                        return len(await caller.rows(message, timeout=5)) == 1
                    except grpc.aio.AioRpcError:
                        return False

            async def said():
                """What two looks log; the second says nothing."""
                caplog.clear()
                for _ in range(2):
                    await cloud.reload()
                (record,) = caplog.records
                return record.message, getattr(record, "fields", {}).get("reason", "")

            assert await answers(old, phone)
            assert not await answers(new, phone)
            assert not await answers(old, tablet)
            shutil.copy(new, used[0])  # and its key has not come yet
            event, reason = await said()
            assert event == "reload failed"
            assert "cannot be used together" in reason
            assert reason.endswith("The certificate known so far stays.")
            assert await answers(old, phone)
            shutil.copy(new_key, used[1])
            assert await said() == ("certificate read", "")
            assert await answers(new, phone)
            assert not await answers(old, phone)
            shutil.copy(tablet[0], clients)
            assert await said() == ("certificate read", "")
            assert await answers(new, tablet)
            assert not await answers(new, phone)
            used[0].unlink()
            assert "cannot be read" in (await said())[1]
            assert await answers(new, tablet)

    caplog.set_level("INFO", "facemix.cloud")
    asyncio.run(go())


@pytest.mark.parametrize(
    ("days", "words"),
    [((-30, -1), "expired at 2"), ((1, 30), "not valid before 2"), ((-1, 13), "ends at 2")],
)
def test_operators_are_warned_of_a_certificates_times(tmp_path, days, words):
    paths = certificate(tmp_path, "server")
    certificates = Certificates(*paths, None)
    assert certificates.warning() is None
    certificate(tmp_path, "server", days)
    certificates.read()
    assert words in certificates.warning()
