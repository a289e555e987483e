"""Nodes: their leases, and what becomes of the work of those that died."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

from pilot.domain.budget import Budget
from pilot.domain.events import EventType
from pilot.domain.execution import Execution, Status
from pilot.domain.outcome import Ending, FailureClass, Outcome, Question
from pilot.domain.policy import MAX_LOSSES, Settlement
from pilot.domain.ports import Accounts, Finish, Held, Node
from pilot.domain.text import clean
from pilot.domain.work import WORKER
from pilot.store.database import Dialect, Notify, Rows, Statement, Step
from pilot.store.finish import FinishClaims
from pilot.store.people import Cancel, CancelRequest
from pilot.store.places import BACK, GONE, LEFT
from pilot.store.records import OPEN_STATUSES, Table, event, events_statement
from pilot.store.rows import EXECUTION_SELECT, to_execution

NAMES = Table(id="text")
_IDS = Table(id="bigint")
_ACCOUNTS = Table(project_id="bigint", backend="text", account="text")
_WORKERS = Table(id="text", lasts="bigint", enough="bigint", per_execution="float", per_day="float")
QUIET = "it was not heard of for an hour"
UNHEARD = 60 * 60 * 1000
"""ms after the end of its lease when a worker is no longer listed."""
LOST = "node {node} was lost: "
"""How the detail of an attempt begins that nobody ended."""
EXPIRED = "status = 'running' AND lease_until < :now AND node >= 'worker:' AND node < 'worker;'"
"""Claims of workers whose own lease has ended: nobody else renews them."""


LEASE_END = """
    SELECT min(t) FROM (
      SELECT min(lease_until) AS t FROM executions WHERE status = 'running' AND lease_until >= :now
      UNION ALL SELECT min(lease_until) FROM nodes
        WHERE lease_until >= :now AND id <> :node AND kind <> 'worker') AS ends"""
"""When the next lease of another node ends, or of what anybody runs."""


@dataclass(frozen=True, slots=True)
class Beat:
    """One node's heartbeat; `lease` in ms."""

    node: str
    lease: int


@dataclass(frozen=True, slots=True)
class Worker:
    """What a worker's word says of itself: its lease and how long it stays besides (ms), what it may spend."""

    node: str
    lease: int
    stay: int
    budget: Budget


@dataclass(frozen=True, slots=True)
class Serving:
    """What a node says of itself: projects (ids), accounts by project and backend, and what may be spent.

    `notifies` None: as it was.
    """

    node: str
    projects: tuple[int, ...]
    accounts: Accounts
    budget: Budget
    notifies: bool | None = None


@dataclass(frozen=True, slots=True)
class Loss:
    """Nodes known to be dead (by their process, not by age), and why; expired leases are taken back besides.

    `fences` narrows it to these claims (execution id, fence): what the caller has cleaned up after.
    `silent`: nodes whose ended lease the caller has watched long enough; None: an ended lease is enough.
    `left`: the node says goodbye itself, in order; not a loss that counts against a task.
    """

    nodes: tuple[str, ...]
    why: str
    fences: frozenset[tuple[int, int]] | None = None
    silent: frozenset[str] | None = None
    left: bool = False


class Nodes:
    """The operations on nodes."""

    def __init__(self, dialect: Dialect, finish: FinishClaims, cancel: Cancel) -> None:
        self._dialect = dialect
        self._finish = finish
        self._cancel = cancel
        self.lost = f"""
            SELECT {EXECUTION_SELECT} FROM executions
            WHERE status = 'running' AND (lease_until < :now
              OR node IN (SELECT d.id FROM {NAMES.of(dialect, "d")}))"""
        """What these nodes run, and whatever runs on an ended lease."""
        self._orphans = f"""
            SELECT e.id, e.reserved_for FROM executions e
            WHERE e.reserved_for IS NOT NULL AND e.status IN {OPEN_STATUSES} AND e.status <> 'running'
              AND (e.reserved_for IN (SELECT d.id FROM {NAMES.of(dialect, "d")})
                OR NOT EXISTS (SELECT 1 FROM nodes n WHERE n.id = e.reserved_for AND (n.lease_until >= :now
                  OR (:watched = 1 AND n.id NOT IN (SELECT s.id FROM {NAMES.of(dialect, "s", "silent")})))))"""

        self._expired = f"SELECT {EXECUTION_SELECT} FROM executions WHERE {EXPIRED}"
        # Not with every word: a row that is good for long enough is left as it is.
        self._seen = f"""
            INSERT INTO nodes (id, kind, host, boot_id, pid, start_ticks, version, max_running, state, started_at,
              seen_at, lease_until, per_execution_usd, per_day_usd)
            SELECT w.id, 'worker', '', '', 0, 0, '', 0, 'up', :now, :now, :now + w.lasts, w.per_execution, w.per_day
            FROM {_WORKERS.of(dialect, "w")}
            WHERE NOT EXISTS (SELECT 1 FROM nodes k WHERE k.id = w.id AND k.lease_until >= :now + w.enough
              AND coalesce(k.per_execution_usd, -1) = coalesce(w.per_execution, -1)
              AND coalesce(k.per_day_usd, -1) = coalesce(w.per_day, -1))
            ON CONFLICT (id) DO UPDATE SET seen_at = excluded.seen_at,
              started_at = CASE WHEN nodes.lease_until < excluded.seen_at THEN excluded.seen_at
                ELSE nodes.started_at END,
              lease_until = CASE WHEN nodes.lease_until > excluded.lease_until THEN nodes.lease_until
                ELSE excluded.lease_until END,
              per_execution_usd = excluded.per_execution_usd, per_day_usd = excluded.per_day_usd
            RETURNING nodes.id, CASE WHEN nodes.started_at = nodes.seen_at THEN 1 ELSE 0 END"""

        self._left = LEFT.format(names=NAMES.of(dialect, "d"))
        gone = f"IN (SELECT d.id FROM {NAMES.of(dialect, 'd')})"
        self._let_go = (
            "UPDATE outbox SET claimed_by = NULL, claimed_until = 0 "
            f"WHERE delivered_at IS NULL AND claimed_by IS NOT NULL AND claimed_by {gone} RETURNING id",
            "UPDATE inbox SET claimed_by = NULL, claimed_until = 0 "
            f"WHERE handled_at IS NULL AND claimed_by IS NOT NULL AND claimed_by {gone} RETURNING id",
            f"UPDATE duties SET node = NULL, until = 0 WHERE node {gone}",
        )

    def start(self, nodes: Sequence[tuple[Node, int]], now: int) -> Generator[Step, Rows, list[None]]:
        """Make (node, lease ms) known."""
        for node, lease in nodes:
            yield Statement(
                "INSERT INTO nodes (id, kind, host, boot_id, pid, start_ticks, version, max_running, state, "
                "started_at, seen_at, lease_until, notifies, place) VALUES (:id, :kind, :host, :boot, :pid, :ticks, "
                ":version, :most, 'up', :now, :now, :now + :lease, :notifies, :place)",
                {
                    "id": node.id, "kind": node.kind, "host": node.host, "boot": node.boot_id, "pid": node.pid,
                    "ticks": node.start_ticks, "version": node.version, "most": node.max_running, "now": now,
                    "lease": lease, "notifies": int(node.notifies), "place": node.place,
                },
            )  # fmt: skip
            yield events_statement(
                self._dialect,
                now,
                [event(EventType.NODE_STARTED, None, None, node=node.id, kind=node.kind, version=node.version)],
            )
        return [None] * len(nodes)

    def serve(self, servings: Sequence[Serving], now: int) -> Generator[Step, Rows, list[None]]:
        """Write down what a node serves from now on, as whom, and for how much."""
        for said in servings:
            node, budget = {"node": said.node}, said.budget
            yield Statement("DELETE FROM node_projects WHERE node_id = :node", node)
            yield Statement("DELETE FROM node_accounts WHERE node_id = :node", node)
            yield Statement(
                "UPDATE nodes SET choosy = 1, per_execution_usd = :execution, per_day_usd = :day, "
                "notifies = coalesce(:notifies, notifies) WHERE id = :node",
                node
                | {"execution": budget.per_execution, "day": budget.per_day}
                | {"notifies": None if said.notifies is None else int(said.notifies)},
            )
            yield Statement(
                "INSERT INTO node_projects (node_id, project_id) "
                f"SELECT n.id, p.id FROM {_IDS.of(self._dialect, 'p')} JOIN nodes n ON n.id = :node",
                node | {"items": _IDS.rows((project,) for project in said.projects)},
            )
            accounts = [
                (project, clean(backend), clean(account))
                for project, by_backend in said.accounts.items()
                for backend, account in by_backend.items()
                if account
            ]
            yield Statement(
                "INSERT INTO node_accounts (node_id, project_id, backend, account) SELECT n.id, a.project_id, "
                f"a.backend, a.account FROM {_ACCOUNTS.of(self._dialect, 'a')} JOIN nodes n ON n.id = :node",
                node | {"items": _ACCOUNTS.rows(accounts)},
            )
            yield Notify({"*"})  # what nobody could do, or pay for, may be done now
        return [None] * len(servings)

    def drain(self, nodes: Sequence[str], now: int) -> Generator[Step, Rows, list[None]]:
        """Say that a node takes nothing new."""
        for node in nodes:
            yield Statement("UPDATE nodes SET state = 'draining' WHERE id = :id", {"id": node})
        return [None] * len(nodes)

    def beat(self, beats: Sequence[Beat], now: int) -> Generator[Step, Rows, list[list[Held]]]:
        """Renew all of a node's leases in one statement."""
        held = []
        for beat in beats:
            renewed = {"now": now, "lease": beat.lease, "node": beat.node}
            yield Statement(
                "UPDATE nodes SET seen_at = :now, lease_until = :now + :lease, beats = beats + 1 WHERE id = :node",
                renewed,
            )
            rows = yield Statement(
                # Also one that has ended: as long as nobody took it back it is this node's, and a wall clock that
                # jumped, or a machine that slept, must not cost it its work.
                "UPDATE executions SET lease_until = :now + :lease WHERE node = :node AND status = 'running' "
                "RETURNING executions.id, executions.fence, executions.cancel_requested",
                renewed,
            )
            held.append([Held(id, fence, bool(cancel)) for id, fence, cancel in rows])
        return held

    def seen(self, workers: Sequence[Worker], now: int) -> Generator[Step, Rows, None]:
        """Make workers known, or known for longer; a new one's event, and an end to those long unheard."""
        rows: dict[str, tuple[str, int, int, float | None, float | None]] = {}
        for w in sorted(workers, key=lambda w: w.lease + w.stay):  # of one that speaks twice, the longer counts
            enough = w.lease // 2 + w.stay
            rows[w.node] = (w.node, w.lease + w.stay, enough, w.budget.per_execution, w.budget.per_day)
        written = yield Statement(self._seen, {"now": now, "items": _WORKERS.rows(rows.values())})
        new = [id for id, is_new in written if is_new]
        if not new:
            return
        gone = yield Statement(
            "DELETE FROM nodes WHERE kind = 'worker' AND lease_until < :past RETURNING nodes.id",
            {"past": now - UNHEARD},
        )
        yield events_statement(
            self._dialect,
            now,
            [event(EventType.NODE_STARTED, None, None, node=id, kind="worker") for id in new]
            + [event(EventType.NODE_STOPPED, None, None, node=id, reason=QUIET) for (id,) in gone],
        )

    def expire(self, now: int) -> Generator[Step, Rows, None]:
        """Take back what workers held on leases that have ended."""
        rows = yield Statement(self._expired, {"now": now})
        if rows:
            lost = [to_execution(row) for row in rows]
            yield from self._finish.end([_taken_back(e, Loss((), "")) for e in lost], now, lost=True)
            yield Notify({str(execution.project_id) for execution in lost})

    def recover(self, losses: Sequence[Loss], now: int) -> Generator[Step, Rows, list[list[Execution]]]:
        """Take back what dead nodes and ended leases held; the rows as they were."""
        answers = []
        for loss in losses:
            answers.append((yield from self._recover(loss, now)))
        return answers

    def _recover(self, loss: Loss, now: int) -> Generator[Step, Rows, list[Execution]]:
        names = NAMES.rows((name,) for name in loss.nodes)
        rows = yield Statement(self.lost, {"now": now, "items": names})
        lost = [to_execution(row) for row in rows]
        if loss.fences is not None:
            lost = [execution for execution in lost if (execution.id, execution.fence) in loss.fences]
        dead = set(loss.nodes)
        if loss.left:  # what others lost is theirs to take back who have ended its processes
            lost = [execution for execution in lost if execution.node in dead]
        finishes = [_taken_back(e, loss) for e in lost]
        if finishes:
            yield from self._finish.end(finishes, now, lost=not loss.left)
            yield Notify({str(execution.project_id) for execution in lost})
        silent = NAMES.rows((name,) for name in loss.silent or ())
        watched = int(loss.silent is not None)
        orphans = yield Statement(self._orphans, {"now": now, "items": names, "silent": silent, "watched": watched})
        if orphans:
            reason = "the `pilot run` that asked for it has ended"
            yield from self._cancel([CancelRequest(id, by="pilot", reason=reason) for id, _ in orphans], now)
        if dead:
            freed: Rows = []
            for sql in self._let_go:  # what they had in hand is free for others
                freed += yield Statement(sql, {"items": names})
            if freed:
                yield Notify({"outbox", "inbox"})
            if loss.left:
                yield Statement(self._left, {"items": names, "until": now + BACK})
            yield Statement(GONE, {"now": now})
            yield Statement(
                f"DELETE FROM nodes WHERE id IN (SELECT d.id FROM {NAMES.of(self._dialect, 'd')})",
                {"items": names},
            )
            yield events_statement(
                self._dialect,
                now,
                [event(EventType.NODE_STOPPED, None, None, node=name, reason=loss.why) for name in loss.nodes],
            )
        return lost


def _taken_back(execution: Execution, loss: Loss) -> Finish:
    """Back to the queue, uncounted; unless somebody had asked for its end, or it may be what kills nodes."""
    why = loss.why if execution.node in loss.nodes else "its lease ended"
    detail = why if loss.left else LOST.format(node=execution.node) + why
    outcome = Outcome(ending=Ending.INTERRUPTED, detail=detail)
    if execution.cancel_requested:
        settlement = Settlement(to=Status.CANCELLED, reason=execution.reason or "cancelled")
    elif execution.reserved_for is not None:
        settlement = Settlement(to=Status.CANCELLED, reason="the `pilot run` that ran it has ended", keep_session=True)
    elif (execution.node or "").startswith(WORKER):
        # Nobody can ask what became of such a worker: an end that says so, not a question.
        if execution.losses + 1 >= execution.max_attempts:
            outcome = Outcome(ending=Ending.FAILED, failure=FailureClass.INFRA, detail=detail)
            reason = f"infra: {detail}; that happened {execution.losses + 1} times in a row (max_attempts)"
            settlement = Settlement(to=Status.FAILED, reason=reason, keep_session=True)
        else:
            settlement = Settlement(to=Status.QUEUED, reason=detail, keep_session=True)
    elif execution.losses + 1 >= MAX_LOSSES and not loss.left:
        reason = f"{detail}; that happened {MAX_LOSSES} times in a row with this task. Answer to try it again"
        settlement = Settlement(to=Status.NEEDS_HUMAN, reason=reason, keep_session=True, question=Question(reason))
    else:
        settlement = Settlement(to=Status.QUEUED, reason=detail, keep_session=True)
    return Finish(execution=execution, outcome=outcome, settlement=settlement)
