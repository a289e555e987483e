"""The reads: what they say, and that a million finished rows don't slow them down."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Generator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pilot.domain.errors import StoreError, StoreRefused, UsageError
from pilot.domain.execution import Status
from pilot.domain.outcome import Usage
from pilot.domain.ports import Hold, Why
from pilot.store import Store, open_store
from pilot.store.database import Rows, Statement, Step
from pilot.store.documents import rfc3339, why_document
from pilot.store.glance import answer, glance
from pilot.store.history import History
from pilot.store.waiting import why

NOW = 1_800_000_000_000
SECOND = 1000
HARMLESS = ("SCAN value VIRTUAL TABLE INDEX 1:", "SCAN json_each VIRTUAL TABLE INDEX 1:", "SCAN CONSTANT ROW")
DOCUMENT = (
    *("id", "task_id", "title", "project", "project_path", "source", "kind", "labels", "priority", "lane"),
    *("status", "reason", "outcome", "attempt", "failures", "max_attempts", "failure_class", "error"),
    *("backend", "model", "session_id", "branch", "base_sha", "head_sha", "workspace", "delivery"),
    *("pr_url", "checks", "usage", "node", "fence", "after", "plan", "payload", "artifacts", "callback_url"),
    *("parent", "available_at", "created_at", "started_at", "finished_at", "route", "fallback", "sandbox"),
    "place",
)


class Rack:
    """A store filled by hand: these tests are about reading."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.history = store.history

    async def put(self, table: str, *rows: Mapping[str, Any]) -> None:
        columns = list(rows[0])
        sql = f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join(f':{c}' for c in columns)})"

        def insert(items: Sequence[Any]) -> Generator[Step, Rows, list[None]]:
            yield Statement(sql, many=[dict(row) for row in rows])
            return [None for _ in items]

        await self.store.database.write(insert, None)

    async def project(self, id: int, name: str, **values: Any) -> None:
        row = {"id": id, "key": f"host:/src/{name}/{id}", "name": name, "path": f"/src/{name}", **values}
        await self.put("projects", row)

    async def execution(self, id: int, status: Status = Status.QUEUED, **values: Any) -> None:
        await self.put("executions", execution(id, status, **values))

    async def why(self, id: int, now: int = NOW) -> Why:
        why = await self.history.why(id, now)
        assert why is not None
        return why

    async def holds(self, id: int, now: int = NOW) -> list[str]:
        return [hold.kind for hold in (await self.why(id, now)).holds]


def execution(id: int, status: Status = Status.QUEUED, **values: Any) -> dict[str, Any]:
    row = {
        "id": id, "project_id": 1, "project": "api", "project_path": "/src/api", "task_id": f"T-{id}",
        "title": f"task {id}", "body": "", "source": "cli", "kind": "code", "labels": "[]", "priority": 2,
        "lane": 0, "status": status.value, "reason": None, "due": int(status is Status.QUEUED),
        "available_at": NOW - SECOND, "deps_left": 0, "slot": None, "node": None, "fence": 0,
        "lease_until": None, "cancel_requested": 0, "reserved_for": None, "attempt": 0, "max_attempts": 3,
        "backend": "claude-code", "options": "{}", "payload": None, "created_at": NOW - 60 * SECOND,
        "finished_at": NOW - 10_000 + id if status.final else None,
    }  # fmt: skip
    if status is Status.RUNNING:
        row |= {"slot": 0, "node": "n1", "lease_until": NOW + 60 * SECOND, "attempt": 1, "fence": 7}
    if status is Status.BLOCKED:
        row |= {"deps_left": 1}
    if status is Status.NEEDS_HUMAN:
        row |= {"reason": "what colour?"}
    return row | values


def attempt(execution_id: int, number: int = 1, **values: Any) -> dict[str, Any]:
    return {
        "execution_id": execution_id, "number": number, "fence": 7, "node": "n1", "phase": "agent",
        "backend": "claude-code", "started_at": NOW - 30 * SECOND,
    } | values  # fmt: skip


def node(id: str = "n1", **values: Any) -> dict[str, Any]:
    return {
        "id": id, "kind": "serve", "host": "h", "boot_id": "b", "pid": 1, "start_ticks": 1, "version": "0",
        "max_running": 0, "choosy": 0, "state": "up", "started_at": NOW - 90 * SECOND,
        "seen_at": NOW, "lease_until": NOW + 60 * SECOND,
    } | values  # fmt: skip


def park(backend: str, **values: Any) -> dict[str, Any]:
    return {
        "backend": backend, "account": "", "failure": "quota", "reason": "", "until": None, "since": NOW,
        "changed_at": NOW,
    } | values  # fmt: skip


def account_row(node_id: str, account: str) -> dict[str, Any]:
    return {"node_id": node_id, "project_id": 1, "backend": "claude-code", "account": account}


def statement(sql: str) -> Callable[[Sequence[None]], Generator[Step, Rows, list[None]]]:
    """A write that goes past the queue."""

    def operation(items: Sequence[None]) -> Generator[Step, Rows, list[None]]:
        yield Statement(sql)
        return [None] * len(items)

    return operation


@pytest.fixture
async def rack(url: str) -> AsyncIterator[Rack]:
    async with open_store(url, clock=lambda: NOW) as store:
        rack = Rack(store)
        await rack.project(1, "api")
        yield rack


async def test_the_document_has_exactly_the_promised_keys(rack: Rack) -> None:
    await rack.execution(1, Status.COMPLETED, payload='{"a": 1}', labels='["docs"]', started_at=NOW)
    await rack.execution(2, Status.BLOCKED)
    await rack.put("dependencies", {"execution_id": 2, "depends_on": 1})

    found, _ = await rack.history.executions()
    documents = {document["id"]: document for document in await rack.history.documents(found)}

    for document in documents.values():
        assert tuple(document) == DOCUMENT
    assert documents[1]["usage"] == {"input_tokens": None, "output_tokens": None, "cost_usd": None}
    assert documents[1]["payload"] == {"a": 1}
    assert documents[1]["labels"] == ["docs"]
    assert documents[1]["started_at"] == "2027-01-15T08:00:00.000Z"
    assert documents[1]["finished_at"] == "2027-01-15T07:59:50.001Z"
    assert documents[2]["after"] == [1]
    assert documents[2]["started_at"] is None
    assert json.loads(json.dumps(documents[2]))["status"] == "blocked"


@pytest.mark.parametrize(
    ("at", "text"),
    [
        (None, None),
        (0, "1970-01-01T00:00:00.000Z"),
        (NOW + 7, "2027-01-15T08:00:00.007Z"),
        (2**62, "9999-12-31T23:59:59.999Z"),
    ],
)
def test_times_are_rfc3339_and_never_overflow(at: int | None, text: str | None) -> None:
    assert rfc3339(at) == text


async def test_the_list_shows_open_ones_and_the_last_20_ended(rack: Rack) -> None:
    ended = [execution(n, Status.COMPLETED if n % 2 else Status.FAILED) for n in range(1, 41)]
    ended[0]["finished_at"] = NOW  # the oldest ended last
    await rack.put("executions", *ended)
    await rack.execution(50, Status.RUNNING)
    await rack.execution(51)

    found, cursor = await rack.history.executions()

    assert [e.id for e in found] == [51, 50, 1, *range(40, 21, -1)]
    assert cursor is None


@pytest.mark.parametrize("limit", [1, 2, 7, 100])
@pytest.mark.parametrize("narrow", [{}, {"project_id": 1}])
async def test_pages_together_are_the_whole_list(rack: Rack, limit: int, narrow: dict[str, Any]) -> None:
    await rack.put("executions", *[execution(n, Status.CANCELLED, finished_at=NOW) for n in range(1, 12)])
    await rack.put("executions", *[execution(n, Status.QUEUED) for n in range(20, 26)])

    seen: list[int] = []
    cursor: str | None = None
    for _ in range(30):
        found, cursor = await rack.history.executions(everything=True, limit=limit, cursor=cursor, **narrow)
        assert len(found) <= limit
        seen += [e.id for e in found]
        if cursor is None:
            break

    assert seen == [*range(25, 19, -1), *range(11, 0, -1)]


async def test_the_list_is_filtered(rack: Rack) -> None:
    await rack.project(2, "web")
    await rack.execution(1, Status.FAILED)
    await rack.execution(2, Status.FAILED, project_id=2, source="github")
    await rack.execution(3, Status.QUEUED, project_id=2, source="github")
    await rack.execution(4, Status.RUNNING, task_id="GH-1")
    await rack.execution(5, Status.COMPLETED, task_id="GH-1")

    async def ids(**filters: Any) -> list[int]:
        return [e.id for e in (await rack.history.executions(**filters))[0]]

    assert await ids(statuses=[Status.FAILED]) == [2, 1]
    assert await ids(statuses=[Status.FAILED, Status.QUEUED]) == [3, 2, 1]
    assert await ids(statuses=[Status.RUNNING]) == [4]
    assert await ids(project_id=2) == [3, 2]
    assert await ids(project_id=2, statuses=[Status.COMPLETED]) == []
    assert await ids(source="github") == [3, 2]
    assert await ids(task_id="GH-1") == [4, 5]


@pytest.mark.parametrize("cursor", ["x", "open.", "open.x", "ended.1", "open.1.2", "ended.1.²", "open." + "9" * 30])
async def test_a_cursor_of_somebody_elses_is_refused(rack: Rack, cursor: str) -> None:
    with pytest.raises(UsageError, match="cursor"):
        await rack.history.executions(cursor=cursor)


async def test_counts_know_every_status(rack: Rack) -> None:
    await rack.execution(1, Status.COMPLETED)
    await rack.execution(2, Status.COMPLETED)
    await rack.execution(3, Status.NEEDS_HUMAN)

    counts = await rack.history.counts()

    assert counts == dict.fromkeys(Status, 0) | {Status.COMPLETED: 2, Status.NEEDS_HUMAN: 1}


async def test_projects_are_found_by_key_path_or_name(rack: Rack) -> None:
    await rack.project(2, "web")
    await rack.project(3, "web", path="/other/web")

    api = await rack.history.find_project("api")

    assert api is not None
    assert api.id == 1
    assert await rack.history.find_project("/src/api") == api
    assert await rack.history.find_project("host:/src/api/1") == api
    assert await rack.history.find_project("nothing") is None
    with pytest.raises(UsageError, match="2 projects are called 'web'"):
        await rack.history.find_project("web")


async def test_output_is_read_piece_by_piece(rack: Rack) -> None:
    await rack.execution(1, Status.RUNNING)
    await rack.put(
        "output",
        *[
            {"execution_id": 1, "attempt": a, "seq": s, "at": NOW, "kind": "text", "data": f"{a}{s}".encode()}
            for a in (1, 2)
            for s in (1, 2, 3)
        ],
    )

    async def read(**where: Any) -> list[bytes]:
        return [piece.data for piece in await rack.history.output(1, **where)]

    assert await read() == [b"11", b"12", b"13", b"21", b"22", b"23"]
    assert await read(after=(1, 2)) == [b"13", b"21", b"22", b"23"]
    assert await read(attempt=2, after=(2, 1)) == [b"22", b"23"]
    assert await read(limit=2) == [b"11", b"12"]
    assert await rack.history.output(99) == []


async def test_events_are_read_from_a_point_or_from_the_end(rack: Rack) -> None:
    await rack.put(
        "events",
        *[
            {
                "at": NOW + n,
                "type": "execution.queued" if n % 2 else "trigger.refused",
                "execution_id": n % 3 or None,
                "project_id": 1,
                "data": '{"n": 1}',
            }
            for n in range(1, 10)
        ],
    )

    async def ids(**where: Any) -> list[int]:
        return [event.id for event in await rack.history.events(**where)]

    assert await ids(limit=3) == [7, 8, 9]
    assert await ids(after=0, limit=3) == [1, 2, 3]
    assert await ids(after=7) == [8, 9]
    assert await ids(types=["trigger.refused"]) == [2, 4, 6, 8]
    assert await ids(types=["trigger.refused", "execution.queued"], after=8) == [9]
    assert await ids(execution=1) == [1, 4, 7]
    assert (await rack.history.events(after=8))[0].data == {"n": 1}


async def test_attempts_and_questions(rack: Rack) -> None:
    await rack.execution(1, Status.NEEDS_HUMAN)
    await rack.put("attempts", attempt(1, gates='[{"name": "lint"}]'), attempt(1, 2, gates=None))
    await rack.put(
        "questions",
        {
            "execution_id": 1,
            "attempt": 2,
            "text": "red?",
            "options": '["yes"]',
            "preset": None,
            "asked_at": NOW,
        },
    )

    first, second = await rack.history.attempts(1)
    (asked,) = await rack.history.questions(1)

    assert (first.number, first.gates, second.gates) == (1, [{"name": "lint"}], [])
    assert (asked.text, asked.options, asked.answered_at) == ("red?", ("yes",), None)
    assert await rack.history.questions() == [asked]
    assert await rack.history.questions(2) == []


async def test_nothing_is_known_of_an_unknown_execution(rack: Rack) -> None:
    assert await rack.history.execution(9) is None
    assert await rack.history.why(9, NOW) is None
    assert await rack.history.attempts(9) == []


class TestWhy:
    async def test_it_is_next(self, rack: Rack) -> None:
        await rack.put("nodes", node())
        await rack.execution(1)

        why = await rack.why(1)

        assert (why.status, why.position, why.holds) == ("queued", 1, ())
        assert "it is next" in why.next.lower()

    async def test_every_node_is_full(self, rack: Rack) -> None:
        await rack.project(2, "web")
        await rack.put("nodes", node(max_running=1))
        await rack.execution(1, Status.RUNNING, project_id=2)
        await rack.execution(2)

        why = await rack.why(2)

        assert [hold.kind for hold in why.holds] == ["full"]
        assert "n1 runs 1 of 1" in why.holds[0].detail
        await rack.put("nodes", node("n2", max_running=1))
        assert (await rack.why(2)).holds == ()

    async def test_what_is_claimed_meanwhile_is_not_in_its_own_way(self, rack: Rack) -> None:
        """A direct run that may not wait would give up on itself."""
        await rack.put("nodes", node("n1", max_running=2))
        await rack.execution(1)
        queued = await rack.history.execution(1)
        assert queued is not None
        await rack.execution(2, Status.RUNNING, slot=0, priority=3)

        claimed = replace(queued, id=2, priority=0)

        assert (await why(rack.store.database, claimed, NOW)).holds == ()
        assert [hold.kind for hold in (await why(rack.store.database, queued, NOW)).holds] == ["slot"]

    async def test_who_has_the_slot_and_who_is_before_it(self, rack: Rack) -> None:
        await rack.put("nodes", node())
        await rack.execution(1, Status.RUNNING)
        await rack.put("attempts", attempt(1))
        await rack.execution(2, priority=3)  # later than 4 by its priority
        await rack.execution(3)
        await rack.execution(4)

        why = await rack.why(4)

        assert why.position == 2
        assert [(hold.kind, hold.execution) for hold in why.holds] == [("slot", 1), ("ahead", 3)]
        assert "1 (T-1) runs in api on n1 since 2027-01-15 07:59:30 UTC" in why.holds[0].detail
        assert "1 before it in api; the first is 3 (T-3)" in why.holds[1].detail
        assert (await rack.why(2)).position == 3

    async def test_rows_that_wait_are_not_before_it(self, rack: Rack) -> None:
        await rack.put("nodes", node())
        await rack.execution(1, available_at=NOW + 1, due=0)
        await rack.execution(2, Status.NEEDS_HUMAN)
        await rack.execution(3, Status.BLOCKED)
        await rack.execution(4, backend="codex")
        await rack.put("parks", park("codex"))
        await rack.execution(5)
        await rack.execution(6, available_at=NOW, due=0)  # due, though the flag is not up to date
        await rack.execution(7)

        assert (await rack.why(5)).position == 1
        assert (await rack.why(6)).position == 2
        assert (await rack.why(7)).position == 3

    async def test_a_project_with_two_slots_has_one_left(self, rack: Rack) -> None:
        await rack.project(2, "web", max_running=2)
        await rack.put("nodes", node())
        await rack.execution(1, Status.RUNNING, project_id=2)
        await rack.execution(2, project_id=2)

        assert await rack.holds(2) == []

    async def test_paused_by_whom_and_why(self, rack: Rack) -> None:
        await rack.put("nodes", node())
        await rack.execution(1)
        await rack.put("pauses", {"project_id": 1, "owner": "ada", "reason": "deploy", "since": NOW})

        why = await rack.why(1)

        assert [hold.kind for hold in why.holds] == ["paused"]
        assert "api is paused by ada" in why.holds[0].detail
        assert "deploy" in why.holds[0].detail
        assert "`pilot resume api`" in why.next

        await rack.put("pauses", {"project_id": 0, "owner": "bob", "reason": "", "since": NOW})
        assert "`pilot resume`" in (await rack.why(1)).next

    async def test_parked_until_a_time_or_a_person(self, rack: Rack) -> None:
        await rack.put("nodes", node())
        await rack.execution(1)
        await rack.execution(2, backend="codex")
        await rack.put(
            "parks",
            park("claude-code", failure="rate_limit", reason="429", until=NOW + 5),
            park("codex", failure="auth", reason="401"),
        )

        first, second = await rack.why(1), await rack.why(2)

        assert first.holds[0] == Hold("parked", "claude-code takes no work: rate_limit: 429", None, NOW + 5)
        assert "may start at 2027-01-15 08:00:00 UTC" in first.next
        assert second.holds[0].until is None
        assert "`pilot backend unpark codex`" in second.next
        assert await rack.holds(1, NOW + 5) == []  # the park is over, swept or not

    async def test_its_time_has_not_come(self, rack: Rack) -> None:
        await rack.put("nodes", node())
        await rack.execution(1, available_at=NOW + SECOND, due=0, reason="network: reset by peer")

        why = await rack.why(1)

        assert why.position is None
        assert why.holds == (
            Hold("time", "not before 2027-01-15 08:00:01 UTC, after network: reset by peer", None, NOW + SECOND),
        )

    @pytest.mark.parametrize(
        "others",
        [
            [],
            [node(lease_until=NOW - 1)],
            [node(state="draining")],
            [node(kind="run")],
        ],
    )
    async def test_no_node_is_there(self, rack: Rack, others: list[dict[str, Any]]) -> None:
        if others:
            await rack.put("nodes", *others)
        await rack.execution(1)

        assert await rack.holds(1) == ["node"]
        assert "`pilot serve`" in (await rack.why(1)).next

    async def test_kept_for_a_direct_run(self, rack: Rack) -> None:
        await rack.put("nodes", node("run-77", kind="run", lease_until=NOW + SECOND))
        await rack.execution(1, reserved_for="run-77")

        assert await rack.holds(1) == []  # its own process starts it
        assert await rack.holds(1, NOW + SECOND) == ["reserved"]
        assert "direct run is gone" in (await rack.why(1, NOW + SECOND)).next

    async def test_dependencies_that_are_not_done(self, rack: Rack) -> None:
        await rack.execution(1, Status.COMPLETED)
        await rack.execution(2, Status.RUNNING)
        await rack.execution(3, Status.BLOCKED)
        await rack.put("dependencies", *[{"execution_id": 3, "depends_on": n} for n in (1, 2)])

        why = await rack.why(3)

        assert [(h.kind, h.execution) for h in why.holds] == [("dependency", 2)]
        assert "queued when 2 completed" in why.next

    async def test_a_person_has_to_answer(self, rack: Rack) -> None:
        await rack.execution(1, Status.NEEDS_HUMAN)
        await rack.execution(2, Status.NEEDS_HUMAN, reason="conflict: rebase it")
        await rack.put(
            "questions",
            {"execution_id": 1, "attempt": 1, "text": "Red\nor blue?", "options": "[]", "asked_at": NOW},
        )

        assert (await rack.why(1)).holds == (Hold("person", "Red or blue?"),)
        assert "`pilot answer 1 TEXT`" in (await rack.why(1)).next
        assert (await rack.why(2)).holds == (Hold("person", "conflict: rebase it"),)

    async def test_it_runs_or_has_ended(self, rack: Rack) -> None:
        await rack.execution(1, Status.RUNNING)
        await rack.put("attempts", attempt(1))
        await rack.execution(2, Status.FAILED)

        running = await rack.why(1)

        assert running.position is None
        assert running.next == "It runs on n1 since 2027-01-15 07:59:30 UTC (attempt 1), now: agent."
        assert "taken back" in (await rack.why(1, NOW + 61 * SECOND)).next
        assert "`pilot retry 2`" in (await rack.why(2)).next

    async def test_being_cancelled(self, rack: Rack) -> None:
        await rack.execution(1, Status.RUNNING, cancel_requested=1)

        assert "being cancelled" in (await rack.why(1)).next

    async def test_its_document(self, rack: Rack) -> None:
        await rack.execution(1, available_at=NOW + SECOND, due=0)

        document = why_document(await rack.why(1))

        assert list(document) == ["id", "status", "position", "holds", "next"]
        assert document["holds"][0]["kind"] == "time"
        assert document["holds"][0]["until"] == "2027-01-15T08:00:01.000Z"
        json.dumps(document)


async def test_the_status_document(rack: Rack) -> None:
    await rack.project(2, "web", running=1)
    await rack.execution(1, Status.RUNNING, project_id=2, project="web")
    await rack.put("attempts", attempt(1))
    await rack.execution(2)
    await rack.execution(3, available_at=NOW + SECOND, due=0)
    await rack.put("pauses", {"project_id": 2, "owner": "ada", "reason": "", "since": NOW})
    await rack.put(
        "parks",
        park("codex", reason="empty"),
        park("old", reason="over", until=NOW - 1),
    )
    await rack.put("nodes", node(), node("n2", lease_until=NOW - 1))

    status = await rack.history.status(NOW)

    assert status["counts"] == {s.value: 0 for s in Status} | {"running": 1, "queued": 2}
    assert [(r["id"], r["since"], r["phase"]) for r in status["running"]] == [(1, "2027-01-15T07:59:30.000Z", "agent")]
    assert [(p["name"], p["running"], p["queued"], p["paused"]) for p in status["projects"]] == [
        ("api", 0, 2, False),
        ("web", 1, 0, True),
    ]
    assert [(p["backend"], p["state"], p["until"], p["reason"]) for p in status["parked"]] == [
        ("codex", "for_a_person", None, "empty"),
        ("old", "half_open", None, "over"),
    ]
    assert [(n["id"], n["state"]) for n in status["nodes"]] == [("n1", "up"), ("n2", "lost")]
    assert status["sources"] == []
    json.dumps(status)


class Planned:
    """A database that also asks the engine how it would go about each statement."""

    def __init__(self, store: Store) -> None:
        self._database = store.database
        self.dialect = store.database.dialect
        self.plans: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)

    async def read(self, sql: str, params: Mapping[str, Any] | None = None) -> Rows:
        rows = await self._database.read(f"EXPLAIN QUERY PLAN {sql}", params)
        self.plans += [row[3] for row in rows]
        return await self._database.read(sql, params)


async def test_no_read_walks_the_finished_rows(rack: Rack) -> None:
    await rack.put("executions", *[execution(n, Status.COMPLETED) for n in range(1, 2000)])
    await rack.execution(3000, Status.RUNNING)
    await rack.execution(3001)
    await rack.execution(3002, available_at=NOW + 1, due=0)
    await rack.execution(3003, Status.BLOCKED)
    await rack.execution(3004, Status.NEEDS_HUMAN)
    planned = Planned(rack.store)
    history = History(planned)

    for filters in (
        {},
        {"statuses": [Status.QUEUED]},
        {"statuses": [Status.FAILED]},
        {"everything": True},
        {"project_id": 1},
        {"task_id": "T-3001"},
        {"source": "cli", "cursor": "open.3002"},
        {"everything": True, "cursor": f"ended.{NOW}.12"},
    ):
        found, _ = await history.executions(**filters, limit=10)
        await history.documents(found)
    await history.status(NOW)
    for id in range(3000, 3005):
        await history.why(id, NOW)
        await history.attempts(id)
        await history.questions(id)
        await history.output(id)
    await history.events(after=1, execution=3000)

    # Small tables and indexes of open rows may be walked from end to end; the counts walk one narrow index.
    few = [f"executions_{name}" for name in ("open_task", "ready", "later", "slot", "lease", "node")]
    few += ["outbox_owed", "outbox_due", "inbox_owed", "pulls_live", "executions_begun", "executions_reserved"]
    small = {"projects", "p", "z", "nodes", "n", "parks", "k", "pauses", "sources"}
    small |= {"q", "ended", "part", "waiting", "line"}
    walks = [plan for plan in planned.plans if plan.startswith("SCAN ")]
    assert walks
    assert "SEARCH executions USING INTEGER PRIMARY KEY (rowid<?)" not in planned.plans
    for plan in walks:
        of_few = any(f"USING INDEX {name}" in plan or f"COVERING INDEX {name}" in plan for name in few)
        counted = plan == "SCAN executions USING COVERING INDEX executions_ended"
        of_small = plan.split()[1] in small or plan.startswith("SCAN (subquery")
        assert of_few or counted or of_small or plan in HARMLESS, plan


def test_a_glance_reads_without_a_loop(tmp_path: Path) -> None:
    async def fill() -> None:
        async with open_store(f"sqlite:///{tmp_path}/pilot.db", clock=lambda: NOW) as store:
            await Rack(store).project(1, "api")
            await Rack(store).execution(1)

    with pytest.raises(StoreError, match="no database at"), glance(tmp_path / "pilot.db", lambda: NOW):
        pass
    asyncio.run(fill())

    with glance(tmp_path / "pilot.db", lambda: NOW) as history:
        found, _ = answer(history.executions())
        assert [e.id for e in found] == [1]
        assert answer(history.why(1, NOW)) is not None
        with pytest.raises(StoreError, match="readonly"):
            answer(history._database.read("DELETE FROM executions"))


def test_a_glance_at_a_damaged_file_says_what_to_do(tmp_path: Path) -> None:
    file = tmp_path / "pilot.db"
    file.write_bytes(b"not a database" * 1000)

    with pytest.raises(StoreRefused, match="Restore a backup"), glance(file, lambda: NOW):
        pass

    assert file.read_bytes() == b"not a database" * 1000


def test_what_has_to_wait_can_not_be_answered_at_once() -> None:
    with pytest.raises(TypeError, match="needs a loop"):
        answer(asyncio.sleep(0))


async def test_a_project_that_no_node_serves(rack: Rack) -> None:
    await rack.put("nodes", node(choosy=1))
    await rack.execution(1)

    why = await rack.why(1)

    assert [hold.kind for hold in why.holds] == ["unserved"]
    assert "pilot.yaml" in why.next
    await rack.put("node_projects", {"node_id": "n1", "project_id": 1})
    assert (await rack.why(1)).holds == ()


class TestWhyOfSeveralAgents:
    async def test_parked_only_when_no_node_that_serves_it_has_another_account(self, rack: Rack) -> None:
        await rack.put("nodes", node(), node("n2"), node("n3", lease_until=NOW - 1), node("n4", choosy=1))
        for name, account in (("n1", "spent"), ("n2", "fresh")):
            await rack.put("node_accounts", account_row(name, account))
        await rack.execution(1)
        await rack.put("parks", park("claude-code", account="spent"))

        assert await rack.holds(1) == []
        await rack.put("parks", park("claude-code", account="fresh", until=NOW + 5))

        assert await rack.holds(1) == ["parked", "parked"]
        assert (await rack.why(1)).holds[0].until == NOW + 5  # what opens first stands first

    async def test_half_open_holds_nobody_and_its_probe_the_others(self, rack: Rack) -> None:
        await rack.project(2, "web")
        await rack.put("nodes", node())
        await rack.execution(1, project_id=2, project="web")
        await rack.execution(2)
        await rack.put("parks", park("claude-code", until=NOW - 1, failure="quota", reason="spent"))
        assert await rack.holds(2) == []

        await rack.execution(3, Status.RUNNING, project_id=2, project="web", fence=7)
        await rack.store.database.write(statement("UPDATE parks SET probe_id = 3, probe_fence = 7"), None)

        why = await rack.why(2)
        assert why.holds == (Hold("parked", "claude-code is being tried by 3, after quota: spent", 3),)
        assert "once 3 has an answer" in why.next
        assert (await rack.history.status(NOW))["parked"][0]["probe"] == 3
        await rack.store.database.write(statement("UPDATE parks SET probe_fence = 6"), None)
        assert await rack.holds(2) == []

    async def test_a_fallback_that_is_free_leaves_nothing_to_wait_for(self, rack: Rack) -> None:
        await rack.put("nodes", node())
        await rack.execution(1, fallback='["codex"]')
        await rack.execution(2)
        await rack.execution(3, backend="goose")
        await rack.put("parks", park("claude-code", until=NOW + 9))

        assert await rack.holds(1) == []
        assert (await rack.why(3)).position == 2  # 1 goes before it, 2 does not
        await rack.put("parks", park("codex"))

        why = await rack.why(1)
        assert [hold.detail.split()[0] for hold in why.holds] == ["claude-code", "codex"]
        assert "`pilot backend unpark claude-code`" in why.next
        assert (await rack.why(3)).position == 1

    async def test_what_is_left_to_remote_workers_waits_for_one(self, rack: Rack) -> None:
        await rack.execution(1, external=1)
        await rack.execution(2)

        why = await rack.why(1)

        assert why.holds == (Hold("external", "left to a worker that claims over HTTP"),)
        assert "worker claims it" in why.next
        assert (await rack.why(2)).position == 1


async def test_what_was_booked_for_a_session(rack: Rack) -> None:
    await rack.execution(1, Status.COMPLETED)
    await rack.execution(2, Status.RUNNING)
    ended: dict[str, Any] = {"finished_at": NOW, "session_id": "s"}
    await rack.put(
        "attempts",
        attempt(1, 1, **ended, input_tokens=5, output_tokens=1, cost_usd=0.5),
        attempt(1, 2, **ended, input_tokens=7, output_tokens=None, cost_usd=None),
        attempt(2, 1, session_id="s", finished_at=None, input_tokens=100, output_tokens=100, cost_usd=100.0),
    )

    assert await rack.history.used("s") == Usage(12, 1, 0.5)
    assert await rack.history.used("another") == Usage()
