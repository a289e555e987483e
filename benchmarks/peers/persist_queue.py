"""persist-queue (SQLite): its queue with acknowledgements. No order by project; unacknowledged jobs return at open."""

from __future__ import annotations

import asyncio
import pickle
import sqlite3
import threading
import time
from pathlib import Path

from persistqueue import Empty, SQLiteAckQueue

from benchmarks.peers.work import BODY, Handle, Peer, by_hand, file_of, main


class PersistQueue(Peer):
    settings = "SQLiteAckQueue, WAL, synchronous=FULL, as it opens it; one worker thread"
    serialized = False
    distribution = "persist-queue"
    apart = False

    async def open(self) -> None:
        path = Path(file_of(self.url))
        self.queue = SQLiteAckQueue(str(path.parent), db_file_name=path.name, multithreading=True)

    async def close(self) -> None:
        self.queue.close()

    async def put(self, key: int, number: int) -> None:
        self.queue.put((key, number, BODY))

    async def work(self, handle: Handle) -> None:
        over = threading.Event()
        try:
            await asyncio.to_thread(self._loop, handle, over)
        finally:
            over.set()

    def _loop(self, handle: Handle, over: threading.Event) -> None:
        while not over.is_set():
            try:
                item = self.queue.get(timeout=1, raw=True)
            except Empty:
                continue
            key, number, _ = item["data"]
            by_hand(handle(key, number))
            self.queue.ack(item)

    async def take(self) -> float:
        before = time.perf_counter()
        item = self.queue.get(block=False, raw=True)
        took = 1000 * (time.perf_counter() - before)
        self.queue.ack(item)
        return took

    async def grow(self, *, queued: int = 0, held: bool = True, finished: int = 0) -> None:
        data = pickle.dumps((0, 0, BODY))
        with sqlite3.connect(file_of(self.url)) as connection:
            for status, count in ((5, finished), (1, queued)):
                connection.executemany(
                    "INSERT INTO ack_queue_default (data, timestamp, status) VALUES (?, 0, ?)",
                    ((data, status) for _ in range(count)),
                )


if __name__ == "__main__":
    main(PersistQueue)
