"""What AMI messages say of trunks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivers.asterisk.ami_wire import AmiCodec, AmiEvent
from drivers.asterisk.signals import (
    LAYER1,
    LINE,
    NOTHING,
    SIGNAL_EVENTS,
    Message,
    Sighting,
    Signal,
    Source,
    kinds_of,
    read_endpoint,
    read_endpoints,
    read_event,
    read_lines,
)
from tests import sites
from umpack.core.health_states import AlarmKind
from umpack.core.trunk import Trunk, TrunkId, TrunkKind

RED, AIS, RAI, D = AlarmKind.RED, AlarmKind.AIS, AlarmKind.RAI, AlarmKind.D_CHANNEL
UNREACHABLE = AlarmKind.UNREACHABLE
DATA = Path(__file__).parents[2] / "data/ami"


def line(name: str, span: int, first: int, slots: Iterable[int] = range(1, 16)) -> Trunk:
    return replace(sites.trunk(name, slots, kind=TrunkKind.S2M, first=first), span=span)


LOW, HIGH = line("low", 1, 1), line("high", 1, 1, range(17, 32))
OTHER = line("other", 2, 32)
BUS = replace(sites.trunk("bus", 2, kind=TrunkKind.S0, first=63), span=3)
UM1, UM2 = sites.trunk("um1"), sites.trunk("um2")
AGAIN = replace(sites.trunk("again"), endpoint="um1")
TRUNKS = [LOW, HIGH, OTHER, BUS, UM1, UM2, AGAIN]


def read(name: str, *, alarmed: Iterable[str] = (), **headers: str) -> Signal:
    return read_event(name, headers, TRUNKS, {TrunkId(each) for each in alarmed})


def seen(signal: Signal) -> dict[str, tuple[set[AlarmKind], frozenset[AlarmKind]]]:
    return {one.trunk: (set(one.kinds), one.among) for one in signal.sightings}


def after(sightings: Iterable[Sighting]) -> dict[str, set[AlarmKind]]:
    """What stands in the end, of trunks that had every alarm there is before."""
    standing: dict[str, set[AlarmKind]] = {}
    for one in sightings:
        stood = standing.setdefault(one.trunk, set(AlarmKind))
        stood -= one.among
        stood |= set(one.kinds)
    return standing


def recorded(name: str) -> list[AmiEvent]:
    """The events of a recording of Asterisk 22."""
    text = (DATA / f"{name}.txt").read_text(encoding="utf-8")
    codec = AmiCodec()
    messages = codec.feed(f"Asterisk Call Manager/11.0.0\n{text}\n".encode())
    return [message for message in messages if isinstance(message, AmiEvent)]


# --- alarms of lines ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("No Alarm", set()),
        ("None", set()),
        ("", set()),
        ("OK", set()),
        ("Red Alarm", {RED}),
        ("Blue Alarm", {AIS}),
        ("Yellow Alarm", {RAI}),
        ("BLU/RED", {AIS, RED}),
        ("YEL/RED/NOP", {RAI, RED}),
        ("red, yellow", {RED, RAI}),
        ("Recovering", {RED}),
        ("Loopback", {RED}),
        ("Not Open", {RED}),
        ("Unknown Alarm", {RED}),
        ("Hundred", {RED}),  # an unknown word is an alarm, too; it is not "red"
    ],
)
def test_alarm_texts(text: str, kinds: set[AlarmKind]) -> None:
    assert set(kinds_of(text)) == kinds
    assert all(detail == text for detail in kinds_of(text).values())


def test_a_span_alarm_is_of_all_trunks_on_the_span() -> None:
    signal = read("SpanAlarm", Span="1", Alarm="Red Alarm")
    assert seen(signal) == {"low": ({RED}, LAYER1), "high": ({RED}, LAYER1)}
    assert signal.ask == {Source.LINES}  # what has become of the D channel?
    signal = read("SpanAlarmClear", Span="2")
    assert seen(signal) == {"other": (set(), LAYER1)}
    assert signal.ask == {Source.LINES}


@pytest.mark.parametrize("number", ["1", "16", "31"])
def test_a_channel_alarm_is_its_spans(number: str) -> None:
    signal = read("Alarm", DAHDIChannel=number, Alarm="Yellow Alarm")
    assert seen(signal) == {"low": ({RAI}, LAYER1), "high": ({RAI}, LAYER1)}
    signal = read("AlarmClear", DAHDIChannel=number)
    assert seen(signal) == {"low": (set(), LAYER1), "high": (set(), LAYER1)}


@pytest.mark.parametrize(("number", "trunk"), [("32", "other"), ("62", "other"), ("65", "bus")])
def test_numbers_are_counted_over_the_spans(number: str, trunk: str) -> None:
    assert set(seen(read("Alarm", DAHDIChannel=number, Alarm="Red Alarm"))) == {trunk}


def test_recovering_takes_no_alarm_back() -> None:
    signal = read("SpanAlarm", Span="2", Alarm="Recovering")
    assert seen(signal) == {"other": ({RED}, frozenset({RED}))}


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Span": "9", "DAHDIChannel": "66"},
        {"Span": "", "DAHDIChannel": "0"},
        {"Span": "١", "DAHDIChannel": "²"},
        {"Span": "1\n", "DAHDIChannel": "-1"},
        {"Span": "None", "DAHDIChannel": "9" * 5000},
    ],
)
@pytest.mark.parametrize("name", ["Alarm", "AlarmClear", "SpanAlarm", "SpanAlarmClear"])
def test_what_is_not_ours_says_nothing(name: str, headers: dict[str, str]) -> None:
    assert read_event(name, headers, TRUNKS, ()) == NOTHING


def test_an_alarm_without_words_is_one() -> None:
    assert seen(read("SpanAlarm", Span="2")) == {"other": ({RED}, frozenset({RED}))}


# --- endpoints ----------------------------------------------------------------------------------


def test_peer_status_is_the_endpoints_verdict() -> None:
    whole = LINE | {UNREACHABLE}
    signal = read("PeerStatus", ChannelType="PJSIP", Peer="PJSIP/um1", PeerStatus="Unreachable")
    assert seen(signal) == {"um1": ({UNREACHABLE}, whole), "again": ({UNREACHABLE}, whole)}
    signal = read("PeerStatus", ChannelType="PJSIP", Peer="PJSIP/um2", PeerStatus="Reachable")
    assert seen(signal) == {"um2": (set(), whole)}
    assert read("PeerStatus", Peer="PJSIP/um2", PeerStatus="Unknown").ask == {Source.ENDPOINTS}
    for peer in ("SIP/um1", "um1", "PJSIP/um", "PJSIP/", ""):
        assert read("PeerStatus", Peer=peer, PeerStatus="Unreachable") == NOTHING


@pytest.mark.parametrize("status", ["Unreachable", "Removed", "NonQualified", "Updated", ""])
def test_a_contact_may_be_one_of_several(status: str) -> None:
    signal = read("ContactStatus", EndpointName="um1", AOR="x", ContactStatus=status)
    assert signal == Signal(ask=frozenset({Source.ENDPOINTS}))
    assert read("ContactStatus", EndpointName="phone", ContactStatus=status) == NOTHING


def test_one_contact_that_answers_is_enough() -> None:
    signal = read("ContactStatus", EndpointName="um1", AOR="x", ContactStatus="Reachable")
    assert {trunk: kinds for trunk, (kinds, _) in seen(signal).items()} == {
        "um1": set(), "again": set(),
    }  # fmt: skip
    assert set(seen(read("ContactStatus", AOR="um2", ContactStatus="Reachable"))) == {"um2"}


def test_the_recorded_events_of_an_endpoint() -> None:
    signals = [read_event(e.name, e, TRUNKS, ()) for e in recorded("contact-status")]
    assert [set(seen(signal)) for signal in signals] == [{"um2"}, {"um2"}, {"um2"}, set()]
    assert after(signals[0].sightings) == {"um2": set()}
    assert after(signals[2].sightings) == {"um2": {UNREACHABLE}}
    assert signals[3].ask == {Source.ENDPOINTS}


@pytest.mark.parametrize(
    ("device", "state", "ask"),
    [
        ("PJSIP/um1", "UNAVAILABLE", Source.ENDPOINTS),
        ("PJSIP/um1", "INVALID", Source.ENDPOINTS),
        ("PJSIP/um1", "NOT_INUSE", None),  # after every call
        ("PJSIP/um1", "INUSE", None),
        ("PJSIP/phone", "UNAVAILABLE", None),
        ("DAHDI/I1/congestion", "UNAVAILABLE", Source.LINES),
        ("DAHDI/I1/congestion", "BUSY", None),  # a full span is no dead one
        ("DAHDI/I2/congestion", "NOT_INUSE", Source.LINES),  # alarmed until now
        ("DAHDI/I7/congestion", "UNAVAILABLE", None),
        ("DAHDI/I1/congestion\n", "UNAVAILABLE", None),
        ("DAHDI/17", "UNAVAILABLE", None),
        ("", "", None),
    ],
)
def test_device_states_only_hint(device: str, state: str, ask: Source | None) -> None:
    signal = read("DeviceStateChange", Device=device, State=state, alarmed=["other"])
    assert signal.sightings == ()
    assert signal.ask == (set() if ask is None else {ask})


@settings(deadline=None)
@given(
    st.sampled_from(sorted(SIGNAL_EVENTS)),
    st.dictionaries(
        st.sampled_from(
            "Span Alarm DAHDIChannel Peer PeerStatus ContactStatus EndpointName AOR Device "
            "State".split()
        ),
        st.text() | st.sampled_from(["1", "32", "um1", "PJSIP/um1", "Red Alarm", "Reachable"]),
    ),
)
def test_no_event_raises_or_touches_what_it_does_not_name(
    name: str, headers: dict[str, str]
) -> None:
    signal = read_event(name, headers, TRUNKS, ())
    for one in signal.sightings:
        assert set(one.kinds) <= one.among
        assert all(d.isprintable() and len(d) <= 200 for d in one.kinds.values())


# --- lists --------------------------------------------------------------------------------------


def channels(
    first: int, last: int, alarm: str = "No Alarm", how: str = "ISDN PRI"
) -> list[Message]:
    return [
        {"DAHDIChannel": str(n), "Signalling": how, "Alarm": alarm} for n in range(first, last + 1)
    ]


def span(number: int, up: str = "Yes", order: str = "Primary") -> Message:
    return {"Span": str(number), "Order": order, "Alarm": "No", "Up": up}


ALL = [*channels(1, 62), *channels(63, 64, how="ISDN BRI Point to Point")]
SPANS = [span(1), span(2), span(3)]


def lines(found: list[Message], spans: list[Message] | None) -> dict[str, set[AlarmKind]]:
    return after(read_lines(found, spans, TRUNKS))


def test_a_list_ends_what_it_does_not_show() -> None:
    nothing: set[AlarmKind] = set()
    assert lines(ALL, SPANS) == {"low": nothing, "high": nothing, "other": nothing, "bus": nothing}


def test_a_list_shows_what_stands() -> None:
    found = [*channels(1, 31, "Blue Alarm"), *channels(32, 62), *channels(63, 64, "Recovering")]
    spans = [span(1, "No"), span(2, "No"), span(3, "No")]
    # What recovers keeps what it had; here it had everything.
    bus = LINE
    assert lines(found, spans) == {"low": {AIS, D}, "high": {AIS, D}, "other": {D}, "bus": set(bus)}


def test_without_libpri_nothing_is_said_of_d_channels() -> None:
    assert lines(ALL, None)["low"] == {D}


def test_of_several_d_channels_one_that_is_up_is_enough() -> None:
    backed_up = [
        span(1, "No"),
        span(1, "Yes", "Secondary"),
        span(2, "No"),
        span(2, "No", "Secondary"),
    ]
    found = lines(ALL, backed_up)
    assert (found["low"], found["other"]) == (set(), {D})


def test_a_span_of_an_nfas_group_needs_no_d_channel() -> None:
    assert lines(ALL, [span(1)])["other"] == set()


def test_a_bus_at_rest_is_not_dead() -> None:
    resting = channels(63, 64, "Red Alarm", "ISDN BRI Point to MultiPoint")
    found = read_lines(resting, [span(3, "No")], [BUS])
    assert [one for one in found if one.kinds] == []
    # An event is believed, and the list does not take it back while the line looks as it does.
    assert after(found) == {"bus": set(LAYER1)}
    assert after(read_lines(channels(63, 64, how="Point to MultiPoint"), [span(3)], [BUS])) == {
        "bus": set()
    }


def test_a_board_that_is_gone_is_dead() -> None:
    found = lines(channels(1, 31), [span(1)])
    assert (found["low"], found["other"], found["bus"]) == (set(), {RED}, {RED})


def test_a_board_that_is_dialled_otherwise_may_have_other_numbers() -> None:
    own = replace(OTHER, dial=sites.trunk("x", dial="Local/{called}@span2").dial)
    assert [one.kinds for one in read_lines([], [], [own]) if one.kinds] == []


def test_the_recorded_endpoints() -> None:
    anonymous = replace(sites.trunk("anonymous"))
    nobody = sites.trunk("um9")
    found = read_endpoints(recorded("endpoints")[:-1], [UM1, UM2, AGAIN, LOW, anonymous, nobody])
    assert after(found.sightings) == {
        "um1": set(), "um2": {UNREACHABLE}, "again": set(), "anonymous": set(),
    }  # fmt: skip
    assert (found.unclear, found.unknown) == ([], ["um9"])


@pytest.mark.parametrize("state", ["In use", "Busy", "Ringing", "On Hold", "Unknown", ""])
def test_an_endpoint_with_calls_must_be_asked_itself(state: str) -> None:
    rows = [{"ObjectName": "um1", "Aor": "um1", "DeviceState": state}]
    found = read_endpoints(rows, [UM1, AGAIN])
    assert (found.sightings, found.unclear) == ([], ["um1"])


def test_the_recorded_endpoint_and_its_contacts() -> None:
    items = recorded("endpoint")[:-1]
    assert after(read_endpoint("um2", items, TRUNKS)) == {"um2": {UNREACHABLE}}
    contact = {"Status": "Reachable", "URI": "sip:b", "EndpointName": "um2"}
    assert after(read_endpoint("um2", [*items, contact], TRUNKS)) == {"um2": set()}
    assert read_endpoint("um2", [], TRUNKS) == []
    assert read_endpoint("phone", items, TRUNKS) == []
