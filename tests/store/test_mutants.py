"""Planted bugs: each is found by the random walks or the auditor. A test that can't fail proves nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence
from copy import copy
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from pilot.domain.errors import PilotError, StoreError
from pilot.domain.ports import Finish
from pilot.store import Store, open_store
from pilot.store.database import Rows, Statement, Step
from tests.store import test_artifacts, test_instant
from tests.store.bed import Bed, Clock
from tests.store.machine import Queueing
from tests.store.test_plan_walks import OFTEN, Planning
from tests.store.walk import walk

pytestmark = pytest.mark.mutants

WALKS, STEPS = 60, 60


def replace(owner: object, name: str, old: str, new: str) -> None:
    """Change the text of a statement; it must have been there."""
    sql = getattr(owner, name)
    if old not in sql:  # no AssertionError, which would pass for a bug that was found
        raise LookupError(f"{name} does not say {old!r} any more: plant this bug anew")
    setattr(owner, name, sql.replace(old, new))


def steps(store: Store) -> Mapping[str, Any]:
    """The parts of the queue that own statements."""
    queue = store.queue
    return {
        "claim": queue._claim_steps,
        "heads": queue._claim_steps._heads,
        "enqueue": queue._enqueue_steps,
        "finish": queue._finish_steps,
        "dependents": queue._finish_steps._dependents,
        "cancel": queue._cancel_steps,
        "nodes": queue._nodes,
        "parks": queue._parks,
        "spending": queue._claim_steps._spending,
        "instant": queue._finish_steps._dependents._instant,
        "results": queue._finish_steps._results,
        "plans": queue._plans,
        "retry": queue._retry_steps,
        "admin": queue._admin,
        "artifacts": queue._admin._artifacts,
    }


FIFO = "ORDER BY e.priority, e.id LIMIT 1"
BLOCKED = "AND executions.status || '' = 'blocked'"
# Of `_plain` alone: in test_heads.
IN_TEXT: Mapping[str, tuple[str, str, str, str]] = {
    "the last comes first": ("heads", "_any", FIFO, "ORDER BY e.priority, e.id DESC LIMIT 1"),
    "priority is ignored": ("heads", "_any", FIFO, "ORDER BY e.id LIMIT 1"),
    "parks are ignored": ("heads", "_any", "k.backend = e.backend", "k.backend = ''"),
    "parks have no end": ("heads", "_any", "k.until > :now", "1"),
    "parks are anybody's": ("heads", "_any", "AND k.account || '' IN", "AND '' IN"),
    "everybody is a probe": ("heads", "_any", "x.status = 'running' AND x.fence", "x.status = 'x' AND x.fence"),
    "who was a probe stays it": ("heads", "_any", "x.status = 'running' AND x.fence", "x.fence"),
    "nobody is a probe": ("parks", "_probe", "parks.backend = t.backend", "parks.backend = ''"),
    "one answer opens all": ("parks", "_end", "c.id = parks.probe_id AND c.fence = parks.probe_fence", "1"),
    "no answer opens any": ("parks", "_end", "c.fence = parks.probe_fence", "0"),
    "nobody stands in": (
        "heads",
        "_any",
        "OR EXISTS (SELECT 1 FROM (SELECT key",
        "OR 0 AND EXISTS (SELECT 1 FROM (SELECT key",
    ),
    "the last stands in first": ("heads", "_any", "ORDER BY f.n LIMIT 1", "ORDER BY f.n DESC LIMIT 1"),
    "what is left to others is taken": ("heads", "_any", " AND e.external = 0", ""),
    "the chain is forgotten": ("claim", "_reroute", "fallback = t.fallback", "fallback = executions.fallback"),
    "a day is never over": ("heads", "_any", "s.day = :now / 86400000", "s.day = (SELECT min(day) FROM spending)"),
    "nothing is set aside": ("spending", "_book", "spending.reserved + b.reserved", "spending.reserved"),
    "nothing is spent": ("spending", "_book", "spending.spent + b.spent", "spending.spent"),
    "a cancel is lost when the run goes on": ("finish", "_before", "e.cancel_requested", "0"),
    "a task may cost anything": ("finish", "_before", "n.per_execution_usd", "NULL"),
    "time is ignored": ("heads", "_any", "AND e.due = 1", ""),
    "pauses are ignored": ("heads", "_plain _any", "z.project_id IN (0, p.id)", "z.project_id < 0"),
    "a pause of all is ignored": ("heads", "_plain _any", "z.project_id IN (0, p.id)", "z.project_id = p.id"),
    "slots are not counted": ("heads", "_plain _any", "p.running - r.handed < p.max_running", "1"),
    "a slot that is handed on counts twice": ("claim", "_hold", "+ 1 - c.handed", "+ 1"),
    "the fence stands still": ("heads", "_any", "p.fence + 1", "p.fence"),
    "what is reserved is given to anybody": (
        *("heads", "_any"),
        *("e.reserved_for IS NULL AND h.own = 0", "h.own = 0"),
    ),
    "a claim is not an attempt": ("claim", "_take", "attempt = attempt + 1", "attempt = max(attempt, 1)"),
    "a finished run counts on": ("finish", "_free", "running - r.n", "running"),
    "an ended execution ends again": ("finish", "_end", "AND executions.status || '' = 'running'", ""),
    "a lost node counts as a failure": ("finish", "_end", "failures + f.counted", "failures + f.counted + f.lost"),
    "losses add up": ("finish", "_end", "losses + 1 ELSE 0", "losses + 1 ELSE losses"),
    "a requeue forgets its time": (
        "finish",
        "_end",
        "f.status = 'queued' AND coalesce(f.available_at, :now) <= :now",
        "f.status = 'queued'",
    ),
    "completion releases nobody": ("dependents", "_release", BLOCKED, "AND 0"),
    "one parent of two is enough": ("dependents", "_release", "WHEN deps_left - d.n <= 0", "WHEN deps_left > 0"),
    "failure ends nobody": ("dependents", "_cancel", BLOCKED, "AND 0"),
    "a cancel misses what is held": ("cancel", "_end", "'queued', 'needs_human'", "'queued'"),
    "an ended execution is cancelled": ("cancel", "_end", "'needs_human')", "'needs_human', 'completed', 'failed')"),
    "a dead node is left alone": ("nodes", "lost", "OR node IN (", "OR node || 'x' IN ("),
    "leases last for ever": ("nodes", "lost", "lease_until < :now", "lease_until < 0"),
    "a living lease is taken": ("nodes", "lost", "lease_until < :now", "lease_until < :now + 3000"),
    "orphans of direct runs stay": ("nodes", "_orphans", "n.lease_until >= :now", "1"),
}


# Found by walks over plans.
OF_PLANS: Mapping[str, tuple[str, str, str, str]] = {
    "a note waits for somebody": ("instant", "_candidates", "e.instant = 1 OR", "0 OR"),
    "what is known is made again": ("instant", "_candidates", "OR r.execution_id IS NOT NULL", ""),
    "what another project made is known": ("instant", "_candidates", "r.project_id = e.project_id AND", ""),
    "a result completes nobody in the queue": ("results", "_waiting", "e.status = 'queued'", "e.status = 'x'"),
    "a note is done for nobody": ("dependents", "_release", "executions.instant = 1 OR", "0 OR"),
    "nobody knows because of whom": ("dependents", "_cancel", "because = c.because", "because = NULL"),
    "a retry is of no run": ("plans", "_join", "plan_run = :run", "plan_run = NULL"),
    "a step does not know that others wait": ("plans", "_join", "(SELECT 1 FROM", "(SELECT 0 FROM"),
    "a submission does not see the retries": ("plans", "_newest", "e.parent = chain.id", "e.parent = -chain.id"),
    "what is open is submitted again": ("plans", "_open", "e.status IN", "e.status = 'x' AND e.status IN"),
    "a retry of what completed gets the old": ("retry", "_unknow", "key = :key", "key = ''"),
}
# Walks come to them too seldom: found by a test of theirs.
BY_NAME: Mapping[str, tuple[tuple[str, str, str, str], Callable[[Bed], Coroutine[Any, Any, None]]]] = {
    "the last result counts": (
        (
            *("results", "_add", "ON CONFLICT DO NOTHING"),
            "ON CONFLICT (project_id, key) DO UPDATE SET execution_id = excluded.execution_id",
        ),
        test_instant.test_of_two_results_the_first_stands,
    ),
    "a result goes with its history": (
        ("admin", "_hand_on", "c.status = 'completed'", "c.status = 'x'"),
        test_instant.test_pruned_results_are_handed_on_or_forgotten,
    ),
    "who points to a result has no part in its files": (
        ("instant", "_use", "u.execution_id = k.made_by", "u.execution_id = 0"),
        test_instant.test_pruned_results_are_handed_on_or_forgotten,
    ),
    "what somebody has is removed": (
        ("artifacts", "_forget", "AND NOT EXISTS", "AND 1 OR NOT EXISTS"),
        test_artifacts.test_what_nobody_has_any_more_is_removed_with_the_history,
    ),
    "what nobody has stays": (
        ("artifacts", "_forget", "AND NOT EXISTS", "AND 0 AND NOT EXISTS"),
        test_artifacts.test_what_nobody_has_any_more_is_removed_with_the_history,
    ),
}


def textual(store: Store, name: str) -> None:
    part, statement, old, new = {**IN_TEXT, **OF_PLANS}[name]
    for name in statement.split():
        replace(steps(store)[part], name, old, new)


async def sql(store: Store, text: str) -> None:
    def operation(items: Sequence[None]) -> Generator[Step, Rows, list[None]]:
        yield Statement(text)
        return [None] * len(items)

    await store.database.write(operation, None)


async def one_task_is_open_twice(store: Store) -> None:
    await sql(store, "DROP INDEX IF EXISTS executions_open_task")


async def a_key_of_an_ended_execution_is_forgotten(store: Store) -> None:
    enqueue = steps(store)["enqueue"]
    await sql(store, "DROP INDEX IF EXISTS executions_idempotency")
    for name in ("_by_key", "_standing"):
        replace(
            enqueue,
            name,
            "e.idempotency_key = k.idempotency_key",
            "e.idempotency_key = k.idempotency_key AND e.finished_at IS NULL",
        )


async def a_key_is_kept_only_by_whoever_made_the_execution(store: Store) -> None:
    replace(steps(store)["enqueue"], "_remember", "WHERE true", "WHERE false")


async def the_fence_is_not_checked(store: Store) -> None:
    finish = steps(store)["finish"]
    replace(finish, "_end", "AND executions.fence = f.fence", "")
    really = finish.end

    def end(finishes: Sequence[Finish], now: int, *, lost: bool, **more: Any) -> Generator[Step, Rows, set[int]]:
        rows = yield Statement("SELECT id, fence FROM executions WHERE status = 'running'")
        fences: dict[int, int] = dict(rows)
        now_held = [
            dataclasses.replace(f, execution=dataclasses.replace(f.execution, fence=fences.get(f.execution.id, 0)))
            for f in finishes
        ]
        ended: set[int] = yield from really(now_held, now, lost=lost, **more)
        return ended

    finish.end = end


async def a_new_park_takes_the_place_of_a_longer_one(store: Store) -> None:
    parks = steps(store)["parks"]
    really = parks._close

    def close(*given: Any) -> Generator[Step, Rows, None]:
        yield Statement("DELETE FROM parks")
        yield from really(*given)

    parks._close = close


async def an_unknown_cost_is_nothing(store: Store) -> None:
    spending = steps(store)["spending"]
    really = spending.settle

    def settle(attempts: Any, now: int) -> Generator[Step, Rows, None]:
        yield from really(((begun, reserved, cost or 0.0) for begun, reserved, cost in attempts), now)

    spending.settle = settle


async def two_of_one_group_are_probes(store: Store) -> None:
    claim = steps(store)["claim"]
    really = claim._pass

    def at_once(requests: Any, rows: Any, now: int) -> Generator[Step, Rows, Any]:
        taken, later = yield from really(requests, rows, now)
        while later:
            yield Statement("UPDATE parks SET probe_fence = -1")
            more, later = yield from really([r for r in requests if r.project_id in later], rows, now)
            taken.update(more)
        return taken, later

    claim._pass = at_once


async def a_requeue_tells_nobody(store: Store) -> None:
    finish = steps(store)["finish"]
    really = finish.end

    def end(finishes: Sequence[Finish], now: int, *, lost: bool, **more: Any) -> Generator[Step, Rows, set[int]]:
        ended: set[int] = yield from really(finishes, now, lost=lost, **more)
        yield Statement("DELETE FROM events WHERE type = 'execution.requeued'")
        return ended

    finish.end = end


async def output_of_anybody_is_taken(store: Store) -> None:
    replace(store.journal, "_standing", "AND e.fence = c.fence AND e.status = 'running'", "")


async def a_note_of_anybody_is_taken(store: Store) -> None:
    replace(store.journal, "_note", "AND executions.fence = n.fence AND executions.status = 'running'", "")


async def what_goes_back_is_done_though_it_is_known(store: Store) -> None:
    finish = steps(store)["finish"]
    really = finish._know

    def know(done: Sequence[Finish], now: int) -> Generator[Step, Rows, list[int]]:
        waiting = yield from really(done, now)
        return [id for id in waiting if id not in {f.execution.id for f in done}]

    finish._know = know


async def an_answer_starts_what_is_known(store: Store) -> None:
    def let_go(queued: Sequence[int], now: int) -> Generator[Step, Rows, frozenset[int]]:
        yield Statement("SELECT 1")
        return frozenset()

    store.queue._answer_steps._dependents = SimpleNamespace(let_go=let_go)  # type: ignore[assignment]


async def nothing_comes_with_a_retry(store: Store) -> None:
    retry = steps(store)["retry"]
    really = retry._read

    def read(number: int) -> Generator[Step, Rows, Any]:
        run = yield from really(number)
        for name, one in run.newest.items():
            run.newest[name] = dataclasses.replace(one, because=None)
        return run

    retry._read = read


async def a_retry_waits_for_nothing(store: Store) -> None:
    retry = steps(store)["retry"]
    really = retry._plans.add
    retry._plans = copy(retry._plans)

    def add(tasks: Any, inner: Any, outer: Any, run: Any, now: int) -> Generator[Step, Rows, Any]:
        return (yield from really(tasks, {}, outer, run, now))

    retry._plans.add = add


async def artifacts_of_any_end_are_kept(store: Store) -> None:
    finish = steps(store)["finish"]
    really = finish._heed

    def heed(finishes: Sequence[Finish]) -> Generator[Step, Rows, Sequence[Finish]]:
        heeded: Sequence[Finish] = yield from really(finishes)
        yield from finish._artifacts.keep(heeded, 0)
        return heeded

    finish._heed = heed


IN_CODE_BY_NAME: Sequence[tuple[Callable[[Store], Any], Callable[[Bed], Coroutine[Any, Any, None]]]] = (
    (what_goes_back_is_done_though_it_is_known, test_instant.test_a_lost_node_s_work_is_not_done_again_either),
    (an_answer_starts_what_is_known, test_instant.test_an_answer_to_what_is_known_by_now_completes_it),
    (artifacts_of_any_end_are_kept, test_artifacts.test_who_lost_the_claim_leaves_none),
)
IN_CODE_OF_PLANS = (
    nothing_comes_with_a_retry,
    a_retry_waits_for_nothing,
)
IN_CODE = (
    one_task_is_open_twice,
    a_key_of_an_ended_execution_is_forgotten,
    a_key_is_kept_only_by_whoever_made_the_execution,
    the_fence_is_not_checked,
    a_new_park_takes_the_place_of_a_longer_one,
    an_unknown_cost_is_nothing,
    two_of_one_group_are_probes,
    a_requeue_tells_nobody,
    output_of_anybody_is_taken,
    a_note_of_anybody_is_taken,
)


def walks(machine: type[Queueing], count: int, often: Mapping[str, int] | None = None) -> None:
    for number in range(count):
        walk(machine(), Random(number), STEPS, often)


def caught(mutation: Callable[[Store], Any], over: type[Queueing] = Queueing) -> None:
    class Mutant(over):  # type: ignore[misc, valid-type]
        mutations = (mutation,)

    with pytest.raises((AssertionError, StoreError)) as raised:
        walks(Mutant, WALKS, OFTEN if over is Planning else None)
    if isinstance(raised.value, StoreError):  # the schema itself refused: that is how it should be
        assert "constraint failed" in str(raised.value)


def test_without_a_bug_the_same_walks_find_nothing() -> None:
    walks(Queueing, 15)


@pytest.mark.parametrize("name", IN_TEXT)
def test_a_bug_in_a_statement_is_found(name: str) -> None:
    async def mutation(store: Store) -> None:
        textual(store, name)

    caught(mutation)


@pytest.mark.parametrize("mutation", IN_CODE, ids=lambda mutation: mutation.__name__.replace("_", " "))
def test_a_bug_in_the_code_is_found(mutation: Callable[[Store], Any]) -> None:
    caught(mutation)


async def found(tmp_path: Path, mutation: Callable[[Store], Any], test: Callable[[Bed], Any]) -> None:
    async with open_store(f"sqlite:///{tmp_path}/pilot.db", clock=(clock := Clock())) as store:
        await mutation(store)
        with pytest.raises((AssertionError, PilotError, pytest.fail.Exception)):
            await test(Bed(store, clock))


@pytest.mark.parametrize("name", BY_NAME)
async def test_a_rare_bug_in_a_statement_is_found_by_its_test(tmp_path: Path, name: str) -> None:
    async def mutation(store: Store) -> None:
        (part, statement, old, new), _ = BY_NAME[name]
        replace(steps(store)[part], statement, old, new)

    await found(tmp_path, mutation, BY_NAME[name][1])


@pytest.mark.parametrize(("mutation", "test"), IN_CODE_BY_NAME, ids=lambda one: one.__name__[:40])
async def test_a_rare_bug_in_the_code_is_found_by_its_test(
    tmp_path: Path, mutation: Callable[[Store], Any], test: Callable[[Bed], Any]
) -> None:
    await found(tmp_path, mutation, test)


@pytest.mark.parametrize("name", OF_PLANS)
def test_a_bug_in_a_statement_of_plans_is_found(name: str) -> None:
    async def mutation(store: Store) -> None:
        textual(store, name)

    caught(mutation, Planning)


@pytest.mark.parametrize("mutation", IN_CODE_OF_PLANS, ids=lambda mutation: mutation.__name__.replace("_", " "))
def test_a_bug_in_the_code_of_plans_is_found(mutation: Callable[[Store], Any]) -> None:
    caught(mutation, Planning)
