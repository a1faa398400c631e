"""Every error umpack raises, in one tree.

    UmpackError
    ├── OurFault            a mistake in umpack or in what its administrator wrote
    │   ├── ConfigError     the configuration cannot be used; carries every problem found
    │   ├── LeaseError      a lease was used that is not, or is no longer, held
    │   ├── StateError      a transition its state table does not have
    │   └── ...             leaves of one room each: DialError, PatternError, UnsafeArgument, ...
    └── PeerFault           the other side is wrong, gone or too slow
        ├── ProtocolFault   what came is not the protocol (AGI, AMI, CAPI, AT)
        ├── PeerGone        the connection ended
        └── PeerTimeout     no answer within the limit

Foreign exceptions (`OSError`, pyst2's, aiohttp's) are translated into this tree where they enter.
"""

from __future__ import annotations


class UmpackError(Exception):
    """Root of the tree; never raised itself."""


class OurFault(UmpackError):
    """A mistake in umpack or in what its administrator wrote."""


class ConfigError(OurFault):
    """The configuration cannot be used."""


class LeaseError(OurFault):
    """A lease was used that is not, or is no longer, held. Nothing was changed."""


class StateError(OurFault):
    """A transition its state table does not have."""


class PeerFault(UmpackError):
    """The other side is wrong, gone or too slow."""


class ProtocolFault(PeerFault):
    """What came is not the protocol."""


class PeerGone(PeerFault):
    """The connection ended."""


class PeerTimeout(PeerFault):
    """No answer within the limit."""
