from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from tests.sites import ANSWERED, call, one_pack, refused, take, trunk
from umpack.core.administration import Drain
from umpack.core.causes import Outcome, Result
from umpack.core.channel import ChannelId
from umpack.core.distributor import Distributor
from umpack.core.health_states import HealthState
from umpack.core.trunk import TrunkId
from umpack.web import views
from umpack.web.metrics import Metrics

STATUS = {
    "pbxs": [{"id": "main", "link": "up"}, {"id": "b", "link": "down"}],
    "journal": {"fault": None, "dropped": 2},
}


def samples(
    metrics: Metrics, distributor: Distributor, status: views.View = STATUS
) -> dict[tuple[str, frozenset[str]], float]:
    packs, trunks = list(views.packs(distributor)), list(views.trunks(distributor, 0.0))
    text = metrics.text(packs, trunks, status)
    return {
        (sample.name, frozenset(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_what_is_and_what_has_ended() -> None:
    distributor, metrics = Distributor(one_pack(trunk("a", 3), trunk("b", 1))), Metrics()
    first, second = take(distributor), take(distributor)
    distributor.answered(first.lease, 0.3)
    distributor.outcome(first.lease, ANSWERED, 5.0)
    distributor.outcome(second.lease, refused(17), 5.0)
    take(distributor)
    distributor.drain(Drain("b", "eva", "", 0.0))
    metrics.count(distributor.take_records())
    found = samples(metrics, distributor)
    assert found["umpack_pack_channels", frozenset({"um", "idle"})] == 2
    assert found["umpack_pack_channels", frozenset({"um", "leased"})] == 1
    assert found["umpack_trunk_channels", frozenset({"b", "blocked"})] == 1
    assert found["umpack_calls_total", frozenset({"connected", ""})] == 1
    assert found["umpack_calls_total", frozenset({"declined", ""})] == 1
    assert found["umpack_attempts_total", frozenset({"a", "answered"})] == 1
    assert found["umpack_attempts_total", frozenset({"a", "refused"})] == 1
    assert found["umpack_setup_seconds_bucket", frozenset({"0.5"})] == 1
    assert found["umpack_setup_seconds_bucket", frozenset({"0.25"})] == 0
    assert found["umpack_link_up", frozenset({"main"})] == 1
    assert found["umpack_link_up", frozenset({"b"})] == 0
    assert found["umpack_journal_fault", frozenset()] == 0
    assert found["umpack_journal_dropped_total", frozenset()] == 2


def test_an_adopted_call_was_set_up_by_somebody_else() -> None:
    distributor, metrics = Distributor(one_pack(trunk("a", 3))), Metrics()
    lease = distributor.adopt(ChannelId("a:2"), call(), 50.0)
    assert lease is not None
    distributor.abandon(lease.token, 60.0, "over")
    metrics.count(distributor.take_records())
    found = samples(metrics, distributor)
    assert found["umpack_adopted_calls_total", frozenset()] == 1
    assert found["umpack_setup_seconds_count", frozenset()] == 0


def test_health_is_shown_and_its_changes_counted() -> None:
    distributor, metrics = Distributor(one_pack(trunk("a", 3), trunk("b", 1))), Metrics()
    distributor.eject(TrunkId("a"), 1.0, "by eva", 30.0)
    distributor.tick(40.0)
    distributor.eject(TrunkId("a"), 41.0, "by eva", 30.0)
    metrics.count_changes(distributor.take_changes())
    found = samples(metrics, distributor)
    assert found["umpack_trunk_state_changes_total", frozenset({"a", "ejected"})] == 2
    assert found["umpack_trunk_state_changes_total", frozenset({"a", "half-open"})] == 1
    shown = {
        labels: value for (name, labels), value in found.items() if name == "umpack_trunk_state"
    }
    assert len(shown) == 2 * len(HealthState)
    assert {labels for labels, value in shown.items() if value} == {
        frozenset({"a", "ejected"}), frozenset({"b", "up"}),
    }  # fmt: skip


def test_glare_is_counted_by_trunk() -> None:
    distributor, metrics = Distributor(one_pack(trunk("a", 3), trunk("b", 3))), Metrics()
    for _ in range(2):
        glare = Outcome(Result.REFUSED, 34, glare=True)
        distributor.outcome(take(distributor).lease, glare, 1.0)
    found = samples(metrics, distributor)
    assert found["umpack_glare_total", frozenset({"a"})] == 2
    assert found["umpack_glare_total", frozenset({"b"})] == 0


def test_leaks_and_adopted_calls_are_counted() -> None:
    distributor, metrics = Distributor(one_pack(trunk("a", 3))), Metrics()
    distributor.abandon(take(distributor).lease.token, 1.0, "no channel in the PBX")
    found = distributor.adopt(ChannelId("a:2"), call(), 1.0)
    assert found is not None
    distributor.abandon(found.token, 2.0, "over")
    metrics.count(distributor.take_records())
    counted = samples(metrics, distributor)
    assert counted["umpack_leaks_total", frozenset()] == 1
    assert counted["umpack_adopted_calls_total", frozenset()] == 1


def test_two_daemons_in_one_process_do_not_share() -> None:
    one, other = Metrics(), Metrics()
    distributor = Distributor(one_pack(trunk("a", 1)))
    distributor.release(take(distributor).lease.token, 1.0)
    one.count(distributor.take_records())
    assert ("umpack_calls_total", frozenset({"abandoned", ""})) in samples(one, distributor)
    assert ("umpack_calls_total", frozenset({"abandoned", ""})) not in samples(other, distributor)


MESSAGES: views.View = {
    "queue": 3, "oldest_age": 61.5, "receiving": 1, "dead_letters": 2, "ambiguous": 1,
    "free_bytes": 10**10, "writable": True, "away_since": 90.0, "resting": 1,
    "ends": {"delivered": 7, "refused": 2},
    "alarms": [{"kind": "late", "what": "", "since": 1.0},
               {"kind": "server", "what": "a", "since": 1.0},
               {"kind": "server", "what": "b", "since": 1.0}],
}  # fmt: skip


def test_messages_are_shown_where_there_are_any() -> None:
    distributor = Distributor(one_pack(trunk("a", 1)))
    none = samples(Metrics(), distributor, STATUS | {"now": 100.0, "messages": None})
    assert not [name for name, _ in none if "messages" in name or "spool" in name]
    found = samples(Metrics(), distributor, STATUS | {"now": 100.0, "messages": MESSAGES})
    plain = {
        "umpack_messages_queue": 3, "umpack_messages_oldest_seconds": 61.5,
        "umpack_messages_receiving": 1, "umpack_messages_dead_letters": 2,
        "umpack_messages_ambiguous": 1, "umpack_spool_free_bytes": 1e10,
        "umpack_spool_writable": 1, "umpack_mail_away_seconds": 10.0,
        "umpack_mail_servers_resting": 1,
    }  # fmt: skip
    assert {name: found[name, frozenset()] for name in plain} == plain
    assert found["umpack_deliveries_total", frozenset({"delivered"})] == 7
    assert found["umpack_deliveries_total", frozenset({"refused"})] == 2
    assert found["umpack_deliveries_total", frozenset({"expired"})] == 0
    alarms = {next(iter(labels)) for name, labels in found if name == "umpack_messages_alarm"}
    assert alarms == {"late", "server"}
    # A spool that cannot be asked: no count is made up.
    blind = {key: None for key in ("queue", "oldest_age", "receiving", "dead_letters", "ambiguous",
                                   "free_bytes", "away_since")}  # fmt: skip
    silent = MESSAGES | blind | {"writable": False, "ends": {}}
    found = samples(Metrics(), distributor, STATUS | {"now": 100.0, "messages": silent})
    assert ("umpack_messages_queue", frozenset()) not in found
    assert found["umpack_spool_writable", frozenset()] == 0
