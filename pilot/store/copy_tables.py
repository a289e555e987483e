"""What a copy is made of: every table of the schema, its order of rows, and the sum of what is in them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from pilot.store.database import Row
from pilot.store.migrate import migrations, statements

Key = tuple[Any, ...]
KINDS = {"INTEGER": "bigint", "TEXT": "text", "REAL": "double precision", "BLOB": "bytea"}
"""By SQLite's word for it, the type of a column."""


@dataclass(frozen=True, slots=True)
class CopyTable:
    """One table. `key`: where in `columns` stands what its rows are ordered by."""

    name: str
    columns: tuple[str, ...]
    kinds: tuple[str, ...]
    key: tuple[int, ...]
    parents: frozenset[str]

    def key_of(self, row: Row) -> Key:
        """Where the row stands among the others."""
        return tuple(row[n] for n in self.key)


def copy_tables() -> list[CopyTable]:
    """All tables of the newest schema, those that others point to first. Read off the schema: none can be forgotten."""
    with closing(_newest()) as connection:
        names = connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%' ORDER BY rowid"
        ).fetchall()
        found = [_table(connection, name) for (name,) in names]
    ordered: list[CopyTable] = []
    while found:
        known = {table.name for table in ordered}
        ready = [table for table in found if table.parents <= known | {table.name}]
        ordered += ready
        found = [table for table in found if table not in ready]
    return ordered


def copy_triggers() -> list[str]:
    """What makes the triggers of a SQLite store."""
    with closing(_newest()) as connection:
        rows = connection.execute("SELECT sql FROM sqlite_master WHERE type = 'trigger' ORDER BY rowid").fetchall()
    return [sql for (sql,) in rows]


def _newest() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    for _, _, script in migrations("sqlite"):
        for statement in statements(script):
            connection.execute(statement)
    return connection


def _table(connection: sqlite3.Connection, name: str) -> CopyTable:
    columns = connection.execute("SELECT name, type, pk FROM pragma_table_info(?) ORDER BY cid", (name,)).fetchall()
    parents = connection.execute('SELECT DISTINCT "table" FROM pragma_foreign_key_list(?)', (name,)).fetchall()
    key = sorted((pk, n) for n, (_, _, pk) in enumerate(columns) if pk)
    return CopyTable(
        name,
        tuple(column for column, _, _ in columns),
        tuple(KINDS[type] for _, type, _ in columns),
        tuple(n for _, n in key) or tuple(range(len(columns))),
        frozenset(parent for (parent,) in parents),
    )


@dataclass(slots=True)
class Tally:
    """How far a table has been gone through, in the order of its key, and the sum of its rows up to there.

    The sum is a chain: each row's content (as `ascii` of its values writes it, the same for every engine) together with
    the sum of those before it. So it can be gone on with at any row.
    """

    rows: int = 0
    digest: bytes = bytes(32)
    after: Key | None = None

    def through(self, table: CopyTable, rows: Iterable[Row]) -> Iterator[tuple[Row, int]]:
        """The rows as they were counted, each with its size."""
        reals = [n for n, kind in enumerate(table.kinds) if kind == "double precision"]
        for row in rows:
            written = ascii(_comparable(row, reals) if reals else tuple(row)).encode()
            self.digest = sha256(self.digest + written).digest()
            self.rows += 1
            self.after = table.key_of(row)
            yield row, len(written)

    def over(self, table: CopyTable, rows: Iterable[Row]) -> Tally:
        """This one, once all of them are counted."""
        for _ in self.through(table, rows):
            pass
        return self

    def same(self, other: Tally) -> bool:
        """Whether both have seen the same rows."""
        return (self.rows, self.digest) == (other.rows, other.digest)


def _comparable(row: Row, reals: Iterable[int]) -> Row:
    values = list(row)
    for n in reals:
        if isinstance(values[n], (int, float)):
            values[n] = float(values[n]) + 0.0  # a negative zero is none to SQLite
    return tuple(values)


@dataclass(slots=True)
class Mark:
    """What a store has written down that is a copy and not yet whole: of which store, and how far each table is."""

    store: str
    schema: int
    begun_at: int
    tallies: dict[str, Tally] = field(default_factory=dict)

    def progress(self) -> str:
        """As a column holds it."""
        return json.dumps({name: [t.rows, t.digest.hex(), t.after] for name, t in self.tallies.items()})


def to_mark(row: Row) -> Mark:
    """From the columns of `MARK`."""
    store, schema, begun_at, progress = row
    found: Mapping[str, tuple[int, str, list[Any] | None]] = json.loads(progress)
    tallies = {
        name: Tally(rows, bytes.fromhex(digest), None if after is None else tuple(after))
        for name, (rows, digest, after) in found.items()
    }
    return Mark(store, schema, begun_at, tallies)


MARK = "SELECT store, schema, begun_at, progress FROM copying"
MAKE_MARK = (
    "CREATE TABLE IF NOT EXISTS copying (store text NOT NULL, schema bigint NOT NULL, begun_at bigint NOT NULL, "
    "progress text NOT NULL)"
)
"""The table that makes of a store a copy that is not whole: nobody opens one that has it."""
