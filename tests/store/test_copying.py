"""A whole store in another place: nothing lost, nothing changed, nothing half, whatever comes in between."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import pytest

from pilot.domain.errors import Busy, PilotError, StoreError, StoreRefused, UsageError
from pilot.domain.ports import Node
from pilot.store import copy_postgres, copy_sqlite, open_store
from pilot.store.copy_postgres import PostgresEnd
from pilot.store.copy_tables import CopyTable, Mark, Tally, copy_tables, to_mark
from pilot.store.copying import Copied, Copying, Progress, open_end
from tests.postgres import Cluster
from tests.store.bed import Bed, Clock, done
from tests.store.filled import dump, fill
from tests.store.killed_copy import later

T = TypeVar("T")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with something in every table; never opened again, only copied."""
    path = tmp_path_factory.mktemp("made") / "pilot.db"
    fill(path)
    return path


@pytest.fixture
def source(made: Path, tmp_path: Path) -> Path:
    for part in made.parent.iterdir():
        shutil.copy(part, tmp_path / part.name)
    return tmp_path / made.name


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "elsewhere" / "copy.db"


@pytest.fixture
def postgres_target(postgres: Cluster) -> Iterator[str]:
    """A database of an ordinary role, with pilot's tables, in which nothing ever happened."""
    url = postgres.create()
    yield url
    postgres.drop(url)


@pytest.fixture
def bare_database(postgres: Cluster) -> Iterator[str]:
    """A database with nothing in it."""
    url = postgres.create(schema=False)
    yield url
    postgres.drop(url)


@pytest.fixture(params=["sqlite", "postgres"])
def anywhere(request: pytest.FixtureRequest) -> str:
    """A place to copy to, on either engine."""
    if request.param == "sqlite":
        return at(request.getfixturevalue("target"))
    url: str = request.getfixturevalue("postgres_target")
    return url


def at(path: Path) -> str:
    return f"sqlite:///{path}"


def copy(
    source: Path | str,
    target: Path | str,
    tell: Callable[[Progress], None] = lambda _: None,
    *,
    alive: Callable[[Node], bool | None] = lambda _: None,
    clock: Callable[[], int] = later,
    batch: int = 10,
    fresh: bool = False,
) -> Copied:
    urls = [at(end) if isinstance(end, Path) else end for end in (source, target)]
    with open_end(urls[0], clock) as origin, open_end(urls[1], clock, target=True) as end:
        return Copying(origin, end, alive, tell, batch=batch).run(fresh=fresh)


def on(url: Path | str, work: Callable[[Bed], Awaitable[T]], clock: Clock | None = None) -> T:
    """Work with a store as any pilot does."""

    async def go() -> T:
        given = clock or Clock(later())
        async with open_store(at(url) if isinstance(url, Path) else url, clock=given, create=False) as store:
            return await work(Bed(store, given, prefix="NEW"))

    return asyncio.run(go())


async def nothing(_: Bed) -> None:
    pass


def sql(path: Path, text: str, *values: Any) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as connection:
        return connection.execute(text, values).fetchall()


def test_the_store_that_is_copied_here_has_something_in_every_table(made: Path) -> None:
    assert [name for name, rows in dump(made).items() if not rows] == []


def test_from_a_file_to_a_server_and_back_is_the_same_store(
    source: Path, bare_database: str, target: Path, made: Path
) -> None:
    there = copy(source, bare_database)
    back = copy(bare_database, target)

    assert dump(target) == dump(made)
    assert {name: t.digest for name, t in back.tallies.items()} == {n: t.digest for n, t in there.tallies.items()}
    assert there.rows == sum(len(rows) for name, rows in dump(made).items() if name != "numbers")
    assert there.tallies.keys() == {table.name for table in copy_tables()}


def test_the_source_stays_as_it_was(source: Path, made: Path, anywhere: str) -> None:
    copy(source, anywhere)

    assert dump(source) == dump(made)
    on(source, nothing)


def test_a_copy_goes_on_like_its_source(source: Path, anywhere: str) -> None:
    copy(source, anywhere)

    async def go_on(bed: Bed) -> list[Any]:
        # leases and fences stand: what runs is ended by who holds it
        (running,) = await bed.queue.held_by({"n1"})
        await bed.queue.finish(done(running))
        found: list[Any] = [running.id, running.fence]
        web = await bed.project("wéb")
        await bed.node("n2")
        await bed.queue.resume(web.id)
        found += [await bed.put(web)]  # ids go on behind the last
        found += [await bed.run(web, "n2"), await bed.claimed(web, "n2")]
        found += await bed.rows("SELECT id, type, execution_id FROM events WHERE id > 1000 ORDER BY id")
        # what was owed is owed, and events are owed to whom they were: only those written here
        found += await bed.rows("SELECT id, kind, key, execution_id FROM outbox ORDER BY id")
        return found

    assert on(anywhere, go_on) == on(source, go_on)


def test_no_copied_event_owes_its_report_again(source: Path, anywhere: str) -> None:
    before = sql(source, "SELECT count(*) FROM outbox")
    copy(source, anywhere)

    async def owed(bed: Bed) -> tuple[int, int]:
        (first,) = await bed.rows("SELECT count(*) FROM outbox")
        await bed.sql("INSERT INTO events (at, type, execution_id, data) VALUES (1, 'execution.completed', 1, '{}')")
        (then,) = await bed.rows("SELECT count(*) FROM outbox")
        return first[0], then[0]

    first, then = on(anywhere, owed)
    assert first == before[0][0]
    assert then == first + 2  # its report and its callback: triggers are at work again


def test_a_node_that_is_up_is_not_copied_under_its_feet(source: Path, anywhere: str) -> None:
    sql(source, "UPDATE nodes SET lease_until = ?", later() + 5000)

    with pytest.raises(Busy, match=r"n1 .* works with .*; nothing was copied. .*try again in 5 s"):
        copy(source, anywhere)

    with open_end(anywhere, later, target=True) as end:
        assert (end.mark(), end.taken(copy_tables())) == (None, None)  # nothing was begun


def test_a_node_that_was_only_stopped_counts_as_up(source: Path, target: Path) -> None:
    sql(source, "UPDATE nodes SET pid = 4711")

    with pytest.raises(Busy, match=r"n1 works with .*\(pid 4711\)"):
        copy(source, target, alive=lambda node: node.pid == 4711)

    assert not target.exists()


def test_a_worker_does_not_hold_the_store(source: Path, target: Path) -> None:
    sql(source, "UPDATE nodes SET kind = 'worker', lease_until = ?", later() + 5000)

    assert copy(source, target).rows


def test_a_node_of_a_server_is_judged_by_the_servers_clock(source: Path, postgres_target: str, target: Path) -> None:
    copy(source, postgres_target)
    soon = "UPDATE nodes SET lease_until = floor(extract(epoch FROM clock_timestamp()) * 1000) + 30000"
    with psycopg.connect(postgres_target) as connection:
        connection.execute(soon)

    with (
        pytest.raises(Busy, match=r"try again in (30|[12].) s"),
        open_end(postgres_target, None) as origin,
        open_end(at(target), None, target=True) as end,
    ):
        Copying(origin, end, lambda _: None).run()

    assert not target.exists()


def test_whoever_writes_to_the_source_is_waited_for_and_then_named(
    source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copy_sqlite, "BUSY_TIMEOUT", 50)
    with closing(sqlite3.connect(source, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Busy, match=r"locked by another process"):
            copy(source, target)

    assert copy(source, target).rows


def test_whoever_writes_to_a_server_is_waited_for_and_then_named(
    source: Path, postgres_target: str, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy(source, postgres_target)
    monkeypatch.setattr(copy_postgres, "PATIENCE", 0.05)
    with open_end(postgres_target, later) as other:
        other.hold()
        with pytest.raises(Busy, match=r"locked by another process"):
            copy(postgres_target, target)

    assert copy(postgres_target, target).rows


def triggers_at_work(url: str) -> int:
    if url.startswith("sqlite"):
        return int(
            sql(Path(url.removeprefix("sqlite:///")), "SELECT count(*) FROM sqlite_master WHERE type = 'trigger'")[0][0]
        )
    with psycopg.connect(url) as connection:
        found = connection.execute("SELECT 1 FROM pg_trigger WHERE NOT tgisinternal AND tgenabled <> 'D'").fetchall()
    return len(found)


def test_nobody_writes_to_the_source_meanwhile_and_nobody_uses_the_copy(source: Path, anywhere: str) -> None:
    said: list[str] = []

    def meddle(progress: Progress) -> None:
        if progress.table != "executions" or progress.rows:
            return
        with pytest.raises(sqlite3.OperationalError, match=r"locked"):
            sql(source, "INSERT INTO events (at, type, data) VALUES (1, 'x', '{}')")
        assert sql(source, "SELECT count(*) FROM executions")  # who reads is not in the way
        if progress.doing == "copying":
            assert triggers_at_work(anywhere) == 0  # whatever the order of the tables
            with pytest.raises(StoreRefused, match=r"not whole; the same `pilot db copy` again finishes it"):
                on(anywhere, nothing)
        said.append(progress.doing)

    copy(source, anywhere, meddle)

    assert said == ["copying", "verifying"]
    assert triggers_at_work(anywhere)
    on(anywhere, nothing)
    sql(source, "INSERT INTO events (at, type, data) VALUES (1, 'x', '{}')")


def test_nobody_writes_to_a_server_that_is_copied(source: Path, postgres_target: str, target: Path) -> None:
    copy(source, postgres_target)
    said: list[bool] = []

    def meddle(progress: Progress) -> None:
        if not said:
            with psycopg.connect(postgres_target) as other:
                ((free,),) = other.execute(
                    "SELECT pg_try_advisory_xact_lock(classid::int, objid::int) FROM pg_locks "
                    "WHERE locktype = 'advisory' AND granted "
                    "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
                ).fetchall()
            said.append(free)

    copy(postgres_target, target, meddle)

    assert said == [False]


def test_killed_at_any_point_it_goes_on(source: Path, made: Path, tmp_path: Path, anywhere: str) -> None:
    program = (sys.executable, "-m", "tests.store.killed_copy", at(source), anywhere, "13")

    ran = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=100)

    assert ran.returncode == 0, ran.stderr
    *killed, end = [line.split("\t") for line in ran.stdout.splitlines()]
    states = [state for _, state in killed]
    first = states.index("refused")
    assert all(state.startswith("nothing: no ") or state == "store" for state in states[:first])
    assert set(states[first:]) == {"refused"}
    assert any("inside" in where for where, _ in killed[first:])
    assert (len(states) - first > 10, end) == (True, ["done", "store"])
    copy(anywhere, tmp_path / "back.db")
    assert dump(tmp_path / "back.db") == dump(made)
    sql(source, "UPDATE store SET id = id")  # nobody holds it


@pytest.mark.parametrize("lost", ["target", "source"])
def test_when_a_server_hangs_up_it_goes_on_later(
    source: Path, made: Path, postgres_target: str, target: Path, postgres: Cluster, lost: str
) -> None:
    if lost == "source":
        copy(source, postgres_target)
    ends: tuple[Path | str, Path | str] = (source, postgres_target) if lost == "target" else (postgres_target, target)

    def hang_up(progress: Progress) -> None:
        if (progress.doing, progress.table, progress.rows) == ("copying", "attempts", 10):
            assert postgres.terminate(postgres_target)

    with pytest.raises(Busy, match=r"can't be reached"):
        copy(*ends, hang_up)

    assert copy(*ends).resumed
    if lost == "target":
        copy(postgres_target, target)
    assert dump(target) == dump(made)


def break_off(source: Path | str, target: Path | str, table: str = "executions") -> None:
    """Half a copy, as a kill leaves it."""

    class Killed(BaseException):
        pass

    def kill(progress: Progress) -> None:
        if progress.doing == "copying" and progress.table == table and progress.rows:
            raise Killed

    with pytest.raises(Killed):
        copy(source, target, kill, batch=3)


def test_what_is_there_is_not_copied_twice(source: Path, anywhere: str) -> None:
    break_off(source, anywhere)
    steps: list[Progress] = []

    copied = copy(source, anywhere, steps.append)

    assert (copied.resumed, copied.restarted) == (True, False)
    copying = {step.table: step.rows for step in reversed(steps) if step.doing == "copying"}
    assert copying["events"] == len(dump(source)["events"])
    assert copying["executions"] == 3


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE executions SET title = 'another' WHERE id = 1",
        "DELETE FROM audit WHERE status = 0",
        "INSERT INTO pauses VALUES (-5, 'new', '', 0)",
        "UPDATE nodes SET seen_at = seen_at + 1",
    ],
)
def test_what_was_copied_of_a_store_that_has_changed_since_is_copied_anew(
    source: Path, target: Path, change: str
) -> None:
    break_off(source, target)
    sql(source, change)

    copied = copy(source, target)

    assert (copied.resumed, copied.restarted) == (False, True)
    assert dump(target) == dump(source)


def test_a_changed_store_is_copied_anew_to_a_server_too(source: Path, postgres_target: str, target: Path) -> None:
    break_off(source, postgres_target)
    sql(source, "UPDATE executions SET title = 'another' WHERE id = 1")

    assert copy(source, postgres_target).restarted
    copy(postgres_target, target)
    assert dump(target) == dump(source)


def test_half_a_copy_of_another_store_is_left_alone_unless_it_is_thrown_away(source: Path, anywhere: str) -> None:
    break_off(source, anywhere)
    sql(source, "UPDATE store SET id = 'another'")

    with pytest.raises(StoreRefused, match=r"unfinished copy of another store .*--fresh"):
        copy(source, anywhere)

    assert copy(source, anywhere, fresh=True).restarted
    assert on(anywhere, lambda bed: bed.value("SELECT id FROM store")) == "another"


def test_half_a_copy_of_another_schema_is_left_alone(source: Path, anywhere: str) -> None:
    break_off(source, anywhere)
    with open_end(anywhere, later, target=True) as end:
        assert isinstance(end, (copy_sqlite.SqliteEnd, PostgresEnd))
        if isinstance(end, PostgresEnd):
            with psycopg.connect(anywhere) as connection:
                connection.execute("UPDATE copying SET schema = 3")
        else:
            sql(Path(end.words), "UPDATE copying SET schema = 3")

    for fresh in (False, True):
        with pytest.raises(StoreRefused, match=r"unfinished copy with schema 3, and this pilot has"):
            copy(source, anywhere, fresh=fresh)


def test_a_place_with_something_in_it_is_refused_and_left_as_it_is(source: Path, target: Path) -> None:
    target.parent.mkdir()
    for made in ("pilot", "other", "text"):
        if made == "pilot":
            fill(target)
        elif made == "other":
            sql(target, "CREATE TABLE mine (x)")
        else:
            target.write_text("my notes, which are no database " * 100)
        before = target.read_bytes()

        for fresh in (False, True):
            with pytest.raises(StoreRefused, match=r"left as it is"):
                copy(source, target, fresh=fresh)

        assert target.read_bytes() == before
        for part in target.parent.iterdir():
            part.unlink()


def test_a_database_with_something_in_it_is_refused_and_left_as_it_is(source: Path, bare_database: str) -> None:
    with psycopg.connect(bare_database) as connection:
        connection.execute("CREATE TABLE executions (mine text)")
    with pytest.raises(StoreRefused, match=r"tables of another program .*left as it is"):
        copy(source, bare_database)

    with psycopg.connect(bare_database) as connection:
        connection.execute("DROP TABLE executions")
        connection.execute("CREATE TABLE elsewhere (mine text)")  # is in nobody's way
    copy(source, bare_database)
    sql(source, "UPDATE store SET id = 'another'")
    for fresh in (False, True):
        with pytest.raises(StoreRefused, match=r"is not empty; it is left as it is"):
            copy(source, bare_database, fresh=fresh)


def test_an_empty_store_is_a_place_to_copy_to(source: Path, target: Path, postgres_url: str, made: Path) -> None:
    on_new: list[str] = []

    async def make() -> None:
        async with open_store(at(target)) as store:
            on_new.append(store.id)

    asyncio.run(make())
    copy(source, target)
    copy(target, postgres_url)

    assert dump(target) == dump(made)
    assert on(postgres_url, lambda bed: bed.value("SELECT id FROM store")) != on_new[0]


def test_a_whole_copy_is_whole_already_until_somebody_works_with_it(source: Path, anywhere: str) -> None:
    first = copy(source, anywhere)
    again = copy(source, anywhere)
    assert (again.already, again.rows) == (True, first.rows)
    assert [t.digest for t in again.tallies.values()] == [t.digest for t in first.tallies.values()]

    async def work(bed: Bed) -> None:
        await bed.sql("UPDATE executions SET title = 'x' WHERE id = 1")

    on(anywhere, work)
    with pytest.raises(StoreRefused, match=r"is not empty"):
        copy(source, anywhere)


def test_a_store_is_not_copied_to_itself(source: Path, postgres_target: str, tmp_path: Path) -> None:
    (tmp_path / "link.db").symlink_to(source)
    copy(source, postgres_target)

    other_name = postgres_target + "&application_name=other"
    for one, other in ((source, source), (source, tmp_path / "link.db"), (postgres_target, other_name)):
        with pytest.raises(UsageError, match=r"one and the same store"):
            copy(one, other)


DAMAGE = {
    "events": "UPDATE events SET data = data || ' ' WHERE id = 3",
    "tokens": "DELETE FROM tokens WHERE id = (SELECT max(id) FROM tokens)",
    "attempts": "UPDATE attempts SET cost_usd = 0.10000000000000002 WHERE cost_usd = 0.1",
    "output": "UPDATE output SET data = '' WHERE seq = 2",
    "executions": "UPDATE executions SET error = NULL WHERE id = 1",
    "audit": "INSERT INTO audit (at, token, actor, peer, method, path, status) VALUES (0, '', '', '', '', '', 0)",
}


@pytest.mark.parametrize("table", DAMAGE)
def test_what_is_not_as_in_the_source_is_found(source: Path, target: Path, table: str) -> None:
    def damage(progress: Progress) -> None:
        if (progress.doing, progress.table) == ("copying", "pull_executions") and progress.rows == progress.of:
            sql(target, DAMAGE[table])

    with pytest.raises(StoreError, match=f"table {table} has .*stays unusable.*--fresh"):
        copy(source, target, damage)
    with pytest.raises(StoreRefused, match=r"not whole"):
        on(target, nothing)

    assert copy(source, target, fresh=True).rows
    assert dump(target) == dump(source)


def test_what_is_not_as_in_the_source_is_found_on_a_server(source: Path, postgres_target: str) -> None:
    def damage(progress: Progress) -> None:
        if (progress.doing, progress.table) == ("copying", "pull_executions") and progress.rows == progress.of:
            with psycopg.connect(postgres_target) as other:
                other.execute(DAMAGE["attempts"])

    with pytest.raises(StoreError, match=r"table attempts has other content.*stays unusable"):
        copy(source, postgres_target, damage)
    with pytest.raises(StoreRefused, match=r"not whole"):
        on(postgres_target, nothing)


@pytest.mark.parametrize(
    ("table", "column", "where", "bad", "words"),
    [
        ("executions", "priority", "id = 2", "'high'",
         r"column priority of the row \(2,\) of executions holds a value of the wrong type \(str for bigint\)"),
        ("events", "data", "id = 5", "'a' || char(0)", r"column data of the row \(5,\) of events has a NUL"),
        ("output", "data", "seq = 1", "'text'", r"column data of the row \(1, 1, 1\) of output holds"),
    ],
)  # fmt: skip
def test_what_a_server_can_not_hold_is_named_and_mended_in_the_source(
    source: Path, made: Path, postgres_target: str, target: Path, table: str, column: str, where: str, bad: str,
    words: str,
) -> None:  # fmt: skip
    ((good,),) = sql(source, f"SELECT {column} FROM {table} WHERE {where}")
    sql(source, f"UPDATE {table} SET {column} = {bad} WHERE {where}")

    with pytest.raises(StoreError, match=words + ".*mend it in the source"):
        copy(source, postgres_target)

    sql(source, f"UPDATE {table} SET {column} = ? WHERE {where}", good)
    assert copy(source, postgres_target).resumed
    copy(postgres_target, target)
    assert dump(target) == dump(made)


def test_a_store_that_is_not_sound_is_not_copied(source: Path, anywhere: str) -> None:
    sql(source, "DELETE FROM projects WHERE id = 1")

    with pytest.raises(StoreError, match=r"not sound, and can't be copied .*`pilot db check`"):
        copy(source, anywhere)


def test_a_login_that_is_refused_shows_no_password(source: Path) -> None:
    with pytest.raises(PilotError) as refused:
        copy(source, "postgresql://pilot:s3cret@127.0.0.1:1/pilot?connect_timeout=1")

    assert "s3cret" not in str(refused.value)
    assert "127.0.0.1" in str(refused.value)


TABLE = CopyTable("t", ("a", "b", "c"), ("bigint", "text", "double precision"), (0,), frozenset())


def digest(*rows: tuple[Any, ...]) -> bytes:
    return Tally().over(TABLE, rows).digest


def test_few_rows_that_may_be_a_megabyte_each_are_held_at_once() -> None:
    wide = {table.name for table in copy_tables() if copy_postgres.at_once(table) == copy_postgres.FEW}
    assert wide == {"executions", "inbox", "outbox", "output", "artifacts"}


def test_the_sum_of_rows_tells_apart_what_is_not_the_same() -> None:
    rows = [
        (1, "x", 0.5), (1, "x", None), (1, None, 0.5), (1, "None", 0.5), (1, "", 0.5), (1, "x", 0.5000000000000001),
        (1, "x'", 0.5), (1, "x\\", 0.5), (1, "ä", 0.5), (1, "a\u0308", 0.5), (1, b"x", 0.5), (2, "x", 0.5),
        ("1", "x", 0.5), (1, "x", float("inf")),
    ]  # fmt: skip
    assert len({digest(row) for row in rows}) == len(rows)
    assert digest((1, "x", 0.0)) == digest((1, "x", -0.0)) == digest((1, "x", 0))
    one, two = (1, "x", 0.5), (2, "y", 0.5)
    assert len({digest(one, two), digest(two, one), digest(one), digest(one, one), digest()}) == 5


def test_a_sum_is_gone_on_with_from_any_row_as_the_mark_has_it() -> None:
    rows = [(n, f"row {n} \u2028'", n / 3) for n in range(9)]
    part = Tally().over(TABLE, rows[:4])
    mark = Mark("id", 6, 0, {"t": part})
    kept = to_mark(("id", 6, 0, mark.progress())).tallies["t"]

    assert (kept.after, kept.rows) == ((3,), 4)
    assert kept.over(TABLE, rows[4:]).same(Tally().over(TABLE, rows))
