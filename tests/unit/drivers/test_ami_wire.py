from __future__ import annotations

from collections import deque
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivers.asterisk.ami_wire import (
    AmiAnswer,
    AmiCodec,
    AmiEvent,
    AmiMessage,
    AmiUnsendable,
    encode_action,
)
from umpack.core.errors import ProtocolFault

GREETING = b"Asterisk Call Manager/11.0.0\r\n"


def feed_three_ways(data: bytes, wanted: frozenset[str] | None = None) -> list[AmiMessage]:
    """Whole, byte by byte, and with the start of another message behind: all must agree."""
    whole = AmiCodec(wanted).feed(GREETING + data)
    codec = AmiCodec(wanted)
    single = [each for byte in GREETING + data for each in codec.feed(bytes([byte]))]
    trailing = AmiCodec(wanted).feed(GREETING + data + b"Event: Half\r\nA: b\r")
    for other in (single, trailing):
        assert [(type(m), dict(m), m.text) for m in other] == [
            (type(m), dict(m), m.text) for m in whole
        ]
    return whole


def test_event_and_answer() -> None:
    event, answer = feed_three_ways(
        b"Event: Newchannel\r\nChannel: PJSIP/um1-01\r\nCallerIDName:\r\nX:  two\r\n\r\n"
        b"Response: Error\r\nActionID: a-1\r\nMessage: No such channel\r\n\r\n"
    )
    assert isinstance(event, AmiEvent)
    assert event.name == "Newchannel"
    assert event["channel"] == event["Channel"] == "PJSIP/um1-01"
    assert event["CallerIDName"] == ""
    assert event["X"] == " two"  # one space belongs to the protocol, the rest to the value
    assert "nothing" not in event
    assert isinstance(answer, AmiAnswer)
    assert not answer.ok
    assert answer.action_id == "a-1"


def test_repeated_headers_are_all_kept() -> None:
    (event,) = feed_three_ways(
        b"Event: Hangup\r\nChanVariable: a=1\r\nChanVariable: b=2\r\nChanVariable: c\r\n\r\n"
    )
    assert event.all("chanvariable") == ["a=1", "b=2", "c"]
    assert event["ChanVariable"] == "a=1"
    assert event.all("Event") == ["Hangup"]
    assert event.all("none") == []


def test_colons_belong_to_the_value() -> None:
    (event,) = feed_three_ways(b"Event: X\r\nURI:sip:1@h: 2\r\nB: a: b\r\n\r\n")
    assert event["URI"] == "sip:1@h: 2"
    assert event["B"] == "a: b"


def test_lone_line_feed_forges_no_header() -> None:
    (event,) = feed_three_ways(b"Event: VarSet\r\nValue: a\nEvent: Hangup\n\nX: y\r\n\r\n")
    assert isinstance(event, AmiEvent)
    assert event.name == "VarSet"
    assert event["Value"] == "a\nEvent: Hangup\n\nX: y"


def test_command_output_new_and_old() -> None:
    new, old, after = feed_three_ways(
        b"Response: Success\r\nActionID: 1\r\nMessage: Command output follows\r\n"
        b"Output: a: 1\r\nOutput:   b\r\nOutput: \r\n\r\n"
        b"Response: Follows\r\nPrivilege: Command\r\nActionID: 2\r\n"
        b"a: 1\n  b\n\r\n\r\nlast\n--END COMMAND--\r\n\r\n"
        b"Event: After\r\n\r\n"
    )
    assert isinstance(new, AmiAnswer)
    assert new.output == ["a: 1", "  b", ""]
    assert isinstance(old, AmiAnswer)
    assert old.ok
    assert old.action_id == "2"
    assert old.output == ["a: 1", "  b", "", "", "last"]
    assert after["Event"] == "After"


def test_line_feed_only_peer() -> None:
    codec = AmiCodec()
    data = b"Asterisk Call Manager/1.1\nResponse: Success\nActionID: 7\n\nEvent: A\nB: c\n\n"
    messages = [each for byte in data for each in codec.feed(bytes([byte]))]
    assert codec.version == "1.1"
    assert [dict(m) for m in messages] == [
        {"Response": "Success", "ActionID": "7"},
        {"Event": "A", "B": "c"},
    ]


def test_unwanted_events_are_skipped_unless_part_of_a_list() -> None:
    codec = AmiCodec(frozenset({"Hangup"}))
    messages = codec.feed(
        GREETING + b"Event: VarSet\r\nA: b\r\n\r\nEvent: Hangup\r\n\r\n"
        b"Event: CoreShowChannel\r\nActionID: 1\r\n\r\n"
    )
    assert [m["Event"] for m in messages] == ["Hangup", "CoreShowChannel"]
    assert codec.skipped == 1


def test_garbled_message_is_kept_apart_and_the_next_one_read() -> None:
    garbled, event = feed_three_ways(b"what is\r\nthis\r\n\r\nEvent: A\r\nno header\r\n\r\n")
    assert type(garbled) is AmiMessage
    assert garbled.text == "what is\nthis"
    assert isinstance(event, AmiEvent)
    assert event.text == "no header"


def test_foreign_charset_loses_nothing() -> None:
    (event,) = feed_three_ways(b"Event: A\r\nName: M\xfcller\r\n\r\n")
    assert event["Name"] == "M\\xfcller"


@pytest.mark.parametrize(
    "greeting",
    [b"SSH-2.0-OpenSSH\r\n", b"SSH", b"Asterisk Call Manager\r\n", b"Asterisk Call Manager/" * 20],
)
def test_wrong_greeting(greeting: bytes) -> None:
    with pytest.raises(ProtocolFault, match="wrong greeting"):
        AmiCodec().feed(greeting)
    codec = AmiCodec()
    with pytest.raises(ProtocolFault, match="wrong greeting"):
        deque(map(codec.feed, (bytes([byte]) for byte in greeting)))


@pytest.mark.parametrize("end", [b"", b"\r\n\r\n"])
def test_bounds(end: bytes) -> None:
    with pytest.raises(ProtocolFault, match="line over"):
        AmiCodec(max_line=1000).feed(GREETING + b"Event: " + b"x" * 1100 + end)
    many = b"Event: A\r\n" + b"X: y\r\n" * 400
    with pytest.raises(ProtocolFault, match="message over"):
        AmiCodec(max_line=100, max_message=2000).feed(GREETING + many + end)
    with pytest.raises(ProtocolFault, match="NUL"):
        AmiCodec().feed(GREETING + b"Event: A\0")


def test_endless_command_output_is_bounded() -> None:
    codec = AmiCodec(max_message=5000)
    codec.feed(GREETING + b"Response: Follows\r\nPrivilege: Command\r\n")
    with pytest.raises(ProtocolFault, match="message over"):
        deque(map(codec.feed, [b"line\r\n\r\n"] * 1000))


@pytest.mark.parametrize(
    "headers",
    [
        {"Channel": "a\r\nAction: Originate"},
        {"Channel": "a\nb"},
        {"Channel": "a\rb"},
        {"Channel": "a\0b"},
        {"Chan\r\nnel": "a"},
        {"A:b": "c"},
        {"": "c"},
        {"Variable": ["a=1", "b=\n"]},
        {"ActionID": "mine"},
        {"action": "Other"},
        {"Channel": "x" * 1100},
        {"Channel": "\ud800"},
        {"Variable": ["a=1"] * 200},
    ],
)
def test_unsendable(headers: dict[str, str | list[str]]) -> None:
    with pytest.raises(AmiUnsendable):
        encode_action("Hangup", "id", headers)


def test_action_name_cannot_inject() -> None:
    with pytest.raises(AmiUnsendable):
        encode_action("Ping\r\nAction: Originate", "id")


VALUE = st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]), max_size=60)
NAME = st.from_regex(r"[A-Za-z][A-Za-z0-9-]{0,12}", fullmatch=True).filter(
    lambda name: name.lower() not in {"action", "actionid", "event", "response"}
)


@settings(deadline=None, max_examples=150)
@given(
    headers=st.dictionaries(NAME, st.lists(VALUE, min_size=1, max_size=3), max_size=8).filter(
        lambda found: len({name.lower() for name in found}) == len(found)
    ),
    cuts=st.lists(st.integers(0, 2000), max_size=6),
)
def test_what_is_sent_is_what_is_read(headers: dict[str, list[str]], cuts: list[int]) -> None:
    packet = encode_action("Test", "id-1", headers)
    data = GREETING + packet + packet
    codec = AmiCodec()
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    messages = [each for start, end in pairwise(edges) for each in codec.feed(data[start:end])]
    assert len(messages) == 2
    for message in messages:
        assert message.action_id == "id-1"
        assert {name: message.all(name) for name in headers} == headers
        assert len(message) == len(headers) + 2


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=400))
def test_any_bytes_are_messages_or_a_protocol_fault(data: bytes) -> None:
    codec = AmiCodec()
    try:
        messages = codec.feed(GREETING + data + b"\r\n\r\nEvent: Z\r\n\r\n")
    except ProtocolFault:
        assert b"\0" in data
    else:
        assert messages[-1].get("Event") == "Z"
