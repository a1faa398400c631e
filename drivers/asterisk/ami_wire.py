"""The Asterisk Manager Interface as bytes: a codec without any I/O.

An AMI peer greets with one line (`Asterisk Call Manager/11.0.0`) and then sends messages of
`Name: value` lines, each message ended by an empty line. The codec learns the line end from the
greeting: Asterisk ends its lines with CR LF, and then a lone LF inside a value stays part of that
value (a channel variable may hold one; splitting there would let a caller forge headers). A peer
that ends its greeting with a lone LF is read line by line at LF.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Final, TypeAlias

from umpack.core.errors import OurFault, PeerFault, ProtocolFault

MAX_GREETING: Final = 256
MAX_LINE: Final = 64 * 1024
MAX_MESSAGE: Final = 4 * 1024 * 1024
# Asterisk's side (main/manager.c, include/asterisk/manager.h): `inbuf[1025]` holds one line, and
# AST_MAX_MANHEADERS lines make a message. What is longer is answered without our ActionID.
MAX_ACTION_LINE: Final = 1024
MAX_ACTION_HEADERS: Final = 128

_PRODUCT: Final = b"Asterisk Call Manager"
_GREETING: Final = re.compile(rb"Asterisk Call Manager[^/\r\n]*/(\d[\w.+-]*)[ \t]*\Z")
_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.()-]*\Z")
_UNSENDABLE: Final = re.compile("[\r\n\0]")
_END_OF_COMMAND: Final = "--END COMMAND--"
_FOLLOWS: Final = "Response: Follows"
_FOLLOWS_HEADERS: Final = ("Response:", "Privilege:", "ActionID:", "Message:")

Fields: TypeAlias = Mapping[str, str | list[str]]


class AmiUnsendable(OurFault):
    """An action that must not be sent: it would change its meaning on the wire."""


class AmiRefused(PeerFault):
    """Asterisk answered `Response: Error`; the text is its `Message`."""


class AmiMessage(Mapping[str, str]):
    """One message: a mapping of headers, in wire order and spelling, looked up in any case.

    A repeated header (`ChanVariable`, `Variable`, `Output`) shows its first value here and all of
    them in `all()`. A message that is neither `AmiEvent` nor `AmiAnswer` was garbled; `text` holds
    the lines that are no headers.
    """

    __slots__ = ("_fields", "action_id", "text")

    def __init__(self, fields: Fields, text: str = "") -> None:
        self._fields = fields
        self.text = text
        action_id = fields.get("ActionID", "")
        self.action_id = action_id if isinstance(action_id, str) else action_id[0]

    def _find(self, name: str) -> str | list[str] | None:
        found = self._fields.get(name)
        if found is None:
            folded = name.lower()
            for key, value in self._fields.items():
                if key.lower() == folded:
                    return value
        return found

    def __getitem__(self, name: str) -> str:
        found = self._find(name)
        if found is None:
            raise KeyError(name)
        return found if isinstance(found, str) else found[0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._find(name) is not None

    def all(self, name: str) -> list[str]:
        """Every value of a header, in wire order; empty if it is not there."""
        found = self._find(name)
        if found is None:
            return []
        return [found] if isinstance(found, str) else list(found)

    # pyst2's own actions read their answers through these two names.
    has_header = __contains__

    def get_header(self, name: str, default: str | None = None) -> str | None:
        """As `get`, under the name pyst2 uses."""
        return self.get(name, default)

    def __repr__(self) -> str:
        first = next(iter(self.items()), ("garbled", self.text[:40]))
        return f"<{type(self).__name__} {first[0]}={first[1]!r} {len(self)} headers>"


class AmiEvent(AmiMessage):
    """A message with an `Event` header."""

    __slots__ = ("name",)

    def __init__(self, fields: Fields, text: str = "") -> None:
        super().__init__(fields, text)
        self.name = self["Event"]


class AmiAnswer(AmiMessage):
    """A message with a `Response` header: the answer to one action."""

    __slots__ = ()

    @property
    def ok(self) -> bool:
        """False for `Response: Error` only: Logoff is answered with `Goodbye`."""
        return self["Response"].lower() != "error"

    @property
    def output(self) -> list[str]:
        """The lines a `Command` printed, of old (`Follows`) and new (`Output:`) Asterisk alike."""
        return self.all("Output")


class AmiCodec:
    """Bytes in, messages out.

    `wanted` names the events worth parsing; any other event without an ActionID is only counted in
    `skipped`. None wants all. `version` is the AMI version of the greeting once it was read.
    """

    ENCODING_ERRORS: ClassVar[str] = "backslashreplace"  # caller names come in any charset

    def __init__(
        self,
        wanted: frozenset[str] | None = None,
        *,
        max_line: int = MAX_LINE,
        max_message: int = MAX_MESSAGE,
    ) -> None:
        self.version: str | None = None
        self.skipped = 0
        self._wanted = wanted
        self._max_line = max_line
        self._max_message = max_message
        self._buffer = bytearray()
        self._searched = 0
        self._eol = "\r\n"
        self._gap = b"\r\n\r\n"
        self._output: list[str] = []
        self._output_size = 0

    def feed(self, data: bytes) -> list[AmiMessage]:
        """The messages that `data` completes.

        Raises ProtocolFault for a wrong greeting, a NUL (Asterisk writes C strings, so this is
        not Asterisk), or a line or message over its bound. The codec is of no use afterwards.
        """
        if b"\0" in data:
            raise ProtocolFault("AMI: a NUL byte")
        buffer = self._buffer
        buffer += data
        if self.version is None and not self._greet():
            return []
        gap = self._gap
        end = buffer.rfind(gap, max(0, self._searched - len(gap) + 1))
        messages: list[AmiMessage] = []
        if end >= 0:
            text = buffer[:end].decode("utf-8", self.ENCODING_ERRORS)
            del buffer[: end + len(gap)]
            for block in text.split(gap.decode()):
                message = self._message(block)
                if message is not None:
                    messages.append(message)
        self._searched = len(buffer)
        self._check_rest()
        return messages

    def _greet(self) -> bool:
        buffer = self._buffer
        end = buffer.find(b"\n")
        if end < 0:
            if buffer[: len(_PRODUCT)] != _PRODUCT[: len(buffer)] or len(buffer) > MAX_GREETING:
                raise ProtocolFault(f"AMI: wrong greeting {bytes(buffer[:40])!r}")
            return False
        line = bytes(buffer[:end])
        if not line.endswith(b"\r"):
            self._eol, self._gap = "\n", b"\n\n"
        match = _GREETING.match(line.removesuffix(b"\r"))
        if match is None or end > MAX_GREETING:
            raise ProtocolFault(f"AMI: wrong greeting {line[:40]!r}")
        self.version = match[1].decode("ascii", self.ENCODING_ERRORS)
        del buffer[: end + 1]
        self._searched = 0
        return True

    def _check_rest(self) -> None:
        rest = len(self._buffer)
        if rest > self._max_message:
            raise ProtocolFault(f"AMI: a message over {self._max_message} bytes")
        if rest > self._max_line and rest - self._buffer.rfind(b"\n") > self._max_line:
            raise ProtocolFault(f"AMI: a line over {self._max_line} bytes")

    def _message(self, block: str) -> AmiMessage | None:
        eol = self._eol
        if self._output:
            return self._more_output(block)
        while block.startswith(eol):
            block = block[len(eol) :]
        while block.endswith(eol):
            block = block[: -len(eol)]
        if len(block) > self._max_line:
            self._check_block(block)
        if not block or self._is_unwanted(block):
            return None
        if block.startswith(_FOLLOWS):
            # Asterisk before 14 prints raw output, which may hold empty lines, up to a marker.
            return self._more_output(block)
        fields, text = _fields_of(block.split(eol))
        return _kind_of(fields)(fields, text)

    def _more_output(self, block: str) -> AmiMessage | None:
        self._output.append(block)
        self._output_size += len(block) + len(self._gap)
        if self._output_size > self._max_message + len(self._gap):
            raise ProtocolFault(f"AMI: a message over {self._max_message} bytes")
        if not block.endswith(_END_OF_COMMAND):
            return None
        whole = self._gap.decode().join(self._output)
        self._output.clear()
        self._output_size = 0
        return AmiAnswer(_fields_of_follows(whole, self._eol))

    def _check_block(self, block: str) -> None:
        if len(block) > self._max_message:
            raise ProtocolFault(f"AMI: a message over {self._max_message} bytes")
        if any(len(line) > self._max_line for line in block.split("\n")):
            raise ProtocolFault(f"AMI: a line over {self._max_line} bytes")

    def _is_unwanted(self, block: str) -> bool:
        """An event nobody asked for. One with an ActionID may be part of a list: not unwanted."""
        eol = self._eol
        if self._wanted is None or not block.startswith("Event: ") or f"{eol}ActionID:" in block:
            return False
        if block[7:].partition(eol)[0] in self._wanted:
            return False
        self.skipped += 1
        return True


def _kind_of(fields: Fields) -> type[AmiMessage]:
    # Asterisk spells both this way; other peers may not.
    if "Event" in fields:
        return AmiEvent
    if "Response" in fields:
        return AmiAnswer
    folded = {name.lower() for name in fields}
    return AmiEvent if "event" in folded else AmiAnswer if "response" in folded else AmiMessage


def _fields_of(lines: list[str]) -> tuple[Fields, str]:
    try:
        # The common message has no repeated and no malformed header: one dict() in C.
        fields = dict([line.split(": ", 1) for line in lines])
    except ValueError:
        return _fields_slowly(lines)
    if len(fields) != len(lines) or ":" in "".join(fields):
        return _fields_slowly(lines)
    return fields, ""


def _fields_slowly(lines: list[str]) -> tuple[dict[str, str | list[str]], str]:
    fields: dict[str, str | list[str]] = {}
    strange: list[str] = []
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name:
            strange.append(line)
        else:
            _add(fields, name, value.removeprefix(" "))
    return fields, "\n".join(strange)


def _add(fields: dict[str, str | list[str]], name: str, value: str) -> None:
    known = fields.get(name)
    if known is None:
        fields[name] = value
    elif isinstance(known, str):
        fields[name] = [known, value]
    else:
        known.append(value)


def _fields_of_follows(block: str, eol: str) -> dict[str, str | list[str]]:
    fields: dict[str, str | list[str]] = {}
    rest = block
    while rest.startswith(_FOLLOWS_HEADERS):
        line, _, rest = rest.partition(eol)
        name, _, value = line.partition(":")
        _add(fields, name, value.removeprefix(" "))
    output = rest.removesuffix(_END_OF_COMMAND).replace("\r\n", "\n")
    for line in output.removesuffix("\n").split("\n") if output else ():
        _add(fields, "Output", line)
    return fields


def encode_action(
    name: str, action_id: str, headers: Mapping[str, str | Sequence[str]] | None = None
) -> bytes:
    """The bytes of one action; a sequence of values repeats its header.

    Raises AmiUnsendable if a name or value holds CR, LF or NUL (it would become a header or an
    action of its own), or is more than Asterisk reads.
    """
    pairs = [("Action", name), ("ActionID", action_id)]
    for key, value in (headers or {}).items():
        if key.lower() in {"action", "actionid"}:
            raise AmiUnsendable(f"AMI action {name!r}: header {key} is not the caller's to set")
        pairs += [(key, value)] if isinstance(value, str) else [(key, each) for each in value]
    if len(pairs) > MAX_ACTION_HEADERS:
        raise AmiUnsendable(f"AMI action {name!r}: over {MAX_ACTION_HEADERS} headers")
    lines = []
    for key, each in pairs:
        if not _HEADER_NAME.match(key):
            raise AmiUnsendable(f"AMI action {name!r}: {key!r} is no header name")
        if _UNSENDABLE.search(each):
            raise AmiUnsendable(f"AMI action {name!r}: control character in the value of {key}")
        try:
            line = f"{key}: {each}".encode()
        except UnicodeEncodeError:
            raise AmiUnsendable(f"AMI action {name!r}: {key} cannot be written in UTF-8") from None
        if len(line) > MAX_ACTION_LINE - 2:
            raise AmiUnsendable(f"AMI action {name!r}: {key} is over {MAX_ACTION_LINE} bytes")
        lines.append(line)
    return b"\r\n".join(lines) + b"\r\n\r\n"
