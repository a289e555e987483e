"""What the queue promises, in plain Python: slow, obvious, and without a database."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from pilot.domain.errors import NotFound, UsageError
from pilot.domain.execution import Execution, Status
from pilot.domain.outcome import Ending, FailureClass, Outcome
from pilot.domain.policy import MAX_LOSSES, Park, Settlement, parked_until
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
    backend: str = ""
    fallback: tuple[str, ...] = ()
    account: str = ""
    cost: float | None = None
    forgiven: float = 0.0
    reserved_usd: float | None = None
    day: int = 0
    plan_run: int | None = None
    because: int | None = None
    made_by: int | None = None

    @property
    def open(self) -> bool:
        return not self.status.final

    @property
    def seen(self) -> tuple[object, ...]:
        """What has to be the same in the database."""
        return (
            *(self.status.value, self.attempt, self.failures, self.losses, self.node, self.fence),
            *(self.lease_until, self.available_at, int(self.cancel), self.finished_at),
            *(self.backend, json.dumps(self.fallback, separators=(",", ":")), self.cost, self.forgiven),
            *(self.plan_run, self.because, self.made_by),
        )


SEEN = (
    "SELECT id, status, attempt, failures, losses, node, fence, lease_until, available_at, cancel_requested, "
    "finished_at, backend, fallback, cost_usd, forgiven_usd, plan_run, because, artifacts "
    "FROM executions"
)


@dataclass
class Closed:
    """One park. `probe`: the claim that tries it."""

    until: int | None
    changed: int
    tries: int = 1
    probe: tuple[int, int] | None = None


DAY = 24 * 60 * 60 * 1000
WEEK = 7 * DAY


@dataclass
class Model:
    """The store as it should be. `limits`: project id to max_running."""

    clock: Callable[[], int]
    limits: dict[int, int]
    rows: dict[int, Row] = field(default_factory=dict)
    fences: dict[int, int] = field(default_factory=dict)
    parks: dict[tuple[str, str], Closed] = field(default_factory=dict)
    accounts: dict[str, dict[str, str]] = field(default_factory=dict)
    per_execution: float | None = None
    per_day: float | None = None
    money: dict[int, list[float]] = field(default_factory=lambda: defaultdict(lambda: [0.0, 0.0]))
    pauses: set[tuple[int, str]] = field(default_factory=set)
    nodes: dict[str, int] = field(default_factory=dict)
    keys: dict[tuple[int, str], int] = field(default_factory=dict)
    results: dict[tuple[int, str], int] = field(default_factory=dict)

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
        nobodys = task.instant or (task.project_id, task.dedupe) in self.results
        return None, Status.BLOCKED if waits else Status.COMPLETED if nobodys else Status.QUEUED, False

    def add(self, id: int, task: Task) -> None:
        self.insert(id, task)
        self.by_itself(self.rows[id])

    def insert(self, id: int, task: Task, run: int | None = None) -> None:
        assert id > max(self.rows, default=0)
        at = self.clock() if task.available_at is None else task.available_at
        row = Row(id, task, Status.BLOCKED, at, task.reserved_for, backend=task.backend, fallback=task.fallback)
        row.plan_run = run
        self.rows[id] = row
        if all(other in self.rows and self.rows[other].status is Status.COMPLETED for other in task.after):
            row.status = Status.QUEUED
        self._remember(task, id)

    # What completes by itself.

    def by_itself(self, row: Row) -> None:
        """Nobody has to do it: it is a note, or known."""
        made_by = self.results.get((row.task.project_id, row.task.dedupe or ""))
        if row.status is Status.QUEUED and (row.task.instant or made_by is not None):
            row.status, row.made_by, row.reserved = Status.COMPLETED, made_by, None
            self._ended([row])

    def _know(self, row: Row) -> list[Row]:
        """Those that wait for what it made."""
        key = row.task.project_id, row.task.dedupe or ""
        if not row.task.dedupe or key in self.results:
            return []
        self.results[key] = row.id
        return [other for other in self.rows.values() if (other.task.project_id, other.task.dedupe) == key]

    def forget(self, row: Row) -> None:
        """It is wanted anew."""
        if row.status is Status.COMPLETED:
            self.results.pop((row.task.project_id, row.task.dedupe or ""), None)

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

    def _closed(self, park: Closed) -> bool:
        return park.until is None or park.until > self.clock() or self._tried(park)

    def _tried(self, park: Closed) -> bool:
        if park.probe is None:
            return False
        row = self.rows.get(park.probe[0])
        return row is not None and row.status is Status.RUNNING and row.fence == park.probe[1]

    def _of(self, backend: str, account: str) -> list[Closed]:
        return [park for key, park in self.parks.items() if key in ((backend, ""), (backend, account))]

    def _account(self, node: str, backend: str) -> str:
        return self.accounts.get(node, {}).get(backend, "")

    def _who(self, row: Row, node: str) -> str | None:
        """The backend that does it on that node now."""
        for backend in (row.backend, *row.fallback):
            if not any(self._closed(park) for park in self._of(backend, self._account(node, backend))):
                return backend
        return None

    def spent(self, row: Row) -> float:
        return (row.cost or 0.0) - row.forgiven

    def head(self, project: int, node: str) -> Row | None:
        for row in self.due(project):
            broke = self.per_execution is not None and self.spent(row) >= self.per_execution
            if not row.task.external and not broke and self._who(row, node) is not None:
                return row
        return None

    def reservation(self, row: Row) -> float | None:
        if self.per_execution is None and self.per_day is None:
            return None
        wanted = 1.0 if self.per_execution is None else self.per_execution - self.spent(row)
        return wanted if self.per_day is None else min(wanted, self.per_day)

    def _fits(self, row: Row) -> bool:
        amount = self.reservation(row)
        return self.per_day is None or amount is None or sum(self.money[self.today]) + amount <= self.per_day

    @property
    def today(self) -> int:
        return self.clock() // DAY

    def ready(self, node: str) -> list[int]:
        heads = {
            project: head
            for project, limit in self.limits.items()
            if (head := self.head(project, node)) is not None
            and self._fits(head)
            and len(self.running(project)) < limit
            and not any(paused in (0, project) for paused, _ in self.pauses)
        }
        return sorted(heads, key=lambda project: (heads[project].task.priority, heads[project].id))

    def claim(self, project: int, node: str, lease: int, own: bool) -> Row | None:
        if any(paused in (0, project) for paused, _ in self.pauses):
            return None
        if len(self.running(project)) >= self.limits[project]:
            return None
        head = self.head(project, node)
        if head is None or (head.reserved != node if own or head.reserved else False) or not self._fits(head):
            return None
        self.fences[project] = self.fences.get(project, 0) + 1
        head.status, head.node, head.fence = Status.RUNNING, node, self.fences[project]
        head.lease_until, head.attempt = self.clock() + lease, head.attempt + 1
        self._assign(head, node)
        head.reserved_usd, head.day = self.reservation(head), self.today
        self.money[head.day][1] += head.reserved_usd or 0.0
        return head

    def _assign(self, head: Row, node: str) -> None:
        chosen = self._who(head, node)
        assert chosen is not None
        if chosen != head.backend:
            head.fallback = (*(name for name in head.fallback if name != chosen), head.backend)
            head.backend = chosen
        head.account = self._account(node, chosen)
        for park in self._of(chosen, head.account):
            park.probe = head.id, head.fence

    def is_probe(self, row: Row) -> bool:
        return any(park.probe == (row.id, row.fence) for park in self.parks.values())

    def holds(self, execution: Execution) -> bool:
        row = self.rows.get(execution.id)
        return row is not None and row.status is Status.RUNNING and row.fence == execution.fence

    # Ends.

    def end(self, row: Row, settlement: Settlement, outcome: Outcome) -> None:
        """And all that follows."""
        self._end(row, settlement, outcome)
        self._follow_ends([row])

    def _follow_ends(self, rows: Sequence[Row]) -> None:
        waiting = [other for row in rows if row.status is Status.COMPLETED for other in self._know(row)]
        self._ended([row for row in rows if row.status.final])
        for row in [*(row for row in rows if row.status is Status.QUEUED), *waiting]:
            self.by_itself(row)

    def _end(self, row: Row, settlement: Settlement, outcome: Outcome, *, lost: bool = False) -> None:
        to, cost = settlement.to, outcome.usage.cost_usd
        self._pay(row, cost)
        self._learn(row, settlement.park, outcome)
        broke = self.per_execution is not None and self.spent(row) >= self.per_execution
        if row.cancel and not to.final:
            to = Status.CANCELLED
        else:
            row.failures += settlement.counted
            if to is Status.QUEUED and broke:
                to = Status.NEEDS_HUMAN
        row.losses = row.losses + 1 if lost else 0
        row.status, row.node, row.lease_until, row.cancel = to, None, None, False
        if to is Status.QUEUED:
            at = settlement.available_at
            row.available_at = self.clock() if at is None else at
        else:
            row.reserved = None

    def _pay(self, row: Row, cost: float | None) -> None:
        if cost is None:
            return
        row.cost = (row.cost or 0.0) + cost
        self.money[row.day][0] += cost
        self.money[row.day][1] -= row.reserved_usd or 0.0

    def _learn(self, row: Row, park: Park | None, outcome: Outcome) -> None:
        elsewhere = (
            FailureClass.INFRA, FailureClass.NETWORK, FailureClass.CONFLICT, FailureClass.STALL, FailureClass.TIMEOUT,
        )  # fmt: skip
        if park is not None:
            self._park(park, row.account)
        elif outcome.ending not in (Ending.CANCELLED, Ending.INTERRUPTED) and outcome.failure not in elsewhere:
            self.answered(row)

    def _park(self, park: Park, account: str) -> None:
        now, before = self.clock(), self.parks.get((park.backend, account))
        if before is None:
            self.parks[park.backend, account] = Closed(parked_until(park, 1, now), now)
        elif before.until is not None and before.until <= now:
            tries = before.tries + 1
            self.parks[park.backend, account] = Closed(parked_until(park, tries, now), now, tries)
        else:
            until = parked_until(park, before.tries, now)
            longest = None if until is None or before.until is None else max(until, before.until)
            self.parks[park.backend, account] = Closed(longest, now, before.tries)

    def answered(self, row: Row) -> None:
        """Its model has answered."""
        self.parks = {key: park for key, park in self.parks.items() if park.probe != (row.id, row.fence)}

    def unpark(self, backend: str) -> bool:
        """Whether there was a park."""
        own = [park for key, park in self.parks.items() if key[0] == backend]
        for park in own:
            if park.until is None or park.until > self.clock():
                park.until, park.changed = 0, self.clock()
        return bool(own)

    def _ended(self, level: Sequence[Row]) -> None:
        for row in level:
            row.finished_at = self.clock()
        for row in list(self.rows.values()):
            if row.status is Status.BLOCKED and all(self.rows[id].status is Status.COMPLETED for id in row.task.after):
                row.status = Status.QUEUED
                self.by_itself(row)
        in_vain = {row.id for row in level if row.status is not Status.COMPLETED}
        cancelled = []
        for row in self.rows.values():
            if row.status is Status.BLOCKED and (because := in_vain & set(row.task.after)):
                row.status, row.because = Status.CANCELLED, min(because)
                cancelled.append(row)
        if cancelled:
            self._ended(cancelled)

    # People.

    def cancel(self, id: int) -> Status | type[Exception]:
        row = self.rows.get(id)
        if row is None:
            return NotFound
        if row.status is Status.RUNNING:
            row.cancel = True
        elif row.open:
            row.status = Status.CANCELLED
            self._ended([row])
        return row.status

    def answer(self, id: int) -> type[Exception] | None:
        row = self.rows.get(id)
        if row is None:
            return NotFound
        if row.status is not Status.NEEDS_HUMAN:
            return UsageError
        row.status, row.available_at, row.losses, row.failures = Status.QUEUED, self.clock(), 0, 0
        row.forgiven = row.cost or 0.0
        self.by_itself(row)
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
                taken.append(row)
                self._end(row, self._taken_back(row, left), Outcome(ending=Ending.INTERRUPTED), lost=not left)
        self._follow_ends(taken)
        orphans = []
        for row in list(self.rows.values()):
            orphan = row.reserved in dead or self.nodes.get(row.reserved or "", -1) < self.clock()
            if row.reserved and row.open and row.status is not Status.RUNNING and orphan:
                row.status = Status.CANCELLED
                orphans.append(row)
        self._ended(orphans)
        for node in dead:
            self.nodes.pop(node, None)
        return [row.id for row in taken]

    def _taken_back(self, row: Row, left: bool) -> Settlement:
        if row.cancel or row.reserved:
            return Settlement(to=Status.CANCELLED)
        if row.losses + 1 >= MAX_LOSSES and not left:
            return Settlement(to=Status.NEEDS_HUMAN)
        return Settlement(to=Status.QUEUED)

    def expire_parks(self) -> list[str]:
        past = self.clock() - WEEK
        over = [
            key
            for key, park in self.parks.items()
            if park.until is not None and park.until < past and park.changed < past and not self._tried(park)
        ]
        for key in over:
            del self.parks[key]
        return sorted(backend for backend, _ in over)

    def next_due(self) -> int | None:
        """What time alone will change; None: nothing."""
        times = [r.available_at for r in self.rows.values() if r.status is Status.QUEUED]
        times += [park.until for park in self.parks.values() if park.until is not None]
        if self.per_day is not None and any(until > self.clock() for until in self.nodes.values()):
            times.append((self.today + 1) * DAY)
        return min((time for time in times if time > self.clock()), default=None)

    def prune(self, before: int) -> int:
        count = 0
        while True:
            needed = {id for row in self.rows.values() if row.open for id in row.task.after}
            needed |= {row.task.parent for row in self.rows.values() if row.task.parent is not None}
            old = {id for id, row in self.rows.items() if row.finished_at is not None and row.finished_at < before}
            runs = {row.plan_run for id, row in self.rows.items() if id not in old} - {None}
            gone = [id for id in old if id not in needed and self.rows[id].plan_run not in runs]
            if not gone:
                return count
            for id in gone:
                del self.rows[id]
            self._hand_on()
            self.keys = {key: id for key, id in self.keys.items() if id in self.rows}
            count += len(gone)

    def _hand_on(self) -> None:
        for key, id in list(self.results.items()):
            if id not in self.rows:
                same = [row for row in self.rows.values() if (row.task.project_id, row.task.dedupe) == key]
                have = [row.id for row in same if row.status is Status.COMPLETED and not row.task.instant]
                del self.results[key]
                if have:
                    self.results[key] = max(have)

    def pick(self, number: int, statuses: Sequence[Status] = tuple(Status)) -> int | None:
        """One of the rows that stand so."""
        ids = [id for id, row in self.rows.items() if row.status in statuses]
        return ids[number % len(ids)] if ids else None
