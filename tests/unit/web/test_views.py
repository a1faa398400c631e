from __future__ import annotations

import json

from tests.sites import ANSWERED, call, one_record, plan, refused, route, site, take, trunk
from umpack.core.administration import Drain
from umpack.core.distributor import Distributor
from umpack.core.pack import Strategy
from umpack.web import views


def small() -> Distributor:
    return Distributor(
        site(
            [trunk("a", 3), trunk("b", 1)],
            [
                plan("um", ["a:1", "a:2", "a:3"], Strategy.CYCLIC, overflow=["spare"]),
                plan("spare", ["b:1"]),
            ],
            [route("1*", "um")],
        )
    )


def test_packs() -> None:
    distributor = small()
    take(distributor)
    distributor.drain(Drain("a:2", "eva", "", 0.0))
    um, spare = views.packs(distributor)
    assert um == {
        "id": "um",
        "strategy": "cyclic",
        "overflow": ["spare"],
        "last": "a:1",
        "next": "a:3",
        "exclusions": [{"trunk": "a", "channels": 1, "why": "drained by eva"}],
        "channels": 3,
        "idle": 1,
        "leased": 1,
        "blocked": 1,
        "draining": 0,
    }
    assert (spare["last"], spare["next"]) == (None, "b:1")
    take(distributor)
    take(distributor)
    assert [pack["next"] for pack in views.packs(distributor)] == [None, None]


def test_trunks() -> None:
    distributor = small()
    take(distributor)
    distributor.drain(Drain("a:2", "eva", "noise", 0.0))
    a, b = views.trunks(distributor)
    assert (a["state"], a["why"], a["until"]) == (
        "partly out of service",
        ["1 of 3 channels drained by eva: noise"],
        None,
    )
    assert (b["state"], b["why"]) == ("in service", [])
    distributor.drain(Drain("a", "tom", "", 0.0, 99.0))
    a = next(views.trunks(distributor))
    assert (a["state"], a["until"], a["draining"], a["leased"]) == ("draining", 99.0, 1, 1)
    assert a["why"] == ["drained by tom", "1 of 3 channels drained by eva: noise"]
    distributor.drain(Drain("b", "tom", "", 0.0))
    assert list(views.trunks(distributor))[1]["state"] == "out of service"


def test_channels() -> None:
    distributor = small()
    assignment = take(distributor, now=7.0)
    first, second, *_ = views.channels(distributor)
    assert first == {
        "id": "a:1",
        "trunk": "a",
        "number": 1,
        "state": "leased",
        "why": [],
        "call": assignment.lease.holder.call.id,
        "since": 7.0,
        "packs": [{"id": "um", "position": 1}],
    }
    assert (second["state"], second["call"], second["since"]) == ("idle", None, None)


def test_lists_outlive_a_reload_and_a_release() -> None:
    distributor = small()
    lease = take(distributor).lease
    for view in (views.packs, views.trunks, views.channels, views.living_calls):
        rows = view(distributor)
        distributor.reload(site([trunk("b", 1)], [plan("spare", ["b:1"])]))
        list(rows)
        distributor.reload(small().site)
    distributor.reload(site([trunk("b", 1)], [plan("spare", ["b:1"])]))
    rows = views.channels(distributor)
    next(rows)
    distributor.release(lease.token, 1.0)
    assert [row["id"] for row in rows] == ["a:1"]


def test_a_call_from_offer_to_record() -> None:
    distributor = small()
    offered = call()
    first = distributor.offer(offered, 1.0)
    (living,) = views.living_calls(distributor)
    assert living == views.living_call(distributor, offered.id)
    assert (living["state"], living["channel"], living["position"]) == ("dialling", "a:1", 1)
    second = distributor.outcome(first.lease, refused(34), 2.0)  # type: ignore[union-attr]
    living = views.living_call(distributor, offered.id) or {}
    assert [attempt["channel"] for attempt in living["attempts"]] == ["a:1"]
    lease = second.lease  # type: ignore[union-attr]
    distributor.answered(lease, 3.0)
    assert (views.living_call(distributor, offered.id) or {})["state"] == "connected"
    distributor.outcome(lease, ANSWERED, 4.0)
    assert views.living_call(distributor, offered.id) is None
    ended = views.record(one_record(distributor))
    assert (ended["ending"], ended["cause"], ended["answered"]) == ("connected", 16, 3.0)
    assert [a["result"] for a in ended["attempts"]] == ["refused", "answered"]
    assert ended["attempts"][0]["cause"] == 34
    assert json.loads(json.dumps(ended)) == ended


def test_hostile_text_stays_as_it_is() -> None:
    distributor = small()
    evil = '"\x1b\u202e\ud800</script>'
    distributor.offer(call(caller=evil), 1.0)
    (living,) = json.loads(json.dumps(list(views.living_calls(distributor))))
    assert living["caller"] == evil
