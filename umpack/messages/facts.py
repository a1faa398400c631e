"""What a mail says of a message: every fact as a text, cleaned, in the reader's language.

All of it comes from the record, so that two nodes write the same mail.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from typing import assert_never

from umpack.messages import texts
from umpack.messages.document import Flaw, flaws_of
from umpack.messages.message import Kind, Message
from umpack.messages.outcomes import Outcome, Relation, outcome
from umpack.messages.templates import Templates

_DAY = 86_400.0


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What a mail says besides its message."""

    mailbox: str
    attached: str
    relation: Relation | None = None
    others: Sequence[Message] = ()
    keep: float | None = None
    """Seconds for which the original is kept after the delivery to all."""


def facts_of(
    message: Message, around: Circumstances, templates: Templates, zone: tzinfo
) -> dict[str, str]:
    """The values of `templates.FACTS`; what is not known is empty."""
    call, engine, original = message.call, message.engine, message.original
    document = message.document
    caller = texts.line(call.caller, 40) or templates.word("withheld")
    facts = {
        "id": message.id,
        "mailbox": texts.line(around.mailbox, 320),
        "called": texts.line(call.called, 40) or "?",
        "caller": caller,
        "name": texts.line(call.caller_name),
        "started": _time(message.started, zone),
        "outcome": _word(outcome(message), templates),
        "why": why(message, templates),
        "pages": str(pages_of(message)),
        "node": texts.line(message.node),
        "channel": texts.line(call.channel),
        "pbx": texts.line(call.pbx),
        "attached": around.attached,
        "adopted": texts.line(message.adopted, 200),
        "related": _relation(around.relation, templates),
        "tries": "".join(f"\n- {_try(other, templates, zone)}" for other in around.others),
        "kept": "",
        "checksum": original.sha256 if original else "",
        "size": str(original.size) if original else "",
        "counts": "",
        "bad": "",
    }
    if engine is not None:
        facts |= {
            "station": texts.line(texts.decoded(engine.station).strip(), 40),
            "seconds": "" if engine.seconds is None else str(round(engine.seconds)),
            "bitrate": _number(engine.bitrate),
            "ecm": "" if engine.ecm is None else templates.word("yes" if engine.ecm else "no"),
            "resolution": texts.line(engine.resolution),
            "transport": {True: "T.38", False: "G.711", None: ""}[engine.t38],
            "status": texts.line(engine.status),
            "error": texts.line(engine.error, 200),
            "cause": _number(engine.cause),
        }
    else:
        names = "station seconds bitrate ecm resolution transport status error cause"
        facts |= dict.fromkeys(names.split(), "")
    if around.keep is not None and original is not None:
        # Not a date: when all will have it is not known, and the mail is the same at every try.
        days = f"{around.keep / _DAY:g}"
        facts["kept"] = templates.word("kept for", days=days, id=message.id)
    if document is not None and call.kind is Kind.FAX:
        facts["counts"] = templates.word(
            "counted",
            engine=_number(engine.pages if engine else None) or "?",
            tiff=_number(document.pages_tiff) or "?",
            pdf=_number(document.pages_pdf) or "0",
        )
        flaws = flaws_of(document.fault)
        facts["bad"] = "; ".join(_flaw(flaw, templates) for flaw in flaws)
    return facts


def pages_of(message: Message) -> int:
    """Pages there are: by the PDF, else by the engine's count."""
    document, engine = message.document, message.engine
    if document is not None and document.pages_pdf:
        return document.pages_pdf
    if message.original is None:
        return 0
    if document is not None and document.pages_tiff:
        return document.pages_tiff
    return (engine.pages if engine else None) or 0


def why(message: Message, templates: Templates) -> str:
    """All that is wrong with a message, on one line; empty if nothing is."""
    engine, document = message.engine, message.document
    found = []
    if engine is None or engine.status == "UNKNOWN":
        found.append(templates.word("engine unknown"))
    elif engine.status != "SUCCESS":
        reason = texts.line(engine.error, 200) or templates.word("hung up")
        if message.call.kind is Kind.FAX:
            reason = templates.word("broke off", pages=engine.pages or 0, reason=reason)
        found.append(reason)
    if document is not None and message.call.kind is Kind.FAX:
        found += [_flaw(flaw, templates) for flaw in flaws_of(document.fault)]
        counts = {document.pages_tiff, document.pages_pdf, engine.pages if engine else None}
        if len(counts - {None}) > 1:
            found.append(
                templates.word(
                    "counted",
                    engine=_number(engine.pages if engine else None) or "?",
                    tiff=_number(document.pages_tiff) or "?",
                    pdf=_number(document.pages_pdf) or "0",
                )
            )
    elif document is not None and document.fault:
        found.append(texts.line(document.fault, 200))
    if not found and outcome(message) is not Outcome.WHOLE:
        found.append(_word(outcome(message), templates))
    return "; ".join(dict.fromkeys(found))


def _word(how: Outcome, templates: Templates) -> str:
    match how:
        case Outcome.WHOLE | Outcome.INCOMPLETE | Outcome.FAILED | Outcome.EMPTY:
            return templates.word(how.value)
        case _:
            assert_never(how)


def _flaw(flaw: Flaw, templates: Templates) -> str:
    said = templates.word(flaw.kind.value)
    if flaw.value is not None:
        said = templates.word("rows", flaw=said, value=flaw.value)
    if flaw.page is None:
        return said
    return templates.word("on page", page=flaw.page, flaw=said)


def _try(message: Message, templates: Templates, zone: tzinfo) -> str:
    return templates.word(
        "of try",
        id=message.id,
        started=_time(message.started, zone),
        outcome=_word(outcome(message), templates),
        pages=pages_of(message),
        why=why(message, templates),
    )


def _relation(relation: Relation | None, templates: Templates) -> str:
    if relation is None:
        return ""
    return templates.word(relation.kind.value, earlier=relation.earlier, pages=relation.pages)


def _time(at: float, zone: tzinfo) -> str:
    return datetime.fromtimestamp(at, UTC).astimezone(zone).isoformat(" ", "seconds")


def _number(value: int | None) -> str:
    return "" if value is None else str(value)
