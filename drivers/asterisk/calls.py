"""One call over one FastAGI connection: the connection is the lease.

    environment → offer → EXEC Dial → outcome → next channel, or the end → release

The coroutine runs top to bottom. However it ends (answer, hang-up, lost connection, cancellation,
a fault of our own), the lease it holds ends in `finally`.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import replace

from drivers.asterisk.agi import AgiAnswer, AgiEnvironment, legible
from drivers.asterisk.agi_call import AgiCall
from drivers.asterisk.agi_commands import AgiCommand, exec_, get_full_variable, set_variable
from drivers.asterisk.hints import Hints, may_be_glare
from drivers.asterisk.reception import NO_ENGINE, Reception
from drivers.base import Clock
from umpack.core.calls import Assignment, Call, CallId, Decision
from umpack.core.causes import Outcome, Result, refusal_on_sip
from umpack.core.distributor import Distributor, Offer
from umpack.core.errors import ProtocolFault
from umpack.core.ledger import Lease
from umpack.core.trunk import PbxId

CAUSE_VARIABLE = "UMPACK_CAUSE"
"""Tells the dialplan below the AGI step which Q.850 cause to hang up with."""

ALIVE_SCRIPT = "alive"
"""Path of the dialplan's question whether umpack answers at all; any end of it is the answer."""

_ANSWER_LIMIT = 5.0
"""Seconds Asterisk may take over a command that does nothing but look up variables."""

DIAL_FACTS = (
    "DIALSTATUS",
    "HANGUPCAUSE",
    "ANSWEREDTIME_MS",
    "HANGUPCAUSE_KEYS()",
)
"""What is read after every Dial, in one question."""
_ASK_FACTS = get_full_variable(*DIAL_FACTS)
_ENVIRONMENT = frozenset(
    "agi_" + name
    for name in (
        "network request channel language type uniqueid version callerid "
        "calleridname callingpres callingani2 callington callingtns dnid rdnis context extension "
        "priority enhanced accountcode threadid"
    ).split()
)
"""What every Asterisk since 1.8 sends, whatever the dialplan says (agi_network_script comes only
with an agi:// address that has a path). A caller who gets line breaks into his number (chan_pjsip
decodes %0a in SIP users, cut at 79 characters) can end the environment early and forge an answer
behind it; he has no room to forge all of these as well."""

_RINGING = ",R"
"""Dial's option that lets the caller hear ringing until the far end has something to say. The first
attempt goes without: the far end's own ringing comes through, and a caller's exchange that hears of
none may still take a refusal elsewhere. Who has waited for an attempt in vain has nothing better to
come than ringing, and must not hear silence twice. `r` would cut early media off, and a Ringing()
before the Dial would cost a round trip (tried on Asterisk 22)."""

_PROVISIONAL = frozenset({180, 183})
"""RFC 3261 21.1: what a far end says that is there, and has told somebody."""

_SIP_STATUS = re.compile(r"SIP (\d{3})\b")
_SIP_TECHNOLOGIES = frozenset({"PJSIP", "SIP"})


def call_of(environment: AgiEnvironment, pbx: PbxId, id_: CallId) -> Call:
    """The call as the PBX describes it. All of it may have been chosen by the caller.

    Raises `ProtocolFault` for an environment that is not whole.
    """
    lines = environment.lines
    if not lines.keys() >= _ENVIRONMENT:
        raise ProtocolFault(f"environment without {min(_ENVIRONMENT - lines.keys())}")
    caller, name = lines["agi_callerid"], lines["agi_calleridname"]
    return Call(
        id_,
        pbx,
        legible(lines["agi_extension"]),
        "" if caller == "unknown" else legible(caller),
        "" if name == "unknown" else legible(name),
        legible(lines["agi_channel"]),
    )


def uniqueid_of(call: Call) -> str:
    """Asterisk's name for the caller's channel, of a call that was named here."""
    return call.id.removeprefix(f"{call.pbx}-").rpartition("-")[0]


class CallHandler:
    """Serves the calls of one PBX; an instance is the handler of its `AgiServer`."""

    def __init__(
        self,
        pbx: PbxId,
        distributor: Distributor,
        clock: Clock,
        reception: Reception | None = None,
        hints: Hints | None = None,
        ready: Callable[[], bool] = lambda: True,
    ) -> None:
        self._pbx = pbx
        self._reception = reception
        self._distributor = distributor
        self._now = clock
        self._hints = hints or Hints(pbx, distributor, clock)
        self._ready = ready
        self._serial = 0

    @property
    def served(self) -> int:
        """Calls so far."""
        return self._serial

    async def __call__(self, agi: AgiCall) -> None:
        """From the environment to the end of the call."""
        environment = agi.environment
        if not self._ready():
            agi.fail()  # the dialplan serves it by itself, as it does without us
            return
        if environment.network_script == ALIVE_SCRIPT:
            return
        uniqueid = environment.uniqueid
        call = call_of(environment, self._pbx, self._id(uniqueid))
        distributor, now = self._distributor, self._now
        decision: Decision = distributor.offer(call, now())
        lease: Lease[Offer] | None = None
        try:
            while isinstance(decision, Assignment):
                lease = decision.lease
                self._hints.begin(uniqueid, lease)
                if lease.channel.trunk.kind.is_service:
                    outcome = await self._receive(agi, decision, call)
                else:
                    outcome = await self._dial(agi, decision)
                    if may_be_glare(lease, outcome) and await self._hints.is_glare(uniqueid, lease):
                        outcome = replace(outcome, glare=True)
                ended, lease = lease, None
                if not distributor.ledger.holds(ended):
                    return  # the reconciler has ended it, and the call with it
                decision = distributor.outcome(ended, outcome, now())
                if outcome.glare:
                    self._hints.lost(ended.channel)
            if not agi.hung_up:
                await self._hang_up(agi, decision)
        finally:
            self._hints.end(uniqueid)
            if lease is not None and distributor.ledger.holds(lease):
                distributor.release(lease.token, now())

    def _id(self, uniqueid: str) -> CallId:
        # Asterisk's uniqueid names a channel, and a dialplan may offer one channel twice.
        self._serial += 1
        return CallId(f"{self._pbx}-{uniqueid}-{self._serial}")

    async def _dial(self, agi: AgiCall, assignment: Assignment) -> Outcome:
        if agi.hung_up:
            return Outcome(Result.HUNG_UP, detail="before dialling")
        if assignment.attempt > 1:
            # HANGUPCAUSE and its keys outlive a Dial: without this an attempt that times out would
            # be read with the cause of the one before (tried on Asterisk 22).
            await self._ask(agi, exec_("HangupCauseClear"))
        options = _RINGING if assignment.attempt > 1 else ""
        dial = exec_("Dial", f"{assignment.dial},{assignment.timeout:.3f}{options}")
        answer = await agi.command(dial, limit=None)
        if not answer.ok or answer.result == -2:
            raise ProtocolFault(f"EXEC Dial: {answer.code} {answer.result} {answer.data}")
        facts = await self._ask(agi, _ASK_FACTS)
        status, cause, connected, leg = facts.values(len(DIAL_FACTS))
        if status == "ANSWER":
            # DIALEDTIME_MS would count from the caller's arrival, not from this Dial.
            self._distributor.answered(assignment.lease, self._now() - _number(connected) / 1000)
            return Outcome(Result.ANSWERED, _number(cause) or 16)
        detail = ""
        if leg and "," not in leg:
            technology = get_full_variable(f"HANGUPCAUSE({leg},tech)")
            detail = legible((await self._ask(agi, technology)).data)
        rang = self._hints.rang(agi.environment.uniqueid)
        return outcome_of(status, _number(cause), detail, had_leg=bool(leg), rang=rang)

    async def _receive(self, agi: AgiCall, assignment: Assignment, call: Call) -> Outcome:
        if self._reception is None:
            return Outcome(Result.NO_CHANNEL, NO_ENGINE, detail="no spool is configured")

        def answered() -> None:
            self._distributor.answered(assignment.lease, self._now())

        return await self._reception.take(agi, assignment, call, answered)

    def _ask(self, agi: AgiCall, line: AgiCommand) -> Awaitable[AgiAnswer]:
        # No coroutine: one frame less on the way of every answer.
        return agi.command(line, limit=_ANSWER_LIMIT)

    def _hang_up(self, agi: AgiCall, decision: Decision) -> Awaitable[AgiAnswer]:
        cause = decision.cause if not isinstance(decision, Assignment) else 16
        # 16 ends an answered call with a BYE, which has no status. Whatever else the far end may
        # have said (50, 57, ...) must not become a 603 on its way to the caller either.
        if _is_sip(agi.environment) and cause != 16:
            cause = refusal_on_sip(cause)
        return self._ask(agi, set_variable(CAUSE_VARIABLE, str(cause)))


def outcome_of(
    status: str, cause: int, detail: str, *, had_leg: bool, rang: bool | None = None
) -> Outcome:
    """DIALSTATUS, HANGUPCAUSE, the leg's own words and what is known of its ringing as an outcome.

    Tried on Asterisk 22: a silent or ringing far end gives NOANSWER and leaves a provisional SIP
    status or none; an endpoint that is unknown or unreachable gives CHANUNAVAIL with cause 3 and no
    leg at all, which must not be taken for a far end that has no route.
    """
    sip = _SIP_STATUS.match(detail)
    said = int(sip[1]) if sip else 0
    code = said if said >= 300 else None
    rang = True if said in _PROVISIONAL else rang
    if status == "CANCEL":
        return Outcome(Result.HUNG_UP, 16)
    if status == "NOANSWER" and code is None:
        return Outcome(Result.TIMED_OUT, detail=detail, rang=rang)
    if not had_leg and status in ("CHANUNAVAIL", "CONGESTION", "BUSY"):
        return Outcome(Result.NO_CHANNEL, cause or None, detail=status)
    return Outcome(Result.REFUSED, cause or None, code, detail or status, rang)


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() else 0


def _is_sip(environment: AgiEnvironment) -> bool:
    return environment.channel.partition("/")[0] in _SIP_TECHNOLOGIES
