"""What the queue promises, in plain Python: slow, obvious, and without a database."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from pilot.domain.errors import NotFound, UsageError
from pilot.domain.execution import Execution, Status
from pilot.domain.policy import MAX_LOSSES, Settlement
from pilot.domain.task import Task

Answer = tuple[int | None, Status, bool] | type[Exception]
"""Of an enqueue: id (None: a new one), status, duplicate; or what it raises."""


@dataclass
class Row:
    """One execution, as far as anybody can tell from outside."""

    id: int
    task: Task
    status: Status
    available_at: int
    reserved: str | None
    attempt: int = 0
    failures: int = 0
    losses: int = 0
    node: str | None = None
    fence: int = 0
    lease_until: int | None = None
    cancel: bool = False
    finished_at: int | None = None

    @property
    def open(self) -> bool:
        return not self.status.final

    @property
    def seen(self) -> tuple[object, ...]:
        """What has to be the same in the database."""
        return (
            *(self.status.value, self.attempt, self.failures, self.losses, self.node, self.fence),
            *(self.lease_until, self.available_at, int(self.cancel), self.finished_at),
        )


SEEN = (
    "SELECT id, status, attempt, failures, losses, node, fence, lease_until, available_at, cancel_requested, "
    "finished_at FROM executions"
)


@dataclass
class Model:
    """The store as it should be. `limits`: project id to max_running."""

    clock: Callable[[], int]
    limits: dict[int, int]
    rows: dict[int, Row] = field(default_factory=dict)
    fences: dict[int, int] = field(default_factory=dict)
    parks: dict[str, int | None] = field(default_factory=dict)
    pauses: set[tuple[int, str]] = field(default_factory=set)
    nodes: dict[str, int] = field(default_factory=dict)
    keys: dict[tuple[int, str], int] = field(default_factory=dict)

    # Enqueue.

    def enqueue(self, task: Task) -> Answer:
        """What must come of it; `add` once the new id is known."""
        if (key := self._key(task)) in self.keys:
            row = self.rows[self.keys[key]]
            return row.id, row.status, True
        parents = [self.rows.get(id) for id in task.after]
        if any(parent is None or parent.status in (Status.FAILED, Status.CANCELLED) for parent in parents):
            return UsageError
        for row in self.rows.values():
            if row.open and (row.task.project_id, row.task.task_id) == (task.project_id, task.task_id):
                self._remember(task, row.id)
                return row.id, row.status, True
        waits = any(parent is not None and parent.status is not Status.COMPLETED for parent in parents)
        return None, Status.BLOCKED if waits else Status.QUEUED, False

    def add(self, id: int, task: Task, status: Status) -> None:
        assert id > max(self.rows, default=0)
        at = self.clock() if task.available_at is None else task.available_at
        self.rows[id] = Row(id, task, status, at, task.reserved_for)
        self._remember(task, id)

    @staticmethod
    def _key(task: Task) -> tuple[int, str]:
        return task.project_id, task.idempotency_key or ""

    def _remember(self, task: Task, id: int) -> None:
        if task.idempotency_key:
            self.keys[self._key(task)] = id

    # Claim.

    def running(self, project: int) -> list[Row]:
        return [r for r in self.rows.values() if r.task.project_id == project and r.status is Status.RUNNING]

    def due(self, project: int) -> list[Row]:
        found = [
            row
            for row in self.rows.values()
            if row.task.project_id == project and row.status is Status.QUEUED and row.available_at <= self.clock()
        ]
        return sorted(found, key=lambda row: (row.task.priority, row.id))

    def _parked(self, backend: str) -> bool:
        until = self.parks.get(backend, 0)
        return until is None or until > self.clock()

    def ready(self) -> list[int]:
        heads = {
            project: due[0]
            for project, limit in self.limits.items()
            if (due := self.due(project)) and len(self.running(project)) < limit
        }
        return sorted(heads, key=lambda project: (heads[project].task.priority, heads[project].id))

    def claim(self, project: int, node: str, lease: int, own: bool) -> Row | None:
        if any(paused in (0, project) for paused, _ in self.pauses):
            return None
        if len(self.running(project)) >= self.limits[project]:
            return None
        head = next((row for row in self.due(project) if not self._parked(row.task.backend)), None)
        if head is None or (head.reserved != node if own or head.reserved else False):
            return None
        self.fences[project] = self.fences.get(project, 0) + 1
        head.status, head.node, head.fence = Status.RUNNING, node, self.fences[project]
        head.lease_until, head.attempt = self.clock() + lease, head.attempt + 1
        return head

    def holds(self, execution: Execution) -> bool:
        row = self.rows.get(execution.id)
        return row is not None and row.status is Status.RUNNING and row.fence == execution.fence

    # Ends.

    def end(self, row: Row, settlement: Settlement, *, lost: bool = False) -> None:
        to = settlement.to
        if row.cancel and not to.final:
            to = Status.CANCELLED
        elif settlement.counted:
            row.failures += 1
        row.losses = row.losses + 1 if lost else 0
        row.status, row.node, row.lease_until, row.cancel = to, None, None, False
        if to is Status.QUEUED:
            row.available_at = settlement.available_at
        else:
            row.reserved = None
        if settlement.park is not None:
            backend, until = settlement.park.backend, settlement.park.until
            before = self.parks.get(backend, 0)
            self.parks[backend] = None if before is None or until is None else max(before, until)
        self._ended(row)

    def _ended(self, row: Row) -> None:
        if row.status.final:
            row.finished_at = self.clock()
            self._follow(row)

    def _follow(self, ended: Row) -> None:
        for row in self.rows.values():
            if row.status is not Status.BLOCKED or ended.id not in row.task.after:
                continue
            if ended.status is not Status.COMPLETED:
                row.status = Status.CANCELLED
                self._ended(row)
            elif all(self.rows[id].status is Status.COMPLETED for id in row.task.after):
                row.status = Status.QUEUED

    # People.

    def cancel(self, id: int) -> Status | type[Exception]:
        row = self.rows.get(id)
        if row is None:
            return NotFound
        if row.status is Status.RUNNING:
            row.cancel = True
        elif row.open:
            row.status = Status.CANCELLED
            self._ended(row)
        return row.status

    def answer(self, id: int) -> type[Exception] | None:
        row = self.rows.get(id)
        if row is None:
            return NotFound
        if row.status is not Status.NEEDS_HUMAN:
            return UsageError
        row.status, row.available_at, row.losses, row.failures = Status.QUEUED, self.clock(), 0, 0
        return None

    # Nodes and time.

    def beat(self, node: str, lease: int) -> list[tuple[int, int, bool]]:
        if node in self.nodes:
            self.nodes[node] = self.clock() + lease
        held = []
        for row in self.rows.values():
            if row.node == node and row.lease_until is not None:
                row.lease_until = self.clock() + lease
                held.append((row.id, row.fence, row.cancel))
        return held

    def recover(self, dead: Collection[str], *, left: bool = False) -> list[int]:
        taken = []
        for row in list(self.rows.values()):
            if row.status is not Status.RUNNING or row.lease_until is None:
                continue
            if row.node in dead or (row.lease_until < self.clock() and not left):
                taken.append(row.id)
                self.end(row, self._taken_back(row, left), lost=not left)
        for row in list(self.rows.values()):
            orphan = row.reserved in dead or self.nodes.get(row.reserved or "", -1) < self.clock()
            if row.reserved and row.open and row.status is not Status.RUNNING and orphan:
                self.cancel(row.id)
        for node in dead:
            self.nodes.pop(node, None)
        return taken

    def _taken_back(self, row: Row, left: bool) -> Settlement:
        if row.cancel or row.reserved:
            return Settlement(to=Status.CANCELLED)
        if row.losses + 1 >= MAX_LOSSES and not left:
            return Settlement(to=Status.NEEDS_HUMAN)
        return Settlement(to=Status.QUEUED, available_at=self.clock())

    def expire_parks(self) -> list[str]:
        over = [backend for backend, until in self.parks.items() if until is not None and until <= self.clock()]
        for backend in over:
            del self.parks[backend]
        return over

    def next_due(self) -> int | None:
        """What time alone will change; None: nothing."""
        times = [r.available_at for r in self.rows.values() if r.status is Status.QUEUED]
        times += [until for until in self.parks.values() if until is not None]
        return min((time for time in times if time > self.clock()), default=None)

    def prune(self, before: int) -> int:
        count = 0
        while True:
            needed = {id for row in self.rows.values() if row.open for id in row.task.after}
            needed |= {row.task.parent for row in self.rows.values() if row.task.parent is not None}
            gone = [
                id
                for id, row in self.rows.items()
                if row.finished_at is not None and row.finished_at < before and id not in needed
            ]
            if not gone:
                return count
            for id in gone:
                del self.rows[id]
            self.keys = {key: id for key, id in self.keys.items() if id in self.rows}
            count += len(gone)

    def pick(self, number: int, statuses: Sequence[Status] = tuple(Status)) -> int | None:
        """One of the rows that stand so."""
        ids = [id for id, row in self.rows.items() if row.status in statuses]
        return ids[number % len(ids)] if ids else None
