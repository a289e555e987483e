"""Nothing is lost and nothing is done twice, whatever becomes of the database's own server and the ways to it."""

from __future__ import annotations

import random
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import psycopg

from pilot.store import open_store
from tests.faults.proxy import Proxy
from tests.faults.rig import Rig
from tests.faults.soak import soak
from tests.postgres import Cluster, name_of

LEASE = 3.0


async def work_goes_on(rig: Rig, *nodes: str) -> None:
    """Each of these nodes ends something, after now."""
    now = time.monotonic_ns()
    wanted = set(nodes) or {member.name for member in rig.members}
    await rig.until(lambda: {e["node"] for e in rig.diary("ended") if e["at"] > now} >= wanted, f"{wanted} go on")


async def test_a_server_that_is_restarted_hard_and_commits_whose_answers_are_lost(
    server: Cluster, tmp_path: Path
) -> None:
    url = server.create()
    with Proxy(("127.0.0.1", server.port)) as one, Proxy(("127.0.0.1", server.port)) as other:
        async with rig_on(server.url(name_of(url)), tmp_path) as rig:
            for proxy in (one, other):
                rig.start(server.url(name_of(url), port=proxy.port), lease=LEASE, tasks=6.0)
            await rig.ready()
            for how in (signal.SIGKILL, signal.SIGQUIT):
                await work_goes_on(rig)
                server.restart(how)
                await work_goes_on(rig)
                server.terminate(url)
                one.lose_commits = other.lose_commits = 2
                await rig.until(lambda: one.lose_commits == other.lose_commits == 0, "the answers of both are lost")
                one.cut()
            await work_goes_on(rig)
            await rig.settle()
            await rig.account()


async def test_a_short_soak(server: Cluster) -> None:
    seed = random.randrange(1 << 32)
    print(f"to repeat the dice: seed = {seed}")
    await soak(5.0, seed, print, server)


@asynccontextmanager
async def rig_on(url: str, place: Path) -> AsyncIterator[Rig]:
    """Nodes on a server that is to be broken."""
    async with open_store(url) as store:
        rig = Rig(store, place / "rig")
        try:
            rig.follow()
            yield rig
        finally:
            rig.clear_away()


@contextmanager
def small_disk(megabytes: int) -> Iterator[Path | None]:
    """A disk that is soon full; None where this machine lets us have none."""
    with tempfile.TemporaryDirectory(prefix="pilot-disk-") as folder:
        mounted = subprocess.run(
            ("mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", folder), check=False, capture_output=True
        )
        try:
            yield Path(folder) if mounted.returncode == 0 else None
        finally:
            if mounted.returncode == 0:
                subprocess.run(("umount", "-l", folder), check=False, capture_output=True)


@contextmanager
def full(server: Cluster, disk: Path | None) -> Iterator[None]:
    """There is no room for a while; without a disk of our own, no file may grow."""
    if disk is None:
        pid = server.pid
        _limit(server, "8192")
        try:
            yield
        finally:
            if server.pid == pid and _answers(server):
                _limit(server, "unlimited")
        return
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12):
            with suppress(OSError):
                while file.write(bytes(size)) == size:
                    pass
    try:
        yield
    finally:
        filler.unlink()


def _limit(server: Cluster, size: str) -> None:
    # as the server's own user: the test's may not be allowed to. Those to come have it from the first.
    others = server.admin("SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
    pids = " ".join(map(str, [server.pid, *(pid for (pid,) in others)]))
    command = f"for pid in {pids}; do prlimit --pid $pid --fsize={size}:unlimited || true; done"
    with suppress(psycopg.Error):  # the server may end of it before it answers
        server.admin(f"COPY (SELECT 1) TO PROGRAM '{command}'")


async def test_a_full_disk_of_the_database_loses_nothing(tmp_path: Path) -> None:
    with small_disk(160) as disk:
        print(f"the disk is {'a small one' if disk else 'one on which no file may grow'}")
        data = None if disk is None else disk / "data"
        with Cluster.make(data=data, max_wal_size="64MB", min_wal_size="32MB") as server:
            url = server.create()
            async with rig_on(url, tmp_path) as rig:
                for _ in range(2):
                    rig.start(url, lease=LEASE, tasks=6.0)
                await rig.ready()
                await work_goes_on(rig)
                with full(server, disk):
                    known = len(rig.diary("refused"))
                    await rig.until(lambda: len(rig.diary("refused")) > known + 3, "the store says that it can't")
                if server.pid is None or not _answers(server):  # it ends itself when its log can't be written
                    server.restart()
                await work_goes_on(rig)
                await rig.settle()
                await rig.account()


def _answers(server: Cluster) -> bool:
    try:
        return server.admin("SELECT 1") == [(1,)]
    except psycopg.Error:
        return False
