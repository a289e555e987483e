"""How an execution stands, in one snapshot, for whoever tells people."""

from __future__ import annotations

import json
from typing import Any

from pilot.domain.delivery import Asked, Report
from pilot.domain.errors import NotFound
from pilot.domain.events import EventType
from pilot.domain.execution import Status
from pilot.domain.outcome import GateResult
from pilot.store.database import Database
from pilot.store.holding import pull_holds
from pilot.store.pulls import PULL_SELECT, to_pull
from pilot.store.rows import EXECUTION_COLUMNS, EXECUTION_SELECT, to_execution

REPORTED = (
    EventType.QUEUED, EventType.STARTED, EventType.RETRIED, EventType.ASKED, EventType.ANSWERED, EventType.COMPLETED,
    EventType.FAILED, EventType.CANCELLED, EventType.PULL_OPENED, EventType.PULL_CHECKS, EventType.PULL_MERGED,
    EventType.PULL_CLOSED, EventType.PULL_REPAIRED, EventType.PULL_GIVEN_UP, EventType.DELIVERY_FAILED,
)  # fmt: skip
"""What a ticket is told of; the trigger `events_report` has the same."""

_TYPES = ", ".join(f"'{type}'" for type in REPORTED)
# Who goes first: what runs in its project, and what is due and stands before it.
_AHEAD = """
    CASE WHEN executions.status = 'queued' THEN
      (SELECT count(*) FROM executions e WHERE e.project_id = executions.project_id AND e.status = 'running'
         AND e.slot >= 0)
      + (SELECT count(*) FROM executions e WHERE e.project_id = executions.project_id AND e.status = 'queued'
         AND e.due = 1 AND (e.priority, e.id) < (executions.priority, executions.id)) END"""
_OTHERS = "v.id, v.type, v.data, a.summary, a.gates, a.tree"
_ASKED = "q.id, q.text, q.options, q.preset, q.asked_at, q.answer, q.answered_by, q.answered_at"
_REPORT = f"""
    SELECT {EXECUTION_SELECT}, {_AHEAD}, {_OTHERS}, {_ASKED}, {PULL_SELECT} FROM executions
    LEFT JOIN events v ON v.id = (SELECT max(x.id) FROM events x
      WHERE x.execution_id = executions.id AND x.type IN ({_TYPES}))
    LEFT JOIN attempts a ON a.execution_id = executions.id AND a.number = (SELECT max(t.number) FROM attempts t
      WHERE t.execution_id = executions.id AND t.finished_at IS NOT NULL)
    LEFT JOIN questions q ON q.id = (SELECT max(x.id) FROM questions x WHERE x.execution_id = executions.id)
    LEFT JOIN pulls ON pulls.id = (SELECT max(m.pull_id) FROM pull_executions m WHERE m.execution_id = executions.id)
    WHERE executions.id = :id"""
_SENT = """
    SELECT kind, payload, result FROM outbox WHERE execution_id = :id AND delivered_at IS NOT NULL
    AND result IS NOT NULL ORDER BY delivered_at, id"""


async def report(database: Database, id: int) -> Report:
    """See `Outbox.report`."""
    rows = await database.read(_REPORT, {"id": id})
    if not rows:
        raise NotFound(f"no execution {id}")
    row, wide = rows[0], len(EXECUTION_COLUMNS)
    execution, (ahead, event, type, data, summary, gates, tree) = to_execution(row[:wide]), row[wide : wide + 7]
    asked, pull = row[wide + 7 : wide + 15], row[wide + 15 :]
    queued = execution.status is Status.QUEUED
    holds = await pull_holds(database, execution, database.clock()) if queued else []
    return Report(
        execution=execution,
        origin=execution.origin,
        event=event or 0,
        type=type or "",
        data=json.loads(data or "{}"),
        ahead=ahead if queued else None,
        holds=tuple(hold.detail for hold in holds),
        summary=summary or "",
        gates=tuple(GateResult(**gate) for gate in json.loads(gates or "[]")),
        tree=tree,
        question=None if asked[0] is None else _to_asked(asked),
        pull=None if pull[0] is None else to_pull(pull),
        sent=_sent(await database.read(_SENT, {"id": id})),
    )


def _to_asked(row: tuple[Any, ...]) -> Asked:
    id, text, options, preset, asked_at, answer, answered_by, answered_at = row
    return Asked(
        id=id, text=text, options=tuple(json.loads(options)), default=preset, asked_at=asked_at, answer=answer,
        answered_by=answered_by, answered_at=answered_at,
    )  # fmt: skip


def _sent(rows: list[tuple[Any, ...]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for kind, payload, result in rows:
        target = json.loads(payload).get("target")
        name = kind if target is None else str(target)
        found[name] = {**found.get(name, {}), **json.loads(result)}
    return found
