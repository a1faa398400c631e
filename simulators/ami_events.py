"""The AMI events of the simulated PBX, header by header as Asterisk 22 sends them.

A test holds every header to Asterisk's own XML manual and to a running Asterisk's stream. Nothing
is put together that no session wants.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from simulators.pbx_causes import cause_text
from simulators.pbx_channel import PbxChannel

EVENT_CLASSES: Final[Mapping[str, str]] = {
    "Alarm": "system",
    "AlarmClear": "system",
    "BridgeEnter": "call",
    "BridgeLeave": "call",
    "ContactStatus": "system",
    "DAHDIChannel": "call",
    "DeviceStateChange": "call",
    "DialBegin": "call",
    "DialEnd": "call",
    "DialState": "call",
    "FullyBooted": "system",
    "Hangup": "call",
    "HangupRequest": "call",
    "Newchannel": "call",
    "Newexten": "dialplan",
    "Newstate": "call",
    "PeerStatus": "system",
    "Reload": "system",
    "Shutdown": "system",
    "SpanAlarm": "system",
    "SpanAlarmClear": "system",
    "VarSet": "dialplan",
}
"""Every event this PBX sends by itself, and the class EventMask knows it by."""


class PbxEvents:
    """Turns what happens into events. `wants(name)` is asked first, `publish(name, body)` after."""

    def __init__(self, wants: Callable[[str], bool], publish: Callable[[str, str], None]) -> None:
        self._wants = wants
        self._publish = publish

    # --- channels ------------------------------------------------------------------------------

    def channel(self, name: str, channel: PbxChannel) -> None:
        """`Newchannel`, `Newstate`: a snapshot and no more."""
        if self._wants(name):
            self._publish(name, channel.headers())

    def new_exten(self, channel: PbxChannel, application: str, data: str) -> None:
        """The dialplan has come to an application."""
        channel.application, channel.data = application, data
        if self._wants("Newexten"):
            body = (
                f"Extension: {channel.exten}\r\nApplication: {application}\r\nAppData: {data}\r\n"
            )
            self._publish("Newexten", channel.headers() + body)

    def variable(self, channel: PbxChannel, name: str, value: str) -> None:
        """Set a variable, and say so."""
        channel.variables[name] = value
        if self._wants("VarSet"):
            body = f"Variable: {name}\r\nValue: {value}\r\n"
            self._publish("VarSet", channel.headers() + body)

    def hangup_request(self, channel: PbxChannel, cause: int) -> None:
        """An end has hung up."""
        if self._wants("HangupRequest"):
            self._publish("HangupRequest", f"{channel.headers()}Cause: {cause}\r\n")

    def hangup(self, channel: PbxChannel, cause: int, tech_cause: int | None = None) -> None:
        """The channel is gone. `tech_cause` is the SIP status that ended it, if one did."""
        if self._wants("Hangup"):
            words = f"Cause: {cause}\r\nCause-txt: {cause_text(cause)}\r\n"
            if tech_cause is not None and tech_cause >= 300:
                words += f"TechCause: {tech_cause}\r\n"
            self._publish("Hangup", channel.headers() + words)

    def dahdi_channel(self, channel: PbxChannel, span: int, number: int) -> None:
        """Which B channel a channel sits on, now."""
        if self._wants("DAHDIChannel"):
            body = f"DAHDIGroup: 0\r\nDAHDISpan: {span}\r\nDAHDIChannel: {number}\r\n"
            self._publish("DAHDIChannel", channel.headers() + body)

    # --- dialling ------------------------------------------------------------------------------

    def dial_begin(self, caller: PbxChannel, leg: PbxChannel, resource: str) -> None:
        """A leg was called."""
        if self._wants("DialBegin"):
            body = f"{caller.headers()}{leg.headers('Dest')}DialString: {resource}\r\n"
            self._publish("DialBegin", body)

    def dial_progress(self, name: str, caller: PbxChannel, leg: PbxChannel, status: str) -> None:
        """`DialState` (RINGING) or `DialEnd` (ANSWER, BUSY, ...)."""
        if self._wants(name):
            body = f"{caller.headers()}{leg.headers('Dest')}DialStatus: {status}\r\n"
            self._publish(name, body)

    def bridge(self, name: str, bridge: str, count: int, channel: PbxChannel) -> None:
        """`BridgeEnter`, `BridgeLeave`; `count` channels are in it then."""
        if self._wants(name):
            body = (
                f"BridgeUniqueid: {bridge}\r\nBridgeType: basic\r\n"
                "BridgeTechnology: simple_bridge\r\nBridgeCreator: <unknown>\r\n"
                f"BridgeName: <unknown>\r\nBridgeNumChannels: {count}\r\n"
                "BridgeVideoSourceMode: none\r\n"
            )
            self._publish(name, body + channel.headers())

    def device_state(self, device: str, state: str) -> None:
        """`INUSE`, `NOT_INUSE`, `RINGING`, `UNAVAILABLE`."""
        if self._wants("DeviceStateChange"):
            self._publish("DeviceStateChange", f"Device: {device}\r\nState: {state}\r\n")

    # --- lines and system ----------------------------------------------------------------------

    def span_alarm(self, span: int, alarm: str | None) -> None:
        """An alarm in chan_dahdi's words, or None when it has cleared."""
        name = "SpanAlarmClear" if alarm is None else "SpanAlarm"
        if self._wants(name):
            words = "" if alarm is None else f"Alarm: {alarm}\r\n"
            self._publish(name, f"Span: {span}\r\n{words}")

    def channel_alarm(self, number: int, alarm: str | None) -> None:
        """As `span_alarm`, for one DAHDI channel."""
        name = "AlarmClear" if alarm is None else "Alarm"
        if self._wants(name):
            words = "" if alarm is None else f"Alarm: {alarm}\r\n"
            self._publish(name, f"DAHDIChannel: {number}\r\n{words}")

    def contact_status(self, endpoint: str, uri: str, *, reachable: bool) -> None:
        """Qualifying a contact has changed its mind."""
        status = "Reachable" if reachable else "Unreachable"
        if self._wants("PeerStatus"):
            body = f"ChannelType: PJSIP\r\nPeer: PJSIP/{endpoint}\r\nPeerStatus: {status}\r\n"
            self._publish("PeerStatus", body)
        if self._wants("ContactStatus"):
            self._publish(
                "ContactStatus",
                f"URI: {uri}\r\nContactStatus: {status}\r\nAOR: {endpoint}\r\n"
                f"EndpointName: {endpoint}\r\nRoundtripUsec: {800 if reachable else 0}\r\n",
            )

    def shutdown(self, *, restart: bool) -> None:
        """`core stop` or `core restart`."""
        if self._wants("Shutdown"):
            self._publish(
                "Shutdown", f"Shutdown: Cleanly\r\nRestart: {'True' if restart else 'False'}\r\n"
            )

    def reload(self, module: str) -> None:
        """`module reload`."""
        if self._wants("Reload"):
            self._publish("Reload", f"Module: {module}\r\nStatus: 0\r\n")
