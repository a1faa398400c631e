"""MTA-STS (RFC 8461): what a domain promises about its exchangers, read and applied. Pure.

Record and policy are a stranger's text. What is not as the RFC has it is no promise.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from umpack.core.errors import ProtocolFault
from umpack.messages.relays import Manner, Rank, Tls

MAX_POLICY: Final = 64 * 1024
"""Octets of a policy, RFC 8461 3.3."""
MAX_AGE: Final = 31_557_600
"""Seconds, RFC 8461 3.2: a year."""

_RECORD: Final = "v=STSv1;"
_WHITE: Final = " \t"
_ID: Final = re.compile(r"[A-Za-z0-9]{1,32}")
_FIELD: Final = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.-]{0,31})=([!-:<>-~]+)")
_SECONDS: Final = re.compile(r"[0-9]{1,10}")
_LABEL: Final = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_HOST: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_LONGEST_HOST: Final = 253


class Mode(Enum):
    """What a sender is to do with an exchanger that is not as promised."""

    ENFORCE = "enforce"
    TESTING = "testing"
    """Deliver all the same, and tell somebody."""
    NONE = "none"
    """The domain takes its promise back (RFC 8461 8.3)."""


@dataclass(frozen=True, slots=True)
class Policy:
    """`mx`: names in small letters, the first label may be `*`; `max_age` in seconds."""

    mode: Mode
    mx: tuple[str, ...]
    max_age: int

    def covers(self, host: str) -> bool:
        """RFC 8461 4.1: the same name, or a pattern whose `*` is exactly its first label."""
        name = host.lower().removesuffix(".")
        if "*" in name:
            return False
        return name in self.mx or f"*.{name.partition('.')[2]}" in self.mx


def is_host(name: str) -> bool:
    """Whether a name, in small letters, can be one of a host (RFC 1123 2.1)."""
    return len(name) <= _LONGEST_HOST and _HOST.fullmatch(name) is not None


def is_pattern(name: str) -> bool:
    """Whether a name, in small letters, can be an `mx` of a policy: a host, or `*.` before one."""
    return is_host(name.removeprefix("*."))


def record_id(records: Iterable[str]) -> str | None:
    """The policy's id by the TXT records of `_mta-sts`; None if they announce no policy.

    None, too, if there are several: nobody could say which counts (RFC 8461 3.1).
    """
    ours = [record for record in records if record.startswith(_RECORD)]
    if len(ours) != 1:
        return None
    fields = [field.strip(_WHITE) for field in ours[0].removeprefix(_RECORD).split(";")]
    if fields[-1] == "":
        fields.pop()
    found = [_FIELD.fullmatch(field) for field in fields]
    if None in found:
        return None
    ids = [match[2] for match in found if match and match[1] == "id"]
    return ids[0] if ids and _ID.fullmatch(ids[0]) else None


def read_policy(body: bytes) -> Policy:
    """The policy in a file of lines `key: value`. Raises `ProtocolFault`, and nothing else.

    As RFC 8461 3.2: of keys that stand twice the first counts, all but for `mx`; unknown ones are
    left out.
    """
    if len(body) > MAX_POLICY:
        raise ProtocolFault(f"longer than {MAX_POLICY} octets")
    first: dict[str, str] = {}
    mx: dict[str, None] = {}
    for line in body.decode("utf-8", "replace").split("\n"):
        key, colon, value = (part.strip(" \t\r") for part in line.partition(":"))
        if not colon:
            continue
        if key == "mx":
            name = value.lower().removesuffix(".")
            if is_pattern(name):
                mx[name] = None
        else:
            first.setdefault(key, value)
    if first.get("version") != "STSv1":
        raise ProtocolFault("no version STSv1")
    try:
        mode = Mode(first.get("mode"))
    except ValueError:
        raise ProtocolFault("no mode enforce, testing or none") from None
    age = first.get("max_age", "")
    if not _SECONDS.fullmatch(age) or int(age) > MAX_AGE:
        raise ProtocolFault(f"no max_age up to {MAX_AGE}")
    if not mx and mode is not Mode.NONE:
        raise ProtocolFault("no mx")
    return Policy(mode, tuple(mx), int(age))


@dataclass(frozen=True, slots=True)
class Applied:
    """Exchangers after a policy."""

    ranks: tuple[Rank, ...]
    """Those that may be used, and how."""
    strangers: tuple[str, ...] = ()
    """Those the policy does not name."""
    enforced: bool = False

    def whys(self, domain: str) -> list[str]:
        """What a recipient who has to wait is told, besides what the servers said."""
        if not self.enforced:
            return []
        found = [f"{about(domain)}: {host} is not in it" for host in self.strangers]
        return [*found, f"{about(domain)} is enforced"] if self.ranks else found


def about(domain: str) -> str:
    """As logs and reasons name it."""
    return f"MTA-STS policy of {domain}"


def apply(policy: Policy | None, ranks: Sequence[Rank]) -> Applied:
    """RFC 8461 4.2 and 5: with `enforce` only exchangers it names, only with TLS, only with a
    certificate for that very name; everything else as if there was no policy.
    """
    if policy is None or policy.mode is Mode.NONE:
        return Applied(tuple(ranks))
    hosts = dict.fromkeys(target.host for rank in ranks for target in rank)
    strangers = tuple(host for host in hosts if not policy.covers(host))
    if policy.mode is Mode.TESTING:
        return Applied(tuple(ranks), strangers)
    left = (
        tuple(
            replace(target, manner=_strict(target.manner))
            for target in rank
            if target.host not in strangers
        )
        for rank in ranks
    )
    return Applied(tuple(rank for rank in left if rank), strangers, enforced=True)


def _strict(manner: Manner) -> Manner:
    tls = Tls.IMPLICIT if manner.tls is Tls.IMPLICIT else Tls.REQUIRED
    return replace(manner, tls=tls, verify=True)
