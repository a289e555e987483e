"""How the queue does: what waits for how long, what gets done, and what fails of what.

Fast beside any number of finished rows: of those only the last day is looked at, by an index that has all it takes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pilot.domain.execution import Status
from pilot.domain.ports import Document
from pilot.domain.task import Kind
from pilot.store.database import Database, Rows
from pilot.store.documents import rfc3339

HOUR = 60 * 60 * 1000
DAY = 24 * HOUR
SAMPLE = 1000
"""Completed executions, the last of the day, whose run times are looked at."""

# The literals are those of partial indexes. A row that is due, but not marked so yet, has waited nevertheless.
_OPEN = """
    SELECT kind, 'queued' AS status, count(*), min(available_at) FROM executions
      WHERE status = 'queued' AND due = 1 GROUP BY kind
    UNION ALL
    SELECT kind, 'queued', count(*), min(CASE WHEN available_at <= :now THEN available_at END) FROM executions
      WHERE status = 'queued' AND due = 0 GROUP BY kind
    UNION ALL
    SELECT kind, 'running', count(*), NULL FROM executions WHERE status = 'running' GROUP BY kind
    UNION ALL
    SELECT kind, status, count(*), NULL FROM executions WHERE status IN ('blocked', 'needs_human')
      GROUP BY status, kind"""
_ENDED = """
    SELECT status, kind, failure_class, count(*), sum(CASE WHEN finished_at > :hour THEN 1 ELSE 0 END)
    FROM executions WHERE status IN ('completed', 'failed') AND finished_at > :day
    GROUP BY status, kind, failure_class"""
_TIMES = """
    SELECT finished_at - started_at FROM executions
    WHERE status = 'completed' AND finished_at > :day ORDER BY finished_at DESC LIMIT :most"""


async def stats(database: Database, counts: Mapping[Status, int], now: int) -> Document:
    """The document of `/api/v1/stats`; `now` is UTC ms. Times in it are seconds, of what is not known null."""
    params = {"now": now, "hour": now - HOUR, "day": now - DAY}
    waiting = await database.read(_OPEN, params)
    ended = await database.read(_ENDED, params)
    times = await database.read(_TIMES, {**params, "most": SAMPLE})
    oldest = [at for *_, at in waiting if at is not None]
    completed, failed = _ended(ended, "completed"), _ended(ended, "failed")
    return {
        "at": rfc3339(now),
        "counts": {str(status): count for status, count in counts.items()},
        "oldest_wait_seconds": _age(min(oldest), now) if oldest else None,
        "kinds": _kinds(waiting, ended, now),
        "throughput": {
            "last_hour": {"completed": completed[1], "failed": failed[1]},
            "last_24h": {"completed": completed[0], "failed": failed[0]},
        },
        "failures": {
            "rate": failed[0] / (completed[0] + failed[0]) if completed[0] + failed[0] else None,
            "by_class": _by_class(ended),
        },
        "run_time": _run_time([ms / 1000 for (ms,) in times if ms is not None]),
    }


def _ended(rows: Rows, status: str) -> tuple[int, int]:
    """Of the last day, of the last hour."""
    mine = [row for row in rows if row[0] == status]
    return sum(row[3] for row in mine), sum(row[4] for row in mine)


def _by_class(rows: Rows) -> dict[str, int]:
    found: dict[str, int] = {}
    for status, _, failure, count, _ in rows:
        if status == "failed":
            found[failure or "unknown"] = found.get(failure or "unknown", 0) + count
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def _kinds(waiting: Rows, ended: Rows, now: int) -> dict[str, Document]:
    found: dict[str, Document] = {}
    names = dict.fromkeys([*map(str, Kind), *(row[0] for row in waiting), *(row[1] for row in ended)])
    for name in names:
        mine = [row for row in waiting if row[0] == name]
        since = [at for *_, at in mine if at is not None]
        found[name] = {
            **{s: sum(row[2] for row in mine if row[1] == s) for s in ("blocked", "queued", "running", "needs_human")},
            "oldest_wait_seconds": _age(min(since), now) if since else None,
            "completed_24h": sum(row[3] for row in ended if row[1] == name and row[0] == "completed"),
            "failed_24h": sum(row[3] for row in ended if row[1] == name and row[0] == "failed"),
        }
    return found


def _run_time(seconds: Sequence[float]) -> Document:
    """From the first claim to the end, of the last completed ones of the day."""
    ordered = sorted(seconds)
    if not ordered:
        return {"of": 0, "average_seconds": None, "p50_seconds": None, "p95_seconds": None}
    return {
        "of": len(ordered),
        "average_seconds": round(sum(ordered) / len(ordered), 3),
        "p50_seconds": _rank(ordered, 50),
        "p95_seconds": _rank(ordered, 95),
    }


def _rank(ordered: Sequence[float], percent: int) -> float:
    return ordered[-(-len(ordered) * percent // 100) - 1]


def _age(at: int, now: int) -> float:
    return max(0, now - at) / 1000
