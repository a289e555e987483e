"""SAQ (PostgreSQL): a `group_key` per project."""

from __future__ import annotations

import logging
import time
from typing import Any

from saq import Queue, Worker
from saq.job import Status

from benchmarks.peers.work import BODY, Handle, Peer, main


class Saq(Peer):
    settings = "pool of 20, worker with concurrency 20, LISTEN; finished jobs kept (ttl=0); finish not fenced"
    distribution = "saq"

    async def open(self) -> None:
        logging.getLogger("saq").setLevel(logging.ERROR)
        self.queue: Any = Queue.from_url(self.url)
        await self.queue.connect()

    async def close(self) -> None:
        await self.queue.disconnect()

    async def put(self, key: int, number: int) -> None:
        await self.queue.enqueue("job", group_key=f"k{key}", ttl=0, key_=key, number=number, body=BODY)

    async def work(self, handle: Handle) -> None:
        async def job(_ctx: Any, *, key_: int, number: int, body: str) -> None:
            await handle(key_, number)

        await Worker(self.queue, [("job", job)], concurrency=20).start()

    async def take(self) -> float:
        before = time.perf_counter()
        job = await self.queue.dequeue(timeout=5)
        took = 1000 * (time.perf_counter() - before)
        assert job is not None
        await job.finish(Status.COMPLETE)
        return took

    async def grow(self, *, queued: int = 0, held: bool = True, finished: int = 0) -> None:
        await self.put(0, 0)
        async with self.queue.pool.connection() as connection:
            await connection.execute("UPDATE saq_jobs SET status = 'active', key = 'held'")
            # A job's key stands in its text, too: finishing goes by that one.
            text = "convert_to(jsonb_set(convert_from(job, 'UTF8')::jsonb, '{{key}}', to_jsonb({key}))::text, 'UTF8')"
            for group, status, count in (("0", "queued", queued), (f"i %% {self.keys}", "complete", finished)):
                key = f"'{status}-' || i"
                await connection.execute(
                    f"INSERT INTO saq_jobs (key, job, queue, status, group_key, scheduled) "
                    f"SELECT {key}, {text.format(key=key)}, queue, '{status}', 'k' || {group}, scheduled "
                    "FROM saq_jobs, generate_series(1, %s) i WHERE key = 'held'",
                    (count,),
                )
            if not held:
                await connection.execute("DELETE FROM saq_jobs WHERE key = 'held'")
            await connection.execute("ANALYZE saq_jobs")


if __name__ == "__main__":
    main(Saq)
