from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.sites import one_pack, plan, site, take, trunk
from tests.unit.daemons import logged
from umpack.core.administration import Drain
from umpack.core.distributor import Distributor
from umpack.core.errors import OurFault
from umpack.core.health_states import HealthChange
from umpack.core.trunk import TrunkId
from umpack.web import views
from umpack.web.api import ControlServer


class Small:
    """A service without anything around it."""

    def __init__(self, distributor: Distributor) -> None:
        self.distributor = distributor
        self.asked: list[tuple[int, dict[str, str]]] = []

    def status(self) -> views.View:
        return {"node": "here"}

    async def reload(self) -> list[str]:
        raise ZeroDivisionError("a secret of the inside")

    @property
    def operator(self) -> Small:
        return self

    async def drain(self, drain: Drain) -> None:
        self.distributor.drain(drain)

    async def enable(self, target: str, by: str) -> bool:
        self.by = by
        return self.distributor.enable(target)

    async def eject(self, trunk: TrunkId, by: str, why: str, seconds: float | None) -> None:
        self.distributor.eject(trunk, 1000.0, f"{by} {why}", seconds)

    async def restore(self, trunk: TrunkId, by: str, why: str) -> None:
        self.distributor.restore_trunk(trunk, 1000.0, f"{by} {why}")

    def changes(self, limit: int, trunk: str | None) -> Iterator[HealthChange]:
        self.asked_changes = limit, trunk
        return iter(self.distributor.take_changes())

    async def ended_calls(self, limit: int, **filters: str) -> list[views.View]:
        self.asked.append((limit, filters))
        return []

    async def ended_call(self, id_: str) -> views.View | None:
        return {"id": id_} if id_ in ("a/b", "ä %2F?#", "..") else None

    async def metrics(self) -> str:
        raise OurFault("not today")

    def wall(self) -> float:
        return 1000.0

    def now(self) -> float:
        return 1000.0


Ask = Any


@asynccontextmanager
async def served(path: Path, service: Small) -> AsyncIterator[Ask]:
    server = ControlServer(service, path)
    await server.claim()
    await server.start()
    connector = aiohttp.UnixConnector(path=str(path))
    try:
        async with aiohttp.ClientSession("http://umpack", connector=connector) as session:

            async def ask(method: str, where: str, **more: Any) -> tuple[int, Any]:
                async with session.request(method, where, **more) as response:
                    return response.status, await response.json()

            yield ask
    finally:
        await server.close()


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[tuple[Ask, Small]]:
    service = Small(Distributor(one_pack(trunk("a", 250))))
    async with served(tmp_path / "c.sock", service) as ask:
        yield ask, service


async def test_lists_come_whole_in_pieces(api: tuple[Ask, Small]) -> None:
    ask, service = api
    assert await ask("GET", "/v1/calls?state=living") == (200, [])
    for _ in range(250):
        take(service.distributor)
    _, channels = await ask("GET", "/v1/channels")
    assert channels == list(views.channels(service.distributor))
    _, calls = await ask("GET", "/v1/calls?state=living")
    assert calls == list(views.living_calls(service.distributor))
    status, answer = await ask("GET", "/v1/status")
    assert (status, answer["calls"], answer["packs"][0]["leased"]) == (200, 250, 250)
    assert await ask("GET", f"/v1/calls/{calls[7]['id']}") == (200, calls[7])


async def test_a_reload_between_the_pieces(tmp_path: Path) -> None:
    service = Small(Distributor(one_pack(trunk("a", 30_000))))
    async with served(tmp_path / "c.sock", service) as ask:
        asked = asyncio.create_task(ask("GET", "/v1/channels"))
        await asyncio.sleep(0.02)
        service.distributor.reload(site([trunk("b", 1)], [plan("um", ["b:1"])]))
        status, channels = await asked
    assert status == 200
    assert len(channels) in (1, 30_000)


async def test_calls_of_the_journal(api: tuple[Ask, Small]) -> None:
    ask, service = api
    assert await ask("GET", "/v1/calls") == (200, [])
    await ask("GET", "/v1/calls", params={"limit": "5000", "called": "1'0%", "ending": "refused"})
    assert service.asked == [(50, {}), (1000, {"called": "1'0%", "ending": "refused"})]


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ("limit=0", "limit is a number from 1 on"),
        ("limit=-1", "limit is a number from 1 on"),
        ("limit=²", "limit is a number from 1 on"),
        ("limit=" + "9" * 5000, "limit is a number from 1 on"),
        ("state=dead", "unknown state 'dead'; there are: living, ended"),
        ("state=living&called=1", "'called' is for calls that have ended"),
        ("caler=1", "unknown filter 'caler'"),
        (
            "ending=full",
            "unknown ending 'full'; there are: connected, declined, refused, abandoned, "
            "adopted, leaked",
        ),
    ],
)
async def test_wrong_questions(api: tuple[Ask, Small], query: str, why: str) -> None:
    assert await api[0]("GET", f"/v1/calls?{query}") == (400, {"error": why})


@pytest.mark.parametrize("name", ["a%2Fb", "%C3%A4%20%252F%3F%23"])
async def test_ids_of_calls_are_taken_as_they_are(api: tuple[Ask, Small], name: str) -> None:
    import yarl

    status, answer = await api[0]("GET", yarl.URL(f"/v1/calls/{name}", encoded=True))
    assert (status, answer["id"]) == (200, {"a%2Fb": "a/b"}.get(name, "ä %2F?#"))


async def test_what_is_not_there(api: tuple[Ask, Small]) -> None:
    ask, _ = api
    assert await ask("GET", "/v1/calls/none%0A") == (404, {"error": "no call 'none\\n'"})
    assert (await ask("GET", "/v2"))[0] == 404
    assert (await ask("POST", "/v1/status"))[0] == 405
    assert (await ask("GET", "/metrics")) == (409, {"error": "not today"})
    unknown = await ask("POST", "/v1/drain", json={"target": "z\x1b"})
    assert unknown == (404, {"error": "no trunk or channel 'z\\x1b'"})


async def test_drain_and_enable(api: tuple[Ask, Small]) -> None:
    ask, service = api
    body = {"target": "a:7", "by": "eva", "why": "noise", "until": 2000.5}
    assert await ask("POST", "/v1/drain", json=body) == (200, {"target": "a:7", "until": 2000.5})
    assert service.distributor.drains == (Drain("a:7", "eva", "noise", 1000.0, 2000.5),)
    for was_out in (True, False):
        answer = await ask("POST", "/v1/enable", json={"target": "a:7"})
        assert answer == (200, {"target": "a:7", "was_out": was_out})


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "the body is not JSON"),
        (b"{", "the body is not JSON"),
        (b"\xff", "the body is not JSON"),
        (b"[" * 60_000, "the body is not JSON"),
        (b"[]", "the body is not a JSON object"),
        (b"{}", "target names a trunk or a channel"),
        (b'{"target": 1}', "target names a trunk or a channel"),
        (b'{"target": "a", "until": "soon"}', "until is a number of epoch seconds"),
        (b'{"target": "a", "until": true}', "until is a number of epoch seconds"),
        (b'{"target": "a", "until": NaN}', "until is a number of epoch seconds"),
        (b'{"target": "a", "until": 1e999}', "until is a number of epoch seconds"),
        (b'{"target": "a", "until": 1000}', "until has passed, or is more than 100 years away"),
        (b'{"target": "a", "until": 1e15}', "until has passed, or is more than 100 years away"),
        (
            b'{"target": "a", "until": 1%s}' % (b"0" * 400),
            "until has passed, or is more than 100 years away",
        ),
        (b'{"target": "a", "by": 7}', "by is a text of at most 200 characters"),
        (
            json.dumps({"target": "a", "why": "x" * 201}).encode(),
            "why is a text of at most 200 characters",
        ),
    ],
)
async def test_wrong_drains(api: tuple[Ask, Small], body: bytes, why: str) -> None:
    ask, service = api
    assert await ask("POST", "/v1/drain", data=body) == (400, {"error": why})
    assert service.distributor.drains == ()


@pytest.mark.parametrize(
    "header", [{"Content-Type": "text/plain; charset=nope"}, {"Content-Encoding": "gzip"}]
)
@pytest.mark.parametrize("path", ["/v1/drain", "/v1/trunks/a/eject"])
async def test_a_body_in_unknown_words(
    api: tuple[Ask, Small], path: str, header: dict[str, str]
) -> None:
    ask, _ = api
    answer = await ask("POST", path, data=b'{"target": "a"}', headers=header)
    assert answer == (400, {"error": "the body is not JSON"})


async def test_words_that_are_no_utf_8(api: tuple[Ask, Small]) -> None:
    ask, service = api
    await ask("POST", "/v1/drain", json={"target": "a:7", "by": "\udcff", "why": "f\udcfcr"})
    assert [(drain.by, drain.why) for drain in service.distributor.drains] == [
        ("\\udcff", "f\\udcfcr")
    ]


async def test_trunks_one_by_one(tmp_path: Path) -> None:
    service = Small(Distributor(one_pack(*(trunk(name, 2) for name in ("a", "ö %2F?", "c")))))
    async with served(tmp_path / "c.sock", service) as ask:
        _, rows = await ask("GET", "/v1/trunks")
        assert rows == list(views.trunks(service.distributor, 1000.0))
        where = "/v1/trunks/%C3%B6%20%252F%3F"
        status, row = await ask("POST", f"{where}/eject", json={"by": "eva", "seconds": 7.5})
        assert (status, row["id"], row["health"]["state"]) == (200, "ö %2F?", "ejected")
        assert row["health"]["next"] == "trial in 8 s"
        _, row = await ask("POST", f"{where}/restore", json={"by": "eva", "why": "new"})
        assert (row["health"]["state"], row["health"]["why"]) == ("up", "")
        status, changes = await ask("GET", "/v1/changes?limit=7&trunk=a%2Fb")
        assert service.asked_changes == (7, "a/b")
        assert (status, [change["to"] for change in changes]) == (200, ["ejected", "up"])
        _, row = await ask("POST", "/v1/trunks/a/eject", json={})
        assert row["health"]["why"].startswith("ejected 3")
        for verb in ("eject", "restore"):
            answer = await ask("POST", f"/v1/trunks/x/{verb}", json={})
            assert answer == (404, {"error": "no trunk 'x'"})


@pytest.mark.parametrize(
    ("method", "where", "body", "why"),
    [
        ("POST", "/v1/trunks/a/eject", '{"seconds": 0}', "seconds is a number above 0, of a day"),
        ("POST", "/v1/trunks/a/eject", '{"seconds": -1}', "seconds is a number above 0"),
        ("POST", "/v1/trunks/a/eject", '{"seconds": NaN}', "seconds is a number above 0"),
        ("POST", "/v1/trunks/a/eject", '{"seconds": true}', "seconds is a number above 0"),
        ("POST", "/v1/trunks/a/eject", '{"seconds": 86401}', "seconds is a number above 0"),
        ("POST", "/v1/trunks/a/eject", '{"seconds": "5m"}', "seconds is a number above 0"),
        ("POST", "/v1/trunks/a/eject", '{"by": 7}', "by is a text of at most 200 characters"),
        ("POST", "/v1/trunks/a/restore", "[", "the body is not JSON"),
        ("GET", "/v1/changes?limit=0", None, "limit is a number from 1 on"),
        ("GET", "/v1/changes?state=up", None, "unknown filter 'state'"),
    ],
)
async def test_wrong_requests_for_trunks(
    api: tuple[Ask, Small], method: str, where: str, body: str | None, why: str
) -> None:
    ask, service = api
    status, answer = await ask(method, where, data=body)
    assert status == 400
    assert answer["error"].startswith(why)
    assert service.distributor.take_changes() == []


async def test_large_bodies_are_refused(api: tuple[Ask, Small]) -> None:
    status, answer = await api[0]("POST", "/v1/drain", data=b" " * 70_000)
    assert status == 413
    assert "error" in answer


async def test_a_fault_of_ours_is_logged_and_not_told(api: tuple[Ask, Small]) -> None:
    with logged() as lines:
        status, answer = await api[0]("POST", "/v1/reload")
    assert (status, answer) == (500, {"error": "failed in umpack, see its log: ZeroDivisionError"})
    assert any("POST /v1/reload failed in umpack" in line for line in lines)
    assert any("a secret of the inside" in line for line in lines)


async def test_two_servers_at_one_path(tmp_path: Path) -> None:
    path = tmp_path / "c.sock"
    first, second = (ControlServer(Small(Distributor()), path) for _ in range(2))
    await first.claim()
    with pytest.raises(OurFault, match="another umpack is listening"):
        await second.claim()
    await first.start()
    await second.close()
    assert path.exists()
    await first.close()
    assert not path.exists()
    await second.claim()
    await second.close()
