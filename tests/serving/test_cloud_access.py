"""Who may call the cloud, and over what: tokens, TLS, mutual TLS."""

import asyncio
import hashlib

import grpc
import pytest
from cloud_support import Client, activations, certificate, health_of, request, running

from facemix_jax._validate import FacemixError, UsageError
from facemix_jax.serving import access, probe
from facemix_jax.serving.cloud_config import CloudConfig


def test_tls_is_served_and_plain_text_then_refused(trained, tmp_path):
    workdir, model, _ = trained
    chain, key = certificate(tmp_path, "server")
    other, _ = certificate(tmp_path, "other")

    async def go():
        async with running(workdir, tls_cert=chain, tls_key=key) as cloud:
            message = request(cloud, activations(model, 1))
            trusted = grpc.ssl_channel_credentials(chain.read_bytes())
            async with Client(cloud, credentials=trusted) as client:
                assert len(await client.rows(message)) == 1
            ask = ["--address", f"127.0.0.1:{cloud.port}", "--ca"]
            assert await asyncio.to_thread(probe.main, [*ask, str(chain)]) == 0
            assert await asyncio.to_thread(probe.main, [*ask, str(other)]) == 1
            untrusted = grpc.ssl_channel_credentials(other.read_bytes())
            for credentials in (untrusted, None):
                async with Client(cloud, credentials=credentials) as client:
                    assert (await client.refusal(message, timeout=5))[0] == "UNAVAILABLE"

    asyncio.run(go())


def test_mutual_tls_requires_and_names_the_client(trained, tmp_path):
    workdir, model, _ = trained
    chain, key = certificate(tmp_path, "server")
    phone, phone_key = certificate(tmp_path, "phone")
    thief, thief_key = certificate(tmp_path, "thief")

    async def go():
        options = {"tls_cert": chain, "tls_key": key, "client_ca": phone, "client_rows": 4}
        async with running(workdir, **options) as cloud:
            message = request(cloud, activations(model, 2))

            def credentials(*pair):
                pem = [path.read_bytes() for path in pair]
                return grpc.ssl_channel_credentials(chain.read_bytes(), *reversed(pem))

            async with Client(cloud, credentials=credentials(phone, phone_key)) as client:
                cloud.service._rows.take("phone", 3)  # its name in the certificate
                status, words = await client.refusal(message)
                assert (status, "may have 4" in words) == ("RESOURCE_EXHAUSTED", True)
                assert len(await client.rows(request(cloud, activations(model, 1)))) == 1
            for pair in ((thief, thief_key), ()):
                async with Client(cloud, credentials=credentials(*pair)) as client:
                    assert (await client.refusal(message, timeout=5))[0] == "UNAVAILABLE"
            ask = ["--address", f"127.0.0.1:{cloud.port}", "--ca", str(chain)]
            for pair, code in (((phone, phone_key), 0), ((thief, thief_key), 1)):
                files = ["--certificate", str(pair[0]), "--private-key", str(pair[1])]
                assert await asyncio.to_thread(probe.main, [*ask, *files]) == code

    asyncio.run(go())


TOKENS = """
# name secret expiry
phone   sha256:{digest}
tablet  plain-token  2999-01-01T00:00:00+00:00
old     old-token    2001-01-01T00:00:00+00:00
"""


@pytest.fixture
def token_file(tmp_path):
    path = tmp_path / "tokens"
    path.write_text(TOKENS.format(digest=hashlib.sha256(b"hashed-token").hexdigest()))
    path.chmod(0o600)
    return path


def test_tokens_are_required_and_expire(trained, token_file):
    workdir, model, _ = trained

    def bearer(token):
        return {"metadata": (("authorization", f"Bearer {token}"),)}

    async def go():
        async with running(workdir, tokens=token_file) as cloud, Client(cloud) as client:
            message = request(cloud, activations(model, 1))
            for token in ("hashed-token", "plain-token"):
                assert len(await client.rows(message, **bearer(token))) == 1
            for options, words in (
                ({}, "no bearer token"),
                ({"metadata": (("authorization", "Basic abc"),)}, "no bearer token"),
                (bearer("wrong"), "unknown"),
                (bearer("sha256:" + "0" * 64), "unknown"),
                (bearer("old-token"), "expired at 2001-01-01"),
            ):
                status, details = await client.refusal(message, **options)
                assert (status, words in details) == ("UNAUTHENTICATED", True), details
            assert await health_of(client) == "SERVING"  # probes carry no token
            token_file.write_text("phone new-token\n")
            await cloud.reload()  # as it is called every few seconds
            assert (await client.refusal(message, **bearer("plain-token")))[0] == "UNAUTHENTICATED"
            assert len(await client.rows(message, **bearer("new-token"))) == 1

    asyncio.run(go())


def test_tokens_that_became_unreadable_or_wrong_leave_those_known(trained, token_file, caplog):
    async def go():
        async with running(trained[0], tokens=token_file) as cloud:
            known = cloud.service.tokens

            def failures():
                return [r.fields["reason"] for r in caplog.records if "failed" in r.message]

            for spoil, words in (
                (lambda: token_file.write_text("phone\n"), "line 1 has 1 words"),
                (lambda: token_file.unlink(), "cannot be read"),
                (lambda: token_file.mkdir(), "cannot be read"),
            ):
                caplog.clear()
                spoil()
                for _ in range(2):
                    await cloud.reload()
                (reason,) = failures()  # and not at every look
                assert words in reason
                assert reason.endswith("The tokens known so far stay valid.")
                assert cloud.service.tokens is known
            token_file.rmdir()
            token_file.write_text("phone new-token\n")
            token_file.chmod(0o600)
            await cloud.reload()
            new = cloud.service.tokens
            assert new.client("Bearer new-token") == "phone"
            await cloud.reload()
            assert cloud.service.tokens is new

    asyncio.run(go())


def test_the_last_token_is_revoked_as_others_are(trained, token_file, caplog):
    async def go():
        async with running(trained[0], tokens=token_file) as cloud, Client(cloud) as client:
            message = request(cloud, activations(trained[1], 1))
            bearer = {"metadata": (("authorization", "Bearer plain-token"),)}
            assert len(await client.rows(message, **bearer)) == 1
            token_file.write_text("# tablet plain-token\n")
            await cloud.reload()
            for options in (bearer, {}):
                assert (await client.refusal(message, **options))[0] == "UNAUTHENTICATED"
            (record,) = (r for r in caplog.records if r.message == "tokens read")
            assert record.levelname == "WARNING"
            assert "nobody can call" in record.fields["reason"]

    asyncio.run(go())


def test_a_token_is_taken_whole_and_comments_start_words(tmp_path):
    path = tmp_path / "tokens"
    path.write_text("#all of them\nphone x#y  # a comment #\n\t# another\ntablet z #comment\n")
    path.chmod(0o600)
    tokens = access.Tokens(path)
    assert (tokens.client("Bearer x#y"), tokens.client("Bearer z")) == ("phone", "tablet")
    with pytest.raises(access.UnauthenticatedError):
        tokens.client("Bearer x")


def test_a_hash_in_capitals_is_a_hash_and_no_token(tmp_path):
    path, digest = tmp_path / "tokens", hashlib.sha256(b"secret-one").hexdigest()
    path.write_text(f"phone SHA256:{digest.upper()}\n")
    path.chmod(0o644)  # as of any file of hashes
    tokens = access.Tokens(path)
    assert tokens.client("Bearer secret-one") == "phone"
    with pytest.raises(access.UnauthenticatedError):
        tokens.client(f"Bearer SHA256:{digest.upper()}")


@pytest.mark.parametrize(
    ("text", "mode", "words"),
    [
        ("", 0o600, "holds no token"),
        ("phone\n", 0o600, "line 1 has 1 words"),
        ("phone sha256:12\n", 0o600, "64 hexadecimal"),
        ("phone sha256:xy\n", 0o600, "64 hexadecimal"),
        ("phone SHA256:12\n", 0o600, "64 hexadecimal"),
        ("\nphone SECRET tomorrow\n", 0o600, "line 2.*ISO 8601"),
        ("phone SECRET 2999-01-01\n", 0o600, "zone"),
        ("phone 2999-01-01T00:00:00Z\n", 0o600, "line 1 holds a name and an expiry"),
        (f"# one\nsha256:{64 * '0'} SECRET\n", 0o600, "line 2 starts with a hash"),
        (f"SHA256:{64 * '0'} SECRET 2999-01-01T00:00:00Z\n", 0o600, "starts with a hash"),
        ("phone SECRET\n", 0o644, "everyone may read"),
    ],
)
def test_wrong_token_files_are_explained_without_their_secrets(tmp_path, text, mode, words):
    path = tmp_path / "tokens"
    path.write_text(text)
    path.chmod(mode)
    with pytest.raises(FacemixError, match=words) as caught:
        access.Tokens(path)
    assert "SECRET" not in str(caught.value).replace("NAME SECRET", "")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"host": "0.0.0.0"}, "not loopback.*--tls-cert.*--insecure"),
        ({"host": "example.org"}, "not loopback"),
        ({"tls_cert": "c"}, "--tls-cert and --tls-key"),
        ({"client_ca": "c"}, "requires TLS"),
        ({"tls_cert": "c", "tls_key": "k", "insecure": True}, "contradicts"),
        ({"port": 70000}, "port is 70000"),
        ({"max_rows": 0}, "max_rows is 0"),
        ({"queue_rows": 5}, "queue_rows is 5.*max_rows"),
        ({"client_rows": 0}, "client_rows is 0"),
    ],
)
def test_wrong_configurations_are_refused(tmp_path, options, words):
    with pytest.raises(UsageError, match=words):
        CloudConfig(workdir=tmp_path, **options)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1", "localhost", "::1", "[::1]"])
def test_plain_text_is_fine_on_loopback(tmp_path, host):
    assert CloudConfig(workdir=tmp_path, host=host).tls_cert is None
    assert CloudConfig(workdir=tmp_path, host="0.0.0.0", insecure=True).tls_cert is None
    with pytest.raises(UsageError, match="insecure"):  # the control
        CloudConfig(workdir=tmp_path, host="0.0.0.0")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--ca", "none.pem"], "none.pem cannot be read: No such file"),
        (["--ca", "none.pem", "--certificate", "phone.pem"], "Give all of them"),
        (["--certificate", "phone.pem", "--private-key", "phone.key"], "Give all of them"),
        (["--ca", "text"], "ca text holds no PEM block"),
        (["--server-name", "facemix-cloud"], "--server-name is for TLS"),
    ],
)
def test_a_probe_that_is_used_wrongly_says_so(tmp_path, monkeypatch, capsys, given, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").write_text("no certificate")
    with pytest.raises(SystemExit) as stopped:
        probe.main(["--address", "localhost:1", *given])
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err
