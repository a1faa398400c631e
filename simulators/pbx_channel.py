"""A channel of the simulated PBX as its events and variables show it, and the time it lives in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

UNKNOWN: Final = "<unknown>"


class ChannelState(IntEnum):
    """`ChannelState` of AMI, numbered as in Asterisk."""

    DOWN = 0
    RING = 4
    RINGING = 5
    UP = 6


DESCRIPTIONS: Final = {
    ChannelState.DOWN: "Down",
    ChannelState.RING: "Ring",
    ChannelState.RINGING: "Ringing",
    ChannelState.UP: "Up",
}


# Asterisk C-escapes names in its events (ast_escape_c), but no numbers.
_ESCAPES: Final = str.maketrans(
    {
        "\a": r"\a", "\b": r"\b", "\f": r"\f", "\n": r"\n", "\r": r"\r", "\t": r"\t", "\v": r"\v",
        "\\": r"\\", "'": r"\'", '"': r"\"", "?": r"\?",
    }
)  # fmt: skip


def escaped(name: str) -> str:
    """A name as it stands in an event."""
    return name.translate(_ESCAPES)


@dataclass(slots=True, eq=False)
class PbxChannel:
    """One channel: `name` is `PJSIP/um1-0000002a`, `device` the part before the dash."""

    name: str
    device: str
    uniqueid: str
    linkedid: str
    caller: str
    caller_name: str
    context: str
    exten: str
    born: float
    state: ChannelState = ChannelState.DOWN
    connected: str = ""
    connected_name: str = ""
    bridge: str = ""
    application: str = ""
    data: str = ""
    hangup_cause: int = 0
    variables: dict[str, str] = field(default_factory=dict)
    # HANGUPCAUSE(channel,tech|ast): every leg since the call began, not only the last Dial's.
    leg_words: dict[str, tuple[str, str]] = field(default_factory=dict)

    def headers(self, prefix: str = "") -> str:
        """The channel's snapshot, as every channel event shows it."""
        return (
            f"{prefix}Channel: {self.name}\r\n"
            f"{prefix}ChannelState: {self.state.value}\r\n"
            f"{prefix}ChannelStateDesc: {DESCRIPTIONS[self.state]}\r\n"
            f"{prefix}CallerIDNum: {self.caller or UNKNOWN}\r\n"
            f"{prefix}CallerIDName: {escaped(self.caller_name) or UNKNOWN}\r\n"
            f"{prefix}ConnectedLineNum: {self.connected or UNKNOWN}\r\n"
            f"{prefix}ConnectedLineName: {escaped(self.connected_name) or UNKNOWN}\r\n"
            f"{prefix}Language: en\r\n"
            f"{prefix}AccountCode: \r\n"
            f"{prefix}Context: {self.context}\r\n"
            f"{prefix}Exten: {self.exten}\r\n"
            f"{prefix}Priority: 1\r\n"
            f"{prefix}Uniqueid: {self.uniqueid}\r\n"
            f"{prefix}Linkedid: {self.linkedid}\r\n"
        )


class PbxTime:
    """The PBX's own time: `speed` of its seconds pass in one of the loop's.

    Everything the PBX times runs on it: ringing, holding, the limits of Dial, the lines' timers.
    """

    def __init__(self, speed: float = 1.0) -> None:
        self.loop = asyncio.get_running_loop()
        self.speed = speed
        self._start = self.loop.time()

    def now(self) -> float:
        """Seconds since the PBX was started."""
        return (self.loop.time() - self._start) * self.speed

    def after(self, seconds: float, call: Callable[[], None]) -> asyncio.Handle:
        """Do something later; nothing is ever done before this returns."""
        if seconds <= 0:
            return self.loop.call_soon(call)
        return self.loop.call_later(seconds / self.speed, call)

    def at(self, when: float, call: Callable[[], None]) -> asyncio.TimerHandle:
        """Do something at a time of this clock."""
        return self.loop.call_at(self._start + when / self.speed, call)
