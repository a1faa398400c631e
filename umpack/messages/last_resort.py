"""The mail for a message of which no proper one can be made: the original, and almost nothing else.

Whatever a caller, a directory or a template has that breaks the composer, it does not come in here:
all words are ours or made of letters and digits.
"""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime

from umpack.messages.letter import Address, Letter
from umpack.messages.message import Kind, Message, Recipient

_SUFFIX = re.compile(r"\.[a-z0-9]{1,8}")
_TEXT = """\
umpack has received this message but could not write the usual mail for it.
{what}
All that is known of it: umpack fax show {id}
"""


def plain_letter(
    message: Message, recipient: Recipient, original: bytes | None, sender: Address
) -> Letter:
    """Under the Message-ID and date of the recipient's edition; the same bytes every time."""
    kind = "Fax" if message.call.kind is Kind.FAX else "Voice"
    mail = EmailMessage(policy=SMTP)
    mail["Subject"] = f"[{kind} incomplete] {message.id}"
    mail["From"] = str(sender)
    mail["To"] = recipient.address if recipient.address.isascii() else "undisclosed-recipients:;"
    mail["Date"] = format_datetime(datetime.fromtimestamp(int(recipient.date), UTC))
    mail["Message-ID"] = recipient.message_id
    mail["X-Umpack-Id"] = message.id
    mail["Auto-Submitted"] = "auto-generated"
    what = "The original is attached." if original is not None else "Nothing was received."
    if original is None and message.original is not None:
        what = "The original is too large for this mail server; it is kept."
    mail.set_content(_TEXT.format(what=what, id=message.id), charset="us-ascii", cte="7bit")
    if original is not None:
        found = _SUFFIX.search(message.name, len(message.name) - 9 if len(message.name) > 9 else 0)
        name = f"original{found[0] if found else '.bin'}"
        mail.add_attachment(original, maintype="application", subtype="octet-stream", filename=name)
        seed = f"{recipient.message_id} {recipient.date:.0f}"
        mail.set_boundary("=_umpack_" + hashlib.sha256(seed.encode()).hexdigest()[:32])
    to = Address(recipient.address)
    return Letter(recipient.message_id, sender, (to,), mail.as_bytes())
