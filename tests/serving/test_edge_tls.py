"""The edge and certificates: mutual TLS, tokens, and what is refused before any work."""

import datetime
import ipaddress
import time

import numpy as np
import pytest
from cloud_support import certificate as dated_certificate
from cloud_support import running
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from edge_support import pictures
from tiny_source import TinySource

from facemix_jax._validate import UsageError
from facemix_jax.serving import edge
from facemix_jax.serving.clouds import check_files
from facemix_jax.serving.edge import Connection, EdgeClient, EdgeConfig


def certificate(folder, name, issuer=None, address="127.0.0.1"):
    """Writes NAME.pem and NAME.key; signed by ``issuer``, or by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    loopback = x509.IPAddress(ipaddress.ip_address(address))
    signed = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer[0].subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([loopback]), critical=False)
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .sign(issuer[1] if issuer else key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    (folder / f"{name}.pem").write_bytes(signed.public_bytes(encoding))
    (folder / f"{name}.key").write_bytes(
        key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return signed, key


def test_mutual_tls_with_a_token_and_what_is_refused(trained, root, loop, tmp_path):
    authority = certificate(tmp_path, "ca")
    for name in ("cloud", "phone"):
        certificate(tmp_path, name, authority)
    certificate(tmp_path, "stranger")
    (tmp_path / "tokens").write_text("phone correct-horse\n")
    (tmp_path / "tokens").chmod(0o600)
    for name, token in (
        ("good", "correct-horse"),
        ("bad", "wrong"),
        ("two", "a b"),
        ("bell", "a\a"),
    ):
        (tmp_path / name).write_text(f"{token}\n")
    context = running(
        trained[0],
        tls_cert=tmp_path / "cloud.pem",
        tls_key=tmp_path / "cloud.key",
        client_ca=tmp_path / "ca.pem",
        tokens=tmp_path / "tokens",
    )
    cloud = loop.do(context.__aenter__())

    def predict(ca="ca.pem", client="phone", token="good", **options):
        connection = Connection(
            clouds=(f"127.0.0.1:{cloud.port}",),
            ca=tmp_path / ca if ca else None,
            certificate=tmp_path / f"{client}.pem" if client else None,
            private_key=tmp_path / f"{client}.key" if client else None,
            token=tmp_path / token,
            **options,
        )
        config = EdgeConfig(timeout_s=5, give_up_s=0.5)
        with EdgeClient(trained[0], root, connection, config) as client:
            return client.predict(TinySource().images(np.arange(4)))

    try:
        assert predict().shape == (4, 3, 2)
        for options, words in (
            ({"ca": "stranger.pem"}, "CERTIFICATE_VERIFY_FAILED.*authority that signed it"),
            ({"client": None}, "UNAVAILABLE"),
            ({"ca": None, "client": None}, "UNAVAILABLE.*TLS"),  # plain text on loopback
            ({"token": "bad"}, "UNAUTHENTICATED.*valid token"),
        ):
            with pytest.raises(edge.CloudError, match=words):
                predict(**options)
        for options, words in (
            ({"token": "two"}, "one word"),
            ({"token": "bell"}, "printable ASCII"),
            ({"token": "missing"}, "cannot be read"),
            ({"ca": "good"}, "no PEM"),
            ({"ca": "cloud.key"}, "holds no certificate"),
        ):
            with pytest.raises(UsageError, match=words):
                predict(**options)
    finally:
        loop.do(context.__aexit__(None, None, None))


def test_a_call_ends_where_no_cloud_can_be_trusted(trained, root, loop, tmp_path):
    contexts, addresses = [], {}
    for name, address in (("ours", "127.0.0.1"), ("elsewhere", "127.0.0.9")):
        certificate(tmp_path, name, address=address)
    for name, days in (("expired", (-30, -1)), ("early", (1, 30))):
        dated_certificate(tmp_path, name, days)
    for name in ("ours", "elsewhere", "expired", "early"):
        pair = {"tls_cert": tmp_path / f"{name}.pem", "tls_key": tmp_path / f"{name}.key"}
        contexts.append(running(trained[0], **pair))
        addresses[name] = f"127.0.0.1:{loop.do(contexts[-1].__aenter__()).port}"

    def infer(ca, *names):
        connection = Connection(
            clouds=tuple(addresses[name] for name in names), ca=tmp_path / f"{ca}.pem"
        )
        with EdgeClient(trained[0], root, connection) as client:
            return client.infer(pictures(4))

    try:
        for ca, words in (("ours", "CERTIFICATE_VERIFY_FAILED"), ("elsewhere", "Hostname")):
            start = time.monotonic()
            with pytest.raises(edge.CloudError, match=f"{words}.*authority that signed it"):
                infer(ca, "elsewhere")
            assert time.monotonic() - start < 20  # not the 120 s for which calls are tried again
        for name in ("expired", "early"):
            with pytest.raises(
                edge.CloudError, match=r"must renew its certificate.*clock is wrong"
            ):
                infer(name, name)
        assert infer("ours", "elsewhere", "ours").logits.shape == (4, 3, 2)
    finally:
        for context in contexts:
            loop.do(context.__aexit__(None, None, None))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"clouds": ()}, "No cloud is given.*--cloud HOST:PORT"),
        ({"clouds": ("localhost",)}, "'localhost'.*HOST:PORT"),
        ({"clouds": ("::1:5",)}, r"'::1:5'.*\[::1\]:50051"),
        ({"clouds": ("a:0",)}, "port from 1"),
        ({"clouds": ("a:1",), "insecure": True, "ca": "x"}, "contradicts"),
        ({"clouds": ("a:1",), "certificate": "x"}, "give both"),
    ],
)
def test_wrong_connections_say_what_to_do(options, words):
    with pytest.raises(UsageError, match=words):
        Connection(**options)


def test_a_key_of_another_certificate_is_refused_before_any_work(tmp_path):
    for name in ("phone", "tablet"):
        certificate(tmp_path, name)

    def check(key):
        paths = tmp_path / "phone.pem", tmp_path / key
        check_files(Connection(clouds=("a:1",), certificate=paths[0], private_key=paths[1]))

    check("phone.key")
    with pytest.raises(UsageError, match=r"phone\.pem.*tablet\.key cannot be used together"):
        check("tablet.key")


def test_plain_text_is_for_loopback_or_by_flag_only():
    for address, plain in (
        ("localhost:1", True),
        ("127.0.0.1:1", True),
        ("[::1]:1", True),
        ("example.org:1", False),
        ("10.0.0.1:1", False),
        ("127.0.0.1.example.org:1", False),
    ):
        assert Connection(clouds=(address,)).is_plain(address) is plain
        assert Connection(clouds=(address,), insecure=True).is_plain(address)
        assert not Connection(clouds=(address,), ca="ca.pem").is_plain(address)
