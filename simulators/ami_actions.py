"""What the simulated PBX does for managers: the actions umpack uses, worded as Asterisk 22 does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from simulators.ami_filter import parse_filter
from simulators.ami_server import Act, AmiSession, Headers, message
from simulators.dahdi_lines import ALARM_NAMES
from simulators.line import Kind, Layer2
from umpack.core.errors import ProtocolFault

if TYPE_CHECKING:
    from simulators.asterisk import SimulatedAsterisk

SIGNALLING = {Kind.S2M: ("PRI Signalling", 128), Kind.S0: ("BRI Signalling", 132)}


class AmiActions:
    """The actions of one PBX."""

    def __init__(self, pbx: SimulatedAsterisk) -> None:
        self._pbx = pbx
        self.table: dict[str, Act] = {
            "command": self._command,
            "coreshowchannels": self._core_show_channels,
            "dahdishowchannels": self._dahdi_show_channels,
            "dbdel": self._db_del,
            "dbget": self._db_get,
            "dbput": self._db_put,
            "events": self._events,
            "filter": self._filter,
            "ping": self._ping,
            "pjsipshowcontacts": self._pjsip_show_contacts,
            "pjsipshowendpoints": self._pjsip_show_endpoints,
            "prishowspans": self._pri_show_spans,
            "reload": self._reload,
        }

    # --- the session ---------------------------------------------------------------------------

    def _ping(self, session: AmiSession, action_id: str, headers: Headers) -> None:
        stamp = f"Timestamp: {self._pbx.wall():.6f}"
        session.respond(action_id, "Success", "", "Ping: Pong", stamp)

    def _events(self, session: AmiSession, action_id: str, headers: Headers) -> None:
        mask = headers.get("eventmask")
        if mask is None:
            session.respond(action_id, "Error", "Invalid event mask")
            return
        words = [word.strip().lower() for word in mask.split(",") if word.strip()]
        if words in (["on"], ["all"]):
            session.mask = None
        elif words in (["off"], ["none"], []):
            session.mask = frozenset()
        else:
            session.mask = frozenset(words)
        session.server.changed()
        state = "Off" if session.mask is not None and not session.mask else "On"
        session.respond(action_id, "Success", "", f"Events: {state}")

    def _filter(self, session: AmiSession, action_id: str, headers: Headers) -> None:
        if headers.get("operation", "").lower() != "add":
            session.respond(action_id, "Error", "Unknown operation")
            return
        try:
            session.filters.add(parse_filter(headers.get("matchcriteria"), headers.get("filter")))
        except ProtocolFault as fault:
            session.respond(action_id, "Error", str(fault))
            return
        session.server.changed()
        session.respond(action_id, "Success", "Success")

    # --- lists ---------------------------------------------------------------------------------

    def _core_show_channels(self, session: AmiSession, action_id: str, headers: Headers) -> None:
        now = self._pbx.time.loop.time()
        items = []
        for channel in self._pbx.channels:
            age = int(now - channel.born)
            items.append(
                channel.headers()
                + f"Application: {channel.application}\r\n"
                + f"ApplicationData: {channel.data}\r\n"
                + f"Duration: {age // 3600:02}:{age // 60 % 60:02}:{age % 60:02}\r\n"
                + f"BridgeId: {channel.bridge}\r\n"
            )
        _send_list(session, action_id, "CoreShowChannel", "Channels will follow", items)

    def _pjsip_show_endpoints(self, session: AmiSession, action_id: str, headers: Headers) -> None:
        items = []
        for endpoint in self._pbx.endpoints.values():
            state = "In use" if endpoint.active else "Not in use"
            items.append(
                f"ObjectType: endpoint\r\nObjectName: {endpoint.name}\r\nTransport: \r\n"
                f"Aor: {endpoint.name}\r\nAuths: \r\nOutboundAuths: \r\n"
                f"Contacts: {endpoint.name}/{self._pbx.uri(endpoint.name)},\r\n"
                f"DeviceState: {state if endpoint.reachable else 'Unavailable'}\r\n"
                f"ActiveChannels: {endpoint.active}\r\n"
            )
        if not items:
            session.respond(action_id, "Error", "No endpoints found")
            return
        text = "A listing of Endpoints follows, presented as EndpointList events"
        _send_list(session, action_id, "EndpointList", text, items)

    def _pjsip_show_contacts(self, session: AmiSession, action_id: str, headers: Headers) -> None:
        items = [
            f"ObjectType: contact\r\nObjectName: {name}@@{index:032x}\r\nViaAddr: \r\n"
            f"ViaPort: 0\r\nQualifyTimeout: 3.000000\r\nCallId: \r\nRegServer: \r\n"
            f"PruneOnBoot: no\r\nPath: \r\nEndpoint: {name}\r\nAuthenticateQualify: no\r\n"
            f"Uri: {self._pbx.uri(name)}\r\nQualifyFrequency: 60\r\nUserAgent: \r\n"
            f"ExpirationTime: 0\r\nOutboundProxy: \r\n"
            f"Status: {'Reachable' if endpoint.reachable else 'Unreachable'}\r\n"
            f"RoundtripUsec: {800 if endpoint.reachable else 0}\r\nQualify2xxOnly: no\r\n"
            for index, (name, endpoint) in enumerate(self._pbx.endpoints.items())
        ]
        if not items:
            # Asterisk ends this one refusal with an empty line too many.
            session.respond(action_id, "Error", "No Contacts found")
            session.send("\r\n")
            return
        text = "A listing of Contacts follows, presented as ContactList events"
        _send_list(session, action_id, "ContactList", text, items)

    def _dahdi_show_channels(self, session: AmiSession, action_id: str, headers: Headers) -> None:
        lines = self._pbx.lines
        if lines is None:
            session.refuse_unknown(action_id, "DAHDIShowChannels")
            return
        asked = headers.get("dahdichannel", "")
        only = int(asked) if asked.isdigit() else 0
        spans = {view.number: view for view in lines.board.spans()}
        items = []
        for number, span in lines.numbers.items():
            if only not in (0, number):
                continue
            view = spans[span]
            words, code = SIGNALLING[view.kind]
            owner = self._pbx.channel_on(number)
            head = (
                f"Channel: {owner.name}\r\nUniqueid: {owner.uniqueid}\r\nAccountCode: \r\n"
                if owner
                else ""
            )
            items.append(
                f"DAHDIChannel: {number}\r\n{head}Signalling: {words}\r\nSignallingCode: {code}\r\n"
                f"Context: from-line\r\nDND: Disabled\r\nAlarm: {ALARM_NAMES[view.layer1]}\r\n"
                "Description: \r\n"
            )
        text, more = "DAHDI channel status will follow", (f"Items: {len(items)}",)
        _send_list(session, action_id, "DAHDIShowChannels", text, items, more)

    def _pri_show_spans(self, session: AmiSession, action_id: str, headers: Headers) -> None:
        lines = self._pbx.lines
        if lines is None:
            session.refuse_unknown(action_id, "PRIShowSpans")
            return
        asked = headers.get("span", "")
        only = int(asked) if asked.isdigit() else 0
        items = [
            f"Span: {view.number}\r\nDChannel: {view.dchannel}\r\nOrder: Primary\r\nActive: Yes\r\n"
            f"Alarm: {'No' if ALARM_NAMES[view.layer1] == 'No Alarm' else 'Yes'}\r\n"
            f"Up: {'No' if view.layer2 is Layer2.DOWN or not view.plugged else 'Yes'}\r\n"
            for view in lines.board.spans()
            if only in (0, view.number)
        ]
        text, more = "Span status will follow", (f"Items: {len(items)}",)
        _send_list(session, action_id, "PRIShowSpans", text, items, more)

    # --- system --------------------------------------------------------------------------------

    def _command(self, session: AmiSession, action_id: str, headers: Headers) -> None:
        command = headers.get("command")
        if not command:
            session.respond(action_id, "Error", "No command provided")
            return
        output = self._output_of(command)
        result = "Success" if output is not None else "Error"
        if output is None:
            output = [
                f"No such command '{command}' (type 'core show help {command}' for other possible "
                "commands)"
            ]
        lines = [f"Output: {line}" for line in output]
        session.respond(action_id, result, "Command output follows", *lines)

    def _output_of(self, command: str) -> list[str] | None:
        """What a CLI command prints, or None if there is no such command."""
        pbx = self._pbx
        match command.split():
            case ["core", "show", "channels", "count"]:
                count = len(tuple(pbx.channels))
                return [f"{count} active channels", f"{pbx.calls} active calls"]
            case ["core", "show", "uptime"]:
                return [f"System uptime: {int(pbx.uptime)} seconds"]
            case ["core", "show", "version"]:
                return [f"Asterisk {pbx.version} built by simulators @ umpack"]
            case ["module" | "dialplan", "reload", *rest]:
                pbx.events.reload(rest[0] if rest else "All")
                return []
            case _:
                return None

    def _reload(self, session: AmiSession, action_id: str, headers: Headers) -> None:
        session.respond(action_id, "Success", "Module Reloaded")
        self._pbx.events.reload(headers.get("module", "All"))

    def _db_put(self, session: AmiSession, action_id: str, headers: Headers) -> None:
        if key := self._key(session, action_id, headers):
            self._pbx.database[key] = headers.get("val", "")
            session.respond(action_id, "Success", "Updated database successfully")

    def _db_get(self, session: AmiSession, action_id: str, headers: Headers) -> None:
        key = self._key(session, action_id, headers)
        if key is None:
            return
        value = self._pbx.database.get(key)
        if value is None:
            session.respond(action_id, "Error", "Database entry not found")
            return
        item = f"Family: {key[0]}\r\nKey: {key[1]}\r\nVal: {value}\r\n"
        _send_list(session, action_id, "DBGetResponse", "Result will follow", [item])

    def _db_del(self, session: AmiSession, action_id: str, headers: Headers) -> None:
        if key := self._key(session, action_id, headers):
            if self._pbx.database.pop(key, None) is None:
                session.respond(action_id, "Error", "Database entry could not be deleted")
            else:
                session.respond(action_id, "Success", "Key deleted successfully")

    def _key(self, session: AmiSession, action_id: str, headers: Headers) -> tuple[str, str] | None:
        for part in ("Family", "Key"):
            if not headers.get(part.lower()):
                session.respond(action_id, "Error", f"No {part.lower()} specified")
                return None
        return headers["family"], headers["key"]


_COMPLETE = {"DBGetResponse": "DBGetComplete", "CoreShowChannel": "CoreShowChannelsComplete"}


def _send_list(
    session: AmiSession,
    action_id: str,
    event: str,
    text: str,
    items: Iterable[str],
    more: Sequence[str] = (),
) -> None:
    """An answer, its events, and the event that ends the list."""
    echo = f"ActionID: {action_id}\r\n" if action_id else ""
    # EventList comes before Message here, unlike in every other answer.
    parts = [message("Response: Success", action_id, "EventList: start", f"Message: {text}")]
    count = 0
    for item in items:
        count += 1
        parts.append(f"Event: {event}\r\n{echo}{item}\r\n")
    done = _COMPLETE.get(event, f"{event}Complete")
    size = f"ListItems: {count}"
    parts.append(message(f"Event: {done}", action_id, "EventList: Complete", size, *more))
    session.send("".join(parts))
