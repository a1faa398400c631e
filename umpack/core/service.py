"""What umpack does with a call it takes itself: receive a fax, record a voice message, or either.

A service is a trunk whose channels are ports: how many such calls run at a time. Leases, packs,
overflow, drains and health know no difference. Lengths of time are seconds.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FaxOptions:
    """How faxes are received."""

    ecm: bool = True
    """Error correction (T.30 annex A): the sender repeats what was damaged."""
    t38: bool = True
    """Fax over IP (T.38) where the caller's channel can; G.711 else."""
    station: str = ""
    """Our own number as the sender's display shows it (CSI, T.30 5.3.6.2.4); 20 characters."""
    header: str = ""
    max_rate: int = 14_400
    """Bit/s: 4800 (V.27ter), 9600 (and V.29) or 14400 (and V.17)."""


@dataclass(frozen=True, slots=True)
class VoiceOptions:
    """How voice messages are recorded."""

    greeting: str = ""
    """Sound file without suffix, as the PBX finds it; empty: none."""
    beep: bool = True
    longest: float = 300.0
    silence: float = 5.0
    """Ends the message; 0: never. Counted in whole seconds."""
    stop_keys: str = "#"


@dataclass(frozen=True, slots=True)
class Service:
    """The options of one service; those of what it does not do are not read."""

    fax: FaxOptions = FaxOptions()
    voice: VoiceOptions = VoiceOptions()
    language: str = ""
    """Of greeting and beep; empty: the channel's own."""
