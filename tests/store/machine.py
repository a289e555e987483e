"""Hypothesis walks over the real queue and its model side by side; after every step they must agree."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, ClassVar, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pilot.domain.agent import OutputKind
from pilot.domain.budget import Budget
from pilot.domain.errors import LeaseLost, NotFound, PilotError, UsageError
from pilot.domain.execution import Enqueued, Execution, Status
from pilot.domain.outcome import Ending, FailureClass, Outcome, Question, Usage
from pilot.domain.policy import settle
from pilot.domain.ports import Finish, PlanSteps
from pilot.domain.task import Task
from pilot.domain.work import Artifact
from pilot.store import Store, open_store
from tests.store.audit import Past, audit
from tests.store.bed import Clock, node
from tests.store.engines import Places, in_memory
from tests.store.model import SEEN, Model, Row
from tests.store.model_plans import Name, PlanRules, again

T = TypeVar("T")
Mutation = Callable[[Store], Awaitable[None]]

LIMITS = (1, 1, 2)
LEASE = 5_000
OWNERS = ("me", "breaker")
BUDGET = Budget(4.0, 14.0)
COSTS = (None, 0.5, 1.0, 3.0)
CHAINS: Sequence[tuple[str, ...]] = ((), (), ("b",), ("c",), ("b", "c"))
MADE = (None, None, None, "d1", "d2")
"""Dedupe keys."""
STEPS = st.lists(
    st.tuples(st.integers(0, 6), st.lists(st.integers(0, 5), max_size=3), st.sampled_from(MADE), st.booleans()),
    min_size=1,
    max_size=6,
)
"""Of a plan: name, names that it waits for, dedupe key, whether it is a note."""
PROJECTS = st.sampled_from(range(len(LIMITS)))
WHICH = st.integers(0, 40)
NODES = st.integers(0, 2)  # two that serve, one direct run
ENDS: Sequence[Ending | FailureClass] = (
    *[Ending.DONE] * 4,
    *(Ending.NO_CHANGE, Ending.CANCELLED, Ending.INTERRUPTED, Ending.QUESTION),
    *(FailureClass.AGENT, FailureClass.TEST, FailureClass.RATE_LIMIT, FailureClass.AUTH, FailureClass.NETWORK),
    *(FailureClass.REFUSAL, FailureClass.QUOTA, FailureClass.NO_CHANGE),
)
ENDINGS = st.sampled_from(ENDS)


class Queueing(RuleBasedStateMachine):
    """One walk: a store of its own, a clock that ticks when told to."""

    mutations: ClassVar[Sequence[Mutation]] = ()
    """Planted bugs, for the test that the walks would find them."""

    @staticmethod
    def places() -> AbstractContextManager[str]:
        """Where its store is made: what is tested here is not the disk."""
        return in_memory()

    def __init__(self) -> None:
        super().__init__()
        self.place = contextlib.ExitStack()
        self.url = self.place.enter_context(self.places())
        self.loop = asyncio.new_event_loop()
        self.clock = Clock()
        self.past = Past()
        self.claims: list[Execution] = []
        self.trail: list[tuple[str, dict[str, Any]]] = []
        self.boots = 0
        self.names: list[str] = []
        self.opened = contextlib.AsyncExitStack()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(coroutine)

    def raised(self, coroutine: Coroutine[Any, Any, object]) -> type[Exception] | None:
        """What it raised, and nothing else happened."""
        try:
            self.run(coroutine)
        except PilotError as error:
            return type(error)
        return None

    async def _open(self) -> None:
        self.store = await self.opened.enter_async_context(open_store(self.url, clock=self.clock))
        self.queue = self.store.queue
        for mutation in self.mutations:
            await mutation(self.store)

    @initialize(limited=st.sampled_from([False, False, True]))
    def start(self, limited: bool = False) -> None:
        async def begin() -> dict[int, int]:
            await self._open()
            projects = await self.queue.register(
                [(f"key {n}", f"p{n}", f"/p{n}", limit) for n, limit in enumerate(LIMITS)]
            )
            return {project.id: project.max_running for project in projects}

        limits = self.run(begin())
        self.projects = list(limits)
        self.model = Model(self.clock, limits)
        self.plans = PlanRules(self.model)
        if limited:
            self.model.per_execution, self.model.per_day = BUDGET.per_execution, BUDGET.per_day
        for number in range(3):
            self._boot(number)
        for project in range(len(LIMITS)):
            self.enqueue_many_at_once(project, [0, 1])

    def _boot(self, number: int) -> None:
        """A new process takes the place of that node."""
        self.boots += 1
        name = f"{'run' if number == 2 else 'serve'}-{number}.{self.boots}"
        self.names[number : number + 1] = [name]
        self.run(self.queue.start_node(node(name), 4 * LEASE))
        self.model.nodes[name] = self.clock() + 4 * LEASE
        self._serve(number)

    def _serve(self, number: int, a: str | None = None) -> None:
        """Of "a" the first two have an account each, of "c" all the same, of "b" none is known."""
        accounts = {"a": a or "xyx"[number], "b": "", "c": "z"}
        budget = Budget(self.model.per_execution, self.model.per_day)
        known = dict.fromkeys(self.projects, accounts)
        self.run(self.queue.serve(self.names[number], self.projects, known, budget))
        self.model.accounts[self.names[number]] = accounts

    def teardown(self) -> None:
        self.run(self.opened.aclose())
        self.loop.close()
        self.place.close()

    # What must be true after every step.

    @invariant()
    def nothing_is_broken(self) -> None:
        if not hasattr(self, "model"):
            return
        read = self.store.database.read
        rows = {row[0]: (*row[1:-1], maker(row[-1])) for row in self.run(read(SEEN))}
        assert rows == {id: row.seen for id, row in self.model.rows.items()}
        parks = self.run(read("SELECT backend, account, until, tries FROM parks"))
        assert {row[:2]: row[2:] for row in parks} == {k: (p.until, p.tries) for k, p in self.model.parks.items()}
        money = self.run(read("SELECT day, spent, reserved FROM spending"))
        booked = {day: (amounts[0] * 1e6, amounts[1] * 1e6) for day, amounts in self.model.money.items()}
        assert {d: row for d, *row in money if any(row)} == {d: [*row] for d, row in booked.items() if any(row)}
        assert self.run(audit(self.store.database, self.past)) == []

    # Enqueue.

    def _task(self, project: int, name: int, **more: Any) -> Task:
        return Task(project_id=self.projects[project], title="t", task_id=f"T{name}", **more)

    async def _enqueue(self, *tasks: Task) -> list[Any]:
        return await asyncio.gather(*map(self.queue.enqueue, tasks), return_exceptions=True)

    def _agree(self, task: Task, found: Any) -> None:
        expected = self.model.enqueue(task)
        if isinstance(expected, type):
            assert type(found) is expected
            return
        id, status, duplicate = expected
        assert isinstance(found, Enqueued), found
        assert (found.status, found.duplicate) == (status, duplicate)
        if id is None:
            self.model.add(found.id, task)
        else:
            assert found.id == id

    @rule(
        project=PROJECTS,
        name=st.integers(0, 4),
        priority=st.sampled_from([2, 2, 1, 0]),
        delay=st.sampled_from([0, 0, 0, 1000, 8000]),
        after=st.lists(WHICH, max_size=2),
        backend=st.sampled_from(["a", "a", "b"]),
        fallback=st.sampled_from(CHAINS),
        key=st.sampled_from([None, None, "k1", "k2"]),
        external=st.sampled_from([False] * 5 + [True]),
        dedupe=st.sampled_from(MADE),
        instant=st.sampled_from([False] * 7 + [True]),
    )
    def enqueue(
        self,
        project: int,
        name: int,
        priority: int,
        delay: int,
        after: list[int],
        backend: str,
        fallback: tuple[str, ...],
        key: str | None,
        external: bool,
        dedupe: str | None,
        instant: bool,
    ) -> None:
        parents = [id for number in after if (id := self.model.pick(number)) is not None]
        task = self._task(
            project, name, priority=priority, backend=backend, idempotency_key=key, after=tuple(parents),
            fallback=tuple(name for name in fallback if name != backend), external=external,
            dedupe=dedupe, instant=instant, available_at=self.clock() + delay if delay else None,
        )  # fmt: skip
        self._agree(task, self.run(self._enqueue(task))[0])

    @rule(project=PROJECTS, parents=st.integers(1, 2), name=st.integers(0, 4))
    def enqueue_behind_open_ones(self, project: int, parents: int, name: int) -> None:
        open_ = [id for id, row in self.model.rows.items() if row.open][-parents:]
        task = self._task(project, name, backend="b", after=tuple(open_))
        self._agree(task, self.run(self._enqueue(task))[0])

    # Plans.

    @rule(project=PROJECTS, run=st.sampled_from(["r1", "r2"]), steps=STEPS)
    def submit(self, project: int, run: str, steps: list[tuple[int, list[int], str | None, bool]]) -> None:
        named = {name: (deps, dedupe, instant) for name, deps, dedupe, instant in steps}
        places = {name: n for n, name in enumerate(named)}
        # A step waits for such with a smaller name, wherever they stand.
        after = {
            places[name]: tuple({places[d] for d in deps if d < name and d in places})
            for name, (deps, _, _) in named.items()
        }
        plan = self.compiled(project, run, named, after)
        tasks, after = plan.tasks, dict(plan.after)
        known = self.plans.submit(tasks, after)
        if isinstance(known, type):
            assert self.raised(self.queue.submit(plan)) is known
            return
        found = self.run(self.queue.submit(plan))
        assert [one.duplicate for one in found] == [n in known for n in range(len(tasks))]
        assert {n: found[n].id for n in known} == {n: row.id for n, row in known.items()}
        self.plans.submitted(tasks, after, known, [one.id for one in found])
        assert [one.status for one in found] == [self.model.rows[one.id].status for one in found]

    def compiled(
        self,
        project: int,
        run: str,
        named: Mapping[int, tuple[list[int], str | None, bool]],
        after: Mapping[int, tuple[int, ...]],
    ) -> PlanSteps:
        """As it goes into the queue."""
        tasks = tuple(
            replace(
                self._task(project, name, backend="a", dedupe=dedupe, instant=instant),
                task_id=f"p::{name}",
                plan="p",
                idempotency_key=f"{run}:{name}",
            )
            for name, (_, dedupe, instant) in named.items()
        )
        return PlanSteps(tasks=tasks, after=after)

    @rule(project=PROJECTS)
    def retry_plan(self, project: int) -> None:
        id = self.projects[project]
        runs = [row.plan_run for row in self.model.rows.values() if row.task.project_id == id and row.plan_run]
        if not runs:
            assert self.raised(self.queue.retry_plan(id, "p")) is NotFound
            return
        run = self.plans.run(max(runs))
        assert [e.id for e in self.run(self.queue.steps_of(id, "p"))] == [row.id for row in run.values()]
        self._retry(run, self.plans.targets(run), self.queue.retry_plan(id, "p"))

    def _retry(self, run: dict[Name, Row], targets: list[Name], asked: Coroutine[Any, Any, Any]) -> None:
        names = self.plans.retry(run, targets)
        if isinstance(names, type) or self.plans.open_elsewhere(names):
            assert self.raised(asked) is UsageError
            return
        found = self.run(asked)
        if not isinstance(found, list):  # of one step: the others are those that follow
            ids = sorted(id for (id,) in self.run(self.store.database.read("SELECT id FROM executions")))
            made = [id for id in ids if id not in self.model.rows]
        else:
            made = [one.id for one in found]
        assert len(made) == len(names)
        new = dict(zip(names, made, strict=True))
        assert isinstance(found, list) or new[targets[0]] == found.id
        self.plans.retried(run, targets, new)

    @rule(project=PROJECTS, names=st.lists(st.integers(0, 5), min_size=2, max_size=5))
    def enqueue_many_at_once(self, project: int, names: list[int]) -> None:
        tasks = [self._task(project, name, backend="a") for name in names]
        for task, found in zip(tasks, self.run(self._enqueue(*tasks)), strict=True):
            self._agree(task, found)

    @rule(project=PROJECTS, name=st.integers(5, 6))
    def run_directly(self, project: int, name: int) -> None:
        task = self._task(project, name, priority=-1, backend="a", reserved_for=self.names[2], max_attempts=1)
        self._agree(task, self.run(self._enqueue(task))[0])

    # Claim and end.

    def _same(self, found: Execution | None, expected: Row | None) -> None:
        assert (found and (found.id, found.fence)) == (expected and (expected.id, expected.fence))
        if found is not None:
            self.claims.append(found)

    def _claim(self, id: int, number: int) -> None:
        name, own = self.names[number], number == 2
        found = self.run(self.queue.claim(name, lease=LEASE, projects=(id,), own=own))
        self._same(found[0] if found else None, self.model.claim(id, name, LEASE, own))

    @rule(project=PROJECTS, number=NODES)
    def claim(self, project: int, number: int) -> None:
        self._claim(self.projects[project], number)

    @precondition(lambda self: self.model.ready(self.names[0]))
    @rule(number=WHICH)
    def claim_what_is_ready(self, number: int) -> None:
        ready = self.model.ready(self.names[0])
        project = ready[number % len(ready)]
        head = self.model.head(project, self.names[0])
        self._claim(project, 2 if head is not None and head.reserved else number % 2)

    @precondition(lambda self: self.model.ready(self.names[0]))
    @rule(number=WHICH, ending=ENDINGS)
    def run_what_is_ready(self, number: int, ending: Ending | FailureClass) -> None:
        before = len(self.claims)
        self.claim_what_is_ready(number)
        if len(self.claims) > before:
            self._end(self._finish(self.claims[-1], ending, number % 2, number % 3 == 0))

    @rule(number=st.integers(0, 1), most=st.integers(1, 4))
    def claim_anything(self, number: int, most: int) -> None:
        name = self.names[number]
        found = self.run(self.queue.claim(name, lease=LEASE, max=most))
        expected: list[Row] = []
        for project in self.model.ready(name):
            if len(expected) < most and (row := self.model.claim(project, name, LEASE, own=False)) is not None:
                expected.append(row)
        assert len(found) == len(expected)
        for execution, row in zip(found, expected, strict=True):
            self._same(execution, row)

    @rule(project=PROJECTS, count=st.integers(2, 4))
    def claim_at_once(self, project: int, count: int) -> None:
        id, name = self.projects[project], self.names[0]

        async def all_at_once() -> list[list[Execution]]:
            claim = self.queue.claim
            return await asyncio.gather(*(claim(name, lease=LEASE, projects=(id,)) for _ in range(count)))

        for some in self.run(all_at_once()):
            self._same(some[0] if some else None, self.model.claim(id, name, LEASE, own=False))

    @precondition(lambda self: self.model.per_day is None)  # by which the order would matter
    @rule(numbers=st.lists(st.integers(0, 1), min_size=3, max_size=3))
    def claim_everywhere_at_once(self, numbers: list[int]) -> None:
        asked = [(self.names[number], id) for number, id in zip(numbers, self.projects, strict=True)]

        async def all_at_once() -> list[list[Execution]]:
            claim = self.queue.claim
            return await asyncio.gather(*(claim(name, lease=LEASE, projects=(id,)) for name, id in asked))

        found = self.run(all_at_once())
        waiting = dict(zip(asked, found, strict=True))
        probing = True
        while probing:  # it closes a park, by which what stood in the way of another may be passed over
            probing = False
            for (name, id), some in tuple(waiting.items()):
                expected = self.model.claim(id, name, LEASE, own=False)
                if expected is not None:
                    self._same(some[0] if some else None, expected)
                    del waiting[name, id]
                    probing |= self.model.is_probe(expected)
        assert not any(waiting.values())

    @property
    def held(self) -> list[Execution]:
        return [claim for claim in self.claims if self.model.holds(claim)]

    @property
    def lost(self) -> list[Execution]:
        return [claim for claim in self.claims if not self.model.holds(claim)]

    def _finish(self, execution: Execution, ending: Ending | FailureClass, evidence: int, going_on: bool) -> Finish:
        cost = COSTS[(execution.fence + evidence) % len(COSTS)]
        if isinstance(ending, FailureClass):
            outcome = Outcome(
                ending=Ending.FAILED,
                failure=ending,
                detail="broke",
                excerpt="ab"[evidence],
                retry_at=self.clock() + 3000 if evidence == 0 else None,
                usage=Usage(cost_usd=cost),
            )
        else:
            question = Question("?") if ending is Ending.QUESTION else None
            outcome = Outcome(ending=ending, question=question, usage=Usage(cost_usd=cost))
        settlement = settle(execution, outcome, now=self.clock(), jitter=0.5)
        if (settlement.available_at or 0) > self.clock():
            settlement = replace(settlement, available_at=self.clock() + 2000)  # within reach of a walk
        files = (Artifact("f", b"%d" % (execution.fence % 3)),) if ending is Ending.DONE and evidence else ()
        return Finish(
            execution=execution, outcome=outcome, settlement=settlement, next_lease=LEASE if going_on else None,
            artifacts=files,
        )  # fmt: skip

    @precondition(lambda self: self.held)
    @rule(number=WHICH, ending=ENDINGS, evidence=st.integers(0, 1), going_on=st.booleans())
    def finish(self, number: int, ending: Ending | FailureClass, evidence: int, going_on: bool) -> None:
        self._end(self._finish(self.held[number % len(self.held)], ending, evidence, going_on))

    def _end(self, finish: Finish) -> None:
        execution = finish.execution
        assert execution.node is not None
        following = self.run(self.queue.finish(finish))
        self.model.end(self.model.rows[execution.id], finish.settlement, finish.outcome)
        if finish.next_lease is not None:
            own = execution.reserved_for is not None
            self._same(following, self.model.claim(execution.project_id, execution.node, LEASE, own))
        else:
            assert following is None

    @precondition(lambda self: self.held)
    @rule(number=WHICH, ending=ENDINGS)
    def finish_twice_at_once(self, number: int, ending: Ending | FailureClass) -> None:
        finish = self._finish(self.held[number % len(self.held)], ending, 0, False)

        async def twice() -> list[Any]:
            return await asyncio.gather(*(self.queue.finish(finish) for _ in range(2)), return_exceptions=True)

        assert [type(one) for one in self.run(twice())] == [type(None), LeaseLost]
        self.model.end(self.model.rows[finish.execution.id], finish.settlement, finish.outcome)

    @precondition(lambda self: self.lost)
    @rule(number=WHICH, ending=ENDINGS)
    def come_too_late(self, number: int, ending: Ending | FailureClass) -> None:
        execution = self.lost[number % len(self.lost)]
        assert self.raised(self.queue.finish(self._finish(execution, ending, 0, True))) is LeaseLost
        assert self.raised(self.store.journal.note(execution, branch="late")) is LeaseLost
        assert self.raised(self.store.journal.write(execution, [(OutputKind.TEXT, b"late")])) is LeaseLost

    @precondition(lambda self: self.held)
    @rule(number=WHICH)
    def speak(self, number: int) -> None:
        execution = self.held[number % len(self.held)]
        self.run(self.store.journal.note(execution, session_id="s", phase="p"))
        self.run(self.store.journal.write(execution, [(OutputKind.TEXT, b"x")] * 2))

    @precondition(lambda self: self.held)
    @rule(number=WHICH)
    def hear_from_the_model(self, number: int) -> None:
        execution = self.held[number % len(self.held)]
        self.run(self.store.journal.note(execution, answered="yes"))
        self.model.answered(self.model.rows[execution.id])

    # People.

    @rule(number=WHICH)
    def cancel(self, number: int) -> None:
        id = self.model.pick(number) or 10**6
        expected = self.model.cancel(id)
        if isinstance(expected, Status):
            assert self.run(self.queue.cancel(id, "me")) is expected
        else:
            assert self.raised(self.queue.cancel(id, "me")) is expected

    @precondition(lambda self: self.model.pick(0, [Status.NEEDS_HUMAN]))
    @rule(number=WHICH)
    def answer(self, number: int) -> None:
        id = self.model.pick(number, [Status.NEEDS_HUMAN])
        assert id is not None
        assert self.model.answer(id) is None
        self.run(self.queue.answer(id, "yes", "me"))

    @rule(number=WHICH)
    def answer_anything(self, number: int) -> None:
        id = self.model.pick(number) or 10**6
        assert self.raised(self.queue.answer(id, "yes", "me")) is self.model.answer(id)

    @precondition(lambda self: self.model.rows)
    @rule(number=WHICH)
    def retry(self, number: int) -> None:
        id = self.model.pick(number) or 0
        row = self.model.rows[id]
        if row.open:
            assert self.raised(self.queue.retry(id)) is UsageError
            return
        name = row.task.project_id, row.task.task_id
        open_ = self.plans.open_elsewhere([name])
        if row.plan_run is None:
            if not open_:
                self.model.forget(row)
            self._agree(again(row), self.run(self.queue.retry(id)))
            return
        run = self.plans.run(row.plan_run)
        if open_ and not isinstance(self.plans.retry(run, [name]), type):
            answer = self.run(self.queue.retry(id))
            assert (answer.id, answer.duplicate) == (open_[name].id, True)
            return
        self._retry(run, [name], self.queue.retry(id))

    @precondition(lambda self: len(self.model.pauses) < 2)
    @rule(project=st.integers(-1, len(LIMITS) - 1), owner=st.sampled_from(OWNERS))
    def pause(self, project: int, owner: str) -> None:
        id = 0 if project < 0 else self.projects[project]
        self.run(self.queue.pause(id, owner, "wait"))
        self.model.pauses.add((id, owner))

    @precondition(lambda self: self.model.pauses)
    @rule(number=WHICH, everybodys=st.booleans())
    def resume(self, number: int, everybodys: bool) -> None:
        pauses = sorted(self.model.pauses)
        id, owner = pauses[number % len(pauses)]
        lifted = {pause for pause in pauses if pause[0] == id and (everybodys or owner == pause[1])}
        assert set(self.run(self.queue.resume(id, None if everybodys else owner))) == {who for _, who in lifted}
        self.model.pauses -= lifted

    @precondition(lambda self: self.model.parks)
    @rule(number=WHICH)
    def unpark(self, number: int) -> None:
        backend = sorted(self.model.parks)[number % len(self.model.parks)][0]
        self.run(self.queue.unpark(backend, "me"))
        assert self.model.unpark(backend)
        assert self.raised(self.queue.unpark("nobody", "me")) is NotFound

    @rule(number=NODES, a=st.sampled_from(["x", "y", "new"]))
    def change_key(self, number: int, a: str) -> None:
        self._serve(number, a)

    # Time and nodes.

    @rule(ms=st.sampled_from([1, 1000, LEASE, LEASE + 1]))
    def tick(self, ms: int) -> None:
        self.clock.tick(ms)

    @precondition(lambda self: self.model.next_due())
    @rule(early=st.booleans())
    def tick_until_something_is_due(self, early: bool) -> None:
        self.clock.now = (self.model.next_due() or self.clock.now) - early

    @rule(number=NODES)
    def heartbeat(self, number: int) -> None:
        held = self.run(self.queue.heartbeat(self.names[number], LEASE))
        expected = self.model.beat(self.names[number], LEASE)
        assert sorted((h.id, h.fence, h.cancel_requested) for h in held) == sorted(expected)

    @rule(numbers=st.sets(NODES, max_size=2))
    def nodes_die(self, numbers: set[int]) -> None:
        dead = [self.names[number] for number in numbers]
        taken = self.run(self.queue.recover(dead, "killed"))
        assert sorted(e.id for e in taken) == sorted(self.model.recover(dead))
        for number in numbers:
            self._boot(number)

    @rule(number=NODES)
    def node_leaves(self, number: int) -> None:
        self.run(self.queue.leave(self.names[number]))
        self.model.recover([self.names[number]], left=True)
        self._boot(number)

    @rule(what=st.sampled_from(["look", "look", "expire", "prune", "reopen"]), age=st.sampled_from([0, 10_000]))
    def keep_house(self, what: str, age: int) -> None:
        match what:
            case "look":
                for name in self.names:
                    assert self.run(self.queue.ready(node=name)) == self.model.ready(name)
                assert self.run(self.queue.next_due()) == self.model.next_due()
            case "expire":
                assert self.run(self.queue.expire_parks()) == self.model.expire_parks()
            case "prune":
                before = self.clock() - age
                assert self.run(self.queue.prune(before)) == self.model.prune(before)
            case "reopen":
                self.run(self.opened.aclose())
                self.run(self._open())


def maker(artifacts: str | None) -> int | None:
    """The execution that an execution's first artifact is of."""
    found: int | None = json.loads(artifacts)[0].get("execution") if artifacts else None
    return found


def at(places: Places, machine: type[Queueing] = Queueing) -> type[Queueing]:
    """The same machine with its stores elsewhere."""
    return type(machine.__name__, (machine,), {"places": staticmethod(places)})
