from __future__ import annotations

import json

import pytest

from tests.sites import ANSWERED, call, one_record, plan, refused, route, site, trunk
from umpack.cli import tables
from umpack.core.administration import Drain
from umpack.core.distributor import Distributor
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
        "trunks": list(views.trunks(distributor)),
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
