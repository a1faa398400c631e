"""Text off the line, made fit to print on one line of a log or a terminal."""

from __future__ import annotations


def printable(text: str, limit: int = 64) -> str:
    """Escape what could forge a line, move a cursor or hide text (also bidirectional controls).

    Everything `str.isprintable` doubts becomes a `\\x..`/`\\u....` escape; longer text is cut.
    """
    if text.isprintable() and text.isascii() and len(text) <= limit:
        return text
    shown = "".join(
        c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode("ascii")
        for c in text[:limit]
    )
    return shown + ("…" if len(text) > limit else "")
