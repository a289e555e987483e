"""The SQLite engine: WAL, `synchronous=FULL`, one writing connection, and one commit for all who wait."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import aiosqlite

from pilot.domain.errors import Outdated, StoreError, UsageError
from pilot.store.database import (
    BEHIND_LAST,
    Ahead,
    Dialect,
    Heard,
    Item,
    Last,
    Listener,
    Notify,
    Operation,
    Result,
    Rows,
    Statement,
    Step,
)
from pilot.store.group import Group, Groups, Work, answer, refuse
from pilot.store.migrate import migrate, newest
from pilot.store.signals import FifoSignals
from pilot.store.sqlite_dialect import (
    BUSY_TIMEOUT,
    FAILURES,
    NO_DATABASE,
    UNSTORABLE,
    SqliteDialect,
    blames_item,
    configure,
    error_code,
    translate,
)

T = TypeVar("T")


class _Connection(aiosqlite.Connection):
    async def call(self, function: Callable[..., T], *args: Any) -> T:
        """Run a whole piece of work in the connection's thread: one hop, where a statement each costs 185 µs."""
        result: T = await self._execute(function, self._conn, *args)  # type: ignore[no-untyped-call]
        return result


class SqliteDatabase:
    """Implements `Database` on one file. Made by `open_sqlite`."""

    def __init__(self, path: Path, clock: Callable[[], int]) -> None:
        self.path = path
        self.clock = clock
        self.dialect: Dialect = SqliteDialect()
        self._reader: _Connection | None = None
        self._writer: _Connection | None = None
        self._waiting = Groups(self._commit)
        self._opening = asyncio.Lock()
        self._signals = FifoSignals(Path(f"{path}.wake"))
        self._data_version = -1
        self._known = newest("sqlite")

    async def write(self, operation: Operation[Item, Result], item: Item) -> Result:
        """See `Database.write`."""
        return await self._waiting.write(operation, item)

    async def read(self, sql: str, params: Mapping[str, Any] | None = None) -> Rows:
        """See `Database.read`."""
        return (await self.read_all([Statement(sql, params or {})]))[0]

    async def read_all(self, statements: Sequence[Statement]) -> list[Rows]:
        """See `Database.read_all`."""
        if self._reader is None:
            async with self._opening:
                if self._reader is None:
                    self._reader = await _connect(self.path, read_only=True)
        try:
            return await self._reader.call(_select, statements)
        except FAILURES as error:
            raise translate(error, self.path) from error

    def listen(self, listener: Listener) -> Callable[[], None]:
        """See `Database.listen`."""
        return self._signals.listen(listener)

    async def changed(self) -> bool:
        """See `Database.changed`."""
        version: int = (await self.read("PRAGMA data_version"))[0][0]
        before, self._data_version = self._data_version, version
        return before != version

    async def close(self) -> None:
        """See `Database.close`."""
        await self._waiting.settled()
        self._signals.close()
        for connection in (self._reader, self._writer):
            if connection is not None:
                await connection.close()
        self._reader = self._writer = None

    async def _commit(self, group: Group) -> None:
        work = [(operation, [item for item, _ in waiting]) for operation, waiting in group.items()]
        try:
            if self._writer is None:
                self._writer = await _connect(self.path, read_only=False)
            results, tokens = await self._writer.call(_commit_group, work, self._known)
        except Exception as error:  # noqa: BLE001  every waiting caller gets it
            refuse(group, translate(error, self.path) if isinstance(error, sqlite3.Error) else error)
            await self._after_error(error)
            return
        answer(group, results)
        if tokens:
            self._signals.send(tokens)

    async def _after_error(self, error: Exception) -> None:
        # After an I/O error in a commit the connection's view of the log can't be trusted (SQLite: reopen).
        if self._writer is not None and "IOERR" in error_code(error):
            connection, self._writer = self._writer, None
            with contextlib.suppress(sqlite3.Error):  # whoever waits for the next group must not hang on this one
                await connection.close()


def _select(connection: sqlite3.Connection, statements: Sequence[Statement]) -> list[Rows]:
    return [connection.execute(one.sql, one.params).fetchall() for one in statements]


def _commit_group(connection: sqlite3.Connection, work: Work, known: int) -> tuple[list[Sequence[Any]], set[str]]:
    tokens: set[str] = set()
    results: list[Sequence[Any]] = []
    connection.execute("BEGIN IMMEDIATE")
    try:
        _check(connection, known)
        for operation, items in work:
            results.append(_apart(connection, operation, items, tokens))
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return results, tokens


def _check(connection: sqlite3.Connection, known: int) -> None:
    """Who slept through an upgrade must not write by its old rules."""
    ((schema,),) = connection.execute("PRAGMA user_version").fetchall()
    if schema > known:
        raise Outdated("the store", schema, known)


def _apart(
    connection: sqlite3.Connection, operation: Operation[Any, Any], items: list[Any], tokens: set[str]
) -> Sequence[Any]:
    """All items at once; when one of them is bad, each by itself, so that it fails alone."""
    connection.execute("SAVEPOINT operation")
    try:
        result = _drive(connection, operation(items), tokens)
    except Exception as error:
        if not blames_item(error):
            raise
        connection.execute("ROLLBACK TO operation")
        connection.execute("RELEASE operation")
        if len(items) == 1:
            return [_refusal(error)]
        return [_apart(connection, operation, [item], tokens)[0] for item in items]
    connection.execute("RELEASE operation")
    return result


def _refusal(error: Exception) -> Exception:
    if isinstance(error, UNSTORABLE):
        return UsageError(f"no database holds such a value: {error}")
    return StoreError(f"the store refused: {error}") if isinstance(error, sqlite3.Error) else error


def _drive(connection: sqlite3.Connection, steps: Generator[Step, Rows, T], tokens: set[str]) -> T:
    rows: Any = None  # what a generator is started with
    last = False
    try:
        while True:
            step = steps.send(rows)
            rows = []
            if last:
                raise RuntimeError(BEHIND_LAST)
            if isinstance(step, Ahead):
                step = step.statement
            if isinstance(step, Notify):
                tokens.update(step.tokens)
            elif isinstance(step, Heard | Last):
                last = isinstance(step, Last)
            elif step.many is not None:
                connection.executemany(step.sql, step.many)
            else:
                rows = connection.execute(step.sql, step.params).fetchall()
    except StopIteration as stop:
        result: T = stop.value
        return result


async def _connect(path: Path, *, read_only: bool) -> _Connection:
    def connector() -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=rw",
            uri=True,
            isolation_level=None,
            timeout=BUSY_TIMEOUT / 1000,
            cached_statements=256,
            check_same_thread=False,
        )
        try:
            configure(connection, read_only=read_only)
        except BaseException:
            connection.close()
            raise
        return connection

    try:
        return await _Connection(connector, iter_chunk_size=64)  # type: ignore[return-value]
    except sqlite3.Error as error:
        raise translate(error, path) from error


async def open_sqlite(path: Path, clock: Callable[[], int], *, create: bool = True) -> SqliteDatabase:
    """Open pilot's file, bringing its schema up to this version first.

    Raises `StoreRefused` for a file that is not pilot's, newer than this pilot or damaged, which it leaves as it
    was; `Busy` for an older one that a node works with; `StoreError` when there is none and `create` is off.
    """
    await asyncio.to_thread(_prepare, path, clock, create)
    return SqliteDatabase(path, clock)


def _prepare(path: Path, clock: Callable[[], int], create: bool) -> None:
    if not path.exists():
        if not create:
            raise StoreError(NO_DATABASE.format(path=path))
        _make_file(path)
    try:
        migrate(path, clock)
    except sqlite3.Error as error:
        raise translate(error, path) from error


def _make_file(path: Path) -> None:
    # Made empty with its final mode before SQLite opens it: its own files (-wal, -shm) take over that mode.
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):  # another process was quicker; never open a database file by hand
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except OSError as error:
        raise StoreError(f"can't make {path}: {error.strerror}") from error
