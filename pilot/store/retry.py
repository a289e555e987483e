"""Retries: a new execution of an ended one; of a plan's step also of all that was cancelled because of it."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pilot.domain.errors import NotFound, UsageError
from pilot.domain.execution import Enqueued, Execution, Status
from pilot.domain.task import DEFAULT_PRIORITY, DIRECT_PRIORITY, Kind, Task
from pilot.domain.text import one_line
from pilot.store.database import Dialect, Rows, Statement, Step
from pilot.store.enqueue import Enqueue
from pilot.store.plans import NAMED, NEWEST_RUN, Plans
from pilot.store.records import OPEN_STATUSES, ids, ids_of
from pilot.store.rows import EXECUTION_SELECT, to_execution

Name = tuple[int, str]
"""(project id, task id): a step, whichever execution of it."""

_IN_VAIN = (Status.FAILED, Status.CANCELLED)


@dataclass(slots=True)
class _Newest:
    """A step's newest execution. `because`: it was cancelled for that one's sake."""

    id: int
    status: Status
    because: int | None
    first: int


@dataclass(slots=True)
class _Run:
    """One run of a plan: its steps, and what each waits for, inside it (`after`) and outside (`outer`, by id)."""

    number: int
    newest: dict[Name, _Newest] = field(default_factory=dict)
    after: dict[Name, set[Name]] = field(default_factory=dict)
    outer: dict[Name, set[int]] = field(default_factory=dict)
    outside: Mapping[int, Status] = field(default_factory=dict)

    def in_vain(self, name: Name, chosen: Collection[Name]) -> list[int]:
        """The executions for which it would wait in vain."""
        inside = [self.newest[other] for other in self.after.get(name, ()) if other not in chosen]
        return [one.id for one in inside if one.status in _IN_VAIN] + [
            id for id in self.outer.get(name, ()) if self.outside[id] in _IN_VAIN
        ]

    def with_dependents(self, targets: Collection[Name]) -> set[Name]:
        """They, and what was cancelled because of them and can go on with them."""
        waiting: dict[Name, list[Name]] = {}
        for name, after in self.after.items():
            for other in after:
                waiting.setdefault(other, []).append(name)
        chosen, ahead = set(targets), list(targets)
        missing: dict[Name, int] = {}
        while ahead:
            done = ahead.pop()
            for name in waiting.get(done, ()):
                one = self.newest[name]
                if name in chosen or one.because is None or one.status is not Status.CANCELLED:
                    continue
                if name not in missing:
                    missing[name] = len(self.in_vain(name, ()))
                missing[name] -= self.newest[done].status in _IN_VAIN  # it can wait for that one again
                if not missing[name]:
                    chosen.add(name)
                    ahead.append(name)
        return chosen

    def root(self, id: int) -> int:
        """What to retry instead of this one, which ended in vain: what ended by itself."""
        names = {one.id: name for name, one in self.newest.items()}
        while id in names and self.newest[names[id]].because is not None:
            vain = self.in_vain(names[id], ())
            if not vain:
                break
            id = min(vain)
        return id


class Retry:
    """The operations."""

    def __init__(self, dialect: Dialect, enqueue: Enqueue, plans: Plans) -> None:
        self._dialect = dialect
        self._enqueue = enqueue
        self._plans = plans
        # Who wants again what is there already wants it made, not pointed to.
        self._unknow = f"""
            DELETE FROM results WHERE project_id = :project AND key = :key AND NOT EXISTS
              (SELECT 1 FROM executions e
               WHERE e.project_id = :project AND e.task_id = :task AND e.status IN {OPEN_STATUSES})"""

    def one(self, requests: Sequence[int], now: int) -> Generator[Step, Rows, list[Enqueued | Exception]]:
        """A new execution for each of these ids. Raises, so that nothing of it is written."""
        answers: list[Enqueued | Exception] = []
        for id in requests:
            answers.append((yield from self._one(id, now)))
        return answers

    def plan(self, requests: Sequence[tuple[int, str]], now: int) -> Generator[Step, Rows, list[list[Enqueued]]]:
        """Of the newest run of each (project id, plan) all that did not complete; what was made, as the steps stand."""
        answers = []
        for project, plan in requests:
            rows = yield Statement(NEWEST_RUN, {"project": project, "plan": plan})
            if rows[0][0] is None:
                raise NotFound(f"no plan {one_line(plan, 200)} was submitted to project {project}")
            run = yield from self._read(rows[0][0])
            targets = [name for name, one in run.newest.items() if one.status in _IN_VAIN and one.because is None]
            made = yield from self._again(run, targets, now, duplicate=False)
            answers.append(list(made.values()))
        return answers

    def _one(self, id: int, now: int) -> Generator[Step, Rows, Enqueued | Exception]:
        rows: Rows = []
        if 0 < id < 1 << 63:
            rows = yield Statement(
                f"SELECT executions.plan_run, {EXECUTION_SELECT} FROM executions WHERE id = :id", {"id": id}
            )
        if not rows:
            return NotFound(f"no execution {id}")
        number, old = rows[0][0], to_execution(rows[0][1:])
        if not old.status.final:
            return UsageError(f"execution {id} is {old.status}; only an ended one can be retried")
        if number is None:
            yield from self._forget([old])
            (answer,) = yield from self._enqueue([as_task(old)], now)
            return answer
        run = yield from self._read(number)
        name = old.project_id, old.task_id
        newest = run.newest[name]
        if not newest.status.final:
            return Enqueued(newest.id, newest.status, duplicate=True)
        return (yield from self._again(run, [name], now, duplicate=True))[name]

    def _read(self, number: int) -> Generator[Step, Rows, _Run]:
        run, this = _Run(number), {"run": number}
        rows = yield Statement(
            "SELECT id, project_id, task_id, status, because FROM executions WHERE plan_run = :run ORDER BY id", this
        )
        name_of: dict[int, Name] = {}
        for id, project, task_id, status, because in rows:
            name_of[id] = name = project, task_id
            first = run.newest[name].first if name in run.newest else id
            run.newest[name] = _Newest(id, Status(status), because, first)
        edges = yield Statement(
            "SELECT d.execution_id, d.depends_on FROM executions e JOIN dependencies d ON d.execution_id = e.id "
            "WHERE e.plan_run = :run",
            this,
        )
        for id, parent in edges:
            name = name_of[id]
            if run.newest[name].id != id:
                continue
            if parent in name_of:
                run.after.setdefault(name, set()).add(name_of[parent])
            else:
                run.outer.setdefault(name, set()).add(parent)
        others = {id for of in run.outer.values() for id in of}
        if others:
            rows = yield Statement(
                f"SELECT id, status FROM executions WHERE id IN {ids_of(self._dialect)}", {"ids": ids(others)}
            )
            run.outside = {id: Status(status) for id, status in rows}
        return run

    def _again(
        self, run: _Run, targets: Sequence[Name], now: int, *, duplicate: bool
    ) -> Generator[Step, Rows, dict[Name, Enqueued]]:
        """`duplicate`: an only target that another run has open stands for itself; else that is refused."""
        chosen = run.with_dependents(targets)
        for name in targets:
            if vain := run.in_vain(name, chosen):
                raise UsageError(
                    f"execution {run.newest[name].id} would wait for {vain[0]}, which has not completed; "
                    f"retry {run.root(vain[0])} instead: what was cancelled because of it goes on with it"
                )
        names = sorted(chosen, key=lambda name: run.newest[name].first)
        if not names:
            return {}
        rows = yield Statement(
            f"SELECT {EXECUTION_SELECT} FROM executions WHERE id IN {ids_of(self._dialect)}",
            {"ids": ids(run.newest[name].id for name in names)},
        )
        olds = {(old.project_id, old.task_id): old for old in map(to_execution, rows)}
        tasks = [as_task(olds[name]) for name in names]
        open_ = yield from self._plans.open_ones(tasks)
        if open_:
            if duplicate and names.index(targets[0]) in open_:
                return {targets[0]: open_[names.index(targets[0])]}
            raise UsageError(_open_elsewhere(tasks, open_))
        yield from self._forget(olds[name] for name in targets)
        place = {name: n for n, name in enumerate(names)}
        inner = {place[name]: [place[o] for o in run.after.get(name, ()) if o in place] for name in names}
        outer = {
            place[name]: [run.newest[o].id for o in run.after.get(name, ()) if o not in place]
            + list(run.outer.get(name, ()))
            for name in names
        }
        made = yield from self._plans.add(tasks, inner, outer, run.number, now)
        return dict(zip(names, made, strict=True))

    def _forget(self, olds: Iterable[Execution]) -> Generator[Step, Rows, None]:
        for old in olds:
            if old.dedupe and old.status is Status.COMPLETED:
                facts = {"project": old.project_id, "key": old.dedupe, "task": old.task_id}
                yield Statement(self._unknow, facts)


def as_task(old: Execution) -> Task:
    """The same task once more; it waits for nothing."""
    return Task(
        project_id=old.project_id, title=old.title, body=old.body, task_id=old.task_id, source=old.source,
        kind=Kind(old.kind), labels=old.labels, lane=old.lane,
        priority=DEFAULT_PRIORITY if old.priority == DIRECT_PRIORITY else old.priority,
        payload=old.payload, options=old.options, backend=old.backend, fallback=old.fallback, external=old.external,
        model=old.model, max_attempts=old.max_attempts, callback_url=old.callback_url, plan=old.plan,
        parent=old.id, origin=old.origin, dedupe=old.dedupe, instant=old.instant,
    )  # fmt: skip


def _open_elsewhere(tasks: Sequence[Task], open_: Mapping[int, Enqueued]) -> str:
    named = ", ".join(f"{one_line(tasks[n].task_id, 200)} ({one.id})" for n, one in list(open_.items())[:NAMED])
    more = f" and {len(open_) - NAMED} more" if len(open_) > NAMED else ""
    return f"of what would be retried with it, some is open already, by another run of the plan: {named}{more}"
