"""The cloud's certificate, which is renewed while the cloud runs."""

import datetime
from pathlib import Path

import grpc
from cryptography import x509

from facemix_jax.serving import access

SOON = datetime.timedelta(days=14)
"""Before its end a certificate is warned of."""


class Certificates:
    """TLS, or mutual TLS where ``client_ca`` is given.

    Connections that are open keep the certificate that they began with.

    Attributes:
        credentials: for gRPC; they follow what ``read`` reads.

    Raises:
        UsageError: a file cannot be read or holds no certificate, or the key is another's.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None) -> None:
        self._certificate, self._key, self._client_ca = certificate, key, client_ca
        self.read()
        self._handed_over = self._current
        self.credentials = grpc.dynamic_ssl_server_credentials(
            self._current, self._changed, require_client_authentication=client_ca is not None
        )

    def read(self) -> None:
        """Reads the files; where they cannot be used, those known so far stay.

        Raises:
            UsageError: as when they were first read.
        """
        chain = access.read_pem(self._certificate, "tls_cert")
        key = access.read_pem(self._key, "tls_key")
        client_ca = None
        if self._client_ca is not None:
            client_ca = access.read_pem(self._client_ca, "client_ca")
            access.check_authority(self._client_ca, "client_ca")
        access.check_pair(tls_cert=self._certificate, tls_key=self._key)
        self._chain = chain
        self._current = grpc.ssl_server_certificate_configuration(
            [(key, chain)], root_certificates=client_ca
        )

    def warning(self) -> str | None:
        """What an operator should know of the times of the cloud's own certificate, if anything."""
        try:
            own = x509.load_pem_x509_certificates(self._chain)[0]
        except ValueError:  # gRPC may take what this parser does not
            return None
        begin, end, now = (
            own.not_valid_before_utc,
            own.not_valid_after_utc,
            datetime.datetime.now(datetime.UTC),
        )
        if now < begin:
            return f"The certificate is not valid before {begin.isoformat()}."
        if now > end:
            return f"The certificate expired at {end.isoformat()}. Renew it."
        if now > end - SOON:
            return f"The certificate ends at {end.isoformat()}. Renew it."
        return None

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        """What gRPC asks for with every new connection, in a thread of its own."""
        current = self._current
        if current is self._handed_over:
            return None
        self._handed_over = current
        return current
