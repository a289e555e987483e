"""The guard, over real sockets: who gets through, how much of it, and what is kept of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from pilot.api.limits import BODY, LISTENED, Bodies, Rates, neighbourhood
from pilot.domain.access import Scope
from tests.adapters.guarded import Answer, Guarded, guarded
from tests.store.bed import MINUTE, SECOND

CHANGE: Mapping[str, Any] = {"method": "POST", "path": "/api/v1/work", "body": b"{}"}


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Guarded]:
    async with guarded(tmp_path) as opened:
        yield opened


def is_problem(answer: Answer, status: int) -> bool:
    return (
        answer.status == status == answer.document["status"]
        and answer.headers["content-type"] == "application/problem+json"
        and not any(name.startswith("access-control") for name in answer.headers)
    )


async def test_who_has_a_token_gets_in_and_nobody_else(rig: Guarded) -> None:
    found = await rig.ask()
    assert (found.status, found.document) == (200, {"name": "tester", "peer": "127.0.0.1"})
    assert (found.headers["x-content-type-options"], found.headers["cache-control"]) == ("nosniff", "no-store")

    id, _, secret = rig.token.removeprefix("pilot_").partition("_")
    revoked = await rig.store.tokens.create("gone", [Scope.READ], "test")
    await rig.store.tokens.revoke(revoked.split("_")[1], "test")
    expired = await rig.store.tokens.create("old", [Scope.READ], "test", rig.bed.clock.now + 10 * MINUTE)
    rig.bed.clock.tick(10 * MINUTE)
    wrong = ("", "x", revoked, expired, f"pilot_{id}_{'A' * 43}", f"pilot_{'0' * 16}_{secret}")
    answers = [await rig.ask(token=None, headers={"authorization": f"Bearer {token}"}) for token in wrong]
    answers.append(await rig.ask(token=None))

    assert all(is_problem(each, 401) for each in answers)
    assert len({(each.body, *sorted(each.headers.items())) for each in answers}) == 1  # nothing tells them apart
    assert answers[0].headers["www-authenticate"].startswith("Bearer")


async def test_what_only_looks_like_a_token_is_none(rig: Guarded) -> None:
    id, _, secret = rig.token.removeprefix("pilot_").partition("_")
    wrong = (
        *(f"Bearer pilot_{'0' * 16}_{secret}", f"Basic {rig.token}", rig.token, f"Bearer {rig.token} {rig.token}"),
        *(f"Bearer pilot_{id.upper()}_{secret}", f"Bearer {rig.token}\u0661", f"Bearer pilot_{id}_{'A' * 100_000}"),
    )
    for value in wrong:
        sent = {"authorization": value.encode().decode("latin-1")}
        assert (await rig.ask(token=None, headers=sent)).status in (401, 400), value[:80]
    for value in (f"bearer {rig.token}", f"Bearer  {rig.token} "):
        assert (await rig.ask(token=None, headers={"authorization": value})).status == 200
    assert (await rig.ask(token=None, headers={"authorization": [f"Bearer {rig.token}"] * 2})).status == 400


@pytest.mark.parametrize("path", ["/api/v1/nothing", "/api", "/", "/metrics", "//livez", "/livez/", "/webhooks"])
async def test_what_is_not_open_needs_a_token_even_where_nothing_is(rig: Guarded, path: str) -> None:
    assert is_problem(await rig.ask(path, token=None), 401)


async def test_health_hooks_and_the_description_need_none(rig: Guarded) -> None:
    evil = {"host": "evil.example"}
    assert (await rig.ask("/livez", token=None, headers=evil)).status == 200
    hook = await rig.ask("/webhooks/github", method="POST", token=None, body=b"x" * (BODY + 1), headers=evil)
    assert hook.document == {"bytes": BODY + 1}
    assert (await rig.ask("/api/v1/openapi.json", token=None)).status == 200
    assert is_problem(await rig.ask("/api/v1/openapi.json", token=None, headers=evil), 403)


async def test_a_token_in_an_address_is_refused(rig: Guarded) -> None:
    for query in (f"token={rig.token}", f"a=1&Token={rig.token}", f"%74oken={rig.token}", "access_token"):
        answer = await rig.ask(f"/api/v1/look?{query}")
        assert is_problem(answer, 400) == (not query.startswith("%")), query
    assert (await rig.ask(f"/api/v1/look?token={rig.token}", token=None)).status == 400
    assert (await rig.ask("/api/v1/look?tokens=3")).status == 200


GOOD_HOSTS = (
    *("localhost", "LOCALHOST:7337", "localhost.", "127.0.0.1", "127.0.0.1:1", "127.9.9.9", "[::1]", "[::1]:80"),
    *("pilot.acme.dev", "pilot.acme.dev:443", "other.test"),
)
BAD_HOSTS = (
    *("", "evil.example", "evil.example:7337", "localhost.evil.example", "127.0.0.1.nip.io", "localhost:7337.evil.com"),
    *("127.0.0.1@evil.example", "evil.example@127.0.0.1", "0.0.0.0", "2130706433", "0x7f.1", "127.1", "0177.0.0.1"),
    *("[::ffff:127.0.0.1]", "[::]", "::1", "10.0.0.1", "localhost:99999", "localhost:", "localhost:7337:7337"),
    *("localhost/x", "localhost#", "local host", "localhost,evil.example", "xlocalhost", "pilot.acme.dev.evil.com"),
    *("\u017fomething", "loc\u00e4lhost", "*", "other.test.", "other-test"),
)


async def test_only_our_own_names_are_answered_to(rig: Guarded) -> None:
    for host in GOOD_HOSTS:
        assert (await rig.ask(headers={"host": host})).status == 200, host
    for host in BAD_HOSTS:
        sent = host.encode("utf-8").decode("latin-1")
        if host != "other.test.":  # the root's own dot is no other name
            assert is_problem(await rig.ask(headers={"host": sent}), 403), host
    assert (await rig.ask(headers={"host": ["localhost", "evil.example"]})).status == 400
    bare = f"GET /api/v1/look HTTP/1.1\r\nauthorization: Bearer {rig.token}\r\n\r\n"
    assert (await rig.raw(bare.encode())).status == 403


async def test_pages_of_others_may_not_ask(rig: Guarded) -> None:
    own = f"127.0.0.1:{rig.port}"
    good: list[dict[str, str]] = [
        {"origin": f"http://{own}"},
        {"origin": "https://pilot.acme.dev"},
        {"sec-fetch-site": "same-origin"},
        {},
    ]
    bad = (
        *({"origin": origin} for origin in ("null", "https://evil.example", "http://localhost:3000", f"{own}", "")),
        *({"origin": origin} for origin in (f"http://{own}.evil.example", f"http://127.0.0.1:{rig.port + 1}")),
        *({"sec-fetch-site": site} for site in ("cross-site", "same-site", "x")),
    )
    for headers in good:
        assert (await rig.ask(**CHANGE, headers=headers)).status == 200, headers
    for headers in bad:
        assert is_problem(await rig.ask(**CHANGE, headers=headers), 403), headers
    assert len(rig.asked) == len(good)
    # Reading cross-site sends nobody an answer that a page could see: there is no CORS header. A link may be followed.
    assert (await rig.ask(headers={"sec-fetch-site": "cross-site"})).status == 200
    preflight = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    assert is_problem(await rig.ask(method="OPTIONS", token=None, headers=preflight), 403)


async def test_a_scope_that_is_missing_is_named(rig: Guarded) -> None:
    tokens = {scope: await rig.store.tokens.create(f"a {scope}", [scope], "test") for scope in Scope}
    expected = {"read": [200, 403, 403], "work": [200, 200, 403], "admin": [200, 200, 200]}
    for scope, token in tokens.items():
        answers = [
            await rig.ask(token=token),
            await rig.ask("/api/v1/work", method="POST", token=token),
            await rig.ask("/api/v1/rule", method="POST", token=token),
        ]
        assert [each.status for each in answers] == expected[scope]
        if scope is Scope.WORK:
            assert "scope `admin`" in answers[2].document["detail"]
            assert "read, work" in answers[2].document["detail"]


async def test_a_revocation_counts_at_once_here_and_soon_elsewhere(rig: Guarded, tmp_path: Path) -> None:
    from pilot.store import open_store

    one, two = [await rig.store.tokens.create(name, [Scope.READ], "test") for name in ("one", "two")]
    assert [(await rig.ask(token=token)).status for token in (one, two)] == [200, 200]

    await rig.store.tokens.revoke(one.split("_")[1], "test")
    async with open_store(f"sqlite:///{tmp_path}/pilot.db", clock=rig.bed.clock) as elsewhere:
        await elsewhere.tokens.revoke(two.split("_")[1], "test")
    assert (await rig.ask(token=one)).status == 401
    rig.bed.clock.tick(SECOND)
    assert (await rig.ask(token=two)).status == 401


class TestBodies:
    async def test_only_json_is_taken(self, rig: Guarded) -> None:
        for kind in ("text/plain", "application/x-www-form-urlencoded", "", "multipart/form-data", "application/jsonx"):
            assert is_problem(await rig.ask(**CHANGE, headers={"content-type": kind}), 415), kind
        for kind in ("application/json", "application/json; charset=utf-8", "Application/JSON"):
            assert (await rig.ask(**CHANGE, headers={"content-type": kind})).status == 200
        assert (await rig.ask("/api/v1/work", method="POST")).status == 200  # nothing is no body
        assert [body for _, body in rig.asked] == [b"{}"] * 3 + [b""]

    async def test_one_mebibyte_and_no_more(self, rig: Guarded) -> None:
        most = b'"' + b"x" * (BODY - 2) + b'"'
        assert (await rig.ask("/api/v1/work", method="POST", body=most)).status == 200
        assert rig.asked[-1][1] == most
        long = await rig.ask("/api/v1/work", method="POST", body=most + b" ")
        assert is_problem(long, 413)
        assert long.headers["connection"] == "close"
        head = f"POST /api/v1/work HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {rig.token}\r\n"
        head += "content-type: application/json\r\n"
        chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        chunked = head.encode() + b"transfer-encoding: chunked\r\n\r\n"
        assert (await rig.raw(chunked + chunk * 16 + b"0\r\n\r\n")).status == 200
        assert is_problem(await rig.raw(chunked + chunk * 17 + b"0\r\n\r\n"), 413)
        assert is_problem(await rig.raw(chunked + chunk * (LISTENED // 0x10000 + 1)), 413)  # never ends
        assert is_problem(await rig.raw(head.encode() + f"content-length: {LISTENED + 1}\r\n\r\n".encode()), 413)
        assert rig.guard._bodies.held == 0

    async def test_a_body_that_does_not_come_is_waited_for_a_while(self, tmp_path: Path) -> None:
        async with guarded(tmp_path, bodies=Bodies(patience=0.3)) as rig:
            head = f"POST /api/v1/work HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {rig.token}\r\n"
            head += "content-type: application/json\r\ncontent-length: 100\r\n\r\n"
            assert is_problem(await rig.raw(head.encode() + b"{"), 408)
            _, writer = await asyncio.open_connection("127.0.0.1", rig.port)
            writer.write(head.encode() + b"{")  # and leaves
            await writer.drain()
            writer.close()
            async with asyncio.timeout(10):
                while rig.guard._bodies.held:
                    await asyncio.sleep(0.01)
            assert (await rig.ask("/api/v1/work", method="POST")).status == 200
            assert rig.asked == [("/api/v1/work", b"")]


class TestRates:
    def test_a_bucket(self) -> None:
        rates = Rates(10)
        assert [rates.take("a", 0.0) for _ in range(21)] == [True] * 20 + [False]
        assert rates.take("b", 0.0)
        assert [rates.take("a", 0.1) for _ in range(2)] == [True, False]
        assert [rates.take("a", 60.0) for _ in range(21)] == [True] * 20 + [False]
        for key in range(10_000):
            rates.take(str(key), 60.0)
        assert len(rates._buckets) <= 4096

    def test_who_has_a_network_is_one_peer(self) -> None:
        assert neighbourhood("2001:db8::1") == neighbourhood("2001:db8::ffff:1") != neighbourhood("2001:db8:0:1::1")
        assert neighbourhood("::ffff:10.0.0.1") != neighbourhood("::ffff:10.0.0.2")
        assert neighbourhood("10.0.0.1") != neighbourhood("10.0.0.2")

    async def test_a_token_has_its_rate_and_takes_nobody_elses(self, tmp_path: Path) -> None:
        now = 100.0
        async with guarded(tmp_path, rate=3, monotonic=lambda: now) as rig:
            other = await rig.store.tokens.create("other", [Scope.READ], "test")
            answers = [await rig.ask() for _ in range(7)]
            assert [each.status for each in answers] == [200] * 6 + [429]
            assert is_problem(answers[-1], 429)
            assert answers[-1].headers["retry-after"] == "1"
            assert (await rig.ask(token=other)).status == 200
            now += 1
            assert [(await rig.ask()).status for _ in range(4)] == [200] * 3 + [429]

    async def test_who_guesses_is_slowed_and_others_there_are_not(self, tmp_path: Path) -> None:
        now = 100.0
        async with guarded(tmp_path, monotonic=lambda: now) as rig:
            assert [(await rig.ask(token="x")).status for _ in range(12)] == [401] * 10 + [429] * 2
            assert (await rig.ask()).status == 200
            now += 1
            assert (await rig.ask(token="x")).status == 401


class TestAudit:
    async def rows(self, rig: Guarded) -> list[tuple[str, str, str, str, int]]:
        await rig.guard.settled()
        return [(each.actor, each.peer, each.method, each.path, each.status) for each in await rig.store.audit.read()]

    async def test_a_row_for_each_call_that_was_to_change_something(self, rig: Guarded) -> None:
        reader = await rig.store.tokens.create("reader", [Scope.READ], "test")
        await rig.ask()
        await rig.ask("/api/v1/work?worker=w1", method="POST")
        await rig.ask("/api/v1/rule?status=409", method="POST")
        await rig.ask("/api/v1/work", method="POST", token=reader)
        await rig.ask("/api/v1/none", method="DELETE")
        await rig.ask("/api/v1/work", method="POST", token="x")
        await rig.ask("/api/v1/work", method="POST", headers={"host": "evil.example"})

        at = "127.0.0.1"
        assert await self.rows(rig) == [
            ("tester", at, "DELETE", "/api/v1/none", 404),
            ("reader", at, "POST", "/api/v1/work", 403),
            ("tester", at, "POST", "/api/v1/rule", 409),
            ("tester (w1)", at, "POST", "/api/v1/work", 200),
        ]

    @pytest.mark.filterwarnings("default")
    async def test_what_crashed_was_asked_too(self, rig: Guarded) -> None:
        assert (await rig.ask("/api/v1/crash", method="POST")).status == 500
        assert await self.rows(rig) == [("tester", "127.0.0.1", "POST", "/api/v1/crash", 500)]

    async def test_what_ended_without_an_answer_was_asked_too(self, rig: Guarded) -> None:
        async def silent(*_: object) -> None:
            raise RuntimeError("no answer")

        rig.guard._app = silent
        assert (await rig.ask("/api/v1/work", method="POST")).status == 500
        assert await self.rows(rig) == [("tester", "127.0.0.1", "POST", "/api/v1/work", 500)]

    async def test_what_needs_admin_is_on_record_before_it_is_answered(self, rig: Guarded) -> None:
        for _ in range(20):
            await rig.ask("/api/v1/rule", method="POST")
            assert not rig.guard._owed
        assert len(await rig.store.audit.read()) == 20

    async def test_many_calls_at_once_have_a_row_each(self, rig: Guarded) -> None:
        await asyncio.gather(*(rig.ask(**CHANGE) for _ in range(60)))

        assert await self.rows(rig) == [("tester", "127.0.0.1", "POST", "/api/v1/work", 200)] * 60
        assert len(rig.asked) == 60

    async def test_no_token_is_ever_in_a_log(self, rig: Guarded, capfd: pytest.CaptureFixture[str]) -> None:
        secret = rig.token.split("_", 2)[2]
        await rig.ask(f"/api/v1/look?token={rig.token}")
        await rig.ask(token=rig.token[:-1] + "x")
        await rig.ask(**CHANGE)
        await rig.ask("/api/v1/rule", method="POST", headers={"content-type": "text/plain"}, body=b"x")
        await rig.guard.settled()

        out = "".join(capfd.readouterr())
        assert "http.refused" in out
        assert secret not in out
        assert secret[:-1] not in out
        for table in ("tokens", "audit"):
            assert secret not in str(await rig.bed.rows(f"SELECT * FROM {table}"))
