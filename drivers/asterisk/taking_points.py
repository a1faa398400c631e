"""Places at which a reception may be killed, beside those of the spool (`FaultPoint`)."""

from __future__ import annotations

from enum import Enum


class TakingPoint(Enum):
    """In the order a call passes them. `Reception` tells them to whoever wants to know."""

    INTENDED = "intent durable, not answered"
    ANSWERED = "answered, engine not begun"
    BEFORE_ENGINE = "about to receive or record"
    ENGINE_DONE = "engine done, facts not read"
    FACTS_READ = "facts read, not committed"
