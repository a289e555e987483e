"""DBOS (PostgreSQL and SQLite): a queue partitioned by project, `partition_concurrency=1`."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor

from dbos import DBOS, DBOSClient

from benchmarks.peers.work import BODY, Handle, Peer, main

POLL = 0.05


class Dbos(Peer):
    settings = (
        f"partitioned queue, polled each {1000 * POLL:.0f} ms (its default is 1 s); enqueued by 20 threads of its "
        "client; SQLite: rollback journal, synchronous=FULL, as it opens it"
    )
    distribution = "dbos"
    apart = False

    async def create(self) -> None:
        await asyncio.to_thread(_launch, self.url)
        await asyncio.to_thread(DBOS.destroy)

    async def open(self) -> None:
        logging.getLogger("dbos").setLevel(logging.ERROR)
        self.client = DBOSClient(system_database_url=self.url, system_database_pool_size=20)
        # The client is synchronous; its own `enqueue_async` is a thread of the loop's pool, too.
        self.threads = ThreadPoolExecutor(1 if self.url.startswith("sqlite") else 20)
        asyncio.get_running_loop().set_default_executor(self.threads)

    async def close(self) -> None:
        await asyncio.to_thread(self.client.destroy)

    async def put(self, key: int, number: int) -> None:
        await self.client.enqueue_async(
            {"queue_name": "jobs", "workflow_name": "job", "queue_partition_key": f"k{key}"}, key, number, BODY
        )

    async def work(self, handle: Handle) -> None:
        # Its threads run coroutines on a loop of its own: here on this one's notes all the same.
        await asyncio.to_thread(_launch, self.url, handle)
        try:
            await asyncio.Event().wait()
        finally:
            DBOS.destroy(workflow_completion_timeout_sec=0)


def _launch(url: str, handle: Handle | None = None) -> None:
    DBOS(
        config={
            "name": "bench", "system_database_url": url, "log_level": "ERROR", "application_version": "1",
            "executor_id": "bench",
        }
    )  # fmt: skip
    _workflow(handle)
    DBOS.launch()
    DBOS.register_queue("jobs", partition_concurrency=1, polling_interval_sec=POLL, on_conflict="always_update")


def _workflow(handle: Handle | None) -> None:
    async def job(key: int, number: int, body: str) -> None:
        assert handle is not None
        await handle(key, number)

    DBOS.workflow(name="job")(job)


if __name__ == "__main__":
    main(Dbos)
