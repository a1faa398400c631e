"""Causes in the light of phase, place and our own count, and whose table counts."""

from __future__ import annotations

import pytest

from tests.sites import refused
from umpack.core.causes import (
    CAUSE_VERDICTS,
    SIP_VERDICTS,
    Blame,
    CauseTable,
    Elsewhere,
    Location,
    Outcome,
    Override,
    Overrides,
    Result,
    Verdict,
    words_of,
)

TABLE = CauseTable()
NO, ONCE, CHANNEL, TRUNK = Elsewhere
OWN = Verdict(TRUNK, Blame.CALL, "our exchange is odd")


def answers(outcome: Outcome, **known: bool) -> tuple[Elsewhere, Blame]:
    verdict = TABLE.verdict(outcome, **known)
    return verdict.elsewhere, verdict.blame


@pytest.mark.parametrize("sip", [408, 480])
def test_who_rings_and_does_not_answer_is_the_user(sip: int) -> None:
    rang = Outcome(Result.REFUSED, 19, sip, rang=True)
    assert answers(rang) == (NO, Blame.CALL)
    assert answers(refused(19, 408)) == (TRUNK, Blame.TRUNK)


@pytest.mark.parametrize(("rang", "blame"), [(None, Blame.TRUNK), (True, Blame.CALL)])
def test_a_time_limit_after_ringing_is_not_silence(rang: bool | None, blame: Blame) -> None:
    assert answers(Outcome(Result.TIMED_OUT, rang=rang)) == (TRUNK, blame)


def test_an_attempt_cut_short_blames_nobody_and_may_be_made_again() -> None:
    assert answers(Outcome(Result.TIMED_OUT), cut_short=True) == (CHANNEL, Blame.NOBODY)


@pytest.mark.parametrize("cause", [34, 44])
def test_glare_blames_nobody_and_takes_another_channel(cause: int) -> None:
    lost = Outcome(Result.REFUSED, cause, glare=True)
    assert answers(lost) == (CHANNEL, Blame.NOBODY)
    assert words_of(lost) == "glare"


def test_34_of_a_full_trunk_blames_nobody() -> None:
    assert answers(refused(34), full=True) == (TRUNK, Blame.NOBODY)
    assert answers(refused(34), full=False) == (TRUNK, Blame.TRUNK)
    assert answers(refused(34, 503), full=True) == (TRUNK, Blame.TRUNK), "the server says so"


@pytest.mark.parametrize("location", Location)
@pytest.mark.parametrize("cause", [27, 38, 41, 47, 102])
def test_a_fault_far_away_is_not_our_trunks(cause: int, location: Location) -> None:
    far = location.value in (4, 5, 7, 10)
    blame = answers(Outcome(Result.REFUSED, cause, location=location))[1]
    assert blame is (Blame.NOBODY if far else Blame.TRUNK)


@pytest.mark.parametrize("location", Location)
def test_a_network_that_rejects_is_tried_round_once(location: Location) -> None:
    expected = (NO, Blame.CALL) if location is Location.USER else (ONCE, Blame.NOBODY)
    assert answers(Outcome(Result.REFUSED, 21, location=location)) == expected


def test_what_a_site_says_holds_for_every_phase_and_place() -> None:
    own = dict.fromkeys((21, 34, 41), OWN)
    table = CauseTable({**CAUSE_VERDICTS, **own}, {**SIP_VERDICTS, 480: OWN})
    for outcome in (
        Outcome(Result.REFUSED, 21, location=Location.TRANSIT),
        Outcome(Result.REFUSED, 41, location=Location.INTERNATIONAL),
        Outcome(Result.REFUSED, 19, 480, rang=True),
    ):
        assert table.verdict(outcome) is OWN
    assert table.verdict(refused(34), full=True) is OWN


def test_rows_of_a_trunk_lie_over_those_of_its_pack_and_both_over_the_sites() -> None:
    site, pack, trunk = (Verdict(TRUNK, Blame.CALL, who) for who in ("site", "pack", "trunk"))
    table = CauseTable(
        {**CAUSE_VERDICTS, **dict.fromkeys((17, 18, 19), site)},
        trunks={"a": Overrides({17: Override(trunk.elsewhere, trunk.blame, "trunk")})},
        packs={
            "um": Overrides(
                dict.fromkeys((17, 18), Override(pack.elsewhere, pack.blame, "pack")),
                {486: Override(pack.elsewhere, pack.blame, "pack")},
            )
        },
    )

    def said(trunk: str, pack: str) -> list[Verdict]:
        rows = table.of(trunk, pack)
        return [rows.verdict(refused(cause)) for cause in (17, 18, 19)]

    assert said("a", "um") == [trunk, pack, site]
    assert said("a", "fax") == [trunk, site, site]
    assert said("b", "um") == [pack, pack, site]
    assert said("b", "fax") == [site, site, site]
    assert table.of("b", "fax") is table.of("b") is table
    assert table.of("a", "um").verdict(refused(17, 486)) == pack
    assert table.of("a", "um").verdict(refused(1)) is CAUSE_VERDICTS[1]


def test_half_a_row_leaves_the_other_half_to_who_is_below() -> None:
    table = CauseTable(
        trunks={"a": Overrides({27: Override(TRUNK, None, "trunk")})},
        packs={"um": Overrides({27: Override(None, Blame.NOBODY, "pack")})},
    )
    assert table.of("a", "um").causes[27] == Verdict(TRUNK, Blame.NOBODY, "trunk")
    assert table.of("a").causes[27] == Verdict(TRUNK, Blame.TRUNK, "trunk")
    assert table.of("b", "um").causes[27] == Verdict(ONCE, Blame.NOBODY, "pack")


def test_what_a_pack_says_holds_for_every_phase_and_place() -> None:
    half = Overrides({41: Override(TRUNK, None, "pack")})
    far = Outcome(Result.REFUSED, 41, location=Location.INTERNATIONAL)
    table = CauseTable(packs={"um": half})
    assert table.of("a", "um").verdict(far).blame is Blame.TRUNK
    assert table.of("a").verdict(far).blame is Blame.NOBODY
    assert table.of("a", "um").verdict(refused(34), full=True).blame is Blame.NOBODY
