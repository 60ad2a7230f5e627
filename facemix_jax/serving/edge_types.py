"""What the edge's client takes and what it reports."""

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from facemix_jax._types import HostArray
from facemix_jax._validate import in_range, one_of, positive
from facemix_jax.serving import wire
from facemix_jax.serving import wire_pb2 as pb

_DAY_S = 86_400
"""gRPC takes times of some centuries for times that are over."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EdgeConfig:
    """How the edge sends.

    Attributes:
        wire: what mixtures travel as: ``float32``, ``bfloat16`` or ``int8``; None for what they
            were rounded to in training.
        request_rows: the most rows of one request, rounded down to whole groups. Clouds that take
            fewer get fewer; rows are then shuffled among fewer groups.
        timeout_s: of one attempt, in seconds; at most a day.
        give_up_s: seconds after which a request that still fails is not tried again; at most a
            day. An attempt that is under way then gets its ``timeout_s`` all the same.
        spot_checks: rows of each request that are compared with main computed here.
        unprotected: allow a run with the defence ``none``, which sends activations as they are.
    """

    wire: str | None = None
    request_rows: int = 64
    timeout_s: float = 30.0
    give_up_s: float = 120.0
    spot_checks: int = 0
    unprotected: bool = False

    def __post_init__(self) -> None:
        """Checks names and ranges."""
        if self.wire is not None:
            one_of(wire.DTYPES, wire=self.wire)
        positive(request_rows=self.request_rows, timeout_s=self.timeout_s, give_up_s=self.give_up_s)
        in_range(0, _DAY_S, timeout_s=self.timeout_s, give_up_s=self.give_up_s)
        in_range(0, self.request_rows, spot_checks=self.spot_checks)


@dataclasses.dataclass(kw_only=True)
class Timing:
    """Seconds spent, summed over requests, which overlap where there are several.

    Attributes:
        pre: images to activations.
        mix: drawing the key and mixing.
        serialise: rows in the order of sending, to bytes and back.
        network: the call's time less what the cloud says it spent.
        queue: waiting in the cloud, as it says.
        main: running there, as it says.
        unmix: undoing order and mixing.
        post: features to logits.
    """

    pre: float = 0.0
    mix: float = 0.0
    serialise: float = 0.0
    network: float = 0.0
    queue: float = 0.0
    main: float = 0.0
    unmix: float = 0.0
    post: float = 0.0

    @contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Adds the time of a block."""
        start = time.perf_counter()
        yield
        setattr(self, part, getattr(self, part) + time.perf_counter() - start)


class Prediction(NamedTuple):
    """What came of some images.

    Attributes:
        logits: float32 ``[N, K, classes]``.
        fillers: pictures drawn to complete a group.
        repeated: images that are equal to an earlier one; they were sent once.
        requests: calls that were answered.
        retries: calls that failed and were mixed anew.
        bytes_up: of the tensors' data sent and answered, with scales.
        bytes_down: of the tensors' data received.
        timing: seconds by part.
    """

    logits: HostArray
    fillers: int
    repeated: int
    requests: int
    retries: int
    bytes_up: int
    bytes_down: int
    timing: Timing


@dataclasses.dataclass
class Work:
    """What the requests of one ``infer`` add up to."""

    timing: Timing
    retries: int = 0
    bytes_up: int = 0
    bytes_down: int = 0

    def called(
        self, request: pb.RunRequest, response: pb.RunResponse, seconds: float, said: dict[str, Any]
    ) -> None:
        """Counts an answered call; the cloud's own times are believed only within its total."""
        queue, main = (_seconds(said.get(f"facemix-{part}-s")) for part in ("queue", "main"))
        queue, main = min(queue, seconds), min(main, seconds - min(queue, seconds))
        self.timing.queue += queue
        self.timing.main += main
        self.timing.network += seconds - queue - main
        sent, received = request.activations, response.responses
        self.bytes_up += len(sent.data) + 4 * len(sent.scales)
        self.bytes_down += len(received.data) + 4 * len(received.scales)


def _seconds(text: Any) -> float:
    try:
        value = float(text)
    except (TypeError, ValueError):
        return 0.0
    return value if 0 <= value < float("inf") else 0.0
