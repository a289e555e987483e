"""Claim: the head of a project's queue becomes running, under a lease and a new fence."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

from pilot.domain.events import EventType
from pilot.domain.execution import Execution
from pilot.store.database import Dialect, Rows, Statement, Step
from pilot.store.records import Table, event, events_statement
from pilot.store.rows import EXECUTION_SELECT, to_execution

_REQUESTS = Table(project_id="bigint", node="text", own="bigint")
_CLAIMS = Table(id="bigint", project_id="bigint", fence="bigint", slot="bigint", node="text", lease_until="bigint")
_STARTED = Table(execution_id="bigint", number="bigint", fence="bigint", node="text", backend="text", model="text")

_PROMOTE = "UPDATE executions SET due = 1 WHERE status = 'queued' AND due = 0 AND available_at <= :now"
PARKED = "EXISTS (SELECT 1 FROM parks k WHERE k.backend = {backend} AND (k.until IS NULL OR k.until > :now))"
PAUSED = "EXISTS (SELECT 1 FROM pauses z WHERE z.project_id IN (0, {project}))"


@dataclass(frozen=True, slots=True)
class ClaimRequest:
    """One project's next execution for one node; `lease` in ms.

    `own`: only if it is reserved for the node, as a direct run's is.
    """

    project_id: int
    node: str
    lease: int
    own: bool = False

    @property
    def who(self) -> tuple[int, str, bool]:
        """What decides the answer: equal requests get equal ones."""
        return self.project_id, self.node, self.own


class Claim:
    """The operation, also run as the second half of a finish."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        # A head that another node reserved is not passed over: a person waits for it, and it goes first.
        self._heads = f"""
            SELECT h.project_id, h.fence, h.slot, h.node, h.id FROM (
              SELECT p.id AS project_id, p.fence + 1 AS fence, r.node AS node, r.own AS own,
                (SELECT e.id FROM executions e
                  WHERE e.project_id = p.id AND e.status = 'queued' AND e.due = 1
                    AND NOT {PARKED.format(backend="e.backend")}
                  ORDER BY e.priority, e.id LIMIT 1) AS id,
                CASE WHEN p.running = 0 THEN 0 ELSE
                  (SELECT min(c.slot) FROM (
                     SELECT 0 AS slot UNION ALL
                     SELECT x.slot + 1 FROM executions x WHERE x.project_id = p.id AND x.status = 'running') c
                   WHERE NOT EXISTS (SELECT 1 FROM executions y
                     WHERE y.project_id = p.id AND y.status = 'running' AND y.slot = c.slot)) END AS slot
              FROM {_REQUESTS.of(dialect, "r")} JOIN projects p ON p.id = r.project_id
              WHERE p.running < p.max_running AND NOT {PAUSED.format(project="p.id")}
              {dialect.lock_projects}) h
            JOIN executions e ON e.id = h.id
              AND (e.reserved_for = h.node OR (e.reserved_for IS NULL AND h.own = 0))"""
        self._take = f"""
            UPDATE executions SET status = 'running', slot = c.slot, node = c.node, fence = c.fence,
              lease_until = c.lease_until, attempt = attempt + 1, cancel_requested = 0, reason = NULL,
              started_at = coalesce(started_at, :now)
            FROM {_CLAIMS.of(dialect, "c")}
            WHERE executions.id = c.id AND executions.status = 'queued'
            RETURNING {EXECUTION_SELECT}"""
        self._hold = f"""
            UPDATE projects SET running = running + 1, fence = c.fence
            FROM {_CLAIMS.of(dialect, "c")} WHERE projects.id = c.project_id"""
        self._attempts = f"""
            INSERT INTO attempts (execution_id, number, fence, node, backend, model, started_at)
            SELECT s.execution_id, s.number, s.fence, s.node, s.backend, s.model, :now
            FROM {_STARTED.of(dialect, "s")}"""

    def __call__(self, requests: Sequence[ClaimRequest], now: int) -> Generator[Step, Rows, list[Execution | None]]:
        """Answers in the order of the requests."""
        answers: dict[int, Execution] = {}
        yield Statement(_PROMOTE, {"now": now})
        waiting = list(range(len(requests)))
        refused: set[tuple[int, str, bool]] = set()
        while waiting:
            # One per project and pass: the head of a project is another one once its first is taken.
            first: dict[int, int] = {}
            for n in waiting:
                first.setdefault(requests[n].project_id, n)
            taken = yield from self._pass([requests[n] for n in first.values()], now)
            for project, n in first.items():
                if project in taken:
                    answers[n] = taken[project]
                else:
                    refused.add(requests[n].who)  # others may still get what is reserved for them
            looked_at = set(first.values())
            waiting = [n for n in waiting if n not in looked_at and requests[n].who not in refused]
        return [answers.get(n) for n in range(len(requests))]

    def promote(self, items: Sequence[None], now: int) -> Generator[Step, Rows, list[None]]:
        """Put into the claim index whatever has become due."""
        yield Statement(_PROMOTE, {"now": now})
        return [None] * len(items)

    def _pass(self, requests: Sequence[ClaimRequest], now: int) -> Generator[Step, Rows, dict[int, Execution]]:
        lease = {request.project_id: request.lease for request in requests}
        heads = yield Statement(
            self._heads,
            {"now": now, "items": _REQUESTS.rows((r.project_id, r.node, int(r.own)) for r in requests)},
        )
        if not heads:
            return {}
        claims = _CLAIMS.rows(
            (id, project, fence, slot, node, now + lease[project]) for project, fence, slot, node, id in heads
        )
        rows = yield Statement(self._take, {"now": now, "items": claims})
        executions = [to_execution(row) for row in rows]
        taken = _CLAIMS.rows((e.id, e.project_id, e.fence, e.slot, e.node, e.lease_until) for e in executions)
        yield Statement(self._hold, {"items": taken})
        yield Statement(
            self._attempts,
            {
                "now": now,
                "items": _STARTED.rows((e.id, e.attempt, e.fence, e.node, e.backend, e.model) for e in executions),
            },
        )
        yield events_statement(
            self._dialect,
            now,
            [
                event(
                    EventType.STARTED,
                    e.id,
                    e.project_id,
                    attempt=e.attempt,
                    fence=e.fence,
                    node=e.node,
                    slot=e.slot,
                )
                for e in executions
            ],
        )
        return {e.project_id: e for e in executions}
