"""Workers elsewhere: how quick the real `pilot serve` gives and takes over HTTP."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.daemon import cpu, make_projects, serving
from benchmarks.figures import Figure
from benchmarks.wire import Wire
from pilot.domain.access import Scope
from pilot.domain.task import Task
from pilot.store import open_store

WORKERS, EACH = 8, 250
ENQUEUED, SENDERS = 4000, 8
WAKES = 100


@dataclass(frozen=True, slots=True)
class Place:
    """A running daemon whose tasks are left to workers, with a token for each of them."""

    url: str
    tokens: Sequence[str]
    state: Path
    pid: int


@contextmanager
def place(port: int, queued: int = 0, projects: int = WORKERS) -> Iterator[Place]:
    """So many executions are queued in it."""
    with tempfile.TemporaryDirectory(prefix="pilot-bench-") as folder:
        config = make_projects(Path(folder), projects)
        settings = json.loads(config.read_text())
        settings |= {"executor": {"type": "external"}, "server": {"port": port, "rate_limit": 100_000}}
        config.write_text(json.dumps(settings))
        with serving(config) as (daemon, _):
            tokens = asyncio.run(_set_up(config.parent / "state" / "pilot.db", queued))
            yield Place(f"http://127.0.0.1:{port}", tokens, config.parent / "state", daemon.pid)


async def _set_up(database: Path, queued: int) -> list[str]:
    async with open_store(f"sqlite:///{database}") as store:
        projects = await store.history.projects()

        async def fill(first: int) -> None:
            for number in range(first, queued, 100):
                project = projects[number % len(projects)].id
                await store.queue.enqueue(
                    Task(
                        project_id=project,
                        task_id=f"B-{number}",
                        title="task",
                        body="b" * 200,
                        backend="external",
                        external=True,
                    )
                )

        await asyncio.gather(*(fill(first) for first in range(100)))
        return [await store.tokens.create(f"w{n}", [Scope.WORK], "bench") for n in range(WORKERS)]


def work(url: str, token: str, name: str, count: int) -> list[float]:
    """Claim and complete; the seconds of each pair."""
    wire, took = Wire(url, token), []
    for _ in range(count):
        began = time.perf_counter()
        claimed = wire.ask("POST", "/api/v1/work/claim", {"worker": name, "wait_seconds": 30})["executions"]
        for execution in claimed:
            done = {"worker": name, "fence": execution["fence"], "summary": "done"}
            wire.ask("POST", f"/api/v1/work/{execution['id']}/complete", done)
        took.append(time.perf_counter() - began)
    wire.close()
    return took


def work_on(url: str, token: str, name: str, count: int) -> list[float]:
    """Complete, and claim the next one with it; the seconds of each."""
    wire = Wire(url, token)
    took: list[float] = []
    held = wire.ask("POST", "/api/v1/work/claim", {"worker": name, "wait_seconds": 30})["executions"]
    while len(took) < count:
        began = time.perf_counter()
        if not held:  # the others have taken all that could be taken at that moment
            held = wire.ask("POST", "/api/v1/work/claim", {"worker": name, "wait_seconds": 30})["executions"]
        done = {"worker": name, "fence": held[0]["fence"], "summary": "done", "next": {}}
        held = wire.ask("POST", f"/api/v1/work/{held[0]['id']}/complete", done)["next"]
        took.append(time.perf_counter() - began)
    wire.close()
    return took


def enqueue(url: str, token: str, name: str, count: int) -> list[float]:
    """Put tasks in; the seconds of each."""
    wire, took = Wire(url, token), []
    for number in range(count):
        task = {"project": f"p{number % WORKERS}", "title": "task", "task_id": f"{name}-{number}", "body": "b" * 200}
        began = time.perf_counter()
        wire.ask("POST", "/api/v1/executions", task)
        took.append(time.perf_counter() - began)
    wire.close()
    return took


def at_once(
    what: Callable[[str, str, str, int], list[float]], there: Place, processes: int, count: int
) -> tuple[float, list[float]]:
    """Several processes at it, each so often; the seconds it took, and those of each."""
    began = time.perf_counter()
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        given = [
            (there.url, there.tokens[number % len(there.tokens)], f"w{number}", count) for number in range(processes)
        ]
        found = pool.starmap(what, given, chunksize=1)
    return time.perf_counter() - began, [each for took in found for each in took]


def p99(took: Sequence[float]) -> float:
    """Milliseconds."""
    return 1000 * sorted(took)[int(len(took) * 0.99)]


def paired() -> list[Figure]:
    """Claim and complete, with a deep queue: what comes next with the last word, and by a call of its own."""
    count = WORKERS * EACH
    figures = []
    for what, name in ((work_on, "claim + complete over HTTP, pairs"), (work, "the same, in two calls")):
        with place(17341, queued=count + 200) as there:
            before = cpu(there.pid)
            seconds, took = at_once(what, there, WORKERS, EACH)
            used = 1000 * (cpu(there.pid) - before) / count
        note = f"{WORKERS} worker processes, p99 {p99(took):.0f} ms; {used:.2f} ms of the server's CPU each"
        figures.append(Figure(name, count / seconds, "/s", 400, more=True, note=note))
    return figures


def enqueued() -> list[Figure]:
    """New tasks, durable before each answer."""
    with place(17342) as there:
        before = cpu(there.pid)
        seconds, took = at_once(enqueue, there, SENDERS, ENQUEUED // SENDERS)
        used = 1000 * (cpu(there.pid) - before) / ENQUEUED
    note = f"{SENDERS} connections, p99 {p99(took):.0f} ms; {used:.2f} ms of the server's CPU each"
    return [Figure("enqueue over HTTP", ENQUEUED / seconds, "/s", 800, more=True, note=note)]


def woken() -> list[Figure]:
    """From the moment a task is sent to the moment a waiting worker has it."""
    took = []
    with place(17343) as there:
        waiting, sending = (Wire(there.url, token) for token in there.tokens[:2])
        for number in range(WAKES):
            got: list[float] = []

            def claim(got: list[float] = got) -> None:
                (execution,) = waiting.answer()[1]["executions"]
                got.append(time.perf_counter())
                done = {"worker": "w", "fence": execution["fence"]}
                waiting.ask("POST", f"/api/v1/work/{execution['id']}/complete", done)

            waiting.send("POST", "/api/v1/work/claim", {"worker": "w", "wait_seconds": 60})
            thread = threading.Thread(target=claim)
            thread.start()
            time.sleep(0.05)  # it waits by then
            began = time.perf_counter()
            sending.ask("POST", "/api/v1/executions", {"project": "p0", "title": "t", "task_id": f"W-{number}"})
            thread.join()
            took.append(1000 * (got[0] - began))
        waiting.close()
        sending.close()
    note = f"{WAKES} times; p99 {sorted(took)[-2]:.0f} ms"
    return [Figure("task sent → waiting worker has it, p50", statistics.median(took), "ms", 20, note=note)]


def run() -> list[Figure]:
    """All figures of this file."""
    found = []
    for part in (paired, enqueued, woken):
        print(f"  {part.__name__} …", file=sys.stderr, flush=True)
        found += part()
    return found
