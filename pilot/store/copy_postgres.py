"""A PostgreSQL store as one end of a copy: its lock held by one session, rows by the COPY protocol."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus

from pilot.domain.errors import StoreError, StoreRefused
from pilot.domain.ports import Clock, Node
from pilot.store.copy_ends import NODES, UNSOUND, to_node
from pilot.store.copy_tables import MAKE_MARK, MARK, CopyTable, Key, Mark, to_mark
from pilot.store.database import Row
from pilot.store.migrate import newest
from pilot.store.postgres_dialect import PATIENCE, Failed, Lost, refused, translate
from pilot.store.postgres_group import LOCK
from pilot.store.postgres_migrate import prepare
from pilot.store.postgres_place import Place

AT_ONCE, FEW = 2_000, 50
"""Rows that are fetched in one go; few of those that may be a megabyte each."""
_WIDE = frozenset(("body", "payload"))
_TYPES: Mapping[str, type] = {"bigint": int, "text": str, "double precision": float, "bytea": bytes}

# Longer than any statement of the engine's, and idle between two batches: no limit is meant for this.
_UNLIMITED = (
    "SELECT set_config(name, '0', false) FROM pg_settings WHERE name IN ('statement_timeout', 'transaction_timeout', "
    "'idle_in_transaction_session_timeout', 'idle_session_timeout')"
)


class PostgresEnd:
    """Implements `CopyEnd`. `clock` None: the server's.

    Who writes to a store takes its lock for a transaction; this takes it for the session, so that nobody else can.
    """

    def __init__(self, url: str, clock: Clock | None, *, target: bool) -> None:
        self._place = Place(url)
        self.words = self._place.name
        self._clock = clock
        self._held = False
        if not target:
            self._prepare(create=False)
        with self._in_words():
            self._connection = psycopg.connect(self._place.conninfo, autocommit=True)
        try:
            self._schema = self._set_up()
        except BaseException:
            self.close()
            raise

    def _set_up(self) -> int:
        with self._in_words():
            self._execute(_UNLIMITED)
            self._execute(f"SET lock_timeout = {round(PATIENCE * 1000)}")
            ((standby, schema),) = self._execute(
                "SELECT pg_is_in_recovery(), quote_ident(current_schema())::regnamespace::oid::bigint"
            )
        if standby:
            raise StoreError(f"{self.words} is a standby, where nobody can be kept from writing; name the primary")
        if schema is None:
            raise StoreError(f"{self.words}: the role's search_path names no schema that is there; create one")
        return int(schema)

    def identity(self) -> str:
        """See `CopyEnd.identity`."""
        with self._in_words():
            ((identity,),) = self._execute(
                "SELECT concat_ws(':', extract(epoch FROM pg_postmaster_start_time()), "
                "(SELECT oid FROM pg_database WHERE datname = current_database()))"
            )
        return f"postgresql:{identity}:{self._schema}"

    def hold(self) -> None:
        """See `CopyEnd.hold`."""
        self._lock()
        with self._in_words():
            self._execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            self._execute("SELECT 1 FROM store")

    def clock(self) -> int:
        """See `CopyEnd.clock`."""
        if self._clock is not None:
            return self._clock()
        with self._in_words():
            ((now,),) = self._execute("SELECT floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint")
        return int(now)

    def store(self) -> str:
        """See `CopyEnd.store`."""
        with self._in_words():
            ((id,),) = self._execute("SELECT id FROM store")
        return str(id)

    def nodes(self) -> list[tuple[Node, int]]:
        """See `CopyEnd.nodes`."""
        with self._in_words():
            return [to_node(row) for row in self._execute(NODES)]

    def numbers(self, tables: Sequence[CopyTable]) -> dict[str, int]:
        """See `CopyEnd.numbers`."""
        found = {}
        with self._in_words():
            for name, sequence in self._sequences(tables).items():
                ((given,),) = self._execute(
                    f"SELECT greatest(coalesce(pg_sequence_last_value(%s::regclass), 0), max(id)) FROM {name}",
                    (sequence,),
                )
                found[name] = int(given)
        return {name: given for name, given in found.items() if given}

    def count(self, table: CopyTable) -> int:
        """See `CopyEnd.count`."""
        with self._in_words():
            ((rows,),) = self._execute(f"SELECT count(*) FROM {table.name}")
        return int(rows)

    def rows(self, table: CopyTable, after: Key | None = None, upto: Key | None = None) -> Iterator[Row]:
        """See `CopyEnd.rows`. Texts are ordered by their bytes, as their columns are."""
        key = ", ".join(table.columns[n] for n in table.key)
        places = ", ".join(["%s"] * len(table.key))
        bounds = [f"({key}) {sign} ({places})" for sign, bound in ((">", after), ("<=", upto)) if bound is not None]
        where = f" WHERE {' AND '.join(bounds)}" if bounds else ""
        sql = f"SELECT {', '.join(table.columns)} FROM {table.name}{where} ORDER BY {key}"
        fetch = f"FETCH {at_once(table)} FROM copied".encode()
        idle = self._connection.info.transaction_status == TransactionStatus.IDLE
        with self._in_words(), self._connection.transaction() if idle else nullcontext():
            # not a named cursor of psycopg's: what is left of one on a lost connection complains when it is collected
            self._execute(f"DECLARE copied NO SCROLL CURSOR FOR {sql}", (*(after or ()), *(upto or ())))
            while found := self._connection.execute(fetch, binary=True).fetchall():
                yield from found
            self._execute("CLOSE copied")

    def mark(self) -> Mark | None:
        """See `CopyEnd.mark`."""
        with self._in_words():
            if not self._has("copying"):
                return None
            found = self._execute(MARK)
        if not found:
            raise StoreRefused(f"{self.words} has a table `copying` that is not pilot's; it is left as it is")
        return to_mark(found[0])

    def taken(self, tables: Sequence[CopyTable]) -> str | None:
        """See `CopyEnd.taken`."""
        with self._in_words():
            if not self._has("pilot_schema"):
                return None
            ((version,),) = self._execute("SELECT coalesce(max(number), 0) FROM pilot_schema")
            if version != newest("postgres"):
                raise StoreRefused(
                    f"{self.words} holds a store with schema {version}, and this pilot has {newest('postgres')}; "
                    "it is left as it is. Name an empty database"
                )
            some = " OR ".join(f"EXISTS (SELECT 1 FROM {t.name})" for t in tables if t.name != "store")
            ((taken,),) = self._execute(f"SELECT {some}")
        return self.store() if taken else None

    def begin(self, tables: Sequence[CopyTable], mark: Mark) -> None:
        """See `CopyEnd.begin`."""
        with self._in_words():
            unfinished = self._has("copying")
        if not unfinished:
            self._prepare(create=True)
        self._lock()
        with self._in_words(), self._connection.transaction():
            if not unfinished and self.taken(tables) is not None:
                raise StoreRefused(f"{self.words} is not empty; somebody has begun to work with it")
            self._fits(tables)
            self._execute(f"TRUNCATE {', '.join(table.name for table in tables)} RESTART IDENTITY")
            self._triggers("DISABLE", tables)
            self._execute(MAKE_MARK)
            self._execute("DELETE FROM copying")
            self._execute(
                "INSERT INTO copying VALUES (%s, %s, %s, %s)",
                (mark.store, mark.schema, mark.begun_at, mark.progress()),
            )

    def write(self, table: CopyTable, rows: Sequence[Row], mark: Mark) -> None:
        """See `CopyEnd.write`."""
        self._lock()
        into = f"COPY {table.name} ({', '.join(table.columns)}) FROM STDIN (FORMAT BINARY)"
        try:
            with self._in_words(), self._connection.transaction():
                with self._connection.cursor() as cursor, cursor.copy(into.encode()) as copy:
                    copy.set_types(table.kinds)
                    for row in rows:
                        copy.write_row(row)
                self._execute("UPDATE copying SET progress = %s", (mark.progress(),))
        except (StoreError, TypeError, ValueError, struct.error) as error:
            odd = next((said for row in rows if (said := _odd(table, row))), None)
            if odd is not None:
                raise StoreError(f"{odd}; mend it in the source, then go on with the same command") from error
            raise

    def finish(self, tables: Sequence[CopyTable], numbers: Mapping[str, int], verify: Callable[[], None]) -> None:
        """See `CopyEnd.finish`."""
        self._lock()
        with self._in_words(), self._connection.transaction():
            verify()
            self._triggers("ENABLE", tables)
            for name, number in numbers.items():
                self._execute("SELECT setval(pg_get_serial_sequence(%s, 'id'), %s)", (name, number))
            self._execute("DROP TABLE copying")
        with suppress(psycopg.Error):  # what the planner knows of it; it learns that by itself, too
            self._execute("ANALYZE")

    def close(self) -> None:
        """See `CopyEnd.close`."""
        self._connection.close()

    def _prepare(self, *, create: bool) -> None:
        wire, _ = prepare(self._place, self._clock, create)
        wire.close()

    def _lock(self) -> None:
        if not self._held:
            with self._in_words():
                schema = self._schema - (1 << 32) if self._schema >= 1 << 31 else self._schema
                self._execute("SELECT pg_advisory_lock(%s::int, %s::int)", (LOCK, schema))
            self._held = True

    def _has(self, name: str) -> bool:
        found = self._execute(
            "SELECT 1 FROM pg_class WHERE relnamespace = %s::oid AND relname = %s", (self._schema, name)
        )
        return bool(found)

    def _fits(self, tables: Sequence[CopyTable]) -> None:
        """Raise `StoreError` where a table is not the other engine's: a bug of pilot's, and no reason to lose rows."""
        found: dict[str, dict[str, str]] = {}
        for name, column, kind in self._execute(
            "SELECT c.relname::text, a.attname::text, format_type(a.atttypid, NULL) FROM pg_class c "
            "JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped "
            "WHERE c.relnamespace = %s::oid AND c.relkind = 'r' ORDER BY a.attnum",
            (self._schema,),
        ):
            found.setdefault(name, {})[column] = kind
        for table in tables:
            if found.get(table.name) != dict(zip(table.columns, table.kinds, strict=True)):
                raise StoreError(
                    f"{self.words}: table {table.name} has other columns than on SQLite; nothing is copied"
                )

    def _sequences(self, tables: Sequence[CopyTable]) -> dict[str, str]:
        found = {}
        for table in tables:
            if "id" in table.columns:
                ((sequence,),) = self._execute("SELECT pg_get_serial_sequence(%s, 'id')", (table.name,))
                if sequence is not None:
                    found[table.name] = sequence
        return found

    def _triggers(self, what: str, tables: Sequence[CopyTable]) -> None:
        for table in tables:
            self._execute(f"ALTER TABLE {table.name} {what} TRIGGER USER")

    def _execute(self, sql: str, params: Sequence[Any] | None = None) -> list[Row]:
        cursor = self._connection.execute(sql.encode(), params)
        return cursor.fetchall() if cursor.description else []

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        try:
            yield
        except psycopg.IntegrityError as error:
            raise StoreError(UNSOUND.format(error=error.diag.message_primary)) from None
        except psycopg.Error as error:
            said = self._place.said(error.diag.message_primary or str(error))
            failed = Failed(error.sqlstate, said) if error.sqlstate else self._lost(said)
            raise translate(failed, self.words) from None

    def _lost(self, said: str) -> Failed:
        return Lost("", said) if hasattr(self, "_connection") else refused(said)


def at_once(table: CopyTable) -> int:
    """Rows of this table that are fetched in one go."""
    wide = "bytea" in table.kinds or not _WIDE.isdisjoint(table.columns)
    return FEW if wide else AT_ONCE


def _odd(table: CopyTable, row: Row) -> str | None:
    """What PostgreSQL does not take of a row, in words."""
    for column, kind, value in zip(table.columns, table.kinds, row, strict=True):
        where = f"column {column} of the row {table.key_of(row)} of {table.name}"
        if value is not None and not isinstance(value, _TYPES[kind]):
            return f"{where} holds a value of the wrong type ({type(value).__name__} for {kind})"
        if isinstance(value, str) and "\0" in value:
            return f"{where} has a NUL character, which PostgreSQL does not store"
    return None
