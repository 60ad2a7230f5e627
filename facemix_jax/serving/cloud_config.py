"""What ``facemix serve`` takes."""

import dataclasses
from pathlib import Path

from facemix_jax._arguments import Folder
from facemix_jax._validate import UsageError, in_range, positive
from facemix_jax.serving import access


@dataclasses.dataclass(frozen=True, kw_only=True)
class CloudConfig:
    """The cloud's side of split inference: runs main on mixtures, as a gRPC service.

    It loads main alone from a work directory and takes over newer checkpoints as they appear.
    Mixing is not a cipher: who runs this service can undo it.

    Example: facemix serve --workdir runs/m8 --host 0.0.0.0 --tls-cert cert.pem --tls-key key.pem
    --tokens tokens.txt
    """

    workdir: Folder
    """Of a training run."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 50051
    """Port; 0 takes a free one, which is printed."""
    tls_cert: Path | None = None
    """PEM file of the certificate chain; required unless the host is loopback. It, its key and the
    authority are read again within seconds of a change."""
    tls_key: Path | None = None
    """PEM file of its key."""
    client_ca: Path | None = None
    """PEM file of the authority whose client certificates are required (mutual TLS)."""
    insecure: bool = False
    """Allow plain text on an address that is not loopback."""
    tokens: Path | None = None
    """File of bearer tokens, a line each: NAME, sha256:HEX or the token, optionally its expiry;
    a word that starts with # starts a comment. It is read again within seconds of a change."""
    max_rows: int = 64
    """The most rows of one request and of one batch."""
    queue_rows: int = 512
    """The most rows waiting or running; requests beyond it are refused at once."""
    client_rows: int | None = None
    """The most rows that one client may have waiting or running, and so of one request; by default
    half the queue."""
    exact: bool = True
    """Run each request in chunks of the training's group size, so that its result does not depend
    on other requests, to the last bit; --no-exact packs rows of all requests, which is faster for
    small requests and on accelerators and equal within rounding."""
    max_wait_ms: float = 2.0
    """How long a batch that is not full waits for more rows (with --no-exact)."""
    model_devices: int = 1
    """Devices among which main's output channels are dealt, for networks too large for one;
    results are then those of one device within rounding."""
    metrics_port: int | None = None
    """Port for Prometheus, in plain text on the same host; none by default."""

    def __post_init__(self) -> None:
        """Checks ranges, and that nothing travels in plain text by accident."""
        positive(max_rows=self.max_rows, model_devices=self.model_devices)
        in_range(0, 65535, port=self.port)
        in_range(0, 10_000, max_wait_ms=self.max_wait_ms)
        if self.metrics_port is not None:
            in_range(1, 65535, metrics_port=self.metrics_port)
        if self.queue_rows < self.max_rows:
            raise UsageError(
                f"queue_rows is {self.queue_rows}, but must hold a request of max_rows "
                f"{self.max_rows}. Give a larger queue_rows, or a smaller max_rows."
            )
        if self.client_rows is not None:
            in_range(1, self.queue_rows, client_rows=self.client_rows)
        if (self.tls_cert is None) != (self.tls_key is None):
            raise UsageError("TLS takes a certificate and its key: give --tls-cert and --tls-key.")
        if self.client_ca is not None and self.tls_cert is None:
            raise UsageError("--client-ca requires TLS: give --tls-cert and --tls-key too.")
        if self.tls_cert is None and not self.insecure and not access.is_loopback(self.host):
            raise UsageError(
                f"host {self.host} is not loopback, so that plain text would cross a network. Give "
                f"--tls-cert and --tls-key, or --insecure if something else encrypts."
            )
        if self.tls_cert is not None and self.insecure:
            raise UsageError("--insecure contradicts --tls-cert. Give one of them.")
