"""Plans on their way into the queue: many executions that wait for each other, all of them or none.

All that one submission makes, and every retry of it, is one run of the plan: `plan_run`, the id of its first.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter

from pilot.domain.errors import NotFound, UsageError
from pilot.domain.execution import Enqueued, Execution, Status
from pilot.domain.ports import PlanSteps
from pilot.domain.task import Task
from pilot.domain.text import clean, one_line
from pilot.store.database import Database, Dialect, Rows, Statement, Step
from pilot.store.enqueue import Enqueue, begins_as, check, unable
from pilot.store.records import OPEN_STATUSES, Table, ids, ids_of
from pilot.store.rows import EXECUTION_SELECT, to_execution

NAMED = 20
"""Steps that one error names."""

_TASKS = Table(n="bigint", project_id="bigint", task_id="text")
NEWEST_RUN = "SELECT max(plan_run) FROM executions WHERE project_id = :project AND plan = :plan"


class Plans:
    """The operation, and the part of it that a retry needs, too."""

    def __init__(self, dialect: Dialect, enqueue: Enqueue) -> None:
        self._dialect = dialect
        self._enqueue = enqueue
        self._newest = f"""
            WITH RECURSIVE chain(root, id, task_id) AS (
              SELECT r.id, r.id, r.task_id FROM executions r WHERE r.id IN {ids_of(dialect)}
              UNION ALL SELECT chain.root, e.id, e.task_id FROM chain
                JOIN executions e ON e.parent = chain.id AND e.task_id = chain.task_id)
            SELECT newest.root, e.id, e.status, e.plan_run
            FROM (SELECT root, max(id) AS id FROM chain GROUP BY root) newest JOIN executions e ON e.id = newest.id"""
        self._open = f"""
            SELECT k.n, e.id, e.status FROM {_TASKS.of(dialect, "k")} JOIN executions e
              ON e.project_id = k.project_id AND e.task_id = k.task_id AND e.status IN {OPEN_STATUSES} ORDER BY k.n"""
        self._join = f"""
            UPDATE executions SET plan_run = :run, has_dependents =
              coalesce((SELECT 1 FROM dependencies d WHERE d.depends_on = executions.id LIMIT 1), 0)
            WHERE id IN {ids_of(dialect)}"""

    def submit(self, plans: Sequence[PlanSteps], now: int) -> Generator[Step, Rows, list[list[Enqueued]]]:
        """Answers in the order of the tasks. Raises, so that nothing is written of one that can't be."""
        answers = []
        for plan in plans:
            answers.append((yield from self._one(plan, now)))
        return answers

    def _one(self, plan: PlanSteps, now: int) -> Generator[Step, Rows, list[Enqueued]]:
        known, run = yield from self._standing(plan.tasks)
        fresh = {n: place for place, n in enumerate(n for n in range(len(plan.tasks)) if n not in known)}
        if not fresh:
            return [known[n] for n in range(len(plan.tasks))]
        tasks = [plan.tasks[n] for n in fresh]
        open_ = yield from self.open_ones(tasks)
        if open_:
            raise UsageError(_already_open(tasks, open_))
        inner: dict[int, list[int]] = {}
        outer: dict[int, list[int]] = {}
        for n, place in fresh.items():
            after = plan.after.get(n, ())
            inner[place] = [fresh[other] for other in after if other in fresh]
            outer[place] = [*plan.tasks[n].after, *(known[other].id for other in after if other in known)]
            for other in after:
                if other in known and known[other].status in (Status.FAILED, Status.CANCELLED):
                    raise UsageError(_can_not_wait(plan.tasks[n], plan.tasks[other], known[other]))
        made = yield from self.add(tasks, inner, outer, run, now)
        return [known[n] if n in known else made[fresh[n]] for n in range(len(plan.tasks))]

    def _standing(self, tasks: Sequence[Task]) -> Generator[Step, Rows, tuple[dict[int, Enqueued], int | None]]:
        """What is there under their keys, as its newest retry; and the run that it belongs to."""
        answers = yield from self._enqueue.known(tasks)
        first = {n: answer.id for n, answer in answers.items() if isinstance(answer, Enqueued)}
        if not first:
            return {}, None
        rows = yield Statement(self._newest, {"ids": ids(sorted(set(first.values())))})
        newest = {root: Enqueued(id, Status(status), duplicate=True) for root, id, status, _ in rows}
        run = max((run for *_, run in rows if run is not None), default=None)
        return {n: newest[id] for n, id in first.items()}, run

    def open_ones(self, tasks: Sequence[Task]) -> Generator[Step, Rows, dict[int, Enqueued]]:
        """By number, what is open under their task ids."""
        keys = _TASKS.rows((n, task.project_id, clean(task.task_id)) for n, task in enumerate(tasks))
        rows = yield Statement(self._open, {"items": keys})
        return {n: Enqueued(id, Status(status), duplicate=True) for n, id, status in rows}

    def add(
        self,
        tasks: Sequence[Task],
        inner: Mapping[int, Collection[int]],
        outer: Mapping[int, Collection[int]],
        run: int | None,
        now: int,
    ) -> Generator[Step, Rows, list[Enqueued]]:
        """Make them, none of which is open; by place, what each waits for among them (`inner`) and before (`outer`).

        Their own `after` does not count here. `run` None: a new one.
        """
        statuses = yield from self._enqueue.parents({id for ids_ in outer.values() for id in ids_})
        left: dict[int, int] = {}
        for n in range(len(tasks)):
            if (refusal := unable(outer.get(n, ()), statuses)) is not None:
                raise refusal
            before = sum(statuses[id] != "completed" for id in set(outer.get(n, ())))
            left[n] = len(set(inner.get(n, ()))) + before
        new = yield from self._enqueue.insert(list(enumerate(tasks)), left, now)
        for n, task in enumerate(tasks):
            if n not in new:
                raise NotFound(f"no project {task.project_id} in this store")
        created = {n: Enqueued(new[n], begins_as(task, left[n]), duplicate=False) for n, task in enumerate(tasks)}
        edges = {(id, new[m]) for n, id in new.items() for m in inner.get(n, ())}
        edges |= {(id, parent) for n, id in new.items() for parent in outer.get(n, ())}
        yield from self._enqueue.follow_up(tasks, created, edges, now)
        mine = ids(new.values())
        yield Statement(self._join, {"run": new[0] if run is None else run, "ids": mine})
        if not (yield from self._enqueue.let_go(tasks, created, now)):
            return [created[n] for n in range(len(tasks))]
        rows = yield Statement(f"SELECT id, status FROM executions WHERE id IN {ids_of(self._dialect)}", {"ids": mine})
        after: dict[int, str] = dict(rows)
        return [Enqueued(new[n], Status(after[new[n]]), duplicate=False) for n in range(len(tasks))]


def check_plan(plan: PlanSteps) -> None:
    """Raise `UsageError` for what can't be submitted, whatever the store holds."""
    seen: set[tuple[int, str]] = set()
    keys: set[tuple[int, str]] = set()
    for n, task in enumerate(plan.tasks):
        check(task)
        name, key = (task.project_id, clean(task.task_id)), (task.project_id, task.idempotency_key or "")
        if not task.idempotency_key:
            raise UsageError(f"step {_name(task)} has no idempotency key: the same plan again would be another")
        if name in seen or key in keys:
            raise UsageError(f"step {_name(task)} stands twice in the plan")
        if task.held is not None and plan.after.get(n):
            raise UsageError(f"step {_name(task)} is held for a person, so it can't wait for others as well")
        seen.add(name)
        keys.add(key)
    for n, after in plan.after.items():
        for other in (n, *after):
            if not 0 <= other < len(plan.tasks):
                raise UsageError(f"the plan has no step number {other}")
    try:
        TopologicalSorter(plan.after).prepare()
    except CycleError as error:
        cycle = " → ".join(_name(plan.tasks[n]) for n in error.args[1][: NAMED + 1])
        raise UsageError(f"these steps wait for each other: {cycle}") from None


def _name(task: Task) -> str:
    return one_line(task.task_id, 200)


def _already_open(tasks: Sequence[Task], open_: Mapping[int, Enqueued]) -> str:
    named = ", ".join(f"{_name(tasks[n])} ({one.id}, {one.status})" for n, one in list(open_.items())[:NAMED])
    more = f" and {len(open_) - NAMED} more" if len(open_) > NAMED else ""
    return (
        f"open already, from another submission: {named}{more}. Wait until they have ended, or cancel them: "
        f"`pilot cancel {' '.join(str(one.id) for one in list(open_.values())[:NAMED])}`"
    )


def _can_not_wait(task: Task, other: Task, known: Enqueued) -> str:
    return (
        f"step {_name(task)} waits for {_name(other)}, and that is {known.status} (execution {known.id}); "
        f"retry it first: `pilot retry {known.id}`"
    )


async def steps_of(database: Database, project_id: int, plan: str) -> list[Execution]:
    """The newest execution of each step of the newest run of a plan, in the order of the steps."""
    ((run,),) = await database.read(NEWEST_RUN, {"project": project_id, "plan": plan})
    if run is None:
        return []
    rows = await database.read(
        f"SELECT {EXECUTION_SELECT} FROM executions WHERE plan_run = :run ORDER BY id", {"run": run}
    )
    newest: dict[tuple[int, str], Execution] = {}
    for row in rows:
        execution = to_execution(row)
        newest[execution.project_id, execution.task_id] = execution  # in the place of the first
    return list(newest.values())
