"""Options several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    typer.Option("--config", "-c", envvar="UMPACK_CONFIG", help="Configuration file."),
]
SocketOption = Annotated[
    Path | None,
    typer.Option("--socket", envvar="UMPACK_SOCKET", help="Control socket of the daemon."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


def client(socket: Path | None, config: Path | None) -> ControlClient:
    """The daemon to speak to: at `--socket`, else where the configuration says.

    No more of the file is read than that: whoever may use the socket need not be able to read the
    secrets, and a file with mistakes must not stop anybody from asking what the daemon makes of it.
    """
    # An eighth of a second, which commands that ask nobody need not wait.
    from umpack.web.client import ControlClient

    if socket is None and (config is not None or DEFAULT_CONFIG.exists()):
        socket = _socket_in(config or DEFAULT_CONFIG)
    return ControlClient(socket or DEFAULT_SOCKET)


def _socket_in(file: Path) -> Path:
    try:
        found = yaml.safe_load(file.read_bytes())
    except (OSError, ValueError, yaml.YAMLError) as error:
        why = error.strerror if isinstance(error, OSError) else "is not YAML"
        raise ConfigError(
            f"{file}: {why}; so where its daemon listens is not known: name it with --socket"
        ) from error
    control = found.get("control") if isinstance(found, dict) else None
    named = control.get("socket") if isinstance(control, dict) else None
    return file.parent / named if isinstance(named, str) else DEFAULT_SOCKET
