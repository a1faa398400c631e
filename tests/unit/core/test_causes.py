from __future__ import annotations

import pytest

from tests.sites import ANSWERED, HUNG_UP, SILENT, refused
from umpack.core import causes
from umpack.core.causes import (
    CAUSE_VERDICTS,
    NAMES,
    SIP_VERDICTS,
    SITUATIONS,
    WIRE_SAFE_CAUSES,
    Blame,
    CauseTable,
    Elsewhere,
    Outcome,
    Result,
    Verdict,
    name_of,
    refusal_on_sip,
)

TABLE = CauseTable()
NO, ONCE, CHANNEL, TRUNK = Elsewhere


def answers(outcome: Outcome) -> tuple[Elsewhere, Blame]:
    verdict = TABLE.verdict(outcome)
    return verdict.elsewhere, verdict.blame


@pytest.mark.parametrize(
    ("cause", "elsewhere", "blame"),
    [
        (1, NO, Blame.CALL),
        (3, ONCE, Blame.NOBODY),
        (16, NO, Blame.CALL),
        (17, NO, Blame.CALL),
        (21, NO, Blame.CALL),
        (27, ONCE, Blame.TRUNK),
        (28, NO, Blame.CALL),
        (34, TRUNK, Blame.TRUNK),
        (38, TRUNK, Blame.TRUNK),
        (41, TRUNK, Blame.TRUNK),
        (42, TRUNK, Blame.NOBODY),
        (44, CHANNEL, Blame.CHANNEL),
        (58, TRUNK, Blame.NOBODY),
        (88, NO, Blame.CALL),
        (102, TRUNK, Blame.TRUNK),
    ],
)
def test_the_two_verdicts_of_a_cause(cause: int, elsewhere: Elsewhere, blame: Blame) -> None:
    assert answers(refused(cause)) == (elsewhere, blame)


@pytest.mark.parametrize(
    ("sip", "cause", "elsewhere", "blame"),
    [
        (404, 3, NO, Blame.CALL),
        (486, 17, NO, Blame.CALL),
        (603, 21, NO, Blame.CALL),
        (408, 18, TRUNK, Blame.TRUNK),
        (503, 34, TRUNK, Blame.TRUNK),
        (401, 21, TRUNK, Blame.TRUNK),
        (501, 29, TRUNK, Blame.NOBODY),
        (505, 127, TRUNK, Blame.NOBODY),
    ],
)
def test_the_sip_answer_is_read_before_the_cause_it_was_folded_into(
    sip: int, cause: int, elsewhere: Elsewhere, blame: Blame
) -> None:
    assert answers(refused(cause, sip)) == (elsewhere, blame)


def test_a_sip_answer_the_table_has_not_leaves_it_to_the_cause() -> None:
    assert answers(refused(17, 499)) == (NO, Blame.CALL)


@pytest.mark.parametrize("cause", [None, 0, 77, 126, -1, 4711])
def test_an_unknown_cause_is_one_more_try_and_blames_nobody(cause: int | None) -> None:
    assert answers(refused(cause)) == (ONCE, Blame.NOBODY)


def test_the_end_of_a_call_that_was_not_refused_is_not_read_from_its_cause() -> None:
    assert answers(Outcome(Result.ANSWERED, cause=41)) == answers(ANSWERED) == (NO, Blame.NOBODY)
    assert answers(Outcome(Result.HUNG_UP, cause=41)) == answers(HUNG_UP) == (NO, Blame.NOBODY)
    assert answers(Outcome(Result.TIMED_OUT, cause=17)) == answers(SILENT) == (TRUNK, Blame.TRUNK)


def test_a_site_may_have_its_own_rows() -> None:
    own = Verdict(TRUNK, Blame.NOBODY, "our exchange says 17 for full")
    table = CauseTable({**CAUSE_VERDICTS, 17: own}, {**SIP_VERDICTS, 486: own})
    assert table.verdict(refused(17)) is own
    assert table.verdict(refused(1, 486)) is own
    assert table.verdict(refused(28)) == TABLE.verdict(refused(28))
    assert answers(refused(17)) == (NO, Blame.CALL)


_SOURCES = ("Q.850 ", "Q.850:", "Q.931 ", "RFC ", "Asterisk ", "Dean and Barroso")


@pytest.mark.parametrize("verdict", [*CAUSE_VERDICTS.values(), *SIP_VERDICTS.values(), *SITUATIONS])
def test_every_row_says_what_it_rests_on(verdict: Verdict) -> None:
    assert any(source in verdict.source for source in _SOURCES)


def test_every_verdict_there_is_was_looked_at() -> None:
    own = [value for value in vars(causes).values() if isinstance(value, Verdict)]
    assert sorted(own, key=str) == sorted(SITUATIONS, key=str)


@pytest.mark.parametrize(
    "verdict", [*CAUSE_VERDICTS.values(), *SIP_VERDICTS.values()], ids=lambda v: v.source
)
def test_a_call_is_moved_from_whatever_is_blamed_and_kept_where_it_is_the_calls_own(
    verdict: Verdict,
) -> None:
    if verdict.blame is Blame.CALL:
        assert verdict.elsewhere is NO
    if verdict.blame in (Blame.TRUNK, Blame.CHANNEL):
        assert verdict.elsewhere is not NO


def test_causes_have_names() -> None:
    assert name_of(34) == "no circuit/channel available"
    assert name_of(77) == "cause 77"


@pytest.mark.parametrize("cause", range(128))
def test_a_sip_caller_is_never_told_603(cause: int) -> None:
    """Asterisk makes 603 Decline of any cause it has no SIP status for."""
    told = refusal_on_sip(cause)
    assert told in WIRE_SAFE_CAUSES
    assert told == (cause if cause in WIRE_SAFE_CAUSES else 34)


def test_causes_without_a_sip_status_of_their_own_become_34() -> None:
    assert [refusal_on_sip(cause) for cause in (41, 44, 47, 6, 102, 23)] == [34] * 6
    assert [refusal_on_sip(cause) for cause in (1, 17, 31, 34)] == [1, 17, 31, 34]
    assert set(NAMES) >= WIRE_SAFE_CAUSES
