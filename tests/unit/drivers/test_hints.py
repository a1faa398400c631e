"""What AMI tells of attempts, taken one event at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from drivers.asterisk.calls import outcome_of
from drivers.asterisk.hints import HINT_EVENTS, Hints, may_be_glare
from tests.sites import MAIN, one_pack, refused, take, trunk
from umpack.core.causes import Outcome, Result
from umpack.core.channel import ChannelId
from umpack.core.distributor import Distributor
from umpack.core.errors import PeerFault, PeerGone
from umpack.core.trunk import TrunkKind

SIP = trunk("um", 3)
LINE = trunk("line", 3, kind=TrunkKind.S2M)
CALLER = "17.1"


class Attempt:
    """A call on the first channel of a trunk, and the hints of its PBX."""

    def __init__(self, of: str = "line") -> None:
        self.distributor = Distributor(one_pack(LINE if of == "line" else SIP))
        self.now = 100.0
        self.rows: list[dict[str, str]] = []
        self.asked: list[str] = []
        self.fault: PeerFault | None = None
        self.silent = False
        self.told = 0
        self.hints = Hints(MAIN, self.distributor, lambda: self.now, self._ask)
        self.hints.on_adopted = self._tell
        self.lease = take(self.distributor, now=self.now).lease
        self.hints.begin(CALLER, self.lease)

    def _tell(self) -> None:
        self.told += 1

    async def _ask(
        self, action: str, headers: Mapping[str, str] | None
    ) -> Sequence[Mapping[str, str]]:
        self.asked.append(f"{action} {(headers or {})['DAHDIChannel']}")
        if self.fault:
            raise self.fault
        if self.silent:
            await asyncio.Event().wait()
        return self.rows

    def next_attempt(self) -> None:
        self.distributor.release(self.lease.token, self.now)
        first = take(self.distributor, now=self.now)  # the same channel, for somebody else
        self.lease = take(self.distributor, now=self.now).lease
        self.hints.begin(CALLER, self.lease)
        assert first.lease.channel.id != self.lease.channel.id

    def rings(self, leg: str, status: str = "RINGING", caller: str = CALLER) -> bool | None:
        event = {"Uniqueid": caller, "DestChannel": leg, "DialStatus": status}
        self.hints.hear("DialState", event)
        return self.hints.rang(CALLER)

    def sits(self, number: object, uniqueid: str = "17.2", linkedid: str = CALLER) -> str:
        event = {"Uniqueid": uniqueid, "Linkedid": linkedid, "DAHDIChannel": str(number)}
        self.hints.hear("DAHDIChannel", event)
        return self.lease.channel.id

    def adopted(self) -> list[str]:
        return [lease.channel.id for lease in self.distributor.ledger if lease.pack is None]

    async def is_glare(self) -> bool:
        return await self.hints.is_glare(CALLER, self.lease)


# --- ringing ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "detail", "rang", "expected"),
    [
        ("NOANSWER", "SIP 180 Ringing", None, Outcome(Result.TIMED_OUT, rang=True)),
        ("NOANSWER", "SIP 183 Session Progress", None, Outcome(Result.TIMED_OUT, rang=True)),
        ("NOANSWER", "SIP 100 Trying", None, Outcome(Result.TIMED_OUT)),
        ("NOANSWER", "SIP 199 Early Dialog", None, Outcome(Result.TIMED_OUT)),
        ("NOANSWER", "", None, Outcome(Result.TIMED_OUT)),
        ("NOANSWER", "", True, Outcome(Result.TIMED_OUT, rang=True)),
        ("NOANSWER", "SIP 480 x", True, Outcome(Result.REFUSED, 19, 480, rang=True)),
        ("CHANUNAVAIL", "SIP 408 x", None, Outcome(Result.REFUSED, 19, 408)),
        ("CHANUNAVAIL", "SIP 408 x", True, Outcome(Result.REFUSED, 19, 408, rang=True)),
    ],
)
def test_what_a_dial_says_of_ringing(
    status: str, detail: str, rang: bool | None, expected: Outcome
) -> None:
    found = outcome_of(status, 19, detail, had_leg=True, rang=rang)
    assert (found.result, found.sip, found.rang) == (expected.result, expected.sip, expected.rang)


@pytest.mark.parametrize(
    ("of", "leg", "rings"),
    [
        ("um", "PJSIP/um-0000002a", True),
        ("um", "PJSIP/other-0000002a", None),
        ("um", "Local/100@out-00000001;1", True),  # a dial string of the site's own
        ("line", "DAHDI/i1/100-2a", True),
        ("line", "DAHDI/i2/100-2a", None),
        ("line", "DAHDI/1-1", True),
        ("line", "DAHDI/2-1", None),
        ("line", "", True),
    ],
)
def test_a_leg_rings_for_the_attempt_it_can_be_of(of: str, leg: str, rings: bool | None) -> None:
    assert Attempt(of).rings(leg) is rings


def test_ringing_is_of_one_attempt() -> None:
    attempt = Attempt("um")
    assert attempt.hints.rang(CALLER) is None
    assert attempt.rings("PJSIP/um-1", "PROCEEDING") is None
    assert attempt.rings("PJSIP/um-00000001", caller="17.9") is None
    assert attempt.rings("PJSIP/um-00000001", "PROGRESS") is True
    attempt.next_attempt()
    assert attempt.hints.rang(CALLER) is None
    attempt.hints.end(CALLER)
    assert attempt.rings("PJSIP/um-00000001") is None


# --- moving -------------------------------------------------------------------------------------


def test_a_leg_that_moves_takes_its_lease_along() -> None:
    attempt = Attempt()
    assert attempt.sits(1) == "line:1"
    assert attempt.sits(3) == "line:3"
    assert attempt.sits(2) == "line:2"
    free = [c.id for c in attempt.distributor.ledger.channels.values() if c.lease is None]
    assert free == ["line:1", "line:3"]


def test_an_event_of_the_attempt_before_moves_nothing() -> None:
    attempt = Attempt()
    attempt.sits(1)
    attempt.next_attempt()
    assert attempt.lease.channel.id == "line:2"
    assert attempt.sits(3) == "line:2"  # the old leg, told late
    assert attempt.sits(2, "17.5") == "line:2"
    assert attempt.sits(3) == "line:2"
    assert attempt.sits(3, "17.5") == "line:3"


def test_a_leg_moves_to_no_channel_that_is_held_or_not_its_trunks() -> None:
    attempt = Attempt()
    take(attempt.distributor)
    attempt.sits(1)
    for elsewhere in (2, 9, 0, "pseudo", "no-media (3)", "-3", "³", "9" * 99, ""):
        assert attempt.sits(elsewhere) == "line:1"


def test_of_a_call_that_is_over_nothing_moves() -> None:
    attempt = Attempt()
    attempt.sits(1)
    attempt.distributor.release(attempt.lease.token, attempt.now)
    assert attempt.sits(2) == "line:1"


# --- glare --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("of", "outcome", "may"),
    [
        ("line", refused(34), True),
        ("line", refused(44), True),
        ("line", refused(41), False),
        ("line", refused(None), False),
        ("line", Outcome(Result.NO_CHANNEL, 44), False),
        ("line", Outcome(Result.TIMED_OUT, 34), False),
        ("um", refused(34), False),
    ],
)
def test_only_a_channel_of_a_line_can_be_lost(of: str, outcome: Outcome, *, may: bool) -> None:
    assert may_be_glare(Attempt(of).lease, outcome) is may


async def test_a_call_that_came_in_on_the_channel_is_glare() -> None:
    attempt = Attempt()
    attempt.sits(1)
    attempt.sits(1, "17.7", "17.7")
    assert await attempt.is_glare()
    assert attempt.asked == []
    assert attempt.adopted() == []  # our attempt is not over yet
    channel = attempt.lease.channel
    attempt.distributor.release(attempt.lease.token, attempt.now)
    attempt.hints.lost(channel)
    assert attempt.adopted() == ["line:1"]
    assert attempt.told == 1


def test_a_channel_lost_to_glare_may_have_left_the_configuration() -> None:
    attempt = Attempt()
    attempt.sits(1)
    attempt.sits(1, "17.7", "17.7")
    attempt.distributor.reload(one_pack(SIP), attempt.now)
    attempt.distributor.outcome(attempt.lease, replace(refused(44), glare=True), attempt.now)
    attempt.hints.lost(attempt.lease.channel)  # the call goes on, and its next lease must end
    assert attempt.adopted() == []


def test_who_comes_in_on_a_line_takes_his_channel_at_once() -> None:
    attempt = Attempt()
    attempt.sits(3, "17.7", "17.7")
    attempt.sits(31, "17.8", "17.8")  # no channel of ours
    assert attempt.adopted() == ["line:3"]
    attempt.sits(3, "17.9", "17.9")  # the end of the one before was not told yet
    assert attempt.adopted() == ["line:3"]
    assert attempt.told == 1


def test_nobody_is_adopted_whose_end_nobody_could_tell() -> None:
    attempt = Attempt()
    attempt.hints.may_adopt = lambda: False
    attempt.sits(3, "17.7", "17.7")
    assert attempt.adopted() == []


def test_who_takes_the_channel_of_a_call_that_is_moved_is_adopted_there() -> None:
    for theirs_first in (True, False):
        attempt = Attempt()
        attempt.sits(1)
        if theirs_first:
            attempt.sits(1, "17.7", "17.7")
        assert attempt.sits(2) == "line:2"
        if not theirs_first:
            attempt.sits(1, "17.7", "17.7")
        assert attempt.adopted() == ["line:1"]


async def test_one_on_another_channel_or_of_long_ago_is_none() -> None:
    attempt = Attempt()
    attempt.sits(2, "17.7", "17.7")
    assert not await attempt.is_glare()
    attempt = Attempt()
    attempt.sits(1, "17.7", "17.7")
    attempt.now += 60
    attempt.next_attempt()
    attempt.lease.channel.number = 1
    assert not await attempt.is_glare()


async def test_where_no_event_has_come_the_pbx_is_asked() -> None:
    attempt = Attempt()
    attempt.sits(1)
    attempt.rows = [{"DAHDIChannel": "1", "Uniqueid": "17.2"}]
    assert not await attempt.is_glare(), "our own leg, going"
    attempt.rows = [{"DAHDIChannel": "1"}, {"DAHDIChannel": "2", "Uniqueid": "17.8"}]
    assert not await attempt.is_glare(), "nobody is on it"
    attempt.rows = [{"DAHDIChannel": "1", "Uniqueid": "17.8"}]
    assert await attempt.is_glare()
    assert attempt.asked == ["DAHDIShowChannels 1"] * 3


async def test_where_nobody_can_tell_it_is_none() -> None:
    attempt = Attempt()
    attempt.fault = PeerGone("no link")
    assert not await attempt.is_glare()
    attempt.fault, attempt.silent = None, True
    assert not await attempt.is_glare()  # and the call does not wait for ever
    assert not await Hints(MAIN, attempt.distributor, lambda: 0.0).is_glare(CALLER, attempt.lease)


@pytest.mark.parametrize("name", sorted(HINT_EVENTS))
def test_events_without_what_they_should_have_are_harmless(name: str) -> None:
    attempt = Attempt()
    for event in ({}, {"Uniqueid": CALLER}, {"Linkedid": CALLER}, {"DAHDIChannel": "1"}):
        attempt.hints.hear(name, event)
    assert attempt.lease.channel.id == ChannelId("line:1")
    assert attempt.hints.rang(CALLER) is None
