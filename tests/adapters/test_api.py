"""The HTTP API over real sockets: tasks in, what there is, what people do, and every way to be told no."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import structlog

from pilot.api import given, packets
from pilot.api.description import PATH, describe
from pilot.api.webhooks import Webhooks
from pilot.app.api import Api
from pilot.app.context import open_context
from pilot.config.load import load
from pilot.domain.access import Scope
from pilot.domain.outcome import FailureClass
from pilot.domain.task import Kind
from tests.adapters.api_rig import NEVER, Rig, configuration, routes_of, serving

TASK = {"project": "api", "title": "Say hello"}


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with serving(tmp_path) as rig:
        yield rig


def rows(rig: Rig) -> list[str]:
    """All that calls could have changed."""
    with sqlite3.connect(f"file:{rig.state / 'pilot.db'}?mode=ro", uri=True) as connection:
        found = [line for line in connection.iterdump() if line.startswith("INSERT")]
    connection.close()
    ours = ('INSERT INTO "tokens"', 'INSERT INTO "audit"', 'INSERT INTO "sqlite_sequence"')
    return [line for line in found if not line.startswith(ours)]


async def claimed(rig: Rig, worker: str = "w", **wishes: Any) -> dict[str, Any]:
    found = (await rig.post("/work/claim", {"worker": worker, **wishes}, scope=Scope.WORK))["executions"]
    assert len(found) == 1
    return dict(found[0])


# In


async def test_a_task_goes_in_once(rig: Rig) -> None:
    answer = await rig.call(
        "POST",
        "/api/v1/executions",
        TASK | {"task_id": "GH-1", "body": "In **README**.\n", "kind": "content", "priority": 0, "lane": 4,
                "labels": ["docs"], "payload": {"a": [1, None]}, "available_at": "2026-01-31T12:00:00+01:00"},
        scope=Scope.WORK,
        code=201,
    )  # fmt: skip
    new = answer.json()
    assert new["duplicate"] is False
    assert answer.headers["location"] == f"/api/v1/executions/{new['id']}"

    shown = await rig.get(f"/executions/{new['id']}")
    assert shown == await rig.store.history.document(await rig.store.queue.get(new["id"]))
    assert {name: shown[name] for name in ("task_id", "title", "kind", "priority", "lane", "labels", "payload")} == {
        "task_id": "GH-1", "title": "Say hello", "kind": "content", "priority": 0, "lane": 4, "labels": ["docs"],
        "payload": {"a": [1, None]},
    }  # fmt: skip
    assert (shown["available_at"], shown["source"]) == ("2026-01-31T11:00:00.000Z", "api")
    assert (await rig.get(f"/executions/{new['id']}/attempts"))["body"] == "In **README**."

    again = await rig.post("/executions", TASK | {"task_id": "GH-1"}, code=200)
    assert again == {"id": new["id"], "status": "queued", "duplicate": True}


async def test_a_key_is_one_request_for_ever(rig: Rig) -> None:
    async def put(key: str) -> tuple[int, Any]:
        answer = await rig.call("POST", "/api/v1/executions", TASK, headers={"idempotency-key": key})
        return answer.status_code, answer.json()

    status, first = await put("deploy-7")
    await rig.post(f"/executions/{first['id']}/cancel")
    assert status == 201
    assert await put("deploy-7") == (200, {"id": first["id"], "status": "cancelled", "duplicate": True})
    assert (await put("deploy-8"))[0] == 201
    for bad in ("", "a b", "x" * 201):
        assert (await put(bad))[0] == 422


async def test_what_waits_for_others(rig: Rig) -> None:
    first = await rig.post("/executions", TASK, code=201)
    second = await rig.post("/executions", TASK | {"project": "web", "after": [first["id"]]}, code=201)
    assert second["status"] == "blocked"
    assert (await rig.get(f"/executions/{second['id']}"))["after"] == [first["id"]]
    why = await rig.get(f"/executions/{second['id']}/why")
    assert why["holds"][0]["execution"] == first["id"]
    refused = await rig.post("/executions", TASK | {"after": [999]}, code=422)
    assert "999" in refused["detail"]


@pytest.mark.parametrize("scope", [Scope.WORK, Scope.ADMIN])
@pytest.mark.parametrize("body", [{"title": "@cmd:make test"}, {"title": "Test", "payload": "@cmd:make test"}])
async def test_what_runs_a_program_needs_admin(rig: Rig, body: dict[str, str], scope: Scope) -> None:
    before = rows(rig)
    if scope is Scope.ADMIN:
        await rig.post("/executions", TASK | body, code=201)
        return
    refused = await rig.post("/executions", TASK | body, code=403, scope=scope)
    assert "`admin`" in refused["detail"]
    assert rows(rig) == before


# Out


async def test_lists_are_those_of_the_store_page_by_page(rig: Rig) -> None:
    for n in range(7):
        await rig.post("/executions", TASK | {"project": ["api", "web"][n % 2], "task_id": f"T-{n}"}, code=201)
    await rig.post("/executions/1/cancel", {"reason": "not now"})

    pages, query = [], "?limit=3"
    while True:
        page = await rig.get(f"/executions{query}")
        pages.append([each["id"] for each in page["executions"]])
        if page["next_cursor"] is None:
            break
        query = f"?limit=3&cursor={page['next_cursor']}"
    assert pages == [[7, 6, 5], [4, 3, 2], [1]]

    async def ids(query: str) -> list[int]:
        return [each["id"] for each in (await rig.get(f"/executions?{query}"))["executions"]]

    assert await ids("status=cancelled") == [1]
    assert await ids("status=cancelled&status=queued&project=web") == [6, 4, 2]
    assert await ids("task_id=T-3") == [4]
    assert await ids("source=github") == []
    assert "nowhere" in (await rig.get("/executions?project=nowhere", code=404))["detail"]
    for bad in ("status=done", "limit=0", "limit=1001", "limit=x", "cursor=zzz", f"cursor={'9' * 30}"):
        await rig.get(f"/executions?{bad}", code=422)


async def test_output_is_read_on_from_where_one_was(rig: Rig) -> None:
    await rig.post("/executions", TASK, code=201)
    claim = await claimed(rig)
    said = {"worker": "w", "fence": claim["fence"]}
    pieces = [{"text": "héllo\n"}, {"kind": "stderr", "base64": "/wA="}, {"kind": "tool", "text": "ls"}]
    assert await rig.post("/work/1/output", said | {"pieces": pieces}, scope=Scope.WORK) == {"written": 3}

    first = await rig.get("/executions/1/output?limit=2")
    assert [(piece["kind"], piece.get("text"), piece.get("base64")) for piece in first["output"]] == [
        ("stdout", "héllo\n", None),
        ("stderr", None, "/wA="),
    ]
    rest = await rig.get(f"/executions/1/output?after={first['next_after']}")
    assert [piece.get("text") for piece in rest["output"]] == ["ls"]
    end = await rig.get(f"/executions/1/output?after={rest['next_after']}")
    assert end == {"output": [], "next_after": rest["next_after"]}
    assert (await rig.get("/executions/1/output?attempt=2"))["output"] == []
    for bad in ("after=1", "after=a:b", "attempt=0", "limit=0"):
        await rig.get(f"/executions/1/output?{bad}", code=422)


async def test_events_and_the_state_of_things(rig: Rig) -> None:
    await rig.post("/executions", TASK, code=201)
    await claimed(rig)
    log = await rig.get("/event-log?execution=1")
    assert [event["type"] for event in log["events"]] == ["execution.queued", "execution.started"]
    assert (await rig.get(f"/event-log?after={log['events'][0]['id']}&type=execution.queued"))["events"] == []
    await rig.get("/event-log?type=execution.nonsense", code=422)
    assert (await rig.get("/status"))["running"][0]["id"] == 1
    assert [(row["name"], row["running"]) for row in (await rig.get("/projects"))["projects"]] == [
        ("api", 1),
        ("web", 0),
    ]
    assert [(node["id"], node["kind"]) for node in (await rig.get("/nodes"))["nodes"]] == [("worker:w", "worker")]
    assert (await rig.get("/stats"))["counts"]["running"] == 1


async def test_there_is_no_such_execution(rig: Rig) -> None:
    for path in ("", "/why", "/attempts", "/output", "/stream"):
        assert "execution 7" in (await rig.get(f"/executions/7{path}", code=404))["detail"]
        for bad in ("0", "-1", "x", str(1 << 63), "9" * 400, "%00", "1.5"):
            await rig.get(f"/executions/{bad}{path}", code=422)


# What people do


async def test_cancel_retry_and_answer(rig: Rig) -> None:
    await rig.post("/executions", TASK | {"task_id": "A"}, code=201)
    assert await rig.post("/executions/1/cancel", {"reason": "not now"}) == {"id": 1, "status": "cancelled"}
    assert await rig.post("/executions/1/cancel") == {"id": 1, "status": "cancelled"}
    assert (await rig.get("/executions/1"))["reason"] == "not now"
    assert await rig.post("/executions/1/retry", code=201) == {"id": 2, "status": "queued", "duplicate": False}
    assert (await rig.get("/executions/2"))["parent"] == 1
    assert (await rig.post("/executions/1/retry", code=200))["duplicate"] is True
    assert "queued" in (await rig.post("/executions/2/retry", code=422))["detail"]

    claim = await claimed(rig)
    said = {"worker": "w", "fence": claim["fence"]}
    question = {"text": "Which?", "options": ["a", "b"], "default": "a"}
    asked = await rig.post("/work/2/complete", said | {"outcome": "question", "question": question})
    assert asked["execution"]["status"] == "needs_human"
    assert await rig.post("/executions/2/answer", {"text": "b"}) == {"id": 2, "status": "queued"}
    assert "asks nothing" in (await rig.post("/executions/2/answer", {"text": "a"}, code=422))["detail"]
    questions = (await rig.get("/executions/2/attempts"))["questions"]
    assert [(one["answer"], one["answered_by"], one["options"]) for one in questions] == [("b", "adminer", ["a", "b"])]
    assert (await claimed(rig))["feedback"] == "b"
    assert await rig.post("/executions/2/cancel") == {"id": 2, "status": "running"}
    for path in ("cancel", "retry"):
        await rig.post(f"/executions/99/{path}", code=404)


@pytest.mark.parametrize("where", ["/projects/api", ""])
async def test_pauses_have_owners(rig: Rig, where: str) -> None:
    name = "api" if where else None
    await rig.post("/executions", TASK, code=201)
    paused = await rig.post(f"{where}/pause", {"reason": "release day"})
    assert paused == {"project": name, "owner": "adminer", "reason": "release day"}
    assert (await rig.post("/work/claim", {"worker": "w"}))["executions"] == []
    assert "release day" in json.dumps(await rig.get("/executions/1/why"))
    await rig.post(f"{where}/pause", {"owner": "ann"})
    assert await rig.post(f"{where}/resume") == {"project": name, "lifted": ["adminer"], "still_paused_by": ["ann"]}
    assert "ann" in (await rig.post(f"{where}/resume", code=422))["detail"]
    assert (await rig.post(f"{where}/resume", {"everybody": True}))["lifted"] == ["ann"]
    assert (await rig.post(f"{where}/resume"))["lifted"] == []
    assert len((await rig.post("/work/claim", {"worker": "w"}))["executions"]) == 1
    await rig.post("/projects/nowhere/pause", code=404)
    await rig.post("/projects/nowhere/resume", code=404)


# Who may


async def test_each_scope_may_what_it_says_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pilot.api.guard.FAILURES", 1000.0)
    async with serving(tmp_path) as rig:
        await _each_scope(rig)


async def _each_scope(rig: Rig) -> None:
    routes = [route for route in routes_of(rig.described) if route.path.startswith("/api/")]
    assert len(routes) > 25
    order = list(Scope)
    for route in routes:
        (method,) = route.methods or {"GET"}
        scopes = [found for each in route.dependant.dependencies if (found := getattr(each.call, "scope", None))]
        assert len(scopes) == 1, f"{route.path} says no scope"
        assert f"Scope: {scopes[0]}" in route.description, route.path
        assert (scopes[0] is Scope.READ) <= (method == "GET"), route.path
        path = route.path.format(id=1, name="api", sha256="0" * 64)
        for scope in order[: order.index(scopes[0])]:
            await rig.call(method, path, {} if method == "POST" else None, scope=scope, code=403)
        refused = await rig.call(method, path, scope=None, code=401)
        assert refused.headers["www-authenticate"].startswith("Bearer")


async def test_every_change_asked_for_is_on_record(rig: Rig) -> None:
    await rig.post("/executions", TASK, code=201, scope=Scope.WORK)
    await rig.post("/work/claim", {"worker": "mac"}, scope=Scope.WORK)
    await rig.post("/executions/1/cancel")
    await rig.post("/executions/9/cancel", code=404)
    await rig.post("/executions/1/cancel", code=403, scope=Scope.READ)
    await rig.get("/executions/1")
    await rig.api.settled()
    calls = (await rig.get("/audit", scope=Scope.ADMIN))["calls"]
    assert [(call["actor"], call["path"].removeprefix("/api/v1"), call["status"]) for call in calls[::-1]] == [
        ("worker", "/executions", 201),
        ("worker (mac)", "/work/claim", 200),
        ("adminer", "/executions/1/cancel", 200),
        ("adminer", "/executions/9/cancel", 404),
        ("reader", "/executions/1/cancel", 403),
    ]
    page = await rig.get("/audit?limit=2", scope=Scope.ADMIN)
    rest = await rig.get(f"/audit?before={page['next_before']}", scope=Scope.ADMIN)
    assert page["calls"] + rest["calls"] == calls


# No


HOSTILE: list[tuple[bytes, int]] = [
    (b"", 422),
    (b"{", 422),
    (b"\xff\xfe{}", 422),
    (b"[]", 422),
    (b"null", 422),
    (b'"x"', 422),
    (b"{}", 422),
    (b'{"project": "api"}', 422),
    (b'{"project": "api", "title": ""}', 422),
    (b'{"project": "api", "title": "  "}', 422),
    (b'{"project": "api", "title": 7}', 422),
    (b'{"project": "api", "title": null}', 422),
    (b'{"project": "api", "title": "x", "tilte": "y"}', 422),
    (b'{"project": "api", "title": "\\ud800"}', 422),
    (b'{"project": "api", "title": "x", "\\ud800": 1}', 422),
    (b'{"project": "api", "title": "x", "payload": "\\udfff"}', 422),
    (b'{"project": "api", "title": "x", "payload": {"\\ud800": 1}}', 422),
    (b'{"project": "api", "title": "x", "payload": NaN}', 422),
    (b'{"project": "api", "title": "x", "payload": [-Infinity]}', 422),
    (b'{"project": "api", "title": "x", "payload": 1e999}', 422),
    (b'{"project": "api", "title": "x", "payload": ' + b"9" * 300 + b"}", 422),
    (b'{"project": "api", "title": "x", "payload": ' + b"9" * 5000 + b"}", 422),
    (b'{"project": "api", "title": "x", "payload": ' + b"[" * 60 + b"]" * 60 + b"}", 422),
    (b'{"project": "api", "title": "x", "payload": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 422),
    (b'{"project": "api", "title": "x", "priority": ' + b"9" * 40 + b"}", 422),
    (b'{"project": "api", "title": "x", "priority": -1}', 422),
    (b'{"project": "api", "title": "x", "priority": true}', 422),
    (b'{"project": "api", "title": "x", "priority": "1"}', 422),
    (b'{"project": "api", "title": "x", "after": [0]}', 422),
    (b'{"project": "api", "title": "x", "after": [9223372036854775808]}', 422),
    (b'{"project": "api", "title": "x", "kind": "poetry"}', 422),
    (b'{"project": "api", "title": "x", "available_at": "soon"}', 422),
    (b'{"project": "api", "title": "x", "available_at": "2026-01-01T00:00:00"}', 422),
    (b'{"project": "api", "title": "x", "available_at": "0001-01-01T00:00:00+00:00"}', 422),
    (b'{"project": "api", "title": "x", "task_id": "a\\nb"}', 422),
    (b'{"project": "api", "title": "x", "backend": "nobody"}', 422),
    (b'{"project": "api", "title": "x", "callback_url": "ftp://a.example"}', 422),
    (b'{"project": "api", "title": "x", "source": "github"}', 422),
    (b'{"project": "../api", "title": "x"}', 404),
    (b'{"project": "nowhere", "title": "x"}', 404),
    (b'{"project": "api", "title": "' + b"x" * (1 << 20) + b'"}', 413),
    (b'{"project": "api", "title": "a\\u0000b\\u001b[31m"}', 201),
    ('{"project": "api", "title": "Grüße 🎉", "payload": "\\ud83c\\udf89"}'.encode(), 201),
]


async def test_hostile_bodies_get_one_answer_in_words(rig: Rig) -> None:
    for raw, code in HOSTILE:
        before = rows(rig)
        answer = await rig.call("POST", "/api/v1/executions", raw=raw)
        assert answer.status_code == code, f"{raw[:100]!r}: {answer.status_code} {answer.text[:500]}"
        if code != 201:
            assert answer.json()["detail"]
            assert rows(rig) == before, raw[:100]


async def test_what_is_not_json_is_not_taken(rig: Rig) -> None:
    raw = json.dumps(TASK).encode()
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", "*/*"):
        await rig.call("POST", "/api/v1/executions", raw=raw, headers={"content-type": kind}, code=415)
    kind = "application/json; charset=utf-8"
    await rig.call("POST", "/api/v1/executions", raw=raw, headers={"content-type": kind}, code=201)


async def test_statuses_of_the_protocol_itself(rig: Rig) -> None:
    assert "allow" in (await rig.call("PUT", "/api/v1/executions", {}, code=405)).headers
    await rig.call("GET", "/api/v1/nowhere", code=404)
    await rig.call("GET", "/nowhere", code=404)
    await rig.call("GET", "/api/v1/executions", headers={"host": "evil.example"}, code=403)
    await rig.call("POST", "/api/v1/executions", TASK, headers={"origin": "https://evil.example"}, code=403)
    await rig.call("GET", "/livez", scope=None, code=200)
    await rig.call("GET", "/readyz", scope=None, code=200)
    rig.ready = False
    await rig.call("GET", "/readyz", scope=None, code=503)
    answer = await rig.call("POST", "/api/v1/work/claim", {"worker": "w"}, code=503)
    assert int(answer.headers["retry-after"]) >= 1


async def test_who_connects_and_asks_nothing_is_sent_away(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else anybody, without a token, could hold all files that pilot may open."""
    monkeypatch.setattr(packets, "HEAD", 0.3)
    host, port = rig.url.removeprefix("http://").split(":")
    asked = f"GET /livez HTTP/1.1\r\nhost: {host}\r\n\r\n"
    for said in ("", "GET /livez HTTP/1.1\r\nhost: ", asked + "GET /li"):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(said.encode())
        with suppress(ConnectionError):
            async with asyncio.timeout(NEVER / 4):
                answer = await reader.read()
                assert answer.startswith(b"HTTP/1.1 200") == said.startswith(asked)
        writer.close()
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(asked.encode())
    await reader.readuntil(b"ok")
    await asyncio.sleep(0.6)
    writer.write(asked.encode())  # who asked may rest
    await asyncio.wait_for(reader.readuntil(b"200"), NEVER / 4)
    writer.close()


async def test_too_many_requests_are_told_when_to_come_again(tmp_path: Path) -> None:
    async with serving(tmp_path, server={"port": 0, "rate_limit": 2}) as rig:
        answers = await asyncio.gather(*(rig.call("GET", "/api/v1/nodes", scope=Scope.READ) for _ in range(20)))
        refused = [answer for answer in answers if answer.status_code == 429]
        assert refused
        assert int(refused[0].headers["retry-after"]) >= 1
        await rig.call("GET", "/api/v1/nodes", scope=Scope.WORK, code=200)  # another token's


async def test_a_mistake_of_pilots_own_gives_nothing_away(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_args: object) -> None:
        raise RuntimeError("the password is hunter2")

    monkeypatch.setattr(type(rig.store.history), "counts", broken)
    answer = await rig.call("GET", "/api/v1/status", code=500)
    assert "hunter2" not in answer.text


async def test_a_store_that_can_not_be_read_is_told_so(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    from pilot.domain.errors import Busy, StoreError

    for error in (StoreError("the disk is full"), Busy("another process holds the lock")):

        async def fails(*_args: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(type(rig.store.history), "counts", fails)
        answer = await rig.call("GET", "/api/v1/status", code=503)
        assert str(error) in answer.json()["detail"]
        assert "retry-after" in answer.headers


def test_whoever_opens_it_to_others_is_told(tmp_path: Path) -> None:
    async def start(bound: str, **server: str) -> list[str]:
        loaded = load(configuration(tmp_path / f"{bound}-{len(server)}", ("api",), server={"port": 0} | server), {})
        async with open_context(loaded) as context:
            with structlog.testing.capture_logs() as logs:
                Api(context, lambda: True, Webhooks(context.store.inbox, dict, lambda _source: None), bound)
        return [str(line["words"]) for line in logs if line["event"] == "serve.open_to_others"]

    (words,) = asyncio.run(start("0.0.0.0"))
    assert "TLS" in words
    assert asyncio.run(start("127.0.0.1")) == []
    assert asyncio.run(start("0.0.0.0", public_url="https://pilot.example.org")) == []


# The document


async def test_the_document_says_what_there_is(rig: Rig) -> None:
    answer = await rig.call("GET", PATH, scope=None, code=200)
    document = answer.json()
    assert document == json.loads(json.dumps(describe(rig.described, document["info"]["version"])))
    operations = [one for path in document["paths"].values() for one in path.values()]
    assert len({one["operationId"] for one in operations}) == len(operations)
    for one in operations:
        assert one["summary"]
        assert "Successful Response" not in json.dumps(one)
        for status, told in one["responses"].items():
            if int(status) >= 400 and one["security" if "security" in one else "summary"] != []:
                assert list(told["content"]) == ["application/problem+json"], (one["operationId"], status)
    for name, schema in document["components"]["schemas"].items():
        assert schema.get("description") or schema.get("enum") or name == "JsonValue", name
    assert all(secret not in answer.text for secret in rig.tokens.values())


def test_words_are_those_of_the_domain() -> None:
    from typing import get_args

    from pilot.api.asked import FailureWord, KindWord, PieceAsked
    from pilot.domain.agent import OutputKind
    from pilot.domain.execution import Checks, Delivery, Status

    fields = given.ExecutionGiven.model_fields
    assert get_args(FailureWord) == tuple(FailureClass)
    assert get_args(KindWord) == tuple(Kind)
    assert get_args(given.StatusWord) == tuple(Status)
    assert get_args(fields["delivery"].annotation) == tuple(Delivery)
    assert get_args(fields["checks"].annotation) == tuple(Checks)
    assert get_args(PieceAsked.model_fields["kind"].annotation) == tuple(OutputKind)
