"""What is PostgreSQL's own: connections that end, a COMMIT without an answer, who stands still, errors in words."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from pilot.domain.errors import Busy, StoreError, StoreRefused, UsageError
from pilot.domain.execution import Status
from pilot.store import open_store
from pilot.store import postgres_group as groups
from pilot.store import postgres_session as session
from pilot.store import postgres_wire as wires
from pilot.store.database import HEARD, Ahead, Notify, Rows, Statement, Step
from pilot.store.postgres import PostgresDatabase
from pilot.store.postgres_dialect import Failed, Lost, bound, translate, translated
from pilot.store.postgres_place import Place
from pilot.store.postgres_upkeep import check, no_backup, quick_look
from pilot.store.postgres_wire import Wire
from tests.postgres import Cluster, name_of
from tests.store.bed import Bed, Clock, done, task
from tests.store.lost import heard, lose, nothing, unheard

PATH = "UPDATE projects SET path = path || '!'"


def engine(bed: Bed) -> PostgresDatabase:
    assert isinstance(bed.database, PostgresDatabase)
    return bed.database


async def test_a_connection_that_was_ended_is_made_anew(postgres: Cluster, postgres_url: str) -> None:
    async with open_store(postgres_url, clock=Clock()) as store:
        bed = Bed(store, Clock())
        api = await bed.project()
        assert postgres.terminate(postgres_url) >= 2  # it reads, and writes

        id = await bed.put(api)

        assert await bed.value("SELECT count(*) FROM executions WHERE id = :id", id=id) == 1
        await bed.check()


@pytest.mark.parametrize("become", [nothing, heard, unheard])
async def test_a_commit_without_an_answer_is_found_out(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, become: Callable[[Wire, Statement], None]
) -> None:
    """Whether it was written or not, each task is there once, and its caller has its id."""
    async with open_store(postgres_url, clock=Clock()) as store:
        bed = Bed(store, Clock())
        api = await bed.project()
        await bed.node()
        await bed.put(api)
        execution = await bed.take(api)
        web = await bed.project("web")
        waiting = await bed.put(web)
        lost = lose(monkeypatch, become)

        finished, enqueued, claimed = await asyncio.gather(
            store.queue.finish(done(execution)),
            store.queue.enqueue(task(api, "T")),
            store.queue.claim(execution.node or "", projects=(web.id,)),
            return_exceptions=True,
        )

        assert lost
        assert not isinstance(finished, BaseException)
        assert not isinstance(enqueued, BaseException)
        assert not enqueued.duplicate
        assert await bed.rows("SELECT count(*), max(id) FROM executions WHERE task_id = 'T'") == [(1, enqueued.id)]
        assert await bed.events(execution.id) == ["queued", "started", "completed"]
        assert not isinstance(claimed, BaseException)
        assert [(one.id, one.title, one.status) for one in claimed] == [(waiting, "do T-2", Status.RUNNING)]
        assert await bed.events(waiting) == ["queued", "started"]


async def test_the_mark_of_a_store_that_is_at_work_for_days_is_not_swept(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a commit without an answer would be done again, had anybody else begun to write meanwhile."""
    async with open_store(postgres_url) as store:
        await store.queue.register([("k", "p", "/p", 1)])
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute("UPDATE writers SET since = since - 2 * 86400000")
        await store.queue.register([("k", "p", "/q", 1)])

        def overtaken(wire: Wire, commit: Statement) -> None:
            heard(wire, commit)
            with ThreadPoolExecutor(1) as aside:
                aside.submit(lambda: asyncio.run(another())).result()

        async def another() -> None:
            async with open_store(postgres_url) as other:
                await other.queue.register([("o", "o", "/o", 1)])

        def once(items: Sequence[None]) -> Generator[Step, Rows, list[str]]:
            yield Statement("UPDATE projects SET path = path || '!' WHERE key = 'k'")
            ((path,),) = yield Statement("SELECT path FROM projects WHERE key = 'k'")
            return [path] * len(items)

        lost = lose(monkeypatch, overtaken)
        await store.database.write(once, None)

        assert lost
        assert await store.database.read("SELECT path FROM projects WHERE key = 'k'") == [("/q!",)]


def test_a_server_that_stands_still_while_a_connection_is_made_is_not_waited_for(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wires, "SILENCE", 0.3)
    monkeypatch.setattr(wires, "LONGEST", 0)
    monkeypatch.setattr(session, "LIMITED", {"statement_timeout": "0;SELECT pg_sleep(20)"})
    began = time.monotonic()
    with pytest.raises(Lost, match="does not answer"):
        Wire(Place(postgres_url))
    assert time.monotonic() - began < 10


async def test_readers_that_want_the_last_idle_connection_at_once_each_have_one(postgres_url: str) -> None:
    class Snatched(deque[Wire]):
        def __len__(self) -> int:
            return 1  # it was there a moment ago

    async with open_store(postgres_url, clock=Clock()) as store:
        database = engine(Bed(store, Clock()))
        while database._idle:
            database._idle.pop().close()
        database._idle = Snatched()
        assert await store.database.read("SELECT 1") == [(1,)]


STANDING = (
    "between two answers", "before any answer", "in a crowd", "ahead", "ahead in a crowd",
    "behind much", "behind more", "behind more in a crowd",
)  # fmt: skip


@pytest.mark.parametrize("where", STANDING)
async def test_who_stands_still_in_a_transaction_does_not_hold_up_the_others(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    assert session.LIMITED["idle_in_transaction_session_timeout"] == 2000
    monkeypatch.setitem(session.LIMITED, "idle_in_transaction_session_timeout", 1200)
    async with open_store(postgres_url, clock=Clock()) as other:
        api = await Bed(other, Clock()).project()
        inside, tries = asyncio.Event(), []
        loop = asyncio.get_running_loop()

        def standing(items: Sequence[None]) -> Generator[Step, Rows, list[int]]:
            much = "x" * (300_000 if "more" in where else 9_000 if "much" in where else 1)
            yield Statement("UPDATE projects SET path = path || '!' WHERE :much <> ''", {"much": much})
            if where == "between two answers":
                yield Statement("SELECT 1")  # it is written by now
            if where.startswith("ahead"):
                yield Ahead(Statement("SELECT 1"))
                yield HEARD
            tries.append(1)
            if len(tries) == 1:
                loop.call_soon_threadsafe(inside.set)
                time.sleep(3.5)  # a process that is stopped
            rows = yield Statement("SELECT path FROM projects")
            return [len(rows[0][0])] * len(items)

        many = 20 if where.endswith("in a crowd") else 1

        async def stop() -> list[int]:
            async with open_store(postgres_url, clock=Clock()) as store:
                return await asyncio.gather(*(store.database.write(standing, None) for _ in range(many)))

        stopped = asyncio.create_task(asyncio.to_thread(asyncio.run, stop()))
        await inside.wait()
        asked = where != "before any answer"  # what nobody waits for is not even sent yet
        held = (
            "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND granted "
            "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
        while asked and not await other.database.read(held):  # and nobody has waited for it
            await asyncio.sleep(0.002)
        began = time.monotonic()
        await other.queue.enqueue(task(api, "T"))
        waited = time.monotonic() - began

        assert (0.2 if asked else 0) < waited < 3.3  # the server ended the first, which has not even moved
        assert await stopped == [len(api.path) + 1] * many  # what it had written is gone; it did it again
        assert len(tries) == 1 + asked


@pytest.mark.parametrize(
    "first", [Statement(PATH), Statement(f"{PATH} RETURNING id"), Ahead(Statement(f"{PATH} RETURNING id"))]
)
@pytest.mark.parametrize("many", [1, 20])
async def test_where_a_transaction_could_not_begin_nothing_is_written(
    postgres_url: str, many: int, first: Statement | Ahead
) -> None:
    """What is sent behind a BEGIN before it was answered must not be a transaction of its own each."""
    async with open_store(postgres_url, clock=Clock()) as store:
        bed = Bed(store, Clock())
        api = await bed.project()
        wire = engine(bed)._transaction._wire
        assert wire is not None
        wire.script("DEALLOCATE ALL")  # the server knows neither BEGIN nor the lock any more

        def new(items: Sequence[None]) -> Generator[Step, Rows, list[None]]:
            yield first
            yield Statement(PATH)
            return [None] * len(items)

        writes = (store.database.write(new, None) for _ in range(many))
        for error in await asyncio.gather(*writes, return_exceptions=True):
            assert isinstance(error, StoreError)

        assert await bed.value("SELECT path FROM projects") == api.path


async def test_who_waits_too_long_for_the_lock_is_told(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(session.LIMITED, "lock_timeout", 200)
    async with open_store(postgres_url, clock=Clock()) as store:
        bed = Bed(store, Clock())
        api = await bed.project()
        lock = engine(bed)._transaction._lock
        with psycopg.connect(postgres_url, autocommit=True) as blocker:
            values = (lock.params["class"], lock.params["object"])
            blocker.execute("SELECT pg_advisory_lock(%s::int, %s::int)", values)

            with pytest.raises(Busy, match="locked by another process"):
                await store.queue.enqueue(task(api, "T"))

        assert await bed.put(api)


async def test_the_loop_goes_on_while_somebody_waits_for_the_lock(postgres_url: str) -> None:
    async with open_store(postgres_url, clock=Clock()) as store:
        bed = Bed(store, Clock())
        api = await bed.project()
        lock = engine(bed)._transaction._lock
        gaps: list[float] = []

        async def tick() -> None:
            last = time.monotonic()
            while True:
                await asyncio.sleep(0.01)
                gaps.append(time.monotonic() - last)
                last = time.monotonic()

        with psycopg.connect(postgres_url, autocommit=True) as blocker:
            values = (lock.params["class"], lock.params["object"])
            blocker.execute("SELECT pg_advisory_lock(%s::int, %s::int)", values)
            ticking = asyncio.create_task(tick())
            writing = asyncio.create_task(store.queue.enqueue(task(api, "T")))
            more = asyncio.create_task(store.queue.enqueue(task(api, "U", body="x" * 10_000_000)))
            await asyncio.sleep(1.5)
            assert not writing.done()
            blocker.execute("SELECT pg_advisory_unlock(%s::int, %s::int)", values)
            assert (await writing).id < (await more).id
            ticking.cancel()

        assert len(gaps) > 60
        assert max(gaps) < 1.4


async def test_what_another_node_commits_is_heard(postgres_url: str) -> None:
    async with open_store(postgres_url, clock=Clock()) as store, open_store(postgres_url, clock=Clock()) as other:
        api = await Bed(store, Clock()).project()
        heard: list[str] = []
        ready, news = asyncio.Event(), asyncio.Event()

        def hear(tokens: object) -> None:
            heard.extend(tokens)  # type: ignore[arg-type]
            (news if ready.is_set() else ready).set()

        leave = other.database.listen(hear)
        await asyncio.wait_for(ready.wait(), 10)
        assert "*" in heard  # whatever was said before it listened
        heard.clear()

        await store.queue.enqueue(task(api, "T"))
        await asyncio.wait_for(news.wait(), 10)

        assert str(api.id) in heard
        leave()


async def test_more_tokens_than_a_message_holds_are_said_to_be_many(postgres_url: str) -> None:
    def many(items: Sequence[None]) -> Generator[Step, Rows, list[None]]:
        yield Notify({str(10_000_000 + n) for n in range(2000)})
        return [None] * len(items)

    async with open_store(postgres_url, clock=Clock()) as store, open_store(postgres_url, clock=Clock()) as other:
        heard: asyncio.Queue[set[str]] = asyncio.Queue()
        other.database.listen(lambda tokens: heard.put_nowait(set(tokens)))
        assert len(await asyncio.wait_for(heard.get(), 10)) > 1
        await store.database.write(many, None)
        assert await asyncio.wait_for(heard.get(), 10) == {"*"}


async def test_the_clock_is_the_servers(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: 5 * 10**15)  # this machine is in 1970
    async with open_store(postgres_url) as store:
        await store.queue.register([("k", "p", "/p", 1)])
        ((at,),) = await store.database.read("SELECT floor(extract(epoch FROM clock_timestamp()) * 1000)")
        assert abs(store.database.clock() - at) < 2000


@pytest.mark.parametrize("jump", [-5000, 5000])
async def test_what_was_written_by_a_clock_that_was_wrong_is_written_anew(postgres_url: str, jump: int) -> None:
    """The machine slept, or the server's clock was set: the first group hears of it, and begins again."""
    async with open_store(postgres_url) as store:
        database = store.database
        assert isinstance(database, PostgresDatabase)
        told: list[int] = []

        def note(items: Sequence[None]) -> Generator[Step, Rows, list[None]]:
            told.append(database.clock())
            yield Statement("INSERT INTO events (at, type, data) VALUES (:now, 'x', '{}')", {"now": told[-1]})
            return [None] * len(items)

        await database.write(note, None)
        database._transaction._ahead += jump
        await database.write(note, None)

        assert len(told) == 3
        times = await database.read("SELECT at FROM events ORDER BY id")
        assert [abs(at - when) < 100 for (at,), when in zip(times, (told[0], told[2]), strict=True)] == [True, True]
        ((now,),) = await database.read("SELECT floor(extract(epoch FROM clock_timestamp()) * 1000)")
        assert abs(told[2] - now) < 1000


async def test_who_was_slow_between_the_question_and_the_answer_takes_no_clock_for_wrong(postgres_url: str) -> None:
    async with open_store(postgres_url) as store:
        tries: list[int] = []

        def slow(items: Sequence[None]) -> Generator[Step, Rows, list[None]]:
            tries.append(1)
            yield Statement("UPDATE projects SET path = path")
            time.sleep(0.3)
            yield Statement("SELECT 1")
            return [None] * len(items)

        await store.queue.register([("k", "p", "/p", 1)])
        before = store.database.clock() - time.monotonic() * 1000
        await store.database.write(slow, None)

        assert len(tries) == 1
        assert abs(store.database.clock() - time.monotonic() * 1000 - before) < 100


@pytest.mark.parametrize("many", [1, 20])
async def test_a_server_that_leaves_the_lock_unanswered_is_given_up(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, many: int
) -> None:
    """However long the statements behind it may take."""
    monkeypatch.setitem(session.LIMITED, "lock_timeout", 0)
    monkeypatch.setattr(groups, "PATIENCE", 0.3)
    monkeypatch.setattr(groups, "SILENCE", 0.2)
    async with open_store(postgres_url, clock=Clock()) as store:
        bed = Bed(store, Clock())
        api = await bed.project()
        lock, wire = engine(bed)._transaction._lock, engine(bed)._transaction._wire
        assert wire is not None
        wire._longest = 0.5 if many == 1 else 60  # what is sent with its statement is answered with that
        with psycopg.connect(postgres_url, autocommit=True) as blocker:
            values = (lock.params["class"], lock.params["object"])
            blocker.execute("SELECT pg_advisory_lock(%s::int, %s::int)", values)
            began = time.monotonic()
            puts = (store.queue.enqueue(task(api, f"T{n}")) for n in range(many))
            for error in await asyncio.gather(*puts, return_exceptions=True):
                assert isinstance(error, Busy)
                assert "does not answer" in str(error)
            assert time.monotonic() - began < 5

        assert await bed.put(api)


@pytest.mark.parametrize("many", [1, 20])
@pytest.mark.parametrize("size", [1, 100_000])
async def test_a_server_that_has_much_to_do_is_not_given_up(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, many: int, size: int
) -> None:
    """The lock has to be given in time, and a statement has its own."""
    monkeypatch.setattr(groups, "PATIENCE", 1.0)
    monkeypatch.setattr(groups, "SILENCE", 0.5)
    tries: list[int] = []

    def slow(items: Sequence[None]) -> Generator[Step, Rows, list[int]]:
        tries.append(1)
        rows = yield Statement("SELECT pg_sleep(3) WHERE :size <> ''", {"size": "x" * size})
        return [len(rows)] * len(items)

    async with open_store(postgres_url, clock=Clock()) as store:
        await Bed(store, Clock()).project()
        assert await asyncio.gather(*(store.database.write(slow, None) for _ in range(many))) == [1] * many

    assert len(tries) == 1


@pytest.mark.parametrize("many", [1, 20])
async def test_what_nobody_waits_for_any_more_is_not_written_by_half(postgres_url: str, many: int) -> None:
    """A loop that ends cancels whatever goes on in it, and something may be written after that."""
    async with open_store(postgres_url, clock=Clock()) as store:
        bed = Bed(store, Clock())
        await bed.project()
        inside = asyncio.Event()
        loop = asyncio.get_running_loop()

        def half(items: Sequence[None]) -> Generator[Step, Rows, list[None]]:
            yield Statement("UPDATE projects SET path = 'half'")
            yield Statement("SELECT 1")
            loop.call_soon_threadsafe(inside.set)
            yield Statement("SELECT pg_sleep(0.5)")
            yield Statement("UPDATE projects SET name = 'half'")
            return [None] * len(items)

        writes = [asyncio.create_task(store.database.write(half, None)) for _ in range(many)]
        await inside.wait()
        draining = engine(bed)._waiting._draining
        assert draining is not None
        draining.cancel()
        await asyncio.wait([draining])
        await bed.project("web")

        assert await bed.value("SELECT count(*) FROM projects WHERE (name = 'half') <> (path = 'half')") == 0
        for write in writes:
            write.cancel()
        # kept as it is: its frames must not be what ends the group
        assert draining.cancelled()


async def test_a_changed_store_is_seen_once(postgres_url: str) -> None:
    async with open_store(postgres_url, clock=Clock()) as store:
        api = await Bed(store, Clock()).project()
        assert await store.database.changed()
        assert not await store.database.changed()
        async with open_store(postgres_url, clock=Clock()) as other:  # comes and goes between two looks
            await other.queue.enqueue(task(api, "T"))
        assert await store.database.changed()


async def test_tables_of_others_are_left_as_they_are(postgres: Cluster) -> None:
    url = postgres.create(schema=False)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE executions (mine int)")
    with pytest.raises(StoreRefused, match=r"another program \(executions\)"):
        async with open_store(url):
            pass
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone() == (1,)
    postgres.drop(url)


async def test_a_database_that_does_not_hold_every_text_is_refused(postgres: Cluster) -> None:
    name = "in_latin1"
    postgres.admin(f'DROP DATABASE IF EXISTS "{name}"')
    postgres.admin(f"CREATE DATABASE {name} OWNER pilot ENCODING 'LATIN1' TEMPLATE template0 LOCALE 'C'")
    url = postgres.url(name)
    with pytest.raises(StoreRefused, match=r"in LATIN1, .*UTF8"):
        async with open_store(url):
            pass
    with pytest.raises(StoreRefused, match="in LATIN1"):
        quick_look(url)
    postgres.drop(url)


async def test_a_newer_schema_is_refused_and_none_is_said(postgres: Cluster) -> None:
    url = postgres.create(schema=False)
    with pytest.raises(StoreError, match="no store in"):
        async with open_store(url, create=False):
            pass
    assert quick_look(url).schema == 0
    async with open_store(url):
        pass
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("INSERT INTO pilot_schema VALUES (9999, '9999_later.sql', 0)")
    with pytest.raises(StoreRefused, match="schema 9999"):
        async with open_store(url):
            pass
    postgres.drop(url)


async def test_two_that_open_a_new_store_at_once_make_one(postgres: Cluster) -> None:
    url = postgres.create(schema=False)

    async def opened() -> str:
        async with open_store(url) as store:
            return store.id

    assert len(set(await asyncio.gather(*(opened() for _ in range(4))))) == 1
    postgres.drop(url)


async def test_a_role_that_may_make_no_tables_is_told_what_to_do(postgres: Cluster) -> None:
    url = postgres.create(schema=False)
    guest = f"guest_{name_of(url)}"
    postgres.admin(f'CREATE ROLE "{guest}" LOGIN')
    with pytest.raises(StoreError, match="GRANT USAGE, CREATE ON SCHEMA"):
        async with open_store(postgres.url(name_of(url), user=guest)):
            pass
    postgres.drop(url)
    postgres.admin(f'DROP ROLE "{guest}"')


async def test_a_database_that_is_not_there_and_a_server_that_is_not(postgres: Cluster, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such database"):
        async with open_store(postgres.url("nothing_there")):
            pass
    with pytest.raises(Busy, match="can't be reached"):
        async with open_store(f"postgresql://me:sekret@/db?host={tmp_path}&port=1"):
            pass


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:se%zzkret@h/db",
        "postgresql://u@h:sekret/db",
        "postgresql://u@h/db?sekret=1",
        "postgresql://u:se@kret@h/db",  # for libpq the host is kret@h
        "postgresql://u:5/sekret@h/db",  # and here the database is sekret@h/db
        "postgresqll://u:sekret@h/db",
    ],
)
async def test_a_url_that_is_none_is_not_repeated(url: str) -> None:
    with pytest.raises((UsageError, StoreError)) as found:
        async with open_store(url):
            pass
    assert "kret" not in str(found.value)


def test_no_password_is_shown(tmp_path: Path) -> None:
    for url in (f"postgresql://me:sekret@/db?host={tmp_path}", f"postgresql://me@/db?host={tmp_path}&password=sekret"):
        place = Place(url)
        assert "sekret" not in place.name + str(no_backup(url)) + place.said("FATAL: sekret is wrong")


async def test_a_store_that_breaks_its_promises_is_found(postgres_url: str) -> None:
    async with open_store(postgres_url, clock=Clock()) as store:
        bed = Bed(store, Clock())
        await bed.put(await bed.project())
        assert check(postgres_url)[1] == []
        await bed.sql("UPDATE projects SET running = 1")
        assert [finding.check for finding in check(postgres_url)[1]] == ["projects count what they run"]
        await bed.sql("UPDATE projects SET running = 0")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("53100", "disk of .* is full"),
        ("25006", "target_session_attrs"),
        ("53300", "max_connections"),
        ("57014", "took too long"),
        ("28P01", "PGPASSWORD"),
        ("57P03", "can't be reached"),
        ("XX001", "damaged"),
    ],
)
def test_an_error_says_what_to_do(code: str, words: str) -> None:
    with pytest.raises(StoreError if code in ("53100", "25006", "28P01", "XX001") else Busy, match=words):
        raise translate(Failed(code, "text"), "postgresql://h/db")


def test_names_become_numbers_and_nothing_else_does() -> None:
    text, names = translated("SELECT ':no', \"a:b\", x::int, :a -- :c\n, :b, :a")
    assert text == b"SELECT ':no', \"a:b\", x::int, $1 -- :c\n, $2, $1"
    assert names == ("a", "b")


@pytest.mark.parametrize("value", [1 << 63, "\ud800", "a\0b"])
def test_what_no_column_holds_is_refused(value: object) -> None:
    with pytest.raises(UsageError, match="no database holds"):
        bound(b"", ("a",), {"a": value})


async def test_what_waited_for_the_lock_is_of_the_time_at_which_it_got_it(postgres_url: str) -> None:
    """Or an event would be older than the one before it, and a task begun before it came."""
    async with open_store(postgres_url) as other:
        bed = Bed(other, Clock())
        api = await bed.project()
        inside, asked = asyncio.Event(), threading.Event()
        loop = asyncio.get_running_loop()

        def slow(_: Sequence[None]) -> Generator[Step, Rows, list[int]]:
            yield Statement("SELECT 1")
            loop.call_soon_threadsafe(inside.set)
            asked.wait(10)
            time.sleep(0.3)
            ((id,),) = yield Statement(
                "INSERT INTO events (at, type, data) SELECT :now, 'slow', '{}' RETURNING id", {"now": 0}
            )
            return [id]

        async def first() -> int:
            async with open_store(postgres_url) as store:
                return await store.database.write(slow, None)

        slowly = asyncio.create_task(asyncio.to_thread(asyncio.run, first()))
        await inside.wait()
        second = asyncio.create_task(other.queue.enqueue(task(api, "T")))
        await asyncio.sleep(0.05)
        began = other.database.clock()
        asked.set()
        await asyncio.gather(slowly, second)
        ((created,),) = await other.database.read("SELECT created_at FROM executions")
        times = await other.database.read("SELECT at FROM events ORDER BY id")

    assert created >= began + 250, "it waited that long"
    assert times == sorted(times)
    assert abs(times[0][0] - began) < 5_000, "whatever the operation took for now"
