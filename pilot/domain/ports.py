"""Every seam, as a Protocol: what is promised, in which units, what is raised."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from pilot.domain.agent import OutputKind
from pilot.domain.budget import Budget
from pilot.domain.execution import Enqueued, Execution, Status
from pilot.domain.outcome import Outcome, Usage
from pilot.domain.policy import Settlement
from pilot.domain.task import Project, Task
from pilot.domain.work import Artifact

Clock = Callable[[], int]
"""UTC milliseconds; the only source of time."""


Accounts = Mapping[int, Mapping[str, str]]
"""`Backend.account()` by project (id) and backend name; what is missing is not known, as "" is."""


class NodeKind(StrEnum):
    """What sort of process claims."""

    SERVE = "serve"
    RUN = "run"
    WORKER = "worker"


@dataclass(frozen=True, slots=True)
class Node:
    """One process that claims. `host`, `boot_id`, `pid` and `start_ticks` together name it for ever.

    `max_running`: how much it runs at once, for people who ask why nothing starts; 0: not said. `notifies`: it tells
    people what needs them; as long as one such node is known, that is owed to them. `place`: names the disk on which
    what it begins lies. `beats`: how often it was heard of since its start; two counts say more than two times do.
    """

    id: str
    kind: NodeKind
    host: str
    boot_id: str
    pid: int
    start_ticks: int
    version: str
    max_running: int = 0
    notifies: bool = False
    place: str = ""
    beats: int = 0


@dataclass(frozen=True, slots=True)
class Held:
    """A lease this node still has, and whether somebody asked for the execution's end."""

    id: int
    fence: int
    cancel_requested: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """The end of one claim: settled state, and what the attempt learnt.

    `next_lease` asks for the same project's next execution in the same transaction (ms; None: don't). `first`:
    projects (ids) that wait for the turn which this end sets free; the first that has something goes before it.
    """

    execution: Execution
    outcome: Outcome
    settlement: Settlement
    next_lease: int | None = None
    first: tuple[int, ...] = ()
    artifacts: tuple[Artifact, ...] = ()
    """What came with the result; kept when the claim still stood."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSteps:
    """A plan on its way into the queue: tasks, and what each waits for.

    `after`: by index, the indices of the tasks it waits for. `tasks` have idempotency keys, so that the same plan
    again changes nothing; their own `after` may name executions of before, besides.
    """

    tasks: tuple[Task, ...]
    after: Mapping[int, tuple[int, ...]] = field(default_factory=dict)


class PlanQueue(Protocol):
    """Where plans go in."""

    async def submit(self, plan: PlanSteps) -> list[Enqueued]:
        """All of it in one transaction, or nothing; the answers in the order of the tasks.

        A task whose idempotency key is known is answered with the execution it stands for, also an ended one. Raises
        `UsageError`, naming them, when one of the others is open already under its task id.
        """
        ...


class Queue(Protocol):
    """The durable queue. One implementation, two engines, one conformance suite.

    Every method that changes something is one transaction with its events, durable when it returns.
    Raises `StoreError` when the database could not do it; then nothing was written.
    """

    async def register(
        self,
        projects: Sequence[tuple[str, str, str, int | None] | tuple[str, str, str, int | None, str, int | None]],
    ) -> list[Project]:
        """Make (key, name, path, max_running[, next_after, max_open_prs]) known, in order.

        max_running None: keep what is stored, else 1. next_after: `finish` (the default), `pr_open`, `checks_passed`
        or `merged`; max_open_prs None: any number.
        """
        ...

    async def enqueue(self, task: Task) -> Enqueued:
        """Add an execution, or return the one that stands for it.

        That is: the first with the same idempotency key, even ended; else the open one with the same
        (project, task_id). Raises `UsageError` for an unknown, failed or cancelled dependency.
        """
        ...

    async def claim(
        self,
        node: str,
        *,
        lease: int,
        projects: Collection[int],
        max: int = 1,
        own: bool = False,
        external: bool = False,
    ) -> list[Execution]:
        """Take up to `max` executions, at most one per project, and lease them for `lease` ms.

        A project gives its first by (priority, id) that is queued, due, within its budget and on a backend that is
        not parked for this node's account, when it is not paused and has a free slot. One whose backend is parked
        goes to the first of its `fallback` that is not. If it is reserved for another node, the project gives
        nothing: that node is next. `own`: only what is reserved for this node. `external`: also what is left to
        remote workers. Nothing is given that would cost more than the day has left.

        Of a park that is half-open one claim is the probe: nobody else gets its backend and account until
        `Journal.note(answered=…)` or the attempt's end. The fence is greater than any before in the project.
        """
        ...

    async def heartbeat(self, node: str, lease: int) -> list[Held]:
        """Renew every lease of the node in one statement, and the node's own; what is not returned is lost.

        A lease that has ended, but that nobody took back, is renewed, too.
        """
        ...

    async def finish(self, finish: Finish) -> Execution | None:
        """End a claim; what is claimed with it, when asked for. Raises `LeaseLost`: nothing was written."""
        ...

    async def get(self, id: int) -> Execution:
        """One execution. Raises `NotFound`."""
        ...

    async def cancel(self, id: int, by: str, reason: str = "") -> Status:
        """End it, or ask its node to: `cancelled`, `running` (asked) or the final state it had."""
        ...

    async def answer(self, id: int, text: str, by: str) -> None:
        """Send a held execution back to its queue with a person's words, once. Raises `UsageError`, `NotFound`."""
        ...


class DispatchQueue(Queue, Protocol):
    """What a dispatcher needs besides: nodes, recovery, and signals."""

    async def start_node(self, node: Node, lease: int) -> None:
        """Make a node known, with its own lease (ms)."""
        ...

    async def serve(
        self,
        node: str,
        projects: Collection[int],
        accounts: Accounts = ...,
        budget: Budget = ...,
        notifies: bool | None = None,
    ) -> None:
        """What the node claims from, as whom, and what it may spend; each call replaces the one before.

        `notifies` None: as it was.
        """
        ...

    async def drain_node(self, node: str) -> None:
        """Say that the node takes nothing new."""
        ...

    async def leave(self, node: str) -> None:
        """The last word of a node that ends in order: what it still holds goes back, uncounted."""
        ...

    async def nodes(self) -> list[tuple[Node, int]]:
        """Every known node and the end (UTC ms) of its lease."""
        ...

    async def held_by(self, nodes: Collection[str]) -> list[Execution]:
        """What these nodes run, and whatever runs on an ended lease."""
        ...

    async def next_lease_end(self, node: str) -> int | None:
        """When (UTC ms) the first lease ends of what runs, or of a node other than this one; of those to come."""
        ...

    async def recover(
        self,
        nodes: Collection[str],
        why: str,
        fences: frozenset[tuple[int, int]] | None = None,
        silent: frozenset[str] | None = None,
    ) -> list[Execution]:
        """Take back what these dead nodes and all ended leases held (`fences`: only those claims).

        The direct runs that wait for a dead node end, and those of one whose lease has ended (`silent`: only these).
        """
        ...

    async def cancels(self, node: str) -> list[int]:
        """What this node runs and somebody wants ended."""
        ...

    async def expire_parks(self) -> list[str]:
        """Forget the parks that nothing has tried for a week after their time; their backends."""
        ...

    async def look(self, among: Collection[int], node: str) -> tuple[list[int], int | None]:
        """Which of these projects have something to give this node, the one whose head is oldest first.

        And when (UTC ms) time alone makes something runnable next.
        """
        ...

    async def changed(self) -> bool:
        """Whether anybody wrote since the last call."""
        ...

    def listen(self, listener: Callable[[Collection[str]], None]) -> Callable[[], None]:
        """Call it with the ids of projects that may have work, "*" for all, "cancel"; a hint. Returns the way out."""
        ...


class Journal(Protocol):
    """Where a running attempt writes what it learns. Every write is fenced: raises `LeaseLost`, nothing written."""

    async def note(self, execution: Execution, usage: Usage | None = None, /, **facts: str | None) -> None:
        """Store facts of the running attempt, durable on return. `usage`: what it has used up so far, in all.

        Keys: `phase` (what it does now, for people), `session_id`, `model`, `workspace`, `branch`, `base_sha`,
        `head_sha`, `input_hash`, `sandbox`, `answered` (the model has answered: a park that this attempt is the
        probe of ends).
        """
        ...

    async def write(self, execution: Execution, pieces: Sequence[tuple[OutputKind, bytes]]) -> None:
        """Append output in order. Not durable against power loss before the attempt's next `note` or its end."""
        ...


Runner = Callable[[Execution], Awaitable[Outcome]]
"""Does one attempt of a claimed execution. Cancelled: preserves the work, leaves no process, re-raises."""


@dataclass(frozen=True, slots=True)
class Hold:
    """Why something that could run does not. `until` is UTC ms."""

    kind: str
    detail: str
    execution: int | None = None
    until: int | None = None


@dataclass(frozen=True, slots=True)
class Why:
    """The answer to "why is it not running?"."""

    id: int
    status: str
    position: int | None
    holds: Sequence[Hold] = field(default_factory=tuple)
    next: str = ""


Document = dict[str, Any]
"""A JSON document as SPEC'd for `--json` and the API."""
