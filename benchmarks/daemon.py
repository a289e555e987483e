"""The real `pilot serve` and the real commands, as processes."""

from __future__ import annotations

import asyncio
import json
import os
import re
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.figures import Figure
from benchmarks.queue import add_finished
from pilot.domain.task import Task
from pilot.store import open_store

PILOT = Path(sys.executable).with_name("pilot")
TICK = os.sysconf("SC_CLK_TCK")


def make_projects(home: Path, count: int, *, usable: bool = False) -> Path:
    """A configuration with so many repositories: minimal ones, or such that can be worked in. The agent is `true`."""
    for i in range(count):
        repository = home / "repositories" / f"p{i}"
        if usable:
            _git(home, "init", "-q", "-b", "main", str(repository))
            _git(repository, "-c", "user.name=b", "-c", "user.email=b@b", "commit", "-q", "--allow-empty", "-m", "b")
            continue
        (repository / ".git" / "objects").mkdir(parents=True)
        (repository / ".git" / "refs").mkdir()
        (repository / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    projects = [{"name": f"p{i}", "path": str(home / "repositories" / f"p{i}")} for i in range(count)]
    settings = {
        "state_dir": str(home / "state"),
        "server": {"port": 0},
        "executor": {"type": "command", "command": {"argv": ["true"]}},
        "projects": projects,
    }
    config = home / "pilot.yaml"
    config.write_text(json.dumps(settings))
    config.chmod(0o600)
    return config


def _git(folder: Path, *args: str) -> None:
    subprocess.run(["git", "-C", str(folder), *args], check=True)


def pilot(config: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(PILOT), "--config", str(config), *args], capture_output=True, text=True, check=True)


@contextmanager
def serving(config: Path) -> Iterator[tuple[subprocess.Popen[str], float]]:
    """A running daemon, and the seconds until it said that it had started."""
    before = time.perf_counter()
    daemon = subprocess.Popen([str(PILOT), "--config", str(config), "serve"], stderr=subprocess.PIPE, text=True)
    try:
        assert daemon.stderr is not None
        lines = []
        for line in daemon.stderr:
            lines.append(line)
            if "serve.started" in line:
                break
        else:
            raise RuntimeError("".join(lines))
        yield daemon, time.perf_counter() - before
    finally:
        daemon.send_signal(signal.SIGTERM)
        daemon.communicate(timeout=60)


def cpu(pid: int) -> float:
    """Seconds of CPU so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def memory(pid: int) -> float:
    """Resident MB."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found.group(1)) / 1024


def idle() -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="pilot-bench-") as folder:
        config = make_projects(Path(folder), 1000)
        with serving(config) as (daemon, _):
            time.sleep(3)
            before, since = cpu(daemon.pid), time.perf_counter()
            time.sleep(20)
            share = 100 * (cpu(daemon.pid) - before) / (time.perf_counter() - since)
    return [Figure("idle `serve` with 1,000 projects: CPU", share, "%", 0.5)]


def large() -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="pilot-bench-") as folder:
        config = make_projects(Path(folder), 10_000)
        with serving(config) as (daemon, started):
            time.sleep(1)
            size = memory(daemon.pid)
        note = f"started in {started:.2f} s"
    return [Figure("memory of `serve` with 10,000 projects", size, "MB", 200, note=note)]


def start() -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="pilot-bench-") as folder:
        home = Path(folder)
        config = make_projects(home, 100)
        with serving(config):
            pilot(config, "pause", "--reason", "bench")
        add_finished(home / "state" / "pilot.db", 1_000_000, queued=10_000)
        with serving(config) as (_, seconds):
            pass
        listing = timed(config, "list")
    return [
        Figure("start of `serve` with 1,000,000 rows and 10,000 queued", seconds, "s", 1.5),
        Figure("`pilot list` with 1,000,000 rows", listing, "s", 0.25),
    ]


def timed(config: Path, *args: str) -> float:
    """Median seconds of a command."""
    times = []
    for _ in range(7):
        before = time.perf_counter()
        pilot(config, *args)
        times.append(time.perf_counter() - before)
    return statistics.median(times)


def commands() -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="pilot-bench-") as folder:
        config = make_projects(Path(folder), 2)
        with serving(config):
            pass
        return [
            Figure("`pilot --help`", timed(config, "--help"), "s", 0.25),
            Figure("`pilot list`", timed(config, "list"), "s", 0.25),
        ]


def other_process() -> list[Figure]:
    """From the commit of an enqueue in one process to the claim in the daemon, by the store's own times."""
    with tempfile.TemporaryDirectory(prefix="pilot-bench-") as folder:
        home = Path(folder)
        config = make_projects(home, 20, usable=True)
        with serving(config):
            waits = asyncio.run(_enqueue_from_here(home, 150))
    waits.sort()
    p99 = waits[int(len(waits) * 0.99)]
    note = f"p50 {statistics.median(waits):.1f} ms, {len(waits)} tasks"
    return [Figure("enqueue → start, idle, from another process, p99", p99, "ms", 50, note=note)]


async def _enqueue_from_here(home: Path, count: int) -> list[float]:
    """One at a time, each seen to its end, so that the daemon is idle when the next one comes."""
    waits = []
    async with open_store(f"sqlite:///{home}/state/pilot.db") as store:
        projects = await store.database.read("SELECT id FROM projects ORDER BY id")
        for i in range(count):
            project = projects[i % len(projects)][0]
            new = await store.queue.enqueue(Task(project_id=project, title="t", task_id=f"t{i}", backend="command"))
            while not (execution := await store.queue.get(new.id)).status.final:
                await asyncio.sleep(0.01)
            waits.append(float((execution.started_at or 0) - execution.created_at))
    return waits


def run() -> list[Figure]:
    """All figures of this file."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return [*commands(), *other_process(), *idle(), *start(), *large()]
