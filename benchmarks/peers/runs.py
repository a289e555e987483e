"""One peer on one engine: its databases, its processes, what it measured."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.peers.board import Board, Tally
from benchmarks.peers.server import Server

ROOT = Path(__file__).resolve().parents[2]
KEYS = 100


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is done. Times in seconds; what is not over by then counts as far as it came."""

    jobs: int = 10_000
    rounds: int = 5
    enough: float = 25
    limit: float = 25
    latencies: int = 100
    claims: int = 100
    queued: int = 50_000
    finished: int = 1_000_000


QUICK = Sizes(jobs=1_000, rounds=1, enough=1, limit=8, latencies=30, claims=30, finished=100_000)


class Failed(Exception):
    """A peer's process ended with an error; its last lines."""


@dataclass(slots=True)
class Entrant:
    """A peer on an engine. `python`: the environment it lives in."""

    name: str
    engine: str
    python: str
    folder: Path
    server: Server
    about: dict[str, Any] = field(default_factory=dict)
    made: int = 0

    @property
    def title(self) -> str:
        return f"{self.name} ({'PostgreSQL' if self.engine == 'postgres' else 'SQLite'})"

    def prepare(self) -> None:
        """Lay the schema once; every piece of work begins with a copy of it."""
        if self.engine == "postgres":
            url = self.server.create(self._database("empty"))
        else:
            (self.folder / self._database("empty")).mkdir()
            url = self._file("empty")
        self.about = self.call("create", url)

    @contextmanager
    def database(self) -> Iterator[str]:
        """A fresh one; its URL."""
        self.made += 1
        name = str(self.made)
        if self.engine == "postgres":
            fresh, empty = self._database(name), self._database("empty")
            self.server.sql("postgres", f'CREATE DATABASE "{fresh}" TEMPLATE "{empty}"')
            try:
                yield self.server.url(fresh)
            finally:
                self.server.drop(fresh)
        else:
            fresh = str(self.folder / self._database(name))
            shutil.copytree(self.folder / self._database("empty"), fresh)
            try:
                yield self._file(name)
            finally:
                shutil.rmtree(fresh)

    def call(self, work: str, url: str, timeout: float = 300, **options: object) -> dict[str, Any]:
        """One piece of work in a process of its own."""
        done = subprocess.run(
            self._command(work, url, options), cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False
        )
        if done.returncode:
            raise Failed(f"{self.title}, {work}: {done.stderr.strip()[-2000:]}")
        found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return found

    def settle(self, url: str) -> None:
        """Statistics, as autovacuum would have made by the time that anybody has so many jobs."""
        if self.engine == "postgres":
            self.server.sql(url.rpartition("/")[2], "VACUUM ANALYZE")

    def drain(
        self, url: str, jobs: int, limit: float, workers: int = 1, keys: int = KEYS, numbers: int = 0, slots: int = 0
    ) -> dict[str, Any]:
        """Worker processes that all begin at one word; how fast they came through what is queued."""
        path = self.folder / f"board-{self.name}-{self.engine}-{self.made}"
        board = Board(path, keys, numbers or jobs)
        options = {"board": path, "count": numbers or jobs, "keys": keys, "slots": slots or keys}
        running = [
            subprocess.Popen(
                self._command("worker", url, options | {"worker": i}), cwd=ROOT, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            )
            for i in range(workers)
        ]  # fmt: skip
        try:
            begun = _begin(running, self.title)
            while board.handled() < jobs and time.monotonic_ns() - begun < limit * 1e9:
                time.sleep(0.01)
            last = time.monotonic_ns()
            tally = board.tally()
            shares = board.shares()
        finally:
            _end(running)
            path.unlink()
        return _drained(tally, jobs, (tally.last if tally.handled >= jobs else last) - begun) | {"shares": shares}

    def _command(self, work: str, url: str, options: dict[str, Any]) -> list[str]:
        named = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        return [self.python, "-m", f"benchmarks.peers.{self.name}", work, url, *named]

    def _database(self, name: str) -> str:
        return f"{self.name}-{self.engine}-{name}"

    def _file(self, name: str) -> str:
        return f"sqlite:///{self.folder / self._database(name) / 'queue.db'}"


def _begin(running: Sequence[subprocess.Popen[str]], title: str) -> int:
    for process in running:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise Failed(f"{title}: a worker did not start")
    begun = time.monotonic_ns()
    for process in running:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    return begun


def _end(running: Sequence[subprocess.Popen[str]]) -> None:
    for process in running:
        if process.stdin is not None:
            process.stdin.close()
    for process in running:
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _drained(tally: Tally, jobs: int, nanoseconds: int) -> dict[str, Any]:
    found = {"rate": tally.handled / (nanoseconds / 1e9), "handled": tally.handled, "of": jobs}
    odd = {"overlaps": tally.overlaps, "disorder": tally.disorder, "twice": tally.twice}
    return found | {name: count for name, count in odd.items() if count}


def say(text: str) -> None:
    """Progress, for whoever waits."""
    print(text, file=sys.stderr, flush=True)
