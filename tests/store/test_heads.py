"""What the small statement is certain of is what the large one says, whatever is in the store."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from random import Random

import pytest

from pilot.store import Store, open_store
from pilot.store.database import Rows, Statement, Step
from pilot.store.heads import ClaimRequest, Head, Heads
from tests.store.bed import Bed, Clock
from tests.store.engines import Places
from tests.store.test_mutants import replace

NOW = 1_000_000
SCENES = {"sqlite": 1000, "postgres": 60}
TABLES = ("pulls", "parks", "pauses", "places", "executions", "node_accounts", "node_projects", "nodes", "projects")

IDENTITY = {
    "project": "'p'", "project_path": "'/p'", "title": "'t'", "body": "'b'", "source": "'api'", "labels": "'[]'",
    "max_attempts": 3, "created_at": 1, "available_at": 1,
}  # fmt: skip


def oddity(dice: Random, odd: str, plain: str) -> str:
    """One in six."""
    return odd if dice.random() < 1 / 6 else plain


def scene(dice: Random) -> tuple[list[str], list[ClaimRequest]]:
    """What is in the store, as statements, and what is asked of it: mostly ordinary things."""
    budget = oddity(dice, "1.0", "NULL")
    texts = [
        "INSERT INTO nodes (id, kind, host, boot_id, pid, start_ticks, version, max_running, state, choosy, "
        "started_at, seen_at, lease_until, place, per_execution_usd) "
        f"VALUES ('{name}', 'serve', 'h', 'b', 1, 1, '1', 4, 'up', 0, 1, 1, {NOW + 5}, '{place}', {budget})"
        for name, place in (("n1", "here"), ("n2", "there"))
    ]
    texts.append("INSERT INTO node_accounts (node_id, project_id, backend, account) VALUES ('n1', 1, 'a', 'x')")
    if dice.random() < 1 / 6:
        until = dice.choice(("NULL", NOW - 5, NOW + 5))
        account = dice.choice(("", "x"))
        texts.append(
            "INSERT INTO parks (backend, account, failure, reason, until, since, changed_at) "
            f"VALUES ('a', '{account}', 'quota', 'r', {until}, 1, 1)"
        )
    if dice.random() < 1 / 6:
        texts.append(
            f"INSERT INTO pauses (project_id, owner, reason, since) VALUES ({dice.choice((0, 1))}, 'me', '', 1)"
        )
    requests = []
    for project in (1, 2, 3):
        runs = dice.random() < 1 / 3
        most = oddity(dice, "2", "1")
        after, limit = oddity(dice, "'merged'", "'finish'"), oddity(dice, "1", "NULL")
        texts.append(
            "INSERT INTO projects (id, key, name, path, max_running, running, fence, next_after, max_open_prs) "
            f"VALUES ({project}, 'k{project}', 'p', '/p', {most}, {int(runs)}, {project * 10}, {after}, {limit})"
        )
        ids = [project * 100 + n for n in range(dice.randrange(4))]
        texts += [row(dice, id, project) for id in ids]
        if runs:
            texts.append(row(dice, project * 100 + 99, project, running=True))
        if ids and dice.random() < 1 / 3:
            texts.append(
                "INSERT INTO pulls (project_id, execution_id, task_id, branch, repo, base, draft, head_sha, state, "
                f"created_at) VALUES ({project}, {ids[0]}, 'T{ids[0]}', 'b', 'o/r', 'main', 0, 's', 'open', 1)"
            )
        requests.append(request(dice, project, ids, runs))
    return texts, requests


def row(dice: Random, id: int, project: int, *, running: bool = False) -> str:
    ready = f"'queued', {oddity(dice, '0', '1')}, NULL, NULL, NULL"
    values: dict[str, object] = {
        **IDENTITY, "id": id, "project_id": project, "task_id": f"'T{id}'",
        "kind": oddity(dice, "'test'", "'code'"), "priority": dice.choice((1, 2, 2)), "lane": dice.choice((0, 1)),
        "backend": dice.choice(("'a'", "'b'")), "attempt": dice.choice((0, 1)),
        "status, due, slot, node, lease_until": "'running', 0, 0, 'n1', 5" if running else ready,
        "reserved_for": "NULL" if running else oddity(dice, dice.choice(("'n1'", "'n2'")), "NULL"),
        "external": oddity(dice, "1", "0"), "place": dice.choice(("NULL", "NULL", "'here'", "'there'")),
        "fallback": dice.choice(("'[]'", """'["b"]'""")), "cost_usd": dice.choice(("NULL", "0.5", "1.5")),
        "model": oddity(dice, "'m'", "NULL"),
    }  # fmt: skip
    return f"INSERT INTO executions ({', '.join(values)}) VALUES ({', '.join(map(str, values.values()))})"


def request(dice: Random, project: int, ids: Sequence[int], runs: bool) -> ClaimRequest:
    sort = dice.randrange(12)
    return ClaimRequest(
        project,
        dice.choice(("n1", "n1", "n2", "w")),
        1000,
        own=sort == 0,
        external=sort in (1, 2),
        lanes=",1," if sort == 3 or (sort == 2 and dice.random() < 0.5) else None,
        kinds=",test," if sort == 4 else None,
        head=ids[0] if sort == 1 and ids else None,
        handed=runs and dice.random() < 1 / 2,
    )


async def differs(store: Store, heads: Heads, number: int) -> str:
    """How the two answers differ in this scene; "" if they don't."""
    texts, requests = scene(Random(number))

    def operation(items: Sequence[None]) -> Generator[Step, Rows, list[tuple[list[Head], list[Head]]]]:
        for table in TABLES:
            yield Statement(f"DELETE FROM {table}")
        for text in texts:
            yield Statement(text)
        found = yield from heads.of(requests, NOW)
        rows = yield from heads._asked(heads._any, requests, NOW)
        return [(found, sorted(map(Head._make, rows)))] * len(items)

    found, expected = await store.database.write(operation, None)
    same = found == expected
    return "" if same else f"scene {number}: {requests}\n{found}\n{expected}\n" + "\n".join(texts)


async def test_the_small_statement_says_what_the_large_one_says(places: Places, engine: str) -> None:
    with places() as url:
        async with open_store(url, clock=Clock(NOW)) as store:
            heads = store.queue.claiming._heads
            for number in range(SCENES[engine]):
                assert await differs(store, heads, number) == ""


async def test_the_small_statement_is_certain_of_what_is_ordinary(store: Bed) -> None:
    """Or it would be a detour."""
    api = await store.project()
    id = await store.put(api)
    heads = store.queue.claiming._heads
    heads._any = "SELECT 1 FROM nowhere"

    (execution,) = await store.queue.claim("n", lease=1000, projects=(api.id,))

    assert execution.id == id
    await store.put(api)  # and that there is no room for it
    assert await store.queue.claim("n", lease=1000, projects=(api.id,)) == []


async def test_they_come_in_the_order_of_the_requests(store: Bed) -> None:
    """Who is asked for first has the first of the day's money, whatever the planner makes of it."""
    projects = [await store.project(name) for name in ("api", "web")]
    for project in projects:
        await store.put(project)
    requests = [ClaimRequest(project.id, "n", 1000) for project in reversed(projects)]

    def operation(items: Sequence[None]) -> Generator[Step, Rows, list[list[Head]]]:
        yield Statement("ANALYZE")
        return [(yield from store.queue.claiming._heads.of(requests, NOW))] * len(items)

    heads = await store.database.write(operation, None)

    assert [head.project_id for head in heads] == [request.project_id for request in requests]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("ORDER BY e.priority, e.id LIMIT 1", "ORDER BY e.id LIMIT 1"),
        ("ORDER BY e.priority, e.id LIMIT 1", "ORDER BY e.priority, e.id DESC LIMIT 1"),
        ("p.running = r.handed AND", ""),
        ("p.next_after = 'finish' AND", ""),
        ("AND p.max_open_prs IS NULL", ""),
        ("AND r.own = 0", ""),
        ("r.external = 0 AND", ""),
        ("AND r.lanes IS NULL", ""),
        ("AND r.kinds IS NULL", ""),
        ("AND NOT EXISTS (SELECT 1 FROM parks)", ""),
        ("coalesce(q.head,", "coalesce(NULL,"),
        ("z.project_id IN (0, p.id)", "z.project_id < 0"),
        ("z.project_id IN (0, p.id)", "z.project_id = p.id"),
        ("e.reserved_for IS NULL AND", ""),
        ("OR e.place = q.place", "OR e.place <> ''"),
        ("< q.per_execution_usd", "<> q.per_execution_usd"),
        ("AND e.due = 1", ""),
        ("AND e.external = 0 ORDER", "ORDER"),
        ("p.fence + 1", "p.fence"),
        ("CASE WHEN e.external = 0 THEN e.place END", "e.place"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("engine", ["sqlite"])
async def test_the_scenes_show_each_difference(places: Places, old: str, new: str) -> None:
    """Planted bugs: a comparison that never fails proves nothing."""
    with places() as url:
        async with open_store(url, clock=Clock(NOW)) as store:
            heads = store.queue.claiming._heads
            replace(heads, "_plain", old, new)
            for number in range(SCENES["sqlite"]):
                if await differs(store, heads, number):
                    return
    pytest.fail("nobody saw it")
