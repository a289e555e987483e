"""A store to try things on: a clock that stands still, and the usual steps in one call each."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

from pilot.domain.execution import Execution, Status
from pilot.domain.outcome import Ending, FailureClass, Outcome, Question, Usage
from pilot.domain.policy import Park, Settlement
from pilot.domain.ports import Finish, Node, NodeKind
from pilot.domain.task import Project, Task
from pilot.store import Store
from pilot.store.database import Rows, Statement, Step
from tests.store.audit import Past, audit

START = 1_800_000_000_000
SECOND = 1000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE


class Clock:
    """UTC milliseconds that pass only when told to."""

    def __init__(self, now: int = START) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now

    def tick(self, ms: int) -> None:
        self.now += ms


def node(id: str, *, kind: NodeKind = NodeKind.SERVE, pid: int = 1, host: str = "host", notifies: bool = False) -> Node:
    """A node by its name."""
    return Node(id, kind, host, boot_id="boot", pid=pid, start_ticks=1, version="0", notifies=notifies)


def task(project: Project, task_id: str, **more: Any) -> Task:
    """A task with the least there must be."""
    given: dict[str, Any] = {"project_id": project.id, "task_id": task_id, "title": f"do {task_id}", "backend": "agent"}
    return Task(**given | more)


class Bed:
    """One open store under test, with its clock."""

    def __init__(self, store: Store, clock: Clock, prefix: str = "T") -> None:
        self.store = store
        self.queue = store.queue
        self.journal = store.journal
        self.database = store.database
        self.clock = clock
        self.past = Past()
        self._prefix = prefix
        self._tasks = 0

    async def project(self, name: str = "api", max_running: int = 1) -> Project:
        """A project; the same name gives the same one."""
        (project,) = await self.queue.register([(f"host:/src/{name}/.git", name, f"/src/{name}", max_running)])
        return project

    async def node(self, id: str = "n1", lease: int = HOUR, **more: Any) -> str:
        """A node that is up."""
        await self.queue.start_node(node(id, **more), lease)
        return id

    async def put(self, project: Project, task_id: str | None = None, **more: Any) -> int:
        """The id of a new execution."""
        self._tasks += 1
        enqueued = await self.queue.enqueue(task(project, task_id or f"{self._prefix}-{self._tasks}", **more))
        assert not enqueued.duplicate
        return enqueued.id

    async def take(self, project: Project, node: str = "n1", **more: Any) -> Execution:
        """The project's next execution, claimed; there must be one."""
        (execution,) = await self.claim(project, node, **more)
        return execution

    async def claim(self, project: Project, node: str = "n1", **more: Any) -> list[Execution]:
        """What the project gives."""
        given: dict[str, Any] = {"projects": (project.id,), "lease": MINUTE}
        return await self.queue.claim(node, **given | more)

    async def claimed(self, project: Project, node: str = "n1", **more: Any) -> list[int]:
        """The ids of what the project gives."""
        return [e.id for e in await self.claim(project, node, **more)]

    async def run(self, project: Project, node: str = "n1") -> int:
        """Claim and complete the next one; its id."""
        execution = await self.take(project, node)
        await self.queue.finish(done(execution))
        return execution.id

    async def status(self, id: int) -> Status:
        """Where it stands."""
        return (await self.queue.get(id)).status

    async def rows(self, sql: str, **params: Any) -> Rows:
        """What a SELECT finds."""
        return await self.database.read(sql, params)

    async def value(self, sql: str, **params: Any) -> Any:
        """The one value that a SELECT finds."""
        ((value,),) = await self.database.read(sql, params)
        return value

    async def sql(self, text: str, **params: Any) -> None:
        """A statement that goes past the queue."""

        def operation(items: Sequence[None]) -> Generator[Step, Rows, list[None]]:
            yield Statement(text, params)
            return [None] * len(items)

        await self.database.write(operation, None)

    async def events(self, id: int) -> list[str]:
        """What happened to it, in order, without the word before the dot."""
        rows = await self.rows("SELECT type FROM events WHERE execution_id = :id ORDER BY id", id=id)
        return [type.partition(".")[2] for (type,) in rows]

    async def dump(self) -> dict[str, Rows]:
        """Every row of every table, to see that nothing changed."""
        tables = (
            *("projects", "executions", "dependencies", "attempts", "output", "events", "questions", "outbox"),
            *("idempotency_keys", "nodes", "node_projects", "node_accounts", "parks", "pauses", "spending"),
            *("refusals", "inbox", "pulls", "pull_executions", "duties", "sources"),
            *("results", "artifacts", "artifact_uses"),
        )
        return {table: sorted(await self.rows(f"SELECT * FROM {table}"), key=repr) for table in tables}

    async def check(self) -> None:
        """The invariants hold, also against what an earlier call saw."""
        assert await audit(self.database, self.past) == []


def done(execution: Execution, *, next_lease: int | None = None, **more: Any) -> Finish:
    """Success; `more` is of the outcome."""
    given: dict[str, Any] = {"ending": Ending.DONE, "branch": f"pilot/{execution.task_id}", "delivered": True}
    outcome = Outcome(**given | more)
    settlement = Settlement(to=Status.COMPLETED, keep_session=True)
    return Finish(execution=execution, outcome=outcome, settlement=settlement, next_lease=next_lease)


def broken(execution: Execution, *, failure: FailureClass = FailureClass.AGENT, **more: Any) -> Finish:
    """The last failure; `more` is of the settlement."""
    outcome = Outcome(ending=Ending.FAILED, failure=failure, detail="it broke", excerpt="line 1")
    given: dict[str, Any] = {
        "to": Status.FAILED,
        "reason": f"{failure}: it broke",
        "counted": True,
        "streak": 1,
        "mark": "m",
    }
    return Finish(execution=execution, outcome=outcome, settlement=Settlement(**given | more))


def again(execution: Execution, at: int = 0, **more: Any) -> Finish:
    """A failure that may be tried again at a time (UTC ms)."""
    given: dict[str, Any] = {"to": Status.QUEUED, "available_at": at}
    return broken(execution, **given | more)


def asked(execution: Execution, text: str = "what colour?", **more: Any) -> Finish:
    """A question of the agent's; `more` is of the question."""
    question = Question(text, **more)
    outcome = Outcome(ending=Ending.QUESTION, question=question, session_id="session")
    settlement = Settlement(to=Status.NEEDS_HUMAN, reason=text, keep_session=True, question=question)
    return Finish(execution=execution, outcome=outcome, settlement=settlement)


def interrupted(execution: Execution, at: int | None = None) -> Finish:
    """A shutdown in the middle."""
    outcome = Outcome(ending=Ending.INTERRUPTED, detail="shutdown")
    settlement = Settlement(to=Status.QUEUED, reason="shutdown", available_at=at, keep_session=True)
    return Finish(execution=execution, outcome=outcome, settlement=settlement)


def limited(execution: Execution, until: int | None, failure: FailureClass = FailureClass.RATE_LIMIT) -> Finish:
    """A backend that says: not before this time (None: not before a person has looked)."""
    park = Park(execution.backend, failure, "come back later", until)
    return again(execution, failure=failure, counted=False, keep_session=True, park=park)


def used(execution: Execution, tokens_in: int | None, tokens_out: int | None, cost: float | None) -> Finish:
    """Success at a price."""
    return done(execution, usage=Usage(tokens_in, tokens_out, cost))
