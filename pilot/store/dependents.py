"""What waits for an execution when it ends: queued once its last parent completed, cancelled with a failed one."""

from __future__ import annotations

from collections.abc import Generator, Mapping

from pilot.domain.events import EventType
from pilot.domain.execution import Status
from pilot.store.database import Dialect, Notify, Rows, Statement, Step
from pilot.store.records import Table, event, events_statement, ids, ids_of

_CANCELLED = Table(id="bigint", reason="text")


class Dependents:
    """Both directions, set-based: a step of a plan of thousands costs a few statements."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._release = f"""
            UPDATE executions SET deps_left = deps_left - d.n,
              status = CASE WHEN deps_left - d.n <= 0 THEN 'queued' ELSE 'blocked' END,
              due = CASE WHEN deps_left - d.n <= 0 AND available_at <= :now THEN 1 ELSE 0 END
            FROM (SELECT execution_id, count(*) AS n FROM dependencies
                  WHERE depends_on IN {ids_of(dialect)} GROUP BY execution_id) AS d
            WHERE executions.id = d.execution_id AND executions.status = 'blocked'
            RETURNING executions.id, executions.project_id, executions.status"""
        self._children = f"""
            SELECT execution_id, min(depends_on) FROM dependencies
            WHERE depends_on IN {ids_of(dialect)} GROUP BY execution_id"""
        self._cancel = f"""
            UPDATE executions SET status = 'cancelled', reason = c.reason, finished_at = :now, due = 0
            FROM {_CANCELLED.of(dialect, "c")}
            WHERE executions.id = c.id AND executions.status = 'blocked'
            RETURNING executions.id, executions.project_id, executions.has_dependents, executions.reason"""

    def follow(self, ended: Mapping[int, Status], now: int) -> Generator[Step, Rows, None]:
        """Let what depends on the ended executions go, or end it."""
        completed = [id for id, status in ended.items() if status is Status.COMPLETED]
        if completed:
            rows = yield Statement(self._release, {"now": now, "ids": ids(completed)})
            free = [(id, project) for id, project, status in rows if status == "queued"]
            if free:
                yield events_statement(
                    self._dialect, now, [event(EventType.UNBLOCKED, id, project) for id, project in free]
                )
                yield Notify({str(project) for _, project in free})
        level: Mapping[int, str] = {id: str(status) for id, status in ended.items() if status is not Status.COMPLETED}
        while level:
            level = yield from self._cancel_children(level, now)

    def _cancel_children(self, level: Mapping[int, str], now: int) -> Generator[Step, Rows, dict[int, str]]:
        children = yield Statement(self._children, {"ids": ids(level)})
        reasons = [
            (child, f"execution {parent}, which it waits for, {_ended(level[parent])}") for child, parent in children
        ]
        if not reasons:
            return {}
        rows = yield Statement(self._cancel, {"now": now, "items": _CANCELLED.rows(reasons)})
        if rows:
            yield events_statement(
                self._dialect,
                now,
                [event(EventType.CANCELLED, id, project, reason=reason) for id, project, _, reason in rows],
            )
        return {id: "cancelled" for id, _, dependents, _ in rows if dependents}


def _ended(status: str) -> str:
    return "failed" if status == "failed" else "was cancelled"
