"""litequeue (SQLite): a table and its pop. No worker, no order by project, nothing that frees a dead worker's jobs."""

from __future__ import annotations

import asyncio
import json
import threading
import time

from litequeue import LiteQueue

from benchmarks.peers.work import BODY, Handle, Peer, by_hand, file_of, main


class Litequeue(Peer):
    settings = "WAL, synchronous=FULL (it opens with NORMAL, which loses acknowledged jobs with the power)"
    serialized = False
    distribution = "litequeue"
    waits = False

    async def open(self) -> None:
        self.queue = LiteQueue(file_of(self.url))
        self.queue.conn.execute("PRAGMA synchronous = FULL")

    async def close(self) -> None:
        self.queue.close()

    async def put(self, key: int, number: int) -> None:
        self.queue.put(json.dumps([key, number, BODY]))

    async def work(self, handle: Handle) -> None:
        over = threading.Event()
        try:
            await asyncio.to_thread(self._loop, handle, over)
        finally:
            over.set()

    def _loop(self, handle: Handle, over: threading.Event) -> None:
        while not over.is_set():
            message = self.queue.pop()
            if message is None:
                over.wait(0.01)
                continue
            key, number, _ = json.loads(message.data)
            by_hand(handle(key, number))
            self.queue.done(message.message_id)

    async def take(self) -> float:
        before = time.perf_counter()
        message = self.queue.pop()
        took = 1000 * (time.perf_counter() - before)
        self.queue.done(message.message_id)
        return took

    async def grow(self, *, queued: int = 0, held: bool = True, finished: int = 0) -> None:
        for status, count in ((0, queued), (2, finished)):
            with self.queue.transaction():
                self.queue.conn.executemany(
                    "INSERT INTO Queue (data, message_id, status, in_time) VALUES (?, ?, ?, 0)",
                    ((json.dumps([0, i, BODY]), f"{i:08x}", status) for i in range(count)),
                )


if __name__ == "__main__":
    main(Litequeue)
