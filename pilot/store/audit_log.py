"""What was asked over HTTP, and by whom: a row for every call that was to change something."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import fields
from typing import Any

from pilot.domain.access import Call
from pilot.domain.text import clean
from pilot.store.database import Database, Rows, Statement, Step

INSERT = (
    "INSERT INTO audit (at, token, actor, peer, method, path, status) "
    "VALUES (:at, :token, :actor, :peer, :method, :path, :status)"
)
_COLUMNS = tuple(field.name for field in fields(Call))
_LONGEST = 500
_PRUNED = 5_000  # rows that are removed at a time


class SqlAudit:
    """Implements `access.Audit`. Calls that end at the same time share one commit, also with what they did."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def write(self, *calls: Call) -> None:
        """See `Audit.write`."""
        await self._database.write(self._writes, calls)

    async def read(self, *, before: int | None = None, limit: int = 100) -> list[Call]:
        """See `Audit.read`."""
        where = "" if before is None else "WHERE id < :before"
        rows = await self._database.read(
            f"SELECT {', '.join(_COLUMNS)} FROM audit {where} ORDER BY id DESC LIMIT :limit",
            {"before": before, "limit": limit},
        )
        return [Call(**dict(zip(_COLUMNS, row, strict=True))) for row in rows]

    async def prune(self, before: int) -> int:
        """Remove what is older than a time (UTC ms); how many went."""
        total = 0
        while True:
            count = await self._database.write(self._prunes, before)
            total += count
            if count < _PRUNED:
                return total

    def _writes(self, items: Sequence[Sequence[Call]]) -> Generator[Step, Rows, list[None]]:
        yield Statement(INSERT, many=[_stored(call) for calls in items for call in calls])
        return [None] * len(items)

    def _prunes(self, befores: Sequence[int]) -> Generator[Step, Rows, list[int]]:
        counts = []
        for before in befores:
            rows = yield Statement(
                "DELETE FROM audit WHERE id IN (SELECT id FROM audit WHERE at < :before LIMIT :most) RETURNING id",
                {"before": before, "most": _PRUNED},
            )
            counts.append(len(rows))
        return counts


def _stored(call: Call) -> dict[str, Any]:
    values = {name: getattr(call, name) for name in _COLUMNS}
    return {name: clean(value)[:_LONGEST] if isinstance(value, str) else value for name, value in values.items()}
