"""Group commit: who waits together is written together, once; nobody pays for another's mistake or departure."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Generator, Sequence
from typing import Any

import pytest

from pilot.domain.agent import OutputKind
from pilot.domain.errors import LeaseLost, StoreError, UsageError
from pilot.domain.execution import Enqueued, Status
from pilot.store import open_store
from pilot.store.database import Notify, Rows, Statement, Step
from pilot.store.postgres import PostgresDatabase
from pilot.store.postgres_wire import Wire
from pilot.store.records import Table
from tests.store.bed import HOUR, Bed, Clock, broken, done, task


async def commits(store: Bed, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """From now on, one entry for each transaction that the writer ends."""
    await store.project()  # opens the writer
    seen: list[str] = []
    if isinstance(store.database, PostgresDatabase):
        send = Wire.send

        def noted(wire: Wire, statement: Statement, *more: Any) -> None:
            if statement.sql in ("COMMIT", "ROLLBACK"):
                seen.append(statement.sql)
            send(wire, statement, *more)

        monkeypatch.setattr(Wire, "send", noted)
        return seen

    def listen(connection: sqlite3.Connection) -> None:
        connection.set_trace_callback(lambda sql: seen.append(sql) if sql in ("COMMIT", "ROLLBACK") else None)

    await store.database._writer.call(listen)  # type: ignore[attr-defined]
    return seen


async def test_a_hundred_tasks_at_once_share_few_commits(store: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    api = await store.project()
    seen = await commits(store, monkeypatch)

    await asyncio.gather(*(store.queue.enqueue(task(api, f"T-{n}")) for n in range(100)))
    assert 1 <= len(seen) <= 3

    seen.clear()
    for n in range(3):
        await store.queue.enqueue(task(api, f"U-{n}"))
    assert seen == ["COMMIT"] * 3  # one by one, each is durable before the next is asked


async def test_operations_of_every_kind_share_one_commit(store: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    projects = [await store.project(f"p{n}") for n in range(4)]
    await store.node()
    ids = [await store.put(project) for project in projects]
    running = [await store.take(projects[0]), await store.take(projects[1])]
    seen = await commits(store, monkeypatch)

    await asyncio.gather(
        store.queue.enqueue(task(projects[3], "more")),
        store.claim(projects[2]),
        store.queue.finish(done(running[0])),
        store.journal.note(running[1], phase="x"),
        store.journal.write(running[1], [(OutputKind.TEXT, b"x")]),
        store.queue.heartbeat("n1", HOUR),
        store.queue.cancel(ids[3], "me"),
        store.queue.pause(0, "me", ""),
    )

    assert seen == ["COMMIT"]
    assert await store.status(ids[3]) is Status.CANCELLED


async def test_who_waits_while_a_commit_is_under_way_goes_with_the_next(
    store: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = await store.project()
    seen = await commits(store, monkeypatch)
    first = asyncio.create_task(store.queue.enqueue(task(api, "first")))
    await asyncio.sleep(0)
    await asyncio.sleep(0)

    await asyncio.gather(first, *(store.queue.enqueue(task(api, f"T-{n}")) for n in range(50)))

    assert 1 <= len(seen) <= 3


async def test_a_failing_operation_takes_no_other_along(store: Bed) -> None:
    api = await store.project()
    await store.node()
    await store.put(api)
    execution = await store.take(api)
    late = broken(execution)
    await store.queue.finish(late)

    def bad(items: Sequence[object]) -> Generator[Step, Rows, list[object]]:
        yield Statement("UPDATE executions SET title = 'half done'")
        yield Notify({"9"})
        yield Statement("UPDATE executions SET slot = 1 WHERE status = 'failed'")  # a CHECK forbids it
        return [None] * len(items)

    found = await asyncio.gather(
        store.queue.enqueue(task(api, "before")),
        store.database.write(bad, None),
        store.queue.finish(late),
        store.queue.enqueue(task(api, "after")),
        return_exceptions=True,
    )

    assert [type(one) for one in found] == [Enqueued, StoreError, LeaseLost, Enqueued]
    assert "check" in str(found[1]).lower()
    assert await store.value("SELECT count(*) FROM executions WHERE title = 'half done'") == 0


async def test_of_many_items_only_the_bad_ones_fail(store: Bed) -> None:
    def picky(items: Sequence[int]) -> Generator[Step, Rows, list[int]]:
        yield Statement("INSERT INTO pauses VALUES (1, :owner, '', 0)", {"owner": f"{len(items)}:{items[0]}"})
        if any(item % 3 == 0 for item in items):
            raise UsageError(f"{items}")
        return [item * 10 for item in items]

    found = await asyncio.gather(*(store.database.write(picky, n) for n in range(7)), return_exceptions=True)

    assert [one if isinstance(one, int) else str(one) for one in found] == ["[0]", 10, 20, "[3]", 40, 50, "[6]"]
    owners = [owner for (owner,) in await store.rows("SELECT owner FROM pauses ORDER BY owner")]
    assert owners == ["1:1", "1:2", "1:4", "1:5"]  # nothing of the group that failed, nothing of the bad ones


async def test_an_operation_that_forgets_an_answer_leaves_nobody_waiting(store: Bed) -> None:
    api = await store.project()

    def forgetful(items: Sequence[int]) -> Generator[Step, Rows, list[int]]:
        yield Statement("SELECT 1")
        return list(items)[1:]

    async def late() -> Enqueued:
        await asyncio.sleep(0)  # while the group of the forgetful one is written
        return await store.queue.enqueue(task(api, "late"))

    async with asyncio.timeout(20):
        found = await asyncio.gather(
            *(store.database.write(forgetful, n) for n in range(3)), late(), return_exceptions=True
        )

    assert [type(one) for one in found] == [int, int, ValueError, Enqueued]


async def test_a_value_that_can_not_be_bound_is_the_askers_own_problem(store: Bed) -> None:
    api = await store.project()

    def bind(items: Sequence[object]) -> Generator[Step, Rows, list[Rows]]:
        found = []
        for item in items:
            found.append((yield Statement("SELECT :value", {"value": item})))
        return found

    found = await asyncio.gather(
        store.database.write(bind, 2**70),
        store.database.write(bind, "\ud800"),
        store.database.write(bind, 7),
        store.queue.enqueue(task(api, "T")),
        return_exceptions=True,
    )

    assert [type(one) for one in found] == [UsageError, UsageError, list, Enqueued]
    for value in (2**70, "\ud800"):
        with pytest.raises(UsageError):
            await store.database.read("SELECT :value", {"value": value})
    assert await store.database.read("SELECT :value", {"value": 7}) == [(7,)]


async def test_a_row_that_nobody_can_read_stops_its_own_project_only(store: Bed) -> None:
    api, web = await store.project("api"), await store.project("web")
    await store.node()
    bad = await store.put(api)
    good = await store.put(web)
    await store.sql("UPDATE executions SET title = CAST(x'ff' AS TEXT) WHERE id = :id", id=bad)  # as a disk would

    found = await asyncio.gather(store.claim(api), store.claim(web), return_exceptions=True)

    assert isinstance(found[0], StoreError)
    assert not isinstance(found[1], BaseException)
    assert [e.id for e in found[1]] == [good]
    await store.sql("UPDATE executions SET title = 'ok' WHERE id = :id", id=bad)


async def test_an_asker_who_leaves_holds_up_nobody(store: Bed) -> None:
    api = await store.project()
    asked = [asyncio.create_task(store.queue.enqueue(task(api, f"T-{n}"))) for n in range(20)]
    await asyncio.sleep(0)
    for one in asked[::2]:
        one.cancel()

    found = await asyncio.gather(*asked, return_exceptions=True)

    assert all(isinstance(one, asyncio.CancelledError) for one in found[::2])
    assert all(isinstance(one, Enqueued) for one in found[1::2])
    assert (await store.queue.enqueue(task(api, "later"))).duplicate is False


async def test_a_connection_that_breaks_and_can_not_even_be_closed_holds_up_nobody(
    store: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = await store.project()
    broken_writer = store.database._writer  # type: ignore[attr-defined]
    closed = broken_writer.close

    async def breaks(*_: object) -> None:
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorname = "SQLITE_IOERR_FSYNC"
        raise error

    monkeypatch.setattr(broken_writer, "call", breaks)
    monkeypatch.setattr(broken_writer, "close", breaks)
    asking = [asyncio.create_task(store.queue.enqueue(task(api, f"T-{n}"))) for n in range(2)]
    async with asyncio.timeout(10):
        refused = await asyncio.gather(*asking, return_exceptions=True)
        assert [type(error) for error in refused] == [StoreError] * 2
        await store.put(api)
    await closed()


async def test_closing_waits_for_what_was_asked(url: str) -> None:
    async with open_store(url, clock=Clock()) as opened:
        bed = Bed(opened, Clock())
        api = await bed.project()
        asked = [asyncio.create_task(bed.queue.enqueue(task(api, f"T-{n}"))) for n in range(50)]
        await asyncio.sleep(0)
    answers = await asyncio.gather(*asked)

    async with open_store(url, clock=Clock()) as opened:
        assert await opened.database.read("SELECT id FROM executions ORDER BY id") == [(a.id,) for a in answers]


async def test_the_reader_can_not_write(store: Bed) -> None:
    with pytest.raises(StoreError, match=r"(?i)write|readonly"):
        await store.database.read("DELETE FROM pauses")


def test_a_row_has_a_value_for_each_column() -> None:
    table = Table(id="bigint", name="text")

    assert table.rows([(1, "a"), [2, None]]) == '[[1,"a"],[2,null]]'
    for row in ((1,), (1, "a", 2)):
        with pytest.raises(ValueError, match="2 columns: id, name"):
            table.rows([row])
