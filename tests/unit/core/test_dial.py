from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sites import MAIN, all_of, one_pack, plan, route, site, trunk
from umpack.core.calls import Assignment, Call, CallId, Reason, Refusal
from umpack.core.dial import (
    FIELDS,
    DialError,
    DialTemplate,
    cleaned_caller,
    is_safe_number,
    render,
)
from umpack.core.distributor import Distributor
from umpack.core.trunk import TrunkKind

relaxed = settings(deadline=None)
NASTY = [
    "&Local/x@y",
    "100&Local/x@y,",
    "1,30,tTg",
    "100@evil",
    "100/n",
    "${SHELL(id)}",
    "1|2",
    "1;2",
    "1^2",
    "1:2",
    "1\n",
    "1\r\n",
    "1\0",
    '"1"',
    "1 2",
    "{channel}",
    "١٢٣",
    "1\u0661",
    "%26",
    "",
    "1" * 65,
]
line_text = (
    st.text() | st.sampled_from(NASTY) | st.from_regex(r"[0-9wWc&,/@]{1,12}", fullmatch=True)
)


@pytest.mark.parametrize(
    "text",
    [
        "DAHDI/{channel}/{called}",
        "PJSIP/{called}@um1",
        "Local/{called}@fax",
        "DAHDI/i{span}/{called}",
        "Local/{slot}-{caller}-{called}-{trunk}@x",
        "PJSIP/{endpoint}",
        "Custom/{{x}}",
    ],
)
def test_templates_of_the_trade_are_taken(text: str) -> None:
    assert DialTemplate(text).text == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "PJSIP",
        "PJSIP/",
        "/{called}",
        "{called}/x",
        "PJ SIP/{called}",
        "PJSIP/{number}",
        "PJSIP/{}",
        "PJSIP/{0}",
        "PJSIP/{called!r}",
        "PJSIP/{called:>9}",
        "PJSIP/{called.x}",
        "PJSIP/{called[0]}",
        "PJSIP/{called",
        "PJSIP/called}",
        "PJSIP/{called}&Local/x@y",
        "PJSIP/{called},30",
        "PJSIP/a|b",
        "PJSIP/a b",
        "PJSIP/a(b)",
        'PJSIP/"a"',
        "PJSIP/a\\b",
        "PJSIP/a\nb",
        "PJSIP/a\0b",
    ],
)
def test_templates_that_cannot_work_are_refused_with_their_text(text: str) -> None:
    with pytest.raises(DialError, match=re.escape(repr(text))):
        DialTemplate(text)


def test_what_is_fixed_per_channel_is_filled_in_once() -> None:
    parts = DialTemplate("DAHDI/{channel}/{called}").parts(channel=17)
    assert parts == ("DAHDI/17/", "called", "")
    assert render(parts, "100", "030") == "DAHDI/17/100"


def test_caller_and_called_keep_their_places() -> None:
    parts = DialTemplate("Local/{caller}-{called}-{caller}@{trunk}").parts(trunk="line1")
    assert render(parts, "100", "030") == "Local/030-100-030@line1"


def test_a_template_may_do_without_numbers() -> None:
    parts = DialTemplate("Local/{slot}@fax").parts(slot=3)
    assert parts == ("Local/3@fax",)
    assert render(parts, "100", "030") == "Local/3@fax"


def test_a_lone_caller_keeps_its_place() -> None:
    parts = DialTemplate("Local/{caller}@fax").parts()
    assert render(parts, "100", "030") == "Local/030@fax"


@pytest.mark.parametrize("field", [name for name in FIELDS if name not in ("called", "caller")])
@pytest.mark.parametrize("absent", [None, ""])
def test_a_field_the_channel_has_not_is_an_error_and_not_the_word_none(
    field: str, absent: str | None
) -> None:
    template = DialTemplate(f"Local/{{{field}}}-{{called}}@x")
    with pytest.raises(DialError, match=f"no {field} here"):
        template.parts(**{field: absent})
    with pytest.raises(DialError, match=f"no {field} here"):
        template.parts()
    assert render(template.parts(**{field: 0}), "1", "") == "Local/0-1@x"


@pytest.mark.parametrize(
    ("text", "digits_only"),
    [("DAHDI/{channel}/{called}", True), ("dahdi/{channel}", True), ("PJSIP/{called}@u", False)],
)
def test_dahdi_reads_letters_as_commands(text: str, *, digits_only: bool) -> None:
    template = DialTemplate(text)
    assert template.digits_only is digits_only
    assert template.technology == text.partition("/")[0]


@pytest.mark.parametrize("number", NASTY)
def test_nasty_numbers_are_unsafe_everywhere(number: str) -> None:
    assert not is_safe_number(number)
    assert not is_safe_number(number, digits_only=True)


@pytest.mark.parametrize("number", ["100", "+4930200", "*21#", "12ABCD", "1" * 64])
def test_numbers_of_the_trade_are_safe(number: str) -> None:
    assert is_safe_number(number)
    assert is_safe_number(number, digits_only=True)


@pytest.mark.parametrize("number", ["alice", "fax.box_1-a", "100w", "1W", "c1", "12E"])
def test_letters_are_safe_where_they_command_nothing(number: str) -> None:
    assert is_safe_number(number)
    assert not is_safe_number(number, digits_only=True)


@pytest.mark.parametrize(
    ("caller", "cleaned", "digits"),
    [
        ("030 123-4", "030123-4", "0301234"),
        ('"&Local/x@y,', "Localxy", ""),
        ("+49 (30) 1w2", "+49301w2", "+493012"),
        ("1" * 80, "1" * 64, "1" * 64),
        ("", "", ""),
    ],
)
def test_a_caller_is_cleaned_not_refused(caller: str, cleaned: str, digits: str) -> None:
    assert cleaned_caller(caller) == cleaned
    assert cleaned_caller(caller, digits_only=True) == digits


@relaxed
@given(line_text)
def test_a_cleaned_caller_is_safe_or_empty(caller: str) -> None:
    for digits_only in (False, True):
        cleaned = cleaned_caller(caller, digits_only=digits_only)
        assert cleaned == "" or is_safe_number(cleaned, digits_only=digits_only)


TEMPLATES = [
    ("PJSIP/{called}@um1", TrunkKind.SIP),
    ("Local/{caller}@fax", TrunkKind.SIP),
    ("Local/{called}/n", TrunkKind.SIP),
    ("Local/{caller}-{called}@fax", TrunkKind.SIP),
    ("Local/{called}-{called}@{endpoint}", TrunkKind.SIP),
    ("DAHDI/{channel}/{called}", TrunkKind.S0),
    ("DAHDI/{channel}/{caller}", TrunkKind.S0),
    ("DAHDI/i{span}/{called}{caller}", TrunkKind.S0),
]
MEANING = "&,|/@:;^()[]{}$\"'\\ \t\r\n\0"


def _fixed_part(template: str, kind: TrunkKind) -> str:
    line = trunk("a", 1, kind=kind, dial=template)
    return template.format(
        called="", caller="", channel=line.number(1), span=line.span, endpoint=line.endpoint
    )


@settings(deadline=None, max_examples=300)
@given(line_text, line_text, st.sampled_from(TEMPLATES))
def test_nothing_off_the_line_bends_a_dial_string(
    called: str, caller: str, template: tuple[str, TrunkKind]
) -> None:
    """The whole way through the distributor: what reaches a dial string has no meaning there."""
    text, kind = template
    distributor = Distributor(one_pack(trunk("a", 1, kind=kind, dial=text)))
    answer = distributor.offer(Call(CallId("1"), MAIN, called, caller), 0.0)
    letters_command = text.startswith("DAHDI")
    if not is_safe_number(called):
        assert isinstance(answer, Refusal)
        assert (answer.reason, answer.cause) == (Reason.INVALID_NUMBER, 28)
    elif letters_command and not is_safe_number(called, digits_only=True):
        assert isinstance(answer, Refusal)
        assert answer.reason is Reason.INVALID_NUMBER
    else:
        assert isinstance(answer, Assignment)
        fixed = _fixed_part(text, kind)
        for meaning in MEANING:
            assert answer.dial.count(meaning) == fixed.count(meaning)
        if letters_command:
            numbers = answer.dial.removeprefix(fixed)
            assert re.fullmatch(r"[0-9*#+ABCD]*", numbers)
        assert answer.dial.isascii()
        assert answer.dial.isprintable()


@pytest.mark.parametrize("number", NASTY)
def test_an_unsafe_called_number_is_refused_with_28_and_takes_nothing(number: str) -> None:
    distributor = Distributor(one_pack(trunk("a", 1)))
    answer = distributor.offer(Call(CallId("1"), MAIN, number), 0.0)
    assert isinstance(answer, Refusal)
    assert (answer.reason, answer.cause) == (Reason.INVALID_NUMBER, 28)
    assert len(distributor.ledger) == 0
    (record,) = distributor.take_records()
    assert (record.reason, record.cause) == (Reason.INVALID_NUMBER, 28)


def test_a_number_with_letters_finds_its_way_round_dahdi() -> None:
    board = trunk("board", 2, kind=TrunkKind.S0)
    sip = trunk("sip", 1)
    distributor = Distributor(one_pack(board, sip))
    answer = distributor.offer(Call(CallId("1"), MAIN, "alice"), 0.0)
    assert isinstance(answer, Assignment)
    assert answer.dial == "PJSIP/alice@sip"


def test_a_lone_caller_field_is_cleaned_as_well() -> None:
    local = trunk("a", 1, dial="Local/{caller}@fax")
    distributor = Distributor(
        site([local], [plan("um", all_of(local))], [route("100", "um", callers=["*"])])
    )
    answer = distributor.offer(Call(CallId("1"), MAIN, "100", '"&Local/x@y,'), 0.0)
    assert isinstance(answer, Assignment)
    assert answer.dial == "Local/Localxy@fax"
