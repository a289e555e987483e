"""pilot, on PostgreSQL and on SQLite: its store, and its dispatcher with an agent that does nothing.

The same parts as `pilot serve` has, less agents, sources and HTTP.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack

import structlog

from benchmarks.peers.work import BODY, Handle, Peer, file_of, main
from pilot.dispatch.dispatcher import Dispatcher, Limits
from pilot.domain.execution import Execution
from pilot.domain.outcome import Ending, Outcome
from pilot.domain.policy import settle
from pilot.domain.ports import Finish, Node, NodeKind
from pilot.domain.task import Task
from pilot.store import open_store

DONE = Outcome(ending=Ending.DONE)
COLUMNS = (
    "project_id, project, project_path, task_id, title, body, source, kind, labels, priority, lane, status, due, "
    "available_at, max_attempts, backend, created_at, finished_at"
)
VALUES = "{project}, 'p', '/p', '{name}' || i, 't', '{body}', 'api', 'code', '[]', 2, 0, {status}"
QUEUED = "'queued', 1, 0, 3, 'command', 1, NULL"
FINISHED = "'completed', 0, 0, 3, 'command', 1, 2"


class Pilot(Peer):
    settings = (
        "one execution row, attempt, events and deduplication per task, all history kept, finish fenced; "
        "SQLite: WAL, synchronous=FULL"
    )
    distribution = "pilot-dispatcher"

    async def create(self) -> None:
        async with open_store(self.url) as store:
            await store.queue.register([(f"k{i}", f"p{i}", f"/p{i}", 1) for i in range(self.keys)])

    async def open(self) -> None:
        self.stack = AsyncExitStack()
        self.store = await self.stack.enter_async_context(open_store(self.url))
        self.projects = await self.store.queue.register([(f"k{i}", f"p{i}", f"/p{i}", 1) for i in range(self.keys)])
        self.key_of = {project.id: key for key, project in enumerate(self.projects)}

    async def close(self) -> None:
        await self.stack.aclose()

    async def put(self, key: int, number: int) -> None:
        task = Task(project_id=self.projects[key].id, title="job", task_id=f"t{number}", body=BODY)
        await self.store.queue.enqueue(task)

    async def put_many(self, items: Sequence[tuple[int, int]]) -> None:
        await asyncio.gather(*(self.put(*item) for item in items))

    async def work(self, handle: Handle) -> None:
        async def runner(execution: Execution) -> Outcome:
            await handle(self.key_of[execution.project_id], int(execution.task_id[1:]))
            return DONE

        node = Node(f"node-{os.getpid()}", NodeKind.SERVE, "host", "boot", os.getpid(), 1, "0")
        async with Dispatcher(
            self.store.queue,
            runner,
            node=node,
            projects=self.projects,
            clock=self.store.database.clock,
            limits=Limits(max_running=self.slots),
        ):
            await asyncio.Event().wait()

    async def take(self) -> float:
        before = time.perf_counter()
        (execution,) = await self.store.queue.claim("bench", lease=60_000, projects=self.key_of)
        took = 1000 * (time.perf_counter() - before)
        settlement = settle(execution, DONE, now=0, jitter=0)
        await self.store.queue.finish(Finish(execution=execution, outcome=DONE, settlement=settlement))
        return took

    async def grow(self, *, queued: int = 0, held: bool = True, finished: int = 0) -> None:
        first = self.projects[0].id
        if held:
            await self.put(0, 0)
            (_,) = await self.store.queue.claim("bench", lease=3_600_000, projects=(first,))
        texts = (
            VALUES.format(project=str(first), name="queued-", body=BODY, status=QUEUED),
            VALUES.format(project=f"{first} + i % {self.keys}", name="old-", body=BODY, status=FINISHED),
        )
        for values, count in zip(texts, (queued, finished), strict=True):
            await asyncio.to_thread(_insert, self.url, values, count)


def _insert(url: str, values: str, count: int) -> None:
    if url.startswith("sqlite"):
        series = "WITH RECURSIVE s (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < {count})"
        with sqlite3.connect(file_of(url)) as connection:
            if count:
                connection.execute(
                    f"{series.format(count=count)} INSERT INTO executions ({COLUMNS}) SELECT {values} FROM s"
                )
            connection.execute("ANALYZE")
            connection.commit()
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return
    import psycopg

    with psycopg.connect(url, autocommit=True) as server:
        text = f"INSERT INTO executions ({COLUMNS}) SELECT {values} FROM generate_series(1, {count}) i"
        server.execute(text.encode())
        server.execute("ANALYZE executions")


if __name__ == "__main__":
    # As `pilot serve` has it, but for the level.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40), cache_logger_on_first_use=True)
    main(Pilot)
