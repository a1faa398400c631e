"""SIP callers for measuring delays: from the INVITE's sending to the arrival of its 200.

SIPp reads the kernel's coarse clock, 4 ms a tick. Here the arrival is the kernel's own time stamp
of the datagram (SO_TIMESTAMPNS, socket(7)), so that it does not matter when the caller gets to run.
"""

from __future__ import annotations

import re
import select
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Final

from umpack import clock

_SO_TIMESTAMPNS: Final = 35  # asm-generic/socket.h; also the type of its control message
_TIMESPEC: Final = struct.Struct("@ll")
_STATUS: Final = re.compile(rb"SIP/2\.0 (\d{3}).*?\r\nCSeq: *(\d+) (\w+)", re.S | re.I)
_CALL: Final = re.compile(rb"\r\nCall-ID: *(\d+)@", re.I)
_TO: Final = re.compile(rb"\r\nTo: *([^\r]*)", re.I)
_CONTACT: Final = re.compile(rb"\r\nContact: *<([^>]*)>", re.I)
_RETRANSMIT_S: Final = 0.5  # T1 of RFC 3261, 17.1.1.2
_SDP: Final = (
    "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"
    "m=audio 9 RTP/AVP 8\r\na=rtpmap:8 PCMA/8000\r\n"
)


@dataclass(slots=True)
class _Call:
    invite: bytes
    sent: float
    answered: float = 0.0
    bye: bytes = b""
    ended: bool = False


class _Callers:
    def __init__(self, sip_port: int, number: str, hold: float) -> None:
        self.calls: dict[int, _Call] = {}
        self.open = 0
        self._hold = hold
        self._number = number
        self._pbx = f"127.0.0.1:{sip_port}"
        self._due: list[tuple[float, int, int]] = []
        self._work: dict[int, Callable[[], None]] = {}
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.connect(("127.0.0.1", sip_port))
        self._port = self._socket.getsockname()[1]
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)

    def close(self) -> None:
        self._socket.close()

    def at(self, due: float, work: Callable[[], None]) -> None:
        number = len(self._work)
        self._work[number] = work
        heappush(self._due, (due, number, 0))

    def step(self) -> None:
        """Do what is due, then what has come; wait for either, 20 ms at most."""
        now = clock.wall()
        while self._due and self._due[0][0] <= now:
            _, number, _ = heappop(self._due)
            self._work[number]()
        wait = min(0.02, max(0.0, self._due[0][0] - clock.wall())) if self._due else 0.02
        if self._poll.poll(wait * 1000):
            data, control, _, _ = self._socket.recvmsg(4096, 64)
            seconds, nanoseconds = _TIMESPEC.unpack(control[0][2])
            self._received(data, seconds + nanoseconds / 1e9)

    def begin(self, call: int) -> None:
        """Send an INVITE, and again every T1 until there is a 200."""
        uri = f"sip:{self._number}@{self._pbx}"
        message = self._request("INVITE", uri, f"<{uri}>", call, 1, _SDP)
        self.calls[call] = _Call(message, clock.wall())
        self.open += 1
        self._send(call, message, lambda it: bool(it.answered) or it.ended)

    def _send(self, call: int, message: bytes, over: Callable[[_Call], bool]) -> None:
        it = self.calls[call]
        if over(it):
            return
        self._socket.send(message)
        self.at(clock.wall() + _RETRANSMIT_S, lambda: self._send(call, message, over))

    def _received(self, data: bytes, at: float) -> None:
        status, id_ = _STATUS.match(data), _CALL.search(data)
        if status is None or id_ is None or int(status[1]) < 200:
            return
        it = self.calls.get(int(id_[1]))
        if it is None:
            return
        if status[3].upper() == b"BYE":
            self.open -= not it.ended
            it.ended = True
        elif status[1] == b"200":
            self._answered(int(id_[1]), it, data, at)
        else:
            self._refused(int(id_[1]), it, data)

    def _answered(self, call: int, it: _Call, data: bytes, at: float) -> None:
        contact, to = _CONTACT.search(data), _TO.search(data)
        if contact is None or to is None:
            raise SystemExit(f"200 without Contact or To: {data!r}")
        uri, tagged = contact[1].decode(), to[1].decode()
        self._socket.send(self._request("ACK", uri, tagged, call, 1))
        if not it.answered:
            it.answered = at
            it.bye = self._request("BYE", uri, tagged, call, 2)
            bye = it.bye
            self.at(clock.wall() + self._hold, lambda: self._send(call, bye, lambda c: c.ended))

    def _refused(self, call: int, it: _Call, data: bytes) -> None:
        to = _TO.search(data)
        uri = f"sip:{self._number}@{self._pbx}"
        # RFC 3261 17.1.1.3: this ACK belongs to the INVITE's own transaction.
        ack = self._request("ACK", uri, to[1].decode() if to else f"<{uri}>", call, 1)
        self._socket.send(ack.replace(b"-ACK\r\n", b"-INVITE\r\n", 1))
        self.open -= not it.ended
        it.ended = True

    def _request(
        self, method: str, uri: str, to: str, call: int, number: int, body: str = ""
    ) -> bytes:
        here = f"127.0.0.1:{self._port}"
        kind = "Content-Type: application/sdp\r\n" if body else ""
        return (
            f"{method} {uri} SIP/2.0\r\n"
            f"Via: SIP/2.0/UDP {here};branch=z9hG4bK-{self._port}-{call}-{method}\r\n"
            f"From: <sip:1000@{here}>;tag={call}\r\nTo: {to}\r\n"
            f"Call-ID: {call}@{self._port}\r\nCSeq: {number} {method}\r\n"
            f"Contact: <sip:caller@{here}>\r\nMax-Forwards: 70\r\n"
            f"{kind}Content-Length: {len(body)}\r\n\r\n{body}"
        ).encode()


def delays(
    sip_port: int, number: str, *, calls: int, rate: float, hold: float
) -> list[tuple[float, float]]:
    """Place `calls` calls, `rate` a second, each hung up `hold` seconds after its answer.

    Gives for those answered when that was and the time since the INVITE, in seconds; ends 5 s after
    the last at the latest.
    """
    callers = _Callers(sip_port, number, hold)
    try:
        start = clock.wall() + 0.01
        for call in range(calls):
            callers.at(start + call / rate, lambda call=call: callers.begin(call))  # type: ignore[misc]
        end = start + calls / rate + 5.0
        while clock.wall() < end and (callers.open or len(callers.calls) < calls):
            callers.step()
        return [
            (it.answered, it.answered - it.sent) for it in callers.calls.values() if it.answered
        ]
    finally:
        callers.close()
