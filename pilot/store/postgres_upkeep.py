"""Looking after a PostgreSQL store from outside: is it sound, which version is it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pilot.domain.errors import UsageError
from pilot.store.database import Statement
from pilot.store.migrate import migrations
from pilot.store.postgres_dialect import Failed, translate
from pilot.store.postgres_migrate import look, prepare, schema_of
from pilot.store.postgres_place import Place
from pilot.store.postgres_wire import Wire
from pilot.store.upkeep import AUDITS, SHOWN, Finding

# One statement of each that reads JSON has to be said otherwise.
_AUDITS = AUDITS | {
    "artifacts are there": """
        SELECT e.id || ' has ' || (f.value ->> 'name') || ', and what was in it is not there'
        FROM executions e CROSS JOIN LATERAL jsonb_array_elements(e.artifacts::jsonb) AS f(value)
        WHERE e.artifacts IS NOT NULL AND f.value ->> 'sha256' IS NOT NULL
          AND NOT EXISTS (SELECT 1 FROM artifact_uses u JOIN artifacts a ON a.sha256 = u.sha256
            WHERE u.execution_id = e.id AND u.sha256 = f.value ->> 'sha256' AND a.size = length(a.content))"""
}


@dataclass(frozen=True, slots=True)
class Look:
    """What is there. `schema` 0: nothing yet."""

    name: str
    server: str
    schema: int
    may_create: bool


def shown(url: str) -> str:
    """The URL without anything secret."""
    return Place(url).name


def bring_up(url: str) -> tuple[str, list[str]]:
    """Bring the schema up to the newest, also from nothing; its name, and the migrations that were applied."""
    place = Place(url)
    before = quick_look(url).schema
    wire, _ = prepare(place, None, create=True)
    wire.close()
    return place.name, [name for number, name, _ in migrations("postgres") if number > before]


def check(url: str) -> tuple[str, list[Finding]]:
    """Everything that is wrong with what the store promises; reads all of it, as of one moment."""
    place = Place(url)
    findings: list[Finding] = []
    wire, _ = prepare(place, None, create=False)
    wire.close()
    with _patient(place) as wire:
        wire.send(Statement("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"))
        for name, sql in _AUDITS.items():
            rows = wire.rows(Statement(f"SELECT * FROM ({sql}) AS found LIMIT {SHOWN}"))
            findings += [Finding(name, str(text)) for (text,) in rows]
        wire.drop()
    return place.name, findings


def quick_look(url: str) -> Look:
    """Raises `StoreRefused` for what this version may not touch."""
    place = Place(url)
    with _patient(place) as wire:
        schema = schema_of(wire, place)
        number = look(wire, place, schema)
        ((server, may),) = wire.rows(
            Statement(
                "SELECT current_setting('server_version'), has_schema_privilege(:schema::bigint::oid, 'CREATE')",
                {"schema": schema},
            )
        )
    return Look(place.name, str(server).split()[0], number, bool(may))


def no_backup(url: str) -> UsageError:
    """How to copy it instead."""
    return UsageError(
        f"the store is on PostgreSQL, which has a tool for that: `pg_dump --format=custom --file=FILE {shown(url)}`, "
        "and `pg_restore` to bring it back"
    )


@contextmanager
def _patient(place: Place) -> Iterator[Wire]:
    """A connection for what reads everything: plans as the planner likes them, and time."""
    try:
        wire = Wire(place, patient=True)
        try:
            yield wire
        finally:
            wire.close()
    except Failed as error:
        raise translate(error, place.name) from None
