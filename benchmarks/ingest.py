"""Agent output: how fast it is taken in, and in how much memory."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from benchmarks.figures import Figure
from pilot.backends.command import Command
from pilot.config.executor import CommandSettings
from pilot.domain.agent import AgentRequest, OutputKind
from pilot.domain.outcome import Ending, Usage
from pilot.runner.process import running

MB = 1_000_000
TOTAL = 1000 * MB
LINES = 200 * MB
REACH = 50.0
FLAT = 32.0
"""MB of memory that a stream of any length may cost."""

WRITER = """
import os, sys
line = b'%-79s\\n' % b'tests/test_orders.py::test_total PASSED' if sys.argv[2] == 'lines' else b'x' * 80
block, left = line * 4096, int(sys.argv[1])
while left > 0: left -= os.write(1, block)
"""


class Null:
    """An Emit that counts."""

    def __init__(self) -> None:
        self.size = self.pieces = 0

    async def output(self, _kind: OutputKind, data: bytes) -> None:
        self.size += len(data)
        self.pieces += 1

    def usage(self, usage: Usage) -> None:
        pass

    async def session(self, _session_id: str) -> None:
        raise AssertionError("a command has no session")


def writer(size: int, kind: str) -> list[str]:
    return [sys.executable, "-ISc", WRITER, str(size), kind]


async def by_chunks() -> int:
    size = 0
    async with running(writer(TOTAL, "lines"), cwd="/", env=_env(), marker="bench") as process:
        async for _, data in process.chunks():
            size += len(data)
    return size


async def by_lines() -> int:
    size = 0
    async with running(writer(LINES, "lines"), cwd="/", env=_env(), marker="bench") as process:
        async for line in process.lines():
            size += len(line.data) + 1
    return size


async def one_line() -> int:
    size = 0
    async with running(writer(TOTAL, "one"), cwd="/", env=_env(), marker="bench") as process:
        async for line in process.lines():
            assert line.cut
            size += TOTAL
    return size


async def by_command() -> int:
    emit = Null()
    backend = Command(CommandSettings(argv=tuple(writer(TOTAL, "lines"))))
    request = AgentRequest(
        prompt="go", workspace="/", execution=1, attempt=1, project="bench", task_id="B-1", environment=_env(),
        marker="bench",
    )  # fmt: skip
    outcome = await backend.execute(request, emit)
    assert outcome.ending is Ending.DONE, outcome.detail
    return emit.size


def run() -> list[Figure]:
    """MB/s and MB, with nothing behind that stores it."""
    ways: list[tuple[str, Callable[[], Awaitable[int]]]] = [
        ("as it comes", by_chunks),
        ("lines of 80 bytes", by_lines),
        ("one line of 1 GB", one_line),
        ("by the command backend", by_command),
    ]
    figures: list[Figure] = []
    rise = 0.0
    for name, way in ways:
        before = _memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        started = time.perf_counter()
        size = asyncio.run(_awaited(way))
        speed = size / MB / (time.perf_counter() - started)
        rise = max(rise, _memory("VmHWM") - before)
        figures.append(Figure(f"agent output taken in, {name}", speed, "MB/s", REACH, more=True))
    figures.append(Figure("memory that 1 GB of agent output takes, peak", rise, "MB", FLAT))
    return figures


async def _awaited(way: Callable[[], Awaitable[int]]) -> int:
    return await way()


def _env() -> dict[str, str]:
    return {"PATH": os.environ["PATH"]}


def _memory(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) * 1024 / MB


if __name__ == "__main__":
    from benchmarks.figures import table

    print(table(run()))
