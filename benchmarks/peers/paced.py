"""pilot under a steady load: `python -m benchmarks.peers.paced URL --keys P --rate R`; prints JSON.

One process enqueues by a store of its own at the given rate and works by another, as two nodes would. The jobs do
nothing, so that the store alone sets the limit.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from contextlib import suppress
from typing import Any

from benchmarks.peers.pilot import Pilot


async def paced(url: str, keys: int, rate: float, seconds: float) -> dict[str, Any]:
    """Milliseconds from the moment at which a job should be enqueued to its start, and how many a second started."""
    worker, producer = Pilot(url, keys), Pilot(url, keys)
    worker.slots = keys
    await worker.open()
    await producer.open()
    due: dict[int, float] = {}
    waits: list[float] = []

    async def handle(_key: int, number: int) -> None:
        waits.append(1000 * (time.perf_counter() - due[number]))

    working = asyncio.create_task(worker.work(handle))
    await asyncio.sleep(0.5)
    pending: set[asyncio.Task[None]] = set()
    count = int(rate * seconds)
    began = time.perf_counter()
    for number in range(count):
        due[number] = began + number / rate
        if (ahead := due[number] - time.perf_counter()) > 0.001:
            await asyncio.sleep(ahead)
        task = asyncio.create_task(producer.put(number % keys, number))
        pending.add(task)
        task.add_done_callback(pending.discard)
        if len(pending) > 500:
            await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.gather(*pending)
    while len(waits) < count and time.perf_counter() - began < 3 * seconds + 2:
        await asyncio.sleep(0.005)
    took = time.perf_counter() - began
    working.cancel()
    with suppress(asyncio.CancelledError):
        await working
    await producer.close()
    await worker.close()
    p99 = statistics.quantiles(waits, n=100)[98]
    return {"rate": len(waits) / took, "p50": statistics.median(waits), "p99": p99, "started": len(waits), "of": count}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--keys", type=int, default=100)
    parser.add_argument("--rate", type=float, default=1000)
    parser.add_argument("--seconds", type=float, default=2)
    options = parser.parse_args()
    print(json.dumps(asyncio.run(paced(options.url, options.keys, options.rate, options.seconds))))
