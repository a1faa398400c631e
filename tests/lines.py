"""A trunk's health with a clock and callers, for tests."""

from __future__ import annotations

from umpack.core.causes import Blame
from umpack.core.health import TrunkHealth
from umpack.core.health_policy import HealthPolicy
from umpack.core.health_states import (
    Admission,
    HealthChange,
    HealthState,
)
from umpack.core.trunk import TrunkId

POLICY = HealthPolicy()


class Line:
    """A trunk, its clock, and tokens that count up."""

    def __init__(self, policy: HealthPolicy = POLICY, channels: int = 30) -> None:
        self.now = 1000.0
        self.changes: list[HealthChange] = []
        self.health = TrunkHealth(TrunkId("um1"), policy, channels, self.now, self.changes)
        self.token = 0

    def start(self) -> int:
        self.token += 1
        self.health.attempt_started(self.token, self.now)
        return self.token

    def fail(self, blame: Blame = Blame.TRUNK, why: str = "cause 41", *, spare: str = "") -> bool:
        token = self.start()
        return self.health.attempt_failed(token, self.now, blame, why, spare=spare)

    def answer(self, after: float = 0.01) -> int:
        token = self.start()
        self.now += after
        self.health.attempt_succeeded(token, self.now)
        return token

    def call(self, talk: float | None = 60.0) -> None:
        """A whole call, its talking time not passing."""
        self.health.call_ended(self.answer(), self.now, talk)

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.health.advance(self.now)

    def eject(self) -> None:
        for _ in range(POLICY.failures_to_eject):
            self.fail()
        assert self.health.state is HealthState.EJECTED

    def half_open(self) -> None:
        """Eject it and wait until it is to be tried."""
        self.eject()
        self.wait(self.health.timer - self.now)
        assert self.health.state is HealthState.HALF_OPEN

    def seen(self) -> tuple[HealthState, Admission, bool]:
        return self.health.state, self.health.admission, self.health.has_room
