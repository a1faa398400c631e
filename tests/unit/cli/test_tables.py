from __future__ import annotations

import io
import json
import re

import pytest

from tests.sites import (
    ANSWERED,
    MAIN,
    assigned,
    call,
    one_record,
    plan,
    refused,
    route,
    site,
    trunk,
)
from umpack.cli import tables
from umpack.core.administration import Drain
from umpack.core.distributor import Distributor
from umpack.core.health_policy import HealthPolicy, PackPolicy
from umpack.core.health_states import AlarmKind
from umpack.core.trunk import TrunkId
from umpack.web import views

EVIL = "[red]\x1b[2J\r\n│ forged\u202e\ud800[/red]"
ESCAPED = "[red]\\x1b[2J\\r\\n│ forged\\u202e\\ud800[/red]"


def busy() -> Distributor:
    distributor = Distributor(
        site(
            [trunk("a", 1), trunk("b", 2), trunk("c", 1)],
            [plan("um", ["a:1"], overflow=["spare"]), plan("spare", ["b:1", "b:2"])],
            [route("1*", "um")],
        )
    )
    distributor.drain(Drain("c", EVIL, EVIL, 0.0, 4e9))
    return distributor


def status_of(distributor: Distributor) -> views.View:
    return {
        "node": "here",
        "version": "0",
        "since": 0.0,
        "now": 90.0,
        "accepting": True,
        "calls": len(distributor.ledger),
        "configuration": {"error": None, "restart_needed": []},
        "pbxs": [
            {"id": "main", "link": "down", "since": 0.0, "agi": "h:1", "detail": EVIL,
             "leaving": False}
        ],
        "journal": {"fault": None, "since": None, "dropped": 0},
        "log": {"dropped": 0},
        "packs": list(views.packs(distributor)),
        "trunks": list(views.trunks(distributor, 90.0)),
        "channel_list": list(views.channels(distributor)),
    }  # fmt: skip


def squeezed(text: str) -> str:
    return "".join(text.split())


def test_nothing_off_the_line_is_markup_or_control(capsys: pytest.CaptureFixture[str]) -> None:
    distributor = busy()
    assignment = distributor.offer(call(called="1" + EVIL[:9], caller=EVIL), 0.0)
    assert assignment is not None
    evil_call = call(caller=EVIL)
    held = distributor.offer(evil_call, 0.0)
    tables.status(status_of(distributor))
    tables.living_calls(list(views.living_calls(distributor)))
    tables.explanation(views.living_call(distributor, evil_call.id) or {})
    distributor.outcome(held.lease, ANSWERED, 1.0)  # type: ignore[union-attr]
    records = [views.record(record) for record in distributor.take_records()]
    tables.ended_calls(records)
    for record in records:
        tables.explanation(record)
    out = capsys.readouterr().out
    assert not {"\x1b", "\r", "\u202e", "\ud800"} & set(out)
    assert squeezed(ESCAPED) in squeezed(out)
    assert not any(line.startswith("│ forged") for line in out.splitlines())


@pytest.mark.parametrize("width", [40, 80, 100, 200])
def test_a_narrow_terminal_breaks_no_word_and_leaves_nothing_out(
    monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "linux")
    distributor = busy()
    distributor.drain(Drain("a", "anna", "the exchange swaps its board", 0.0, 4e9))
    tables.status(status_of(distributor))
    text = re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue())
    lines = [line.rstrip() for line in text.splitlines()]
    rows = [line.split() for line in lines]
    assert [row[0] for row in rows if row[1:2] == ["sip"]] == ["a", "b", "c"]
    words = {word for row in rows for word in row}
    assert {"exchange", "swaps", "board", "strategy", "overflow", "drained"} <= words
    trunks = lines.index("Trunks")
    below = [line for line in lines[trunks:] if line.startswith("a: drained by anna")]
    assert len(below) == (width < 100)
    if width >= 80:
        assert all(len(line) <= width for line in lines if ": " not in line)


def test_status_says_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    answer = status_of(busy())
    tables.status(answer)
    calm = capsys.readouterr().out
    assert calm.startswith("umpack 0 on here, up 1 m 30 s, 0 calls\n")
    assert "refused" not in calm
    answer |= {
        "calls": 1,
        "accepting": False,
        "configuration": {"error": "f:1: no\nf:2: nor that", "restart_needed": ["node: x"]},
        "journal": {"fault": "disk full", "since": 5.0, "dropped": 3},
        "log": {"dropped": 4},
    }
    tables.status(answer)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "umpack 0 on here, up 1 m 30 s, 1 call, stopping: no more calls"
    assert lines[1:5] == [
        "the last reload was refused, the configuration before it is in force:",
        "f:1: no",
        "f:2: nor that",
        "node: x",
    ]
    assert lines[5].startswith("journal: disk full since 1970-01-01")
    assert lines[6] == "journal: 3 calls found no room and are lost"
    assert lines[7] == "log: 4 lines found no reader and are lost"


def test_an_explanation_names_every_step() -> None:
    distributor = busy()
    distributor.offer(call(), 0.0)
    moved = distributor.offer(call(), 10.0)
    distributor.outcome(moved.lease, refused(34, 503), 11.0)  # type: ignore[union-attr]
    lines = tables.explanation_lines(views.record(one_record(distributor)))
    text = "\n".join(lines)
    assert "route 1*" in text
    assert "pack um is full (1 channels)" in text
    assert "attempt 1: b:1, position 1 of pack spare (hunt from the first" in text
    assert "refused after 1.000 s, cause 34, SIP 503" in text
    assert "refused (attempts failed) after 1.000 s, cause 34" in text


def doubtful() -> Distributor:
    """a is well, b a suspect, c hesitates, d is in alarm, one channel of e rests."""
    policy = HealthPolicy(hesitation_samples=1, failures_to_eject=9, suspect_rest=500.0)
    names = ("a", "b", "c", "d", "e")
    distributor = Distributor(
        site(
            [trunk(name, 3) for name in names],
            [plan(f"p{name}", [f"{name}:{n}" for n in (1, 2, 3)]) for name in names]
            + [plan("um", [f"{name}:{n}" for name in names for n in (1, 2, 3)])],
            [*(route(f"{n}*", f"p{name}") for n, name in enumerate(names, 1)), route("9*", "um")],
            policy=policy,
            pack_policy=PackPolicy(panic_share=0.0),
        )
    )
    b = assigned(distributor.offer(call(called="2"), 1.0))
    distributor.outcome(b.lease, refused(41), 1.5)
    distributor.hear(MAIN, 1.0, hints=True)
    for answered in (True, False):
        c = assigned(distributor.offer(call(called="3"), 2.0))
        if answered:
            distributor.answered(c.lease, 2.01)
    distributor.alarm_raised(TrunkId("d"), AlarmKind.RED, 2.0, "span 4")
    for _ in range(3):
        e = assigned(distributor.offer(call(called="5"), 3.0))
        distributor.release(assigned(distributor.outcome(e.lease, refused(44), 3.0)).lease.token, 3)
    distributor.tick(4.0)
    return distributor


def test_health_in_the_status(capsys: pytest.CaptureFixture[str]) -> None:
    distributor = doubtful()
    tables.trunks(list(views.trunks(distributor, 4.0)))
    out = capsys.readouterr().out
    squashed = squeezed(out)
    assert "suspect" in out
    assert "an answered call clears it; trial in" in " ".join(out.split())
    assert squeezed("up (in reserve)") in squashed
    assert "whichnormallytakes" in squashed
    assert squeezed("red (span 4)") in squashed
    assert squeezed("e:1 rests 60 s, 1st time, 3× cause 44") in squashed
    assert "inservice" in squashed
    assert "glare" not in squashed
    distributor.collisions[TrunkId("a")] = 3
    tables.trunks(list(views.trunks(distributor, 4.0)))
    assert squeezed("glare 3×, which blames nobody") in squeezed(capsys.readouterr().out)
    tables.trunks([])
    assert capsys.readouterr().out == "no trunks\n"


def test_one_trunk_in_words() -> None:
    distributor = Distributor(site([trunk("a", 2), trunk("b", 2)], [
        plan("um", ["a:1", "a:2", "b:1", "b:2"])]))  # fmt: skip
    distributor.eject(TrunkId("a"), 1.0, "by eva: noise", 30.0)
    assert tables.trunk_lines(views.trunk(distributor, "a", 11.0) or {}) == [
        "a is ejected: ejected 30 s, 1st time, by eva: noise; trial in 20 s"
    ]
    distributor.drain(Drain("a", "tom", "swap", 0.0))
    distributor.restore_trunk(TrunkId("a"), 12.0, "restored by eva")
    assert tables.trunk_lines(views.trunk(distributor, "a", 12.0) or {}) == [
        "a is up", "out of service: drained by tom: swap",
    ]  # fmt: skip
    assert tables.trunk_lines({"id": "a", "health": None, "administration": {}}) == [
        "a has been removed from the configuration"
    ]


def test_the_end_of_a_drain_is_shown_with_it(capsys: pytest.CaptureFixture[str]) -> None:
    distributor = busy()
    distributor.drain(Drain("b", "tom", "", 0.0, 90.0 + 3600))
    distributor.drain(Drain("a:1", "eva", "", 0.0))
    tables.status(status_of(distributor))
    shown = squeezed(capsys.readouterr().out)
    end = tables.moment_of(90.0 + 3600, 90.0)
    assert squeezed(f"drained by tom until {end}") in shown
    assert squeezed("drained by eva until") not in shown


def test_changes_of_health(capsys: pytest.CaptureFixture[str]) -> None:
    distributor = busy()
    distributor.eject(TrunkId("a"), 1.0, EVIL, 30.0)
    tables.changes([views.change(change) for change in distributor.take_changes()])
    out = capsys.readouterr().out
    assert not {"\x1b", "\r", "\u202e", "\ud800"} & set(out)
    assert squeezed("up ejected ejected 30 s, 1st time, " + ESCAPED) in squeezed(out)
    tables.changes([])
    assert capsys.readouterr().out == "no changes\n"


def test_an_explanation_says_why_this_trunk() -> None:
    distributor = doubtful()
    first = assigned(distributor.offer(call(called="9"), 5.0))
    assert first.channel == "a:1"
    second = assigned(distributor.outcome(first.lease, refused(41), 5.1))
    living = views.living_call(distributor, second.lease.holder.call.id) or {}
    lines = tables.explanation_lines(living)
    here = "now dialling on e:2, position 14 of pack um (hunt from the first, "
    here += "13 positions passed over)"
    assert "route 9*: um" in lines
    assert f"{here}; another trunk, for a had failed this call" in lines
    hunted = lines[lines.index("not first choice, or left out of the hunt:") + 1 :]
    assert "  3 channels of d: alarmed: red (span 4)" in hunted
    assert any(line.startswith("  1 channels of e: rests 60 s") for line in hunted)
    assert any(line.startswith("  3 channels of b: suspect: cause 41") for line in hunted)
    assert any(line.startswith("  3 channels of c: up: an attempt has had no") for line in hunted)
    # A trunk that is taken though it is none of the best is named apart from those left out.
    b = assigned(distributor.offer(call(called="2"), 5.2))
    living = views.living_call(distributor, b.lease.holder.call.id) or {}
    lines = tables.explanation_lines(living)
    assert "taken all the same: b, suspect: cause 41 temporary failure" in lines
    assert "not first choice, or left out of the hunt:" not in lines
    # Glare loses a channel, and no trunk.
    moved = assigned(distributor.outcome(b.lease, refused(44), 5.3))
    distributor.outcome(moved.lease, ANSWERED, 6.0)
    record = views.record(distributor.take_records()[-1])
    text = "\n".join(tables.explanation_lines(record))
    assert "attempt 2: b:2, position 2 of pack pb" in text
    assert "; another channel, for b:1 was lost\n" in text


def test_json_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    tables.print_json({"caller": EVIL})
    out = capsys.readouterr().out
    assert json.loads(out) == {"caller": EVIL}
    assert out.isascii()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (59.94, "59.9 s"),
        (60, "1 m 0 s"),
        (3725, "1 h 2 m"),
        (200_000, "2 d 7 h"),
    ],
)
def test_spans(seconds: float, text: str) -> None:
    assert tables.span_of(seconds) == text


def test_moments_of_today_need_no_date() -> None:
    noon = 1_790_000_000.0
    assert tables.moment_of(noon, noon + 60) == tables.time_of(noon)[11:]
    assert tables.moment_of(noon, noon + 86400) == tables.time_of(noon)


def test_times_no_calendar_has() -> None:
    assert tables.time_of(None) == "-"
    assert tables.time_of(1e300) == "1e+300 s"
    assert tables.time_of(-1.0) == "-1 s"
