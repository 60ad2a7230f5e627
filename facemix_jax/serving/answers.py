"""Answers of clouds, which are not trusted: what is wrong is refused in the cloud's name."""

from facemix_jax._types import HostArray
from facemix_jax.serving import segments, wire
from facemix_jax.serving import wire_pb2 as pb
from facemix_jax.serving.edge_types import Timing
from facemix_jax.serving.segments import Segments


def checked_rows(
    address: str,
    request: pb.RunRequest,
    response: pb.RunResponse,
    edge: Segments,
    *,
    spot_checks: int,
    timing: Timing,
) -> HostArray:
    """Main's responses in an answer.

    Args:
        address: of the cloud.
        request: what it got.
        response: what it answered.
        edge: of the model asked for.
        spot_checks: rows that are compared with main, where the edge has it.
        timing: gets the time of decoding.

    Returns:
        float32 ``[B, D]`` in the order of the request's rows.

    Raises:
        WireError: the answer is wrong; the error names the cloud.
    """
    try:
        wire.check_response(request, response)
        num_rows = request.activations.shape[0]
        with timing.measure("serialise"):
            rows = wire.decode(
                response.responses, row_shape=edge.spec.response_shape, max_rows=num_rows
            )
        if edge.main is not None:
            sent = wire.decode(
                request.activations, row_shape=edge.spec.activation_shape, max_rows=num_rows
            )
            segments.spot_check(edge.main, edge.group_size, sent, rows, spot_checks)
    except wire.WireError as error:
        # What a sender of such a message should do is not for those who got it.
        raise wire.WireError(
            f"The cloud {address} answers wrongly: {error.reason}",
            "Nothing of the answer was used. Compare the releases of both sides; if they are the "
            "same, the cloud is wrong or dishonest: do not use it until its operator has explained "
            "this.",
        ) from None
    return rows
