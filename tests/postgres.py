"""A PostgreSQL for tests, and stores on it.

`shared` gives one server to all workers of a test session, with `database` for a store of a test's own. A test that
breaks a server makes its own: `with Cluster.make() as server`.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
from psycopg import sql

from pilot.store import open_store
from tests.postgres_server import OWNER, Server

_TEMPLATE = "pilot_template"

# Empties what a test has filled; what the schema itself came with stays. Small tables are quicker to delete from.
_EMPTY = """
DO $$
DECLARE one record;
BEGIN
  PERFORM set_config('session_replication_role', 'replica', true);
  FOR one IN SELECT c.oid::regclass AS name, pg_relation_size(c.oid) AS size FROM pg_class c
    WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace AND pg_relation_size(c.oid) > 0
    AND c.relname <> ALL ({kept})
  LOOP
    IF one.size > 200000 THEN EXECUTE 'TRUNCATE ' || one.name || ' CASCADE';
    ELSE EXECUTE 'DELETE FROM ' || one.name; END IF;
  END LOOP;
  FOR one IN SELECT s.seqrelid::regclass AS name, s.seqstart AS start FROM pg_sequence s
  LOOP PERFORM setval(one.name, one.start, false); END LOOP;
END $$
"""
# Tells a database in which more than rows was changed.
_SHAPE = """
SELECT (SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace)
  || ' ' || (SELECT count(*) FROM pg_proc WHERE pronamespace = 'public'::regnamespace)
  || ' ' || (SELECT count(*) FROM pg_trigger WHERE tgenabled <> 'D')
"""
# An agent's processes are found by the id of their store: no two have the same.
_RENAME = "UPDATE store SET id = left(md5(gen_random_uuid()::text), 12)"


class Cluster(Server):
    """A server with databases that have pilot's schema."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._idle: list[str] = []

    def create(self, name: str | None = None, *, schema: bool = True) -> str:
        """The URL of a new database, with pilot's schema or empty. It belongs to an ordinary role."""
        name = name or f"t{uuid.uuid4().hex[:12]}"
        template = self._template() if schema else "template1"
        # DDL has no parameters
        self.admin(f'CREATE DATABASE "{name}" TEMPLATE "{template}" OWNER {OWNER}')
        if schema:
            self.admin(_RENAME, database=name)
        return self.url(name)

    def drop(self, url: str) -> None:
        """Whoever is in it is thrown out."""
        self.admin(f'DROP DATABASE IF EXISTS "{name_of(url)}" WITH (FORCE)')

    def terminate(self, url: str) -> int:
        """End all sessions of a database; how many there were."""
        ended = self.admin(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE datname = %s AND pid <> pg_backend_pid()",
            [name_of(url)],
        )
        return len(ended)

    @contextlib.contextmanager
    def database(self, *, fresh: bool = False) -> Iterator[str]:
        """The URL of a store that is as new. `fresh`: a database of its own, for whoever changes more than rows."""
        if fresh:
            url = self.create()
            try:
                yield url
            finally:
                self.drop(url)
            return
        name = self._emptied(self._idle.pop()) if self._idle else None
        name = name or name_of(self.create())
        try:
            yield self.url(name)
        finally:
            self._idle.append(name)

    def _emptied(self, name: str) -> str | None:
        """The same, as new; None when it can't be, and is gone."""
        shape, *kept = (self.folder / "kept").read_text().splitlines()
        with psycopg.connect(self.url(name, user="postgres"), autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            as_made = connection.execute(_SHAPE).fetchall() == [(shape,)]
            if as_made:
                connection.execute(sql.SQL(_EMPTY).format(kept=sql.Literal(kept)))
                connection.execute(_RENAME)
        if not as_made:
            self.drop(self.url(name))
        return name if as_made else None

    def _template(self) -> str:
        with _locked(self.folder / "template.lock"):
            if not self.admin("SELECT 1 FROM pg_database WHERE datname = %s", [_TEMPLATE]):
                part = f"{_TEMPLATE}_part"
                self.admin(f'DROP DATABASE IF EXISTS "{part}" WITH (FORCE)')
                self._migrate(self.create(part, schema=False))
                tables = self.admin("SELECT tablename FROM pg_tables WHERE schemaname = 'public'", database=part)
                kept = [name for (name,) in tables if self.admin(f'SELECT 1 FROM "{name}" LIMIT 1', database=part)]
                ((shape,),) = self.admin(_SHAPE, database=part)
                (self.folder / "kept").write_text("\n".join([shape, *kept]))
                self.admin(f'ALTER DATABASE "{part}" RENAME TO "{_TEMPLATE}"')
        return _TEMPLATE

    @staticmethod
    def _migrate(url: str) -> None:
        async def migrate() -> None:
            async with open_store(url):
                pass

        with ThreadPoolExecutor(1) as thread:  # the caller's may have a loop that runs
            thread.submit(asyncio.run, migrate()).result()


def shared(session: Path) -> Cluster:
    """The server of a test session, held until `leave`; `session` is a folder that its workers have in common."""
    with _locked(session / "postgres.lock"):
        marker = session / "postgres"
        if marker.exists() and Path(marker.read_text(), "port").exists():
            found = Cluster(Path(marker.read_text()))
            if found.hold():
                return found
        made = Cluster.make()
        marker.write_text(str(made.folder))
        return made


def name_of(url: str) -> str:
    """The database that a URL names."""
    return psycopg.conninfo.conninfo_to_dict(url)["dbname"]  # type: ignore[return-value]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
