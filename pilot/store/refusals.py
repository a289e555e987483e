"""Requests that were turned down: each kept once, with its event, and found again before it is judged anew."""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping, Sequence

from pilot.domain.delivery import Refusal
from pilot.domain.events import EventType
from pilot.domain.text import clean
from pilot.store.database import Database, Rows, Statement, Step
from pilot.store.records import Table, event, events_statement, short

_KEYS = Table(key="text")


class SqlRefusals:
    """Implements `outside.Refusals`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        wanted = f"SELECT k.key FROM {_KEYS.of(database.dialect, 'k')}"
        self._known = f"""
            SELECT idempotency_key, 'accepted' FROM executions
              WHERE project_id = :project AND idempotency_key IN ({wanted})
            UNION ALL SELECT key, 'accepted' FROM idempotency_keys WHERE project_id = :project AND key IN ({wanted})
            UNION ALL SELECT key, 'refused' FROM refusals WHERE project_id = :project AND key IN ({wanted})"""

    async def known(self, project_id: int, keys: Collection[str]) -> Mapping[str, str]:
        """See `Refusals.known`."""
        if not keys:
            return {}
        items = _KEYS.rows((clean(key),) for key in keys)
        rows = await self._database.read(self._known, {"project": project_id, "items": items})
        found: dict[str, str] = {}
        for key, word in rows:  # what was accepted comes first, and stands
            found.setdefault(key, word)
        return found

    async def refuse(self, refusal: Refusal) -> bool:
        """See `Refusals.refuse`. What was accepted is known, too."""
        return await self._database.write(self._refuse, refusal)

    def _refuse(self, refusals: Sequence[Refusal]) -> Generator[Step, Rows, list[bool]]:
        now = self._database.clock()
        answers = []
        for refusal in refusals:
            facts = {
                "source": clean(refusal.source), "actor": clean(refusal.actor), "reason": short(refusal.reason) or "",
                "task_id": clean(refusal.task_id), "key": clean(refusal.key), "url": clean(refusal.url),
            }  # fmt: skip
            project = refusal.project_id or 0
            rows = yield Statement(
                "INSERT INTO refusals (project_id, key, source, task_id, actor, reason, url, at) "
                "SELECT :project, :key, :source, :task_id, :actor, :reason, :url, :now WHERE NOT EXISTS "
                "(SELECT 1 FROM executions WHERE project_id = :project AND idempotency_key = :key) AND NOT EXISTS "
                "(SELECT 1 FROM idempotency_keys WHERE project_id = :project AND key = :key) "
                "ON CONFLICT DO NOTHING RETURNING key",
                {**facts, "project": project, "now": now},
            )
            if rows:
                told = event(EventType.REFUSED, None, refusal.project_id or None, **facts)
                yield events_statement(self._database.dialect, now, [told])
            answers.append(bool(rows))
        return answers
