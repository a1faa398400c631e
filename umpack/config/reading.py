"""From file or text to `Configuration`, with all problems at once."""

from __future__ import annotations

import os
from pathlib import Path

from umpack.config.configuration import Configuration, Control, Journal, Log, Pbx
from umpack.config.fields import Secret
from umpack.config.mail import MessagesPlan, plan_from
from umpack.config.mail_tables import Auth, Ldap
from umpack.config.models import Ami, File
from umpack.config.problems import ConfigProblems, Findings, Problem, dotted
from umpack.config.references import report_unreached
from umpack.config.site import read_site
from umpack.config.tables import Tables, read_tables
from umpack.config.values import Address
from umpack.config.yaml_source import Document, YamlError, read_yaml
from umpack.config.yaml_source import Path as KeyPath
from umpack.core.trunk import PbxId

_LARGEST = 8 * 1024 * 1024
_LONGEST_SOCKET_PATH = 107
"""`sun_path` of unix(7) holds 108 bytes with its final zero."""
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 -- compared, not bound


def load(path: Path) -> Configuration:
    """Read a file. Relative paths in it are meant from its directory.

    Raises `ConfigProblems`, also for a file that cannot be read.
    """
    name = str(path)
    try:
        with path.open("rb") as file:
            raw = file.read(_LARGEST + 1)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigProblems([Problem(name, 1, "", f"cannot be read: {why}")]) from None
    if len(raw) > _LARGEST:
        what = f"is larger than {_LARGEST // 1024 // 1024} MiB"
        raise ConfigProblems([Problem(name, 1, "", what)])
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigProblems([Problem(name, line, "", "is not UTF-8 text")]) from None
    return parse(text, name, directory=path.parent)


def parse(text: str, name: str, *, directory: Path = Path()) -> Configuration:
    """Read a text. `name` stands in messages for the file; raises `ConfigProblems`."""
    try:
        document = read_yaml(text, name)
    except YamlError as error:
        raise ConfigProblems([Problem(name, error.line, "", error.message)]) from None
    findings = Findings(document)
    for problem in _flaws(document):
        findings.add(problem)
    tables = read_tables(document, findings)
    pbxs = _pbxs(tables, directory, findings)
    site = read_site(tables, findings)
    control = Control(directory / tables.control.socket)
    _check_paths(tables, control, findings)
    messages = _messages(tables, directory, findings)
    findings.raise_errors()
    report_unreached(tables, findings)
    return Configuration(
        name=name,
        node=tables.node,
        pbxs=pbxs,
        site=site,
        control=control,
        journal=Journal(directory / tables.journal.path, tables.journal.keep),
        log=Log(tables.log.level, directory / tables.log.file if tables.log.file else None),
        drain_deadline=tables.drain.deadline,
        drain_receptions=tables.drain.receptions,
        messages=messages,
        warnings=findings.by_line(),
    )


def schema() -> dict[str, object]:
    """JSON Schema of the file, for editors."""
    inner = File.model_json_schema()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **inner,
        "title": "umpack configuration",
    }


def _flaws(document: Document) -> list[Problem]:
    return [Problem(document.name, line, dotted(p), what) for p, line, what in document.flaws]


def _check_paths(tables: Tables, control: Control, findings: Findings) -> None:
    paths: dict[KeyPath, str | None] = {
        ("control", "socket"): tables.control.socket,
        ("journal", "path"): tables.journal.path,
        ("log", "file"): tables.log.file,
    }
    for at, path in paths.items():
        if path is not None and not path.isprintable():
            findings.error(at, "has a character that does not belong in a path")
            return
    if len(os.fsencode(control.socket)) > _LONGEST_SOCKET_PATH:
        limit = f"the path of a unix socket has at most {_LONGEST_SOCKET_PATH} bytes"
        findings.error(("control", "socket"), f"{limit}, this has more")


def _pbxs(tables: Tables, directory: Path, findings: Findings) -> dict[PbxId, Pbx]:
    found: dict[PbxId, Pbx] = {}
    listeners: dict[Address, str] = {}
    for id_, table in tables.pbx.items():
        if table is None:
            continue
        ami, at = table.ami, ("pbx", id_, "agi", "listen")
        if (other := listeners.setdefault(table.agi.listen, id_)) != id_:
            what = (
                f"{table.agi.listen} is where pbx {other} calls; each needs a listener of its own"
            )
            findings.error(at, what)
        reach = table.agi.reach or _reachable(table.agi.listen)
        if not reach.port:
            findings.warn(at, "port 0 lets the system choose, so no dialplan can name it")
        if not ami.user.isprintable():
            findings.error(("pbx", id_, "ami", "user"), "must be one line of text")
        secret = _secret(ami, ("pbx", id_, "ami"), directory, findings)
        pbx = Pbx(PbxId(id_), ami.host, ami.port, ami.user, secret, table.agi.listen, reach)
        found[pbx.id] = pbx
    return found


def _reachable(listen: Address) -> Address:
    return Address(_WILDCARDS.get(listen.host, listen.host), listen.port)


def _messages(tables: Tables, directory: Path, findings: Findings) -> MessagesPlan | None:
    table = tables.messages
    if table is None:
        return None
    secrets = {
        key: _secret(keeper, ("messages", key), directory, findings)
        for key, keeper in (("auth", table.auth), ("ldap", table.ldap))
        if keeper is not None and keeper.user is not None
    }
    return plan_from(table, secrets, directory, ("messages",), findings)


def _secret(ami: Ami | Auth | Ldap, at: KeyPath, directory: Path, findings: Findings) -> Secret:
    given = {
        "secret": ami.secret,
        "secret_file": ami.secret_file,
        "secret_env": ami.secret_env,
    }
    named = [key for key, value in given.items() if value is not None]
    if len(named) != 1:
        what = f"{' and '.join(named)} exclude each other" if named else "the secret is missing"
        findings.error(at, f"{what}: give one of secret, secret_file, secret_env")
        return Secret("")
    key = (*at, named[0])
    if ami.secret is not None:
        text = ami.secret.get_secret_value()
    elif ami.secret_env is not None:
        variable = os.environ.get(ami.secret_env) if ami.secret_env.isprintable() else None
        if variable is None:
            findings.error(key, f"the environment has no variable {ami.secret_env!r}")
            return Secret("")
        text = variable
    else:
        try:
            with (directory / str(ami.secret_file)).open(encoding="utf-8") as file:
                text = file.read(4096).removesuffix("\n").removesuffix("\r")
        except OSError as error:
            findings.error(key, f"{ami.secret_file} cannot be read: {error.strerror}")
            return Secret("")
        except ValueError:
            findings.error(key, f"{ami.secret_file!r} is no file of UTF-8 text")
            return Secret("")
    if not text or not text.isprintable():
        # A line end in it would end the header and begin another one (AMI is line by line).
        findings.error(key, "the secret must be one line of text, and not empty")
    return Secret(text)
