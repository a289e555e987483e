"""Claim: the head of a project's queue becomes running, under a lease and a new fence."""

from __future__ import annotations

import json
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

from pilot.domain.budget import Budget, day_of
from pilot.domain.errors import StoreError
from pilot.domain.events import EventType
from pilot.domain.execution import Execution
from pilot.store.database import HEARD, Ahead, Dialect, Rows, Statement, Step
from pilot.store.holding import EXEMPT, HELD
from pilot.store.parks import Parks, account_of, standing
from pilot.store.places import Places, elsewhere
from pilot.store.records import OWED, EventRow, Table, dumps, event, events_statement
from pilot.store.rows import EXECUTION_SELECT, to_execution
from pilot.store.spending import BOOKED, Spending, fits

_REQUESTS = Table(
    project_id="bigint", node="text", own="bigint", external="bigint", lanes="text", kinds="text", head="bigint",
    handed="bigint",
)  # fmt: skip
_CLAIMS = Table(
    id="bigint", project_id="bigint", fence="bigint", slot="bigint", node="text", lease_until="bigint",
    place="text", handed="bigint",
)  # fmt: skip
_REROUTED = Table(id="bigint", backend="text", fallback="text")
_STARTED = Table(
    execution_id="bigint", number="bigint", fence="bigint", node="text", backend="text", model="text",
    account="text", reserved="bigint", probe="bigint",
)  # fmt: skip

_PROMOTE = "UPDATE executions SET due = 1 WHERE status = 'queued' AND due = 0 AND available_at <= :now"
_WORKERS = "/* left to workers */"
"""Around what a claim for nodes alone leaves out: each part of a statement has to be made ready, used or not."""
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


class _Head(NamedTuple):
    """What a project would give. `was`: the backend it had; `booked`: what the day has no longer.

    `place`: the node's; `home`: where the work lies so far.
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

    @property
    def chain(self) -> str:
        """Who is left to do it in its stead, once it is rerouted: whoever had it goes to the end."""
        return dumps([name for name in json.loads(self.fallback) if name != self.backend] + [self.was])


def _heads(dialect: Dialect) -> str:
    lanes, kinds = "r.lanes", "r.kinds"
    every = head(dialect, "r.node", external=True, lanes=lanes, kinds=kinds)
    local = head(dialect, "r.node", external=False, lanes=lanes, kinds=kinds)
    # A head that another node reserved is not passed over: a person waits for it, and it goes first. Nor is one
    # that is to go on elsewhere: those behind it would be at its work.
    found = f"""
        SELECT p.id AS project_id, p.fence + 1 AS fence, r.node AS node, r.own AS own,
          n.per_execution_usd AS per_execution_usd, n.per_day_usd AS per_day_usd, coalesce(n.place, '') AS place,
          CASE WHEN r.head IS NOT NULL THEN r.head
            {_WORKERS} WHEN r.external = 1 THEN ({every}) {_WORKERS} ELSE ({local}) END AS id,
          CASE WHEN p.running = r.handed THEN 0 ELSE
            (SELECT min(c.slot) FROM (
               SELECT 0 AS slot UNION ALL
               SELECT x.slot + 1 FROM executions x
               WHERE x.project_id = p.id AND x.status = 'running' AND x.slot >= 0) c
             WHERE NOT EXISTS (SELECT 1 FROM executions y
               WHERE y.project_id = p.id AND y.status = 'running' AND y.slot = c.slot)) END AS slot
        FROM {_REQUESTS.of(dialect, "r")} JOIN projects p ON p.id = r.project_id
          LEFT JOIN nodes n ON n.id = r.node
        WHERE p.running - r.handed < p.max_running AND NOT {PAUSED.format(project="p.id")}
        {dialect.lock_projects}"""
    first_open = f"""
        CASE WHEN e.fallback = '[]' OR NOT {_closed("h.node", "h.project_id", "e.backend")} THEN e.backend
          ELSE (SELECT f.value FROM {dialect.elements("e.fallback", "f")}
            WHERE NOT {_closed("h.node", "h.project_id", "f.value")} ORDER BY f.n LIMIT 1) END"""
    # Step by step: what is used twice would be worked out twice.
    return f"""
        WITH h AS MATERIALIZED ({found}),
        g AS MATERIALIZED (
          SELECT h.project_id, h.fence, h.slot, h.node, h.place, h.per_execution_usd, h.per_day_usd, e.id AS id,
            CASE WHEN e.external = 0 THEN e.place END AS home, e.attempt, e.model, e.backend AS was,
            e.fallback AS fallback, e.cost_usd AS cost_usd, e.forgiven_usd AS forgiven_usd, {first_open} AS backend
          FROM h JOIN executions e ON e.id = h.id
            AND (e.reserved_for = h.node OR (e.reserved_for IS NULL AND h.own = 0
              AND NOT {elsewhere("h.place", "e")}))),
        a AS MATERIALIZED (
          SELECT g.*, coalesce({account_of("g.node", "g.project_id", "g.backend")}, '') AS account FROM g)
        SELECT g.project_id, g.fence, g.slot, g.node, g.id, g.was, g.fallback, g.backend,
          g.account, {standing("g.backend", "g.account", closed=False)},
          g.cost_usd, g.forgiven_usd, g.per_execution_usd, g.per_day_usd, {BOOKED},
          g.place, g.home, g.attempt, g.model
        FROM a AS g"""


class Claim:
    """The operation, also run as the second half of a finish."""

    def __init__(self, dialect: Dialect, parks: Parks, spending: Spending) -> None:
        self._dialect = dialect
        self._parks = parks
        self._spending = spending
        self._places = Places(dialect)
        self._heads = _heads(dialect)
        # Another agent has no use for a session or a model of the first.
        self._reroute = f"""
            UPDATE executions SET backend = t.backend, fallback = t.fallback, model = NULL, session_id = NULL
            FROM {_REROUTED.of(dialect, "t")} WHERE executions.id = t.id"""
        self._take = f"""
            UPDATE executions SET status = 'running', slot = c.slot, node = c.node, fence = c.fence,
              lease_until = c.lease_until, attempt = attempt + 1, cancel_requested = 0, reason = NULL,
              started_at = coalesce(started_at, :now), place = c.place
            FROM {_CLAIMS.of(dialect, "c")}
            -- by its id alone: an index of what is queued would be read from end to end
            WHERE executions.id = c.id AND executions.status || '' = 'queued'
            RETURNING {EXECUTION_SELECT}"""
        self._hold = f"""
            UPDATE projects SET running = running + 1 - c.handed, fence = c.fence
            FROM {_CLAIMS.of(dialect, "c")} WHERE projects.id = c.project_id"""
        self._attempts = f"""
            INSERT INTO attempts (execution_id, number, fence, node, backend, model, started_at, account, reserved,
              probe)
            SELECT s.execution_id, s.number, s.fence, s.node, s.backend, s.model, :now, s.account, s.reserved, s.probe
            FROM {_STARTED.of(dialect, "s")}"""

    def __call__(self, requests: Sequence[ClaimRequest], now: int) -> Generator[Step, Rows, list[Execution | None]]:
        """Answers in the order of the requests."""
        yield Statement(_PROMOTE, {"now": now})
        return (yield from self.take(requests, now))

    def take(self, requests: Sequence[ClaimRequest], now: int) -> Generator[Step, Rows, list[Execution | None]]:
        """The same, of what is known to be due."""
        answers: dict[int, Execution] = {}
        requests = list(requests)
        waiting = list(range(len(requests)))
        refused: set[tuple[object, ...]] = set()
        while waiting:
            # One per project and pass: the head of a project is another one once its first is taken.
            first: dict[int, int] = {}
            for n in waiting:
                first.setdefault(requests[n].project_id, n)
            taken, later = yield from self._pass([requests[n] for n in first.values()], now)
            for project, n in first.items():
                if project in taken:
                    answers[n] = taken[project]
                elif project not in later:
                    refused.add(requests[n].who)  # others may still get what is reserved for them
                else:
                    requests[n] = replace(requests[n], head=None)
            looked_at = {n for project, n in first.items() if project not in later}
            waiting = [n for n in waiting if n not in looked_at and requests[n].who not in refused]
        return [answers.get(n) for n in range(len(requests))]

    def promote(self, items: Sequence[None], now: int) -> Generator[Step, Rows, list[None]]:
        """Put into the claim index whatever has become due."""
        yield Statement(_PROMOTE, {"now": now})
        return [None] * len(items)

    def _pass(
        self, requests: Sequence[ClaimRequest], now: int
    ) -> Generator[Step, Rows, tuple[dict[int, Execution], set[int]]]:
        """What was taken, by project; and the projects to look at again, once this is written."""
        asked = {request.project_id: request for request in requests}
        wanted = _REQUESTS.rows(
            (r.project_id, r.node, int(r.own), int(r.external), r.lanes, r.kinds, r.head, int(r.handed))
            for r in requests
        )
        heads = self._heads if any(r.external for r in requests) else _of_nodes(self._heads)
        rows = yield Statement(heads, {"now": now, "day": day_of(now), "items": wanted})
        chosen, reserved, later = _admitted(map(_Head._make, rows))
        if not chosen:
            return {}, later
        if any(head.probes for head in chosen.values()):
            # It closes that park to the others, and a head that waits for it is not in the way of what can go on.
            later |= {request.project_id for request in requests} - {head.project_id for head in chosen.values()}
        rerouted = [(h.id, h.backend, h.chain) for h in chosen.values() if h.backend != h.was]
        if rerouted:
            yield Statement(self._reroute, {"items": _REROUTED.rows(rerouted)})
        claims = _CLAIMS.rows(
            (h.id, h.project_id, h.fence, h.slot, h.node, now + r.lease, h.place or None, int(r.handed))
            for h, r in ((h, asked[h.project_id]) for h in chosen.values())
        )
        moved = {h.id: h.home for h in chosen.values() if h.home is not None and h.home != h.place}
        yield from self._places.moved(moved)
        # They are made into executions while the rest is written: whatever is a head now can be taken.
        rows = yield Ahead(Statement(self._take, {"now": now, "items": claims}))
        yield Statement(self._hold, {"items": claims})
        yield from self._begin(chosen.values(), reserved, now)
        yield HEARD
        executions = [to_execution(row) for row in rows]
        if len(executions) != len(chosen):
            raise StoreError("what was to be claimed is no longer queued; nothing was written")
        yield from self._places.together({e.id: e.place for e in executions if e.plan is not None and e.place})
        if any(e.origin is not None for e in executions):
            yield OWED
        probes = [(e, chosen[e.id].account) for e in executions if chosen[e.id].probes]
        if probes:
            yield from self._parks.probe(probes, now)
        return {e.project_id: e for e in executions}, later

    def _begin(self, heads: Collection[_Head], reserved: dict[int, int], now: int) -> Generator[Step, Rows, None]:
        started = _STARTED.rows(
            (h.id, h.attempt + 1, h.fence, h.node, h.backend, h.model if h.backend == h.was else None, h.account,
             reserved.get(h.id), h.probes)
            for h in heads
        )  # fmt: skip
        yield Statement(self._attempts, {"now": now, "items": started})
        told: list[EventRow] = []
        for h in heads:
            if h.backend != h.was:
                told.append((yield from self._rerouted(h)))
            facts: dict[str, object] = {"attempt": h.attempt + 1, "fence": h.fence, "node": h.node, "slot": h.slot}
            if h.home not in (None, h.place):
                facts["anew"] = f"what was begun of it lies on {h.home}"
            told.append(event(EventType.STARTED, h.id, h.project_id, **facts))
        yield events_statement(self._dialect, now, told)
        if reserved:
            yield from self._spending.reserve(reserved.values(), now)

    def _rerouted(self, head: _Head) -> Generator[Step, Rows, EventRow]:
        account = account_of(":node", ":project", ":backend")
        rows = yield Statement(
            "SELECT k.failure, k.reason FROM parks k WHERE k.backend = :backend "
            f"AND k.account IN ('', {account}) ORDER BY k.since LIMIT 1",
            {"node": head.node, "project": head.project_id, "backend": head.was},
        )
        reason = ": ".join(rows[0]) if rows else ""
        facts = {"from": head.was, "to": head.backend, "reason": f"{head.was} takes no work: {reason}"}
        return event(EventType.REROUTED, head.id, head.project_id, **facts)


@lru_cache(maxsize=8)
def _of_nodes(heads: str) -> str:
    before, _, rest = heads.partition(_WORKERS)
    return before + rest.partition(_WORKERS)[2]


def _admitted(heads: Iterator[_Head]) -> tuple[dict[int, _Head], dict[int, int], set[int]]:
    """By execution id, what may be taken together, and what it sets aside; the projects to look at afterwards."""
    chosen: dict[int, _Head] = {}
    reserved: dict[int, int] = {}
    later: set[int] = set()
    tried: set[str] = set()
    for head in heads:
        budget = Budget(head.per_execution_usd, head.per_day_usd)
        if head.probes and head.backend in tried:  # one probe, and the others see it; a fallback may be free for them
            later.add(head.project_id)
        elif fits(budget, head.cost_usd, head.forgiven_usd, head.booked + sum(reserved.values())):
            chosen[head.id] = head
            amount = budget.reservation(head.cost_usd, head.forgiven_usd)
            if amount is not None:
                reserved[head.id] = amount
            if head.probes:
                tried.add(head.backend)
    return chosen, reserved, later
