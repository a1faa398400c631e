"""The alarms that stand on one trunk: which are believed, and when they count as over.

An alarm is debounced when it comes and must stay away when it goes, the longer the more often it
has come lately; so a flapping span is left alone without ever being forgotten.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from umpack.core.health_policy import HealthPolicy
from umpack.core.health_states import AlarmKind

_LAYER1 = (AlarmKind.RED, AlarmKind.AIS, AlarmKind.RAI)


@dataclass(slots=True)
class _Alarm:
    detail: str
    believed_at: float


class Alarms:
    """Alarms of one trunk, at most one of a kind."""

    __slots__ = ("_in_row", "_over_since", "_standing", "believed_at")

    def __init__(self) -> None:
        self._standing: dict[AlarmKind, _Alarm] = {}
        self._in_row = 0
        self._over_since = -inf
        self.believed_at = inf
        """When the first of the standing ones is past its debounce; infinite if none stands."""

    def raised(self, kind: AlarmKind, detail: str, believed_at: float) -> None:
        """An alarm stands. Repeated, it is believed no later than before."""
        if known := self._standing.get(kind):
            known.detail = detail or known.detail
            known.believed_at = min(known.believed_at, believed_at)
        else:
            self._standing[kind] = _Alarm(detail, believed_at)
        self.believed_at = min(self.believed_at, believed_at)

    def cleared(self, kind: AlarmKind) -> bool:
        """An alarm is gone; false if it did not stand."""
        if self._standing.pop(kind, None) is None:
            return False
        self.believed_at = min((a.believed_at for a in self._standing.values()), default=inf)
        return True

    def count(self, now: float, policy: HealthPolicy) -> None:
        """The trunk goes into alarm: one more in a row, less those long forgiven."""
        calm = (now - self._over_since) / policy.calm_period if self._in_row else 0
        self._in_row = max(0, self._in_row - int(calm)) + 1

    def over(self, now: float) -> None:
        """The trunk has come back."""
        self._over_since = now

    def forget(self) -> None:
        """Nothing is known of any alarm now; those in a row still count."""
        self._standing.clear()
        self.believed_at = inf

    def settling(self, policy: HealthPolicy) -> float:
        """Seconds that the trunk must stay free of alarms before it comes back."""
        return policy.settling(self._in_row)

    @property
    def layer1_at(self) -> float:
        """When the last of the standing alarms of layer 1 is believed; long ago if none stands."""
        return max(
            (self._standing[k].believed_at for k in _LAYER1 if k in self._standing), default=-inf
        )

    @property
    def words(self) -> str:
        """The standing alarms, for people."""
        return ", ".join(
            f"{kind.value} ({alarm.detail})" if alarm.detail else kind.value
            for kind, alarm in self._standing.items()
        )

    def __bool__(self) -> bool:
        return bool(self._standing)

    def __repr__(self) -> str:
        return f"<{self.words or 'no alarm'}>"
