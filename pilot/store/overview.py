"""The document of `pilot status`: what there is, what runs, what stands still."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pilot.domain.execution import Status
from pilot.domain.ports import Document
from pilot.store.allowance import budget_document, parked
from pilot.store.database import Database
from pilot.store.documents import rfc3339
from pilot.store.owing import inbox_document, outbox_document, source_documents
from pilot.store.stats import stats


async def overview(database: Database, counts: Mapping[Status, int], now: int) -> Document:
    """Counts by status, running executions, projects, parked backends, money and nodes; `now` is UTC ms."""
    return {
        "counts": {str(status): count for status, count in counts.items()},
        "running": await _running(database),
        "projects": await project_documents(database),
        "parked": [park.document() for park in await parked(database, now)],
        "budget": await budget_document(database, now),
        "sources": await source_documents(database),
        "nodes": await node_documents(database, now),
        "paused": await _paused(database),
        "outbox": await outbox_document(database),
        "inbox": await inbox_document(database),
        "stats": await stats(database, counts, now),
    }


async def _running(database: Database) -> list[Document]:
    rows = await database.read(
        "SELECT e.id, e.task_id, e.title, e.project, e.slot, e.backend, e.model, e.attempt, a.phase, e.node, "
        "e.cancel_requested, e.lease_until, a.started_at FROM executions e LEFT JOIN attempts a "
        "ON a.execution_id = e.id AND a.number = e.attempt WHERE e.status = 'running' "
        "ORDER BY a.started_at, e.id"
    )
    names = ("id", "task_id", "title", "project", "slot", "backend", "model", "attempt", "phase", "node")
    return [
        dict(zip(names, row[:10], strict=True))
        | {
            "cancel_requested": bool(row[10]),
            "lease_until": rfc3339(row[11]),
            "since": rfc3339(row[12]),
        }
        for row in rows
    ]


async def project_documents(database: Database) -> list[Document]:
    """Every project, by name, with what runs and waits there."""
    rows = await database.read(
        "SELECT p.id, p.name, p.path, p.running, p.max_running, coalesce(q.queued, 0) FROM projects p "
        # The literals are those of the two partial indexes, which hold queued rows and nothing else.
        "LEFT JOIN (SELECT project_id, count(*) AS queued FROM ("
        "SELECT project_id FROM executions WHERE status = 'queued' AND due = 1 UNION ALL "
        "SELECT project_id FROM executions WHERE status = 'queued' AND due = 0) AS waiting "
        "GROUP BY project_id) AS q ON q.project_id = p.id ORDER BY p.name, p.id"
    )
    pauses = await database.read("SELECT project_id FROM pauses")
    paused = {row[0] for row in pauses}
    return [
        {
            "name": name,
            "path": path,
            "running": running,
            "max_running": most,
            "queued": queued,
            "paused": 0 in paused or id in paused,
        }
        for id, name, path, running, most, queued in rows
    ]


async def node_documents(database: Database, now: int) -> list[Document]:
    """Every node that is known, the oldest first; `now` is UTC ms."""
    rows = await database.read(
        "SELECT id, kind, host, place, pid, version, state, started_at, seen_at, lease_until, max_running, "
        "(SELECT count(*) FROM executions e WHERE e.status = 'running' AND e.node = n.id) FROM nodes n "
        "ORDER BY started_at, id"
    )
    nodes: list[Document] = []
    for id, kind, host, place, pid, version, state, started_at, seen_at, lease_until, most, running in rows:
        node: dict[str, Any] = {"id": id, "kind": kind, "host": host, "place": place or None, "pid": pid}
        node["version"] = version
        node["state"] = state if lease_until > now else "lost"
        node |= {"running": running, "max_running": most or None}
        nodes.append(node | {"started_at": rfc3339(started_at), "seen_at": rfc3339(seen_at)})
    return nodes


async def _paused(database: Database) -> list[Document]:
    rows = await database.read(
        "SELECT p.name, z.owner, z.reason, z.since FROM pauses z LEFT JOIN projects p ON p.id = z.project_id "
        "ORDER BY z.project_id, z.owner"
    )
    return [
        {"project": name, "owner": owner, "reason": reason, "since": rfc3339(since)}
        for name, owner, reason, since in rows
    ]
