"""Programs in the sandbox obey, end and are found as those outside do; and none of them outlives its pilot."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pilot.runner.cpu import cpu_seconds
from pilot.runner.process import Process, end_marked
from pilot.runner.proctree import PROC, marker_of
from tests.core.cell import MARKER, Cell, cell

PATIENCE = 30.0
ROOT = Path(__file__).parents[2]
STUBBORN = (
    "trap '' INT TERM; setsid sh -c 'trap \"\" INT TERM; sleep 99' & env -i setsid sleep 99 & sleep 0.1; echo up; wait"
)
TRAPPING = "trap 'echo {name}; exit 7' {name}; trap '' {other}; echo up; while :; do sleep 0.05; done"


def living(marker: str) -> list[int]:
    """Who carries a marker, seen from outside."""
    pids = [int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit()]
    return [pid for pid in pids if (marker_of(pid) or "").startswith(marker)]


def inside(pid: int) -> int:
    """The pid name space of a process; that of this one where it is gone."""
    try:
        return (PROC / str(pid) / "ns/pid").stat().st_ino
    except OSError:
        return inside(os.getpid())


def crowd(namespace: int) -> list[int]:
    """Everybody in a pid name space, whatever they carry."""
    found = []
    for entry in PROC.iterdir():
        try:
            if entry.name.isdigit() and (entry / "ns/pid").stat().st_ino == namespace:
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                found += [] if state in "ZX" else [int(entry.name)]
        except OSError:
            continue
    return found


async def until(condition: Any, what: str) -> Any:
    end = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < end, what
        await asyncio.sleep(0.02)
    return value


async def up(process: Process) -> int:
    """Wait for its word; the pid name space that is the sandbox's."""
    lines = process.lines()
    assert (await anext(lines)).data == b"up"
    (there,) = {inside(pid) for pid in living(f"{MARKER}/")} - {inside(os.getpid())}
    return there


@pytest.fixture
async def c(tmp_path: Path) -> Cell:
    return await cell(tmp_path)


@pytest.mark.parametrize(("name", "other"), [("INT", "TERM"), ("TERM", "INT")])
async def test_a_signal_reaches_the_agent_which_ends_in_its_own_time(c: Cell, name: str, other: str) -> None:
    async with c.running("/bin/sh", "-c", TRAPPING.format(name=name, other=other), grace=10.0) as process:
        await up(process)
        ending = asyncio.ensure_future(process.end())
        said = [line.data async for line in process.lines()]
        await ending
        assert process.returncode == 7
        assert said == [] or name.encode() in said  # `end` drops what comes after it


@pytest.mark.parametrize(
    ("script", "code"), [("exit 3", 3), ("kill -9 $$", 137), ("kill -INT $$", 130), ("kill -TERM $$", 143), (":", 0)]
)
async def test_how_it_ended_is_seen(c: Cell, script: str, code: int) -> None:
    assert (await c.run("/bin/sh", "-c", script))[0] == code


async def test_signals_mean_inside_what_they_mean_outside(c: Cell) -> None:
    said = await c.sh("grep -h SigIgn /proc/self/status")
    ignored = int(said.split()[1], 16)
    assert not ignored & (1 << signal.SIGINT - 1 | 1 << signal.SIGTERM - 1), said


async def test_nobody_is_left_of_one_that_will_not_go(c: Cell) -> None:
    async with c.running("/bin/sh", "-c", STUBBORN, grace=0.3) as process:
        there = await up(process)
        assert len(crowd(there)) > 3
        await process.end()
        assert crowd(there) == []
    assert living(f"{MARKER}/") == []


async def test_nobody_is_left_behind_a_success(c: Cell) -> None:
    async with c.running("/bin/sh", "-c", "setsid sleep 99 & env -i setsid sleep 98 & sleep 0.1; echo up") as process:
        lines = process.lines()
        assert (await anext(lines)).data == b"up"
        assert await process.wait() == 0
    assert living(f"{MARKER}/") == []


async def test_a_cancel_waits_for_the_end_of_all(c: Cell) -> None:
    seen: list[int] = []

    async def run() -> None:
        async with c.running("/bin/sh", "-c", STUBBORN, grace=3.0) as process:
            seen.append(await up(process))
            await process.wait()

    task = asyncio.ensure_future(run())
    await until(lambda: seen, "never up")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert crowd(seen[0]) == []


async def test_those_inside_are_found_by_their_marker_and_counted(c: Cell) -> None:
    spin = "import os, time\nprint('up', flush=True)\nwhile True: pass"
    async with c.running("python3", "-c", spin) as process:
        there = await up(process)
        await until(lambda: cpu_seconds(MARKER) > 0.2, "no processor time was seen")
        found = await end_marked(f"{MARKER}/")
        assert process.pid in found
        assert crowd(there) == []


async def test_bubblewrap_takes_all_with_it(c: Cell) -> None:
    async with c.running("/bin/sh", "-c", STUBBORN) as process:
        there = await up(process)
        os.kill(process.pid, signal.SIGKILL)
        await until(lambda: not crowd(there), "it outlived bubblewrap")


PILOT = """
import asyncio, os, sys, threading
from pathlib import Path
from tests.core.cell import cell
async def main():
    c = await cell(Path(sys.argv[1]))
    async with c.running("/bin/sh", "-c", sys.argv[2]) as process:
        async for line in process.lines():
            print(line.data.decode(), flush=True)
def run(): asyncio.run(main())
if sys.argv[3] == "thread":
    other = threading.Thread(target=run); other.start(); other.join()
else:
    run()
"""


@pytest.mark.parametrize("loop", ["main", "thread"])
async def test_kill_9_of_pilot_leaves_nobody(tmp_path: Path, loop: str) -> None:
    argv = [sys.executable, "-c", PILOT, str(tmp_path), STUBBORN, loop]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, cwd=ROOT) as pilot:
        assert pilot.stdout is not None
        assert await asyncio.to_thread(pilot.stdout.readline) == b"up\n"
        (there,) = {inside(pid) for pid in living(f"{MARKER}/")} - {inside(os.getpid())}
        assert len(crowd(there)) > 3
        pilot.kill()
    await until(lambda: not crowd(there), "they outlived pilot")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """One that any user may enter; pytest's own are for one user only."""
    folder = Path(tempfile.mkdtemp(prefix="pilot-"))
    folder.chmod(0o777)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


async def test_all_this_as_an_ordinary_user(open_folder: Path) -> None:
    argv = [sys.executable, "-m", "tests.core.unprivileged", str(open_folder / "it")]
    done = await asyncio.to_thread(
        subprocess.run, argv, capture_output=True, text=True, check=False, cwd=ROOT, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "uid": True, "capabilities": "0000000000000000", "work": "new\nwork", "kept": "warm", "shadow": True,
        "environ": True, "escape": True, "settings": "{}", "trapped": 7, "found": True, "cpu": True, "left": 0,
        "bwrap": 0,
    }  # fmt: skip
