"""The whole text for one PBX, for `#include` in extensions.conf.

How it decides after the AGI step:

- umpack sets `UMPACK_CAUSE` before it ends a call. Where that is set, the call is over.
- AGISTATUS cannot tell a finished umpack from a killed one: the end of the connection is SUCCESS
  to Asterisk (res_agi.c), so without `UMPACK_CAUSE` the dialplan looks at what is left of the call.
  A call that was answered meanwhile must end, not ring a second server. A Dial that ran on while
  umpack was killed has set DIALSTATUS and is judged like one of the dialplan's own.
- Everything else hunts: the pack's channels in their order, then its overflow packs, without what
  umpack has last known as dead or drained. Only when nothing else is left the dead are tried, too:
  that was long ago perhaps, and nobody may be there to tell that they live again.
- A umpack that is stopped or hangs is met before, see caller.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from umpack.config import Configuration
from umpack.core.causes import CauseTable
from umpack.core.pack import PackId, PackPlan, Strategy
from umpack.core.routes import Route, Routes
from umpack.core.trunk import PbxId, TrunkId, TrunkKind
from umpack.dialplan import caller, order, reception
from umpack.dialplan.extension import CAUSE, END, Extension
from umpack.dialplan.hunting import DIGITS, judge, out, runs, trunk_extension
from umpack.dialplan.numbers import entrance_patterns, route_conditions

_NUMBER = r"0-9A-Za-z*#+._\x2d"
_LONGEST_NUMBER = 64
_MOST_TIME = 86400


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

        self._tables = [self._site.causes]
        """The cause tables judges are needed for, the site's first; grows with the packs."""

    def text(self) -> str:
        """All contexts."""
        contexts: list[tuple[str, str, Iterable[Extension]]] = [
            ("umpack-in", "calls from the exchange enter here", self._entrances()),
            (
                "umpack-check",
                "is what came off the line fit to be read, and is umpack there to read it?",
                (caller.check(str(self._reach)), caller.silent()),
            ),
            ("umpack-after", "after the AGI step: is there anything left to do?", self._after()),
            ("umpack-pack", "a pack and its overflow packs, in order", self._pack_extensions()),
            ("umpack-order", "what umpack has left to know of a pack", (order.read_order(),)),
            ("umpack-start", "where a cyclic pack goes on", self._starts()),
            ("umpack-place", "is the trunk it goes on with left out?", self._places()),
            ("umpack-trunk", "one run of channels of a trunk", self._trunk_extensions()),
            ("umpack-judge", "what one attempt has come to", self._judge_extensions()),
            ("umpack-end", "tell the caller the cause", (caller.end(),)),
        ]
        kinds = {trunk.kind for trunk in self._site.trunks.values() if trunk.pbx == self._pbx}
        if kinds & {TrunkKind.FAX, TrunkKind.AUTO}:
            comment = "a fax is over, and umpack may not be there to read how"
            contexts.append((reception.CONTEXT, comment, (reception.fax_end(),)))
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
        for pattern in entrance_patterns(route.called for route in self._routes):
            yield caller.entrance(pattern, str(self._reach))

    def _after(self) -> Iterator[Extension]:
        after = Extension("s")
        after.goto_if(f'"${{{CAUSE}}}" != ""', END)
        after.goto_if('"${AGISTATUS}" = "HANGUP"', "over")
        after.goto_if('"${CHANNEL(state)}" = "Up" & "${UMPACK_UP}" != "Up"', "over")
        after.do("Log(WARNING,umpack is away (AGI ${AGISTATUS}): hunting without it)")
        after.goto_if(f"${{LEN(${{{caller.CALLED}}})}} > {_LONGEST_NUMBER}", "invalid")
        after.set("UMPACK_DIGITS", f"${{FILTER({DIGITS},${{{caller.CALLED}}})}}")
        after.set("UMPACK_CALLER", f"${{FILTER({_NUMBER},${{CALLERID(num)}})}}")
        for route in self._routes:
            for condition in route_conditions(route):
                after.goto_if(condition, self._target(route))
        yield after.end(self._site.no_route_cause).end(28, "invalid").do("Hangup()", "over")
        for cause in sorted({r.refuse for r in self._routes if r.refuse is not None}):
            yield Extension(f"r{cause}").end(cause)

    def _target(self, route: Route) -> str:
        if route.pack is None:
            return f"umpack-after,r{route.refuse},1"
        return f"umpack-pack,{self._packs[route.pack]},1"

    def _pack_extensions(self) -> Iterator[Extension]:
        for id_, name in self._packs.items():
            plan = self._site.packs[id_]
            extension = Extension(name, f"pack {id_}")
            extension.set("UMPACK_REFUSAL", str(plan.refusal_cause))
            budget = min(plan.setup_budget, _MOST_TIME)
            extension.set("UMPACK_BUDGET", f"{budget:.3f}").set("UMPACK_ONCE", "")
            # What umpack itself had dialled when it went: of which trunk is not known any more.
            begun = f"Gosub(umpack-judge,{self._judge_of(id_)},1())"
            extension.do(f'ExecIf($["${{DIALSTATUS}}" != ""]?{begun})')
            chain = self._site.chain(id_)
            trunks = dict.fromkeys(
                TrunkId(channel.rpartition(":")[0])
                for member in chain
                for channel in self._site.packs[member].channels
            )
            for trunk in trunks:
                # Services are out from the beginning, or a cyclic pack might begin at one.
                service = self._site.trunks[trunk].kind.is_service
                extension.set(out(trunk), "1" if service else "").set(order.last(trunk), "")
            extension.set("UMPACK_LAST", "")
            for member in chain:
                extension.do(f"Gosub(umpack-order,s,1({member}))")
            for index, member in enumerate(chain):
                self._hunt(extension, self._site.packs[member], "" if index else "hunt")
            extension.goto_if('"${UMPACK_LAST}" = ""', "full")
            for trunk in trunks:
                extension.set(out(trunk), f'${{IF($["${{{order.last(trunk)}}}" = "1"]?0:1)}}')
            extension.set("UMPACK_LAST", "").do("Goto(hunt)")
            yield extension.end("${UMPACK_REFUSAL}", "full")

    def _hunt(self, extension: Extension, plan: PackPlan, label: str) -> None:
        count = len(plan.channels)
        calls = [
            f"Gosub(umpack-trunk,{self._trunks[run.trunk.id]},"
            f"1({run.position},{run.length},{run.slot},{run.step},"
            f"{self._judge_of(plan.id, run.trunk.id)}))"
            for run in runs(self._site.trunks, plan.channels)
        ]
        within = f"{min(max(plan.answer_within, 0.001), _MOST_TIME):.3f}"
        extension.set("UMPACK_WITHIN", within, label)
        if not _goes_round(plan):
            extension.set("UMPACK_FROM", "0").set("UMPACK_TO", str(count))
            for call in calls:
                extension.do(call)
            return
        extension.do(f"Gosub(umpack-start,{self._packs[plan.id]},1())")
        extension.set("UMPACK_FROM", "${UMPACK_START}").set("UMPACK_TO", str(count))
        for call in calls:
            extension.do(call)
        extension.set("UMPACK_FROM", "0").set("UMPACK_TO", "${UMPACK_START}")
        for call in calls:
            extension.do(call)

    def _judge_of(self, pack: PackId, trunk: str = "") -> str:
        """The judge of a pack's attempts on a trunk; equal tables have one."""
        table = self._site.causes.of(trunk, pack)
        at = next((i for i, known in enumerate(self._tables) if _alike(known, table)), None)
        if at is None:
            at = len(self._tables)
            self._tables.append(table)
        return f"j{at}" if at else "s"

    def _judge_extensions(self) -> Iterator[Extension]:
        for at, table in enumerate(self._tables):
            yield judge(table, f"j{at}" if at else "s")

    def _cyclic(self) -> Iterator[tuple[str, PackId, PackPlan]]:
        for id_, name in self._packs.items():
            if _goes_round(plan := self._site.packs[id_]):
                yield name, id_, plan

    def _starts(self) -> Iterator[Extension]:
        for name, id_, plan in self._cyclic():
            yield order.start(name, id_, len(plan.channels))

    def _places(self) -> Iterator[Extension]:
        for name, id_, plan in self._cyclic():
            yield order.place(name, id_, runs(self._site.trunks, plan.channels))

    def _trunk_extensions(self) -> Iterator[Extension]:
        for id_, name in self._trunks.items():
            trunk = self._site.trunks[id_]
            yield trunk_extension(trunk, name)


def _alike(one: CauseTable, other: CauseTable) -> bool:
    """Whether two tables send the same failures elsewhere."""
    if one is other:
        return True
    pairs = ((one.causes, other.causes), (one.sip, other.sip))
    return all(
        a.keys() == b.keys() and all(a[key].elsewhere is b[key].elsewhere for key in a)
        for a, b in pairs
    )


def _goes_round(plan: PackPlan) -> bool:
    return plan.strategy is Strategy.CYCLIC and len(plan.channels) > 1
