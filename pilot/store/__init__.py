"""The store: one database, its queue, its journal and its history."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from pilot.domain.errors import UsageError

if TYPE_CHECKING:
    from pilot.domain.ports import Clock
    from pilot.store.artifacts import SqlArtifacts
    from pilot.store.audit_log import SqlAudit
    from pilot.store.database import Database
    from pilot.store.duties import SqlDuties, SqlHealth
    from pilot.store.history import History
    from pilot.store.inbox import SqlInbox
    from pilot.store.journal import SqlJournal
    from pilot.store.outbox import SqlOutbox
    from pilot.store.pulls import SqlPulls
    from pilot.store.queue import SqlQueue
    from pilot.store.refusals import SqlRefusals
    from pilot.store.tokens import SqlTokens
    from pilot.store.work_queue import SqlWorkQueue

__all__ = ["Store", "is_postgres", "open_queue", "open_store", "sqlite_path"]


def wall_clock() -> int:
    """UTC milliseconds."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class Store:
    """One open database, by what one does with it. `id` names it in every agent's process marker."""

    id: str
    database: Database
    queue: SqlQueue
    work: SqlWorkQueue
    journal: SqlJournal
    history: History
    refusals: SqlRefusals
    duties: SqlDuties
    health: SqlHealth
    outbox: SqlOutbox
    inbox: SqlInbox
    pulls: SqlPulls
    tokens: SqlTokens
    audit: SqlAudit
    artifacts: SqlArtifacts


def is_postgres(url: str) -> bool:
    """Whether the store is on PostgreSQL."""
    return url.startswith(("postgresql:", "postgres:"))


def sqlite_path(url: str) -> Path:
    """The file of a `sqlite:////path` URL. Raises `UsageError` for others."""
    # errors are without the URL: it may have a password in it
    if is_postgres(url):
        raise UsageError("the store is on PostgreSQL: this is for a SQLite file only")
    parts = urlsplit(url)
    if parts.scheme != "sqlite" or not parts.path:
        raise UsageError("store: expected sqlite:////path/pilot.db, or postgresql://user@host/db")
    return Path(unquote(parts.path.removeprefix("/")))


@asynccontextmanager
async def open_store(url: str, *, clock: Clock = wall_clock, create: bool = True) -> AsyncIterator[Store]:
    """Open a store by its URL, its schema brought up to date. Raises `StoreError` and `StoreRefused`."""
    # Here, so that a command that only reads doesn't load all that writes.
    from pilot.store.artifacts import SqlArtifacts
    from pilot.store.audit_log import SqlAudit
    from pilot.store.duties import SqlDuties, SqlHealth
    from pilot.store.history import History
    from pilot.store.inbox import SqlInbox
    from pilot.store.journal import SqlJournal
    from pilot.store.outbox import SqlOutbox
    from pilot.store.pulls import SqlPulls
    from pilot.store.queue import SqlQueue
    from pilot.store.refusals import SqlRefusals
    from pilot.store.tokens import SqlTokens
    from pilot.store.work_queue import SqlWorkQueue

    database = await _open(url, clock, create)
    work: SqlWorkQueue | None = None
    try:
        ((id,),) = await database.read("SELECT id FROM store")
        queue, journal = SqlQueue(database), SqlJournal(database)
        work = SqlWorkQueue(database, queue, journal, steady=time.monotonic if clock is wall_clock else None)
        yield Store(
            str(id),
            database,
            queue=queue,
            work=work,
            journal=journal,
            history=History(database),
            refusals=SqlRefusals(database),
            duties=SqlDuties(database),
            health=SqlHealth(database),
            outbox=SqlOutbox(database),
            inbox=SqlInbox(database),
            pulls=SqlPulls(database),
            tokens=SqlTokens(database),
            audit=SqlAudit(database),
            artifacts=SqlArtifacts(database),
        )
    finally:
        if work is not None:
            await work.close()
        await database.close()


async def _open(url: str, clock: Clock, create: bool) -> Database:
    if not is_postgres(url):
        from pilot.store.sqlite import open_sqlite

        return await open_sqlite(sqlite_path(url), clock, create=create)
    opened = of_postgres("postgres").open_postgres(url, None if clock is wall_clock else clock, create=create)
    database: Database = await opened
    return database


def of_postgres(module: str) -> Any:
    """A module of `pilot.store` that needs psycopg. Raises `UsageError` where that is not installed."""
    try:
        return import_module(f"pilot.store.{module}")
    except ImportError as error:
        raise UsageError(
            f"a store on PostgreSQL needs psycopg ({error}): `pip install 'pilot-dispatcher[postgres]'`"
        ) from None


@asynccontextmanager
async def open_queue(url: str, *, clock: Clock = wall_clock) -> AsyncIterator[SqlWorkQueue]:
    """Only the queue, for programs that bring their own workers."""
    async with open_store(url, clock=clock) as store:
        yield store.work
