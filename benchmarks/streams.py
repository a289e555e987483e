"""What readers of events cost those who work."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from urllib.parse import urlsplit

from benchmarks.figures import Figure
from benchmarks.http import WORKERS, Place, at_once, place, work

READERS, ROUNDS, EACH = 500, 9, 60


def read(there: Place, pipe: Connection) -> None:
    """In a process of its own: readers who take what comes, until it is said to be enough; how much that was.

    They are other machines' work: what they need themselves comes after the server's and the workers'.
    """
    os.nice(19)
    asyncio.run(_read(there, pipe))


async def _read(there: Place, pipe: Connection) -> None:
    parts = urlsplit(there.url)
    request = (
        f"GET /api/v1/events HTTP/1.1\r\nHost: {parts.hostname}:{parts.port}\r\n"
        f"Authorization: Bearer {there.tokens[0]}\r\n\r\n"
    )
    lines = []
    for _ in range(READERS):
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        writer.write(request.encode())
        head = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in head.split(b"\r\n", 1)[0]:
            raise RuntimeError(head.decode())
        lines.append((reader, writer))

    taken = 0

    async def take(reader: asyncio.StreamReader) -> None:
        nonlocal taken
        while data := await reader.read(1 << 20):
            taken += len(data)

    tasks = [asyncio.create_task(take(reader)) for reader, _ in lines]
    pipe.send(len(tasks))
    await asyncio.to_thread(pipe.recv)
    gone = sum(task.done() for task in tasks)
    for task in tasks:
        task.cancel()
    for _, writer in lines:
        writer.close()
    pipe.send((taken, gone))


@contextmanager
def readers(there: Place, found: list[tuple[int, int]]) -> Iterator[None]:
    """Many of them listen meanwhile; afterwards `found` has the bytes they got, and how many were cut off."""
    here, away = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=read, args=(there, away))
    process.start()
    try:
        here.recv()
        yield
        here.send("enough")
        found.append(here.recv())
    finally:
        process.join()


def run() -> list[Figure]:
    """The rate with readers, as a part of the one without; both in turn, so that the machine's moods count for both."""
    alone, watched = [], []
    found: list[tuple[int, int]] = []
    count = WORKERS * EACH
    with place(17344, queued=2 * ROUNDS * count + 100) as there:
        for _ in range(ROUNDS):
            alone.append(count / at_once(work, there, WORKERS, EACH)[0])
            with readers(there, found):
                watched.append(count / at_once(work, there, WORKERS, EACH)[0])
    ratio = statistics.median(one / other for one, other in zip(watched, alone, strict=True))
    taken, gone = (sum(each) for each in zip(*found, strict=True))
    note = f"{statistics.median(watched):.0f}/s, {taken / 1e6:.0f} MB told, {gone} cut off"
    return [
        Figure(f"claim + complete with {READERS} readers of events, of without", ratio, "", 0.85, more=True, note=note)
    ]
