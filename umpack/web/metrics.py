"""Prometheus metrics. Gauges are read off the distributor when asked; only ends are counted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from umpack.core.calls import CallRecord
from umpack.core.distributor import Distributor
from umpack.web import views

SETUP_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 4.0, 8.0, 20.0)
"""T303 is 4 s (Q.931 table 9-1): what takes longer, an exchange gives up."""


class Metrics:
    """The daemon's own registry: importing umpack registers nothing globally."""

    def __init__(self, distributor: Distributor) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Gauges(distributor))
        self._calls = Counter(
            "umpack_calls", "Calls ended.", ["ending", "reason"], registry=self._registry
        )
        self._attempts = Counter(
            "umpack_attempts", "Attempts ended.", ["trunk", "result"], registry=self._registry
        )
        self._setup = Histogram(
            "umpack_setup_seconds",
            "From offer to answer.",
            buckets=SETUP_SECONDS,
            registry=self._registry,
        )

    def count(self, records: Iterable[CallRecord]) -> None:
        """Take note of ended calls."""
        for record in records:
            reason = record.reason.value if record.reason else ""
            self._calls.labels(record.ending.value, reason).inc()
            for attempt in record.attempts:
                self._attempts.labels(attempt.trunk, attempt.outcome.result.value).inc()
            if record.answered is not None:
                self._setup.observe(record.answered - record.offered)

    def text(self) -> str:
        """Exposition format."""
        return generate_latest(self._registry).decode()


class _Gauges(Collector):
    def __init__(self, distributor: Distributor) -> None:
        self._distributor = distributor

    def collect(self) -> Iterator[Metric]:
        """Channels by state, per pack and per trunk."""
        for kind, rows in (
            ("pack", views.packs(self._distributor)),
            ("trunk", views.trunks(self._distributor)),
        ):
            family = GaugeMetricFamily(
                f"umpack_{kind}_channels", f"Channels by {kind} and state.", labels=[kind, "state"]
            )
            for row in rows:
                for state in ("idle", "leased", "blocked"):
                    family.add_metric([row["id"], state], row[state])
            yield family
