"""What the store knows, for the CLI, the API and the dashboard alike. Reads only.

Lists stay quick beside any number of finished rows: a statement names the index it walks by that index's
literal states, and `+id` keeps an engine from walking the primary key in its place.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from pilot.domain.delivery import Refusal
from pilot.domain.errors import UsageError
from pilot.domain.events import Event
from pilot.domain.execution import FINAL, OPEN, Execution, Status
from pilot.domain.outcome import Usage
from pilot.domain.ports import Document, Why
from pilot.domain.task import Project
from pilot.domain.work import Made
from pilot.store.beside import beside_of, to_beside
from pilot.store.database import Database
from pilot.store.documents import execution_document
from pilot.store.made import made_of, to_made
from pilot.store.overview import node_documents, overview, project_documents
from pilot.store.pages import ENDED_SHOWN, Page, first_page, page_after
from pilot.store.pages import statements as page_statements
from pilot.store.records import ids
from pilot.store.rows import EXECUTION_SELECT, to_execution
from pilot.store.waiting import why

# Each by the index that has its rows alone.
_COUNTS = """
    SELECT status, count(*) FROM executions WHERE finished_at IS NOT NULL GROUP BY status
    UNION ALL SELECT 'queued', count(*) FROM executions WHERE status = 'queued' AND due = 1
    UNION ALL SELECT 'queued', count(*) FROM executions WHERE status = 'queued' AND due = 0
    UNION ALL SELECT 'running', count(*) FROM executions WHERE status = 'running'
    UNION ALL SELECT status, count(*) FROM executions WHERE status IN ('blocked', 'needs_human') GROUP BY status"""
_PROJECT_COLUMNS = "id, key, name, path, max_running"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One row of `attempts`. Times are UTC ms; `gates` holds one mapping per gate result."""

    number: int
    fence: int
    node: str
    phase: str | None
    backend: str
    model: str | None
    session_id: str | None
    started_at: int
    finished_at: int | None
    outcome: str | None
    failure_class: str | None
    detail: str | None
    excerpt: str | None
    summary: str | None
    gates: Sequence[Document]
    tree: str | None
    head_sha: str | None
    input_tokens: int | None
    output_tokens: int | None
    cost_usd: float | None
    account: str
    sandbox: str | None


@dataclass(frozen=True, slots=True)
class Asked:
    """One row of `questions`; open while `answered_at` is None. `preset` is the default answer."""

    id: int
    execution_id: int
    attempt: int
    text: str
    options: tuple[str, ...]
    preset: str | None
    asked_at: int
    answer: str | None
    answered_by: str | None
    answered_at: int | None


@dataclass(frozen=True, slots=True)
class Piece:
    """One piece of an attempt's output; (attempt, seq) is its place, `at` UTC ms."""

    attempt: int
    seq: int
    at: int
    kind: str
    data: bytes


_ATTEMPT_COLUMNS = tuple(field.name for field in fields(Attempt))
_ASKED_COLUMNS = tuple(field.name for field in fields(Asked))


class History:
    """Every read. Unknown ids give None or nothing; raises `StoreError` when the database can't be read."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._beside = beside_of(database.dialect)
        self._made = made_of(database.dialect)

    async def execution(self, id: int) -> Execution | None:
        """One execution."""
        rows = await self._database.read(f"SELECT {EXECUTION_SELECT} FROM executions WHERE id = :id", {"id": id})
        return to_execution(rows[0]) if rows else None

    async def executions(
        self,
        *,
        statuses: Collection[Status] = (),
        project_id: int | None = None,
        source: str | None = None,
        task_id: str | None = None,
        everything: bool = False,
        limit: int = 100,
        cursor: str | None = None,
    ) -> tuple[list[Execution], str | None]:
        """A page of executions and the cursor of the next one: open ones, newest first, then ended ones.

        Ended ones come last-ended first, of one project or task newest first. Without a status, a task and
        `everything` only the last 20 ended ones are shown. Raises `UsageError` for a bad cursor.
        """
        shown = frozenset(statuses) or frozenset(Status)
        page = page_after(cursor) if cursor else first_page()
        cap = None if everything or statuses or task_id else ENDED_SHOWN
        filters = {"project_id": project_id, "source": source, "task_id": task_id}
        found: list[Execution] = []
        if page.open_before is not None and shown & OPEN:
            found = await self._page(page, shown & OPEN, filters, limit + 1)
            if len(found) > limit:
                return found[:limit], Page(open_before=found[limit - 1].id).cursor()
        room = limit - len(found)
        if not shown & FINAL:
            return found, None
        if page.open_before is not None:
            page = Page()
        ended = await self._page(page, shown & FINAL, filters, min(room + 1, cap or room + 1))
        if len(ended) <= room:
            return found + ended, None
        last = ended[room - 1] if room else None
        after = Page(ended_at=last.finished_at, ended_before=last.id) if last else Page()
        return found + ended[:room], after.cursor()

    async def _page(
        self, page: Page, statuses: Collection[Status], filters: dict[str, Any], limit: int
    ) -> list[Execution]:
        sql, params = page_statements(page, statuses, filters, limit)
        return [to_execution(row) for row in await self._database.read(sql, params)]

    async def attempts(self, id: int) -> list[Attempt]:
        """Its attempts, first to last."""
        rows = await self._database.read(
            f"SELECT {', '.join(_ATTEMPT_COLUMNS)} FROM attempts WHERE execution_id = :id ORDER BY number",
            {"id": id},
        )
        found = [dict(zip(_ATTEMPT_COLUMNS, row, strict=True)) for row in rows]
        return [Attempt(**{**row, "gates": json.loads(row["gates"] or "[]")}) for row in found]

    async def used(self, session_id: str) -> Usage:
        """What all attempts in this session were booked with, as far as it is known."""
        rows = await self._database.read(
            "SELECT sum(input_tokens), sum(output_tokens), sum(cost_usd) FROM attempts "
            "WHERE session_id IS NOT NULL AND session_id = :session AND finished_at IS NOT NULL",
            {"session": session_id},
        )
        return Usage(*rows[0])

    async def questions(self, id: int | None = None) -> list[Asked]:
        """The questions of an execution, oldest first; without an id all that wait for an answer."""
        which = "answered_at IS NULL" if id is None else "execution_id = :id"
        rows = await self._database.read(
            f"SELECT {', '.join(_ASKED_COLUMNS)} FROM questions WHERE {which} ORDER BY id", {"id": id}
        )
        found = [dict(zip(_ASKED_COLUMNS, row, strict=True)) for row in rows]
        return [Asked(**{**row, "options": tuple(json.loads(row["options"]))}) for row in found]

    async def output(
        self, id: int, *, attempt: int | None = None, after: tuple[int, int] = (0, 0), limit: int = 500
    ) -> list[Piece]:
        """What its agents wrote, in order, from behind the piece `after` (attempt, seq)."""
        only = "attempt = :attempt AND" if attempt is not None else ""
        rows = await self._database.read(
            "SELECT attempt, seq, at, kind, data FROM output "
            f"WHERE execution_id = :id AND {only} (attempt, seq) > (:after_attempt, :after_seq) "
            "ORDER BY attempt, seq LIMIT :limit",
            {"id": id, "attempt": attempt, "after_attempt": after[0], "after_seq": after[1], "limit": limit},
        )
        return [Piece(attempt, seq, at, kind, bytes(data)) for attempt, seq, at, kind, data in rows]

    async def events(
        self,
        *,
        after: int | None = None,
        types: Collection[str] = (),
        execution: int | None = None,
        limit: int = 500,
    ) -> list[Event]:
        """Events in order: those behind the id `after`, or without it the last `limit`."""
        where = ["id > :after" if after is not None else "id > 0"]
        params: dict[str, Any] = {"after": after, "limit": limit, "execution": execution}
        if execution is not None:
            where.append("execution_id = :execution")
        if types:
            names = {f"type_{n}": name for n, name in enumerate(types)}
            params |= names
            where.append(f"type IN ({', '.join(f':{name}' for name in names)})")
        order = "ASC" if after is not None else "DESC"
        rows = await self._database.read(
            "SELECT id, at, type, execution_id, project_id, data FROM events "
            f"WHERE {' AND '.join(where)} ORDER BY id {order} LIMIT :limit",
            params,
        )
        found = [
            Event(id, at, kind, execution_id, project_id, json.loads(data))
            for id, at, kind, execution_id, project_id, data in rows
        ]
        return found if after is not None else found[::-1]

    async def why(self, id: int, now: int) -> Why | None:
        """Why it is not running, where it stands and what happens next; `now` is UTC ms."""
        execution = await self.execution(id)
        return None if execution is None else await why(self._database, execution, now)

    async def counts(self) -> dict[Status, int]:
        """How many executions there are of each status; every status is there."""
        rows = await self._database.read(_COUNTS)
        counted = dict.fromkeys(Status, 0)
        for status, count in rows:
            counted[Status(status)] += count
        return counted

    async def projects(self) -> list[Project]:
        """Every project the store knows, by name."""
        rows = await self._database.read(f"SELECT {_PROJECT_COLUMNS} FROM projects ORDER BY name, id")
        return [Project(*row) for row in rows]

    async def find_project(self, wanted: str) -> Project | None:
        """The project with this key, path or name, in this order. Raises `UsageError` for a shared name."""
        rows = await self._database.read(
            f"SELECT {_PROJECT_COLUMNS} FROM projects "
            "WHERE key = :wanted OR path = :wanted OR name = :wanted "
            "ORDER BY CASE :wanted WHEN key THEN 0 WHEN path THEN 1 ELSE 2 END, id",
            {"wanted": wanted},
        )
        found = [Project(*row) for row in rows]
        if len(found) > 1 and wanted not in (found[0].key, found[0].path):
            places = ", ".join(project.path for project in found)
            raise UsageError(f"{len(found)} projects are called {wanted!r}; name one by its path: {places}")
        return found[0] if found else None

    async def refused(self, task_id: str) -> list[Refusal]:
        """The requests for this task that were turned down, oldest first, in whatever project."""
        rows = await self._database.read(
            "SELECT key, source, project_id, task_id, actor, reason, url, at FROM refusals WHERE task_id = :task_id "
            "ORDER BY at, key",
            {"task_id": task_id},
        )
        return [
            Refusal(
                key=key, source=source, project_id=project or None, task_id=task, actor=actor, reason=reason, url=url,
                at=at,
            )
            for key, source, project, task, actor, reason, url, at in rows
        ]  # fmt: skip

    async def paused_by(self, project_id: int) -> list[str]:
        """The owners of the pauses of a project (0: of everything)."""
        rows = await self._database.read(
            "SELECT owner FROM pauses WHERE project_id = :id ORDER BY owner", {"id": project_id}
        )
        return [owner for (owner,) in rows]

    async def document(self, execution: Execution) -> Document:
        """The execution document."""
        return (await self.documents([execution]))[0]

    async def documents(self, executions: Iterable[Execution]) -> list[Document]:
        """The execution documents, with what each depends on and its last attempt ran in, in the order given."""
        executions = list(executions)
        rows = await self._database.read(self._beside, {"ids": ids(execution.id for execution in executions)})
        beside = to_beside(rows)
        return [execution_document(one, *beside.get(one.id, ((), None))) for one in executions]

    async def dependents(self, id: int) -> list[int]:
        """The ids of what waits for it, or waited."""
        rows = await self._database.read(
            "SELECT execution_id FROM dependencies WHERE depends_on = :id ORDER BY execution_id", {"id": id}
        )
        return [row[0] for row in rows]

    async def made(self, execution: Execution) -> Sequence[Made]:
        """What the executions that it waited for have come to, in the order of ids."""
        rows = await self._database.read(self._made, {"ids": ids([execution.id])})
        return to_made(rows).get(execution.id, ())

    async def nodes(self, now: int) -> list[Document]:
        """The nodes of `status --json`; `now` is UTC ms."""
        return await node_documents(self._database, now)

    async def project_rows(self) -> list[Document]:
        """The projects of `status --json`."""
        return await project_documents(self._database)

    async def status(self, now: int) -> Document:
        """The document of `status --json`; `now` is UTC ms."""
        return await overview(self._database, await self.counts(), now)
