from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivers.asterisk.ami_wire import AmiCodec, AmiEvent
from drivers.asterisk.occupancy import Occupant, needs_dahdi, occupants, place_of

DATA = Path(__file__).parents[2] / "data" / "ami"


def recorded(name: str) -> list[AmiEvent]:
    codec = AmiCodec()
    text = (DATA / name).read_text(encoding="utf-8").replace("\r\n", "\n").replace("\n", "\r\n")
    messages = codec.feed(f"Asterisk Call Manager/11.0.0\r\n{text}".encode())
    return [m for m in messages if isinstance(m, AmiEvent) and m.name == "CoreShowChannel"]


def row(name: str, uniqueid: str = "1.1", **more: str) -> dict[str, str]:
    return {"Channel": name, "Uniqueid": uniqueid, "Linkedid": "1.0", **more}


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("PJSIP/um1-0000002a", "um1"),
        ("PJSIP/um-2-0000002a", "um-2"),
        ("SIP/um1-deadbeef", "um1"),
        ("DAHDI/5-1", 5),
        ("DAHDI/31-2", 31),
        ("DAHDI/i1/4930-2a", None),
        ("DAHDI/pseudo-1804289383", None),
        ("DAHDI/x-1", None),
        ("Local/100@umpack-in-0000001f;1", None),
        ("PJSIP/um1-0000002a<ZOMBIE>", None),
        ("AsyncGoto/PJSIP/um1-0000002a", None),
        ("PJSIP/um1", None),
        ("DAHDI/9999999999999999999999-1", None),
        ("DAHDI/\u0665-1", None),
        ("", None),
    ],
)
def test_where_a_channel_is(name: str, place: int | str | None) -> None:
    assert place_of(name) == place


def test_a_real_list() -> None:
    leg, caller = occupants(recorded("channels.txt"))
    assert leg == Occupant(
        "1795343955.1", "1795343955.0", "PJSIP/um1-00000001", "um1", True, "100", ""
    )
    assert (caller.place, caller.dialled, caller.called) == ("anonymous", False, "100")
    assert caller.uniqueid == leg.linkedid
    assert not needs_dahdi(recorded("channels.txt"))
    assert occupants(recorded("channels-none.txt")) == []


def test_only_dahdi_can_tell_the_b_channel_of_a_span() -> None:
    channels = [row("DAHDI/i2/4930/1-2a", "1.1"), row("DAHDI/i2/4930-2b", "1.2")]
    assert needs_dahdi(channels)
    assert not needs_dahdi([row("DAHDI/5-1")])
    lines = [
        {"DAHDIChannel": "31"},
        {"DAHDIChannel": "33", "Channel": "DAHDI/i2/4930/1-2a", "Uniqueid": "1.1"},
        {"DAHDIChannel": "x", "Uniqueid": "1.2"},
    ]
    assert [occupant.place for occupant in occupants(channels, lines)] == [33, None]


def test_what_dahdi_says_is_surer_than_a_name() -> None:
    # A B channel may change during setup, and the name does not.
    (moved,) = occupants([row("DAHDI/5-1")], [{"DAHDIChannel": "6", "Uniqueid": "1.1"}])
    assert moved.place == 6


def test_a_channel_linked_to_nobody_is_linked_to_itself() -> None:
    (alone,) = occupants([{"Channel": "DAHDI/5-1", "Uniqueid": "1.1"}])
    assert (alone.linkedid, alone.dialled, alone.caller) == ("1.1", False, "")
    assert occupants([row("DAHDI/5-1", "", CallerIDNum="1")]) == []
    (hidden,) = occupants([row("DAHDI/5-1", CallerIDNum="<unknown>", Application="AppDial")])
    assert (hidden.dialled, hidden.caller) == (True, "")


@settings(deadline=None)
@given(
    st.lists(st.dictionaries(st.sampled_from(["Channel", "Uniqueid", "DAHDIChannel"]), st.text()))
)
def test_any_text_is_somewhere_or_nowhere(rows: list[dict[str, str]]) -> None:
    for occupant in occupants(rows, rows):
        assert occupant.place is None or isinstance(occupant.place, int | str)
