"""The event log as whoever follows it reads it: from behind a place, in windows, none of them long."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from pilot.domain.events import Event
from pilot.store.database import Database
from pilot.store.records import Table

_PLACES = Table(id="bigint", attempt="bigint", seq="bigint")


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which events: of these types (none: all), this execution, this project."""

    types: frozenset[str] = frozenset()
    execution: int | None = None
    project: int | None = None

    def fits(self, event: Event) -> bool:
        """Whether it is one of them."""
        return (
            (not self.types or event.type in self.types)
            and (self.execution is None or event.execution_id == self.execution)
            and (self.project is None or event.project_id == self.project)
        )


class EventLog:
    """Reads only. Ids become visible in their order: there is one writer (an engine with several must see to it)."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._spoke = f"""
            SELECT p.id FROM {_PLACES.of(database.dialect, "p")} WHERE EXISTS (SELECT 1 FROM output o
              WHERE o.execution_id = p.id AND (o.attempt, o.seq) > (p.attempt, p.seq))"""

    async def last(self) -> int:
        """The id of the newest event; 0 when there is none."""
        ((id,),) = await self._database.read("SELECT max(id) FROM events")
        return id or 0

    async def between(self, after: int, until: int, wanted: Wanted, limit: int) -> list[Event]:
        """The first of those that are wanted with after < id <= until, in order."""
        where = ["id > :after", "id <= :until"]
        params: dict[str, Any] = {"after": after, "until": until, "limit": limit}
        if wanted.types:
            names = {f"type_{n}": name for n, name in enumerate(sorted(wanted.types))}
            params |= names
            where.append(f"type IN ({', '.join(f':{name}' for name in names)})")
        for column, value in (("execution_id", wanted.execution), ("project_id", wanted.project)):
            if value is not None:
                where.append(f"{column} = :{column}")
                params[column] = value
        rows = await self._database.read(
            "SELECT id, at, type, execution_id, project_id, data FROM events "
            f"WHERE {' AND '.join(where)} ORDER BY id LIMIT :limit",
            params,
        )
        return [Event(id, at, type, about, project, json.loads(data)) for id, at, type, about, project, data in rows]

    async def spoke(self, places: Iterable[tuple[int, int, int]]) -> Collection[int]:
        """Of (execution, attempt, seq), the executions that have output behind their place."""
        rows = await self._database.read(self._spoke, {"items": _PLACES.rows(places)})
        return {id for (id,) in rows}
