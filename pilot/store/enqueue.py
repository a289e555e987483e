"""Enqueue: one atomic insert that decides by itself what is new and what already stands."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from pilot.domain.errors import NotFound, UsageError
from pilot.domain.events import EventType
from pilot.domain.execution import Enqueued, Status
from pilot.domain.task import Task
from pilot.domain.text import clean
from pilot.store.database import Dialect, Notify, Rows, Statement, Step
from pilot.store.dependents import Dependents
from pilot.store.records import (
    OPEN_STATUSES,
    OWED,
    EventRow,
    Table,
    dumps,
    event,
    events_statement,
    ids,
    ids_of,
    short,
)

Answer = Enqueued | Exception
_LARGE = 1 << 62
FEW = 4
"""Projects with new work, at most, that nodes may claim from at once: in a crowd a look at the queue is cheaper."""

_PLAIN = Table(
    n="bigint", project_id="bigint", task_id="text", title="text", body="text", source="text", kind="text",
    labels="text", priority="bigint", lane="bigint", status="text", due="bigint", available_at="bigint",
    deps_left="bigint", reserved_for="text", max_attempts="bigint", backend="text", fallback="text",
    external="bigint", model="text", payload="text", options="text", plan="text", callback_url="text",
    parent="bigint", idempotency_key="text",
)  # fmt: skip
_MORE = dict.fromkeys(("origin", "reason", "session_id", "workspace", "feedback", "dedupe"), "text")
_MORE["instant"] = "bigint"
"""What few have; it costs those that have not a twentieth of their time."""
_WHOLE = Table(**_PLAIN.columns, **_MORE)
_KEYS = Table(n="bigint", project_id="bigint", task_id="text", idempotency_key="text")
_ANSWERED = Table(project_id="bigint", key="text", execution_id="bigint")
_HELD = Table(execution_id="bigint", text="text")
_DEPENDENCIES = Table(execution_id="bigint", depends_on="bigint")


class Enqueue:
    """The operation `Database.write` runs; its statements are built once."""

    def __init__(self, dialect: Dialect, dependents: Dependents) -> None:
        self._dialect = dialect
        self._dependents = dependents
        self._insert, self._insert_whole = _insert(dialect, _PLAIN), _insert(dialect, _WHOLE)
        by_key = (
            "SELECT k.n, e.id, e.status, 0 AS rank "
            f"FROM {_KEYS.of(dialect, 'k')} JOIN executions e "
            "ON e.project_id = k.project_id AND e.idempotency_key = k.idempotency_key "
            f"UNION ALL SELECT k.n, e.id, e.status, 0 AS rank FROM {_KEYS.of(dialect, 'k')} "
            "JOIN idempotency_keys i ON i.project_id = k.project_id AND i.key = k.idempotency_key "
            "JOIN executions e ON e.id = i.execution_id"
        )
        self._by_key = by_key
        self._standing = (
            f"{by_key} UNION ALL SELECT k.n, e.id, e.status, 1 AS rank FROM {_KEYS.of(dialect, 'k')} "
            "JOIN executions e ON e.project_id = k.project_id AND e.task_id = k.task_id "
            f"AND e.status IN {OPEN_STATUSES} ORDER BY rank"
        )
        # A request that is repeated gets its first answer, also when that was somebody else's execution.
        self._remember = (
            "INSERT INTO idempotency_keys (project_id, key, execution_id) "
            f"SELECT m.project_id, m.key, m.execution_id FROM {_ANSWERED.of(dialect, 'm')} WHERE true "
            "ON CONFLICT DO NOTHING"
        )

    def __call__(self, tasks: Sequence[Task], now: int) -> Generator[Step, Rows, list[Answer]]:
        """Answers in the order of the tasks."""
        answers: dict[int, Answer] = {}
        keyed = [n for n, task in enumerate(tasks) if task.idempotency_key]
        if keyed:
            answers.update((yield from self._look_up(self._by_key, tasks, keyed)))
        waiting = [n for n in range(len(tasks)) if n not in answers]
        statuses = yield from self.parents({parent for n in waiting for parent in tasks[n].after})
        for n in waiting:
            if (refusal := unable(tasks[n].after, statuses)) is not None:
                answers[n] = refusal
        fresh = [n for n in waiting if n not in answers]
        created: dict[int, Enqueued] = {}
        if fresh:
            left = {n: _left(tasks[n], statuses) for n in fresh}
            new = yield from self.insert([(n, tasks[n]) for n in fresh], left, now)
            created = {n: Enqueued(id, begins_as(tasks[n], left[n]), duplicate=False) for n, id in new.items()}
            others = [n for n in fresh if n not in created]
            if others:
                answers.update((yield from self._look_up(self._standing, tasks, others)))
                yield from self._keep_keys(tasks, others, answers)
            for n in others:
                answers.setdefault(n, NotFound(f"no project {tasks[n].project_id} in this store"))
        if created:
            edges = {(created[n].id, parent) for n in created for parent in tasks[n].after}
            yield from self.follow_up(tasks, created, edges, now)
            completed = yield from self.let_go(tasks, created, now)
            for n, one in created.items():
                answers[n] = replace(one, status=Status.COMPLETED) if one.id in completed else one
        return [answers[n] for n in range(len(tasks))]

    def insert(
        self, tasks: Sequence[tuple[int, Task]], left: Mapping[int, int], now: int
    ) -> Generator[Step, Rows, dict[int, int]]:
        """Those that can be, in their order, by number: their ids. `left`: how many each waits for."""
        rows = [_row(n, task, left[n], now) for n, task in tasks]
        more = [_more(task) for _, task in tasks]
        if any(map(any, more)):
            whole = ([*row, *rest] for row, rest in zip(rows, more, strict=True))
            new = yield Statement(self._insert_whole, {"now": now, "items": _WHOLE.rows(whole)})
        else:
            new = yield Statement(self._insert, {"now": now, "items": _PLAIN.rows(rows)})
        by_task = {(project, task_id): id for id, project, task_id in new}
        found = ((n, by_task.pop((task.project_id, clean(task.task_id)), None)) for n, task in tasks)
        return {n: id for n, id in found if id is not None}

    def let_go(
        self, tasks: Sequence[Task], created: Mapping[int, Enqueued], now: int
    ) -> Generator[Step, Rows, frozenset[int]]:
        """Complete what nobody has to do; the ids of those of them that began as queued."""
        by_itself = [
            new.id
            for n, new in created.items()
            if new.status is Status.QUEUED and (tasks[n].instant or tasks[n].dedupe)
        ]
        if not by_itself:
            return frozenset()
        return (yield from self._dependents.let_go(by_itself, now))

    def known(self, tasks: Sequence[Task]) -> Generator[Step, Rows, dict[int, Answer]]:
        """By number, what their idempotency keys stand for already."""
        return (yield from self._look_up(self._by_key, tasks, range(len(tasks))))

    def standing(self, task: Task) -> Generator[Step, Rows, Answer | None]:
        """What its idempotency key stands for already; None: nothing."""
        if not task.idempotency_key:
            return None
        return (yield from self._look_up(self._by_key, [task], [0])).get(0)

    def _look_up(
        self, sql: str, tasks: Sequence[Task], which: Sequence[int]
    ) -> Generator[Step, Rows, dict[int, Answer]]:
        keys = ((n, tasks[n].project_id, clean(tasks[n].task_id), tasks[n].idempotency_key) for n in which)
        rows = yield Statement(sql, {"items": _KEYS.rows(keys)})
        found: dict[int, Answer] = {}
        for n, id, status, *_ in rows:
            found.setdefault(n, Enqueued(id, Status(status), duplicate=True))
        return found

    def _keep_keys(
        self, tasks: Sequence[Task], which: Sequence[int], answers: dict[int, Answer]
    ) -> Generator[Step, Rows, None]:
        named = [
            (tasks[n].project_id, tasks[n].idempotency_key, answer.id)
            for n in which
            if tasks[n].idempotency_key and isinstance(answer := answers.get(n), Enqueued)
        ]
        if named:
            yield Statement(self._remember, {"items": _ANSWERED.rows(named)})

    def parents(self, wanted: Collection[int]) -> Generator[Step, Rows, dict[int, str]]:
        """How these stand, which others are to wait for, and know it from now on."""
        if not wanted:
            return {}
        parents = {"ids": ids(sorted(wanted))}
        # Only of what is open: an ended row is never touched again. The second statement sees those, too.
        yield Statement(
            f"UPDATE executions SET has_dependents = 1 WHERE id IN {ids_of(self._dialect)} "
            f"AND status IN {OPEN_STATUSES}",
            parents,
        )
        rows = yield Statement(f"SELECT id, status FROM executions WHERE id IN {ids_of(self._dialect)}", parents)
        return {id: str(status) for id, status in rows}

    def follow_up(
        self, tasks: Sequence[Task], created: Mapping[int, Enqueued], edges: Iterable[tuple[int, int]], now: int
    ) -> Generator[Step, Rows, None]:
        """What goes with new rows; `edges`: (id, id that it waits for)."""
        edges = sorted(edges)
        if edges:
            yield Statement(
                "INSERT INTO dependencies (execution_id, depends_on) "
                f"SELECT d.execution_id, d.depends_on FROM {_DEPENDENCIES.of(self._dialect, 'd')}",
                {"items": _DEPENDENCIES.rows(edges)},
            )
        held = [(new.id, tasks[n].held) for n, new in created.items() if new.status is Status.NEEDS_HUMAN]
        if held:
            yield Statement(
                "INSERT INTO questions (execution_id, attempt, text, options, asked_at) "
                f"SELECT h.execution_id, 0, h.text, '[]', :now FROM {_HELD.of(self._dialect, 'h')}",
                {"now": now, "items": _HELD.rows((id, clean(text or "")) for id, text in held)},
            )
        yield events_statement(
            self._dialect, now, [row for n, new in created.items() for row in _events(tasks[n], new)]
        )
        yield Notify(_news([tasks[n] for n, new in created.items() if new.status is Status.QUEUED], now))
        if held or any(tasks[n].origin is not None for n in created):
            yield OWED


def _news(queued: Sequence[Task], now: int) -> set[str]:
    # What is instant is done in this transaction.
    given = (task for task in queued if not task.external and not task.instant)
    runnable = {task.project_id for task in given if (task.available_at or 0) <= now}
    return {str(task.project_id) for task in queued} | {f"+{id}" for id in runnable if len(runnable) <= FEW}


def _insert(dialect: Dialect, new: Table) -> str:
    columns = [column for column in new.columns if column not in ("n", "project_id", "available_at")]
    return (
        # Where that lies which it follows: its branch, and the session to go on in.
        "INSERT INTO executions (project_id, project, project_path, created_at, place, available_at, "
        f"{', '.join(columns)}) "
        "SELECT p.id, p.name, p.path, :now, (SELECT q.place FROM executions q WHERE q.id = n.parent), "
        "coalesce(n.available_at, :now), "
        f"{', '.join(f'n.{column}' for column in columns)} "
        f"FROM {new.of(dialect, 'n')} JOIN projects p ON p.id = n.project_id ORDER BY n.n "
        "ON CONFLICT DO NOTHING RETURNING executions.id, executions.project_id, executions.task_id"
    )


def unable(after: Iterable[int], statuses: Mapping[int, str]) -> UsageError | None:
    """Why nothing can wait for these; None: it can."""
    for parent in after:
        status = statuses.get(parent)
        if status is None:
            return UsageError(f"can't run after execution {parent}: there is none")
        if status in ("failed", "cancelled"):
            return UsageError(f"can't run after execution {parent}: it is {status}; retry it first")
    return None


def _left(task: Task, statuses: Mapping[int, str]) -> int:
    return sum(statuses[parent] != "completed" for parent in set(task.after))


def begins_as(task: Task, left: int) -> Status:
    """The first state of what waits for so many."""
    if task.held is not None:
        return Status.NEEDS_HUMAN
    return Status.BLOCKED if left else Status.QUEUED


def _events(task: Task, new: Enqueued) -> Iterator[EventRow]:
    facts = {"task_id": clean(task.task_id), "source": task.source, "backend": task.backend}
    yield event(EventType.QUEUED, new.id, task.project_id, status=new.status, **facts)
    if new.status is Status.NEEDS_HUMAN:
        yield event(EventType.ASKED, new.id, task.project_id, reason=short(task.held), question=short(task.held))


def check(task: Task) -> None:
    """Raise `UsageError` for what no row can hold."""
    if task.held is not None and not task.held.strip():
        raise UsageError("a task that is held needs a reason")
    if task.held is not None and task.after:
        raise UsageError("a task that is held for a person can't wait for others as well")
    if not task.title.strip():
        raise UsageError("a task needs a title")
    if not task.task_id.strip():
        raise UsageError("a task needs a task_id")
    numbers = {"priority": task.priority, "lane": task.lane, "max_attempts": task.max_attempts}
    for name, number in (numbers | {"available_at": task.available_at or 0}).items():
        if not -_LARGE < number < _LARGE:
            raise UsageError(f"{name} {number} is out of range")


def _row(n: int, task: Task, left: int, now: int) -> list[object]:
    status = begins_as(task, left)
    due = status is Status.QUEUED and (task.available_at is None or task.available_at <= now)
    return [
        n, task.project_id, clean(task.task_id), clean(task.title), clean(task.body), clean(task.source),
        task.kind, dumps([clean(label) for label in task.labels]), task.priority, task.lane,
        status, int(due), task.available_at, left,
        task.reserved_for, task.max_attempts, task.backend, dumps(list(task.fallback)), int(task.external), task.model,
        None if task.payload is None else _json("payload", task.payload), _json("options", dict(task.options)),
        task.plan, task.callback_url, task.parent, task.idempotency_key or None,
    ]  # fmt: skip


def _more(task: Task) -> tuple[str | int | None, ...]:
    return (
        None if task.origin is None else _json("origin", dict(task.origin)), short(task.held), task.session_id,
        task.workspace, None if task.feedback is None else clean(task.feedback),
        clean(task.dedupe) if task.dedupe else None, int(task.instant),
    )  # fmt: skip


def _json(name: str, value: object) -> str:
    try:
        return dumps(value)
    except (ValueError, TypeError, RecursionError) as error:
        raise UsageError(f"the {name} can't be kept as JSON: {error}") from error
