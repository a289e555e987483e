"""The schema of a PostgreSQL store: is it pilot's, and which one; bring it up to date, in one transaction."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable

from pilot.domain.errors import Busy, StoreError, StoreRefused
from pilot.store.database import Statement
from pilot.store.migrate import UNFINISHED, migrations, newest
from pilot.store.postgres_dialect import PATIENCE, Failed, translate
from pilot.store.postgres_group import NOW, lock
from pilot.store.postgres_place import Place
from pilot.store.postgres_session import SILENCE
from pilot.store.postgres_wire import Wire

OLDEST = 15
"""The first version of PostgreSQL that is served."""
WAIT = 30
"""Seconds for whoever brings it up to date at the moment."""

_WHERE = "SELECT quote_ident(current_schema())::regnamespace::oid::bigint"
_TABLES = (
    "SELECT relname FROM pg_class WHERE relnamespace = :schema::bigint::oid AND relkind IN ('r', 'p', 'v', 'm', 'f')"
)
_OURS = frozenset(("projects", "executions", "attempts", "events", "outbox", "nodes", "store", "writers"))


def prepare(place: Place, clock: Callable[[], int] | None, create: bool) -> tuple[Wire, int]:
    """A connection to a store with the newest schema, and the oid of the schema (namespace) that it is in.

    Raises `StoreRefused`, which leaves it as it was, `Busy` and `StoreError`.
    """
    wire = _connect(place)
    try:
        try:
            return wire, _prepared(wire, place, clock, create)
        except Failed as error:
            raise translate(error, place.name) from None
    except BaseException:
        wire.close()
        raise


def _connect(place: Place) -> Wire:
    deadline, pause = time.monotonic() + PATIENCE, 0.05
    while True:
        try:
            return Wire(place)
        except Failed as error:
            if error.code not in ("57P03", "53300") or time.monotonic() + pause > deadline:
                raise translate(error, place.name) from None
        time.sleep(pause)
        pause = min(pause * 2, 0.5)


def _prepared(wire: Wire, place: Place, clock: Callable[[], int] | None, create: bool) -> int:
    if wire.version < OLDEST * 10_000:
        raise StoreRefused(f"{place.name} is PostgreSQL {wire.version // 10_000}; pilot needs {OLDEST} or newer")
    schema = schema_of(wire, place)
    version = look(wire, place, schema)
    if version < newest("postgres"):
        if not version and not create:
            raise StoreError(f"no store in {place.name}; `pilot serve`, `pilot run` or `pilot enqueue` makes one")
        _migrate(wire, place, schema, clock)
    return schema


def schema_of(wire: Wire, place: Place) -> int:
    """The oid of the schema (namespace) that the store is in, or would be."""
    ((schema,),) = wire.rows(Statement(_WHERE))
    if schema is None:
        raise StoreError(f"{place.name}: the role's search_path names no schema that is there; create one, or set it")
    return int(schema)


def look(wire: Wire, place: Place, schema: int) -> int:
    """The number of the schema, 0 for none. Raises `StoreRefused`; changes nothing."""
    if wire.encoding != "UTF8":
        raise StoreRefused(
            f"{place.name} is a database in {wire.encoding}, which does not hold every text; it is left as it is. "
            "Make one that does: `createdb -E UTF8 -T template0 -O USER NAME`"
        )
    tables = {name for (name,) in wire.rows(Statement(_TABLES, {"schema": schema}))}
    if "pilot_schema" not in tables:
        if taken := sorted(tables & _OURS):
            raise StoreRefused(
                f"{place.name} has tables of another program ({', '.join(taken)}); it is left as it is. "
                "Give pilot a database or a schema of its own"
            )
        return 0
    if "copying" in tables:
        raise StoreRefused(UNFINISHED.format(place=place.name))
    ((version,),) = wire.rows(Statement("SELECT coalesce(max(number), 0) FROM pilot_schema"))
    if version > newest("postgres"):
        raise StoreRefused(
            f"{place.name} has schema {version}, this pilot knows up to {newest('postgres')}; it is left as it is. "
            "Use the newer pilot, or restore the backup from before the upgrade"
        )
    return int(version)


def _migrate(wire: Wire, place: Place, schema: int, clock: Callable[[], int] | None) -> None:
    wire.send(Statement("BEGIN"))
    wire.send(Statement(f"SET LOCAL lock_timeout = '{WAIT}s'"))
    wire.send(Statement(f"SET LOCAL statement_timeout = '{WAIT * 10}s'"))
    wire.all_rows([lock(schema)], WAIT + SILENCE)
    ((now,),) = wire.rows(NOW) if clock is None else [(clock(),)]
    version = look(wire, place, schema)  # again, now that nobody else can be at it
    if 0 < version < newest("postgres"):
        _in_nobodys_hands(wire, place, now)
    for number, name, script in migrations("postgres"):
        if number > version:
            wire.script(script, WAIT * 10 + SILENCE)
            wire.send(Statement("INSERT INTO pilot_schema VALUES (:n, :name, :now)",
                                {"n": number, "name": name, "now": now}))  # fmt: skip
    if not version:
        wire.send(Statement("INSERT INTO store VALUES (:id, :now)", {"id": uuid.uuid4().hex[:12], "now": now}))
    wire.rows(Statement("COMMIT"))


def _in_nobodys_hands(wire: Wire, place: Place, now: int) -> None:
    """Raise `Busy` while a node is up: it has the older schema in its statements, and knows no newer rule."""
    found = wire.rows(
        Statement(
            "SELECT id, version, lease_until FROM nodes WHERE lease_until > :now AND kind <> 'worker' "
            "ORDER BY lease_until DESC LIMIT 1",
            {"now": now},
        )
    )
    if found:
        node, version, until = found[0]
        raise Busy(
            f"{place.name} has the schema of an older pilot, and {node} ({version}) works with it; it is left as it "
            f"is. Stop that one first; if it was killed, try again in {-(-(until - now) // 1000)} s"
        )
