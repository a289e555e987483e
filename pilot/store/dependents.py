"""What waits for an execution when it ends: queued once its last parent completed, cancelled with a failed one.

What nobody has to do completes then by itself, and lets go what waits for it in turn.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping

from pilot.domain.events import EventType
from pilot.domain.execution import Status
from pilot.store.database import Dialect, Notify, Rows, Statement, Step
from pilot.store.instant import Instant
from pilot.store.records import OWED, Table, event, events_statement, ids, ids_of

_CANCELLED = Table(id="bigint", reason="text", because="bigint")


class Dependents:
    """Both directions, set-based: a step of a plan of thousands costs a few statements.

    What starts from another's branch is to be done where that one is.
    """

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._instant = Instant(dialect)
        self._release = f"""
            UPDATE executions SET deps_left = deps_left - d.n,
              status = CASE WHEN deps_left - d.n <= 0 THEN 'queued' ELSE 'blocked' END,
              due = CASE WHEN deps_left - d.n <= 0 AND available_at <= :now THEN 1 ELSE 0 END,
              place = coalesce(executions.place, d.place)
            FROM (SELECT x.execution_id, count(*) AS n, max(CASE WHEN q.head_sha IS NOT NULL THEN q.place END) AS place
                  FROM dependencies x JOIN executions q ON q.id = x.depends_on
                  WHERE x.depends_on IN {ids_of(dialect)} GROUP BY x.execution_id) AS d
            WHERE executions.id = d.execution_id AND executions.status || '' = 'blocked'
            RETURNING executions.id, executions.project_id, executions.status,
              executions.instant = 1 OR executions.dedupe IS NOT NULL"""
        self._children = f"""
            SELECT execution_id, min(depends_on) FROM dependencies
            WHERE depends_on IN {ids_of(dialect)} GROUP BY execution_id"""
        self._cancel = f"""
            UPDATE executions SET status = 'cancelled', reason = c.reason, because = c.because, finished_at = :now,
              due = 0
            FROM {_CANCELLED.of(dialect, "c")}
            WHERE executions.id = c.id AND executions.status || '' = 'blocked'
            RETURNING executions.id, executions.project_id, executions.has_dependents, executions.reason"""

    def follow(self, ended: Mapping[int, Status], now: int) -> Generator[Step, Rows, None]:
        """Let what depends on the ended executions go, or end it."""
        yield from self._release_children([id for id, status in ended.items() if status is Status.COMPLETED], now)
        level: Mapping[int, str] = {id: str(status) for id, status in ended.items() if status is not Status.COMPLETED}
        while level:
            level = yield from self._cancel_children(level, now)

    def let_go(self, queued: Collection[int], now: int) -> Generator[Step, Rows, frozenset[int]]:
        """Complete those of these that are queued and that nobody has to do, and what follows; the ids of those."""
        completed = yield from self._instant(queued, now)
        yield from self._release_children([id for id, has_dependents in completed.items() if has_dependents], now)
        return frozenset(completed)

    def _release_children(self, completed: Collection[int], now: int) -> Generator[Step, Rows, None]:
        while completed:  # once per level of what nobody has to do
            rows = yield Statement(self._release, {"now": now, "ids": ids(completed)})
            free = sorted((id, project) for id, project, status, _ in rows if status == "queued")
            if not free:
                return
            told = [event(EventType.UNBLOCKED, id, project) for id, project in free]
            yield events_statement(self._dialect, now, told)
            yield Notify({str(project) for _, project in free})
            by_itself = [id for id, _, status, maybe in rows if maybe and status == "queued"]
            done = yield from self._instant(by_itself, now)
            completed = [id for id, has_dependents in done.items() if has_dependents]

    def _cancel_children(self, level: Mapping[int, str], now: int) -> Generator[Step, Rows, dict[int, str]]:
        children = yield Statement(self._children, {"ids": ids(level)})
        reasons = [
            (child, f"execution {parent}, which it waits for, {_ended(level[parent])}", parent)
            for child, parent in children
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
            yield OWED
        return {id: "cancelled" for id, _, dependents, _ in rows if dependents}


def _ended(status: str) -> str:
    return "failed" if status == "failed" else "was cancelled"
