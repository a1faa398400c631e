from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.messages.mails import BROKEN, DOCUMENT, ENGINE, START, message
from umpack.core.errors import ConfigError
from umpack.messages.message import DocumentFacts, EngineFacts, Kind, Message
from umpack.messages.outcomes import (
    BundlePolicy,
    Outcome,
    Relation,
    RelationKind,
    miscounted,
    notices,
    outcome,
    relation,
)
from umpack.messages.voice import NOTHING_SAID

POLICY = BundlePolicy(quiet=600, longest=3600)
NOTHING = EngineFacts(status="FAILED", error="no carrier")
BEEP = replace(ENGINE, seconds=0.2)
SHORT = DocumentFacts(fault="shorter than a message")
SILENCE = EngineFacts("SUCCESS", NOTHING_SAID, seconds=1.02)
PERSON = EngineFacts(
    "FAILED", "The call dropped prematurely", pages=0, bitrate=14400, t38=False, seconds=5.0,
    cause=16,
)  # fmt: skip
"""Of somebody who spoke on a fax number, as Asterisk 22 tells it."""
HANDSHAKE = replace(NOTHING, station=b"+49 30 777")


def failed(number: int, at: float, caller: str = "+4930777") -> Message:
    return message(
        number, at=at, caller=caller, engine=HANDSHAKE, document=None, original=None
    )  # fmt: skip


def empty(number: int, at: float, caller: str = "+4930777") -> Message:
    return message(number, at=at, caller=caller, engine=NOTHING, document=None, original=None)


def partial(number: int, at: float, hashes: tuple[str, ...] = ("aa",)) -> Message:
    count = len(hashes)
    document = DocumentFacts(count, count, 0, hashes)
    return message(number, at=at, engine=replace(BROKEN, pages=count), document=document)


@pytest.mark.parametrize(
    ("one", "how"),
    [
        (message(), Outcome.WHOLE),
        (message(engine=BROKEN), Outcome.INCOMPLETE),
        (message(engine=replace(ENGINE, pages=4)), Outcome.INCOMPLETE),
        (message(document=replace(DOCUMENT, pages_pdf=1)), Outcome.INCOMPLETE),
        (message(document=replace(DOCUMENT, fault="page 2: cut off (3)")), Outcome.INCOMPLETE),
        (message(document=replace(DOCUMENT, fault="page 2: bad rows (3)")), Outcome.WHOLE),
        (message(document=DocumentFacts(0, 0, 0, (), "not a TIFF")), Outcome.INCOMPLETE),
        # Its end was seen by the PBX, or by nobody.
        (message(adopted="umpack was away at its call's end"), Outcome.WHOLE),
        (message(adopted="its call's end was not seen", engine=EngineFacts()), Outcome.INCOMPLETE),
        (message(adopted="x", engine=replace(ENGINE, pages=None)), Outcome.INCOMPLETE),
        (message(adopted="x", document=None), Outcome.INCOMPLETE),
        (message(adopted="x", kind=Kind.VOICE, document=None), Outcome.INCOMPLETE),
        (message(adopted="x", engine=EngineFacts(), original=None), Outcome.EMPTY),
        (
            message(adopted="x", engine=EngineFacts(), original=None, answered=START),
            Outcome.FAILED,
        ),
        (
            message(
                adopted="x",
                kind=Kind.VOICE,
                engine=EngineFacts(),
                original=None,
                document=None,
                answered=START,
            ),
            Outcome.EMPTY,
        ),
        (message(engine=None), Outcome.INCOMPLETE),
        (failed(1, START), Outcome.FAILED),
        (empty(1, START), Outcome.EMPTY),
        (message(engine=PERSON, document=None, original=None), Outcome.EMPTY),
        (
            message(engine=replace(PERSON, resolution="204x98"), document=None, original=None),
            Outcome.FAILED,
        ),
        (message(kind=Kind.VOICE, document=None), Outcome.WHOLE),
        (message(kind=Kind.VOICE, engine=BEEP, document=None), Outcome.WHOLE),
        (
            message(kind=Kind.VOICE, engine=BEEP, document=DocumentFacts(fault="no sound")),
            Outcome.EMPTY,
        ),
        (message(kind=Kind.VOICE, engine=BEEP, document=SHORT), Outcome.EMPTY),
        (message(kind=Kind.VOICE, engine=None, document=SHORT, adopted="x"), Outcome.EMPTY),
        (message(kind=Kind.VOICE, engine=NOTHING, original=None), Outcome.EMPTY),
        # Of the silence that has ended it a second is left.
        (message(kind=Kind.VOICE, engine=SILENCE, document=DocumentFacts()), Outcome.EMPTY),
        # The recorder has heard a minute, and it is not on the disk.
        (message(kind=Kind.VOICE, document=SHORT), Outcome.INCOMPLETE),
        (message(kind=Kind.VOICE, original=None), Outcome.INCOMPLETE),
    ],
)
def test_outcomes(one: Message, how: Outcome) -> None:
    assert outcome(one) is how


@pytest.mark.parametrize(
    ("one", "wrong"),
    [
        (message(), False),
        (message(engine=replace(ENGINE, pages=4)), True),
        (message(engine=replace(BROKEN, pages=1)), True),
        (message(engine=replace(ENGINE, pages=None)), False),
        (message(engine=None), False),
        (message(document=None), False),
        (message(document=DocumentFacts(0, 0, 0, (), "conversion took too long")), False),
        (message(document=DocumentFacts(0, 0, 0, (), "not a TIFF")), True),
        (message(original=None, document=None), True),
        (failed(1, START), False),
        (message(kind=Kind.VOICE), False),
        (message(kind=Kind.VOICE, original=None), True),
        (message(kind=Kind.VOICE, original=None, engine=NOTHING), False),
        (message(kind=Kind.VOICE, document=DocumentFacts(fault="ends before its length")), True),
    ],
)
def test_what_was_received_and_is_not_in_the_file(one: Message, wrong: bool) -> None:
    assert miscounted(one) is wrong


def test_a_try_with_nothing_in_it_does_not_keep_back_what_comes_after() -> None:
    beep = message(1, kind=Kind.VOICE, engine=BEEP, document=SHORT)
    after = message(2, at=START + 60, kind=Kind.VOICE, engine=BROKEN, document=None)
    (bundle,) = notices([beep, after], (), START + 61, POLICY).mails
    assert (bundle.main, bundle.others) == (after, (beep,))


def test_whole_fax_goes_at_once_with_what_failed_before() -> None:
    tries = [failed(1, START), empty(2, START + 60)]
    found = notices([*tries, message(3, at=START + 120)], (), START + 121, POLICY)
    assert [bundle.main.id[-1] for bundle in found.mails] == ["3"]
    assert [other.id[-1] for other in found.mails[0].others] == ["1", "2"]
    assert (found.silent, found.next_at) == ((), None)


def test_failed_tries_wait_until_the_caller_has_given_up() -> None:
    tries = [failed(n, START + 60 * n) for n in range(10)]
    early = notices(tries, (), START + 600, POLICY)
    assert (early.mails, early.next_at) == ((), START + 540 + 600)
    late = notices(tries, (), START + 1140, POLICY)
    assert len(late.mails) == 1
    assert len(late.mails[0].others) == 9
    assert late.mails[0].main.id == tries[-1].id


def test_nobody_waits_for_ever_for_a_caller_who_never_gives_up() -> None:
    tries = [failed(n, START + 500 * n) for n in range(8)]
    assert not notices(tries, (), START + 3599, POLICY).mails
    assert len(notices(tries, (), START + 3600, POLICY).mails) == 1


def test_first_incomplete_fax_goes_at_once_and_further_ones_together() -> None:
    first = partial(1, START)
    assert [b.main for b in notices([first], (), START + 1, POLICY).mails] == [first]
    more = [partial(2, START + 60), partial(3, START + 120, ("aa", "bb"))]
    assert notices(more, [first], START + 121, POLICY).mails == ()
    (bundle,) = notices(more, [first], START + 720, POLICY).mails
    assert (bundle.main, bundle.others) == (more[1], (more[0],))


def test_a_thousand_empty_calls_make_no_mail() -> None:
    calls = [empty(n, START + n, caller="") for n in range(1000)]
    found = notices(calls, (), START + 5000, POLICY)
    assert found.mails == ()
    assert len(found.silent) == 1000


def test_clock_put_back_keeps_nobody_waiting() -> None:
    assert notices([failed(1, START)], (), START - 86400, POLICY).mails


def test_callers_and_numbers_are_not_mixed() -> None:
    tries = [failed(1, START), failed(2, START, "+4930888"), replace(failed(3, START))]
    found = notices(tries, (), START + 700, POLICY)
    assert sorted(len(bundle.others) for bundle in found.mails) == [0, 1]


KINDS = {"w": lambda n, at: message(n, at=at), "p": partial, "f": failed, "e": empty}


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("wpfe"), st.integers(0, 5000)), max_size=12),
    st.integers(0, 10000),
)
def test_everything_is_mailed_closed_or_waits(calls: list[tuple[str, int]], after: int) -> None:
    waiting = [KINDS[kind](n, START + at) for n, (kind, at) in enumerate(calls)]
    waiting = [one for one in waiting if (one.committed or 0) <= START + after]
    found = notices(waiting, (), START + after, POLICY)
    told = [m.id for b in found.mails for m in (b.main, *b.others)] + [m.id for m in found.silent]
    assert len(told) == len(set(told))
    left = [one for one in waiting if one.id not in told]
    assert bool(left) is (found.next_at is not None)
    assert all(outcome(one) is not Outcome.WHOLE for one in left)
    assert all(outcome(one) is Outcome.EMPTY for one in found.silent)
    assert all(outcome(bundle.main) is not Outcome.EMPTY for bundle in found.mails)
    if left:
        assert found.next_at is not None
        assert found.next_at > START + after


def test_order_of_the_rows_does_not_matter() -> None:
    calls = [failed(1, START), partial(2, START + 60), message(3, at=START + 90)]
    ends = {notices(order, (), START + 100, POLICY) for order in permutations(calls)}
    assert len(ends) == 1


def test_policy_must_make_sense() -> None:
    with pytest.raises(ConfigError):
        BundlePolicy(quiet=600, longest=60)


def doc(*hashes: str) -> DocumentFacts:
    return DocumentFacts(len(hashes), len(hashes), 0, hashes)


@pytest.mark.parametrize(
    ("hashes", "kind", "pages"),
    [
        (("aa", "bb"), RelationKind.REPEAT, 2),
        (("bb",), RelationKind.REPEAT, 1),
        (("bb", "cc"), RelationKind.OVERLAP, 1),
        (("aa", "aa"), RelationKind.OVERLAP, 1),
    ],
)
def test_repeats_are_found_by_their_pages(
    hashes: tuple[str, ...], kind: RelationKind, pages: int
) -> None:
    before = message(1)
    after = message(2, at=START + 60, document=doc(*hashes))
    assert relation(after, [before]) == Relation(kind, before.id, pages)


def test_resumed_fax_continues_the_broken_one() -> None:
    before = partial(1, START, ("aa", "bb"))
    after = message(2, at=START + 90, document=doc("cc", "dd"))
    assert relation(after, [before]) == Relation(RelationKind.CONTINUATION, before.id)
    assert relation(replace(after, started=START + 4000), [before]) is None


@pytest.mark.parametrize(
    "other",
    [
        message(1, caller="+4930888"),
        message(1, called="4930200013"),
        message(1, at=START - 90000),
        message(1, at=START + 600),
        message(1, document=doc("xx", "yy")),
        message(1, kind=Kind.VOICE),
        message(2),
    ],
)
def test_what_is_not_related(other: Message) -> None:
    assert relation(message(2, at=START + 60), [other]) is None


def test_withheld_number_is_known_by_its_station_id() -> None:
    before, after = message(1, caller=""), message(2, at=START + 60, caller="")
    assert relation(after, [before]) is not None
    nobody = replace(ENGINE, station=b"")
    before, after = replace(before, engine=nobody), replace(after, engine=nobody)
    assert relation(after, [before]) is None
