"""procrastinate (PostgreSQL): a `lock` per project, which is strictly first in, first out."""

from __future__ import annotations

import time
from collections.abc import Sequence

import procrastinate
from procrastinate.jobs import Status

from benchmarks.peers.work import BODY, Handle, Peer, main


class Procrastinate(Peer):
    settings = "psycopg pool of 10, worker with concurrency 20 and LISTEN; finished jobs kept; finish not fenced"
    distribution = "procrastinate"

    async def create(self) -> None:
        await self.open()
        await self.app.schema_manager.apply_schema_async()
        await self.close()

    async def open(self) -> None:
        self.app = procrastinate.App(
            connector=procrastinate.PsycopgConnector(conninfo=self.url, min_size=2, max_size=10)
        )
        self.handle: Handle | None = None

        async def job(key: int, number: int, body: str) -> None:
            assert self.handle is not None
            await self.handle(key, number)

        self.job = self.app.task(name="job")(job)
        await self.app.open_async()
        self.worker_id = 0

    async def close(self) -> None:
        await self.app.close_async()

    async def put(self, key: int, number: int) -> None:
        await self.job.configure(lock=f"k{key}").defer_async(key=key, number=number, body=BODY)

    async def put_many(self, items: Sequence[tuple[int, int]]) -> None:
        # `batch_defer_async` of a task gives all of a batch one lock; the manager's takes whole jobs.
        await self.app.job_manager.batch_defer_jobs_async(
            [
                self.job.configure(lock=f"k{key}", task_kwargs={"key": key, "number": number, "body": BODY}).job
                for key, number in items
            ]
        )

    async def work(self, handle: Handle) -> None:
        self.handle = handle
        await self.app.run_worker_async(concurrency=20, wait=True, install_signal_handlers=False)

    async def take(self) -> float:
        if not self.worker_id:
            self.worker_id = await self.app.job_manager.register_worker()
        before = time.perf_counter()
        job = await self.app.job_manager.fetch_job(queues=None, worker_id=self.worker_id)
        took = 1000 * (time.perf_counter() - before)
        assert job is not None
        await self.app.job_manager.finish_job(job, Status.SUCCEEDED, delete_job=False)
        return took

    async def grow(self, *, queued: int = 0, held: bool = True, finished: int = 0) -> None:
        sql = self.app.connector.execute_query_async
        columns = "queue_name, task_name, lock, args, status"
        job = "jsonb_build_object('key', 1, 'number', i, 'body', %(body)s::text)"
        if held:
            await self.put(0, 0)
            await self.app.job_manager.fetch_job(None, await self.app.job_manager.register_worker())
        # Its triggers write an event and a NOTIFY per row.
        await sql("ALTER TABLE procrastinate_jobs DISABLE TRIGGER USER")
        for lock, status, count in (("'k0'", "todo", queued), ("'k' || i %% %(keys)s", "succeeded", finished)):
            await sql(
                f"INSERT INTO procrastinate_jobs ({columns}) SELECT 'default', 'job', {lock}, {job}, '{status}' "
                "FROM generate_series(1, %(count)s) i",
                count=count,
                keys=self.keys,
                body=BODY,
            )
        await sql("ALTER TABLE procrastinate_jobs ENABLE TRIGGER USER")
        await sql("ANALYZE procrastinate_jobs")


if __name__ == "__main__":
    main(Procrastinate)
