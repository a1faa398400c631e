"""One call over one FastAGI connection: the connection is the lease.

    environment → offer → EXEC Dial → outcome → next channel, or the end → release

The coroutine runs top to bottom. However it ends (answer, hang-up, lost connection, cancellation,
a fault of our own), the lease it holds ends in `finally`.
"""

from __future__ import annotations

import re

from drivers.asterisk.agi import AgiEnvironment
from drivers.asterisk.agi_call import AgiCall
from drivers.asterisk.agi_commands import exec_, get_full_variable, set_variable
from drivers.base import Clock
from umpack.core.calls import Assignment, Call, CallId, Decision, Refusal
from umpack.core.causes import Outcome, Result, refusal_on_sip
from umpack.core.distributor import Distributor, Offer
from umpack.core.errors import ProtocolFault
from umpack.core.ledger import Lease
from umpack.core.trunk import PbxId

CAUSE_VARIABLE = "UMPACK_CAUSE"
"""Tells the dialplan below the AGI step which Q.850 cause to hang up with."""

_ANSWER_LIMIT = 5.0
"""Seconds Asterisk may take over a command that does nothing but look up variables."""

_FACTS = (
    "DIALSTATUS",
    "HANGUPCAUSE",
    "DIALEDTIME_MS",
    "ANSWEREDTIME_MS",
    "HANGUPCAUSE_KEYS()",
)
_SIP_STATUS = re.compile(r"SIP (\d{3})\b")
_SIP_TECHNOLOGIES = frozenset({"PJSIP", "SIP"})


def call_of(environment: AgiEnvironment, pbx: PbxId, id_: CallId) -> Call:
    """The call as the PBX describes it. All of it may have been chosen by the caller."""
    known = environment.callerid != "unknown"
    named = environment.calleridname != "unknown"
    return Call(
        id_,
        pbx,
        environment.extension,
        environment.callerid if known else "",
        environment.calleridname if named else "",
        environment.channel,
    )


class CallHandler:
    """Serves the calls of one PBX; an instance is the handler of its `AgiServer`."""

    def __init__(self, pbx: PbxId, distributor: Distributor, clock: Clock) -> None:
        self._pbx = pbx
        self._distributor = distributor
        self._now = clock
        self._serial = 0
        self._dialling: dict[str, Lease[Offer]] = {}

    def hint_answered(self, uniqueid: str, now: float) -> None:
        """AMI says the far end of this caller's channel has answered; it may be wrong or late."""
        if lease := self._dialling.get(uniqueid):
            self._distributor.answered(lease, now)

    async def __call__(self, agi: AgiCall) -> None:
        """From the environment to the end of the call."""
        environment = agi.environment
        call = call_of(environment, self._pbx, self._id(environment))
        distributor, now = self._distributor, self._now
        decision: Decision = distributor.offer(call, now())
        lease: Lease[Offer] | None = None
        try:
            while isinstance(decision, Assignment):
                lease = self._dialling[environment.uniqueid] = decision.lease
                outcome = await self._dial(agi, decision)
                ended, lease = lease, None
                decision = distributor.outcome(ended, outcome, now())
            if not agi.hung_up:
                await self._hang_up(agi, decision)
        finally:
            self._dialling.pop(environment.uniqueid, None)
            if lease is not None:
                distributor.release(lease.token, now())

    def _id(self, environment: AgiEnvironment) -> CallId:
        # Asterisk's uniqueid names a channel, and a dialplan may offer one channel twice.
        self._serial += 1
        return CallId(f"{self._pbx}-{environment.uniqueid}-{self._serial}")

    async def _dial(self, agi: AgiCall, assignment: Assignment) -> Outcome:
        if agi.hung_up:
            return Outcome(Result.HUNG_UP, detail="before dialling")
        started = self._now()
        answer = await agi.command(
            exec_("Dial", f"{assignment.dial},{assignment.timeout:.3f}"), limit=None
        )
        if not answer.ok:
            raise ProtocolFault(f"EXEC Dial: {answer.code} {answer.data}")
        facts = await agi.command(get_full_variable(*_FACTS), limit=_ANSWER_LIMIT)
        status, cause, dialled, connected, leg = facts.values(len(_FACTS))
        detail = ""
        if status not in ("ANSWER", "CANCEL") and leg and "," not in leg:
            detail = await self._leg(agi, leg)
        if status == "ANSWER":
            self._distributor.answered(
                assignment.lease, started + (_number(dialled) - _number(connected)) / 1000
            )
        return outcome_of(status, _number(cause), detail)

    async def _leg(self, agi: AgiCall, leg: str) -> str:
        answer = await agi.command(
            get_full_variable(f"HANGUPCAUSE({leg},tech)"), limit=_ANSWER_LIMIT
        )
        return answer.data

    async def _hang_up(self, agi: AgiCall, decision: Decision) -> None:
        cause = decision.cause if not isinstance(decision, Assignment) else 16
        if isinstance(decision, Refusal) and _is_sip(agi.environment):
            cause = refusal_on_sip(cause)
        await agi.command(set_variable(CAUSE_VARIABLE, str(cause)), limit=_ANSWER_LIMIT)


def outcome_of(status: str, cause: int, detail: str) -> Outcome:
    """DIALSTATUS, HANGUPCAUSE and the leg's own words as an outcome."""
    sip = _SIP_STATUS.match(detail)
    code = int(sip[1]) if sip else None
    match status:
        case "ANSWER":
            return Outcome(Result.ANSWERED, cause or 16)
        case "CANCEL":
            return Outcome(Result.HUNG_UP, cause or 16)
        case "NOANSWER" if code is None:
            return Outcome(Result.TIMED_OUT, cause or None)
        case _:
            return Outcome(Result.REFUSED, cause or None, code, detail or status)


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() else 0


def _is_sip(environment: AgiEnvironment) -> bool:
    return environment.channel.partition("/")[0] in _SIP_TECHNOLOGIES
