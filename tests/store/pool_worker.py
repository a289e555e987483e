"""Workers in a process of their own: `python -m tests.store.pool_worker URL NAME COUNT [hold]`.

Each claims and completes until nothing is open any more; with `hold` it keeps what it gets, and says so.
"""

from __future__ import annotations

import asyncio
import sys

from pilot.domain.errors import LeaseLost
from pilot.domain.execution import OPEN
from pilot.domain.outcome import Ending, Outcome
from pilot.store import open_queue
from pilot.store.work_queue import SqlWorkQueue
from tests.store.writer import say

LEASE = 1_500


async def work(queue: SqlWorkQueue, name: str) -> None:
    while True:
        claims = await queue.claim(name, lease=LEASE, wait=0.2)
        for claim in claims:
            try:
                await queue.complete(claim.execution.id, name, claim.fence, Outcome(ending=Ending.DONE))
            except LeaseLost:  # a machine that is busy with more than this test
                say("lost", claim.execution.id)
            else:
                say("done", claim.execution.id)
        if not claims:
            counts = await queue.counts()
            if not any(counts[status] for status in OPEN):
                return


async def hold(queue: SqlWorkQueue, name: str) -> None:
    claims = await queue.claim(name, max=4, lease=LEASE)
    say("holds", *(claim.execution.id for claim in claims))
    await asyncio.Event().wait()


async def main(url: str, name: str, count: str, *mode: str) -> None:
    async with open_queue(url) as queue:
        await asyncio.gather(*((hold if mode else work)(queue, f"{name}.{n}") for n in range(int(count))))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
