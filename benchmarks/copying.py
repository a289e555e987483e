"""How long `pilot db copy` takes, both ways: `python -m benchmarks.copying [EXECUTIONS]`, five rows for each."""

from __future__ import annotations

import asyncio
import resource
import sqlite3
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

from pilot.store import open_store
from pilot.store.copy_tables import copy_triggers
from pilot.store.copying import Copied, copy_store
from tests.postgres import Cluster

_ENDED = """
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
    INSERT INTO executions (project_id, project, project_path, task_id, title, body, source, kind, labels, priority,
      lane, status, available_at, max_attempts, outcome, backend, branch, head_sha, created_at, started_at, finished_at,
      cost_usd, fence, attempt)
    SELECT 1 + i % 100, 'p' || (i % 100), '/src/p' || (i % 100), 'GH-' || i, 'Fix the date parser of module ' || i,
      'It takes 31.2. for a date. It should say what is wrong with it, in words, and where.', 'github', 'code',
      '["pilot"]', 100, 0, 'completed', i, 3, 'done', 'claude-code', 'pilot/GH-' || i,
      '0123456789abcdef0123456789abcdef01234567', i, i, i + 1000, i / 7.0, i, 1 FROM n"""
_ATTEMPTS = """
    INSERT INTO attempts (execution_id, number, fence, node, backend, started_at, finished_at, outcome, summary,
      cost_usd)
    SELECT id, 1, fence, 'n1', 'claude-code', started_at, finished_at, 'done', 'Fixed it and added a test.', cost_usd
    FROM executions"""
_EVENTS = """
    INSERT INTO events (at, type, execution_id, project_id, data)
    SELECT created_at + k.n, 'execution.' || k.type, id, project_id, '{"attempt":1,"node":"n1","reason":null}'
    FROM executions,
      (SELECT 0 AS n, 'queued' AS type UNION ALL SELECT 1, 'started' UNION ALL SELECT 2, 'completed') k"""


def make(path: Path, executions: int) -> None:
    """A store in which so many have ended."""

    async def empty() -> None:
        async with open_store(f"sqlite:///{path}"):
            pass

    asyncio.run(empty())
    with closing(sqlite3.connect(path)) as connection, connection:
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        projects = [(n, f"host:/src/p{n}/.git", f"p{n}", f"/src/p{n}") for n in range(1, 101)]
        connection.executemany("INSERT INTO projects (id, key, name, path) VALUES (?, ?, ?, ?)", projects)
        connection.execute(_ENDED, (executions,))
        connection.execute(_ATTEMPTS)
        connection.execute(_EVENTS)
        for trigger in copy_triggers():
            connection.execute(trigger)


def measured(source: str, target: str) -> Copied:
    """Copy it, and say what it took."""
    wall, cpu = time.monotonic(), time.process_time()
    copied = copy_store(source, target, lambda _: None)
    wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    where = " → ".join(url.partition(":")[0] for url in (source, target))
    print(f"{where}: {copied.rows:,} rows in {wall:.1f} s ({copied.rows / wall:,.0f}/s; {cpu:.1f} s of pilot's CPU, "
          f"{memory} MB)")  # fmt: skip
    return copied


def main(executions: int) -> None:
    """Both ways, and what came back is what went."""
    with tempfile.TemporaryDirectory() as folder, Cluster.make(durable=True, shared_buffers="128MB") as server:
        here, back = Path(folder, "pilot.db"), Path(folder, "back.db")
        make(here, executions)
        url = server.create(schema=False)
        there = measured(f"sqlite:///{here}", url)
        again = measured(url, f"sqlite:///{back}")
        assert all(there.tallies[name].same(tally) for name, tally in again.tallies.items())


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200_000)
