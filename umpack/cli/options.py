"""Options several commands share."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from umpack.config import models
from umpack.core.errors import ConfigError

if TYPE_CHECKING:
    from umpack.web.client import ControlClient

DEFAULT_CONFIG = Path("/etc/umpack/umpack.yaml")
DEFAULT_SOCKET = Path(models.Control().socket)

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", envvar="UMPACK_CONFIG", readable=False, help="Configuration file."
    ),
]
SocketOption = Annotated[
    Path | None,
    typer.Option(
        "--socket", envvar="UMPACK_SOCKET", readable=False, help="Control socket of the daemon."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


def client(socket: Path | None, config: Path | None) -> ControlClient:
    """The daemon to speak to: at `--socket`, else where the configuration says.

    No more of the file is read than that: whoever may use the socket need not be able to read the
    secrets, and a file with mistakes must not stop anybody from asking what the daemon makes of it.
    """
    # An eighth of a second, which commands that ask nobody need not wait.
    from umpack.web.client import ControlClient

    # Not Path.exists, which raises where the directory may not be looked into.
    if socket is None and (config is not None or os.path.exists(DEFAULT_CONFIG)):
        socket = _socket_in(config or DEFAULT_CONFIG)
    return ControlClient(socket or DEFAULT_SOCKET)


def _socket_in(file: Path) -> Path:
    try:
        found = _control_in(file.read_bytes())
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        why = error.strerror if isinstance(error, OSError) else "is not YAML"
        raise ConfigError(
            f"{file}: {why}; so where its daemon listens is not known: name it with --socket"
        ) from error
    named = found.get("socket") if isinstance(found, dict) else None
    return file.parent / named if isinstance(named, str) else DEFAULT_SOCKET


def _control_in(text: bytes) -> Any:
    """The section `control`, also of a file that is YAML nowhere else: `umpack reload` is to tell
    where it is not, and the daemon goes on with the one before."""
    try:
        found = yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError):
        section = re.search(rb"^control:.*(?:\n(?:[ \t\r#].*)?)*", text, re.MULTILINE)
        # A comment names it in the example. Elsewhere it may be anywhere.
        if section is None and re.search(rb"^[^#\n]*control", text, re.MULTILINE):
            raise
        found = yaml.safe_load(section[0]) if section else None
    return found.get("control") if isinstance(found, dict) else None
