"""Work that one node of all does at a time, what it remembers, and how each source does."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pilot.domain.text import clean
from pilot.store.database import Database, Rows, Statement, Step
from pilot.store.records import dumps, short


@dataclass(frozen=True, slots=True)
class _Change:
    """Of one duty by one node; `lease` in ms."""

    name: str
    node: str
    lease: int = 0
    state: str = ""


class SqlDuties:
    """Implements `outside.Duties`. A duty whose lease has ended is its node's until another takes it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def hold(self, name: str, node: str, lease: int) -> bool:
        """See `Duties.hold`. That it is another's is read: whoever waits for it writes nothing."""
        rows = await self._database.read("SELECT node, until FROM duties WHERE name = :name", {"name": clean(name)})
        if rows and rows[0][0] not in (None, node) and rows[0][1] > self._database.clock():
            return False
        return await self._database.write(self._hold, _Change(name, node, lease))

    async def free_at(self, name: str) -> int:
        """See `Duties.free_at`."""
        rows = await self._database.read("SELECT until FROM duties WHERE name = :name", {"name": clean(name)})
        return rows[0][0] if rows else 0

    async def release(self, name: str, node: str) -> None:
        """See `Duties.release`."""
        await self._database.write(self._release, _Change(name, node))

    async def recall(self, name: str) -> Mapping[str, Any]:
        """See `Duties.recall`."""
        rows = await self._database.read("SELECT state FROM duties WHERE name = :name", {"name": name})
        state: Mapping[str, Any] = json.loads(rows[0][0]) if rows else {}
        return state

    async def remember(self, name: str, node: str, state: Mapping[str, Any]) -> bool:
        """See `Duties.remember`."""
        return await self._database.write(self._remember, _Change(name, node, state=dumps(dict(state))))

    def _hold(self, changes: Sequence[_Change]) -> Generator[Step, Rows, list[bool]]:
        now = self._database.clock()
        answers = []
        for change in changes:
            rows = yield Statement(
                "INSERT INTO duties (name, node, until) VALUES (:name, :node, :now + :lease) "
                "ON CONFLICT (name) DO UPDATE SET node = excluded.node, until = excluded.until "
                "WHERE duties.node IS NULL OR duties.node = excluded.node OR duties.until <= :now RETURNING name",
                {"name": clean(change.name), "node": change.node, "lease": change.lease, "now": now},
            )
            answers.append(bool(rows))
        return answers

    def _release(self, changes: Sequence[_Change]) -> Generator[Step, Rows, list[None]]:
        for change in changes:
            yield Statement(
                "UPDATE duties SET node = NULL, until = 0 WHERE name = :name AND node = :node",
                {"name": clean(change.name), "node": change.node},
            )
        return [None] * len(changes)

    def _remember(self, changes: Sequence[_Change]) -> Generator[Step, Rows, list[bool]]:
        answers = []
        for change in changes:
            rows = yield Statement(
                "UPDATE duties SET state = :state WHERE name = :name AND node = :node RETURNING name",
                {"name": clean(change.name), "node": change.node, "state": change.state},
            )
            answers.append(bool(rows))
        return answers


@dataclass(frozen=True, slots=True)
class _Seen:
    """How a source did, just now."""

    name: str
    status: str
    reason: str
    until: int | None


class SqlHealth:
    """Implements `outside.SourceHealth`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def saw(self, name: str, status: str, *, reason: str = "", until: int | None = None) -> None:
        """See `SourceHealth.saw`. An `ok` is a look that worked."""
        await self._database.write(self._saw, _Seen(name, status, reason, until))

    def _saw(self, seen: Sequence[_Seen]) -> Generator[Step, Rows, list[None]]:
        now = self._database.clock()
        for one in seen:
            yield Statement(
                "INSERT INTO sources (name, status, reason, until, last_poll, changed_at) "
                "VALUES (:name, :status, :reason, :until, :polled, :now) ON CONFLICT (name) DO UPDATE SET "
                "changed_at = CASE WHEN sources.status = excluded.status THEN sources.changed_at "
                "  ELSE excluded.changed_at END, "
                "status = excluded.status, reason = excluded.reason, until = excluded.until, "
                "last_poll = coalesce(excluded.last_poll, sources.last_poll)",
                {
                    "name": clean(one.name), "status": one.status, "reason": short(one.reason) or "",
                    "until": one.until, "polled": now if one.status == "ok" else None, "now": now,
                },
            )  # fmt: skip
        return [None] * len(seen)
