"""The dialplan of a PBX: one AGI step, and hunting without umpack for when that fails.

The text is for `#include` in extensions.conf. How it decides after the AGI step:

- umpack sets `UMPACK_CAUSE` before it ends a call. Where that is set, the call is over.
- AGISTATUS cannot tell a finished umpack from a killed one: the end of the connection is SUCCESS
  to Asterisk (res_agi.c), so without `UMPACK_CAUSE` the dialplan looks at what is left of the call.
  A call that was answered meanwhile must end, not ring a second server. A Dial that ran on while
  umpack was killed has set DIALSTATUS and is judged like one of the dialplan's own.
- Everything else hunts: the pack's channels in their order, then its overflow packs.

Numbers come off the line. They enter variables through FILTER() only, and nothing here uses
another form of them; what FILTER would change is refused with cause 28, as umpack does.

While hunting, HANGUPCAUSE stays that of the attempt before when our own time limit ends an
attempt (app_dial.c). That is harmless: only causes that said "try elsewhere" are ever left over.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from string import Formatter

from umpack.config import Configuration
from umpack.core.causes import WIRE_SAFE_CAUSES, CauseTable, Elsewhere, refusal_on_sip
from umpack.core.channel import ChannelId
from umpack.core.pack import PackPlan, Strategy
from umpack.core.routes import Pattern, Route, Routes
from umpack.core.trunk import PbxId, Trunk, TrunkId

_NUMBER = r"0-9A-Za-z*#+._\x2d"
_DIGITS = "0-9*#+ABCD"
"""What `core.dial` lets into a dial string; DAHDI reads other letters as commands."""

_FAR_END_SPEAKS = frozenset({"DAHDI", "PJSIP"})
"""Channel drivers that note every word of the far end in HANGUPCAUSE_KEYS(). With them an attempt
without one never left the PBX: a DAHDI channel in use is "busy" to Dial, and so is no answer."""

_MOST_TIME = 86400
_NAME = 20
"""Signs of a pattern that go into an extension, whose name has 79 bytes at most."""


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring positions of a pack on one trunk, their slots `step` apart."""

    trunk: Trunk
    position: int
    length: int
    slot: int
    step: int


class Extension:
    """Lines of one extension, the first of them numbered."""

    def __init__(self, name: str, comment: str = "") -> None:
        self.lines = [f"; {comment}"] if comment else []
        self._name = name
        self._begun = False

    def do(self, application: str, label: str = "") -> Extension:
        """Add a step."""
        place = f"({label})" if label else ""
        number = "n" if self._begun else "1"
        head = " same" if self._begun else f"exten => {self._name}"
        between = " => " if self._begun else ","
        self.lines.append(f"{head}{between}{number}{place},{application}")
        self._begun = True
        return self

    def set(self, variable: str, value: str) -> Extension:
        """Add a step that sets a variable."""
        return self.do(f"Set({variable}={value})")

    def goto_if(self, condition: str, label: str) -> Extension:
        """Add a jump; it goes on with the next step where the condition does not hold."""
        return self.do(f"GotoIf($[{condition}]?{label})")


def dialplan(configuration: Configuration, pbx: PbxId) -> str:
    """The text for one PBX of the configuration. `KeyError` if there is no such PBX."""
    return _Dialplan(configuration, pbx).text()


class _Dialplan:
    def __init__(self, configuration: Configuration, pbx: PbxId) -> None:
        self._site = configuration.site
        self._reach = configuration.pbxs[pbx].reach
        self._pbx = pbx
        routes = Routes(self._site.routes).routes
        self._routes = [route for route in routes if route.pbx in (None, pbx)]
        # By number: ids may have dashes, which Asterisk ignores in extensions, so that a-b and
        # ab were one; and an id such as h or t would be an extension with a meaning.
        self._trunks = {
            trunk.id: f"t{i}"
            for i, trunk in enumerate(self._site.trunks.values(), start=1)
            if trunk.pbx == pbx
        }
        self._packs = {
            pack: f"p{i}"
            for i, pack in enumerate(self._site.packs, start=1)
            if self._site.pbx_of(pack) == pbx
        }

    def text(self) -> str:
        """All contexts."""
        contexts: list[tuple[str, str, Iterable[Extension]]] = [
            ("umpack-in", "calls from the exchange enter here", self._entrances()),
            ("umpack-after", "after the AGI step: is there anything left to do?", self._after()),
            ("umpack-pack", "a pack and its overflow packs, in order", self._pack_extensions()),
            ("umpack-trunk", "one run of channels of a trunk", self._trunk_extensions()),
            ("umpack-judge", "what one attempt has come to", (_judge(self._site.causes),)),
        ]
        head = (
            f"; Printed by `umpack dialplan` for pbx {self._pbx}: print it again, do not edit it.\n"
            "; In extensions.conf: #include this file, and send calls to the context umpack-in.\n"
        )
        parts = [
            f"\n; {comment}\n[{name}]\n" + "\n".join(line for e in extensions for line in e.lines)
            for name, comment, extensions in contexts
        ]
        return head + "\n".join(parts) + "\n"

    def _entrances(self) -> Iterator[Extension]:
        for pattern in _entrance_patterns(route.called for route in self._routes):
            extension = Extension(pattern)
            extension.set("UMPACK_CALLED", f"${{FILTER({_NUMBER},${{EXTEN}})}}")
            extension.set("UMPACK_DIGITS", f"${{FILTER({_DIGITS},${{EXTEN}})}}")
            extension.set("UMPACK_LENGTH", "${LEN(${EXTEN})}")
            extension.set("UMPACK_CALLER", f"${{FILTER({_NUMBER},${{CALLERID(num)}})}}")
            extension.set("UMPACK_SINCE", "${EPOCH}")
            extension.set("UMPACK_UP", "${CHANNEL(state)}")
            extension.set("UMPACK_CAUSE", "").set("DIALSTATUS", "")
            extension.do(f"AGI(agi://{self._reach})")
            yield extension.do("Goto(umpack-after,s,1)")

    def _after(self) -> Iterator[Extension]:
        after = Extension("s")
        after.goto_if('"${UMPACK_CAUSE}" != ""', "decided")
        after.goto_if('"${AGISTATUS}" = "HANGUP"', "over")
        after.goto_if('"${CHANNEL(state)}" = "Up" & "${UMPACK_UP}" != "Up"', "over")
        after.set("UMPACK_BUDGET", str(_MOST_TIME)).set("UMPACK_ONCE", "")
        after.do('ExecIf($["${DIALSTATUS}" != ""]?Gosub(umpack-judge,s,1()))')
        after.do("Log(WARNING,umpack is away (AGI ${AGISTATUS}): hunting without it)")
        after.goto_if("${UMPACK_LENGTH} != ${LEN(${UMPACK_CALLED})}", "invalid")
        after.goto_if("${UMPACK_LENGTH} > 64", "invalid")
        for route in self._routes:
            for condition in _route_conditions(route):
                after.goto_if(condition, self._target(route))
        after.do(f"Hangup({refusal_on_sip(self._site.no_route_cause)})")
        after.do(r"Hangup(${FILTER(0-9,${UMPACK_CAUSE})})", "decided")
        after.do("Hangup(28)", "invalid").do("Hangup()", "over")
        yield after
        for cause in sorted({r.refuse for r in self._routes if r.refuse is not None}):
            yield Extension(f"r{cause}").do(f"Hangup({refusal_on_sip(cause)})")

    def _target(self, route: Route) -> str:
        if route.pack is None:
            return f"umpack-after,r{route.refuse},1"
        return f"umpack-pack,{self._packs[route.pack]},1"

    def _pack_extensions(self) -> Iterator[Extension]:
        for id_, name in self._packs.items():
            plan = self._site.packs[id_]
            extension = Extension(name, f"pack {id_}")
            extension.set("UMPACK_REFUSAL", str(plan.refusal_cause))
            budget = math.ceil(min(plan.setup_budget, _MOST_TIME))
            extension.set("UMPACK_BUDGET", str(budget)).set("UMPACK_ONCE", "")
            for trunk in self._trunks.values():
                extension.set(f"UMPACK_OUT_{trunk}", "")
            for member in self._site.chain(id_):
                self._hunt(extension, self._site.packs[member])
            yield extension.do("Hangup(${UMPACK_REFUSAL})")

    def _hunt(self, extension: Extension, plan: PackPlan) -> None:
        count = len(plan.channels)
        calls = [
            f"Gosub(umpack-trunk,{self._trunks[run.trunk.id]},"
            f"1({run.position},{run.length},{run.slot},{run.step}))"
            for run in self._runs(plan.channels)
        ]
        extension.set("UMPACK_WITHIN", f"{min(max(plan.answer_within, 0.001), _MOST_TIME):.3f}")
        if plan.strategy is Strategy.LINEAR or count == 1:
            extension.set("UMPACK_FROM", "0").set("UMPACK_TO", str(count))
            for call in calls:
                extension.do(call)
            return
        # Nobody keeps the pointer while umpack is away; a random start spreads the calls as well.
        extension.set("UMPACK_START", f"${{RAND(0,{count - 1})}}")
        extension.set("UMPACK_FROM", "${UMPACK_START}").set("UMPACK_TO", str(count))
        for call in calls:
            extension.do(call)
        extension.set("UMPACK_FROM", "0").set("UMPACK_TO", "${UMPACK_START}")
        for call in calls:
            extension.do(call)

    def _runs(self, channels: Sequence[ChannelId]) -> list[Run]:
        places: list[tuple[int, Trunk, int]] = []
        for position, channel in enumerate(channels):
            trunk_id, _, number = channel.rpartition(":")
            places.append((position, self._site.trunks[TrunkId(trunk_id)], int(number)))
        runs: list[Run] = []
        for _, group in groupby(places, key=lambda place: place[1].id):
            open_run: Run | None = None
            for position, trunk, slot in group:
                if open_run is not None and (longer := _longer(open_run, slot)) is not None:
                    open_run = longer
                    continue
                if open_run is not None:
                    runs.append(open_run)
                open_run = Run(trunk, position, 1, slot, 1)
            if open_run is not None:
                runs.append(open_run)
        return runs

    def _trunk_extensions(self) -> Iterator[Extension]:
        for id_, name in self._trunks.items():
            trunk = self._site.trunks[id_]
            yield _trunk_extension(trunk, name)


def _longer(run: Run, slot: int) -> Run | None:
    """The run with one more slot, if the slot goes on as the run began."""
    step = run.step if run.length > 1 else slot - run.slot
    if step not in (1, -1) or slot != run.slot + step * run.length:
        return None
    return Run(run.trunk, run.position, run.length + 1, run.slot, step)


def _trunk_extension(trunk: Trunk, name: str) -> Extension:
    """Tries a run from position ARG1, ARG2 long, first slot ARG3, slots ARG4 apart.

    A dial string that is the same for every channel is tried once for the whole trunk.
    """
    technology = trunk.dial.technology.upper()
    dial = _dial_string(trunk)
    by_channel = "${UMPACK_SLOT}" in dial or "${UMPACK_NUMBER}" in dial
    own = ("channel" if by_channel else "trunk") if technology in _FAR_END_SPEAKS else ""
    out = f"UMPACK_OUT_{name}"
    steps = Extension(name, f"trunk {trunk.id} ({trunk.kind.value})")
    steps.goto_if(f'"${{{out}}}" = "1"', "done")
    if trunk.dial.digits_only:
        steps.goto_if("${UMPACK_LENGTH} != ${LEN(${UMPACK_DIGITS})}", "invalid")
    steps.set("LOCAL(at)", "${ARG1}").set("LOCAL(end)", "$[${ARG1} + ${ARG2}]")
    steps.do("ExecIf($[${at} < ${UMPACK_FROM}]?Set(at=${UMPACK_FROM}))")
    steps.do("ExecIf($[${end} > ${UMPACK_TO}]?Set(end=${UMPACK_TO}))")
    steps.do("GotoIf($[${at} >= ${end}]?done)", "next")
    if by_channel:
        steps.set("UMPACK_SLOT", "$[${ARG3} + ${ARG4} * (${at} - ${ARG1})]")
        steps.set("UMPACK_NUMBER", f"$[${{UMPACK_SLOT}} + {trunk.first_number - 1}]")
    steps.set("at", "$[${at} + 1]")
    steps.do("HangupCauseClear()")
    steps.do(f"Dial({dial},${{UMPACK_WITHIN}})")
    steps.do(f"Gosub(umpack-judge,s,1({own}))")
    if by_channel:
        steps.goto_if('"${GOSUB_RETVAL}" = "channel"', "next")
    steps.set(out, "1")
    steps.do("Return()", "done")
    if trunk.dial.digits_only:
        steps.do("Hangup(28)", "invalid")
    return steps


def _dial_string(trunk: Trunk) -> str:
    digits = trunk.dial.digits_only
    per_call = {
        "called": "${UMPACK_DIGITS}" if digits else "${UMPACK_CALLED}",
        "caller": f"${{FILTER({_DIGITS},${{UMPACK_CALLER}})}}" if digits else "${UMPACK_CALLER}",
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


def _judge(table: CauseTable) -> Extension:
    """Answers `channel` (try the next one) or `trunk` (its other channels are no better), or ends
    the call. ARG1 is the answer where nothing was heard from the far end."""
    by_verdict: dict[Elsewhere, list[int]] = {verdict: [] for verdict in Elsewhere}
    for cause, verdict in sorted(table.causes.items()):
        by_verdict[verdict.elsewhere].append(cause)
    judge = Extension("s")
    judge.goto_if('"${DIALSTATUS}" = "ANSWER"', "over")
    judge.goto_if('"${DIALSTATUS}" = "CANCEL"', "over")
    judge.goto_if('"${DIALSTATUS}" = "NOANSWER"', "heard")
    judge.goto_if('"${ARG1}" != "" & ${LEN(${HANGUPCAUSE_KEYS()})} = 0', "own")
    judge.goto_if('"${DIALSTATUS}" = "BUSY"', "busy")
    judge.do(f"GotoIf($[{_cause_in(by_verdict[Elsewhere.NO])}]?call)", "heard")
    judge.goto_if("${EPOCH} - ${UMPACK_SINCE} >= ${UMPACK_BUDGET}", "late")
    judge.goto_if('"${DIALSTATUS}" = "NOANSWER"', "trunk")
    judge.goto_if(_cause_in(by_verdict[Elsewhere.CHANNEL]), "channel")
    judge.goto_if(_cause_in([0, *by_verdict[Elsewhere.TRUNK]]), "trunk")
    # The rest, and what the table does not know: one more try, then it is the call's own.
    judge.goto_if('"${UMPACK_ONCE}" = "1"', "call")
    judge.set("UMPACK_ONCE", "1").do("Return(trunk)", "trunk").do("Return(channel)", "channel")
    judge.do("GotoIf($[${EPOCH} - ${UMPACK_SINCE} >= ${UMPACK_BUDGET}]?late)", "own")
    judge.do("Return(${ARG1})")
    judge.do(f"GotoIf($[{_cause_in(sorted(WIRE_SAFE_CAUSES))}]?said)", "call")
    judge.do("Hangup(34)").do("Hangup(${HANGUPCAUSE})", "said")
    return (
        judge.do("Hangup(17)", "busy")
        .do("Hangup(${UMPACK_REFUSAL})", "late")
        .do("Hangup()", "over")
    )


def _cause_in(causes: Iterable[int]) -> str:
    wanted = "|".join(map(str, causes))
    # An empty alternative would match everything; no cause is called x.
    return f'${{REGEX("^({wanted or "x"})$" ${{HANGUPCAUSE}})}} = 1'


def _route_conditions(route: Route) -> Iterator[str]:
    """One for each caller pattern: the lines of a dialplan are short (4096 bytes an expression)."""
    called = _fits(route.called, "UMPACK_CALLED")
    if not route.callers:
        yield called
    for pattern in route.callers:
        yield f"{called} & {_fits(pattern, 'UMPACK_CALLER')}"


_SHORT = {"[0123456789]": "[0-9]", "[123456789]": "[1-9]", "[23456789]": "[2-9]"}
_TOKEN = re.compile(r"\[[0-9]+\]|\\?.", re.DOTALL)


def _fits(pattern: Pattern, variable: str) -> str:
    """An expression that holds where a variable fits a pattern.

    Asterisk drops backslashes in REGEX(), so literal signs stand in brackets, and counts braces
    even in a regular expression, so repetitions are written out.
    """
    if pattern.block is None:
        regex, end = pattern.regex.pattern, "$"
        if pattern.text.endswith("*"):
            regex, end = regex.removesuffix(".*"), ""
        regex = "".join(_bracketed(token) for token in _TOKEN.findall(regex))
        return f'${{REGEX("^{regex}{end}" ${{{variable}}})}} = 1'
    first, last = pattern.block
    at = len(pattern.prefix)
    regex = "".join(_bracketed(sign) for sign in pattern.prefix) + "[0-9]" * (len(first) - at)
    fits = f'${{REGEX("^{regex}$" ${{{variable}}})}} = 1'
    if at == len(first):
        return fits
    # Of equal length, so that they compare alike as texts and as numbers.
    tail = f'"${{{variable}:{at}}}"'
    return f'{fits} & {tail} >= "{first[at:]}" & {tail} <= "{last[at:]}"'


def _bracketed(token: str) -> str:
    if token.startswith("["):
        return _SHORT.get(token, token)
    return token if token.isalnum() else f"[{token.removeprefix(chr(92))}]"


def _entrance_patterns(called: Iterable[Pattern]) -> list[str]:
    """Extensions that let in every number some route is for.

    `.` and not `!`: with overlap dialling the exchange sends digit by digit, and `!` would take
    the first one for the whole number.
    """
    found: dict[str, None] = {}
    signs: set[str] = set()
    for pattern in called:
        begin = pattern.prefix[:1] or ("0" if pattern.text[:1] != "*" else "")
        if pattern.matches("s"):
            found["s"] = None  # a call without a number
        if begin.isalpha():
            name = "".join(f"[{c}]" if c.isalpha() else c for c in pattern.prefix[:_NAME])
            found[f"_{name}"] = found[f"_{name}."] = None
            continue
        signs |= set(begin or "0*#+")
    if signs:
        digits = "0-9" if any(sign.isdigit() for sign in signs) else ""
        start = f"_[{digits}{''.join(sorted(sign for sign in signs if not sign.isdigit()))}]"
        found[start] = found[f"{start}."] = None
    return list(found)
