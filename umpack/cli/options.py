"""Options several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from umpack.config import load
from umpack.core.errors import ConfigError
from umpack.web.client import ControlClient

DEFAULT_CONFIG = Path("/etc/umpack/umpack.yaml")
DEFAULT_SOCKET = Path("/run/umpack/umpack.sock")

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
    """The daemon to speak to: at `--socket`, else where the configuration says."""
    if socket is None:
        file = config or DEFAULT_CONFIG
        socket = DEFAULT_SOCKET
        if config or file.exists():
            try:
                socket = load(file).control.socket
            except ConfigError as error:
                raise ConfigError(
                    f"{error}\nso where its daemon listens is not known; name it with --socket"
                ) from error
    return ControlClient(socket)
