"""Any sequence of sends, failures, decisions and restarts, against a model a child could keep."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
)

from tests.unit.messages.receptions import Time, opened, received
from umpack.core.errors import LeaseError, StateError
from umpack.messages.message import Decision, Delivery, MessageId
from umpack.messages.states import MessageState

OPEN = ("queued", "retry", "ambiguous")


@dataclass
class Row:
    """One delivery, as anybody would write it down."""

    state: str = "queued"
    next_at: float = 0.0
    tries: int = 0
    token: str = ""
    ever_accepted: bool = False


@dataclass
class Sheet:
    """One message."""

    rows: list[Row] = field(default_factory=list)
    purged: bool = False

    def state(self) -> str:
        states = {row.state for row in self.rows}
        if not states:
            return "committed"
        for first in "sending", "ambiguous":
            if first in states:
                return first
        if states <= {"delivered", "decided"}:
            return "delivered" if "delivered" in states else "decided"
        if "delivered" in states:
            return "partial"
        return "queued" if states & {"queued", "retry"} else "dead letter"


class Deliveries(RuleBasedStateMachine):
    """The spool beside the model."""

    ids = Bundle("ids")
    claims = Bundle("claims")

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.time = Time()
        self.spool = opened(Path(self.folder.name), self.time)
        self.model: dict[MessageId, Sheet] = {}

    @rule(target=ids)
    def receive(self) -> MessageId:
        id_ = received(self.spool, len(self.model)).id
        self.model[id_] = Sheet()
        self.time.now += 1
        return id_

    @rule(id_=ids, number=st.integers(1, 3))
    def address(self, id_: MessageId, number: int) -> None:
        sheet = self.model[id_]
        addresses = [f"{n}@example.org" for n in range(number)]
        if sheet.rows:
            with pytest.raises(StateError):
                self.spool.address(id_, addresses)
            return
        self.spool.address(id_, addresses)
        sheet.rows = [Row(next_at=self.time.now) for _ in addresses]

    @rule(target=claims, limit=st.integers(1, 4))
    def claim(self, limit: int) -> object:
        claims: list[Delivery] = []
        for due in self.spool.due(self.time.now, limit):
            id_, number = due.message.id, due.recipient.number
            row = self.model[id_].rows[number - 1]
            assert row.state in OPEN
            assert row.next_at <= self.time.now
            held = self.spool.claim(id_, number, self.time.now)
            row.state, row.token = "sending", held.token
            claims.append(held)
        return multiple(*claims)

    @rule(
        held=claims,
        how=st.sampled_from(["sent", "failed", "refused", "uncertain", "released"]),
        wait=st.integers(0, 50),
    )
    def end(self, held: Delivery, how: str, wait: int) -> None:
        now, later = self.time.now, self.time.now + wait
        row = self.model[held.message.id].rows[held.recipient.number - 1]
        calls = {
            "sent": lambda: self.spool.sent(held, now, "mx", "250"),
            "failed": lambda: self.spool.failed(held, now, later, "451"),
            "refused": lambda: self.spool.refused(held, now, "550"),
            "uncertain": lambda: self.spool.uncertain(held, now, later, "?", "mx"),
            "released": lambda: self.spool.released(held, now),
        }
        if row.token != held.token:
            with pytest.raises(LeaseError):
                calls[how]()
            return
        calls[how]()
        row.token = ""
        row.tries += how != "released"
        row.state = {
            "sent": "delivered", "failed": "retry", "refused": "dead letter",
            "uncertain": "ambiguous", "released": "queued",
        }[how]  # fmt: skip
        row.ever_accepted |= how == "sent"
        if how in ("failed", "uncertain"):
            row.next_at = later

    @rule(id_=ids, what=st.sampled_from(Decision))
    def decide(self, id_: MessageId, what: Decision) -> None:
        sheet = self.model[id_]
        unfinished = [r for r in sheet.rows if r.state not in ("delivered", "decided")]
        flying = any(r.state == "sending" for r in sheet.rows)
        possible = {
            Decision.DISCARD: bool(unfinished) and not flying,
            Decision.RETRY: any(r.state != "sending" for r in unfinished),
            Decision.FORWARD: not flying and not sheet.purged,
            Decision.RESEND: bool(sheet.rows) and not flying and not sheet.purged,
        }[what]
        if not sheet.rows and what is Decision.DISCARD:
            return  # a message without recipients is another test's
        if not possible:
            with pytest.raises(StateError):
                self.spool.decide(id_, "eva", what, addresses=["new@example.org"])
            return
        message = self.spool.decide(id_, "eva", what, addresses=["new@example.org"])
        for row in unfinished:
            if what is Decision.RETRY:
                if row.state != "sending":
                    row.state, row.next_at = "queued", self.time.now
            else:
                row.state = "decided"
        if what in (Decision.FORWARD, Decision.RESEND):
            new = len(message.recipients) - len(sheet.rows)
            assert new == 1 if what is Decision.FORWARD else new >= 1
            sheet.rows += [Row(next_at=self.time.now) for _ in range(new)]

    @rule(seconds=st.integers(1, 60))
    def wait(self, seconds: int) -> None:
        self.time.now += seconds

    @rule(keep=st.integers(0, 100))
    def purge(self, keep: int) -> None:
        self.spool.purge(keep, 10**9)

    @rule()
    def restart(self) -> None:
        self.spool.close()
        self.spool = opened(Path(self.folder.name), self.time)
        for sheet in self.model.values():
            for row in sheet.rows:
                if row.state == "sending":
                    row.state, row.token, row.next_at = "ambiguous", "", self.time.now
                    row.tries += 1

    @invariant()
    def agrees(self) -> None:
        for id_, sheet in getattr(self, "model", {}).items():
            message = self.spool.message(id_)
            assert message.state.value == sheet.state()
            assert [(r.state.value, r.next_at, r.tries) for r in message.recipients] == [
                (r.state, r.next_at, r.tries) for r in sheet.rows
            ]
            ended = message.state in (MessageState.DELIVERED, MessageState.DECIDED)
            assert (message.ended is not None) == ended
            assert message.original is not None
            there = (self.spool.directory / message.original.file).exists()
            assert there == (message.purged is None)
            if message.purged is not None:
                assert ended
                sheet.purged = True

    def teardown(self) -> None:
        if hasattr(self, "spool"):
            self.spool.close()
            self.folder.cleanup()


Deliveries.TestCase.settings = settings(
    max_examples=25,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.timeout(300)
class TestDeliveries(Deliveries.TestCase):  # type: ignore[misc, valid-type]
    """What pytest collects."""
