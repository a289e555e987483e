"""Reading a SQLite store without an event loop, for commands that answer at once.

asyncio and aiosqlite cost 60 ms of the 250 that a person waits for `pilot list`. `History` awaits nothing but its
database, so one that answers at once lets its coroutines run to their end in one step.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pilot.domain.errors import StoreError
from pilot.store.database import Dialect, Item, Listener, Operation, Result, Rows, Statement
from pilot.store.history import History
from pilot.store.migrate import check, inspect, migrate, newest
from pilot.store.sqlite_dialect import BUSY_TIMEOUT, FAILURES, NO_DATABASE, SqliteDialect, configure, translate

T = TypeVar("T")


class Glance:
    """A `Database` that only reads, and is done when it returns."""

    def __init__(self, path: Path, clock: Callable[[], int]) -> None:
        self.clock = clock
        self.dialect: Dialect = SqliteDialect()
        self._path = path
        try:
            self._connection = _connect(path, clock)
        except sqlite3.Error as error:
            raise translate(error, path) from error

    async def read(self, sql: str, params: Mapping[str, Any] | None = None) -> Rows:
        """See `Database.read`."""
        try:
            return self._connection.execute(sql, params or {}).fetchall()
        except FAILURES as error:
            raise translate(error, self._path) from error

    async def read_all(self, statements: Sequence[Statement]) -> list[Rows]:
        """See `Database.read_all`."""
        return [await self.read(one.sql, one.params) for one in statements]

    async def write(self, operation: Operation[Item, Result], item: Item) -> Result:
        """Never."""
        _refuse()

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Never."""
        _refuse()

    async def changed(self) -> bool:
        """Never asked: whoever follows asks `History` itself."""
        return True

    async def close(self) -> None:
        """See `Database.close`."""
        self._connection.close()


def _refuse() -> NoReturn:
    raise TypeError("a glance only reads")


def _connect(path: Path, clock: Callable[[], int]) -> sqlite3.Connection:
    check(path)
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None, timeout=BUSY_TIMEOUT / 1000
    )
    try:
        configure(connection, read_only=True)
        if inspect(connection, path) < newest("sqlite"):
            migrate(path, clock)
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def glance(path: Path, clock: Callable[[], int]) -> Iterator[History]:
    """The history of the store in this file. Raises `StoreError` when there is none, `StoreRefused` as opening does."""
    if not path.exists():
        raise StoreError(NO_DATABASE.format(path=path))
    database = Glance(path, clock)
    try:
        yield History(database)
    finally:
        answer(database.close())


def answer(question: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns that never has to wait."""
    try:
        question.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    question.close()
    raise TypeError("this has to wait, and needs a loop")
