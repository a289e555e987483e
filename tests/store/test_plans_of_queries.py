"""SQLite's plans: every statement the queue runs goes by an index, so that a million ended rows cost nothing.

The statements are not copied here: a whole life of a store is run, and what its connections executed is explained.
"""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from pilot.domain.agent import OutputKind
from pilot.domain.budget import Budget
from pilot.domain.delivery import EffectKind, PullState, Refusal
from pilot.domain.outcome import Ending, FailureClass, Outcome, Publication, failed
from pilot.domain.ports import PlanSteps
from pilot.domain.task import Kind
from pilot.domain.work import Artifact, Progress, Wanted
from pilot.store import open_store
from pilot.store.stats import stats
from tests.store.bed import HOUR, MINUTE, Bed, Clock, again, asked, broken, done, interrupted, limited, node, task, used

LARGE = (
    *("executions", "attempts", "events", "output", "dependencies", "questions", "outbox", "idempotency_keys"),
    *("refusals", "inbox", "pulls", "pull_executions", "results", "artifacts", "artifact_uses"),
)
# Walks that are over few rows by their nature: the whole index is what runs, what waits for its time, what is owed.
SMALL: tuple[str, ...] = (
    "executions_later",
    "executions_slot",
    "executions_reserved",
)
SMALL += ("executions_ready", "executions_held")  # counted by kind: all that waits, by the index alone
SMALL += ("outbox_owed", "outbox_due", "inbox_owed", "pulls_live", "executions_begun")


async def life(bed: Bed) -> None:
    """Each operation at least once, with every statement it can run."""
    queue, clock = bed.queue, bed.clock
    api, web = await bed.project("api", 2), await bed.project("web")
    await bed.node("n1")
    first = await bed.put(api, idempotency_key="k")
    await queue.enqueue(task(api, "other", idempotency_key="k"))
    await queue.enqueue(task(api, "T-1"))
    child = await bed.put(web, after=(first,))
    await bed.put(web, after=(child,))
    await bed.put(web, available_at=clock.now + MINUTE)
    execution = await bed.take(api)
    await bed.journal.note(execution, phase="x", session_id="s")
    await bed.journal.write(execution, [(OutputKind.TEXT, b"x")])
    await queue.heartbeat("n1", HOUR)
    await queue.cancels("n1")
    await queue.held_by(["n1"])
    await queue.finish(asked(execution, "?"))
    await queue.answer(first, "yes", "me")
    await queue.finish(again(await bed.take(api), at=clock.now))
    await queue.serve("n1", [api.id, web.id], {api.id: {"agent": "key"}}, Budget(5.0, 1000.0))
    await queue.finish(limited(await bed.take(api), clock.now + MINUTE))
    await queue.next_due()
    await bed.put(web, fallback=("other",))
    await bed.sql("INSERT INTO parks VALUES ('agent', '', 'quota', '', NULL, 0, 0, 1, NULL, NULL, NULL)")
    await queue.finish(used(await bed.take(web), 1, 1, 1.0))
    await queue.unpark("agent", "me", "")
    clock.tick(2 * MINUTE)
    await queue.expire_parks()
    await queue.ready(node="n1")
    probe = await bed.take(api)
    await bed.journal.note(probe, answered="yes", sandbox="none")
    await queue.finish(again(probe, at=clock.now))
    await bed.store.history.used("s")
    await queue.finish(replace(done(await bed.take(api), next_lease=HOUR), first=(api.id,)))
    await queue.finish(broken(await bed.take(web)))  # cancels what waited for it
    parent = await bed.put(api)
    await bed.put(api, after=(parent,))
    await queue.cancel(parent, "me")
    await queue.retry(parent)
    running = await bed.take(api)
    await queue.cancel(running.id, "me")
    await queue.finish(interrupted(running))
    await bed.node("run-1")
    await bed.put(api, reserved_for="run-1")
    await bed.take(web)
    await queue.recover(["run-1"], "gone")
    await queue.leave("n1")
    await queue.nodes()
    await queue.pause(api.id, "me", "")
    await queue.resume(api.id)
    clock.tick(HOUR)
    await queue.prune(clock.now)


async def planned(bed: Bed) -> None:
    """Each operation on plans, notes, known results and what came with them."""
    queue, clock = bed.queue, bed.clock
    (api,) = await queue.register([("host:/src/plan/.git", "plan", "/src/plan", 1)])
    await bed.node("n2")
    tasks = [task(api, f"p::{n}", plan="p", idempotency_key=f"plan:p:{n}", dedupe=f"d{n}") for n in range(4)]
    note = task(api, "p::note", plan="p", idempotency_key="plan:p:note", instant=True)
    before = await bed.put(api, priority=0)
    steps = PlanSteps(tasks=(*tasks, note), after={1: (0,), 2: (1,), 3: (1,), 4: (0,)})
    await queue.submit(PlanSteps(tasks=(replace(tasks[0], after=(before,)),)))
    await queue.submit(steps)
    await queue.submit(steps)
    await bed.run(api, "n2")
    twin = await bed.put(api, dedupe="d0")
    waits = await bed.put(api, after=(twin,))
    execution = await bed.take(api, "n2")
    files = Artifact("a", b"a"), Artifact("b", b"b")
    await queue.finish(replace(done(execution), artifacts=files))
    await bed.put(api, dedupe="d0")
    await queue.cancel(waits, "me")
    await queue.finish(broken(await bed.take(api, "n2")))
    await queue.retry_plan(api.id, "p")
    await queue.finish(broken(await bed.take(api, "n2")))
    step = (await queue.steps_of(api.id, "p"))[1]
    await queue.retry(step.id)
    for _ in range(3):
        await bed.run(api, "n2")
    await queue.retry(execution.id)
    await bed.store.artifacts.get(files[0].sha256)
    await bed.store.artifacts.of(execution.id)
    await bed.run(api, "n2")
    clock.tick(HOUR)
    await queue.prune(clock.now)


async def pool(bed: Bed) -> None:
    """Each operation of workers elsewhere, and what is counted."""
    work, clock = bed.store.work, bed.clock
    one, two = await bed.project("one", 2), await bed.project("two")
    parent = await bed.put(one, priority=-1, backend="x")
    await bed.put(two, after=(parent,), lane=2, kind=Kind.TEST, backend="x")
    wanted = Wanted(lanes=(0, 2), kinds=("code", "test"))
    (claim,) = await work.claim("w", wanted=wanted)
    progress = Progress(facts={"phase": "x", "answered": "yes"})
    await work.heartbeat(claim.execution.id, "w", claim.fence, progress=progress)
    await work.output(claim.execution.id, "w", claim.fence, [(OutputKind.TEXT, b"x")])
    for _ in range(2):
        outcome = Outcome(ending=Ending.DONE)
        await work.complete(claim.execution.id, "w", claim.fence, outcome, [Artifact("a", b"x")])
    (claim,) = await work.claim("w", wanted=Wanted(projects=("two",)))
    await bed.store.history.made(claim.execution)
    await work.fail(claim.execution.id, "w", claim.fence, failed(FailureClass.AGENT, "x"))
    clock.tick(HOUR)
    claim, *_ = await work.claim("x", max=9)
    await work.release(claim.execution.id, "x", claim.fence)
    await work.claim("dead")
    clock.tick(2 * HOUR)
    waiting = asyncio.create_task(work.claim("y", wanted=Wanted(lanes=(9,)), wait=9))
    other = asyncio.create_task(work.claim("z", wanted=Wanted(projects=("nobody",)), wait=9))
    while len(work._waiters._waiting) < 2 or not work._waiters._news.is_set():
        await asyncio.sleep(0.001)
        work._waiters._news.set()
    await bed.put(two, lane=1)
    await work.drain()
    await asyncio.wait([waiting, other])
    await stats(bed.database, {}, clock.now)


async def outside(bed: Bed) -> None:
    """Each operation on what is owed to the outside and comes from it."""
    store, queue, clock = bed.store, bed.queue, bed.clock
    outbox, inbox, pulls = store.outbox, store.inbox, store.pulls
    key = ("host:/src/api/.git", "api", "/src/api", 1, "checks_passed", 3)
    (api,) = await queue.register([key])
    await queue.start_node(node("out", notifies=True), HOUR)
    first = await bed.put(api, "out", origin={"source": "github"})
    execution = await bed.take(api, "out")
    await bed.journal.note(execution, workspace="/w")
    publication = Publication(repo="acme/api", base="main")
    await queue.finish(done(execution, publication=publication, head_sha="a" * 40))
    await bed.put(api, "next", held="look at it", idempotency_key="x")
    pull = await pulls.of(first)
    assert pull is not None
    await queue.ready(node="out")
    await bed.claimed(api, "out")
    await store.history.why(first, clock.now)
    for which in ({}, {"execution": first}, {"projects": [api.id]}):
        for effect in await outbox.take("out", list(EffectKind), lease=HOUR, **which):
            await outbox.renew([effect], "out", HOUR)
            report = await outbox.report(first)
            await outbox.supersede(effect, report.event)
            await outbox.add([(EffectKind.TELL, f"{effect.key}:x", "tell:x", {})], of=effect)
            await outbox.postpone(effect, "out", clock.now, "later")
    await outbox.next_due(list(EffectKind), "out")
    await pulls.pushed(pull.id, "a" * 40)
    await pulls.opened(pull.id, number=7, url="u", head_sha="a" * 40)
    await pulls.live([api.id])
    await pulls.by_number(api.id, 7)
    await pulls.saw(pull.id, checks="failed", seen={"etag": "x"})
    await pulls.repair(pull.id, task(api, "out", idempotency_key="ci"), limit=1)
    await queue.finish(done(await bed.take(api, "out"), publication=publication, head_sha="b" * 40))
    await pulls.saw(pull.id, stuck="x")
    await pulls.saw(pull.id, state=PullState.MERGED)
    while effects := await outbox.take("out", list(EffectKind), lease=HOUR):
        for effect in effects:
            await outbox.give_up(effect, "out", "never")
    await store.refusals.refuse(
        Refusal(key="no", source="github", project_id=api.id, task_id="out", actor="m", reason="no")
    )
    await store.refusals.known(api.id, ["x", "no"])
    await store.history.refused("out")
    await inbox.store("github", "d", "h", "issues", "labeled", "{}")
    for arrival in await inbox.take("out", "github", lease=HOUR):
        await inbox.postpone(arrival, "out", clock.now, "later")
    for arrival in await inbox.take("out", "github", lease=HOUR):
        await inbox.handled(arrival, "out")
    await store.duties.hold("poll", "out", HOUR)
    await queue.recover(["out"], "gone")
    clock.tick(HOUR)
    await queue.prune(clock.now)


def statements(trace: Iterable[str]) -> list[str]:
    """What was executed, each once, with its values left in."""
    found: dict[str, str] = {}
    for sql in trace:
        if re.match(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH)", sql):
            shape = re.sub(r"'(?:[^']|'')*'|\b\d+\b", "?", sql)
            found.setdefault(shape, sql)
    return list(found.values())


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """The statements of a whole life, and the file they ran on."""
    path = tmp_path_factory.mktemp("plans") / "pilot.db"
    return statements(asyncio.run(_lived(path))), path


async def _lived(path: Path) -> list[str]:
    trace: list[str] = []

    def listen(connection: sqlite3.Connection) -> None:
        connection.set_trace_callback(trace.append)

    async with open_store(f"sqlite:///{path}", clock=(clock := Clock())) as store:
        bed = Bed(store, clock)
        await bed.project()
        for connection in (store.database._writer, store.database._reader):  # type: ignore[attr-defined]
            await connection.call(listen)
        await life(bed)
        await outside(bed)
        await planned(bed)
        await pool(bed)
    return trace


def plans(path: Path, sqls: Iterable[str]) -> list[tuple[str, list[str]]]:
    with closing(sqlite3.connect(path)) as connection:
        return [(sql, [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}")]) for sql in sqls]


def names_of_large_tables(sql: str) -> set[str]:
    """How the statement calls them: their own names and their aliases."""
    found = set()
    for table in LARGE:
        if re.search(rf"\b{table}\b", sql):
            found.add(table)
        words = "WHERE|SET|JOIN|ON|ORDER|GROUP|USING|SELECT|VALUES|LEFT|LIMIT|UNION"
        found |= set(re.findall(rf"\b{table}\s+(?:AS\s+)?(?!(?:{words})\b)(\w+)", sql))
    return found


def walks(sql: str, plan: Iterable[str]) -> list[str]:
    """Steps that look at every row of a table that grows."""
    large = names_of_large_tables(sql)
    found = []
    for step in plan:
        match = re.match(r"SCAN (\w+)(?: USING (?:COVERING )?INDEX (\w+))?", step)
        if match and match[1] in large and match[2] not in SMALL:
            found.append(step)
        if "AUTOMATIC" in step:
            found.append(step)
    return found


def test_no_statement_walks_a_table_that_grows(executed: tuple[list[str], Path]) -> None:
    sqls, path = executed

    found = [(step, sql) for sql, plan in plans(path, sqls) for step in walks(sql, plan)]

    assert len(sqls) > 40
    assert found == []


@pytest.mark.parametrize(
    ("what", "index"),
    [
        (r"WITH q AS", "executions_local (project_id=?)"),
        (r"WITH q AS", "SEARCH p USING INTEGER PRIMARY KEY (rowid=?)"),
        (r"WITH q AS", "SEARCH e USING INTEGER PRIMARY KEY (rowid=?)"),
        (r"WITH h AS", "executions_ready (project_id=?)"),
        (r"WITH h AS", "executions_slot (project_id=? AND slot=?)"),
        (r"WITH h AS", "executions_local (project_id=?)"),
        (r"WITH RECURSIVE walk.*external = 0", "executions_local (project_id>?)"),
        (r"WITH RECURSIVE walk.*external = 0", "executions_local (project_id=?)"),
        (r"WITH RECURSIVE walk(?!.*external = 0)", "executions_ready (project_id>?)"),
        (r"UPDATE executions SET due = 1", "executions_later (available_at<?)"),
        (r"WITH RECURSIVE walk.*, p\.max_running - p\.running", "executions_ready (project_id=?)"),
        (r"WITH RECURSIVE walk.* SELECT 1", "executions_ready (project_id=?)"),
        (r"WITH walk\(project_id\).*max_running - p\.running", "projects_name (name=?)"),
        (r"WITH walk\(project_id\).* SELECT 1", "executions_ready (project_id=?)"),
        (r"SELECT executions\.id.*status = 'running' AND lease_until < \d+ AND node >=", "executions_"),
        (r"SELECT 1 FROM executions WHERE status = 'queued' AND due = 0", "executions_later (available_at<?)"),
        (r"WITH RECURSIVE behind", "PRIMARY KEY (execution_id=?)"),
        (r"UPDATE executions SET lease_until = \d+ \+ b\.lease", "INTEGER PRIMARY KEY (rowid=?)"),
        (r"SELECT a\.execution_id, a\.fence, a\.node", "PRIMARY KEY (execution_id=?)"),
        (r"\s*SELECT kind, 'queued'", "COVERING INDEX executions_ready"),
        (r"\s*SELECT kind, 'queued'", "COVERING INDEX executions_held"),
        (r"\s*SELECT status, kind", "COVERING INDEX executions_ended (status=? AND finished_at>?)"),
        (r"\s*SELECT finished_at - started_at", "COVERING INDEX executions_ended (status=? AND finished_at>?)"),
        (r"SELECT min\(t\)", "executions_later"),
        (r"UPDATE executions SET lease_until = \d+ \+ \d+ WHERE node", "SCAN executions USING INDEX executions_slot"),
        (r"SELECT id FROM executions WHERE status = 'running' AND node", "SCAN executions USING INDEX executions_slot"),
        (r"SELECT .* FROM executions\s+WHERE status = 'running' AND \(lease_until", "executions_"),
        (r"SELECT e\.id, e\.reserved_for", "executions_reserved"),
        (
            r"SELECT e\.id, e\.plan_run FROM executions e WHERE e\.status IN",
            "executions_ended (status=? AND finished_at>? AND finished_at<?)",
        ),
        (r"SELECT k\.n, .*i\.execution_id\s*$", "executions_idempotency (project_id=? AND idempotency_key=?)"),
        (r"SELECT k\.n, .*i\.execution_id\s*$", "USING PRIMARY KEY (project_id=? AND key=?)"),
        (r"SELECT k\.n, .*ORDER BY rank", "executions_open_task (project_id=? AND task_id=?)"),
        (r"UPDATE executions SET\s+status = f\.status", "INTEGER PRIMARY KEY (rowid=?)"),
        (r"UPDATE executions SET status = 'running'", "INTEGER PRIMARY KEY (rowid=?)"),
        (r"UPDATE executions SET deps_left", "dependencies_on (depends_on=?)"),
        (r"UPDATE executions SET session_id", "INTEGER PRIMARY KEY (rowid=?)"),
        (r"UPDATE attempts SET finished_at", "PRIMARY KEY (execution_id=? AND number=?)"),
        (r"SELECT sum\(input_tokens\)", "attempts_session (session_id=?)"),
        (r"WITH h AS", "SEARCH k USING PRIMARY KEY (backend=?)"),
        (r"WITH h AS", "SEARCH x USING INTEGER PRIMARY KEY (rowid=?)"),
        (r"UPDATE questions", "questions_open (execution_id=?)"),
        (r"DELETE FROM events", "events_execution (execution_id=?)"),
        (r"WITH h AS", "executions_begun (project_id=?)"),
        (r"WITH h AS", "pulls_live (project_id=?)"),
        (r"WITH h AS", "executions_reserved (reserved_for>?)"),
        (r"WITH h AS", "SEARCH x USING INDEX executions_slot (project_id=? AND slot>?)"),
        (r"WITH h AS", "executions_open_task (project_id=? AND task_id=?)"),
        (r"WITH h AS", "SEARCH e USING INTEGER PRIMARY KEY (rowid=?)"),
        (r"SELECT o\.id FROM outbox o WHERE o\.delivered_at", "outbox_due (available_at<?)"),
        (r"SELECT o\.id FROM outbox o WHERE o\.delivered_at", "outbox_owed (lane=? AND id<?)"),
        (r"SELECT o\.id FROM outbox o WHERE o\.execution_id", "outbox_execution (execution_id=?)"),
        (r"UPDATE outbox AS o", "INTEGER PRIMARY KEY (rowid=?)"),
        (r"UPDATE outbox SET claimed_by = NULL, claimed_until = 0 WHERE", "outbox_claimed (claimed_by=?)"),
        (r"UPDATE outbox SET delivered_at", "outbox_execution (execution_id=?)"),
        (r"UPDATE inbox SET claimed_by = NULL, claimed_until = 0 WHERE", "inbox_claimed (claimed_by=?)"),
        (r"SELECT 1 FROM inbox", "inbox_owed (source=? AND available_at<?)"),
        (r"DELETE FROM inbox", "inbox_old (handled_at<?)"),
        (r"UPDATE inbox SET claimed_by = '", "inbox_owed (source=? AND available_at<?)"),
        (r"SELECT pulls\..*execution_id = ", "pull_executions_execution (execution_id=?)"),
        (r"SELECT pulls\..*number = ", "pulls_number (project_id=? AND number=?)"),
        (r"UPDATE pulls SET error", "pulls_execution (execution_id=?)"),
        (r"SELECT executions\.id.*LEFT JOIN pulls", "events_execution (execution_id=?)"),
        (r"SELECT kind, payload, result", "outbox_execution (execution_id=?)"),
        (r"SELECT idempotency_key, 'accepted'", "executions_idempotency (project_id=? AND idempotency_key=?)"),
        (r"SELECT p\.id FROM projects p LEFT JOIN", "executions_local (project_id=?)"),
        (r"SELECT p\.id FROM projects p LEFT JOIN", "SEARCH p USING INTEGER PRIMARY KEY (rowid=?)"),
        (r"SELECT max\(plan_run\)", "executions_plan (project_id=? AND plan=?)"),
        (r"SELECT .*WHERE plan_run = ", "executions_run (plan_run=?)"),
        (r"SELECT k\.n, e\.id, e\.status FROM", "executions_open_task (project_id=? AND task_id=?)"),
        (r"WITH RECURSIVE chain", "executions_parent (parent=?)"),
        (r"SELECT e\.id FROM .*AS k JOIN executions", "executions_dedupe (project_id=? AND dedupe=?)"),
        (r"SELECT e\.id, e\.dedupe", "SEARCH r USING PRIMARY KEY (project_id=? AND key=?)"),
        (r"SELECT e\.id, e\.dedupe", "SEARCH e USING INTEGER PRIMARY KEY (rowid=?)"),
        (r"UPDATE results", "results_execution (execution_id=?)"),
        (r"UPDATE results", "executions_dedupe (project_id=? AND dedupe=?)"),
        (r"DELETE FROM results", "results USING PRIMARY KEY (project_id=? AND key=?)"),
        (r"SELECT DISTINCT plan_run", "executions_run (plan_run=?)"),
        (r"SELECT DISTINCT sha256", "artifact_uses_execution (execution_id=?)"),
        (r"DELETE FROM artifacts", "sqlite_autoindex_artifacts_1 (sha256=?)"),
        (r"DELETE FROM artifacts", "SEARCH u USING PRIMARY KEY (sha256=?)"),
    ],
)
def test_a_hot_statement_goes_by_its_index(executed: tuple[list[str], Path], what: str, index: str) -> None:
    sqls, path = executed
    wanted = [sql for sql in sqls if re.match(rf"\s*{what}", sql, re.DOTALL)]
    assert wanted, f"nothing like {what} was run"

    for sql, plan in plans(path, wanted):
        assert any(index in step for step in plan), (sql, plan)


def test_the_test_can_fail(executed: tuple[list[str], Path]) -> None:
    sqls, path = executed
    with closing(sqlite3.connect(path)) as connection:
        for index in ("executions_ready", "executions_local", "executions_later", "executions_reserved"):
            connection.execute(f"DROP INDEX {index}")

    found = [step for sql, plan in plans(path, sqls) for step in walks(sql, plan)]

    assert found != []
