"""What the cloud tells its operator: one JSON object per line, and Prometheus metrics.

Neither holds a payload, a token or a message's content: names, sizes, times and statuses only.
"""

import datetime
import json
import logging
import sys
from typing import Any

import prometheus_client

LOG = logging.getLogger("facemix.cloud")


def log(event: str, *, level: int = logging.INFO, trace: bool = False, **fields: Any) -> None:
    """Writes one line; ``trace`` adds that of the exception being handled."""
    LOG.log(level, event, extra={"fields": fields}, exc_info=trace)


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line)


def log_to_stderr() -> None:
    """Sends every logger's lines to standard error as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    LOG.setLevel(logging.INFO)


class Metrics:
    """Counters of one cloud, in a registry of its own."""

    def __init__(self) -> None:
        registry = self.registry = prometheus_client.CollectorRegistry()
        self._requests = prometheus_client.Counter(
            "facemix_requests", "Calls answered", ["method", "status"], registry=registry
        )
        self._seconds = prometheus_client.Histogram(
            "facemix_request_seconds", "From a call's start to its answer", registry=registry
        )
        self._rows = prometheus_client.Counter(
            "facemix_rows", "Rows run through main", registry=registry
        )
        self._batch_rows = prometheus_client.Histogram(
            "facemix_batch_rows",
            "Rows run together",
            buckets=[2**i for i in range(11)],
            registry=registry,
        )
        self._main_seconds = prometheus_client.Histogram(
            "facemix_main_seconds", "Main on one batch", registry=registry
        )
        self._queue_seconds = prometheus_client.Histogram(
            "facemix_queue_seconds", "Waiting of a batch's first request", registry=registry
        )
        self._reloads = prometheus_client.Counter(
            "facemix_reloads", "Checkpoints taken over or refused", ["outcome"], registry=registry
        )
        self._model = prometheus_client.Gauge(
            "facemix_model_step", "Training steps of the model served", registry=registry
        )
        self.queue_rows = prometheus_client.Gauge(
            "facemix_queue_rows", "Rows waiting or running", registry=registry
        )

    def request(self, method: str, status: str, seconds: float) -> None:
        """Counts one call."""
        self._requests.labels(method, status).inc()
        self._seconds.observe(seconds)

    def batch(self, rows: int, seconds: float, waited: float) -> None:
        """Counts one run of main."""
        self._rows.inc(rows)
        self._batch_rows.observe(rows)
        self._main_seconds.observe(seconds)
        self._queue_seconds.observe(waited)

    def model(self, step: int) -> None:
        """Notes the model served."""
        self._model.set(step)

    def reload(self, outcome: str) -> None:
        """Counts one reload: ``done`` or ``failed``."""
        self._reloads.labels(outcome).inc()
