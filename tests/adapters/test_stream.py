"""Server-sent events over real sockets: nothing missed, nothing twice, and nobody waits for a slow reader."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from pilot.api import sse, stream
from pilot.domain.access import Scope
from pilot.domain.agent import OutputKind
from pilot.domain.task import Project
from pilot.store import open_store
from pilot.store.event_log import EventLog, Wanted
from pilot.store.history import History
from tests.adapters.guarded import Guarded, Message, guarded
from tests.store.bed import Bed, broken, done, task

EVENTS = "/api/v1/events"


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Guarded]:
    async with guarded(tmp_path) as opened:
        await opened.bed.node()
        yield opened


async def facts(rig: Guarded, count: int, project: Project | None = None) -> None:
    """So many events, `execution.queued` and others."""
    project = project or await rig.bed.project()
    await asyncio.gather(*(rig.bed.put(project) for _ in range(count)))


async def ids_in_store(rig: Guarded, after: int = 0) -> list[int]:
    return [id for (id,) in await rig.bed.rows("SELECT id FROM events WHERE id > :after ORDER BY id", after=after)]


def ids(messages: list[Message]) -> list[int]:
    return [int(each.id) for each in messages]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


class TestEvents:
    async def test_from_now_on_in_order_as_the_log_has_them(self, rig: Guarded) -> None:
        await facts(rig, 3)
        async with rig.stream(EVENTS) as opened:
            assert opened.status == 200
            assert b"content-type: text/event-stream" in opened.head.lower()
            await facts(rig, 5)
            found = await opened.take(5)
        assert ids(found) == (await ids_in_store(rig))[-5:]
        (event,) = await rig.store.history.events(after=int(found[0].id) - 1, limit=1)
        assert found[0].name == ""
        assert found[0].data == {
            "id": event.id, "at": "2027-01-15T08:00:00.000Z", "type": "execution.queued",
            "execution": event.execution_id, "project_id": event.project_id, "project": "api", "data": event.data,
        }  # fmt: skip

    async def test_whoever_joins_whenever_and_resumes_wherever_gets_each_once(
        self, rig: Guarded, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for size in ("PAGE", "TOLD"):  # pages that end in the middle of everything
            monkeypatch.setattr(stream, size, 7)
        monkeypatch.setattr(stream, "SLICE", 1)  # and others have their turn in the middle of each
        await facts(rig, 20)
        first, writing = (await ids_in_store(rig))[-1], True

        async def write() -> None:
            for _ in range(30):
                await facts(rig, 3)
            nonlocal writing
            writing = False

        async def read(after: int) -> list[int]:
            """Leaves again and again, and resumes behind what it has seen."""
            found: list[int] = []
            while len(found) < len(await ids_in_store(rig, after)) or writing:
                async with rig.stream(EVENTS, last_event_id=str(found[-1] if found else after)) as opened:
                    found += ids(await opened.take(5 if writing else 1))
            return found

        starts = (0, 5, first - 1, first)
        _, *got = await asyncio.gather(write(), *(read(after) for after in starts))
        assert got == [await ids_in_store(rig, after) for after in starts]

    async def test_more_than_is_told_at_a_time_needs_no_second_hint(
        self, rig: Guarded, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(stream, "TOLD", 7)
        monkeypatch.setattr(stream, "TIMER", 1000)
        many = (
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 25) SELECT 1, 'some', '{}' FROM n"
        )
        async with rig.stream(EVENTS) as opened:
            await until(lambda: rig.hub._readers)
            await asyncio.sleep(0.1)  # it has looked for those who came
            await rig.bed.sql(f"INSERT INTO events (at, type, data) {many}")
            rig.hub._hint.set()
            async with asyncio.timeout(10):
                assert ids(await opened.take(25)) == (await ids_in_store(rig))[-25:]

    async def test_who_is_ahead_of_the_others_is_told_nothing_old(
        self, rig: Guarded, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(stream, "TIMER", 1000)
        async with rig.stream(EVENTS) as one:
            await until(lambda: rig.hub._readers)
            await facts(rig, 1)
            assert len(await one.take(1)) == 1
            for owner in "abc":
                await rig.bed.queue.pause(0, owner, "")  # hints at nothing
            async with rig.stream(EVENTS) as two:
                await until(lambda: len(rig.hub._readers) == 2)
                await facts(rig, 1)
                assert ids(await two.take(1)) == (await ids_in_store(rig))[-1:]
                assert ids(await one.take(4)) == (await ids_in_store(rig))[-4:]

    async def test_only_what_is_wanted(self, rig: Guarded) -> None:
        api, web = await rig.bed.project(), await rig.bed.project("web")
        one = await rig.bed.put(api)
        await rig.bed.put(web)
        rows = {
            f"?execution={one}": "execution_id = 1", "?project=web": f"project_id = {web.id}",
            "?type=execution.started,execution.completed": "type IN ('execution.started', 'execution.completed')",
        }  # fmt: skip
        for resumed in ("0", str((await ids_in_store(rig))[-1])):
            async with AsyncExitStack() as stack:
                opened = {
                    query: await stack.enter_async_context(rig.stream(EVENTS + query, last_event_id=resumed))
                    for query in rows
                }
                if resumed != "0":
                    await rig.bed.run(api)
                    await rig.bed.run(web)
                for query, where in rows.items():
                    wanted = await rig.bed.rows(f"SELECT id FROM events WHERE id > {resumed} AND {where} ORDER BY id")
                    assert ids(await opened[query].take(len(wanted))) == [id for (id,) in wanted], query

    async def test_a_rare_one_among_many_is_found_in_short_reads(
        self, rig: Guarded, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(stream, "WINDOW", 10)
        await facts(rig, 60)
        await rig.bed.queue.pause(0, "me", "")
        await facts(rig, 60)
        async with rig.stream(f"{EVENTS}?type=project.paused", last_event_id="0") as opened:
            (found,) = await opened.take(1)
        assert found.data["data"]["owner"] == "me"
        async with rig.stream(f"{EVENTS}?type=project.resumed", last_event_id="0") as opened:
            await rig.bed.queue.resume(0)
            assert (await opened.take(1))[0].data["type"] == "project.resumed"

    @pytest.mark.parametrize("bad", ["x", "-1", "1-1-1", "9" * 30, "\u0661".encode().decode("latin-1")])
    async def test_a_bad_place_is_said(self, rig: Guarded, bad: str) -> None:
        answer = await rig.ask(EVENTS, headers={"last-event-id": bad})
        assert (answer.status, "Last-Event-ID" in answer.document["detail"]) == (422, True)

    async def test_a_place_of_another_store_is_its_end(self, rig: Guarded) -> None:
        await facts(rig, 2)
        async with rig.stream(EVENTS, last_event_id="999999999") as opened:
            await facts(rig, 1)
            assert ids(await opened.take(1)) == [(await ids_in_store(rig))[-1]]

    async def test_what_another_process_writes_comes_soon_without_a_hint(self, rig: Guarded, tmp_path: Path) -> None:
        async with rig.stream(EVENTS) as opened, open_store(f"sqlite:///{tmp_path}/pilot.db") as elsewhere:
            await rig.bed.queue.pause(0, "me", "")  # a pause hints at nothing
            assert (await opened.take(1))[0].data["type"] == "project.paused"
            await elsewhere.queue.resume(0)
            assert (await opened.take(1))[0].data["type"] == "project.resumed"

    async def test_secrets_are_taken_out(self, rig: Guarded) -> None:
        rig.hub._redact = lambda text: text.replace("hunter2", "[redacted]")
        async with rig.stream(EVENTS) as opened:
            await rig.bed.queue.pause(0, "me", "the password is hunter2")
            (found,) = await opened.take(1)
        assert found.data["data"] == {"owner": "me", "reason": "the password is [redacted]"}

    async def test_a_heartbeat_and_a_place_to_reconnect_from(
        self, rig: Guarded, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(stream, "HEARTBEAT", 0.05)
        async with rig.stream(EVENTS) as opened:
            async with asyncio.timeout(10):
                while opened._text.count(b":\n\n") < 3:
                    await opened._more()
            assert opened._text.startswith(b"retry: 2000\n\n")


class TestLimits:
    async def test_a_reader_that_never_reads_is_dropped_and_costs_nobody_anything(
        self, rig: Guarded, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(stream, "HELD", 50_000)
        dead = socket.create_connection(("127.0.0.1", rig.port))
        dead.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        dead.sendall(f"GET {EVENTS} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {rig.token}\r\n\r\n".encode())
        await until(lambda: len(rig.hub._readers) == 1)
        (reader,) = rig.hub._readers
        api = await rig.bed.project()
        async with rig.stream(EVENTS) as opened:
            written = 0
            async with asyncio.timeout(60):
                while not reader.ended:
                    tasks = [task(api, f"x{written}-{n}", source="s" * 1000) for n in range(300)]
                    await asyncio.gather(*(rig.bed.queue.enqueue(each) for each in tasks))
                    written += len(tasks)
                    assert reader._held < 1_000_000  # one page may be more than HELD, two are not kept
                    assert ids(await opened.take(len(tasks))) == (await ids_in_store(rig))[-len(tasks) :]
            await until(lambda: len(rig.hub._everybody) == 1)
            await facts(rig, 1)
            assert len(await opened.take(1)) == 1
        async with asyncio.timeout(20):
            try:
                while True:  # whoever speaks to a closed connection is told so
                    dead.send(b"x")
                    await asyncio.sleep(0.01)
            except ConnectionError:
                dead.close()

    async def test_who_leaves_is_forgotten_at_once(self, rig: Guarded) -> None:
        for _ in range(3):
            async with rig.stream(EVENTS), rig.stream(EVENTS):
                await until(lambda: len(rig.hub._readers) == 2)
            await until(lambda: not rig.hub._everybody)
        assert rig.hub._cursor is None
        await facts(rig, 3)
        async with rig.stream(EVENTS) as opened:
            await facts(rig, 2)
            assert ids(await opened.take(2)) == (await ids_in_store(rig))[-2:]

    async def test_there_are_only_so_many_places(self, rig: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(stream, "MOST", 3)
        async with AsyncExitStack() as stack:
            for _ in range(3):
                await stack.enter_async_context(rig.stream(EVENTS))
            answer = await rig.ask(EVENTS)
            assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        await until(lambda: not rig.hub._everybody)
        async with rig.stream(EVENTS) as opened:
            assert opened.status == 200
            rig.hub._room = 1  # few files may be open: those are for workers, too
            assert (await rig.ask(EVENTS)).status == 503

    async def test_a_revoked_tokens_streams_end(self, rig: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(stream, "REVIEW", 0.05)
        guest = await rig.store.tokens.create("guest", [Scope.READ], "test")
        async with rig.stream(EVENTS) as own, rig.stream(EVENTS, authorization=f"Bearer {guest}") as theirs:
            await facts(rig, 1)
            assert len(await own.take(1)) == len(await theirs.take(1)) == 1
            await rig.store.tokens.revoke(guest.split("_")[1], "me")
            assert await theirs.next() is None
            await facts(rig, 1)
            assert len(await own.take(1)) == 1

    async def test_the_end_of_the_server_is_the_end_of_every_stream(self, rig: Guarded) -> None:
        id = await rig.bed.put(await rig.bed.project())
        async with AsyncExitStack() as stack:
            paths = [EVENTS] * 30 + [f"/api/v1/executions/{id}/stream"] * 30
            opened = [await stack.enter_async_context(rig.stream(path)) for path in paths]
            await until(lambda: len(rig.hub._everybody) == 60)
            began = time.monotonic()
            rig.hub.close()
            for each in opened:
                while await each.next() is not None:
                    pass
            assert time.monotonic() - began < 10
        assert (await rig.ask(EVENTS)).status == 503

    async def test_five_hundred_readers_each_get_everything(self, rig: Guarded) -> None:
        async with AsyncExitStack() as stack:
            opened = [await stack.enter_async_context(rig.stream(EVENTS)) for _ in range(500)]
            await until(lambda: len(rig.hub._readers) == 500)
            await facts(rig, 9)
            expected = (await ids_in_store(rig))[-9:]
            for each in opened:
                assert ids(await each.take(9)) == expected

    async def test_a_store_that_can_not_be_read_is_read_again(
        self, rig: Guarded, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from pilot.domain.errors import StoreError

        monkeypatch.setattr(stream, "TIMER", 0.05)
        failures = 0
        between = EventLog.between

        async def sometimes(self: EventLog, after: int, until: int, wanted: Wanted, limit: int) -> object:
            nonlocal failures
            failures += 1
            if failures < 4:
                raise StoreError("the disk is away")
            return await between(self, after, until, wanted, limit)

        async with rig.stream(EVENTS) as opened:
            await until(lambda: rig.hub._readers)
            monkeypatch.setattr(EventLog, "between", sometimes)
            await facts(rig, 3)
            assert ids(await opened.take(3)) == (await ids_in_store(rig))[-3:]
        assert failures >= 4


class TestExecution:
    def path(self, id: int) -> str:
        return f"/api/v1/executions/{id}/stream"

    async def life(self, bed: Bed, api: Project, id: int) -> None:
        """An execution that fails once and completes, and says something all the time."""
        bed.clock.tick(5)
        execution = await bed.take(api)
        for n in range(45):
            bed.clock.tick(1)
            await bed.journal.write(execution, [(OutputKind.TEXT, f"a{n}\n\nx: \u00fc".encode())])
        await bed.queue.finish(broken(execution, to="queued", available_at=0))
        bed.clock.tick(5)
        execution = await bed.take(api)
        await bed.journal.write(execution, [(OutputKind.STDERR, b"\xff\xfe"), (OutputKind.TEXT, b"done")])
        await bed.queue.finish(done(execution))

    def check(self, messages: list[Message], id: int) -> None:
        events = [each for each in messages if not each.name]
        output = [each for each in messages if each.name == "output"]
        assert [each.data["type"] for each in events] == [
            "execution.queued", "execution.started", "execution.requeued", "execution.started", "execution.completed",
        ]  # fmt: skip
        assert [(each.data["attempt"], each.data["seq"]) for each in output] == [
            *((1, n) for n in range(1, 46)), (2, 1), (2, 2),
        ]  # fmt: skip
        assert output[3].data["text"] == "a3\n\nx: \u00fc"
        assert "base64" in output[45].data
        order = [each.data.get("type") or each.data.get("attempt") for each in messages[:-1]]
        kinds = [key for n, key in enumerate(order) if n == 0 or order[n - 1] != key]
        assert kinds == [
            "execution.queued", "execution.started", 1, "execution.requeued", "execution.started", 2,
            "execution.completed",
        ]  # fmt: skip
        assert (messages[-1].name, messages[-1].data["status"]) == ("end", "completed")
        assert messages[-1].data["execution"] == id

    async def test_what_was_and_then_the_end(self, rig: Guarded) -> None:
        api = await rig.bed.project()
        id = await rig.bed.put(api)
        await self.life(rig.bed, api, id)
        async with rig.stream(self.path(id)) as opened:
            found = await opened.take(100)
        self.check(found, id)
        # From behind any message: the rest, each once.
        for n in range(0, len(found) - 1, 4):
            async with rig.stream(self.path(id), last_event_id=found[n].id) as opened:
                assert [each.id for each in await opened.take(100)] == [each.id for each in found[n + 1 :]]
        answer = await rig.ask(self.path(id), headers={"last-event-id": found[-1].id})
        assert (answer.status, answer.body) == (204, b"")

    async def test_as_it_comes(self, rig: Guarded) -> None:
        api = await rig.bed.project()
        id = await rig.bed.put(api)
        async with rig.stream(self.path(id)) as one, rig.stream(self.path(id)) as two:
            _, *found = await asyncio.gather(self.life(rig.bed, api, id), one.take(100), two.take(100))
        for messages in found:
            self.check(messages, id)

    async def test_output_comes_soon_and_an_end_at_once(self, rig: Guarded) -> None:
        api = await rig.bed.project()
        id = await rig.bed.put(api)
        other = await rig.bed.put(await rig.bed.project("web"))
        async with rig.stream(self.path(id)) as opened:
            execution = await rig.bed.take(api)
            assert [each.data["type"] for each in await opened.take(2)] == ["execution.queued", "execution.started"]
            for n in range(3):
                await rig.bed.journal.write(execution, [(OutputKind.TEXT, b"x")])
                assert (await opened.take(1))[0].data["seq"] == n + 1
            await rig.bed.queue.cancel(other, "me")
            await rig.bed.queue.finish(done(execution))
            assert [each.name for each in await opened.take(9)] == ["", "end"]

    async def test_last_words_in_the_moment_of_the_end_are_not_lost(
        self, rig: Guarded, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        api = await rig.bed.project()
        id = await rig.bed.put(api)
        execution = await rig.bed.take(api)
        read = rig.store.history.output
        ended = False

        async def output(*args: Any, **more: Any) -> Any:
            nonlocal ended
            found = await read(*args, **more)
            if not ended:  # right behind the look at what there is to tell
                ended = True
                await rig.bed.journal.write(execution, [(OutputKind.TEXT, b"the last words")])
                await rig.bed.queue.finish(done(execution))
            return found

        monkeypatch.setattr(History, "output", lambda _self, *args, **more: output(*args, **more))
        async with rig.stream(self.path(id)) as opened:
            found = await opened.take(9)
        assert [each.name or each.data["type"] for each in found] == [
            "execution.queued", "execution.started", "output", "execution.completed", "end",
        ]  # fmt: skip

    async def test_an_attempt_that_begins_between_two_looks_comes_before_what_it_says(
        self, rig: Guarded, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        api = await rig.bed.project()
        id = await rig.bed.put(api)
        read = rig.store.history.output
        begun = False

        async def output(*args: Any, **more: Any) -> Any:
            nonlocal begun
            if not begun:  # right behind the look at the events
                begun = True
                execution = await rig.bed.take(api)
                await rig.bed.journal.write(execution, [(OutputKind.TEXT, b"the first words")])
            return await read(*args, **more)

        monkeypatch.setattr(History, "output", lambda _self, *args, **more: output(*args, **more))
        async with rig.stream(self.path(id)) as opened:
            found = await opened.take(3)
        assert [each.name or each.data["type"] for each in found] == [
            "execution.queued", "execution.started", "output",
        ]  # fmt: skip

    async def test_no_execution_and_no_place(self, rig: Guarded) -> None:
        id = await rig.bed.put(await rig.bed.project())
        assert (await rig.ask(self.path(99))).status == 404
        for bad in ("x", "1-1", "1-1-1-1", "1-1-1-END", "-1-1-1", "1-1-" + "9" * 30):
            assert (await rig.ask(self.path(id), headers={"last-event-id": bad})).status == 422, bad

    async def test_what_is_removed_meanwhile_ends(self, rig: Guarded) -> None:
        id = await rig.bed.put(await rig.bed.project())
        async with rig.stream(self.path(id)) as opened:
            assert len(await opened.take(1)) == 1
            await rig.bed.sql("DELETE FROM executions")
            await rig.bed.sql("INSERT INTO events (at, type, execution_id, data) VALUES (1, 'x', :id, '{}')", id=id)
            assert [each.name for each in await opened.take(5)] == ["", "end"]


# A server that writes all the time, to be killed.
SERVE = """
import asyncio, sys
from pathlib import Path
from tests.adapters.guarded import guarded

async def main():
    async with guarded(Path(sys.argv[1])) as rig:
        print(rig.port, rig.token, flush=True)
        project = await rig.bed.project()
        while True:
            await rig.bed.put(project)
            await asyncio.sleep(0.002)

asyncio.run(main())
"""


async def test_a_reader_resumes_behind_a_killed_server(tmp_path: Path, repository_root: Path) -> None:
    argv = [sys.executable, "-c", SERVE, str(tmp_path)]
    with subprocess.Popen(argv, cwd=repository_root, stdout=subprocess.PIPE, text=True) as serving:
        try:
            assert serving.stdout is not None
            port, token = (await asyncio.to_thread(serving.stdout.readline)).split()
            there = Guarded(None, None, None, None, int(port), token)  # type: ignore[arg-type]
            async with there.stream(EVENTS, last_event_id="0") as opened:
                seen = ids(await opened.take(50))
                serving.kill()
                while (each := await opened.next()) is not None:
                    seen.append(int(each.id))
        finally:
            serving.kill()
    async with guarded(tmp_path) as rig:
        rig.bed._prefix = "second"
        stored = await ids_in_store(rig)
        async with rig.stream(EVENTS, last_event_id=str(seen[-1])) as opened:
            await facts(rig, 10)
            seen += ids(await opened.take(len(stored) - len(seen) + 10))
        assert seen == await ids_in_store(rig)


async def test_the_logs_own_statements_go_by_their_index(rig: Guarded) -> None:
    log = EventLog(rig.store.database)
    sqls: list[tuple[str, Any]] = []
    read = rig.store.database.read

    async def noted(sql: str, params: object = None) -> object:
        sqls.append((sql, params))
        return await read(sql, params)  # type: ignore[arg-type]

    rig.store.database.read = noted  # type: ignore[method-assign, assignment]
    for wanted in (Wanted(), Wanted(frozenset("x"), project=1), Wanted(execution=1)):
        await log.between(0, 9, wanted, 5)
    await log.spoke([(1, 1, 1)])
    await log.last()
    plans = [" ".join(row[3] for row in await read(f"EXPLAIN QUERY PLAN {sql}", params)) for sql, params in sqls]
    for plan, index in zip(
        plans,
        ["PRIMARY KEY (rowid>? AND rowid<?)"] * 2
        + ["events_execution (execution_id=? AND id>? AND id<?)", "(execution_id=? AND (attempt,seq)>(?,?))", ""],
        strict=True,
    ):
        assert index in plan, plans
        assert "TEMP B-TREE" not in plan


async def test_messages_are_one_line_of_data_each() -> None:
    text = "a\nb\r\nc\u2028d\x00e\n\nid: 9\nevent: end"
    found = sse.message({"text": text}, "7", "output").decode()
    assert found.startswith("id: 7\nevent: output\ndata: {")
    assert found.count("\n") == 4
    assert json.loads(found.split("data: ")[1]) == {"text": text}
