"""The client against a server that does what servers do on bad days. How it behaves on good ones: test_work_suite."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from pilot.client import Client
from pilot.client.documents import execution_of
from pilot.domain.access import Scope
from pilot.domain.agent import OutputKind
from pilot.domain.errors import Busy, LeaseLost, NotFound, PilotError, UsageError
from pilot.domain.outcome import Ending, Outcome
from pilot.domain.work import Artifact, Next
from tests.adapters.api_rig import serving
from tests.adapters.scripted_http import Answer, scripted

DONE = Outcome(ending=Ending.DONE)
NEW = {"id": 7, "status": "queued", "duplicate": False}


def problem(status: int, detail: str, **more: Any) -> Answer:
    return Answer(status, {"type": "about:blank", "title": "T", "status": status, "detail": detail, **more})


def document(**more: Any) -> dict[str, Any]:
    names: tuple[str, ...] = (
        "reason",
        "outcome",
        "failure_class",
        "error",
        "model",
        "session_id",
        "branch",
        "base_sha",
        "head_sha",
    )
    names += ("workspace", "pr_url", "node", "plan", "callback_url", "parent", "started_at", "finished_at")
    numbers = ("id", "priority", "lane", "attempt", "failures", "max_attempts", "fence")
    words = ("task_id", "title", "project", "project_path", "source", "kind", "backend", "delivery", "checks")
    return {
        **dict.fromkeys(names), **dict.fromkeys(numbers, 1), **dict.fromkeys(words, "x"),
        "status": "running", "labels": [], "usage": {}, "available_at": None, "created_at": "2026-01-02T03:04:05.678Z",
        **more,
    }  # fmt: skip


def still() -> float:
    return 0.0


# What is sent again


@pytest.mark.parametrize("first", [Answer(drop=True), problem(503, "restarts"), problem(429, "slowly")])
async def test_what_does_no_harm_twice_is_sent_again(first: Answer) -> None:
    settled = {"execution": document(), "duplicate": True}
    async with scripted(first, Answer(body=settled)) as server, Client(server.url, "t", jitter=still) as client:
        assert (await client.complete(1, "w", 3, DONE)).duplicate

    assert [request.path for request in server.requests] == ["/api/v1/work/1/complete"] * 2
    assert server.requests[0].body == server.requests[1].body


async def test_a_last_word_whose_answer_is_lost_is_said_again_and_nothing_more_is_claimed() -> None:
    settled = {"execution": document(), "duplicate": True, "next": []}
    async with (
        scripted(Answer(drop=True), Answer(body=settled)) as server,
        Client(server.url, "t", jitter=still) as client,
    ):
        assert (await client.complete(1, "w", 3, DONE, next=Next(max=2))).claims == ()

    first, second = (json.loads(request.body) for request in server.requests)
    assert first.pop("next") == {"max": 2, "lease_seconds": 30.0}
    assert first == second


async def test_an_enqueue_that_is_sent_again_has_the_same_key() -> None:
    async with scripted(Answer(drop=True), Answer(201, NEW)) as server, Client(server.url, "t", jitter=still) as client:
        assert (await client.enqueue("api", "do it")).id == 7
        await client.enqueue("api", "do it", key="mine")

    first, second, third = (request.headers["idempotency-key"] for request in server.requests)
    assert first == second != ""
    assert third == "mine" != first


@pytest.mark.parametrize("verb", ["claim", "output", "retry", "answer"])
async def test_what_would_count_twice_is_sent_once(verb: str) -> None:
    async with scripted(Answer(drop=True)) as server, Client(server.url, "t", jitter=still) as client:
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "claim": lambda: client.claim("w"),
            "output": lambda: client.output(1, "w", 1, [(OutputKind.STDOUT, b"x")]),
            "retry": lambda: client.retry(1),
            "answer": lambda: client.answer(1, "yes"),
        }
        with pytest.raises(Busy, match="gave no answer"):
            await calls[verb]()

    assert len(server.requests) == 1


async def test_it_gives_up_after_a_while() -> None:
    async with scripted(problem(503, "never")) as server, Client(server.url, "t", jitter=still) as client:
        client._wire._pause = 0.001
        with pytest.raises(Busy, match="never"):
            await client.why(1)

    assert len(server.requests) == 5


async def test_it_waits_as_long_as_it_is_asked_to_within_reason() -> None:
    loop = asyncio.get_running_loop()
    later = Answer(429, {}, {"Retry-After": "1"})
    async with scripted(later, Answer(body={})) as server, Client(server.url, "t", jitter=still) as client:
        began = loop.time()
        await client.stats()
        assert loop.time() - began >= 1
    async with scripted(Answer(503, {}, {"Retry-After": "3600"})) as server, Client(server.url, "t") as client:
        with pytest.raises(Busy):
            await client.stats()
    assert len(server.requests) == 1


async def test_a_server_that_is_not_there_is_busy() -> None:
    async with scripted(Answer()) as server:
        url = server.url
    async with Client(url, "t", jitter=still) as client:
        client._wire._pause = 0.001
        with pytest.raises(Busy, match=r"can't be reached.*is `pilot serve` running there"):
            await client.claim("w")


# What is said


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (problem(401, "no"), UsageError, "does not know this token"),
        (problem(403, "needs admin"), UsageError, "needs admin.*higher scope"),
        (problem(404, "no execution 1"), NotFound, "no execution 1"),
        (problem(409, "lost"), LeaseLost, "lost"),
        (problem(413, "too much"), UsageError, "too much"),
        (problem(422, "see below", errors=[{"where": "fence", "what": "no number"}]), UsageError, "fence: no number"),
        (problem(500, "oops"), PilotError, r"failed \(500\)"),
        (Answer(404, b"<html>"), NotFound, "404"),
        (Answer(302, {}, {"Location": "https://example.org/"}), UsageError, "leads elsewhere"),
        (Answer(200, b"<html>"), PilotError, "did not answer with JSON"),
    ],
)
async def test_every_answer_is_an_error_in_our_terms(answer: Answer, kind: type[PilotError], words: str) -> None:
    async with scripted(answer) as server, Client(server.url, "secret-token", jitter=still) as client:
        with pytest.raises(kind, match=words) as caught:
            await client.heartbeat(1, "w", 1)

    assert type(caught.value) is kind
    assert "secret-token" not in str(caught.value)
    assert len(server.requests) == 1


async def test_a_conflict_elsewhere_is_no_lost_lease() -> None:
    async with scripted(problem(409, "has ended")) as server, Client(server.url, "t") as client:
        with pytest.raises(UsageError, match="has ended"):
            await client.answer(1, "yes")


def test_a_document_of_another_version_is_told_in_words() -> None:
    assert execution_of(document(new_in_version_9="x")).title == "x"
    lacking = document()
    del lacking["task_id"]
    with pytest.raises(PilotError, match="has no 'task_id'"):
        execution_of(lacking)
    with pytest.raises(PilotError, match="'fence' that is no int"):
        execution_of(document(fence="1"))
    with pytest.raises(PilotError, match="knows a status 'asleep'"):
        execution_of(document(status="asleep"))
    with pytest.raises(PilotError, match="a time that is none"):
        execution_of(document(created_at="yesterday"))


@pytest.mark.parametrize(
    "url", ["127.0.0.1:7337", "ftp://host", "http://", "http://host:x", "http://u:p@host", "http://host/?token=x", ""]
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        Client(url, "t")
    assert "u:p" not in str(caught.value)


@pytest.mark.parametrize("token", ["", "a b", "ü", "a\r\nX: y"])
def test_a_token_that_is_none_is_refused(token: str) -> None:
    with pytest.raises(UsageError, match="token"):
        Client("http://127.0.0.1:1", token)


async def test_no_proxy_leads_to_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    async with scripted(Answer(body={"a": 1})) as server, Client(server.url, "t") as client:
        assert await client.stats() == {"a": 1}


async def test_bytes_that_are_no_text_come_through() -> None:
    settled = {"execution": document(), "duplicate": False}
    async with scripted(Answer(body=settled)) as server, Client(server.url, "t") as client:
        await client.complete(1, "w", 3, DONE, [Artifact("a.bin", b"\xff\x00"), Artifact("b.txt", b"text")])

    told = server.requests[0].json
    assert told["artifacts"] == [{"name": "a.bin", "content_base64": "/wA="}, {"name": "b.txt", "content": "text"}]
    assert told["worker"] == "w"
    assert told["fence"] == 3


# Streams


def event(id: int, type: str = "execution.queued") -> bytes:
    told = {"id": id, "at": "2026-01-02T03:04:05Z", "type": type, "execution": 1, "data": {}}
    return f"id: {id}\nevent: {type}\ndata: {json.dumps(told)}\n\n".encode()


def sse(*events: bytes) -> Answer:
    return Answer(200, b"retry: 50\n\n" + b"".join(events), {"Content-Type": "text/event-stream"}, open=True)


async def test_a_stream_goes_on_where_it_broke_off() -> None:
    script = (sse(event(1), event(2), b": still here\n\n"), problem(503, "restarts"), sse(), sse(event(3)))
    async with scripted(*script) as server, Client(server.url, "t") as client:
        seen = []
        async for told in client.events(after=0, types=["execution.queued"], execution=1):
            seen.append(told["id"])
            if told["id"] == 3:
                break

    assert seen == [1, 2, 3]
    assert [request.headers["last-event-id"] for request in server.requests] == ["0", "2", "2", "2"]
    assert server.requests[0].path == "/api/v1/events?type=execution.queued&execution=1"


async def test_a_stream_that_is_refused_ends() -> None:
    async with scripted(problem(401, "no")) as server, Client(server.url, "t") as client:
        with pytest.raises(UsageError, match="token"):
            await anext(aiter(client.events()))


async def test_events_of_a_real_server_are_followed(tmp_path: Path) -> None:
    async with serving(tmp_path) as rig, Client(rig.url, rig.tokens[Scope.ADMIN]) as client:
        first = await client.enqueue("api", "one", task_id="T-1")
        second = await client.enqueue("web", "two", task_id="T-2")
        (claim,) = await client.claim("w", max=1)
        seen: list[tuple[str, int]] = []
        async for told in client.events(after=0):
            seen.append((told["type"], told["execution"]))
            if told["type"] == "execution.started":
                break

    assert seen[0] == ("execution.queued", first.id)
    assert ("execution.queued", second.id) in seen
    assert ("execution.started", claim.execution.id) in seen


async def test_an_executions_own_stream_ends_with_it(tmp_path: Path) -> None:
    async with serving(tmp_path) as rig, Client(rig.url, rig.tokens[Scope.ADMIN]) as client:
        await client.enqueue("api", "one")
        (claim,) = await client.claim("w")
        id = claim.execution.id
        told: list[str] = []

        async def follow() -> None:
            async for kind, _ in client.stream(id):
                told.append(kind)

        following = asyncio.create_task(follow())
        await client.complete(id, "w", claim.fence, DONE)
        await asyncio.wait_for(following, 20)

    assert "execution.completed" in told


# People and programs


async def test_what_people_do(tmp_path: Path) -> None:
    async with serving(tmp_path) as rig, Client(rig.url, rig.tokens[Scope.ADMIN]) as client:
        new = await client.enqueue(
            "api", "one", body="one\nmore", task_id="T-1", kind="test", priority=1, lane=2, labels=["a"],
            payload={"x": 1}, available_at=1, source="cli",
        )  # fmt: skip
        assert (await client.enqueue("api", "one", task_id="T-1")).duplicate
        execution = await client.get(new.id)
        assert (execution.title, execution.kind, execution.lane, execution.payload) == ("one", "test", 2, {"x": 1})
        page = await client.list(status=["queued"], project="api")
        assert [entry["id"] for entry in page["executions"]] == [new.id]
        assert (await client.why(new.id))["id"] == new.id
        assert (await client.pause("api", reason="lunch"))["project"] == "api"
        assert [row["paused"] for row in (await client.projects())["projects"]] == [True, False]
        assert await client.claim("w") == []
        assert (await client.resume("api", everybody=True))["still_paused_by"] == []
        assert (await client.pause(None))["project"] is None
        await client.resume(None)
        (claim,) = await client.claim("w")
        await client.output(new.id, "w", claim.fence, [])
        assert await client.cancel(new.id) == "running"
        await client.release(new.id, "w", claim.fence)
        again = await client.retry(new.id)
        assert again.id > new.id
        assert (await client.status())["counts"]["cancelled"] == 1
        assert "counts" in await client.stats()
        assert [node["kind"] for node in (await client.nodes())["nodes"]] == ["worker"]
        assert (await client.event_log(after=0, execution=new.id))["events"][0]["type"] == "execution.queued"
        (claim,) = await client.claim("w")
        artifact = Artifact("a.diff", b"\xffx")
        await client.complete(again.id, "w", claim.fence, DONE, [artifact])
        assert await client.artifact(artifact.sha256) == b"\xffx"
        assert (await client.settled(again.id)).status == "completed"
