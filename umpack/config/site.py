"""Packs, routes and causes of the file as the core's `Site`; its references resolved."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from umpack.config import models
from umpack.config.causes import read_causes
from umpack.config.health import policy_from
from umpack.config.problems import Findings
from umpack.config.references import report_references
from umpack.config.tables import Tables
from umpack.config.trunks import D_CHANNEL, known_pbx, read_trunks
from umpack.config.values import duration, ranges, slots_in
from umpack.config.yaml_source import Path
from umpack.core.causes import name_of, refusal_on_sip
from umpack.core.channel import ChannelId
from umpack.core.health_policy import HealthPolicy, PackPolicy
from umpack.core.pack import PackId, PackPlan, order_channels
from umpack.core.routes import Pattern, PatternError, Route
from umpack.core.site import Site
from umpack.core.trunk import PbxId, Trunk, TrunkId

_LONGEST_PATTERN = 128
"""Written out for a dialplan it must fit a line of Asterisk's."""

Row = tuple[Trunk, tuple[int, ...]]
"""A member of a pack: a trunk, and which of its slots."""


def read_site(tables: Tables, findings: Findings) -> Site:
    """The site; to be used only if no errors were found."""
    report_references(findings.document.data, findings)
    trunks = read_trunks(tables, findings)
    reader = _PackReader(tables, trunks, findings)
    packs: dict[PackId, PackPlan] = {}
    for id_, table in tables.packs.items():
        if table is not None and (plan := reader.read(id_, table)) is not None:
            packs[plan.id] = plan
    reader.report_overflow(packs)
    routes = _RouteReader(tables, reader.pbx_of, findings).read_all()
    causes = read_causes(tables, findings)
    policies, pack_policies = _policies(tables, findings), _pack_policies(tables, findings)
    return Site(trunks, packs, tuple(routes), causes, policies, pack_policies)


def _policies(tables: Tables, findings: Findings) -> dict[TrunkId, HealthPolicy]:
    common = policy_from(tables.health, HealthPolicy(), ("health",), findings)
    return {
        TrunkId(id_): policy_from(table.health, common, ("trunks", id_, "health"), findings)
        for id_, table in tables.trunks.items()
        if table is not None
    }


def _pack_policies(tables: Tables, findings: Findings) -> dict[PackId, PackPolicy]:
    common = policy_from(tables.health, PackPolicy(), ("health",), findings)
    return {
        PackId(id_): policy_from(table.health, common, ("packs", id_, "health"), findings)
        for id_, table in tables.packs.items()
        if table is not None
    }


class _PackReader:
    def __init__(self, tables: Tables, trunks: Mapping[TrunkId, Trunk], findings: Findings) -> None:
        self._tables = tables
        self._trunks = trunks
        self._findings = findings
        self.pbx_of: dict[str, PbxId] = {}

    def read(self, id_: str, table: models.Pack) -> PackPlan | None:
        path: Path = ("packs", id_)
        if table.members == ():
            self._findings.error((*path, "members"), "is empty")
        rows = [
            self._member(member, (*path, "members", i)) for i, member in enumerate(table.members)
        ]
        self._report_repeats(rows, path)
        self._report_pbxs(id_, rows, path)
        answer_within, setup_budget = self._times(table, path)
        refusal = table.refusal_cause
        _warn_of_refusal(refusal, (*path, "refusal_cause"), self._findings)
        if not rows or any(row is None for row in rows):
            return None
        order = order_channels(
            [
                tuple(trunk.channel_id(slot) for slot in slots)
                for trunk, slots in (row for row in rows if row)
            ],
            table.direction,
            interleave=table.interleave,
        )
        return PackPlan(
            PackId(id_),
            order,
            table.strategy,
            tuple(PackId(other) for other in table.overflow),
            answer_within,
            setup_budget,
            refusal,
        )

    def _member(self, text: str, path: Path) -> Row | None:
        name, colon, part = text.partition(":")
        trunk = self._trunks.get(TrunkId(name))
        if trunk is None:
            return None  # reported already
        if not colon:
            return trunk, trunk.slots
        try:
            slots = slots_in(ranges(part), trunk.slots, D_CHANNEL.get(trunk.kind))
        except ValueError as error:
            self._findings.error(path, f"{text!r}: {error}")
            return None
        return trunk, slots

    def _report_repeats(self, rows: Iterable[Row | None], path: Path) -> None:
        seen: set[ChannelId] = set()
        for index, row in enumerate(rows):
            if row is None:
                continue
            channels = [row[0].channel_id(slot) for slot in row[1]]
            if repeated := next((channel for channel in channels if channel in seen), None):
                what = f"channel {repeated} is in this pack already"
                self._findings.error((*path, "members", index), what)
            seen.update(channels)

    def _report_pbxs(self, id_: str, rows: Iterable[Row | None], path: Path) -> None:
        for index, row in enumerate(rows):
            if row is None:
                continue
            pbx = self.pbx_of.setdefault(id_, row[0].pbx)
            if row[0].pbx != pbx:
                self._findings.error(
                    (*path, "members", index),
                    f"trunk {row[0].id} is on pbx {row[0].pbx}, the members before on {pbx};"
                    " a pack hands out channels of one pbx",
                )

    def _times(self, table: models.Pack, path: Path) -> tuple[float, float]:
        defaults = self._tables.defaults
        answer = table.answer_within or defaults.answer_within
        budget = table.setup_budget or defaults.setup_budget
        # A default in the place of what could not be read is nobody's mistake.
        if answer > budget and not any(
            self._findings.has((*where, key))
            for where in (path, ("defaults",))
            for key in ("answer_within", "setup_budget")
        ):
            own = table.answer_within is not None
            at = (*path, "answer_within" if own else "setup_budget")
            self._findings.error(
                at if own or table.setup_budget is not None else ("defaults",),
                f"answer_within ({duration(answer)}) is longer than"
                f" setup_budget ({duration(budget)}), which is the limit of all attempts",
            )
        return answer, budget

    def report_overflow(self, packs: Mapping[PackId, PackPlan]) -> None:
        """References that lead nowhere, to another PBX, or round in a loop."""
        sound: dict[str, tuple[str, ...]] = {}
        for id_, table in self._tables.packs.items():
            if table is None:
                continue
            for index, other in enumerate(table.overflow):
                path: Path = ("packs", id_, "overflow", index)
                if other in table.overflow[:index]:
                    self._findings.error(path, f"pack {other} is named twice")
                elif self._apart(id_, other):
                    own, its = self.pbx_of[id_], self.pbx_of[other]
                    self._findings.error(path, f"pack {other} is on pbx {its}, this one on {own}")
            sound[id_] = tuple(o for o in table.overflow if o in self._tables.packs)
        for loop in _loops(sound):
            shown = " -> ".join((*loop, loop[0]))
            self._findings.error(("packs", loop[0], "overflow"), f"runs in a loop: {shown}")

    def _apart(self, one: str, other: str) -> bool:
        known = one in self.pbx_of and other in self.pbx_of
        return known and self.pbx_of[one] != self.pbx_of[other]


def _loops(edges: Mapping[str, tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Every way back found by one depth-first walk, each beginning at its first pack in the file.

    With a stack of its own: a chain of a thousand packs must not end in a RecursionError.
    """
    rank = {id_: position for position, id_ in enumerate(edges)}
    found: dict[tuple[str, ...], None] = {}
    done: set[str] = set()
    for start in edges:
        trail: dict[str, int] = {}
        stack: list[tuple[str, int]] = [(start, 0)]
        while stack:
            id_, step = stack.pop()
            if step == 0:
                if id_ in done:
                    continue
                trail[id_] = len(trail)
            followers = edges.get(id_, ())
            if step == len(followers):
                done.add(id_)
                trail.pop(id_)
                continue
            stack.append((id_, step + 1))
            follower = followers[step]
            if follower in trail:
                loop = tuple(trail)[trail[follower] :]
                at = min(range(len(loop)), key=lambda i: rank[loop[i]])
                found[loop[at:] + loop[:at]] = None
            else:
                stack.append((follower, 0))
    return list(found)


class _RouteReader:
    def __init__(self, tables: Tables, pbx_of: Mapping[str, PbxId], findings: Findings) -> None:
        self._tables = tables
        self._pbx_of = pbx_of
        self._findings = findings
        self._seen: dict[tuple[object, ...], int] = {}

    def read_all(self) -> list[Route]:
        """All sound routes."""
        found = []
        for index, table in enumerate(self._tables.routes):
            if table is not None and (route := self._read(table, ("routes", index))) is not None:
                found.append(route)
        return found

    def _read(self, table: models.Route, path: Path) -> Route | None:
        called = self._pattern(table.called, (*path, "called"))
        callers = [
            self._pattern(text, (*path, "caller", i)) for i, text in enumerate(table.caller or ())
        ]
        if table.caller == ():
            self._findings.error((*path, "caller"), "is empty; without the key every caller fits")
        pbx = self._pbx(table, path)
        if (table.pack is None) == (table.refuse is None):
            both = "pack and refuse exclude each other" if table.pack else "leads nowhere"
            self._findings.error(path, f"{both}: give either pack or refuse")
        if table.refuse is not None:
            _warn_of_refusal(table.refuse, (*path, "refuse"), self._findings)
        if called is None or None in callers:
            return None
        filters = tuple(pattern for pattern in callers if pattern)
        self._report_twin(called, filters, pbx, path)
        pack = PackId(table.pack) if table.pack is not None else None
        return Route(called, pack, table.refuse, filters, pbx)

    def _pbx(self, table: models.Route, path: Path) -> PbxId | None:
        own = self._pbx_of.get(table.pack) if table.pack is not None else None
        if table.pbx is None:
            return own
        named = known_pbx(table.pbx, self._tables, self._findings, (*path, "pbx"))
        if named is not None and own is not None and named != own:
            what = f"pack {table.pack} hands out channels of pbx {own}, not of {named}"
            self._findings.error((*path, "pbx"), what)
        return named

    def _pattern(self, text: str, path: Path) -> Pattern | None:
        if len(text) > _LONGEST_PATTERN:
            self._findings.error(path, f"is longer than {_LONGEST_PATTERN} characters")
            return None
        try:
            pattern = Pattern.parse(text)
        except PatternError as error:
            self._findings.error(path, str(error))
            return None
        if text.startswith("_"):
            there = text[1:].rstrip(".!") + ("*" if text[-1] in ".!" else "")
            what = f"{text!r} is how Asterisk writes it (did you mean {there}?)"
            self._findings.error(path, what)
            return None
        if re.search(r"[0-9XZN]+[xzn]+|^[xzn]+\*?$", text):
            what = f"{text!r}: small x, z, n are letters here (did you mean {text.upper()}?)"
            self._findings.warn(path, what)
        return pattern

    def _report_twin(
        self, called: Pattern, callers: tuple[Pattern, ...], pbx: PbxId | None, path: Path
    ) -> None:
        same = called.regex.pattern, called.block
        filters = frozenset((p.regex.pattern, p.block) for p in callers)
        twin = (same, filters, pbx)
        if (first := self._seen.get(twin)) is not None:
            what = f"a route for {called.text!r} and the same callers is on line {first} already"
            self._findings.error(path, what)
        self._seen.setdefault(twin, self._findings.document.line(path))


def _warn_of_refusal(cause: int, path: Path, findings: Findings) -> None:
    told = refusal_on_sip(cause)
    if told != cause:
        findings.warn(
            path,
            f"Asterisk has no SIP status for {cause} ({name_of(cause)}), so a SIP caller is told"
            f" {told} ({name_of(told)})",
        )
