"""Huey (SQLite). It deletes a task when it takes it: a worker that dies loses what it had. No order by project."""

from __future__ import annotations

import asyncio
import time

from huey import SqliteHuey

from benchmarks.peers.work import BODY, Handle, NotOffered, Peer, by_hand, file_of, main


class Huey(Peer):
    settings = "WAL, fsync=True (synchronous=FULL), one worker thread polling from 10 ms; keeps no history"
    serialized = False
    distribution = "huey"
    apart = False

    async def open(self) -> None:
        self.huey = SqliteHuey(filename=file_of(self.url), fsync=True, results=False)
        self.handle: Handle | None = None

        def job(key: int, number: int, body: str) -> None:
            assert self.handle is not None
            by_hand(self.handle(key, number))

        self.job = self.huey.task()(job)

    async def close(self) -> None:
        self.huey.storage.close()

    async def put(self, key: int, number: int) -> None:
        self.job(key, number, BODY)

    async def work(self, handle: Handle) -> None:
        self.handle = handle
        consumer = self.huey.create_consumer(workers=1, periodic=False, initial_delay=0.01, max_delay=0.1)
        consumer.start()
        try:
            await asyncio.Event().wait()
        finally:
            consumer.stop(graceful=False)

    async def take(self) -> float:
        before = time.perf_counter()
        assert self.huey.dequeue() is not None
        return 1000 * (time.perf_counter() - before)

    async def grow(self, *, queued: int = 0, held: bool = True, finished: int = 0) -> None:
        if finished:
            raise NotOffered
        # One such row by its own door, the others from it by SQL: one commit.
        await self.put(0, 0)
        self.huey.storage.sql(
            "WITH RECURSIVE s (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < ?) "
            "INSERT INTO task (queue, data, priority) SELECT queue, data, priority FROM task, s",
            (queued,),
            commit=True,
        )


if __name__ == "__main__":
    main(Huey)
