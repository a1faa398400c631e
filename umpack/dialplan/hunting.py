"""Hunting without umpack: runs of channels, one trunk's attempts, and the verdict on each.

HANGUPCAUSE and its keys outlive a Dial, and where our own time limit ends an attempt app_dial sets
neither; so they are cleared before each one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from string import Formatter

from umpack.core.causes import CauseTable, Elsewhere
from umpack.core.channel import ChannelId
from umpack.core.trunk import Trunk, TrunkId
from umpack.dialplan.extension import NOW, Extension, one_of

SHORTEST_ATTEMPT = 0.1
"""Seconds; with less of the setup budget left another attempt cannot succeed."""

DIGITS = "0-9*#+ABCD"
"""What `core.dial` lets into a dial string for a board; DAHDI reads other letters as commands."""

_FAR_END_SPEAKS = frozenset({"DAHDI", "PJSIP"})
"""Channel drivers that note every word of the far end in HANGUPCAUSE_KEYS(). With them an attempt
without one never left the PBX: a DAHDI channel in use is "busy" to Dial, and so is no answer."""


LEFT = f"${{UMPACK_SINCE}} + ${{UMPACK_BUDGET}} - {NOW}"
"""What is left of the setup budget, in seconds; to stand in an expression."""

_WORD = "UMPACK_WORD"
"""What the far end has said, in one word."""


def out(trunk: str) -> str:
    """The variable that says `1` while a trunk, or `trunk.slot`, is not to be tried."""
    return f"UMPACK_OUT_{trunk}"


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring positions of a pack on one trunk, their slots `step` apart."""

    trunk: Trunk
    position: int
    length: int
    slot: int
    step: int


def runs(trunks: Mapping[TrunkId, Trunk], channels: Sequence[ChannelId]) -> list[Run]:
    """The positions of a pack as few runs, in their order."""
    places: list[tuple[int, Trunk, int]] = []
    for position, channel in enumerate(channels):
        trunk_id, _, number = channel.rpartition(":")
        places.append((position, trunks[TrunkId(trunk_id)], int(number)))
    found: list[Run] = []
    for _, group in groupby(places, key=lambda place: place[1].id):
        found += _runs_of_one_trunk(group)
    return found


def _runs_of_one_trunk(places: Iterator[tuple[int, Trunk, int]]) -> Iterator[Run]:
    open_run: Run | None = None
    for position, trunk, slot in places:
        if open_run is not None and (longer := _longer(open_run, slot)) is not None:
            open_run = longer
            continue
        if open_run is not None:
            yield open_run
        open_run = Run(trunk, position, 1, slot, 1)
    if open_run is not None:
        yield open_run


def _longer(run: Run, slot: int) -> Run | None:
    """The run with one more slot, if the slot goes on as the run began."""
    step = run.step if run.length > 1 else slot - run.slot
    if step not in (1, -1) or slot != run.slot + step * run.length:
        return None
    return Run(run.trunk, run.position, run.length + 1, run.slot, step)


def trunk_extension(trunk: Trunk, name: str) -> Extension:
    """Tries a run from position ARG1, ARG2 long, first slot ARG3, slots ARG4 apart; ARG5 is who
    judges.

    A dial string that is the same for every channel is tried once for the whole trunk.
    """
    if trunk.kind.is_service:
        # Only umpack can receive: without it such a port is as good as busy.
        return Extension(name, f"service {trunk.id} ({trunk.kind.value})").do("Return()")
    technology = trunk.dial.technology.upper()
    dial = _dial_string(trunk)
    by_channel = "${UMPACK_SLOT}" in dial or "${UMPACK_NUMBER}" in dial
    own = ("channel" if by_channel else "trunk") if technology in _FAR_END_SPEAKS else ""
    tried = out(trunk.id)
    steps = Extension(name, f"trunk {trunk.id} ({trunk.kind.value})")
    steps.goto_if(f'"${{{tried}}}" = "1"', "done")
    if trunk.dial.digits_only:
        # Letters: not for a board, but perhaps for the next trunk of the pack.
        steps.goto_if("${LEN(${UMPACK_CALLED})} != ${LEN(${UMPACK_DIGITS})}", "done")
    steps.set("LOCAL(at)", "${ARG1}").set("LOCAL(end)", "$[${ARG1} + ${ARG2}]")
    steps.do("ExecIf($[${at} < ${UMPACK_FROM}]?Set(at=${UMPACK_FROM}))")
    steps.do("ExecIf($[${end} > ${UMPACK_TO}]?Set(end=${UMPACK_TO}))")
    steps.do("GotoIf($[${at} >= ${end}]?done)", "next")
    if by_channel:
        steps.set("UMPACK_SLOT", "$[${ARG3} + ${ARG4} * (${at} - ${ARG1})]")
        steps.set("UMPACK_NUMBER", f"$[${{UMPACK_SLOT}} + {trunk.first_number - 1}]")
    steps.set("at", "$[${at} + 1]")
    if by_channel and trunk.kind.is_line:
        steps.goto_if(f'"${{{out(f"{trunk.id}.${{UMPACK_SLOT}}")}}}" = "1"', "next")
    steps.set("LOCAL(within)", f"$[{LEFT}]")
    steps.do(f"GotoIf($[${{within}} < {SHORTEST_ATTEMPT}]?late)")
    steps.do("ExecIf($[${within} > ${UMPACK_WITHIN}]?Set(within=${UMPACK_WITHIN}))")
    steps.do("HangupCauseClear()")
    steps.do(f"Dial({dial},${{within}})")
    steps.do(f"Gosub(umpack-judge,${{ARG5}},1({own}))")
    if by_channel:
        steps.goto_if('"${GOSUB_RETVAL}" = "channel"', "next")
    steps.set(tried, "1")
    return steps.do("Return()", "done").end("${UMPACK_REFUSAL}", "late")


def _dial_string(trunk: Trunk) -> str:
    digits = trunk.dial.digits_only
    per_call = {
        "called": "${UMPACK_DIGITS}" if digits else "${UMPACK_CALLED}",
        "caller": f"${{FILTER({DIGITS},${{UMPACK_CALLER}})}}" if digits else "${UMPACK_CALLER}",
        "channel": "${UMPACK_NUMBER}",
        "slot": "${UMPACK_SLOT}",
        "span": str(trunk.span or ""),
        "endpoint": trunk.endpoint or "",
        "trunk": str(trunk.id),
    }
    text = ""
    for literal, field, _, _ in Formatter().parse(trunk.dial.text):
        # A bare semicolon begins a comment in Asterisk's configuration files.
        text += literal.replace(";", r"\;") + (per_call[field] if field is not None else "")
    return text


def judge(table: CauseTable, name: str) -> Extension:
    """Answers `channel` (try the next one) or `trunk` (its other channels are no better), or ends
    the call. ARG1 is the answer where nothing was heard from the far end.

    What was heard becomes one word, `c17` or, where the table has the SIP status, `s486`: as in the
    core that goes before the cause, into which Asterisk folds several.
    """
    words: dict[Elsewhere, list[str]] = {elsewhere: [] for elsewhere in Elsewhere}
    for sign, rows in (("c", table.causes), ("s", table.sip)):
        for number, verdict in sorted(rows.items()):
            words[verdict.elsewhere].append(f"{sign}{number}")
    steps = Extension(name)
    steps.goto_if('"${DIALSTATUS}" = "ANSWER"', "over")
    steps.goto_if('"${DIALSTATUS}" = "CANCEL"', "over")
    steps.set(_WORD, "c${HANGUPCAUSE}")
    steps.goto_if('"${ARG1}" = "" | "${DIALSTATUS}" = "NOANSWER"', "heard")
    steps.goto_if("${LEN(${HANGUPCAUSE_KEYS()})} = 0", "own")
    steps.do(f'ExecIf($["${{DIALSTATUS}}" = "BUSY"]?Set({_WORD}=c17))', "heard")
    steps.goto_if('"${ARG1}" = "" | ${LEN(${HANGUPCAUSE_KEYS()})} = 0', "judge")
    # The far end chooses all but the first seven signs of this: no more of it is ever read.
    steps.set("UMPACK_SAID", "${HANGUPCAUSE(${HANGUPCAUSE_KEYS()},tech)}")
    steps.goto_if('"${UMPACK_SAID:0:4}" != "SIP "', "judge")
    known = one_of(map(str, sorted(table.sip)), "UMPACK_SAID:4:3")
    steps.do(f"ExecIf($[{known}]?Set({_WORD}=s${{UMPACK_SAID:4:3}}))")
    steps.goto_if(one_of(words[Elsewhere.NO], _WORD), "call", "judge")
    steps.goto_if(f"{LEFT} < {SHORTEST_ATTEMPT}", "late")
    steps.goto_if(one_of(words[Elsewhere.CHANNEL], _WORD), "channel")
    steps.goto_if(one_of(["c0", *words[Elsewhere.TRUNK]], _WORD), "trunk")
    # The rest, and what the table does not know: one more try, then it is the call's own.
    steps.goto_if('"${UMPACK_ONCE}" = "1"', "call")
    steps.set("UMPACK_ONCE", "1").do("Return(trunk)", "trunk").do("Return(channel)", "channel")
    steps.goto_if(f"{LEFT} < {SHORTEST_ATTEMPT}", "late", "own").do("Return(${ARG1})")
    steps.goto_if('"${DIALSTATUS}" = "BUSY"', "busy", "call").end("${HANGUPCAUSE}")
    steps.end(17, "busy").end("${UMPACK_REFUSAL}", "late")
    return steps.do("Hangup()", "over")
