"""A health check for orchestrators: ``python -m facemix_jax.serving.probe --address HOST:PORT``.

Exit code 0 if the cloud says SERVING, 2 for wrong usage, 1 otherwise. Kubernetes' own gRPC probe
speaks no TLS.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc


def main(arguments: Sequence[str] | None = None) -> int:
    """Asks once.

    Args:
        arguments: of the command line; None for the process's own.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(description="Asks a cloud whether it is serving.")
    parser.add_argument("--address", required=True, help="HOST:PORT")
    parser.add_argument("--ca", type=Path, help="PEM file that vouches for the certificate")
    parser.add_argument("--certificate", type=Path, help="PEM file of a client, for mutual TLS")
    parser.add_argument("--private-key", type=Path, help="PEM file of its key")
    parser.add_argument("--server-name", help="name in the certificate, if not HOST")
    parser.add_argument("--timeout", type=float, default=3.0, help="seconds")
    given = parser.parse_args(arguments)
    client = given.private_key, given.certificate
    if any(client) and None in (given.ca, *client):
        parser.error("Mutual TLS takes --ca, --certificate and --private-key. Give all of them.")
    if given.ca is None:
        channel = grpc.insecure_channel(given.address)
    else:
        name = [("grpc.ssl_target_name_override", given.server_name)] if given.server_name else []
        try:
            files = [path and path.read_bytes() for path in (given.ca, *client)]
        except OSError as error:
            parser.error(f"{error.filename} cannot be read: {error.strerror}. Give a PEM file.")
        credentials = grpc.ssl_channel_credentials(*files)
        channel = grpc.secure_channel(given.address, credentials, name)
    try:
        with channel:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=given.timeout
            )
    except grpc.RpcError as error:
        print(f"{given.address}: {error}", file=sys.stderr)
        return 1
    return 0 if answer.status == health_pb2.HealthCheckResponse.SERVING else 1


if __name__ == "__main__":
    raise SystemExit(main())
