"""`SqlQueue`: the durable queue, as `ports.Queue` promises it, on any engine."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from pilot.domain.budget import Budget, day_after
from pilot.domain.errors import NotFound
from pilot.domain.execution import Enqueued, Execution, Status
from pilot.domain.ports import Accounts, Finish, Held, Node, PlanSteps
from pilot.domain.task import Project, Task
from pilot.store.admin import Admin, Pause, Registration
from pilot.store.claim import Claim
from pilot.store.database import Database, Dialect, Listener, Rows, Statement, Step
from pilot.store.dependents import Dependents
from pilot.store.enqueue import Enqueue, check
from pilot.store.finish import FinishClaims
from pilot.store.heads import PAUSED, ClaimRequest, due_projects, head
from pilot.store.holding import GRACE_ENDS
from pilot.store.nodes import LEASE_END, NAMES, Beat, Loss, Nodes, Serving
from pilot.store.parks import Parks, Unpark
from pilot.store.people import Answer, AnswerRequest, Cancel, CancelRequest
from pilot.store.places import elsewhere
from pilot.store.plans import Plans, check_plan, steps_of
from pilot.store.retry import Retry
from pilot.store.rows import EXECUTION_SELECT, to_execution
from pilot.store.spending import BOOKED, Spending, fits

Steps = Generator[Step, Rows, Any]

_NEXT = f"""
    SELECT min(t) FROM (SELECT min(available_at) AS t FROM executions WHERE status = 'queued' AND due = 0
    UNION ALL SELECT min(until) FROM parks WHERE until > :now UNION ALL {GRACE_ENDS} UNION ALL
    SELECT min(until) + 1 FROM places WHERE until >= :now UNION ALL
    SELECT max(:tomorrow) FROM nodes WHERE per_day_usd IS NOT NULL AND lease_until > :now) AS times"""
_OVERDUE = "SELECT 1 FROM executions WHERE status = 'queued' AND due = 0 AND available_at <= :now LIMIT 1"


def _ready(dialect: Dialect, *, external: bool) -> str:
    # It costs little as long as the first of each project is one that may be run.
    return f"""{due_projects(external=external)}
    SELECT p.id, e.cost_usd, e.forgiven_usd, n.per_execution_usd, n.per_day_usd, {BOOKED}
    FROM walk JOIN projects p ON p.id = walk.project_id LEFT JOIN nodes n ON n.id = :node
      JOIN executions e ON e.id = ({head(dialect, ":node", external=external)})
    WHERE p.running < p.max_running AND NOT {PAUSED.format(project="p.id")}
      AND (e.reserved_for = :node OR NOT {elsewhere("coalesce(n.place, '')", "e")}) ORDER BY e.priority, e.id"""


class SqlQueue:
    """One transaction per method, shared with whoever else waits; see `ports.Queue`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        dialect = database.dialect
        self._parks, spending = Parks(dialect), Spending(dialect)
        claim, dependents = Claim(dialect, self._parks, spending), Dependents(dialect)
        self._ready = {external: _ready(dialect, external=external) for external in (False, True)}
        self._claim_steps = claim
        self._enqueue_steps = Enqueue(dialect, dependents)
        self._plans = Plans(dialect, self._enqueue_steps)
        self._retry_steps = Retry(dialect, self._enqueue_steps, self._plans)
        self._finish_steps = FinishClaims(dialect, claim, dependents, self._parks, spending)
        self._cancel_steps = Cancel(dialect, dependents)
        self._answer_steps = Answer(dialect, dependents)
        self._nodes = Nodes(dialect, self._finish_steps, self._cancel_steps)
        self._admin = Admin(dialect)
        # What workers elsewhere do, too; see `SqlWorkQueue`.
        self.claiming, self.finishing, self.known_nodes = claim, self._finish_steps, self._nodes

    # Operations: bound methods, so that calls of one kind meet in one set of statements.

    def _enqueues(self, items: Sequence[Task]) -> Steps:
        return self._enqueue_steps(items, self._database.clock())

    def _submissions(self, items: Sequence[PlanSteps]) -> Steps:
        return self._plans.submit(items, self._database.clock())

    def _retries(self, items: Sequence[int]) -> Steps:
        return self._retry_steps.one(items, self._database.clock())

    def _plan_retries(self, items: Sequence[tuple[int, str]]) -> Steps:
        return self._retry_steps.plan(items, self._database.clock())

    def _claims(self, items: Sequence[ClaimRequest]) -> Steps:
        return self._claim_steps(items, self._database.clock())

    def _promotions(self, items: Sequence[None]) -> Steps:
        return self._claim_steps.promote(items, self._database.clock())

    def _finishes(self, items: Sequence[Finish]) -> Steps:
        return self._finish_steps(items, self._database.clock())

    def _beats(self, items: Sequence[Beat]) -> Steps:
        return self._nodes.beat(items, self._database.clock())

    def _starts(self, items: Sequence[tuple[Node, int]]) -> Steps:
        return self._nodes.start(items, self._database.clock())

    def _servings(self, items: Sequence[Serving]) -> Steps:
        return self._nodes.serve(items, self._database.clock())

    def _drains(self, items: Sequence[str]) -> Steps:
        return self._nodes.drain(items, self._database.clock())

    def _recoveries(self, items: Sequence[Loss]) -> Steps:
        return self._nodes.recover(items, self._database.clock())

    def _cancels(self, items: Sequence[CancelRequest]) -> Steps:
        return self._cancel_steps(items, self._database.clock())

    def _answers(self, items: Sequence[AnswerRequest]) -> Steps:
        return self._answer_steps(items, self._database.clock())

    def _registers(self, items: Sequence[Sequence[Registration]]) -> Steps:
        return self._admin.register(items, self._database.clock())

    def _pauses(self, items: Sequence[Pause]) -> Steps:
        return self._admin.pause(items, self._database.clock())

    def _resumes(self, items: Sequence[Pause]) -> Steps:
        return self._admin.resume(items, self._database.clock())

    def _unparks(self, items: Sequence[Unpark]) -> Steps:
        return self._parks.unpark(items, self._database.clock())

    def _expiries(self, items: Sequence[None]) -> Steps:
        return self._parks.forget(items, self._database.clock())

    def _prunes(self, items: Sequence[int]) -> Steps:
        return self._admin.prune(items, self._database.clock())

    async def register(self, projects: Sequence[Registration]) -> list[Project]:
        """See `Queue.register`."""
        return await self._database.write(self._registers, projects)

    async def enqueue(self, task: Task) -> Enqueued:
        """See `Queue.enqueue`."""
        check(task)
        return await self._database.write(self._enqueues, task)

    async def claim(
        self,
        node: str,
        *,
        lease: int = 30_000,
        projects: Collection[int] | None = None,
        max: int = 1,
        own: bool = False,
        external: bool = False,
    ) -> list[Execution]:
        """See `Queue.claim`. `projects` None: any; those whose work has waited longest come first."""
        if projects is None or len(projects) > 1:
            projects = await self.ready(projects, node, external=external)
        found: list[Execution] = []
        for project in projects:
            if len(found) == max:
                break
            execution = await self._database.write(self._claims, ClaimRequest(project, node, lease, own, external))
            if execution is not None:
                found.append(execution)
        return found

    async def ready(self, among: Collection[int] | None = None, node: str = "", *, external: bool = False) -> list[int]:
        """Projects that have something to give this node, the one whose head is oldest first."""
        return (await self._look(among, node, external=external))[0]

    async def next_due(self) -> int | None:
        """When (UTC ms) time alone makes something runnable next."""
        now = self._database.clock()
        rows = await self._database.read(_NEXT, {"now": now, "tomorrow": day_after(now)})
        return rows[0][0] if rows else None

    async def look(self, among: Collection[int], node: str) -> tuple[list[int], int | None]:
        """See `DispatchQueue.look`."""
        return await self._look(among, node)

    async def _look(
        self, among: Collection[int] | None, node: str, *, external: bool = False
    ) -> tuple[list[int], int | None]:
        now = self._database.clock()
        own = {"now": now, "node": node}
        wanted = (
            Statement(_OVERDUE, own),
            Statement(self._ready[external], own),
            Statement(_NEXT, {"now": now, "tomorrow": day_after(now)}),
        )
        overdue, rows, ((due,),) = await self._database.read_all(wanted)
        if overdue:
            await self._database.write(self._promotions, None)
            _, rows, ((due,),) = await self._database.read_all(wanted)
        ready = [
            id
            for id, cost, forgiven, per_execution, per_day, booked in rows
            if (among is None or id in among) and fits(Budget(per_execution, per_day), cost, forgiven, booked)
        ]
        return ready, due

    async def finish(self, finish: Finish) -> Execution | None:
        """See `Queue.finish`."""
        return await self._database.write(self._finishes, finish)

    async def heartbeat(self, node: str, lease: int) -> list[Held]:
        """See `Queue.heartbeat`."""
        return await self._database.write(self._beats, Beat(node, lease))

    async def start_node(self, node: Node, lease: int) -> None:
        """Make a node known, with its own lease (ms)."""
        await self._database.write(self._starts, (node, lease))

    async def serve(
        self,
        node: str,
        projects: Collection[int],
        accounts: Accounts = MappingProxyType({}),
        budget: Budget = Budget(),  # noqa: B008  frozen
        notifies: bool | None = None,
    ) -> None:
        """See `DispatchQueue.serve`."""
        await self._database.write(self._servings, Serving(node, tuple(projects), accounts, budget, notifies))

    async def drain_node(self, node: str) -> None:
        """Say that the node takes nothing new."""
        await self._database.write(self._drains, node)

    async def nodes(self) -> list[tuple[Node, int]]:
        """Every known node and the end (UTC ms) of its lease."""
        rows = await self._database.read(
            "SELECT id, kind, host, boot_id, pid, start_ticks, version, max_running, notifies, place, beats, "
            "lease_until FROM nodes"
        )
        return [(replace(Node(*row[:-1]), notifies=bool(row[8])), row[-1]) for row in rows]

    async def held_by(self, nodes: Collection[str]) -> list[Execution]:
        """What these nodes run, and whatever runs on an ended lease."""
        names = {"now": self._database.clock(), "items": NAMES.rows((node,) for node in nodes)}
        return [to_execution(row) for row in await self._database.read(self._nodes.lost, names)]

    async def next_lease_end(self, node: str) -> int | None:
        """See `DispatchQueue.next_lease_end`."""
        rows = await self._database.read(LEASE_END, {"now": self._database.clock(), "node": node})
        return rows[0][0] if rows else None

    async def recover(
        self,
        nodes: Iterable[str],
        why: str,
        fences: frozenset[tuple[int, int]] | None = None,
        silent: frozenset[str] | None = None,
    ) -> list[Execution]:
        """Take back what these dead nodes and all ended leases held (`fences`: only those). The rows as they were."""
        return await self._database.write(self._recoveries, Loss(tuple(nodes), why, fences, silent))

    async def leave(self, node: str) -> None:
        """The last word of a node that ends in order: what it still holds goes back, uncounted."""
        await self._database.write(self._recoveries, Loss((node,), "shutdown", left=True))

    async def cancels(self, node: str) -> list[int]:
        """What this node runs and somebody wants ended."""
        rows = await self._database.read(
            "SELECT id FROM executions WHERE status = 'running' AND node = :node AND cancel_requested = 1",
            {"node": node},
        )
        return [id for (id,) in rows]

    async def get(self, id: int) -> Execution:
        """One execution. Raises `NotFound`."""
        rows = []
        if 0 < id < 1 << 63:
            rows = await self._database.read(f"SELECT {EXECUTION_SELECT} FROM executions WHERE id = :id", {"id": id})
        if not rows:
            raise NotFound(f"no execution {id}")
        return to_execution(rows[0])

    async def changed(self) -> bool:
        """Whether anybody wrote since the last call."""
        return await self._database.changed()

    def listen(self, listener: Listener) -> Callable[[], None]:
        """See `Database.listen`."""
        return self._database.listen(listener)

    async def cancel(self, id: int, by: str, reason: str = "") -> Status:
        """End it, or ask its node to. `cancelled`, `running` (asked) or the final state it had."""
        return await self._database.write(self._cancels, CancelRequest(id, by, reason))

    async def answer(self, id: int, text: str, by: str, question: int | None = None) -> None:
        """Send a held execution back with a person's words. Raises `UsageError` when it asks nothing (any more).

        `question`: the id of the one that is answered; None: whichever is open.
        """
        await self._database.write(self._answers, AnswerRequest(id, text, by, question))

    async def submit(self, plan: PlanSteps) -> list[Enqueued]:
        """See `PlanQueue.submit`. What is known already is answered with its newest retry, where it has one."""
        check_plan(plan)
        return await self._database.write(self._submissions, plan)

    async def retry(self, id: int) -> Enqueued:
        """A new execution of the same task, linked to the ended one.

        Of a plan's step its newest execution, and with it all that was cancelled because of it. Raises `UsageError`
        for what is open, and for a step that would wait for another that has to be retried first.
        """
        return await self._database.write(self._retries, id)

    async def retry_plan(self, project_id: int, plan: str) -> list[Enqueued]:
        """Retry what of the newest run of a plan has failed or was cancelled, in one transaction: the new executions.

        In the order of the steps; none when there is nothing to retry. Raises `NotFound` for a plan that never was.
        """
        return await self._database.write(self._plan_retries, (project_id, plan))

    async def steps_of(self, project_id: int, plan: str) -> list[Execution]:
        """The newest execution of each step of the newest run of a plan, in the order of the steps; none is empty."""
        return await steps_of(self._database, project_id, plan)

    async def pause(self, project_id: int, owner: str, reason: str) -> None:
        """Stop admission of a project (0: of all) until this owner resumes it."""
        await self._database.write(self._pauses, Pause(project_id, owner, reason))

    async def resume(self, project_id: int, owner: str | None = None) -> list[str]:
        """Lift an owner's pause (None: everybody's); the owners lifted."""
        return await self._database.write(self._resumes, Pause(project_id, owner))

    async def unpark(self, backend: str, by: str, account: str | None = None) -> None:
        """Let a parked backend (of any account, or this one) be tried. Raises `NotFound` when it is not parked."""
        await self._database.write(self._unparks, Unpark(backend, by, account))

    async def expire_parks(self) -> list[str]:
        """See `DispatchQueue.expire_parks`."""
        return await self._database.write(self._expiries, None)

    async def prune(self, before: int) -> int:
        """Remove history that ended before a time (UTC ms) and that nothing open needs; how many executions went."""
        gone = 0
        while True:
            count: int = await self._database.write(self._prunes, before)
            gone += count
            if not count:  # not: less than a batch; an execution goes only after its retries are gone
                return gone
