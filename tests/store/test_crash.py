"""What was acknowledged is there: after kill -9, a cut log, a full disk, a broken one, a lock held by another."""

from __future__ import annotations

import asyncio
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from pilot.domain.errors import Busy, StoreError
from pilot.store import open_store
from pilot.store.sqlite_dialect import BUSY_TIMEOUT
from tests.store.bed import Bed, Clock, done, task

ROOT = Path(__file__).parent.parent.parent


class Writer:
    """A process at work; what it said so far."""

    def __init__(self, url: str, *mode: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.store.writer", url, *mode],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self.lines: list[str] = []

    def next(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.endswith(b"\n"):
            raise AssertionError(f"it ended: {self.process.communicate(timeout=30)[1].decode()}")
        self.lines.append(line.decode().strip())
        return self.lines[-1]

    def kill(self) -> None:
        """End it in the middle of whatever it does; what it had said before still counts."""
        self.process.kill()
        rest, _ = self.process.communicate(timeout=30)
        self.lines += [line for line in rest.decode().split("\n")[:-1] if line]

    def end(self) -> None:
        """Wait for its own end, which must be a good one."""
        out, err = self.process.communicate(timeout=60)
        self.lines += out.decode().splitlines()
        assert (self.process.returncode, err) == (0, b""), err.decode()

    def said(self, word: str) -> list[str]:
        return [line.removeprefix(f"{word} ") for line in self.lines if line.split(" ")[0] == word]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pilot.db"


@asynccontextmanager
async def reopened(url: str) -> AsyncIterator[Bed]:
    """The store after whatever happened to it: whole, and nothing broken in it."""
    async with open_store(url, clock=(clock := Clock())) as opened:
        bed = Bed(opened, clock)
        await bed.check()
        yield bed
        await bed.check()
    if not url.startswith("sqlite:"):
        return
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
        assert connection.execute("PRAGMA quick_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []


async def there(bed: Bed, ids: Collection[str], status: str = "") -> None:
    rows = await bed.rows("SELECT id FROM executions WHERE :status IN ('', status)", status=status)
    missing = {int(id) for id in ids} - {id for (id,) in rows}
    assert not missing, f"acknowledged, and gone: {sorted(missing)}"


async def test_kill_9_at_any_moment_loses_nothing_acknowledged(url: str, engine: str) -> None:
    number = random.randrange(1 << 32)
    print(f"to repeat the moments: number = {number}")
    dice = random.Random(number)
    queued: set[str] = set()
    ended: set[str] = set()
    for _ in range({"sqlite": 8, "postgres": 2}[engine]):
        writer = Writer(url, "work")
        name = writer.next().removeprefix("ready ")
        for _ in range(dice.choice([1, 5, 50, 400]) + dice.randrange(50)):
            writer.next()
        writer.kill()
        queued |= set(writer.said("queued"))
        ended |= set(writer.said("done"))

        async with reopened(url) as bed:
            await there(bed, queued)
            await there(bed, ended, "completed")
            running = [e.id for e in await bed.queue.held_by([name])]
            assert sorted(e.id for e in await bed.queue.recover([name], "killed")) == sorted(running)
            assert await bed.value("SELECT count(*) FROM executions WHERE status = 'running'") == 0

    async with reopened(url) as bed:  # and all of it can still be done
        while found := await bed.queue.claim("n", max=9):
            for execution in found:
                await bed.queue.finish(done(execution))
        assert await bed.value("SELECT count(*) FROM executions WHERE status <> 'completed'") == 0
        assert await bed.value("SELECT count(*) FROM executions") >= len(queued)
        assert await bed.value("SELECT count(DISTINCT task_id) = count(*) FROM executions") == 1


async def test_kill_9_at_any_moment_loses_no_webhook_and_no_effect(url: str, engine: str) -> None:
    number = random.randrange(1 << 32)
    print(f"to repeat the moments: number = {number}")
    dice = random.Random(number)
    said: dict[str, set[str]] = {word: set() for word in ("stored", "handled", "done", "opened", "delivered")}
    for _ in range({"sqlite": 6, "postgres": 2}[engine]):
        writer = Writer(url, "deliver")
        name = writer.next().removeprefix("ready ")
        for _ in range(dice.choice([1, 5, 50, 400]) + dice.randrange(50)):
            writer.next()
        writer.kill()
        for word, found in said.items():
            found |= set(writer.said(word))
        async with reopened(url) as bed:
            await bed.queue.recover([name], "killed")
            stored = await bed.rows("SELECT delivery, handled_at IS NOT NULL FROM inbox")
            assert said["stored"] <= {key for key, _ in stored}
            assert said["handled"] <= {key for key, handled in stored if handled}
            delivered = await bed.rows("SELECT id FROM outbox WHERE delivered_at IS NOT NULL")
            assert {int(id) for id in said["delivered"]} <= {id for (id,) in delivered}
            opened = await bed.rows("SELECT id FROM executions WHERE delivery = 'pr_open'")
            assert {int(id) for id in said["opened"]} <= {id for (id,) in opened}
            assert await bed.rows("SELECT 1 FROM inbox WHERE handled_at IS NULL AND claimed_by IS NOT NULL") == []
            assert await bed.rows("SELECT 1 FROM outbox WHERE delivered_at IS NULL AND claimed_by IS NOT NULL") == []
            # whoever had asked for a pull request still does, and every handled webhook is a task, once
            ended = {id for (id,) in await bed.rows("SELECT execution_id FROM pull_executions")}
            assert {int(id) for id in said["done"]} <= ended
            tasks = [key for (key,) in await bed.rows("SELECT idempotency_key FROM executions")]
            assert said["handled"] <= set(tasks)
            assert len(set(tasks)) == len(tasks)


async def test_twelve_processes_that_ask_for_one_task_on_a_new_store_get_one(url: str) -> None:
    writers = [Writer(url, "ask-once") for _ in range(12)]
    for writer in writers:
        assert writer.next() == "ready"
    for writer in writers:
        assert writer.process.stdin is not None
        writer.process.stdin.close()
        writer.process.stdin = None
    for writer in writers:
        writer.end()

    answers = [writer.lines[-1].split() for writer in writers]
    assert {id for id, _ in answers} == {"1"}
    assert sorted(duplicate for _, duplicate in answers) == ["False", *["True"] * 11]
    async with reopened(url) as bed:
        assert await bed.rows("SELECT id, task_id, status FROM executions") == [(1, "the one", "queued")]
        assert await bed.events(1) == ["queued"]


async def test_a_log_that_was_cut_by_a_loss_of_power_keeps_all_that_was_acknowledged(
    path: Path, tmp_path: Path
) -> None:
    number = random.randrange(1 << 32)
    print(f"to repeat the cuts: number = {number}")
    dice = random.Random(number)
    log = path.with_name("pilot.db-wal")
    acknowledged: list[tuple[int, int]] = []  # the log's size when the store said so, the id
    async with open_store(f"sqlite:///{path}", clock=Clock()) as opened:
        bed = Bed(opened, Clock())
        api = await bed.project()
        await bed.database.read("SELECT 1")
        for n in range(40):
            id = await bed.put(api, body="x" * dice.randrange(2000))
            acknowledged.append((log.stat().st_size, id))
            if n % 3 == 0:
                await bed.run(api)
        file, whole = path.read_bytes(), log.read_bytes()

    for n in range(25):
        copy = tmp_path / f"after {n}" / "pilot.db"
        copy.parent.mkdir()
        copy.write_bytes(file)
        cut = dice.randrange(acknowledged[0][0], len(whole) + 1)
        garbage = dice.randbytes(dice.choice([0, 0, 100, 5000]))  # sectors that were never written
        copy.with_name("pilot.db-wal").write_bytes(whole[:cut] + garbage)
        async with reopened(f"sqlite:///{copy}") as bed:
            await there(bed, [str(id) for size, id in acknowledged if size <= cut])
            ids = [id for (id,) in await bed.rows("SELECT id FROM executions ORDER BY id")]
            assert ids == list(range(1, len(ids) + 1))  # a beginning of what happened, without a hole
        shutil.rmtree(copy.parent)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        ("fdatasync", "EIO", "disk I/O error"),
        ("pwrite64", "EIO", "disk I/O error"),
        ("pwrite64", "ENOSPC", "is full; nothing was written. Make room and try again"),
    ],
)
async def test_a_disk_that_fails_loses_nothing_acknowledged(path: Path, call: str, error: str, words: str) -> None:
    writer = Writer(f"sqlite:///{path}", "bad-disk", call, error, "1" if error == "ENOSPC" else "4")
    writer.end()

    refused, queued = writer.said("refused"), writer.said("queued")
    assert refused
    assert all(words in line and str(path) in line for line in refused)
    assert set(writer.said("reads")) == {"0.0"}  # what is there can still be read
    if error == "EIO":  # a connection that has seen an I/O error is not trusted again: a new one goes on
        assert len(refused) == 4
        assert len(queued) == 3 + 4 + 5 + 6 + 2 * 4
    async with reopened(f"sqlite:///{path}") as bed:
        await there(bed, queued)
        api = await bed.project("p0")
        await bed.put(api, "later")


async def test_a_full_disk_loses_nothing_acknowledged_and_works_again_with_room(path: Path) -> None:
    writer = Writer(f"sqlite:///{path}", "small-disk")
    writer.end()

    queued = writer.said("queued")
    assert len(writer.said("refused")) == 1
    assert writer.said("reads") == ["0"]
    assert writer.lines[-1] == "room again"
    assert len(queued) > 10
    async with reopened(f"sqlite:///{path}") as bed:
        await there(bed, queued)
        assert await bed.value("SELECT count(*) FROM executions") == len(set(queued))


async def test_a_full_database_says_so_to_everybody_and_goes_on_with_room(store: Bed) -> None:
    api = await store.project()
    await store.put(api, "first")
    writer = store.database._writer  # type: ignore[attr-defined]

    def pages(connection: sqlite3.Connection, most: int) -> None:
        connection.execute(f"PRAGMA max_page_count = {most}")

    await writer.call(pages, 1)  # as many as there are
    answers = await asyncio.gather(
        *(store.queue.enqueue(task(api, f"T{n}", body="x" * 20_000)) for n in range(20)), return_exceptions=True
    )
    assert {type(answer) for answer in answers} == {StoreError}
    assert "is full; nothing was written" in str(answers[0])
    assert await store.value("SELECT count(*) FROM executions") == 1

    await writer.call(pages, 1 << 30)
    await store.put(api, "T0")


@pytest.fixture
def held(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that holds the lock for writing until its input ends."""
    code = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None); c.execute('BEGIN IMMEDIATE'); "
        "print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield process
        process.kill()


def is_held(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"


async def test_who_finds_the_store_locked_waits(store: Bed, request: pytest.FixtureRequest) -> None:
    api = await store.project()
    process = request.getfixturevalue("held")
    is_held(process)
    release = threading.Timer(1.5, process.kill)

    release.start()
    waiting = [asyncio.create_task(store.queue.enqueue(task(api, f"T-{n}"))) for n in range(10)]
    assert await store.value("SELECT count(*) FROM executions") == 0  # who reads does not wait
    answers = await asyncio.gather(*waiting)

    assert not release.is_alive()  # nobody was answered before the lock was free
    assert len({answer.id for answer in answers}) == 10
    release.join()


async def test_who_waited_long_enough_is_told_and_nothing_was_written(
    url: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert BUSY_TIMEOUT >= 5000
    monkeypatch.setattr("pilot.store.sqlite.BUSY_TIMEOUT", 200)
    async with open_store(url, clock=Clock()) as opened:
        bed = Bed(opened, Clock())
        api = await bed.project()
        process = request.getfixturevalue("held")
        is_held(process)

        answers = await asyncio.gather(
            *(bed.queue.enqueue(task(api, f"T-{n}")) for n in range(3)), return_exceptions=True
        )

        assert {type(answer) for answer in answers} == {Busy}
        assert "locked by another process" in str(answers[0])
        assert await bed.value("SELECT count(*) FROM executions") == 0
        process.kill()
        process.wait(timeout=30)
        await bed.put(api, "T-0")
        await bed.check()
