"""Who slept through an upgrade of the schema writes nothing more, whatever it had in hand."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Generator, Iterator, Sequence

import psycopg
import pytest

from pilot.domain.errors import Outdated
from pilot.store import open_store, sqlite_path
from pilot.store import postgres_session as session
from pilot.store.database import Rows, Statement, Step
from pilot.store.migrate import newest
from pilot.store.postgres_wire import Wire
from tests.store.bed import MINUTE, Bed, Clock, done
from tests.store.lost import lose


def upgrade(url: str) -> None:
    """What a newer pilot does while nobody holds a lease."""
    if url.startswith("sqlite:"):
        connection = sqlite3.connect(sqlite_path(url))
        connection.execute(f"PRAGMA user_version = {newest('sqlite') + 1}")
        connection.close()
    else:
        with psycopg.connect(url, autocommit=True) as server:
            server.execute(
                "INSERT INTO pilot_schema SELECT number + 1, 'newer', applied_at FROM pilot_schema "
                "ORDER BY number DESC LIMIT 1"
            )


@pytest.fixture
def own_url(engine: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """A store that nobody uses afterwards."""
    if engine == "sqlite":
        yield f"sqlite:///{request.getfixturevalue('tmp_path')}/pilot.db"
        return
    with request.getfixturevalue("postgres").database(fresh=True) as url:
        yield url


async def test_a_process_of_before_an_upgrade_writes_nothing_more(own_url: str) -> None:
    clock = Clock()
    async with open_store(own_url, clock=clock) as store:
        bed = Bed(store, clock)
        api = await bed.project()
        await bed.node()
        await bed.put(api)
        execution = await bed.take(api)
        before = await bed.dump()
        upgrade(own_url)

        for late in (
            lambda: bed.queue.heartbeat("n1", MINUTE),
            lambda: bed.queue.finish(done(execution)),
            lambda: bed.put(api),
            lambda: bed.journal.note(execution, phase="late"),
            lambda: bed.queue.leave("n1"),
        ):
            with pytest.raises(
                Outdated, match=r"a newer pilot has taken it over\. This one knows up to .* in its stead"
            ):
                await late()

        assert await bed.dump() == before


async def test_nor_does_he_by_statements_that_nobody_waits_for(own_url: str) -> None:
    def silent(items: Sequence[None]) -> Generator[Step, Rows, list[None]]:
        yield Statement("UPDATE projects SET path = 'late'")
        return [None] * len(items)

    async with open_store(own_url, clock=Clock()) as store:
        bed = Bed(store, Clock())
        api = await bed.project()
        upgrade(own_url)

        with pytest.raises(Outdated):
            await store.database.write(silent, None)

        assert await bed.value("SELECT path FROM projects") == api.path


@pytest.mark.parametrize("engine", ["postgres"])
async def test_who_hears_of_it_while_he_looks_what_became_of_a_commit_keeps_no_lock(
    own_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(session.LIMITED, "idle_in_transaction_session_timeout", 60_000)  # it is not the server's doing

    def upgraded(wire: Wire, _commit: Statement) -> None:
        wire.close()
        upgrade(own_url)

    async with open_store(own_url, clock=Clock()) as store:
        lose(monkeypatch, upgraded, every=True)
        with pytest.raises(Outdated):
            await store.queue.register([("k", "p", "/p", 1)])

        with psycopg.connect(own_url) as server:
            held = (
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid <> pg_backend_pid() "
                "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            )
            deadline = time.monotonic() + 10  # the server has to see that the connection has ended
            while server.execute(held).fetchone() != (0,):
                assert time.monotonic() < deadline
                time.sleep(0.01)
