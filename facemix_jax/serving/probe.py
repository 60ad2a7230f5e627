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

from facemix_jax._validate import UsageError
from facemix_jax.serving import access


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
    files = {what: getattr(given, what) for what in ("ca", "private_key", "certificate")}
    if (given.private_key or given.certificate) and None in files.values():
        parser.error("Mutual TLS takes --ca, --certificate and --private-key. Give all of them.")
    if given.server_name and given.ca is None:
        parser.error("--server-name is for TLS, which --ca asks for. Give both, or neither.")
    if given.ca is None:
        channel = grpc.insecure_channel(given.address)
    else:
        name = [("grpc.ssl_target_name_override", given.server_name)] if given.server_name else []
        try:
            pem = [path and access.read_pem(path, what) for what, path in files.items()]
        except UsageError as error:
            parser.error(str(error))
        credentials = grpc.ssl_channel_credentials(*pem)
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
