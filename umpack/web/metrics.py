"""Prometheus metrics. What there is now is read when asked; only what has ended is counted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from umpack.core.calls import CallRecord, Ending
from umpack.core.health_states import HealthChange, HealthState
from umpack.web.views import View

SETUP_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 4.0, 8.0, 20.0)
"""T303 is 4 s (Q.931 table 9-1): what takes longer, an exchange gives up."""


class Metrics:
    """The daemon's own registry: importing umpack registers nothing globally."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
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
        self._changes = Counter(
            "umpack_trunk_state_changes",
            "Changes of a trunk's health.",
            ["trunk", "to"],
            registry=self._registry,
        )
        self._odd = {
            Ending.LEAKED: Counter(
                "umpack_leaks", "Channels held for calls the PBX had lost.", registry=self._registry
            ),
            Ending.ADOPTED: Counter(
                "umpack_adopted_calls",
                "Calls found in the PBX on our channels, counted at their end.",
                registry=self._registry,
            ),
        }

    def count(self, records: Iterable[CallRecord]) -> None:
        """Take note of ended calls."""
        for record in records:
            reason = record.reason.value if record.reason else ""
            self._calls.labels(record.ending.value, reason).inc()
            for attempt in record.attempts:
                self._attempts.labels(attempt.trunk, attempt.outcome.result.value).inc()
            if record.answered is not None and record.ending is not Ending.ADOPTED:
                self._setup.observe(record.answered - record.offered)
            if odd := self._odd.get(record.ending):
                odd.inc()

    def count_changes(self, changes: Iterable[HealthChange]) -> None:
        """Take note of changes of health."""
        for change in changes:
            self._changes.labels(change.trunk, change.after.value).inc()

    def text(self, packs: Sequence[View], trunks: Sequence[View], status: View) -> str:
        """Exposition format, with the views as gauges. May run in a thread: 30,000 channels on a
        thousand trunks take some 30 ms."""
        now = CollectorRegistry()
        now.register(_Now(packs, trunks, status))
        return (generate_latest(self._registry) + generate_latest(now)).decode()


class _Now(Collector):
    def __init__(self, packs: Sequence[View], trunks: Sequence[View], status: View) -> None:
        self._rows = {"pack": packs, "trunk": trunks}
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """Channels by state, per pack and trunk; health; glare; links; what the journal lost."""
        for kind, rows in self._rows.items():
            family = GaugeMetricFamily(
                f"umpack_{kind}_channels", f"Channels by {kind} and state.", labels=[kind, "state"]
            )
            for row in rows:
                for state in ("idle", "leased", "blocked"):
                    family.add_metric([row["id"], state], row[state])
            yield family
        yield self._states()
        glare = CounterMetricFamily(
            "umpack_glare",
            "Attempts that lost their channel to a call coming in on it.",
            labels=["trunk"],
        )
        for row in self._rows["trunk"]:
            glare.add_metric([row["id"]], row["glare"])
        yield glare
        links = GaugeMetricFamily("umpack_link_up", "AMI link of a PBX.", labels=["pbx"])
        for pbx in self._status["pbxs"]:
            links.add_metric([pbx["id"]], float(pbx["link"] == "up"))
        yield links
        journal = self._status["journal"]
        faulty = float(journal["fault"] is not None)
        dropped = journal["dropped"]
        yield GaugeMetricFamily("umpack_journal_fault", "1: nothing can be written.", faulty)
        yield CounterMetricFamily("umpack_journal_dropped", "Calls that found no room.", dropped)
        if (messages := self._status.get("messages")) is not None:
            yield from _of_messages(messages, self._status["now"])

    def _states(self) -> GaugeMetricFamily:
        family = GaugeMetricFamily(
            "umpack_trunk_state", "1: the trunk's health is this.", labels=["trunk", "state"]
        )
        for row in self._rows["trunk"]:
            if health := row["health"]:
                for state in HealthState:
                    value = float(state.value == health["state"])
                    family.add_metric([row["id"], state.value], value)
        return family


_GAUGES = (
    ("queue", "umpack_messages_queue", "Messages and deliveries that wait."),
    ("oldest_age", "umpack_messages_oldest_seconds", "Age of the oldest of them."),
    ("receiving", "umpack_messages_receiving", "Calls whose message is being received."),
    ("dead_letters", "umpack_messages_dead_letters", "Deliveries that wait for a person."),
    ("ambiguous", "umpack_messages_ambiguous", "Deliveries a server may have taken."),
    ("free_bytes", "umpack_spool_free_bytes", "Room on the spool's disk."),
    ("writable", "umpack_spool_writable", "1: messages can be received."),
    ("resting", "umpack_mail_servers_resting", "Mail servers that are left alone."),
)
"""What is not known, as the spool does not answer, is left out."""
_ENDS = ("delivered", "put off", "refused", "expired", "ambiguous")


def _of_messages(messages: View, now: float) -> Iterator[Metric]:
    for key, name, words in _GAUGES:
        if (value := messages[key]) is not None:
            yield GaugeMetricFamily(name, words, float(value))
    since = messages["away_since"]
    away = 0.0 if since is None else max(now - since, 0.0)
    yield GaugeMetricFamily("umpack_mail_away_seconds", "How long no relay answers; 0: well.", away)
    ends = CounterMetricFamily("umpack_deliveries", "Tries of delivery ended.", labels=["end"])
    for end in _ENDS:
        ends.add_metric([end], messages["ends"].get(end, 0))
    yield ends
    alarms = GaugeMetricFamily("umpack_messages_alarm", "1: it is on.", labels=["kind"])
    for kind in sorted({alarm["kind"] for alarm in messages["alarms"]}):
        alarms.add_metric([kind], 1.0)
    yield alarms
