"""Plans over HTTP: whole or not at all, twice is once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pilot.domain.access import Scope
from pilot.domain.plan import parse_markdown
from tests.adapters.api_rig import Rig, serving
from tests.adapters.test_api import rows

PLAN = """# Plan: Release

- [ ] id=notes lane=1 payload=@doc:LLM_TASK write the notes
- [ ] id=check lane=2 deps=notes payload=@doc:LLM_TASK check them
- [ ] id=link lane=2 deps=check payload=@url:https://example.org/notes
"""


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with serving(tmp_path) as rig:
        yield rig


async def test_a_plan_goes_in_once(rig: Rig) -> None:
    plan = {"project": "api", "markdown": PLAN}
    new = await rig.post("/plans", plan, code=201, scope=Scope.WORK)
    assert [(step["id"], step["task_id"], step["status"], step["duplicate"]) for step in new["steps"]] == [
        ("notes", "release::notes", "queued", False),
        ("check", "release::check", "blocked", False),
        ("link", "release::link", "blocked", False),
    ]
    assert (await rig.get(f"/executions/{new['steps'][1]['execution']}"))["after"] == [new["steps"][0]["execution"]]
    again = await rig.post("/plans", plan, code=200)
    assert [step["execution"] for step in again["steps"]] == [step["execution"] for step in new["steps"]]
    assert all(step["duplicate"] for step in again["steps"])
    await rig.post("/plans", plan | {"key": "2"}, code=422)  # another run, while the first is open

    for name in ("notes", "check"):
        claim = (await rig.post("/work/claim", {"worker": "w"}))["executions"][0]
        assert claim["task_id"] == f"release::{name}"
        assert [made["task_id"] for made in claim["made"]] == (["release::notes"] if name == "check" else [])
        await rig.post(f"/work/{claim['id']}/complete", {"worker": "w", "fence": claim["fence"]})
    assert (await rig.get(f"/executions/{new['steps'][2]['execution']}"))["status"] == "completed"
    assert (await rig.post("/plans", plan | {"key": "2"}, code=201))["plan"] == "release"


async def test_json_and_what_runs_programs(rig: Rig) -> None:
    steps = [
        {"id": "a", "lane": 1, "payload": "@cmd:make a"},
        {"id": "b", "lane": 1, "payload": "@doc:LLM_TASK look", "dependsOn": ["a"]},
    ]
    plan = {"project": "api", "slug": "two", "steps": steps}
    before = rows(rig)
    refused = await rig.post("/plans", plan, code=403, scope=Scope.WORK)
    assert "`admin`" in refused["detail"]
    assert rows(rig) == before
    assert len((await rig.post("/plans", plan, code=201))["steps"]) == 2


async def test_nobody_puts_something_else_in_the_place_of_a_plan_s_steps(rig: Rig) -> None:
    """Whoever knows a plan could, before it comes: its steps are named by what it says."""
    digest = parse_markdown(PLAN).digest
    for body in ({"key": digest}, {"key": "0123456789abcdef"}):
        steps = [{"id": "notes", "lane": 1, "payload": "@url:x"}]
        plan = {"project": "api", "slug": "release", "steps": steps} | body
        assert "16 hex digits" in (await rig.post("/plans", plan, code=422, scope=Scope.WORK))["detail"]
    task = {"project": "api", "title": "Something else"}
    for key in (f"plan:release:{digest}:notes", "ci:1:abc", "review:1:2", "github:acme/api#1:labeled:7", "linear:x:1"):
        refused = await rig.call(
            "POST", "/api/v1/executions", task, scope=Scope.WORK, headers={"idempotency-key": key}, code=422
        )
        assert "pilot's own" in refused.json()["detail"]
    for key in ("deploy:api:7", "plan-7", "ci:7", "plan"):
        headers = {"idempotency-key": key}
        await rig.call("POST", "/api/v1/executions", task, scope=Scope.WORK, headers=headers, code=201)
    new = await rig.post("/plans", {"project": "api", "markdown": PLAN, "key": digest}, code=201, scope=Scope.WORK)
    assert not any(step["duplicate"] for step in new["steps"])


async def test_everything_that_is_wrong_is_said_at_once(rig: Rig) -> None:
    before = rows(rig)
    bad = "# Plan: Bad\n\n- [ ] id=a lane=x payload=@cmd:make\n- [ ] id=b lane=1 deps=c payload=@nope:1\n"
    answer = await rig.post("/plans", {"project": "api", "markdown": bad}, code=422)
    assert {error["where"] for error in answer["errors"]} == {"line 3", "line 4"}
    circle = "# Plan: C\n\n- [ ] id=a lane=1 deps=b payload=@doc:x\n- [ ] id=b lane=1 deps=a payload=@doc:x\n"
    assert "a → b → a" in (await rig.post("/plans", {"project": "api", "markdown": circle}, code=422))["detail"]
    for body in (
        {"project": "api"},
        {"project": "api", "markdown": PLAN, "steps": []},
        {"project": "api", "markdown": PLAN, "slug": "x"},
        {"project": "api", "markdown": ""},
        {"project": "api", "slug": "s", "steps": []},
        {"project": "api", "slug": "s", "steps": [{}]},
        {"project": "api", "slug": "s", "steps": [{"id": "a", "lane": 1, "payload": "@cmd:rm -rf /"}]},
        {"project": "api", "slug": "s", "steps": [{"id": {}, "lane": [], "payload": None, "dependsOn": "a"}]},
        {"project": "api", "slug": "s", "policy": {"nonsense": True}, "steps": [{"id": "a"}]},
    ):
        assert (await rig.post("/plans", body, code=422))["detail"]
    await rig.post("/plans", {"project": "nowhere", "markdown": PLAN}, code=404)
    headers = {"idempotency-key": "other"}
    body = {"project": "api", "markdown": PLAN, "key": "one"}
    await rig.call("POST", "/api/v1/plans", body, headers=headers, code=422)
    assert rows(rig) == before
