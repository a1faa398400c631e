"""The lines umpack may send to Asterisk over AGI, quoted so that no argument changes its meaning.

Two things could turn text from the line into a command: a line break, and a line so long that
Asterisk cuts it in two. Neither leaves this file. What is said here about Asterisk was read in its
res/res_agi.c (parse_args, run_agi).
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final, NewType

from umpack.core.errors import OurFault

# AGI_BUF_LEN: Asterisk reads a command with fgets() into 8192 bytes, the last one for NUL. What is
# longer is cut there and its rest is run as the *next command*, so it must never leave us.
COMMAND_BYTES: Final = 8191
# MAX_ARGS is 128 with the closing NULL; a quoted word is stored without a check of that bound.
COMMAND_WORDS: Final = 127
# Joins several values in one GET FULL VARIABLE (ASCII unit separator: no telephone number,
# status or URI holds one as it stands).
SEPARATOR: Final = "\x1f"


# A whole line, quoted and ended; only this file makes one.
AgiCommand = NewType("AgiCommand", bytes)

# Asterisk reads a line that begins so (from a launcher that could not start its script) as the end
# of the AGI, with AGISTATUS=FAILURE where a mere close gives SUCCESS: the dialplan may then hunt
# for a channel by itself.
FAILURE: Final = b"failure\n"


class UnsafeArgument(OurFault):
    """An argument that Asterisk could not read back as the same argument; nothing was sent."""


_VERB: Final = re.compile(r"[A-Z]+(?: [A-Z]+)*")
_FORBIDDEN: Final = re.compile(r"[\r\n\0]")
_NAME: Final = re.compile(r"[A-Za-z_]\w*(?:\([\w./@,:;+*#-]*\))?", re.ASCII)


def _quoted(argument: str) -> str:
    # parse_args(): within double quotes only `"` and `\` are special, and a backslash takes any
    # special meaning from the character after it.
    if not argument.isprintable() and _FORBIDDEN.search(argument):
        raise UnsafeArgument(f"line break or NUL in AGI argument {argument!r}")
    if "\\" in argument:
        argument = argument.replace("\\", "\\\\")
    if '"' in argument:
        argument = argument.replace('"', '\\"')
    return f'"{argument}"'


@lru_cache(maxsize=64)
def _words(verb: str) -> int:
    # A line that begins with "failure" is not a command: Asterisk ends the AGI as failed.
    if not _VERB.fullmatch(verb) or verb.startswith("FAILURE"):
        raise UnsafeArgument(f"{verb!r} is no AGI verb")
    return verb.count(" ") + 1


def command(verb: str, *arguments: str) -> AgiCommand:
    r"""The line for `verb` (`EXEC`, `SET VARIABLE`: capital words) with every argument quoted.

    Asterisk reads each argument back exactly as it is given here, whatever it holds. Raises
    `UnsafeArgument` for CR, LF, NUL, a lone surrogate, or more than 8191 bytes or 127 words.
    """
    if _words(verb) + len(arguments) > COMMAND_WORDS:
        raise UnsafeArgument(
            f"{len(arguments)} arguments for {verb}, Asterisk reads no more "
            f"than {COMMAND_WORDS} words"
        )
    text = " ".join([verb, *[_quoted(argument) for argument in arguments]])
    try:
        line = text.encode() + b"\n"
    except UnicodeEncodeError as error:
        raise UnsafeArgument(f"argument of {verb} is not text: {error}") from None
    if len(line) > COMMAND_BYTES:
        raise UnsafeArgument(f"{verb} of {len(line)} bytes, Asterisk reads {COMMAND_BYTES}")
    return AgiCommand(line)


def exec_(application: str, options: str = "") -> AgiCommand:
    """Run a dialplan application; its answer has result -2 if Asterisk does not know it.

    Asterisk runs it on a hung-up channel, too. `options` are split at commas by the application,
    which is not this function's business, and hold no variables unless AGIEXECFULL is set.
    """
    return command("EXEC", application, options)


@lru_cache(maxsize=256)  # a few names with causes; values are ours
def set_variable(name: str, value: str) -> AgiCommand:
    """Set one channel variable or function; the value is taken as it is, never expanded."""
    if not _NAME.fullmatch(name.removeprefix("_").removeprefix("_")):
        raise UnsafeArgument(f"{name!r} is no name of a channel variable")
    return command("SET VARIABLE", name, value)


@lru_cache(maxsize=64)  # the same few names after every call
def get_full_variable(*names: str) -> AgiCommand:
    """Read variables or functions (`DIALSTATUS`, `FAXOPT(pages)`), all in one round trip.

    Several values come joined; `AgiAnswer.values` parts them. One that is not set is empty. The
    argument is an expression which Asterisk evaluates: names holding `$`, brackets within brackets
    or the like are refused, and none may come from the line (`SHELL(...)` is a name as well).
    """
    if not names:
        raise UnsafeArgument("no variable named")
    for name in names:
        if not _NAME.fullmatch(name):
            raise UnsafeArgument(f"{name!r} is no name of a channel variable")
    return command("GET FULL VARIABLE", SEPARATOR.join([f"${{{name}}}" for name in names]))
