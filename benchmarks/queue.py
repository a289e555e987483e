"""The queue and the dispatcher in one process, at `synchronous=FULL`, with an agent that does nothing."""

from __future__ import annotations

import asyncio
import sqlite3
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from benchmarks.figures import Figure
from pilot.dispatch.dispatcher import Dispatcher, Limits
from pilot.domain.execution import Execution
from pilot.domain.outcome import Ending, Outcome
from pilot.domain.policy import settle
from pilot.domain.ports import Finish, Node, NodeKind
from pilot.domain.task import Project, Task
from pilot.store import Store, open_store

NODE = Node("bench", NodeKind.SERVE, "host", "boot", 1, 1, "0")
DONE = Outcome(ending=Ending.DONE)


@asynccontextmanager
async def fresh(projects: int) -> AsyncIterator[tuple[Store, list[Project]]]:
    """An empty store with so many projects."""
    with tempfile.TemporaryDirectory(prefix="pilot-bench-") as folder:
        async with open_store(f"sqlite:///{folder}/pilot.db") as store:
            yield store, await store.queue.register([(f"k{i}", f"p{i}", f"/p{i}", 1) for i in range(projects)])


async def nothing(_execution: Execution) -> Outcome:
    """The agent."""
    return DONE


def dispatcher(store: Store, projects: list[Project], runner: Callable[[Execution], Awaitable[Outcome]]) -> Dispatcher:
    return Dispatcher(
        store.queue,
        runner,
        node=NODE,
        projects=projects,
        clock=store.database.clock,
        limits=Limits(max_running=len(projects)),
    )


async def fill(store: Store, projects: list[Project], count: int, producers: int, name: str) -> float:
    """Enqueue concurrently; executions per second."""

    async def produce(k: int) -> None:
        for i in range(k, count, producers):
            project = projects[i % len(projects)]
            await store.queue.enqueue(Task(project_id=project.id, title="task", task_id=f"{name}-{i}", body="b" * 200))

    started = time.perf_counter()
    await asyncio.gather(*(produce(k) for k in range(producers)))
    return count / (time.perf_counter() - started)


def plain() -> tuple[float, float]:
    """The limit: rows/s of plain `sqlite3` on a table without indexes, durable, one and 100 per commit."""
    with tempfile.TemporaryDirectory(prefix="pilot-bench-") as folder:
        connection = sqlite3.connect(f"{folder}/plain.db", isolation_level=None)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("CREATE TABLE tasks (id INTEGER PRIMARY KEY, name TEXT, body TEXT)")
        rates = []
        for per_commit in (1, 100):
            started = time.perf_counter()
            for i in range(2000):
                connection.execute("BEGIN IMMEDIATE")
                for _ in range(per_commit):
                    connection.execute("INSERT INTO tasks (name, body) VALUES (?, ?)", (f"t{i}", "b" * 200))
                connection.execute("COMMIT")
            rates.append(2000 * per_commit / (time.perf_counter() - started))
        connection.close()
    return rates[0], rates[1]


async def enqueue() -> list[Figure]:
    one, hundred = await asyncio.to_thread(plain)
    async with fresh(100) as (store, projects):
        rate = await fill(store, projects, 20_000, 100, "t")
        alone = await fill(store, projects, 1_000, 1, "alone")
    return [
        Figure("enqueue with dedup, 100 concurrent producers", rate, "/s", 8000, more=True, note=_share(rate, hundred)),
        Figure("enqueue with dedup, one by one", alone, "/s", 2000, more=True, note=_share(alone, one)),
    ]


def _share(rate: float, limit: float) -> str:
    return f"{rate / limit:.0%} of the {limit:,.0f}/s of a bare INSERT by plain sqlite3"


async def drain() -> list[Figure]:
    count = 10_000
    async with fresh(100) as (store, projects):
        await fill(store, projects, count, 100, "t")
        ended = 0
        all_ended = asyncio.Event()

        async def runner(_execution: Execution) -> Outcome:
            nonlocal ended
            ended += 1
            if ended == count:
                all_ended.set()
            return DONE

        started = time.perf_counter()
        async with dispatcher(store, projects, runner):
            await all_ended.wait()
        rate = count / (time.perf_counter() - started)
        ((completed,),) = await store.database.read("SELECT count(*) FROM executions WHERE status = 'completed'")
        assert completed == count
    return [Figure("drain 10,000 no-op executions of 100 projects, serialized", rate, "/s", 4000, more=True)]


async def latency() -> list[Figure]:
    times = []
    async with fresh(50) as (store, projects):
        started: asyncio.Future[float] = asyncio.get_running_loop().create_future()

        async def runner(_execution: Execution) -> Outcome:
            started.set_result(time.perf_counter())
            return DONE

        async with dispatcher(store, projects, runner):
            for i in range(300):
                started = asyncio.get_running_loop().create_future()
                before = time.perf_counter()
                await store.queue.enqueue(Task(project_id=projects[i % 50].id, title="t", task_id=f"t{i}"))
                times.append(1000 * (await started - before))
                await asyncio.sleep(0.01)
    return [Figure("enqueue → start, idle, same process, p50", statistics.median(times), "ms", 3)]


async def _pairs(store: Store, project: Project, count: int) -> float:
    """Milliseconds for a claim and a finish, one after the other."""
    times = []
    for i in range(count):
        await store.queue.enqueue(Task(project_id=project.id, title="t", task_id=f"pair-{i}"))
        before = time.perf_counter()
        (execution,) = await store.queue.claim("bench", lease=60_000, projects=(project.id,))
        finish = Finish(execution=execution, outcome=DONE, settlement=settle(execution, DONE, now=0, jitter=0))
        await store.queue.finish(finish)
        times.append(1000 * (time.perf_counter() - before))
    return statistics.median(times)


async def history() -> list[Figure]:
    async with fresh(100) as (store, projects):
        await _pairs(store, projects[0], 200)
        empty = await _pairs(store, projects[1], 500)
    async with fresh(100) as (store, projects):
        path = store.database.path  # type: ignore[attr-defined]
        await asyncio.to_thread(add_finished, path, 1_000_000)
        await _pairs(store, projects[0], 200)
        full = await _pairs(store, projects[1], 500)
    note = f"{empty:.2f} ms → {full:.2f} ms"
    return [Figure("claim and finish, 1,000,000 finished rows against none", full / empty, "x", 1.15, note=note)]


def add_finished(path: Path, count: int, queued: int = 0) -> None:
    """History in bulk, spread over the projects that are there; `queued` open ones after it."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        ids = [id for (id,) in connection.execute("SELECT id FROM projects")]
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("BEGIN")
        columns = (
            "project_id, project, project_path, task_id, title, body, source, kind, labels, priority, lane, status, "
            "due, available_at, max_attempts, backend, created_at, finished_at"
        )
        rows = (
            (ids[i % len(ids)], "p", "/p", f"old-{i}", "t", "b" * 100, "api", "code", "[]", 2, 0)
            + (("completed", 0, 0, 3, "command", i, i) if i < count else ("queued", 1, 0, 3, "command", i, None))
            for i in range(count + queued)
        )
        connection.executemany(f"INSERT INTO executions ({columns}) VALUES ({', '.join('?' * 18)})", rows)
        connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        connection.close()


async def run() -> list[Figure]:
    """All figures of this file."""
    return [*await enqueue(), *await drain(), *await latency(), *await history()]
