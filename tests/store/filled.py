"""A store with something in every table, and with all that may stand in a column."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from pilot.domain.agent import OutputKind
from pilot.domain.outcome import Usage
from pilot.domain.task import Project
from pilot.domain.work import Artifact
from pilot.store import open_store
from pilot.store.copy_tables import CopyTable, copy_tables, copy_triggers
from tests.store.bed import SECOND, Bed, Clock, again, asked, broken, done, limited

ODD = (
    "",
    "\\N",
    "\\.",
    "a\tb\nc\rd\\e\\\\f",
    "'\" % %s :name $1 {} [] \x01\x7f\x85\u2028\ufeff",
    "Straße, naïve, 漢字, \U0001f600\u200d\U0001f4bb, e\u0301",
    '{"a": [1, null, "\\u0000"]}',
    "NULL",
    "z" * 20_000,
)
NUMBERS = (0, 1, -1, 2**53 + 1, 2**63 - 1, -(2**63))
FLOATS = (0.1, 1 / 3, 5e-324, 1.7976931348623157e308, -0.0, 3.0, 1e16, -2.5e-7)
BYTES = (b"", bytes(range(256)), b"\\x00", b"\\N\n", b"x" * 70_000)


def fill(path: Path) -> str:
    """Make it. Work of every state stands in it, and things of people and of the outside; its id.

    What was last written is removed again: its ids were given, and are not given again.
    """

    async def go() -> str:
        clock = Clock()
        async with open_store(f"sqlite:///{path}", clock=clock) as store:
            await _work(Bed(store, clock))
            return store.id

    id = asyncio.run(go())
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN")
        for (trigger,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {trigger}")
        _odd(connection)
        for table in ("events", "questions", "outbox", "inbox", "audit", "pulls"):
            connection.execute(f"INSERT INTO sqlite_sequence (name, seq) SELECT '{table}', 0 WHERE NOT EXISTS "
                               f"(SELECT 1 FROM sqlite_sequence WHERE name = '{table}')")  # fmt: skip
            connection.execute("UPDATE sqlite_sequence SET seq = seq + 1000 WHERE name = ?", (table,))
        for trigger in copy_triggers():
            connection.execute(trigger)
        connection.execute("COMMIT")
    return id


async def _work(bed: Bed) -> None:
    api, web = await bed.project("api", 2), await bed.project("wéb")
    await bed.node("n1", lease=60 * SECOND)
    await bed.store.queue.serve("n1", [api.id, web.id], {api.id: {"agent": "me@example"}})
    ticket = {"number": 7, "body": ODD[5]}
    first = await bed.put(api, "GH-1", origin=ticket, callback_url="https://ci.example/hook", body=ODD[3])
    second = await bed.put(api, "GH-2", after=(first,), idempotency_key="k-2", labels=("a", "b"))
    await _run(bed, api, first)
    assert (await bed.status(second)).value == "queued"
    await bed.put(web, "ENG-1", origin=ticket, title=ODD[4])
    await bed.queue.finish(asked(await bed.take(web), options=("red", "blue")))
    await bed.put(web, "ENG-2")
    await bed.queue.finish(broken(await bed.take(web)))
    await bed.put(web, "ENG-3", max_attempts=5)
    await bed.queue.finish(again(await bed.take(web), at=bed.clock() + 60 * SECOND))
    await bed.put(web, "ENG-4", after=(second,))
    await bed.put(web, "ENG-5", backend="other")
    await bed.queue.finish(limited(await bed.take(web), bed.clock() + 5 * SECOND))
    await bed.take(api)  # runs on, with its lease
    await bed.queue.pause(web.id, "me", ODD[5])


async def _run(bed: Bed, project: Project, id: int) -> None:
    execution = await bed.take(project)
    assert execution.id == id
    await bed.journal.note(execution, Usage(10, 20, 0.1), session_id="s-1", workspace="/w/1")
    await bed.journal.write(execution, [(OutputKind.TEXT, data) for data in BYTES])
    ended = done(execution, head_sha="a" * 40)
    await bed.queue.finish(replace(ended, artifacts=(Artifact("a.diff", bytes(range(256))),)))


def _odd(connection: sqlite3.Connection) -> None:
    """Rows for the tables that have none, and odd values for the columns that take any."""
    (execution,) = connection.execute("SELECT id FROM executions ORDER BY id LIMIT 1").fetchone()
    for table in copy_tables():
        (rows,) = connection.execute(f"SELECT count(*) FROM {table.name}").fetchone()
        if not rows:
            for n in range(3):
                values = [*_values(table, n, execution)]
                places = ", ".join("?" * len(values))
                connection.execute(f"INSERT INTO {table.name} VALUES ({places})", values)
    ids = [id for (id,) in connection.execute("SELECT id FROM executions")]
    for n, text in enumerate(ODD):
        connection.execute("UPDATE executions SET title = ?, error = ? WHERE id = ?", (text, text, ids[n % len(ids)]))
        connection.execute("INSERT INTO events (at, type, execution_id, data) VALUES (1, 'execution.completed', ?, ?)",
                           (ids[n % len(ids)], text))  # fmt: skip
    for number in NUMBERS:
        connection.execute(
            "INSERT INTO audit (at, token, actor, peer, method, path, status) VALUES (?, '', '', '', '', 'odd', ?)",
            (number, number),
        )
    for n, cost in enumerate(FLOATS):
        connection.execute("UPDATE executions SET cost_usd = ? WHERE id = ?", (cost, ids[n % len(ids)]))
        connection.execute(
            "INSERT INTO attempts (execution_id, number, fence, node, backend, started_at, finished_at, cost_usd) "
            "VALUES (?, ?, 0, '', '', 0, 0, ?)",
            (ids[0], 100 + n, cost),
        )


def _values(table: CopyTable, n: int, execution: int) -> Iterator[object]:
    for column, kind in zip(table.columns, table.kinds, strict=True):
        match column, kind:
            case "execution_id", _:
                yield execution
            case "state", _ if table.name == "pulls":
                yield "open"
            case "ended_at", _ if table.name == "pulls":
                yield None
            case _, "text":
                yield f"{ODD[n + 3]}-{n}"
            case _, "bytea":
                yield BYTES[n]
            case _:
                yield n + 1


def dump(path: Path) -> dict[str, list[tuple[object, ...]]]:
    """All that stands in a SQLite store, and what it goes on from."""
    with closing(sqlite3.connect(path)) as connection:
        found = {
            table.name: connection.execute(
                f"SELECT * FROM {table.name} ORDER BY {', '.join(table.columns[n] for n in table.key)}"
            ).fetchall()
            for table in copy_tables()
        }
        return found | {"numbers": connection.execute("SELECT * FROM sqlite_sequence ORDER BY name").fetchall()}
