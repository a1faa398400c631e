from __future__ import annotations

import json
from functools import partial

from tests.sites import (
    ANSWERED,
    call,
    one_pack,
    one_record,
    plan,
    refused,
    route,
    site,
    take,
    trunk,
)
from umpack.core.administration import Drain
from umpack.core.causes import Outcome, Result
from umpack.core.distributor import Distributor
from umpack.core.health_states import AlarmKind
from umpack.core.pack import Strategy
from umpack.core.trunk import TrunkId
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
        "first_choice": 2,
        "reserve": 0,
        "closed": 1,
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
    a, b = views.trunks(distributor, 1.0)
    assert a["administration"] == {
        "state": "partly out of service",
        "why": ["1 of 3 channels drained by eva: noise"],
        "drains": [
            {"target": "a:2", "by": "eva", "why": "noise", "reason": "drained by eva: noise",
             "since": 0.0, "until": None}
        ],
    }  # fmt: skip
    assert b["administration"] == {"state": "in service", "why": [], "drains": []}
    assert b["health"] == {
        "state": "up", "since": 0.0, "why": "", "next": "", "admission": "open", "limit": 1,
        "answer_p99": None, "resting": [],
    }  # fmt: skip
    distributor.drain(Drain("a", "tom", "", 0.0, 99.0))
    a = next(views.trunks(distributor, 1.0))
    set_ = a["administration"]
    assert (set_["state"], a["draining"], a["leased"]) == ("draining", 1, 1)
    assert [(d["target"], d["until"]) for d in set_["drains"]] == [("a", 99.0), ("a:2", None)]
    assert set_["why"] == ["drained by tom", "1 of 3 channels drained by eva: noise"]
    distributor.drain(Drain("b", "tom", "", 0.0))
    b = views.trunk(distributor, "b", 1.0) or {}
    assert b["administration"]["state"] == "out of service"
    assert b["health"]["state"] == "up"
    assert views.trunk(distributor, "c", 1.0) is None
    assert (a["glare"], b["glare"]) == (0, 0)
    glare = Outcome(Result.REFUSED, 44, glare=True)
    distributor.enable("b")
    distributor.outcome(take(distributor).lease, glare, 2.0)
    assert [row["glare"] for row in views.trunks(distributor, 2.0)] == [0, 1]
    assert (views.trunk(distributor, "b", 2.0) or {})["glare"] == 1


def test_health_and_administration_are_two_things() -> None:
    distributor = small()
    distributor.alarm_raised(TrunkId("b"), AlarmKind.D_CHANNEL, 5.0, "T309")
    distributor.drain(Drain("b", "tom", "", 6.0))
    b = views.trunk(distributor, "b", 7.0) or {}
    assert (b["health"]["state"], b["health"]["since"]) == ("alarmed", 5.0)
    assert b["health"]["why"] == "D channel down (T309)"
    assert b["health"]["next"] == "back when the alarm clears"
    assert b["administration"]["why"] == ["drained by tom"]
    distributor.enable("b")
    b = views.trunk(distributor, "b", 7.0) or {}
    assert (b["administration"]["state"], b["blocked"]) == ("in service", 1)
    assert b["health"]["state"] == "alarmed"


def test_what_a_pack_chooses_first() -> None:
    names = ("a", "b", "c", "d")
    distributor = Distributor(one_pack(*(trunk(name, 4) for name in names)))
    distributor.eject(TrunkId("a"), 1.0, "by eva", 30.0)
    suspect = distributor.health[TrunkId("b")]
    assigned = take(distributor, now=1.0)
    assert assigned.channel == "b:1"
    distributor.outcome(assigned.lease, refused(41), 2.0)
    assert suspect.state.value == "suspect"
    distributor.drain(Drain("c:3", "eva", "", 0.0))
    distributor.alarm_raised(TrunkId("d"), AlarmKind.UNREACHABLE, 2.0)
    (um,) = views.packs(distributor)
    assert (um["first_choice"], um["reserve"], um["closed"]) == (3, 4, 9)
    assert views.headline(distributor) == (
        "7/16 channels, 1 call, 1 trunk alarmed, 1 trunk ejected, 1 trunk suspect"
    )
    a = views.trunk(distributor, "a", 11.0) or {}
    assert a["health"]["why"] == "ejected 30 s, 1st time, by eva"
    assert a["health"]["next"] == "trial in 20 s"


def test_resting_channels() -> None:
    distributor = Distributor(one_pack(trunk("a", 4), trunk("b", 4)))
    for n in range(3):
        lease = distributor.offer(call(), float(n)).lease  # type: ignore[union-attr]
        distributor.release(distributor.outcome(lease, refused(44), float(n)).lease.token, n)  # type: ignore[union-attr]
    a = views.trunk(distributor, "a", 3.0) or {}
    assert a["health"]["resting"] == [
        {"channel": "a:1", "why": "rests 60 s, 1st time, 3× cause 44 requested circuit/channel "
         "not available"}
    ]  # fmt: skip
    assert a["administration"]["state"] == "in service"
    assert a["blocked"] == 1


def test_a_change() -> None:
    distributor = small()
    distributor.eject(TrunkId("b"), 1.0, "by eva", 30.0)
    *_, last = map(views.change, distributor.take_changes())
    # The only trunk of its pack is taken back at once.
    assert last == {
        "trunk": "b", "at": 1.0, "from": "ejected", "to": "suspect",
        "event": "its pack has nothing else left", "why": "spare has nothing else left",
    }  # fmt: skip


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
    everything = partial(views.trunks, now=0.0)
    for view in (views.packs, everything, views.channels, views.living_calls):
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
