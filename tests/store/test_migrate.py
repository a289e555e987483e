"""Opening a file: made private, upgraded with a copy kept, and never touched when it is not for this pilot."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from pilot.domain.errors import Busy, PilotError, StoreError, StoreRefused, UsageError
from pilot.store import migrate as module
from pilot.store import open_store, sqlite_path
from pilot.store.glance import glance
from pilot.store.migrate import APPLICATION_ID, migrate, migrations, newest, statements
from pilot.store.upkeep import check
from tests.store.bed import HOUR, Bed, Clock, done

KNOWN = migrations("sqlite")
COPY = f"pilot.db.schema-{len(KNOWN)}.backup"
SECOND_SCHEMA = (
    len(KNOWN) + 1,
    "more.sql",
    "ALTER TABLE executions ADD COLUMN colour TEXT;\nCREATE INDEX c ON nodes (pid);\n",
)
BROKEN_SCHEMA = (
    len(KNOWN) + 1,
    "broken.sql",
    "ALTER TABLE executions ADD COLUMN colour TEXT;\nALTER TABLE none ADD x;\n",
)


def url(path: Path) -> str:
    return f"sqlite:///{path}"


async def filled(path: Path, count: int = 200) -> list[int]:
    """A store with some work in it, closed."""
    async with open_store(url(path), clock=Clock()) as store:
        bed = Bed(store, Clock())
        api = await bed.project()
        return [await bed.put(api, body="x" * 300) for _ in range(count)]


def contents(path: Path) -> dict[str, bytes]:
    """What stands beside and in the file; the shared-memory index of a log is no content."""
    return {p.name: p.read_bytes() for p in path.parent.iterdir() if p.is_file() and not p.name.endswith("-shm")}


async def refused(path: Path, error: type[PilotError], words: str) -> None:
    """Opening it for work or for a look says the words, and leaves every byte as it was."""
    before = contents(path)
    with pytest.raises(error, match=words) as raised:
        async with open_store(url(path)) as store:
            await Bed(store, Clock()).project()
    assert str(path) in str(raised.value)
    with pytest.raises(error, match=words), glance(path, Clock()):
        pass
    after = contents(path)
    assert {name: data for name, data in after.items() if data} == {name: data for name, data in before.items() if data}


async def test_a_new_store_is_for_its_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        await filled(tmp_path / "home" / "state" / "pilot.db", 1)
        async with open_store(url(tmp_path / "home" / "state" / "pilot.db")) as store:
            store.database.listen(lambda _tokens: None)
            await Bed(store, Clock()).project("more")
            modes = {p.name: p.stat().st_mode & 0o777 for p in (tmp_path / "home" / "state").iterdir()}
    finally:
        os.umask(before)

    assert modes.pop("pilot.db.wake") == 0o700
    assert set(modes) == {"pilot.db", "pilot.db-wal", "pilot.db-shm"}
    assert set(modes.values()) == {0o600}
    assert (tmp_path / "home" / "state").stat().st_mode & 0o777 == 0o700


async def test_it_is_durable_and_says_whose_it_is(tmp_path: Path) -> None:
    path = tmp_path / "pilot.db"
    async with open_store(url(path)) as store:
        first = store.id
        await Bed(store, Clock()).project()
    async with open_store(url(path)) as store:
        assert store.id == first
    async with open_store(url(tmp_path / "other.db")) as store:
        assert store.id != first

    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
        assert connection.execute("PRAGMA user_version").fetchone() == (newest("sqlite"),)


async def test_the_writing_connection_waits_for_the_disk(store: Bed) -> None:
    await store.project()  # the writer is opened when there is something to write
    writer = store.database._writer  # type: ignore[attr-defined]

    def setting(connection: sqlite3.Connection, name: str) -> int:
        value: int = connection.execute(f"PRAGMA {name}").fetchone()[0]
        return value

    assert await writer.call(setting, "synchronous") == 2  # FULL
    assert await writer.call(setting, "foreign_keys") == 1


async def test_an_empty_file_is_a_new_store(tmp_path: Path) -> None:
    (tmp_path / "pilot.db").touch()

    assert await filled(tmp_path / "pilot.db", 1) == [1]


def test_a_new_store_that_many_make_at_once_is_made_once(tmp_path: Path) -> None:
    for round in range(25):
        path = tmp_path / f"{round}.db"
        path.touch()
        start = threading.Barrier(6)

        def make(path: Path = path, start: threading.Barrier = start) -> list[str]:
            start.wait()
            return migrate(path, Clock())

        with ThreadPoolExecutor(6) as pool:
            made = [future.result() for future in [pool.submit(make) for _ in range(6)]]

        assert sorted(map(len, made)) == [0] * 5 + [len(KNOWN)]


async def test_without_leave_to_make_one_there_must_be_one(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no database at .*pilot\.db"):
        async with open_store(url(tmp_path / "pilot.db"), create=False):
            pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["sqlite:", "mysql://x", "mysql://me:secret@x", "pilot.db"])
def test_a_store_that_this_version_does_not_know(text: str) -> None:
    # what stands there is not repeated: a password may be in it
    with pytest.raises(UsageError, match=r"^store: expected (?!.*secret)"):
        sqlite_path(text)


def test_a_path_may_have_spaces_and_signs(tmp_path: Path) -> None:
    assert sqlite_path("sqlite:////a%20b/%3F%23.db") == Path("/a b/?#.db")


async def test_a_store_works_under_any_name(tmp_path: Path) -> None:
    path = tmp_path / "a b?c#d%41é" / "pilot.db"
    async with open_store(
        "sqlite:///" + str(path).replace("%", "%25").replace("?", "%3F").replace("#", "%23")
    ) as store:
        await Bed(store, Clock()).project()
    assert path.exists()


# Files of others.


def other_program(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE executions (id INTEGER PRIMARY KEY, task TEXT)")
        connection.execute("INSERT INTO executions VALUES (1, 'mine')")
        connection.commit()


def other_program_with_a_log(path: Path) -> None:
    # Killed with its log unmerged: the next to close the file for writing would merge it.
    code = (
        "import os, sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('PRAGMA journal_mode=WAL'); "
        "c.execute('CREATE TABLE t (x)'); c.execute('INSERT INTO t VALUES (1)'); c.commit(); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=False, timeout=30)
    assert path.with_name(f"{path.name}-wal").stat().st_size > 0


def other_application(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA application_id = 77")
        connection.execute("PRAGMA user_version = 1")


def other_numbering(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 1")


@pytest.mark.parametrize("make", [other_program, other_program_with_a_log, other_application, other_numbering])
async def test_a_file_of_another_program_is_never_changed(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "pilot.db")

    await refused(tmp_path / "pilot.db", StoreRefused, "made by another program; it is left as it is")


@pytest.mark.parametrize("alive", [False, True])
async def test_a_newer_schema_is_never_changed(tmp_path: Path, alive: bool) -> None:
    path = tmp_path / "pilot.db"
    await filled(path, 1)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    if not alive:
        connection.close()

    await refused(path, StoreRefused, "has schema 99, this pilot knows up to")
    connection.close()


# Damage.


@pytest.mark.parametrize("damage", ["half", "odd half", "one page", "a few bytes", "zeros", "text", "magic", "pages"])
async def test_a_damaged_file_is_refused_and_left_as_it_is(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "pilot.db"
    await filled(path)
    good = path.read_bytes()
    size = len(good)
    path.write_bytes(
        {
            "half": good[: size // 2 // 4096 * 4096],
            "odd half": good[: size // 2 + 100],
            "one page": good[:4096],
            "a few bytes": good[:50],
            "zeros": bytes(size),
            "text": b"# notes\n" * 1000,
            "magic": b"garbage!" + good[8:],
            "pages": good[:4096] + b"\xa5" * (size - 4096),
        }[damage]
    )

    await refused(path, StoreRefused, "is damaged or no SQLite database .* it is left as it is")


async def test_damage_that_is_met_later_is_named(tmp_path: Path) -> None:
    path = tmp_path / "pilot.db"
    ids = await filled(path)
    with closing(sqlite3.connect(path)) as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'executions'").fetchone()
    good = path.read_bytes()
    path.write_bytes(good[: (page - 1) * 4096] + b"\xa5" * 4096 + good[page * 4096 :])
    before = path.read_bytes()

    async with open_store(url(path), clock=Clock()) as store:
        bed = Bed(store, Clock())
        for attempt in (bed.queue.get(ids[0]), bed.put(await bed.project(), "new"), bed.queue.claim("n", projects=[1])):
            with pytest.raises(StoreRefused, match=r"pilot\.db is damaged"):
                await attempt
    assert path.read_bytes() == before


async def test_a_folder_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "pilot.db").mkdir()

    with pytest.raises(StoreError, match=r"can't open .*pilot\.db"):
        async with open_store(url(tmp_path / "pilot.db")):
            pass


async def test_a_place_that_can_not_be_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(StoreError, match=r"can't make .*file"):
        async with open_store(url(tmp_path / "file" / "pilot.db")):
            pass


# Upgrades.


@pytest.fixture
def upgrade(monkeypatch: pytest.MonkeyPatch) -> Callable[[tuple[int, str, str]], None]:
    """Let the next opening be that of a pilot with one migration more."""

    def by(more: tuple[int, str, str]) -> None:
        monkeypatch.setattr(module, "migrations", lambda _engine: [*KNOWN, more])

    return by


Upgrade = Callable[[tuple[int, str, str]], None]


async def test_an_older_store_that_a_node_works_with_is_never_changed(tmp_path: Path, upgrade: Upgrade) -> None:
    path, clock = tmp_path / "pilot.db", Clock()
    async with open_store(url(path), clock=clock) as store:
        await Bed(store, clock).node("n1", lease=HOUR)
    upgrade(SECOND_SCHEMA)

    await refused(path, Busy, r"n1 \(0\) works with it; it is left as it is. Stop that one first")
    clock.tick(HOUR)
    async with open_store(url(path), clock=clock) as store:  # it was killed, and its lease has ended
        assert await store.database.read("PRAGMA user_version") == [(len(KNOWN) + 1,)]


async def test_an_upgrade_keeps_the_rows_and_a_copy_of_before(tmp_path: Path, upgrade: Upgrade) -> None:
    path = tmp_path / "pilot.db"
    ids = await filled(path)
    upgrade(SECOND_SCHEMA)

    async with open_store(url(path), clock=Clock()) as store:
        bed = Bed(store, Clock())
        assert await bed.value("SELECT count(*) FROM executions WHERE colour IS NULL") == len(ids)
        await bed.put(await bed.project(), "after")
        assert (await bed.database.read("PRAGMA user_version")) == [(len(KNOWN) + 1,)]
        await bed.check()

    copy = tmp_path / COPY
    assert copy.stat().st_mode & 0o777 == 0o600
    with closing(sqlite3.connect(copy)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (len(KNOWN),)
        assert connection.execute("SELECT count(*) FROM executions").fetchone() == (len(ids),)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert migrate(path, Clock()) == []  # nothing more to do
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["pilot.db", COPY]


async def test_an_upgrade_that_fails_changes_nothing(tmp_path: Path, upgrade: Upgrade) -> None:
    path = tmp_path / "pilot.db"
    await filled(path, 3)
    upgrade(BROKEN_SCHEMA)
    with pytest.raises(StoreError, match="no such table: none"):
        async with open_store(url(path)):
            pass

    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (len(KNOWN),)
        assert connection.execute(
            "SELECT count(*) FROM pragma_table_info('executions') WHERE name = 'colour'"
        ).fetchone() == (0,)
        assert connection.execute("SELECT count(*) FROM executions").fetchone() == (3,)
    upgrade(SECOND_SCHEMA)
    async with open_store(url(path)) as store:
        assert await store.database.read("PRAGMA user_version") == [(len(KNOWN) + 1,)]


async def test_several_processes_upgrade_at_once(tmp_path: Path) -> None:
    path = tmp_path / "pilot.db"
    ids = await filled(path)
    code = (
        "import sys; from pathlib import Path; from pilot.store import migrate as m; known = m.migrations('sqlite'); "
        f"m.migrations = lambda _: [*known, {SECOND_SCHEMA!r}]; "
        "print(end='ready', flush=True); sys.stdin.read(); print(m.migrate(Path(sys.argv[1]), lambda: 1))"
    )
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for _ in range(5)
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.read(5) == b"ready"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.close()
        racer.stdin = None
    said = [racer.communicate(timeout=60) for racer in racers]

    assert [err for _, err in said] == [b""] * 5
    assert sorted(out.strip() for out, _ in said) == [*[b"['more.sql']"], *[b"[]"] * 4]
    with closing(sqlite3.connect(tmp_path / COPY)) as connection:
        assert connection.execute("SELECT count(*) FROM executions").fetchone() == (len(ids),)
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["pilot.db", COPY]


async def test_a_store_of_the_first_version_goes_on_with_its_work_and_its_parks(tmp_path: Path) -> None:
    path = tmp_path / "pilot.db"
    path.touch(0o600)
    with closing(sqlite3.connect(path)) as old:
        old.executescript(KNOWN[0][2])
        old.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        old.execute("PRAGMA user_version = 1")
        old.execute("INSERT INTO store VALUES ('old', 0)")
        old.execute("INSERT INTO projects (id, key, name, path) VALUES (1, 'host:/src/api/.git', 'api', '/src/api')")
        old.execute(
            "INSERT INTO executions (project_id, project, project_path, task_id, title, body, source, kind, labels, "
            "priority, lane, status, due, available_at, max_attempts, backend, created_at) "
            "VALUES (1, 'api', '/src/api', 'T', 't', '', 'cli', 'code', '[]', 2, 0, 'queued', 1, 0, 3, 'agent', 0)"
        )
        old.execute("INSERT INTO parks VALUES ('agent', 'quota', 'spent', NULL, 5, 1)")
        old.commit()

    async with open_store(url(path), clock=(clock := Clock())) as store:
        bed = Bed(store, clock)
        api = await bed.project()
        await bed.node()
        assert await bed.rows("SELECT backend, account, until, since, tries FROM parks") == [("agent", "", None, 5, 1)]
        assert await bed.claimed(api) == []
        await bed.queue.unpark("agent", "me")
        execution = await bed.take(api)
        assert (execution.task_id, execution.fallback, execution.external) == ("T", (), False)

    assert (tmp_path / "pilot.db.schema-1.backup").exists()


async def test_a_store_of_before_the_plans_goes_on_with_its_work(tmp_path: Path) -> None:
    path = tmp_path / "pilot.db"
    path.touch(0o600)
    columns = (
        "project_id, project, project_path, task_id, title, body, source, kind, labels, priority, lane, due, "
        "available_at, max_attempts, backend, created_at, status, deps_left, has_dependents, finished_at, plan, "
        "callback_url"
    )
    with closing(sqlite3.connect(path)) as old:
        for _, _, script in KNOWN[:3]:
            old.executescript(script)
        old.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        old.execute("PRAGMA user_version = 3")
        old.execute("INSERT INTO store VALUES ('old', 0)")
        old.execute("INSERT INTO projects (id, key, name, path) VALUES (1, 'host:/src/api/.git', 'api', '/src/api')")
        rows = (
            ("ended", 0, "completed", 0, 0, 5, None),
            ("next", 1, "queued", 0, 1, None, "https://example.org/x"),
            ("waits", 0, "blocked", 1, 0, None, None),
        )
        for name, due, status, left, waited_for, finished, callback in rows:
            values = (1, "api", "/src/api", name, "t", "", "plan", "code", "[]", 2, 0, due, 0, 3, "agent", 0)
            marks = ", ".join("?" * 22)
            more = (status, left, waited_for, finished, "p", callback)
            old.execute(f"INSERT INTO executions ({columns}) VALUES ({marks})", (*values, *more))
        old.execute("INSERT INTO dependencies VALUES (3, 2)")
        old.executemany(
            "INSERT INTO events (at, type, execution_id, data) VALUES (0, ?, ?, ?)",
            [
                *(("execution.queued", id, '{"status":"queued"}') for id in (1, 2)),
                *(("execution.started", 1, "{}"), ("execution.completed", 1, "{}")),
                ("execution.queued", 3, '{"status":"blocked"}'),
            ],
        )
        old.execute(
            "INSERT INTO attempts (execution_id, number, fence, node, backend, started_at, finished_at) "
            "VALUES (1, 1, 1, 'n', 'agent', 0, 5)"
        )
        old.execute("UPDATE executions SET attempt = 1, fence = 1 WHERE id = 1")
        old.execute("UPDATE projects SET fence = 1")
        old.commit()

    async with open_store(url(path), clock=(clock := Clock())) as store:
        bed = Bed(store, clock)
        api = await bed.project()
        await bed.node()
        assert await bed.queue.steps_of(api.id, "p") == []  # of a plan of before nobody knows the runs
        execution = await bed.take(api)
        assert (execution.task_id, execution.dedupe, execution.instant) == ("next", None, False)
        await bed.queue.finish(done(execution))
        assert await bed.value("SELECT count(*) FROM outbox WHERE kind = 'callback'") == 1
        assert await bed.run(api) == 3
        assert (await bed.queue.retry(3)).status == "queued"
        await bed.check()

    assert check(path) == []
    assert (tmp_path / "pilot.db.schema-3.backup").exists()


def test_migrations_are_numbered_without_gaps() -> None:
    numbers = [number for number, _, _ in migrations("sqlite")]

    assert numbers == list(range(1, len(numbers) + 1))
    for _, name, script in migrations("sqlite"):
        left = script
        for statement in statements(script):
            left = left.replace(statement, "", 1)
        assert not re.sub(r"--.*", "", left).strip(), f"{name}: the end of it would be left out"
