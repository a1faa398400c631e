"""Health in words, for status, explanations and the journal."""

from __future__ import annotations

from math import ceil, inf


def nth(number: int) -> str:
    """1st, 2nd, 3rd, 4th, 11th …"""
    teen = 10 < number % 100 < 14
    ending = "th" if teen else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def in_seconds(seconds: float) -> str:
    """When something comes, whole seconds, rounded up: what is said to take 1 s takes no longer."""
    if seconds == inf:
        return "with the next call"
    return f"in {ceil(seconds)} s" if seconds > 0 else "now"


def because(failures: int, reason: str, *, same: bool) -> str:
    """Failures in a row and their reason, or the last one where they had several."""
    if failures == 1:
        return reason
    return f"{failures}× {reason}" if same else f"{failures} failures, the last: {reason}"
