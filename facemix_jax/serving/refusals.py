"""What calls that fail mean to the edge, and what its user can do about them."""

import grpc
import grpc.aio

from facemix_jax._validate import FacemixError

_AGAIN = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
)
_TOO_LARGE = "larger than max"
"""What gRPC says of a message that exceeds a limit; it calls that RESOURCE_EXHAUSTED too."""
_UNTRUSTED = ("CERTIFICATE_VERIFY_FAILED", "Hostname Verification")
"""In what gRPC says of a certificate that does not prove whose cloud it is."""
_UNTIMELY = ("certificate has expired", "certificate is not yet valid")


class CloudError(FacemixError):
    """A call that failed for good."""


class LimitError(CloudError):
    """One that exceeds a limit of the cloud, or is no call of its release."""


def is_passing(error: grpc.aio.AioRpcError) -> bool:
    """Whether the same cloud may answer when it is asked again."""
    return error.code() in _AGAIN and not (_says(error, _TOO_LARGE) or _is_untrusted(error))


def is_limit(error: grpc.aio.AioRpcError) -> bool:
    """Whether the request exceeds a limit, or is none of the cloud's release; see LimitError."""
    too_large = _says(error, _TOO_LARGE) and not _is_answer_too_large(error)
    return too_large or error.code() is grpc.StatusCode.INVALID_ARGUMENT


def _is_answer_too_large(error: grpc.aio.AioRpcError) -> bool:
    """Whether gRPC says so on this side, of what the cloud sent."""
    return _says(error, "CLIENT: Received message larger than max")


def _is_untrusted(error: grpc.aio.AioRpcError) -> bool:
    return error.code() is grpc.StatusCode.UNAVAILABLE and _says(error, *_UNTRUSTED)


def _says(error: grpc.aio.AioRpcError, *words: str) -> bool:
    return any(word in (error.details() or "") for word in words)


def explained(address: str, error: grpc.aio.AioRpcError, timeout: float) -> CloudError:
    """A failed call as an error that says what to do; ``timeout`` in seconds was its own."""
    remedies = {
        grpc.StatusCode.UNAVAILABLE: "Check that it runs, the address, whether both sides use "
        "TLS or neither (--ca for a certificate of your own), and whether it asks for a client's "
        "certificate (--certificate, --private-key).",
        grpc.StatusCode.RESOURCE_EXHAUSTED: "It is overloaded: try later, or add another --cloud.",
        grpc.StatusCode.DEADLINE_EXCEEDED: f"An attempt may take {timeout:g} s: allow "
        "more, or send bfloat16 or int8.",
        grpc.StatusCode.UNAUTHENTICATED: "Give the file of a valid token.",
        # The cloud's own words say what to do with its work directory.
        grpc.StatusCode.FAILED_PRECONDITION: "Or make the client anew: its work directory may have "
        "a newer checkpoint than the one it has read.",
        grpc.StatusCode.INVALID_ARGUMENT: "Compare the releases and the limits of both sides.",
    }
    remedy = remedies.get(error.code(), "Ask the cloud's operator.")
    if _is_answer_too_large(error):
        remedy = (
            "It sent more than an answer holds, and nothing of it was used: check the address, and "
            "ask the cloud's operator."
        )
    elif _says(error, _TOO_LARGE):
        remedy = "Send fewer rows (request_rows), or start facemix serve with a larger --max-rows."
    elif _is_untrusted(error):
        remedy = (
            "The cloud's operator must renew its certificate, unless this machine's clock is "
            "wrong. Nothing was sent."
            if _says(error, *_UNTIMELY)
            else "Its certificate does not prove that it is this cloud: give the authority that "
            "signed it (--ca), and an address that it names. Nothing was sent."
        )
    words = f"The cloud {address} answers {error.code().name}: {details(error)}. {remedy}"
    return (LimitError if is_limit(error) else CloudError)(words.rstrip())


def details(error: grpc.aio.AioRpcError) -> str:
    """The cloud's or gRPC's own words, safe to print."""
    return ascii((error.details() or "").strip()[:300].rstrip("."))[1:-1]
