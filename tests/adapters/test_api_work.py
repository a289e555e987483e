"""Workers elsewhere: claims, fences, last words, and long polls that end when they should."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import socket
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from pilot.domain.access import Scope
from pilot.domain.task import Project
from tests.adapters.api_rig import NEVER, SECRET, Rig, serving
from tests.adapters.test_api import TASK, claimed, rows

DIFF = "--- a/x\n+++ b/x\n"


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with serving(tmp_path) as rig:
        yield rig


async def say(rig: Rig, claim: Mapping[str, Any], verb: str, code: int = 200, **more: Any) -> Any:
    said = {"worker": "w", "fence": claim["fence"]} | more
    return await rig.post(f"/work/{claim['id']}/{verb}", said, code=code, scope=Scope.WORK)


async def until(rig: Rig, condition: Any, what: str) -> None:
    end = time.monotonic() + NEVER
    while not condition():
        assert time.monotonic() < end, f"never: {what}"
        await asyncio.sleep(0.005)


async def test_from_the_claim_to_the_last_word(rig: Rig) -> None:
    await rig.post("/executions", TASK | {"body": "In README.", "kind": "content", "lane": 3}, code=201)
    assert (await rig.post("/work/claim", {"worker": "w", "lanes": [1]}))["executions"] == []
    claim = await claimed(rig, lanes=[3], kinds=["content"], projects=["api"], lease_seconds=60.5)
    assert (claim["body"], claim["status"], claim["node"], claim["made"]) == ("In README.", "running", "worker:w", [])

    usage = {"input_tokens": 10, "output_tokens": 2, "cost_usd": 0.5}
    progress = {"phase": "writes", "session_id": "s-1", "model": "m", "branch": "pilot/x"}
    beaten = await say(rig, claim, "heartbeat", lease_seconds=90, progress=progress, usage=usage)
    assert beaten["cancel_requested"] is False
    assert beaten["lease_until"] > claim["lease_until"]
    assert (await rig.get("/status"))["running"][0]["phase"] == "writes"

    head = "a" * 40
    gate = {"name": "lint", "kind": "lint", "command": "make lint", "exit_code": 0, "duration": 12, "tree": "b" * 40}
    last: dict[str, Any] = {
        "summary": "Said hello.", "branch": "pilot/x", "head_sha": head, "tree": "b" * 40, "gates": [gate],
        "usage": usage, "artifacts": [{"name": "x.diff", "content": DIFF}],
    }  # fmt: skip
    done = await say(rig, claim, "complete", **last)
    assert done["duplicate"] is False
    execution = done["execution"]
    assert {name: execution[name] for name in ("status", "outcome", "head_sha", "session_id", "usage")} == {
        "status": "completed", "outcome": "done", "head_sha": head, "session_id": "s-1", "usage": usage,
    }  # fmt: skip
    sha256 = hashlib.sha256(DIFF.encode()).hexdigest()
    assert execution["artifacts"] == [{"name": "x.diff", "sha256": sha256, "size": len(DIFF)}]
    attempt = (await rig.get(f"/executions/{claim['id']}/attempts"))["attempts"][0]
    assert (attempt["summary"], attempt["gates"][0]["name"], attempt["outcome"]) == ("Said hello.", "lint", "done")

    before = rows(rig)
    again = await say(rig, claim, "complete", **last)
    assert again == {"execution": execution, "duplicate": True, "next": []}
    assert rows(rig) == before

    answer = await rig.call("GET", f"/api/v1/artifacts/{sha256}", scope=Scope.READ, code=200)
    assert answer.text == DIFF
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-disposition"].startswith("attachment")
    await rig.get(f"/artifacts/{'0' * 64}", code=404)
    await rig.get("/artifacts/..%2f..%2fetc%2fpasswd", code=404)
    await rig.get(f"/artifacts/{'G' * 64}", code=422)


async def test_what_is_claimed_with_a_last_word_is_its_callers(rig: Rig) -> None:
    for name in ("T-1", "T-2"):
        await rig.post("/executions", TASK | {"task_id": name}, code=201)
    claim = await claimed(rig)
    wanted = {"lanes": [0], "kinds": ["code"], "projects": ["api"], "max": 5, "lease_seconds": 120}

    (after,) = (await say(rig, claim, "complete", next=wanted))["next"]

    assert (after["task_id"], after["status"], after["node"]) == ("T-2", "running", "worker:w")
    assert after["lease_until"] > claim["lease_until"]
    await say(rig, after, "heartbeat")
    rig.ready = False  # what is on its way is taken, and nothing new is given
    assert (await say(rig, after, "complete", next=wanted))["next"] == []


@pytest.mark.parametrize("verb", ["heartbeat", "complete", "fail", "release", "output"])
async def test_a_stale_fence_changes_nothing(rig: Rig, verb: str) -> None:
    await rig.post("/executions", TASK, code=201)
    old = await claimed(rig)
    await say(rig, old, "release")
    new = await claimed(rig, worker="v")
    assert new["fence"] > old["fence"]
    said: dict[str, dict[str, Any]] = {"fail": {"detail": "no"}, "output": {"pieces": [{"text": "x"}]}}
    more = said.get(verb, {})
    before = rows(rig)
    for stale in (old, old | {"fence": new["fence"]}, old | {"fence": 0}):  # another's fence is not ours either
        if (verb, stale) == ("release", old):
            continue  # that was its last word: said again, it is a duplicate
        refused = await say(rig, stale, verb, code=409, **more)
        assert refused["detail"]
    await say(rig, {"id": 999, "fence": 1}, verb, code=404, **more)
    assert rows(rig) == before


@pytest.mark.parametrize("verb", ["heartbeat", "complete", "fail", "release", "output"])
async def test_nobody_speaks_of_what_was_claimed_with_another_token(rig: Rig, verb: str) -> None:
    """Its name and fence are no secrets: `show` tells them."""
    await rig.post("/executions", TASK, code=201)
    claim = await claimed(rig)
    mine = rig.tokens[Scope.WORK]
    rig.tokens[Scope.WORK] = await rig.store.tokens.create("another", [Scope.WORK], "a test")
    said: dict[str, dict[str, Any]] = {"fail": {"detail": "no"}, "output": {"pieces": [{"text": "x"}]}}
    before = rows(rig)
    refused = await say(rig, claim, verb, code=403, **said.get(verb, {}))
    assert "another token" in refused["detail"]
    assert rows(rig) == before

    rig.tokens[Scope.WORK] = mine
    await say(rig, claim, "heartbeat")
    body = {"worker": "w", "fence": claim["fence"]} | said.get(verb, {})
    await rig.post(f"/work/{claim['id']}/{verb}", body)  # an admin speaks for everybody


async def test_a_claim_of_before_is_whose_it_is_renewed_by(rig: Rig) -> None:
    await rig.post("/executions", TASK, code=201)
    (claim,) = await rig.store.work.claim("w")
    told = {"id": claim.execution.id, "fence": claim.fence}
    await say(rig, told, "heartbeat")
    rig.tokens[Scope.WORK] = await rig.store.tokens.create("another", [Scope.WORK], "a test")
    await say(rig, told, "complete", code=403)


async def test_failures_releases_and_an_end_that_somebody_wants(rig: Rig) -> None:
    await rig.post("/executions", TASK | {"max_attempts": 2}, code=201)
    claim = await claimed(rig)
    failed = (await say(rig, claim, "fail", failure_class="test", detail="2 tests fail", excerpt="E 1"))["execution"]
    assert (failed["status"], failed["failures"], failed["failure_class"]) == ("queued", 1, "test")
    await rig.post("/executions/1/cancel")

    await rig.post("/executions", TASK, code=201)
    claim = await claimed(rig)
    released = (await say(rig, claim, "release", reason="going home"))["execution"]
    assert (released["status"], released["failures"]) == ("queued", 0)
    claim = await claimed(rig)
    await rig.post(f"/executions/{claim['id']}/cancel", {"reason": "enough"})
    assert (await say(rig, claim, "heartbeat"))["cancel_requested"] is True
    assert (await say(rig, claim, "release"))["execution"]["status"] == "cancelled"


async def test_one_writer(rig: Rig) -> None:
    await rig.post("/executions", TASK, code=201)
    claim = await claimed(rig)
    before = rows(rig)
    for artifacts in (
        [{"name": "a.diff", "content": DIFF}, {"name": "README.md", "content": "x"}],
        [{"name": "../x", "content": "x"}],
        [{"name": "x", "content_base64": "===="}],
        [{"name": "x"}],
        [{"name": "x", "content": "a", "content_base64": "YQ=="}],
    ):
        assert (await say(rig, claim, "complete", code=422, artifacts=artifacts))["detail"]
    assert rows(rig) == before
    binary = base64.b64encode(bytes(range(256))).decode()
    done = await say(rig, claim, "complete", artifacts=[{"name": "a/b.bin", "content_base64": binary}])
    sha256 = done["execution"]["artifacts"][0]["sha256"]
    assert (await rig.call("GET", f"/api/v1/artifacts/{sha256}")).content == bytes(range(256))


BAD: list[tuple[str, dict[str, Any]]] = [
    ("complete", {"outcome": "question"}),
    ("complete", {"question": {"text": "?"}}),
    ("complete", {"outcome": "failed"}),
    ("complete", {"branch": "--upload-pack=x"}),
    ("complete", {"branch": "a..b"}),
    ("complete", {"head_sha": "HEAD"}),
    ("complete", {"usage": {"cost_usd": -1}}),
    ("fail", {}),
    ("fail", {"detail": " "}),
    ("fail", {"detail": "x", "failure_class": "bad_luck"}),
    ("fail", {"detail": "x", "retry_at": "later"}),
    ("output", {"pieces": []}),
    ("output", {"pieces": [{"text": "a", "base64": "YQ=="}]}),
    ("output", {"pieces": [{"base64": "*"}]}),
    ("output", {"pieces": [{"kind": "noise", "text": "a"}]}),
    ("heartbeat", {"lease_seconds": 0.5}),
    ("heartbeat", {"lease_seconds": 1e9}),
    ("heartbeat", {"progress": {"branch": "a b"}}),
    ("heartbeat", {"fence": 1 << 63}),
    ("heartbeat", {"worker": ""}),
    ("heartbeat", {"worker": "a\nb"}),
    ("claim", {"max": 0}),
    ("claim", {"wait_seconds": 61}),
    ("claim", {"lanes": ["1"]}),
    ("claim", {"worker": "x" * 81}),
    ("claim", {"worker": "a\u202eb"}),
]


async def test_bad_words(rig: Rig) -> None:
    await rig.post("/executions", TASK, code=201)
    claim = await claimed(rig)
    before = rows(rig)
    for verb, more in BAD:
        said = {"worker": "w", **({} if verb == "claim" else {"fence": claim["fence"]})} | more
        path = "/work/claim" if verb == "claim" else f"/work/{claim['id']}/{verb}"
        answer = await rig.call("POST", f"/api/v1{path}", said)
        assert answer.status_code == 422, (verb, more, answer.text)
        assert answer.json()["detail"]
        assert rows(rig) == before, (verb, more)


async def test_what_workers_say_is_kept_without_secrets(rig: Rig) -> None:
    await rig.post("/executions", TASK | {"max_attempts": 5}, code=201)
    told = f"the key is {SECRET}, and ghp_{'a' * 36}"
    claim = await claimed(rig)
    await say(rig, claim, "heartbeat", progress={"phase": told})
    kept = "\n".join(rows(rig))
    await say(rig, claim, "output", pieces=[{"text": told}, {"base64": base64.b64encode(told.encode()).decode()}])
    await say(rig, claim, "fail", detail=told, excerpt=told, summary=told, session_id=told, model=told)
    await rig.post("/executions/1/cancel")
    await rig.post("/executions", TASK, code=201)
    claim = await claimed(rig)
    question = {"text": told, "options": [told], "default": told}
    gate = {"name": told, "kind": told, "tree": SECRET, "command": told, "tail": told, "exit_code": 1}
    more: dict[str, Any] = {"session_id": told, "model": told, "gates": [gate]}
    await say(rig, claim, "complete", outcome="question", question=question, summary=told, **more)
    await rig.post(f"/executions/{claim['id']}/answer", {"text": "go on"})
    await say(rig, await claimed(rig), "release", reason=told)
    kept += "\n".join(rows(rig)) + json.dumps(await rig.get("/executions/1/output"))
    assert "the key is" in kept
    assert SECRET not in kept
    assert "ghp_" not in kept
    assert SECRET.encode().hex().upper() not in kept.upper()  # nor in a blob


# Long polls


async def test_a_long_poll_is_answered_when_there_is_something(rig: Rig) -> None:
    waiting = asyncio.create_task(rig.post("/work/claim", {"worker": "w", "wait_seconds": 60}))
    await until(rig, lambda: rig.api.waiting == 1, "it waits")
    begun = time.monotonic()
    await rig.post("/executions", TASK, code=201)
    assert len((await waiting)["executions"]) == 1
    assert time.monotonic() - begun < 30
    assert rig.api.waiting == 0
    begun = time.monotonic()
    assert (await rig.post("/work/claim", {"worker": "w", "wait_seconds": 0.2}))["executions"] == []
    assert 0.15 < time.monotonic() - begun < 30


async def test_who_hangs_up_is_given_nothing(rig: Rig) -> None:
    body = json.dumps({"worker": "gone", "wait_seconds": 60}).encode()
    host, port = rig.url.removeprefix("http://").split(":")
    head = (
        f"POST /api/v1/work/claim HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {rig.tokens[Scope.WORK]}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    sock = await asyncio.to_thread(socket.create_connection, (host, int(port)))
    sock.sendall(head.encode() + body)
    await until(rig, lambda: rig.api.waiting == 1, "it waits")
    sock.close()
    await until(rig, lambda: rig.api.waiting == 0, "it waits no more")
    await rig.post("/executions", TASK, code=201)
    claim = await claimed(rig)
    assert (claim["node"], claim["attempt"]) == ("worker:w", 1)


async def test_whoever_waits_is_answered_when_the_server_goes_down(rig: Rig) -> None:
    waiting = [asyncio.create_task(rig.post("/work/claim", {"worker": f"w{n}", "wait_seconds": 60})) for n in range(20)]
    await until(rig, lambda: rig.api.waiting == 20, "they wait")
    begun = time.monotonic()
    rig.api.refuse_work()
    assert [answer["executions"] for answer in await asyncio.gather(*waiting)] == [[]] * 20
    assert time.monotonic() - begun < 20
    await rig.post("/work/claim", {"worker": "w"}, code=503)
    await rig.post("/executions", TASK, code=201)  # all else goes on


async def test_only_so_many_wait(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pilot.api.work.MAX_WAITING", 1)
    waiting = asyncio.create_task(rig.post("/work/claim", {"worker": "w", "wait_seconds": 60}))
    await until(rig, lambda: rig.api.waiting == 1, "it waits")
    await rig.post("/work/claim", {"worker": "v", "wait_seconds": 1}, code=503)
    assert (await rig.post("/work/claim", {"worker": "v"}))["executions"] == []
    rig.api.refuse_work()
    await waiting


async def test_twenty_workers_and_a_hundred_tasks_of_ten_projects(tmp_path: Path) -> None:
    names = tuple(f"p{n}" for n in range(10))
    async with serving(tmp_path, names) as rig:
        for n in range(100):
            await rig.post("/executions", {"project": names[n % 10], "title": f"T {n}"}, code=201)
        running: dict[str, int] = {}
        order: dict[str, list[int]] = {name: [] for name in names}

        async def work(worker: str) -> None:
            while sum(map(len, order.values())) < 100:
                for claim in (await rig.post("/work/claim", {"worker": worker, "wait_seconds": 1}))["executions"]:
                    project = claim["project"]
                    assert project not in running
                    running[project] = claim["id"]
                    order[project].append(claim["id"])
                    await asyncio.sleep(0)
                    del running[project]
                    said = {"worker": worker, "fence": claim["fence"]}
                    await rig.post(f"/work/{claim['id']}/complete", said)

        await asyncio.gather(*(work(f"w{n}") for n in range(20)))
        for n, name in enumerate(names):
            assert order[name] == [n + 1 + 10 * k for k in range(10)]
        assert isinstance(rig.project("p0"), Project)
