"""Heads: what each of some projects gives next, to whom, and in whose hands.

Most projects have nothing that makes it difficult, and most stores no park: then the first in the line is it, which
one small statement finds and knows. Of the others a large one has to be asked.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pilot.store.database import Dialect, Rows, Statement, Step
from pilot.store.holding import EXEMPT, HELD
from pilot.store.parks import account_of, standing
from pilot.store.places import elsewhere
from pilot.store.records import Table, dumps
from pilot.store.spending import BOOKED

_REQUESTS = Table(
    project_id="bigint", node="text", own="bigint", external="bigint", lanes="text", kinds="text", head="bigint",
    handed="bigint",
)  # fmt: skip
PAUSED = "EXISTS (SELECT 1 FROM pauses z WHERE z.project_id IN (0, {project}))"


def due_projects(*, external: bool) -> str:
    """`walk`: the distinct projects of the claim index. Its cost is theirs, whatever the backlog."""
    due = f"FROM executions WHERE status = 'queued' AND due = 1{'' if external else ' AND external = 0'}"
    return f"""
    WITH RECURSIVE walk(project_id) AS (
      SELECT (SELECT min(project_id) {due})
      UNION ALL
      SELECT (SELECT min(project_id) {due} AND project_id > walk.project_id)
      FROM walk WHERE walk.project_id IS NOT NULL)"""


def among(values: Iterable[object]) -> str | None:
    """What a worker takes of one sort, as `head` reads it; None: any."""
    words = ",".join(map(str, values))
    return f",{words}," if words else None


def head(dialect: Dialect, node: str, *, external: bool, lanes: str = "NULL", kinds: str = "NULL") -> str:
    """A sub-select: the id of the first row of project `p` that a node may run. `n`: the node's row, if it has one.

    `external`: also what is left to remote workers; without it an index of its own passes those by.
    `lanes`, `kinds`: what it takes, by `among`. The claim index has both, so that the others are passed by quickly.
    Passed over, so that they hold up nobody: rows whose backend is parked, and everyone's in its stead, too; that are
    left to remote workers; that have used up what one may cost; that are new, where pull requests hold up the project.
    """
    runnable = f"""
          e.status = 'queued' AND e.due = 1{"" if external else " AND e.external = 0"}
          {_one_of(lanes, "e.lane")}{_one_of(kinds, "e.kind")}
          AND (NOT {_closed(node, "p.id", "e.backend")}
            OR EXISTS (SELECT 1 FROM {dialect.elements("e.fallback", "f")}
              WHERE NOT {_closed(node, "p.id", "f.value")}))
          AND (n.per_execution_usd IS NULL OR coalesce(e.cost_usd, 0) - e.forgiven_usd < n.per_execution_usd)
        ORDER BY e.priority, e.id LIMIT 1"""
    # Of a project that starts nothing new only what may go on is looked at, not all that stands before it.
    return f"""
        CASE WHEN NOT {HELD} THEN (SELECT e.id FROM executions e WHERE e.project_id = p.id AND {runnable})
          ELSE (SELECT e.id FROM executions e WHERE e.id IN ({EXEMPT}) AND +e.project_id = p.id AND {runnable}) END"""


def _one_of(wanted: str, column: str) -> str:
    return "" if wanted == "NULL" else f" AND ({wanted} IS NULL OR {wanted} LIKE '%,' || {column} || ',%')"


def _closed(node: str, project: str, backend: str) -> str:
    return standing(backend, account_of(node, project, backend), closed=True)


@dataclass(frozen=True, slots=True)
class ClaimRequest:
    """One project's next execution for one node; `lease` in ms.

    `own`: only if it is reserved for the node, as a direct run's is. `external`: also what is left to remote workers.
    `lanes`, `kinds`: only these, by `among`. `head`: the first of those (id), when this transaction has seen it.
    `handed`: in the slot of one that has just ended, which its project still counts as running.
    """

    project_id: int
    node: str
    lease: int
    own: bool = False
    external: bool = False
    lanes: str | None = None
    kinds: str | None = None
    head: int | None = None
    handed: bool = False

    @property
    def who(self) -> tuple[object, ...]:
        """What decides the answer: equal requests get equal ones."""
        return self.project_id, self.node, self.own, self.external, self.lanes, self.kinds, self.handed


class Head(NamedTuple):
    """What a project would give. `was`: the backend it had; `booked`: what the day has no longer.

    `place`: the node's; `home`: where the work lies so far. `planned`: a step of a plan; `followed`: by a ticket.
    """

    project_id: int
    fence: int
    slot: int
    node: str
    id: int
    was: str
    fallback: str
    backend: str
    account: str
    probes: int
    cost_usd: float | None
    forgiven_usd: float
    per_execution_usd: float | None
    per_day_usd: float | None
    booked: int
    place: str
    home: str | None
    attempt: int
    model: str | None
    planned: int
    followed: int

    @property
    def chain(self) -> str:
        """Who is left to do it in its stead, once it is rerouted: whoever had it goes to the end."""
        return dumps([name for name in json.loads(self.fallback) if name != self.backend] + [self.was])


_MORE = """
            CASE WHEN e.plan IS NULL THEN 0 ELSE 1 END AS planned,
            CASE WHEN e.origin IS NULL THEN 0 ELSE 1 END AS followed"""


def _any(dialect: Dialect) -> str:
    lanes, kinds = "r.lanes", "r.kinds"
    every = head(dialect, "r.node", external=True, lanes=lanes, kinds=kinds)
    local = head(dialect, "r.node", external=False, lanes=lanes, kinds=kinds)
    # A head that another node reserved is not passed over: a person waits for it, and it goes first. Nor is one
    # that is to go on elsewhere: those behind it would be at its work.
    found = f"""
        SELECT p.id AS project_id, p.fence + 1 AS fence, r.node AS node, r.own AS own,
          n.per_execution_usd AS per_execution_usd, n.per_day_usd AS per_day_usd, coalesce(n.place, '') AS place,
          CASE WHEN r.head IS NOT NULL THEN r.head
            WHEN r.external = 1 THEN ({every}) ELSE ({local}) END AS id,
          CASE WHEN p.running = r.handed THEN 0 ELSE
            (SELECT min(c.slot) FROM (
               SELECT 0 AS slot UNION ALL
               SELECT x.slot + 1 FROM executions x
               WHERE x.project_id = p.id AND x.status = 'running' AND x.slot >= 0) c
             WHERE NOT EXISTS (SELECT 1 FROM executions y
               WHERE y.project_id = p.id AND y.status = 'running' AND y.slot = c.slot)) END AS slot
        FROM {_REQUESTS.of(dialect, "r")} JOIN projects p ON p.id = r.project_id
          LEFT JOIN nodes n ON n.id = r.node
        WHERE p.running - r.handed < p.max_running AND NOT {PAUSED.format(project="p.id")}"""
    first_open = f"""
        CASE WHEN e.fallback = '[]' OR NOT {_closed("h.node", "h.project_id", "e.backend")} THEN e.backend
          ELSE (SELECT f.value FROM {dialect.elements("e.fallback", "f")}
            WHERE NOT {_closed("h.node", "h.project_id", "f.value")} ORDER BY f.n LIMIT 1) END"""
    # Step by step: what is used twice would be worked out twice.
    return f"""
        WITH h AS MATERIALIZED ({found}),
        g AS MATERIALIZED (
          SELECT h.project_id, h.fence, h.slot, h.node, h.place, h.per_execution_usd, h.per_day_usd, e.id AS id,
            CASE WHEN e.external = 0 THEN e.place END AS home, e.attempt, e.model, e.backend AS was, {_MORE},
            e.fallback AS fallback, e.cost_usd AS cost_usd, e.forgiven_usd AS forgiven_usd, {first_open} AS backend
          FROM h JOIN executions e ON e.id = h.id
            AND (e.reserved_for = h.node OR (e.reserved_for IS NULL AND h.own = 0
              AND NOT {elsewhere("h.place", "e")}))),
        a AS MATERIALIZED (
          SELECT g.*, coalesce({account_of("g.node", "g.project_id", "g.backend")}, '') AS account FROM g)
        SELECT g.project_id, g.fence, g.slot, g.node, g.id, g.was, g.fallback, g.backend,
          g.account, {standing("g.backend", "g.account", closed=False)},
          g.cost_usd, g.forgiven_usd, g.per_execution_usd, g.per_day_usd, {BOOKED},
          g.place, g.home, g.attempt, g.model, g.planned, g.followed
        FROM a AS g"""


def _plain(dialect: Dialect) -> str:
    """The same of those of which it is certain; of the others `id` is NULL."""
    return f"""
        WITH q AS MATERIALIZED (
          SELECT p.id AS project_id, p.fence + 1 AS fence, r.node AS node, coalesce(n.place, '') AS place,
            n.per_execution_usd AS per_execution_usd, n.per_day_usd AS per_day_usd, r.head AS head,
            CASE WHEN p.running = r.handed AND p.next_after = 'finish' AND p.max_open_prs IS NULL AND r.own = 0
              AND (r.head IS NOT NULL OR (r.external = 0 AND r.lanes IS NULL AND r.kinds IS NULL))
              AND NOT EXISTS (SELECT 1 FROM parks) THEN 1 ELSE 0 END AS plain
          FROM {_REQUESTS.of(dialect, "r")} JOIN projects p ON p.id = r.project_id LEFT JOIN nodes n ON n.id = r.node
          WHERE p.running - r.handed < p.max_running AND NOT {PAUSED.format(project="p.id")})
        SELECT q.project_id, q.fence, 0, q.node,
          CASE WHEN e.reserved_for IS NULL AND (e.external = 1 OR e.place IS NULL OR e.place = q.place)
            AND (q.per_execution_usd IS NULL OR coalesce(e.cost_usd, 0) - e.forgiven_usd < q.per_execution_usd)
            THEN e.id END,
          e.backend, e.fallback, e.backend, coalesce({account_of("q.node", "q.project_id", "e.backend")}, ''), 0,
          e.cost_usd, e.forgiven_usd, q.per_execution_usd, q.per_day_usd, {BOOKED},
          q.place, CASE WHEN e.external = 0 THEN e.place END, e.attempt, e.model, {_MORE}
        FROM q LEFT JOIN executions e ON q.plain = 1 AND e.id = coalesce(q.head,
          (SELECT e.id FROM executions e WHERE e.project_id = q.project_id AND e.status = 'queued' AND e.due = 1
            AND e.external = 0 ORDER BY e.priority, e.id LIMIT 1))
        WHERE q.plain = 0 OR e.id IS NOT NULL"""


_ID = Head._fields.index("id")


class Heads:
    """A part of a claim."""

    def __init__(self, dialect: Dialect) -> None:
        self._plain = _plain(dialect)
        self._any = _any(dialect)

    def of(self, requests: Sequence[ClaimRequest], now: int) -> Generator[Step, Rows, list[Head]]:
        """What these projects (one request each) give, in the order of the requests; who gives nothing is left out."""
        rows = yield from self._asked(self._plain, requests, now)
        found = [Head._make(row) for row in rows if row[_ID] is not None]
        difficult = {row[0] for row in rows if row[_ID] is None}
        if difficult:
            others = [request for request in requests if request.project_id in difficult]
            found += map(Head._make, (yield from self._asked(self._any, others, now)))
        order = {request.project_id: n for n, request in enumerate(requests)}
        return sorted(found, key=lambda head: order[head.project_id])

    def _asked(self, sql: str, requests: Sequence[ClaimRequest], now: int) -> Generator[Step, Rows, Rows]:
        wanted = _REQUESTS.rows(
            (r.project_id, r.node, int(r.own), int(r.external), r.lanes, r.kinds, r.head, int(r.handed))
            for r in requests
        )
        return (yield Statement(sql, {"now": now, "items": wanted}))
