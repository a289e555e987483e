"""The work that every peer is given, run in a process of its own: `python -m benchmarks.peers.NAME WORK URL …`.

It prints one JSON object. A peer's file is a class of five or six short methods; what it can't do, it leaves out.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.peers.board import Board

Handle = Callable[[int, int], Coroutine[Any, Any, None]]
"""Called with a job's project and number when the job starts; the job is over when it returns."""

BODY = "b" * 200
"""What every job carries beside its project and number."""


class NotOffered(Exception):
    """The peer has nothing for this work."""


class Peer(ABC):
    """One queue, as its documentation says to use it."""

    settings: ClassVar[str]
    serialized: ClassVar[bool] = True
    distribution: ClassVar[str]
    apart: ClassVar[bool] = True
    """Whether two of it may be open in one process, as if a second node enqueued."""
    waits: ClassVar[bool] = True
    """Whether it brings a worker that waits for jobs."""

    def __init__(self, url: str, keys: int) -> None:
        self.url, self.keys = url, keys
        self.slots = 100

    async def create(self) -> None:
        """Lay the schema into an empty database; not measured. Opening does it, where nothing else is said."""
        await self.open()
        await self.close()

    @abstractmethod
    async def open(self) -> None:
        """Connect."""

    @abstractmethod
    async def close(self) -> None: ...

    @abstractmethod
    async def put(self, key: int, number: int) -> None:
        """One durable job of project `key`; acknowledged on return."""

    async def put_many(self, items: Sequence[tuple[int, int]]) -> None:
        """Several in one call, for one producer that has them at hand."""
        raise NotOffered

    async def work(self, handle: Handle) -> None:
        """Be a worker until cancelled."""
        raise NotOffered

    async def take(self) -> float:
        """Claim one job and end it; milliseconds that the claim took."""
        raise NotOffered

    async def grow(self, *, queued: int = 0, held: bool = True, finished: int = 0) -> None:
        """Rows by SQL: `queued` of project 0, one of which runs first if `held`; `finished` of all projects."""
        raise NotOffered


async def enqueue(peer: Peer, count: int, producers: int, limit: float) -> dict[str, Any]:
    """`producers` at once, each with one job at a time; no more after `limit` seconds."""
    done = 0

    async def produce(k: int) -> None:
        nonlocal done
        for number in range(k, count, producers):
            if time.perf_counter() - started > limit:
                return
            await peer.put(number % peer.keys, number)
            done += 1

    started = time.perf_counter()
    await asyncio.gather(*(produce(k) for k in range(producers)))
    return {"rate": done / (time.perf_counter() - started), "done": done}


async def bulk(peer: Peer, count: int, size: int = 100) -> dict[str, Any]:
    """One producer that hands over `size` at a time."""
    started = time.perf_counter()
    for first in range(0, count, size):
        await peer.put_many([(number % peer.keys, number) for number in range(first, first + size)])
    return {"rate": count / (time.perf_counter() - started)}


async def worker(peer: Peer, board: Board) -> dict[str, Any]:
    """Says that it is ready, begins at the word on stdin, and works until stdin ends."""
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    working = asyncio.create_task(peer.work(board.run))
    over = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    await asyncio.wait({working, over}, return_when=asyncio.FIRST_COMPLETED)
    if working.done():
        working.result()
    await _stopped(working)
    return {}


async def latency(peer: Peer, enqueuer: Peer, count: int) -> dict[str, Any]:
    """From before the enqueue to the start, with a worker that has nothing else to do."""
    loop = asyncio.get_running_loop()
    started: asyncio.Future[float] = loop.create_future()
    times: list[float] = []

    def note(at: float) -> None:
        if not started.done():
            started.set_result(at)

    async def handle(_key: int, _number: int) -> None:
        # Some peers run their jobs in threads.
        loop.call_soon_threadsafe(note, time.perf_counter())

    working = asyncio.create_task(peer.work(handle))
    await asyncio.sleep(1)
    for number in range(count + 5):
        started = loop.create_future()
        before = time.perf_counter()
        await enqueuer.put(number % peer.keys, number)
        either: set[asyncio.Future[Any]] = {started, working}
        done, _ = await asyncio.wait(either, timeout=30, return_when=asyncio.FIRST_COMPLETED)
        if started not in done:
            working.result()
            raise TimeoutError("a job did not start within 30 s")
        if number >= 5:
            times.append(1000 * (started.result() - before))
        # Odd, so that no poll falls into step with it; long enough for the job to be finished.
        await asyncio.sleep(0.023)
    await _stopped(working)
    return {"p50": statistics.median(times), "p99": statistics.quantiles(times, n=100)[98]}


async def claims(peer: Peer, count: int, *, fresh: bool) -> dict[str, Any]:
    """The time of a claim: of what is there, or, if `fresh`, of a job just put into a project that has no other."""
    times: list[float] = []
    ends = time.perf_counter() + 15
    for i in range(count + 20):
        if time.perf_counter() > ends and len(times) > 40:
            break
        if fresh:
            await peer.put(1 + i % (peer.keys - 1), i + 1)
        times.append(await peer.take())
    return {"p50": statistics.median(times[20:]), "p99": statistics.quantiles(times[20:], n=100)[98]}


async def _latency(kind: type[Peer], peer: Peer, count: int) -> dict[str, Any]:
    if not kind.waits:
        raise NotOffered
    if not kind.apart:
        return await latency(peer, peer, count)
    other = kind(peer.url, peer.keys)
    await other.open()
    try:
        return await latency(peer, other, count)
    finally:
        await other.close()


async def _stopped(task: asyncio.Task[None]) -> None:
    task.cancel()
    # A peer may answer the end of its worker by an error of its own; all was counted before.
    with suppress(asyncio.CancelledError, Exception, BaseExceptionGroup):
        await asyncio.wait_for(asyncio.wait({task}), 5)


def by_hand(running: Coroutine[Any, Any, None]) -> None:
    """Run a job's coroutine to its end where there is no loop: in the thread of a peer that knows none."""
    with suppress(StopIteration):
        while True:
            running.send(None)


def file_of(url: str) -> str:
    """The path of `sqlite:////path`."""
    return url.removeprefix("sqlite:///")


async def _run(kind: type[Peer], options: argparse.Namespace) -> dict[str, Any]:
    peer = kind(options.url, options.keys)
    peer.slots = options.slots
    if options.work == "create":
        await peer.create()
        return {"settings": peer.settings, "serialized": peer.serialized, "distribution": peer.distribution}
    await peer.open()
    try:
        match options.work:
            case "enqueue":
                return await enqueue(peer, options.count, 100, options.limit)
            case "bulk":
                return await bulk(peer, options.count)
            case "worker":
                return await worker(peer, Board(Path(options.board), options.keys, options.count, options.worker))
            case "latency":
                return await _latency(kind, peer, options.count)
            case "claims":
                return await claims(peer, options.count, fresh=options.fresh == 1)
            case "grow":
                await peer.grow(queued=options.queued, held=options.held == 1, finished=options.finished)
                return {}
        raise ValueError(options.work)
    finally:
        await peer.close()


def main(kind: type[Peer]) -> None:
    """The command line of a peer's file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("work", choices=("create", "enqueue", "bulk", "worker", "latency", "claims", "grow"))
    parser.add_argument("url")
    for name, default in (
        ("keys", 100),
        ("count", 0),
        ("worker", 0),
        ("queued", 0),
        ("held", 1),
        ("slots", 100),
        ("fresh", 1),
        ("finished", 0),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--limit", type=float, default=30)
    parser.add_argument("--board", default="")
    try:
        found = asyncio.run(_run(kind, parser.parse_args()))
    except NotOffered:
        found = {"offered": False}
    print(json.dumps(found), flush=True)
    # Threads of a peer that wait for work don't keep the process.
    sys.stdout.flush()
    raise SystemExit(0)
