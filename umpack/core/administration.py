"""What people have set: trunks and channels taken out of service, by whom, why, until when.

Separate from health: no probe and no reload undoes what a person said. *Draining* and *out of
service* are the same setting, before and after the last running call has ended.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Drain:
    """One trunk or channel (`target` is its id) taken out of service. Times are epoch seconds."""

    target: str
    by: str
    why: str
    since: float
    until: float | None = None

    @property
    def source(self) -> str:
        """Names this setting among a channel's blocks."""
        return f"drain {self.target}"

    @property
    def reason(self) -> str:
        """For status and explanations."""
        return f"drained by {self.by}" + (f": {self.why}" if self.why else "")
