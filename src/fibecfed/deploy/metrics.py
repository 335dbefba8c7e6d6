"""A client's state as Prometheus reads it, on a port that this machine alone can reach."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..core.errors import UserError
from .status import IDLE, Status

if TYPE_CHECKING:
    from prometheus_client.core import Metric

HOST = "127.0.0.1"


@contextlib.contextmanager
def served(status: Status, port: int) -> Iterator[int]:
    """Inside, http://127.0.0.1:PORT/metrics answers; the port, a free one where 0 is asked for.

    Raises:
        UserError: the extra is not installed, or the port cannot be had.
    """
    try:
        from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
    except ImportError:
        raise UserError("--metrics-port needs prometheus-client; run in a clone of fibecfed: pip install '.[metrics]'") from None
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    registry.register(_Collector(status))
    try:
        server, thread = start_http_server(port, HOST, registry)
    except OSError as error:
        raise UserError(f"--metrics-port: {port} cannot be opened on {HOST} ({error.strerror}); choose another one") from None
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Collector:
    """Makes the metrics anew from the state whenever they are asked for, so that there is no second copy of it."""

    def __init__(self, status: Status) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily

        now, name = self._status.table(), "fibecfed_client"
        yield InfoMetricFamily(name, "The client.", {"name": now["name"]})
        gauges = {
            "start_time_seconds": ("When it was started, in seconds since 1970.", now["started"]),
            "busy": ("1 while it works on a request.", float(now["doing"] != IDLE)),
            "last_request_timestamp_seconds": ("When it last answered, in seconds since 1970.", now["last_request"]),
            "supernode_connected": ("1 while its own SuperNode has reached the server.", now["connected"]),
            "certificate_expiry_timestamp_seconds": ("When the server's certificate ends.", now["certificate_ends"]),
        }
        for key, (text, value) in gauges.items():
            if value is not None:
                yield GaugeMetricFamily(f"{name}_{key}", text, value=float(value))
        examples = GaugeMetricFamily(f"{name}_examples", "Examples that it holds.", labels=["part"])
        for part, number in now["examples"].items():
            examples.add_metric([part], number)
        requests = CounterMetricFamily(f"{name}_requests", "Requests of the server.", labels=["action", "status"])
        for action, counts in now["requests"].items():
            for status, number in counts.items():
                requests.add_metric([action, status], number)
        seconds = CounterMetricFamily(f"{name}_request_seconds", "Time spent on them.", labels=["action"])
        for action, spent in now["seconds"].items():
            seconds.add_metric([action], spent)
        yield from (examples, requests, seconds)
        yield CounterMetricFamily(f"{name}_received_bytes", "Bytes of requests.", value=now["received_bytes"])
        yield CounterMetricFamily(f"{name}_sent_bytes", "Bytes of answers.", value=now["sent_bytes"])
        yield CounterMetricFamily(f"{name}_supernode_restarts", "How often its SuperNode was started again.", value=now["restarts"])
