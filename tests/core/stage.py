"""What the tests of the core stand on: one real database, several nodes, runners that do as they are told.

The clock stands still until a test moves it, so that nothing expires by the slowness of a machine; the event loop's
timers are real. Whoever uses the stage has its event log audited when the test is over.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pilot.dispatch.dispatcher import Dispatcher, Limits
from pilot.domain.execution import FINAL, Execution, Status
from pilot.domain.outcome import Ending, Outcome
from pilot.domain.ports import Finish, Held, Node, NodeKind
from pilot.domain.task import Project, Task
from pilot.store import Store
from pilot.store.queue import SqlQueue

NOW = 1_800_000_000_000
SECOND = 1000
MINUTE = 60 * SECOND
DEADLINE = 10.0
"""Seconds until a condition that never came true fails its test."""

QUICK = Limits(poll_interval=0.05, drain_timeout=5.0)
Act = Callable[[Execution], Awaitable[Outcome]]


class Clock:
    """UTC ms that pass only when told to."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> int:
        return self.now

    def advance(self, ms: int) -> None:
        self.now += ms


async def until(condition: Callable[[], Any], what: str = "") -> None:
    """Wait for the condition; no longer than `DEADLINE`."""
    loop = asyncio.get_running_loop()
    end = loop.time() + DEADLINE
    while not condition():
        if loop.time() > end:
            raise AssertionError(f"never came true: {what or condition}")
        await asyncio.sleep(0.005)


def returns(outcome: Outcome) -> Act:
    """An attempt that ends with this at once."""

    async def act(_: Execution) -> Outcome:
        return outcome

    return act


def raises(error: BaseException) -> Act:
    """An attempt that breaks."""

    async def act(_: Execution) -> Outcome:
        raise error

    return act


def in_turn(*acts: Act) -> Act:
    """One after the other, attempt by attempt; the last one stays."""
    left = list(acts)

    async def act(execution: Execution) -> Outcome:
        return await (left.pop(0) if len(left) > 1 else left[0])(execution)

    return act


DONE = returns(Outcome(ending=Ending.DONE))


class Work:
    """An attempt that goes on until it is let go, or cancelled; it knows how often it was."""

    def __init__(self, outcome: Outcome | None = None) -> None:
        self.outcome = outcome or Outcome(ending=Ending.DONE)
        self.begun = asyncio.Event()
        self.go = asyncio.Event()
        self.cancels = 0

    async def __call__(self, _: Execution) -> Outcome:
        self.begun.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancels += 1
            raise
        return self.outcome


class Stubborn(Work):
    """One that takes its time to end: `ignores` cancellations are not heeded at all."""

    def __init__(self, outcome: Outcome | None = None, ignores: int = 1) -> None:
        super().__init__(outcome)
        self.ignores = ignores

    async def __call__(self, execution: Execution) -> Outcome:
        while True:
            try:
                return await super().__call__(execution)
            except asyncio.CancelledError:
                if self.cancels > self.ignores:
                    raise


@dataclass(slots=True)
class Span:
    """One attempt as its runner saw it; `began` and `ended` count over the whole test."""

    execution: Execution
    began: int
    ended: int | None = None


@dataclass(slots=True)
class Script:
    """The runner of every node: what a task does is looked up by its task id."""

    acts: dict[str, Act] = field(default_factory=dict)
    default: Act = DONE
    spans: list[Span] = field(default_factory=list)
    tick: itertools.count[int] = field(default_factory=itertools.count)

    async def __call__(self, execution: Execution) -> Outcome:
        span = Span(execution, next(self.tick))
        self.spans.append(span)
        try:
            return await self.acts.get(execution.task_id, self.default)(execution)
        finally:
            span.ended = next(self.tick)

    @property
    def order(self) -> list[str]:
        """Task ids as they were started."""
        return [span.execution.task_id for span in self.spans]

    @property
    def running(self) -> list[str]:
        return [span.execution.task_id for span in self.spans if span.ended is None]

    def most_at_once(self, project: str | None = None) -> int:
        """How many attempts (of the project) overlapped at the worst moment."""
        spans = [s for s in self.spans if project in (None, s.execution.project)]
        moves = sorted(
            [(s.began, 1) for s in spans] + [(s.ended, -1) for s in spans if s.ended is not None],
        )
        return max(itertools.accumulate(step for _, step in moves), default=0)


class Through:
    """A queue that is the real one, but for what a subclass changes: a failing disk, a slow lock, a bug."""

    def __init__(self, queue: SqlQueue) -> None:
        self._queue = queue
        self.calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._queue, name)

    async def claim(self, node: str, **how: Any) -> list[Execution]:
        self.calls["claim"] += 1
        return await self._queue.claim(node, **how)

    async def finish(self, finish: Finish) -> Execution | None:
        self.calls["finish"] += 1
        return await self._queue.finish(finish)

    async def heartbeat(self, node: str, lease: int) -> list[Held]:
        self.calls["heartbeat"] += 1
        return await self._queue.heartbeat(node, lease)

    async def look(self, among: Collection[int], node: str) -> tuple[list[int], int | None]:
        self.calls["look"] += 1
        return await self._queue.look(among, node)


class Deaf(Through):
    """Every signal is lost."""

    def listen(self, _listener: Callable[[Collection[str]], None]) -> Callable[[], None]:
        return lambda: None


class Stage:
    """A store, its clock and its script; makes projects, tasks and nodes."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self.store = store
        self.queue = store.queue
        self.clock = clock
        self.script = Script()
        self.projects: list[Project] = []
        self._numbers = itertools.count(1)

    async def project(self, name: str, max_running: int = 1) -> Project:
        (project,) = await self.queue.register([(f"here:/src/{name}", name, f"/src/{name}", max_running)])
        self.projects.append(project)
        return project

    async def task(self, project: Project, task_id: str, **values: Any) -> int:
        """Enqueue one; its id."""
        task = Task(project_id=project.id, task_id=task_id, title=f"Do {task_id}", **{"backend": "claude", **values})
        return (await self.queue.enqueue(task)).id

    def node(self, kind: NodeKind = NodeKind.SERVE, *, host: str = "here", pid: int | None = None) -> Node:
        number = next(self._numbers)
        return Node(f"node-{number}", kind, host, "boot", pid or 1000 + number, number, "0")

    def dispatcher(self, *, queue: Any = None, node: Node | None = None, **values: Any) -> Dispatcher:
        """A node of its own on the stage's database; by default it serves every project made so far."""
        given: dict[str, Any] = {
            "projects": tuple(self.projects), "clock": self.clock, "limits": QUICK, "jitter": lambda: 0.0,
        } | values  # fmt: skip
        runner = given.pop("runner", self.script)
        return Dispatcher(queue or self.queue, runner, node=node or self.node(), **given)

    async def row(self, id: int) -> Execution:
        return await self.queue.get(id)

    async def statuses(self) -> dict[str, str]:
        return dict(await self.store.database.read("SELECT task_id, status FROM executions ORDER BY id"))

    async def reach(self, status: Status, *ids: int) -> list[Execution]:
        """Wait until each of these has the status; the rows."""
        loop = asyncio.get_running_loop()
        end = loop.time() + DEADLINE
        while True:
            rows = [await self.row(id) for id in ids]
            if all(row.status is status for row in rows):
                return rows
            if loop.time() > end:
                raise AssertionError(f"never {status}: {[(row.task_id, str(row.status), row.reason) for row in rows]}")
            await asyncio.sleep(0.005)

    async def claimed(self, project: Project, node: Node, lease: int = MINUTE) -> Execution:
        """What a process did that died afterwards: its row runs, and nobody is there."""
        (execution,) = await self.queue.claim(node.id, lease=lease, projects=(project.id,))
        return execution

    async def events(self, id: int | None = None) -> list[tuple[str, dict[str, Any]]]:
        """(type, data), in order."""
        rows = await self.store.database.read(
            "SELECT type, data FROM events WHERE :id IS NULL OR execution_id = :id ORDER BY id", {"id": id}
        )
        return [(type, json.loads(data)) for type, data in rows]

    async def parks(self) -> dict[str, int | None]:
        return dict(await self.store.database.read("SELECT backend, until FROM parks"))


_ENDS = {
    "execution.requeued": "queued",
    "execution.asked": "needs_human",
    "execution.completed": "completed",
    "execution.failed": "failed",
    "execution.cancelled": "cancelled",
}


async def audit(store: Store) -> list[str]:
    """What in the event log breaks a promise: two in one slot, two ends, a fence that fell, a row that lies."""
    most: dict[int, int] = dict(await store.database.read("SELECT id, max_running FROM projects"))
    rows: dict[int, str] = dict(await store.database.read("SELECT id, status FROM executions"))
    counts = await store.database.read(
        "SELECT p.id, p.running, (SELECT count(*) FROM executions e WHERE e.project_id = p.id "
        "AND e.status = 'running') FROM projects p"
    )
    log = await store.database.read("SELECT type, execution_id, project_id, data FROM events ORDER BY id")
    return [
        *(f"project {id} says {says} running, has {has}" for id, says, has in counts if says != has),
        *_replay(log, most, rows),
    ]


def _replay(log: Iterable[Sequence[Any]], most: dict[int, int], rows: dict[int, str]) -> list[str]:
    found: list[str] = []
    state: dict[int, str] = {}
    running: Counter[int] = Counter()
    fences: Counter[int] = Counter()
    for type, id, project, data in log:
        before = state.get(id)
        if before in FINAL and id is not None:
            found.append(f"{type} of {id} after it was {before}")
        if type == "execution.started":
            running[project] += 1
            fence = json.loads(data)["fence"]
            if running[project] > most[project]:
                found.append(f"{id} started as number {running[project]} of project {project}")
            if fence <= fences[project]:
                found.append(f"{id} started with fence {fence} after {fences[project]}")
            fences[project] = fence
            state[id] = "running"
        elif type in _ENDS:
            running[project] -= before == "running"
            state[id] = _ENDS[type]
        elif type == "execution.queued":
            state[id] = json.loads(data)["status"]
        elif type in ("execution.unblocked", "execution.answered"):
            state[id] = "queued"
    found += [f"row {id} is {rows[id]}, its events say {said}" for id, said in state.items() if rows[id] != said]
    return found
