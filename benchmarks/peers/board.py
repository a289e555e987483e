"""What handlers note in shared memory: which job ran, when, whether two of one project ever ran at once."""

from __future__ import annotations

import asyncio
import mmap
import struct
import time
from dataclasses import dataclass
from pathlib import Path

WORKERS = 16
_COUNTERS = 4  # handled, time of the last, met another of its project, came before an earlier one
_HEAD = 8 * WORKERS * _COUNTERS


@dataclass(frozen=True, slots=True)
class Tally:
    """All workers' notes together. `last`: `time.monotonic_ns` at the last start."""

    handled: int
    last: int
    overlaps: int
    disorder: int
    distinct: int

    @property
    def twice(self) -> int:
        return self.handled - self.distinct


class Board:
    """A file mapped by the runner and by every worker process; `worker` is whose counters `run` moves.

    The note costs every peer the same few microseconds. What it sees of overlaps is a lower bound: jobs last one
    turn of the event loop.
    """

    def __init__(self, path: Path, keys: int, jobs: int, worker: int = 0) -> None:
        self.keys, self.jobs = keys, jobs
        size = _HEAD + 8 * keys + jobs
        if not path.exists():
            path.write_bytes(bytes(size))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), size)
        self._own = 8 * _COUNTERS * worker
        self._running = _HEAD
        self._newest = _HEAD + 4 * keys
        self._seen = _HEAD + 8 * keys

    def start(self, key: int, number: int) -> None:
        """A job of project `key` begins; numbers rise in the order of enqueueing."""
        self._add(0, 1)
        struct.pack_into("<q", self._map, self._own + 8, time.monotonic_ns())
        running, newest = self._running + 4 * key, self._newest + 4 * key
        (others,) = struct.unpack_from("<i", self._map, running)
        if others:
            self._add(2, 1)
        struct.pack_into("<i", self._map, running, others + 1)
        (before,) = struct.unpack_from("<i", self._map, newest)
        if number + 1 < before:
            self._add(3, 1)
        struct.pack_into("<i", self._map, newest, number + 1)
        self._map[self._seen + number] = 1

    def end(self, key: int) -> None:
        running = self._running + 4 * key
        (others,) = struct.unpack_from("<i", self._map, running)
        struct.pack_into("<i", self._map, running, others - 1)

    async def run(self, key: int, number: int) -> None:
        """The job: nothing but one turn of the loop."""
        self.start(key, number)
        await asyncio.sleep(0)
        self.end(key)

    def handled(self) -> int:
        return sum(self._column(0))

    def tally(self) -> Tally:
        seen = self._map[self._seen : self._seen + self.jobs].count(1)
        return Tally(self.handled(), max(self._column(1)), sum(self._column(2)), sum(self._column(3)), seen)

    def shares(self) -> list[int]:
        """How many each worker handled."""
        return [count for count in self._column(0) if count]

    def _column(self, which: int) -> list[int]:
        return [struct.unpack_from("<q", self._map, 8 * (_COUNTERS * w + which))[0] for w in range(WORKERS)]

    def _add(self, which: int, amount: int) -> None:
        at = self._own + 8 * which
        struct.pack_into("<q", self._map, at, struct.unpack_from("<q", self._map, at)[0] + amount)
