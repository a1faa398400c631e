"""The one fault of a spool that passes by itself."""

from __future__ import annotations

from umpack.core.errors import OurFault


class SpoolFault(OurFault):
    """The disk will not take it now: full, read-only, gone or broken. Nothing that was there is
    lost, and the same call may succeed later."""
