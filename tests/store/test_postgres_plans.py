"""PostgreSQL's plans: every statement goes by an index, whatever the planner knows, and ended rows cost nothing.

As for SQLite, the statements are not copied here: a whole life of a store is run, and what its connections were asked
is explained. And the same life beside many ended rows reads no more of any index than it did without them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
import pytest
from psycopg import sql

from pilot.domain.agent import OutputKind
from pilot.domain.delivery import EffectKind
from pilot.domain.outcome import Ending, Outcome
from pilot.store import open_store
from pilot.store.database import Statement
from pilot.store.postgres_dialect import translated
from pilot.store.postgres_place import Place
from pilot.store.postgres_wire import Wire
from tests.postgres import Cluster, name_of
from tests.store.bed import HOUR, MINUTE, START, Bed, Clock, again, broken, done, task
from tests.store.test_plans_of_queries import LARGE, SMALL, life, outside, planned, pool

TYPES: Mapping[type, str] = {int: "bigint", bool: "bigint", str: "text", float: "double precision", bytes: "bytea"}
Asked = tuple[str, tuple[str, ...]]
"""A statement, and the types of its parameters."""

WHOLE = {
    "executions_ended": "what ended in a while, counted by the index alone",
    "executions_open_task": "open ones only",
    "outbox_claimed": "what is being delivered",
    "executions_local": "what waits here: where a project waits for its pull requests",
    "questions_open": "open ones only",
}
"""Indexes that may be walked from end to end, besides those that SQLite may walk."""
ENDED = 4000


@contextmanager
def listened() -> Iterator[set[Asked]]:
    """What all connections are asked meanwhile."""
    found: set[Asked] = set()
    send = Wire.send

    def noted(wire: Wire, statement: Statement, *more: Any) -> None:
        params = statement.params if statement.many is None else next(iter(statement.many), {})
        names = translated(statement.sql)[1]
        if all(name in params for name in names):
            found.add((statement.sql, tuple(TYPES.get(type(params[name]), "unknown") for name in names)))
        send(wire, statement, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Wire, "send", noted)
        yield found


async def lived(url: str) -> None:
    async with open_store(url, clock=(clock := Clock())) as store:
        bed = Bed(store, clock)
        for part in (life, outside, planned, pool):
            await part(bed)


def nodes(plan: Mapping[str, Any]) -> Generator[Mapping[str, Any], None, None]:
    yield plan
    for part in plan.get("Plans", ()):
        yield from nodes(part)


def walks(plan: Mapping[str, Any]) -> list[str]:
    """Steps that look at every row of a table that grows."""
    found = []
    for step in nodes(plan):
        kind, index = step["Node Type"], step.get("Index Name")
        if index is not None and "Index Cond" not in step:
            table = next((name for name in LARGE if index.startswith(f"{name}_")), None)
            if table is not None and index not in SMALL and index not in WHOLE:
                found.append(f"all of {index}")
        elif kind == "Seq Scan" and step["Relation Name"] in LARGE:
            found.append(f"all of {step['Relation Name']}")
    return found


def explained(url: str, asked: Sequence[Asked]) -> list[tuple[str, Mapping[str, Any]]]:
    """The plan that each is given whatever its values, under the engine's settings."""
    wire = Wire(Place(url))
    settings = wire.rows(Statement("SELECT name, setting FROM pg_settings WHERE source = 'session'"))
    wire.close()
    found = []
    with psycopg.connect(url, autocommit=True) as connection:
        for name, setting in settings:
            connection.execute("SELECT set_config(%s, %s, false)", [name, setting])
        for n, (text, types) in enumerate(asked):
            for nothing in ("unknown", "text"):  # as the engine does where a NULL may be of any type
                given = ", ".join(types).replace("unknown", nothing)
                head = f"PREPARE q{n} ({given}) AS " if types else f"PREPARE q{n} AS "
                with suppress(psycopg.errors.AmbiguousParameter):
                    connection.execute(head.encode() + translated(text)[0])
                    break
            values = sql.SQL("({})").format(sql.SQL(", ").join([sql.SQL("NULL")] * len(types)))
            execute = sql.SQL("EXPLAIN (FORMAT JSON) EXECUTE {}").format(sql.Identifier(f"q{n}"))
            row = connection.execute(execute + values if types else execute).fetchone()
            assert row is not None
            plan = row[0] if isinstance(row[0], list) else json.loads(row[0])
            found.append((text, plan[0]["Plan"]))
    return found


@pytest.fixture(scope="module")
def executed(postgres: Cluster) -> Iterator[tuple[list[Asked], str]]:
    """The statements of a whole life, and a store in which much has ended."""
    with listened() as asked, postgres.database(fresh=True) as url:
        asyncio.run(lived(url))
        postgres.admin(FILLED.format(count=ENDED, at=2 * START), database=name_of(url))
        postgres.admin("ANALYZE", database=name_of(url))
        plain = ("SELECT", "INSERT", "UPDATE", "DELETE", "WITH")
        yield sorted(one for one in asked if one[0].lstrip().startswith(plain)), url


def test_no_statement_walks_a_table_that_grows(executed: tuple[list[Asked], str]) -> None:
    asked, url = executed

    found = [(step, text) for text, plan in explained(url, asked) for step in walks(plan)]

    assert len(asked) > 40
    assert found == []


def test_the_test_can_fail(postgres: Cluster, executed: tuple[list[Asked], str]) -> None:
    asked, url = executed
    postgres.admin("DROP INDEX events_execution", database=name_of(url))

    assert {step for _, plan in explained(url, asked) for step in walks(plan)} & {"all of events_pkey", "all of events"}


def read_of_indexes(postgres: Cluster, database: str) -> dict[str, int]:
    """Entries that were read of each index, and rows of each table without one."""
    rows = postgres.admin(
        "SELECT indexrelname, idx_tup_read FROM pg_stat_user_indexes WHERE relname = ANY(%s) "
        "UNION ALL SELECT relname, seq_tup_read FROM pg_stat_user_tables WHERE relname = ANY(%s)",
        [list(LARGE), list(LARGE)],
        database,
    )
    return dict(rows)


async def hot(bed: Bed, number: int) -> None:
    """What goes on all day, each time with new names."""
    queue, work, outbox = bed.queue, bed.store.work, bed.store.outbox
    api, web = await bed.project("api"), await bed.project("web")
    parent = await bed.put(api, idempotency_key=f"k{number}", origin={"source": "github"})
    await queue.enqueue(task(api, "again", idempotency_key=f"k{number}"))
    await bed.put(web, after=(parent,), dedupe=f"d{number}")
    later = await bed.put(web, available_at=bed.clock.now + MINUTE)
    await queue.ready(node="n1")
    execution = await bed.take(api)
    await bed.journal.note(execution, phase="x", session_id=f"s{number}", answered="yes")
    await bed.journal.write(execution, [(OutputKind.TEXT, b"x")])
    await queue.heartbeat("n1", HOUR)
    await bed.store.history.used(f"s{number}")
    await queue.finish(done(execution, next_lease=HOUR))
    await queue.finish(again(await bed.take(web), at=bed.clock.now))
    await queue.finish(broken(await bed.take(web)))
    await queue.cancel(later, "me")
    await queue.retry(later)
    await queue.next_due()
    for effect in await outbox.take("n1", list(EffectKind), lease=HOUR):
        await outbox.delivered(effect, "n1")
    await bed.put(web, backend="x")
    (claim, *_) = await work.claim(f"w{number}")
    await work.heartbeat(claim.execution.id, f"w{number}", claim.fence)
    await work.complete(claim.execution.id, f"w{number}", claim.fence, Outcome(ending=Ending.DONE))
    await queue.cancel((await bed.store.history.executions(limit=5))[0][0].id, "me")
    await bed.store.history.why(parent, bed.clock.now)
    await bed.store.history.events(after=0, execution=parent)


FILLED = """
SET session_replication_role = replica;
INSERT INTO executions (id, project_id, project, project_path, task_id, title, body, source, kind, labels, priority,
  lane, status, available_at, max_attempts, backend, created_at, started_at, finished_at, attempt, fence,
  idempotency_key, plan, plan_run, dedupe, has_dependents)
  SELECT 1000000 + n, p.id, p.name, p.name, 'old-' || n, 't', '', 'api', 'code', '[]', 2, 0,
  (ARRAY['completed', 'failed', 'cancelled'])[1 + n % 3], 1, 3, 'agent', {at}, {at}, {at} + n, 1, 0, 'old-' || n,
  'old-' || n / 9, n / 9, 'old-' || n, 1 FROM generate_series(1, {count}) n, projects p WHERE p.id = 1 + n % 2;
INSERT INTO attempts (execution_id, number, fence, node, backend, started_at, finished_at, session_id)
  SELECT id, 1, id, 'n1', 'agent', {at}, {at}, 'old' || id FROM executions WHERE id > 1000000;
INSERT INTO events (at, type, execution_id, project_id, data)
  SELECT {at}, type, id, project_id, '{{}}' FROM executions,
  unnest(ARRAY['execution.queued', 'execution.started', 'execution.completed']) type WHERE id > 1000000;
INSERT INTO dependencies SELECT id, id - 1 FROM executions WHERE id > 1000001;
INSERT INTO output (execution_id, attempt, seq, at, kind, data) SELECT id, 1, 1, {at}, 'text', 'x' FROM executions
  WHERE id > 1000000;
INSERT INTO idempotency_keys SELECT project_id, 'key-' || id, id FROM executions WHERE id > 1000000;
INSERT INTO results SELECT project_id, dedupe, id, {at} FROM executions WHERE id > 1000000;
INSERT INTO artifacts SELECT id::text, 1, 'x', {at} FROM executions WHERE id > 1000000;
INSERT INTO artifact_uses SELECT id::text, id FROM executions WHERE id > 1000000;
INSERT INTO questions (execution_id, attempt, text, options, asked_at, answered_at)
  SELECT id, 1, '?', '[]', {at}, {at} FROM executions WHERE id > 1000000;
INSERT INTO outbox (lane, execution_id, project_id, fence, kind, key, payload, available_at, delivered_at, created_at)
  SELECT 'old-' || id, id, project_id, 1, 'tell', 'old-' || id, '{{}}', {at}, {at} + id, {at} FROM executions
  WHERE id > 1000000;
INSERT INTO inbox (source, delivery, digest, event, action, payload, received_at, available_at, handled_at)
  SELECT 'github', 'old-' || id, 'old-' || id, 'x', 'x', '{{}}', {at}, {at}, {at} + id FROM executions
  WHERE id > 1000000;
INSERT INTO refusals SELECT project_id, 'old-' || id, 'x', 'old-' || id, 'x', 'x', 'x', {at} FROM executions
  WHERE id > 1000000;
INSERT INTO pulls (id, project_id, execution_id, task_id, branch, repo, base, draft, number, head_sha, state,
  created_at, ended_at) SELECT id, project_id, id, task_id, 'old-' || id, 'x', 'x', 0, id, 'x', 'merged', {at}, {at}
  FROM executions WHERE id > 1000000;
INSERT INTO pull_executions SELECT id, id FROM pulls WHERE id > 1000000;
"""


async def grown(postgres: Cluster, ended: int) -> dict[str, int]:
    """What is read by connections that planned all of it when nothing had ended, once so much has."""
    with postgres.database(fresh=True) as url:
        async with open_store(url, clock=(clock := Clock())) as store:
            bed = Bed(store, clock)
            await bed.node("n1")
            await hot(bed, 0)
            postgres.admin(FILLED.format(count=ended, at=2 * START), database=name_of(url))
            postgres.admin("ANALYZE", database=name_of(url))  # as the server does within a minute
            postgres.admin("SELECT pg_stat_reset()", database=name_of(url))
            for number in range(1, 4):
                await hot(bed, number)
        return read_of_indexes(postgres, name_of(url))


async def test_what_has_ended_costs_nothing(postgres: Cluster) -> None:
    few, many = await grown(postgres, 1), await grown(postgres, ENDED)

    more = {name: many[name] - few[name] for name in few if many[name] - few[name] > ENDED // 20}
    assert more == {}
