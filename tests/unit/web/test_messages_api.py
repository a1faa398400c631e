from __future__ import annotations

import json
from pathlib import Path

from tests.unit.messages.receptions import opened, received
from umpack.messages.message import Decision
from umpack.web.messages_api import whole


def test_who_decided_in_no_utf_8_is_json_to_everybody(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        message = received(spool)
        spool.address(message.id, ["a@site.test"])
        spool.decide(message.id, "j\udcfcrgen", Decision.DISCARD)
        shown = whole(spool.message(message.id))
    json.dumps(shown, ensure_ascii=False).encode()  # or jq stops at half a surrogate
    assert shown["recipients"][0]["decided"]["by"] == "j?rgen"
