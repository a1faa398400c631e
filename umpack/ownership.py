"""Whether the top-level package `drivers` is ours: its name is anybody's to take.

Another distribution with a package of that name, installed over ours or found before it, would be
run with umpack's rights and umpack's secrets.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import packages_distributions

from umpack.core.errors import OurFault

PACKAGE = "drivers"
_OURS = "umpack"


def refuse_foreign_drivers() -> None:
    """`OurFault` if another distribution has, or shares, the package. Blocks: it reads metadata."""
    owners = set(packages_distributions().get(PACKAGE, ()))
    if strangers := sorted(owner for owner in owners if owner != _OURS):
        raise OurFault(
            f"the package {PACKAGE!r} of umpack is claimed by {', '.join(strangers)} as well: "
            "install umpack into a virtual environment of its own"
        )
    # By name, as a plain import would be a dependency; the marker is drivers.OWNER.
    found = import_module(PACKAGE)
    if getattr(found, "OWNER", None) != _OURS:
        where = getattr(found, "__file__", None) or "a directory without __init__.py"
        raise OurFault(
            f"the package {PACKAGE!r} found at {where} is not umpack's: "
            "install umpack into a virtual environment of its own"
        )
