"""A SQLite file as one end of a copy."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from pilot.domain.errors import StoreError, StoreRefused
from pilot.domain.ports import Clock, Node
from pilot.store.copy_ends import NODES, UNSOUND, to_node
from pilot.store.copy_tables import MAKE_MARK, MARK, CopyTable, Key, Mark, copy_triggers, to_mark
from pilot.store.database import Row
from pilot.store.migrate import APPLICATION_ID, COPYING_ID, inspect, migrate, newest
from pilot.store.sqlite_dialect import BUSY_TIMEOUT, NO_DATABASE, configure, translate


class SqliteEnd:
    """Implements `CopyEnd`. A source is locked for writing all the time: readers see it as ever."""

    def __init__(self, path: Path, clock: Clock, *, target: bool) -> None:
        self.words = str(path)
        self._path = path
        self._clock = clock
        self._connection: sqlite3.Connection | None = None
        if target:
            return
        if not path.exists():
            raise StoreError(NO_DATABASE.format(path=path))
        with self._in_words():
            migrate(path, clock)
            self._connection = self._connect()

    def identity(self) -> str:
        """See `CopyEnd.identity`."""
        with suppress(OSError):
            status = self._path.stat()
            return f"sqlite:{status.st_dev}:{status.st_ino}"
        return f"sqlite:{self._path.absolute()}"

    def hold(self) -> None:
        """See `CopyEnd.hold`."""
        with self._in_words():
            self._open.execute("BEGIN IMMEDIATE")
            self._open.execute("PRAGMA query_only = ON")
            inspect(self._open, self._path)

    def clock(self) -> int:
        """See `CopyEnd.clock`."""
        return self._clock()

    def store(self) -> str:
        """See `CopyEnd.store`."""
        with self._in_words():
            ((id,),) = self._open.execute("SELECT id FROM store").fetchall()
        return str(id)

    def nodes(self) -> list[tuple[Node, int]]:
        """See `CopyEnd.nodes`."""
        with self._in_words():
            return [to_node(row) for row in self._open.execute(NODES)]

    def numbers(self, tables: Sequence[CopyTable]) -> dict[str, int]:
        """See `CopyEnd.numbers`. A number is never given twice, so what was removed counts."""
        with self._in_words():
            given: dict[str, int] = dict(self._open.execute("SELECT name, seq FROM sqlite_sequence").fetchall())
            for table in tables:
                if tuple(table.columns[n] for n in table.key) == ("id",) and table.kinds[table.key[0]] == "bigint":
                    ((last,),) = self._open.execute(f"SELECT coalesce(max(id), 0) FROM {table.name}").fetchall()
                    given[table.name] = max(given.get(table.name, 0), last)
        return {table.name: given[table.name] for table in tables if given.get(table.name)}

    def count(self, table: CopyTable) -> int:
        """See `CopyEnd.count`."""
        with self._in_words():
            ((rows,),) = self._open.execute(f"SELECT count(*) FROM {table.name}").fetchall()
        return int(rows)

    def rows(self, table: CopyTable, after: Key | None = None, upto: Key | None = None) -> Iterator[Row]:
        """See `CopyEnd.rows`."""
        key = ", ".join(table.columns[n] for n in table.key)
        places = ", ".join("?" * len(table.key))
        bounds = [f"({key}) {sign} ({places})" for sign, bound in ((">", after), ("<=", upto)) if bound is not None]
        where = f" WHERE {' AND '.join(bounds)}" if bounds else ""
        with self._in_words():
            yield from self._open.execute(
                f"SELECT {', '.join(table.columns)} FROM {table.name}{where} ORDER BY {key}",
                (*(after or ()), *(upto or ())),
            )

    def mark(self) -> Mark | None:
        """See `CopyEnd.mark`."""
        if not self._path.exists():
            return None
        with self._in_words():
            ((application,),) = self._look("PRAGMA application_id")
            return to_mark(self._look(MARK)[0]) if application == COPYING_ID else None

    def taken(self, tables: Sequence[CopyTable]) -> str | None:
        """See `CopyEnd.taken`."""
        if not self._path.exists():
            return None
        with self._in_words():
            if self._connection is None:
                self._look("SELECT 1")  # refuses another program's file before anything of it is touched
                self._connection = self._connect()
            return self._taken(self._connection, tables)

    def _taken(self, connection: sqlite3.Connection, tables: Sequence[CopyTable]) -> str | None:
        version = inspect(connection, self._path)
        if 0 < version < newest("sqlite"):
            raise StoreRefused(
                f"{self._path} is a store with the older schema {version}; it is left as it is. Name a new file"
            )
        if not version or not any(
            connection.execute(f"SELECT 1 FROM {table.name} LIMIT 1").fetchone()
            for table in tables
            if table.name != "store"
        ):
            return None
        ((id,),) = connection.execute("SELECT id FROM store").fetchall()
        return str(id)

    def begin(self, tables: Sequence[CopyTable], mark: Mark) -> None:
        """See `CopyEnd.begin`."""
        with self._in_words():
            if not self._path.exists():
                self._make_file()
            ((application,),) = self._look("PRAGMA application_id")
            if application != COPYING_ID:
                migrate(self._path, self._clock)
            self._connection = self._connection or self._connect()
            with self._transaction() as connection:
                ((application,),) = connection.execute("PRAGMA application_id")
                if application != COPYING_ID and self._taken(connection, tables) is not None:
                    raise StoreRefused(f"{self._path} is not empty; somebody has begun to work with it")
                triggers = connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall()
                for (name,) in triggers:
                    connection.execute(f"DROP TRIGGER {name}")
                for table in reversed(tables):
                    connection.execute(f"DELETE FROM {table.name}")
                connection.execute("DELETE FROM sqlite_sequence")
                connection.execute(MAKE_MARK)
                connection.execute("DELETE FROM copying")
                connection.execute(
                    "INSERT INTO copying VALUES (?, ?, ?, ?)",
                    (mark.store, mark.schema, mark.begun_at, mark.progress()),
                )
                connection.execute(f"PRAGMA application_id = {COPYING_ID}")

    def write(self, table: CopyTable, rows: Sequence[Row], mark: Mark) -> None:
        """See `CopyEnd.write`."""
        places = ", ".join("?" * len(table.columns))
        into = f"INSERT INTO {table.name} ({', '.join(table.columns)}) VALUES ({places})"
        with self._in_words():
            self._connection = self._connection or self._connect()
            with self._transaction() as connection:
                connection.executemany(into, rows)
                connection.execute("UPDATE copying SET progress = ?", (mark.progress(),))

    def finish(self, tables: Sequence[CopyTable], numbers: Mapping[str, int], verify: Callable[[], None]) -> None:
        """See `CopyEnd.finish`."""
        with self._in_words():
            self._connection = self._connection or self._connect()
            with self._transaction() as connection:
                verify()
                for table, row, parent, _ in connection.execute("PRAGMA foreign_key_check").fetchmany(1):
                    raise StoreError(f"{self._path}: row {row} of {table} points to nothing in {parent}")
                counted = connection.execute(
                    "SELECT name FROM sqlite_master WHERE type = 'table' AND sql LIKE '%AUTOINCREMENT%'"
                ).fetchall()
                connection.execute("DELETE FROM sqlite_sequence")
                connection.executemany(
                    "INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)",
                    [(name, numbers[name]) for (name,) in counted if name in numbers],
                )
                for trigger in copy_triggers():
                    connection.execute(trigger)
                connection.execute("DROP TABLE copying")
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")

    def close(self) -> None:
        """See `CopyEnd.close`."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @property
    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = self._connect()
        return self._connection

    def _connect(self) -> sqlite3.Connection:
        uri = f"{self._path.absolute().as_uri()}?mode=rw"
        connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=BUSY_TIMEOUT / 1000)
        configure(connection, read_only=False)
        return connection

    def _look(self, sql: str) -> list[Row]:
        """Without touching the file, as long as that can be."""
        if self._connection is None:
            connection = sqlite3.connect(f"{self._path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
            try:
                with suppress(sqlite3.OperationalError):  # there is something to recover, and only a writer can
                    _known(connection, self._path)
                    return connection.execute(sql).fetchall()
            finally:
                connection.close()
        _known(self._open, self._path)
        return self._open.execute(sql).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        connection = self._open
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.IntegrityError as error:
            raise StoreError(UNSOUND.format(error=error)) from error
        except sqlite3.Error as error:
            raise translate(error, self._path) from error

    def _make_file(self) -> None:
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise StoreError(f"can't make {self._path}: {error.strerror}") from error


def _known(connection: sqlite3.Connection, path: Path) -> None:
    """Raise `StoreRefused` for a file that is neither empty, nor a store, nor a copy that is not whole."""
    ((application,),) = connection.execute("PRAGMA application_id").fetchall()
    if application != COPYING_ID:
        inspect(connection, path)
