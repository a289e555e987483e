"""The auditor: what must be true of a store at any moment, read with nothing but SQL.

It knows nothing of how the queue does its work, so that a mistake there can't hide here.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field, fields
from typing import Any

from pilot.domain.execution import TRANSITIONS, Execution, Status
from pilot.store.database import Database, Row

_OPEN = "('blocked', 'queued', 'running', 'needs_human')"

# Each finds the rows that break a promise; the text is filled with their columns.
_PROMISES: tuple[tuple[str, str], ...] = (
    (
        "slot {1} of project {0} runs {2} executions",
        "SELECT project_id, slot, count(*) FROM executions WHERE status = 'running' GROUP BY 1, 2 HAVING count(*) > 1",
    ),
    (
        "project {0} says that {1} run, but {2} do",
        "SELECT p.id, p.running, count(e.id) FROM projects p "
        "LEFT JOIN executions e ON e.project_id = p.id AND e.status = 'running' "
        "GROUP BY p.id, p.running HAVING p.running <> count(e.id)",
    ),
    (
        "project {0} runs {1}, more than its {2}",
        "SELECT p.id, count(*), p.max_running FROM executions e JOIN projects p ON p.id = e.project_id "
        "WHERE e.status = 'running' GROUP BY p.id, p.max_running HAVING count(*) > p.max_running",
    ),
    (
        "task {1} of project {0} is open {2} times",
        f"SELECT project_id, task_id, count(*) FROM executions WHERE status IN {_OPEN} "
        "GROUP BY 1, 2 HAVING count(*) > 1",
    ),
    (
        "idempotency key {1} of project {0} was used {2} times",
        "SELECT project_id, idempotency_key, count(*) FROM executions WHERE idempotency_key IS NOT NULL "
        "GROUP BY 1, 2 HAVING count(*) > 1",
    ),
    (
        "execution {0} is {1} and waits for {2}, but {3} have not completed",
        "SELECT e.id, e.status, e.deps_left, count(p.id) FROM executions e "
        "LEFT JOIN dependencies d ON d.execution_id = e.id "
        "LEFT JOIN executions p ON p.id = d.depends_on AND p.status <> 'completed' "
        "WHERE e.status <> 'cancelled' GROUP BY e.id, e.status, e.deps_left HAVING e.deps_left <> count(p.id)",
    ),
    (
        "execution {0} is {1} with {2} to wait for",
        "SELECT id, status, deps_left FROM executions "
        "WHERE (status = 'blocked') <> (deps_left > 0) AND status <> 'cancelled'",
    ),
    (
        "execution {0} waits for {1}, which is {2}",
        "SELECT e.id, p.id, p.status FROM executions e JOIN dependencies d ON d.execution_id = e.id "
        "JOIN executions p ON p.id = d.depends_on WHERE e.status = 'blocked' AND p.status IN ('failed', 'cancelled')",
    ),
    (
        "execution {0} is waited for, and does not know",
        "SELECT DISTINCT p.id FROM dependencies d JOIN executions p ON p.id = d.depends_on "
        "JOIN executions e ON e.id = d.execution_id "
        "WHERE p.has_dependents = 0 AND p.finished_at IS NULL AND e.status = 'blocked'",
    ),
    (
        "execution {0} is {1}, but its end is {2}",
        "SELECT id, status, finished_at FROM executions "
        "WHERE (status IN ('completed', 'failed', 'cancelled')) <> (finished_at IS NOT NULL)",
    ),
    (
        "execution {0} is {1}, but has slot {2}, node {3}, lease {4}",
        "SELECT id, status, slot, node, lease_until FROM executions WHERE (status = 'running') <> (slot IS NOT NULL) "
        "OR (status = 'running') <> (node IS NOT NULL) OR (status = 'running') <> (lease_until IS NOT NULL)",
    ),
    (
        "execution {0} is {1}, and somebody still wants it ended",
        "SELECT id, status FROM executions WHERE cancel_requested = 1 AND status <> 'running'",
    ),
    (
        "execution {0} is {1}, but in the index of what may be claimed",
        "SELECT id, status FROM executions WHERE due = 1 AND status NOT IN ('queued', 'running')",
    ),
    (
        "execution {0} is {1} without a reason",
        "SELECT id, status FROM executions WHERE status IN ('needs_human', 'failed', 'cancelled') AND reason IS NULL",
    ),
    (
        "execution {0} had {1} attempts, but {2} rows up to number {3}",
        "SELECT e.id, e.attempt, count(a.number), max(a.number) FROM executions e "
        "LEFT JOIN attempts a ON a.execution_id = e.id GROUP BY e.id, e.attempt "
        "HAVING e.attempt <> count(a.number) OR e.attempt <> coalesce(max(a.number), 0)",
    ),
    (
        "attempt {1} of execution {0} is open: {2}; the execution is {3}",
        "SELECT e.id, a.number, a.finished_at IS NULL, e.status FROM executions e "
        "JOIN attempts a ON a.execution_id = e.id "
        "WHERE (a.finished_at IS NULL) <> (e.status = 'running' AND a.number = e.attempt)",
    ),
    (
        "execution {0} has fence {1}, its attempt {2}",
        "SELECT e.id, e.fence, a.fence FROM executions e "
        "JOIN attempts a ON a.execution_id = e.id AND a.number = e.attempt WHERE a.fence <> e.fence",
    ),
    (
        "fence {1} of project {0} was given out {2} times",
        "SELECT e.project_id, a.fence, count(*) FROM attempts a JOIN executions e ON e.id = a.execution_id "
        "GROUP BY 1, 2 HAVING count(*) > 1",
    ),
    (
        "project {0} gave out fence {2}, beyond its own {1}",
        "SELECT p.id, p.fence, max(a.fence) FROM projects p JOIN executions e ON e.project_id = p.id "
        "JOIN attempts a ON a.execution_id = e.id GROUP BY p.id, p.fence HAVING max(a.fence) > p.fence",
    ),
    (
        "execution {0}: attempt {1} has fence {2}, the one before {3}",
        "SELECT a.execution_id, a.number, a.fence, b.fence FROM attempts a "
        "JOIN attempts b ON b.execution_id = a.execution_id AND b.number = a.number - 1 WHERE a.fence <= b.fence",
    ),
    (
        "execution {0} is {1}, but asks {2} questions",
        "SELECT e.id, e.status, count(*) FROM executions e "
        "JOIN questions q ON q.execution_id = e.id AND q.answered_at IS NULL "
        "GROUP BY e.id, e.status HAVING e.status <> 'needs_human' OR count(*) > 1",
    ),
    (
        "park {0} of account {1} is tried by {2}, which runs with {3} for {4}",
        "SELECT k.backend, k.account, e.id, e.backend, a.account FROM parks k "
        "JOIN executions e ON e.id = k.probe_id AND e.fence = k.probe_fence AND e.status = 'running' "
        "JOIN attempts a ON a.execution_id = e.id AND a.number = e.attempt "
        "WHERE e.backend <> k.backend OR k.account NOT IN ('', a.account)",
    ),
    (
        "day {0}: attempts set {1} aside, the books have {2}",
        "SELECT a.started_at / 86400000, sum(a.reserved), max(coalesce(s.reserved, 0)) FROM attempts a "
        "LEFT JOIN spending s ON s.day = a.started_at / 86400000 WHERE a.finished_at IS NULL OR a.cost_usd IS NULL "
        "GROUP BY 1 HAVING sum(a.reserved) > max(coalesce(s.reserved, 0))",
    ),
    (
        "output of execution {0}, attempt {1}: {2} pieces up to number {3}",
        "SELECT execution_id, attempt, count(*), max(seq) FROM output GROUP BY 1, 2 HAVING count(*) <> max(seq)",
    ),
)

# What completes by itself, what came with results, and plans.
_PROMISES += (
    (
        "execution {0} is queued, though it is a note ({1}) or {2} has made it",
        "SELECT e.id, e.instant, r.execution_id FROM executions e "
        "LEFT JOIN results r ON r.project_id = e.project_id AND r.key = e.dedupe "
        "WHERE e.status = 'queued' AND (e.instant = 1 OR r.execution_id IS NOT NULL)",
    ),
    (
        "{0} is said to be made by execution {1}, which is {2} and makes {3}",
        "SELECT r.key, e.id, e.status, e.dedupe FROM results r JOIN executions e ON e.id = r.execution_id "
        "WHERE e.status <> 'completed' OR e.instant = 1 OR e.project_id <> r.project_id "
        "OR coalesce(e.dedupe, '') <> r.key",
    ),
    (
        "execution {0} was completed by nobody, and makes {1}, which is not known",
        "SELECT e.id, e.dedupe FROM executions e WHERE e.status = 'completed' AND e.instant = 0 AND e.attempt = 0 "
        "AND e.dedupe IS NULL",
    ),
    (
        "execution {0} waited for {1}, and was completed before it",
        "SELECT e.id, p.id FROM executions e JOIN dependencies d ON d.execution_id = e.id "
        "JOIN executions p ON p.id = d.depends_on WHERE e.status = 'completed' AND "
        "(p.status <> 'completed' OR p.finished_at > e.finished_at)",
    ),
    (
        "artifact {0} belongs to nobody, or has not {1} bytes",
        "SELECT a.sha256, a.size FROM artifacts a WHERE a.size <> length(a.content) "
        "OR NOT EXISTS (SELECT 1 FROM artifact_uses u WHERE u.sha256 = a.sha256)",
    ),
    (
        "execution {0} was cancelled because of {1}, which it does not wait for, or which is {2}",
        "SELECT e.id, e.because, p.status FROM executions e LEFT JOIN executions p ON p.id = e.because "
        "WHERE e.because IS NOT NULL AND p.id IS NOT NULL AND (e.status <> 'cancelled' "
        "OR p.status NOT IN ('failed', 'cancelled') OR NOT EXISTS "
        "(SELECT 1 FROM dependencies d WHERE d.execution_id = e.id AND d.depends_on = p.id))",
    ),
    (
        "execution {0}, a retry of {1}, is of run {2}, and that one of {3}",
        "SELECT e.id, p.id, e.plan_run, p.plan_run FROM executions e JOIN executions p ON p.id = e.parent "
        "WHERE e.task_id = p.task_id AND e.plan_run IS NOT NULL AND p.plan_run IS NOT NULL "
        "AND e.plan_run <> p.plan_run",
    ),
)

# What is owed to the outside.
_PROMISES += (
    (
        "event {0} ({1}) of execution {2}, which has a ticket, is owed to nobody",
        "SELECT v.id, v.type, e.id FROM events v JOIN executions e ON e.id = v.execution_id "
        "WHERE e.origin IS NOT NULL AND v.type IN ('execution.queued', 'execution.started', 'execution.requeued', "
        "'execution.asked', 'execution.answered', 'execution.completed', 'execution.failed', 'execution.cancelled') "
        "AND NOT EXISTS (SELECT 1 FROM outbox o WHERE o.kind = 'report' AND o.event_id = v.id)",
    ),
    (
        "a report of execution {0}, which has no ticket, is owed",
        "SELECT e.id FROM outbox o JOIN executions e ON e.id = o.execution_id "
        "WHERE o.kind = 'report' AND e.origin IS NULL",
    ),
    (
        "lane {0} is worked on at {1} effects",
        "SELECT lane, count(*) FROM outbox WHERE delivered_at IS NULL AND claimed_by IS NOT NULL AND kind <> 'report' "
        "GROUP BY lane HAVING count(*) > 1",
    ),
    (
        "branch {1} of project {0} has {2} live pull requests",
        "SELECT project_id, branch, count(*) FROM pulls WHERE state IN ('owed', 'open') "
        "GROUP BY 1, 2 HAVING count(*) > 1",
    ),
    (
        "pull request {0} is {1}, but its end is {2}",
        "SELECT id, state, ended_at FROM pulls "
        "WHERE (state IN ('merged', 'closed', 'failed')) <> (ended_at IS NOT NULL)",
    ),
    (
        "pull request {0} is {1}, and the delivery of execution {2} is {3}",
        "SELECT l.id, l.state, e.id, e.delivery FROM pulls l JOIN pull_executions m ON m.pull_id = l.id "
        "JOIN executions e ON e.id = m.execution_id WHERE l.state IN ('merged', 'closed') AND e.delivery <> l.state "
        "AND NOT EXISTS (SELECT 1 FROM pull_executions x WHERE x.execution_id = e.id AND x.pull_id > l.id)",
    ),
    (
        "pull request {0} is of execution {1}, and does not hold its work",
        "SELECT l.id, l.execution_id FROM pulls l WHERE NOT EXISTS "
        "(SELECT 1 FROM pull_executions m WHERE m.pull_id = l.id AND m.execution_id = l.execution_id)",
    ),
    (
        "pull request {0} is owed, and nobody is to publish it",
        "SELECT l.id FROM pulls l WHERE l.state = 'owed' AND NOT EXISTS (SELECT 1 FROM outbox o "
        "WHERE o.kind = 'publish' AND o.execution_id = l.execution_id)",
    ),
)

# Before its first event an execution is nothing; what `cancel` asks and a loss tells change no state.
_AFTER = {
    "execution.started": Status.RUNNING,
    "execution.requeued": Status.QUEUED,
    "execution.unblocked": Status.QUEUED,
    "execution.asked": Status.NEEDS_HUMAN,
    "execution.answered": Status.QUEUED,
    "execution.completed": Status.COMPLETED,
    "execution.failed": Status.FAILED,
    "execution.cancelled": Status.CANCELLED,
}


# How far an ended one's result comes is seen later; nothing else of it changes.
_LASTING = ", ".join(f.name for f in fields(Execution) if f.name not in ("delivery", "pr_url", "checks"))


@dataclass
class Past:
    """What earlier audits of the same store saw, and time must not undo."""

    final: dict[int, Row] = field(default_factory=dict)
    attempts: dict[int, int] = field(default_factory=dict)
    fences: dict[int, int] = field(default_factory=dict)
    pulls: dict[int, Row] = field(default_factory=dict)
    delivered: dict[int, Row] = field(default_factory=dict)


async def audit(database: Database, past: Past | None = None) -> list[str]:
    """Every broken promise in words; none is an empty list. With `past`, also what may never change again."""
    answers = await asyncio.gather(*(database.read(sql) for _, sql in _PROMISES))
    found = [words.format(*row) for (words, _), rows in zip(_PROMISES, answers, strict=True) for row in rows]
    found += [line async for line in _events(database)]
    if past is not None:
        found += [line async for line in _against(database, past)]
    return found


async def _events(database: Database) -> AsyncIterator[str]:
    told: dict[int, Status] = {}
    held: set[int] = set()
    rows = await database.read("SELECT execution_id, type, data FROM events WHERE execution_id IS NOT NULL ORDER BY id")
    for id, type, data in rows:
        before = told.get(id)
        if type == "execution.queued":
            if before is not None:
                yield f"execution {id} was queued twice"
            told[id] = Status(json.loads(data)["status"])
            if told[id] is Status.NEEDS_HUMAN:  # held from its beginning: what it asks comes next
                held.add(id)
        elif type == "execution.asked" and id in held:
            held.remove(id)
        elif type in _AFTER:
            after = _AFTER[type]
            if before is None or id in held or after not in TRANSITIONS[before]:
                yield f"execution {id} was {before} and became {after}"
            told[id] = after
    for id, status in await database.read("SELECT id, status FROM executions"):
        if told.get(id) != status:
            yield f"execution {id} is {status}; its events say {told.get(id)}"


async def _against(database: Database, past: Past) -> AsyncIterator[str]:
    rows = await database.read(f"SELECT {_LASTING} FROM executions WHERE finished_at IS NOT NULL")
    final: dict[int, Row] = {row[0]: row for row in rows}
    for id, row in past.final.items():
        if id in final and final[id] != row:
            yield f"execution {id} had ended and has changed: {_changes(row, final[id])}"
    open_again = await database.read(f"SELECT id, status FROM executions WHERE status IN {_OPEN}")
    for id, status in open_again:
        if id in past.final:
            yield f"execution {id} had ended and is {status}"
    past.final = final
    for what, kept, sql in (
        ("pull request", past.pulls, "SELECT id, state, ended_at, number FROM pulls WHERE ended_at IS NOT NULL"),
        ("effect", past.delivered, "SELECT id, delivered_at, result FROM outbox WHERE delivered_at IS NOT NULL"),
    ):
        for row in await database.read(sql):
            if kept.setdefault(row[0], row) != row:
                yield f"{what} {row[0]} had ended and has changed: {_changes(kept[row[0]], row)}"
    for id, attempt in await database.read("SELECT id, attempt FROM executions"):
        if attempt < past.attempts.get(id, 0):
            yield f"execution {id} had {past.attempts[id]} attempts and has {attempt}"
        past.attempts[id] = attempt
    for id, fence in await database.read("SELECT id, fence FROM projects"):
        if fence < past.fences.get(id, 0):
            yield f"project {id} had fence {past.fences[id]} and has {fence}"
        past.fences[id] = fence


def _changes(before: Iterable[Any], after: Iterable[Any]) -> str:
    return ", ".join(f"{a!r} -> {b!r}" for a, b in zip(before, after, strict=True) if a != b)
