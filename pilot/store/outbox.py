"""Effects owed to the outside: in order per lane, at most one node at each, nothing lost and nothing told twice.

Most are written by the triggers on `events`; publications by the finish, clean-ups by the end of a pull request.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pilot.domain.delivery import Effect, EffectKind, Report
from pilot.domain.events import EventType
from pilot.domain.text import clean
from pilot.store.database import Database, Notify, Rows, Statement, Step
from pilot.store.records import LIVE_PULLS, OPEN_STATUSES, OWED, Table, dumps, event, events_statement, short
from pilot.store.standing import report

_COLUMNS = (
    *("id", "kind", "key", "lane", "execution_id", "project_id", "fence", "event_id", "payload", "tries"),
    *("created_at", "claims"),
)
_KINDS = Table(kind="text")
_PROJECTS = Table(project="bigint")
_WANTED = Table(effect="bigint")
_HELD = Table(effect="bigint", claim="bigint")

# What `o` has to wait for: an older one of its lane. A report goes past a publication that has been put off, so that
# people see what it waits for, and a publication past such a report: their services are two, and one may be down for
# hours. So they go past what waits behind that one. Nobody cleans up where a task is at work.
_FREE = f"""
    NOT EXISTS (SELECT 1 FROM outbox b WHERE b.lane = o.lane AND b.id < o.id AND b.delivered_at IS NULL
      AND NOT ((o.kind, b.kind) IN (VALUES ('report', 'publish'), ('publish', 'report')) AND EXISTS (
        SELECT 1 FROM outbox f WHERE f.lane = b.lane AND f.id <= b.id AND f.kind = b.kind AND f.delivered_at IS NULL
          AND f.tries > 0)))
    AND NOT (o.kind = 'clean' AND EXISTS (SELECT 1 FROM executions x JOIN executions y ON y.id = o.execution_id
      WHERE x.project_id = y.project_id AND x.task_id = y.task_id AND x.status IN {OPEN_STATUSES}))"""
_HERE = "(o.host IS NULL OR EXISTS (SELECT 1 FROM nodes n WHERE n.id = :node AND o.host IN (n.place, n.host)))"


@dataclass(frozen=True, slots=True)
class _Taking:
    node: str
    lease: int
    effects: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Renewal:
    node: str
    lease: int
    effects: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class _End:
    """What a node says of an effect that it took. `at` None: it is over, else when to try again (UTC ms)."""

    effect: Effect
    node: str
    at: int | None = None
    result: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class _More:
    kind: EffectKind
    key: str
    lane: str
    payload: str
    of: Effect


class SqlOutbox:
    """Implements `outside.Outbox`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        dialect = database.dialect
        kinds = f"o.kind IN (SELECT k.kind FROM {_KINDS.of(dialect, 'k', 'kinds')})"
        due = f"o.delivered_at IS NULL AND o.available_at <= :now AND o.claimed_until <= :now AND {kinds} AND {_FREE}"
        among = (
            f"(o.project_id IS NULL OR o.project_id IN (SELECT p.project FROM {_PROJECTS.of(dialect, 'p', 'among')}))"
        )
        self._due = (
            f"SELECT o.id FROM outbox o WHERE {due} AND {_HERE} AND (:all = 1 OR {among}) "
            "ORDER BY o.available_at, o.id LIMIT :max"
        )
        self._due_of_one = (
            f"SELECT o.id FROM outbox o WHERE o.execution_id = :execution AND {due} AND {_HERE} "
            f"AND (:all = 1 OR {among}) ORDER BY o.id LIMIT :max"
        )
        self._take = f"""
            UPDATE outbox AS o SET claimed_by = :node, claimed_until = :now + :lease, claims = claims + 1
            WHERE o.id IN (SELECT w.effect FROM {_WANTED.of(dialect, "w")})
              AND o.delivered_at IS NULL AND o.claimed_until <= :now AND {_FREE}
            RETURNING {", ".join(_COLUMNS)}"""
        self._renew = f"""
            UPDATE outbox SET claimed_until = :now + :lease FROM {_HELD.of(dialect, "h")}
            WHERE outbox.id = h.effect AND outbox.claims = h.claim AND outbox.claimed_by = :node
              AND outbox.delivered_at IS NULL RETURNING outbox.id"""
        self._next = f"""
            SELECT min(CASE WHEN o.available_at > o.claimed_until THEN o.available_at ELSE o.claimed_until END)
            FROM outbox o WHERE o.delivered_at IS NULL AND {kinds} AND (:node IS NULL OR {_HERE}) AND {_FREE}"""

    async def take(
        self,
        node: str,
        kinds: Collection[EffectKind],
        *,
        lease: int,
        max: int = 8,
        projects: Collection[int] | None = None,
        execution: int | None = None,
    ) -> list[Effect]:
        """See `Outbox.take`. What is due is looked for first: to find nothing costs no commit."""
        params = {
            "now": self._database.clock(), "node": node, "max": max, "kinds": _kinds(kinds),
            "all": int(projects is None), "among": _PROJECTS.rows((id,) for id in projects or ()),
        }  # fmt: skip
        if execution is None:
            rows = await self._database.read(self._due, params)
        else:
            rows = await self._database.read(self._due_of_one, params | {"execution": execution})
        if not rows:
            return []
        return await self._database.write(self._takes, _Taking(node, lease, tuple(id for (id,) in rows)))

    async def renew(self, effects: Collection[Effect], node: str, lease: int) -> set[int]:
        """See `Outbox.renew`."""
        held = tuple((effect.id, effect.claim) for effect in effects)
        return await self._database.write(self._renews, _Renewal(node, lease, held))

    async def delivered(self, effect: Effect, node: str, result: Mapping[str, Any] | None = None) -> bool:
        """See `Outbox.delivered`."""
        kept = None if result is None else dumps(dict(result))
        return await self._database.write(self._ends, _End(effect, node, result=kept))

    async def supersede(self, effect: Effect, upto: int) -> None:
        """See `Outbox.supersede`."""
        await self._database.write(self._supersedes, (effect, upto))

    async def postpone(self, effect: Effect, node: str, until: int, error: str) -> bool:
        """See `Outbox.postpone`."""
        return await self._database.write(self._ends, _End(effect, node, at=until, error=short(error)))

    async def give_up(self, effect: Effect, node: str, error: str) -> bool:
        """See `Outbox.give_up`. A pull request that is open already stays so, and keeps the error."""
        return await self._database.write(self._ends, _End(effect, node, error=short(error) or "given up"))

    async def add(self, effects: Sequence[tuple[EffectKind, str, str, Mapping[str, Any]]], *, of: Effect) -> None:
        """See `Outbox.add`."""
        if effects:
            more = [
                _More(kind, clean(key), clean(lane), dumps(dict(payload)), of) for kind, key, lane, payload in effects
            ]
            await self._database.write(self._adds, more)

    async def next_due(self, kinds: Collection[EffectKind], node: str | None = None) -> int | None:
        """See `Outbox.next_due`."""
        rows = await self._database.read(self._next, {"kinds": _kinds(kinds), "node": node})
        due: int | None = rows[0][0]
        return due

    async def owing(self, execution: int, kinds: Collection[EffectKind]) -> str | None:
        """See `Outbox.owing`."""
        rows = await self._database.read(
            "SELECT o.error FROM outbox o WHERE o.execution_id = :id AND o.delivered_at IS NULL AND o.kind IN "
            f"(SELECT k.kind FROM {_KINDS.of(self._database.dialect, 'k', 'kinds')}) ORDER BY o.id LIMIT 1",
            {"id": execution, "kinds": _kinds(kinds)},
        )
        return (rows[0][0] or "") if rows else None

    async def report(self, execution: int) -> Report:
        """See `Outbox.report`."""
        return await report(self._database, execution)

    def _takes(self, takings: Sequence[_Taking]) -> Generator[Step, Rows, list[list[Effect]]]:
        now = self._database.clock()
        answers = []
        for taking in takings:
            rows = yield Statement(
                self._take,
                {
                    "node": taking.node, "lease": taking.lease, "now": now,
                    "items": _WANTED.rows((id,) for id in taking.effects),
                },
            )  # fmt: skip
            answers.append([_to_effect(row) for row in sorted(rows)])
        return answers

    def _renews(self, renewals: Sequence[_Renewal]) -> Generator[Step, Rows, list[set[int]]]:
        now = self._database.clock()
        answers = []
        for renewal in renewals:
            rows = yield Statement(
                self._renew,
                {
                    "node": renewal.node, "lease": renewal.lease, "now": now,
                    "items": _HELD.rows(renewal.effects),
                },
            )  # fmt: skip
            answers.append({id for (id,) in rows})
        return answers

    def _ends(self, ends: Sequence[_End]) -> Generator[Step, Rows, list[bool]]:
        now = self._database.clock()
        answers = []
        for end in ends:
            answers.append((yield from self._end(end, now)))
        yield OWED  # what stood behind it in its lane
        return answers

    def _end(self, end: _End, now: int) -> Generator[Step, Rows, bool]:
        over = end.at is None
        rows = yield Statement(
            "UPDATE outbox SET claimed_by = NULL, claimed_until = 0, delivered_at = :ended, result = :result, "
            "error = :error, tries = tries + :again, available_at = coalesce(:at, available_at) "
            "WHERE id = :id AND claims = :claim AND claimed_by = :node AND delivered_at IS NULL RETURNING id",
            {
                "id": end.effect.id, "claim": end.effect.claim, "node": end.node, "ended": now if over else None,
                "result": end.result, "error": end.error, "again": int(not over), "at": end.at,
            },
        )  # fmt: skip
        if rows and over and end.error is not None:
            yield from self._fail(end.effect, end.error, now)
        elif rows and not over and end.effect.kind is EffectKind.PUBLISH:
            yield Statement(  # for whoever asks what it waits for
                f"UPDATE pulls SET error = :error WHERE execution_id = :execution AND state IN {LIVE_PULLS}",
                {"error": end.error, "execution": end.effect.execution},
            )
        return bool(rows)

    def _fail(self, effect: Effect, error: str, now: int) -> Generator[Step, Rows, None]:
        told = event(EventType.DELIVERY_FAILED, effect.execution, effect.project_id, kind=effect.kind, reason=error)
        yield events_statement(self._database.dialect, now, [told])
        if effect.kind is EffectKind.PUBLISH:
            # Unless a later execution has taken it over: its own publication is still to come.
            yield Statement(
                "UPDATE pulls SET error = :error, ended_at = CASE WHEN state = 'owed' THEN :now END, "
                "state = CASE WHEN state = 'owed' THEN 'failed' ELSE state END WHERE execution_id = :execution "
                f"AND state IN {LIVE_PULLS}",
                {"error": error, "now": now, "execution": effect.execution},
            )
            yield Notify({str(effect.project_id)})

    def _supersedes(self, items: Sequence[tuple[Effect, int]]) -> Generator[Step, Rows, list[None]]:
        now = self._database.clock()
        for effect, upto in items:
            yield Statement(
                "UPDATE outbox SET delivered_at = :now WHERE execution_id = :execution AND kind = :kind AND id <> :id "
                "AND event_id <= :upto AND delivered_at IS NULL AND claimed_until <= :now "
                "AND EXISTS (SELECT 1 FROM outbox h WHERE h.id = :id AND h.claims = :claim)",
                {
                    "now": now, "execution": effect.execution, "kind": effect.kind, "id": effect.id, "upto": upto,
                    "claim": effect.claim,
                },
            )  # fmt: skip
        return [None] * len(items)

    def _adds(self, batches: Sequence[Sequence[_More]]) -> Generator[Step, Rows, list[None]]:
        now = self._database.clock()
        values = [
            {
                "lane": more.lane, "execution": more.of.execution, "project": more.of.project_id, "kind": more.kind,
                "key": more.key, "fence": more.of.fence, "event": more.of.event, "payload": more.payload, "now": now,
            }
            for batch in batches
            for more in batch
        ]  # fmt: skip
        yield Statement(
            "INSERT INTO outbox (lane, execution_id, project_id, kind, key, fence, event_id, payload, available_at, "
            "created_at) VALUES (:lane, :execution, :project, :kind, :key, :fence, :event, :payload, :now, :now) "
            "ON CONFLICT (key) DO NOTHING",
            many=values,
        )
        yield OWED
        return [None] * len(batches)


def _kinds(kinds: Collection[EffectKind]) -> str:
    return _KINDS.rows((kind,) for kind in kinds)


def _to_effect(row: tuple[Any, ...]) -> Effect:
    id, kind, key, lane, execution, project, fence, event, payload, tries, created_at, claim = row
    return Effect(
        id=id, kind=EffectKind(kind), key=key, lane=lane, execution=execution, project_id=project, fence=fence,
        event=event, payload=json.loads(payload), tries=tries, created_at=created_at, claim=claim,
    )  # fmt: skip
