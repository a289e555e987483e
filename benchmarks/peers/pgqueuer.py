"""pgqueuer (PostgreSQL): one entrypoint per project with `concurrency_limit=1`; asyncpg, its first driver."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from uuid import uuid4

import asyncpg
from pgqueuer.db import AsyncpgPoolDriver
from pgqueuer.models import Job
from pgqueuer.ports.repository import EntrypointExecutionParameter
from pgqueuer.qm import QueueManager
from pgqueuer.queries import Queries

from benchmarks.peers.work import BODY, Handle, Peer, main


class Pgqueuer(Peer):
    settings = "asyncpg pool of 10, batches of 100, finished jobs kept in its log table; finish not fenced"
    distribution = "pgqueuer"

    async def create(self) -> None:
        await self.open()
        await self.queries.install()
        await self.close()

    async def open(self) -> None:
        self.pool = await asyncpg.create_pool(self.url, min_size=2, max_size=10)
        self.queries = Queries(AsyncpgPoolDriver(self.pool))

    async def close(self) -> None:
        self.pool.terminate()

    async def put(self, key: int, number: int) -> None:
        await self.queries.enqueue(f"k{key}", _payload(key, number))

    async def put_many(self, items: Sequence[tuple[int, int]]) -> None:
        await self.queries.enqueue(
            [f"k{key}" for key, _ in items], [_payload(*item) for item in items], [0] * len(items)
        )

    async def work(self, handle: Handle) -> None:
        manager = QueueManager(self.queries)
        for key in range(self.keys):
            manager.entrypoint(f"k{key}", concurrency_limit=1)(_handler(handle))
        await manager.run(batch_size=100)

    async def take(self) -> float:
        before = time.perf_counter()
        (job,) = await self._dequeue([f"k{key}" for key in range(self.keys)])
        took = 1000 * (time.perf_counter() - before)
        await self.queries.log_jobs([(job, "successful", None)])
        return took

    async def grow(self, *, queued: int = 0, held: bool = True, finished: int = 0) -> None:
        await self.pool.execute(
            "INSERT INTO pgqueuer (priority, entrypoint, payload, status) "
            "SELECT 0, 'k0', $1::bytea, 'queued' FROM generate_series(1, $2::int)",
            _payload(0, 0),
            queued,
        )
        await self.pool.execute(
            "INSERT INTO pgqueuer_log (job_id, status, priority, entrypoint) "
            "SELECT -i, 'successful', 0, 'k' || i % $1::int FROM generate_series(1, $2::int) i",
            self.keys,
            finished,
        )
        await self.pool.execute("ANALYZE")
        if held:
            await self._dequeue(["k0"])

    async def _dequeue(self, names: list[str]) -> list[Job]:
        one = EntrypointExecutionParameter(concurrency_limit=1)
        jobs: list[Job] = await self.queries.dequeue(1, dict.fromkeys(names, one), uuid4(), None, timedelta(seconds=30))
        return jobs


def _payload(key: int, number: int) -> bytes:
    return json.dumps([key, number, BODY]).encode()


def _handler(handle: Handle) -> Callable[[Job], Awaitable[None]]:
    async def run(job: Job) -> None:
        key, number, _ = json.loads(job.payload or b"")
        await handle(key, number)

    return run


if __name__ == "__main__":
    main(Pgqueuer)
