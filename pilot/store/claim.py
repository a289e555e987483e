"""Claim: the head of a project's queue becomes running, under a lease and a new fence."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable, Sequence
from dataclasses import replace

from pilot.domain.budget import Budget
from pilot.domain.errors import StoreError
from pilot.domain.events import EventType
from pilot.domain.execution import Execution
from pilot.store.database import HEARD, LAST, Ahead, Dialect, Rows, Statement, Step
from pilot.store.heads import ClaimRequest, Head, Heads
from pilot.store.parks import Parks, Probe, account_of
from pilot.store.places import Places
from pilot.store.records import OWED, EventRow, Table, event, events_statement
from pilot.store.rows import EXECUTION_SELECT, to_execution
from pilot.store.spending import Spending, fits

_CLAIMS = Table(
    id="bigint", project_id="bigint", fence="bigint", slot="bigint", node="text", lease="bigint",
    place="text", handed="bigint",
)  # fmt: skip
_REROUTED = Table(id="bigint", backend="text", fallback="text")
_STARTED = Table(
    execution_id="bigint", number="bigint", fence="bigint", node="text", backend="text", model="text",
    account="text", reserved="bigint", probe="bigint",
)  # fmt: skip

_PROMOTE = "UPDATE executions SET due = 1 WHERE status = 'queued' AND due = 0 AND available_at <= :now"


class Claim:
    """The operation, also run as the second half of a finish."""

    def __init__(self, dialect: Dialect, parks: Parks, spending: Spending) -> None:
        self._dialect = dialect
        self._parks = parks
        self._spending = spending
        self._places = Places(dialect)
        self._heads = Heads(dialect)
        # Another agent has no use for a session or a model of the first.
        self._reroute = f"""
            UPDATE executions SET backend = t.backend, fallback = t.fallback, model = NULL, session_id = NULL
            FROM {_REROUTED.of(dialect, "t")} WHERE executions.id = t.id"""
        self._take = f"""
            UPDATE executions SET status = 'running', slot = c.slot, node = c.node, fence = c.fence,
              lease_until = :now + c.lease, attempt = attempt + 1, cancel_requested = 0, reason = NULL,
              started_at = coalesce(started_at, :now), place = c.place
            FROM {_CLAIMS.of(dialect, "c")}
            -- by its id alone: an index of what is queued would be read from end to end
            WHERE executions.id = c.id AND executions.status || '' = 'queued'
            RETURNING {EXECUTION_SELECT}"""
        self._taken = f"""
            SELECT {EXECUTION_SELECT} FROM executions JOIN {_CLAIMS.of(dialect, "c")} ON executions.id = c.id
            WHERE executions.fence = c.fence"""
        self._hold = f"""
            UPDATE projects SET running = running + 1 - c.handed, fence = c.fence
            FROM {_CLAIMS.of(dialect, "c")} WHERE projects.id = c.project_id"""
        self._attempts = f"""
            INSERT INTO attempts (execution_id, number, fence, node, backend, model, started_at, account, reserved,
              probe)
            SELECT s.execution_id, s.number, s.fence, s.node, s.backend, s.model, :now, s.account, s.reserved, s.probe
            FROM {_STARTED.of(dialect, "s")}"""

    def __call__(
        self, requests: Sequence[ClaimRequest], now: int
    ) -> Generator[Step, Rows, list[Execution | Exception | None]]:
        """Answers in the order of the requests. Nothing may be written behind it."""
        yield Statement(_PROMOTE, {"now": now})
        answers, rows = yield from self._all(requests, now)
        if answers:
            yield LAST
        found = _executions(rows)
        return [found.get(answers[n], _gone()) if n in answers else None for n in range(len(requests))]

    def take(self, requests: Sequence[ClaimRequest], now: int) -> Generator[Step, Rows, list[Execution | None]]:
        """The same, of what is known to be due, as a part of something larger."""
        answers, rows = yield from self._all(requests, now)
        if answers:
            yield HEARD
        found = _executions(rows)
        if len(found) != len(answers):
            raise _gone()
        return [found[answers[n]] if n in answers else None for n in range(len(requests))]

    def _all(
        self, requests: Sequence[ClaimRequest], now: int
    ) -> Generator[Step, Rows, tuple[dict[int, int], list[Rows]]]:
        """The ids of what the requests get, by number; and the rows of all of them, to come."""
        answers: dict[int, int] = {}
        rows: list[Rows] = []
        requests = list(requests)
        waiting = list(range(len(requests)))
        refused: set[tuple[object, ...]] = set()
        while waiting:
            # One per project and pass: the head of a project is another one once its first is taken.
            first: dict[int, int] = {}
            for n in waiting:
                first.setdefault(requests[n].project_id, n)
            taken, later = yield from self._pass([requests[n] for n in first.values()], rows, now)
            for project, n in first.items():
                if project in taken:
                    answers[n] = taken[project]
                elif project not in later:
                    refused.add(requests[n].who)  # others may still get what is reserved for them
                else:
                    requests[n] = replace(requests[n], head=None)
            looked_at = {n for project, n in first.items() if project not in later}
            waiting = [n for n in waiting if n not in looked_at and requests[n].who not in refused]
        return answers, rows

    def promote(self, items: Sequence[None], now: int) -> Generator[Step, Rows, list[None]]:
        """Put into the claim index whatever has become due."""
        yield Statement(_PROMOTE, {"now": now})
        return [None] * len(items)

    def _pass(
        self, requests: Sequence[ClaimRequest], taken: list[Rows], now: int
    ) -> Generator[Step, Rows, tuple[dict[int, int], set[int]]]:
        """What is taken, by project, its row to come in `taken`; the projects to look at again once it is written."""
        asked = {request.project_id: request for request in requests}
        heads = yield from self._heads.of(requests, now)
        chosen, reserved, later = _admitted(heads)
        if not chosen:
            return {}, later
        if any(head.probes for head in chosen.values()):
            # It closes that park to the others, and a head that waits for it is not in the way of what can go on.
            later |= {request.project_id for request in requests} - {head.project_id for head in chosen.values()}
        rerouted = [(h.id, h.backend, h.chain) for h in chosen.values() if h.backend != h.was]
        if rerouted:
            yield Statement(self._reroute, {"items": _REROUTED.rows(rerouted)})
        claims = _CLAIMS.rows(
            (h.id, h.project_id, h.fence, h.slot, h.node, r.lease, h.place or None, int(r.handed))
            for h, r in ((h, asked[h.project_id]) for h in chosen.values())
        )
        moved = {h.id: h.home for h in chosen.values() if h.home is not None and h.home != h.place}
        yield from self._places.moved(moved)
        # Their rows can be read while it is committed: whatever is a head now can be taken.
        parameters = {"now": now, "items": claims}
        taken.append((yield Ahead(Statement(self._take, parameters), Statement(self._taken, parameters))))
        yield Statement(self._hold, {"items": claims})
        yield from self._begin(chosen.values(), reserved, now)
        yield from self._places.together({h.id: h.place for h in chosen.values() if h.planned and h.place})
        if any(h.followed for h in chosen.values()):
            yield OWED
        probes = [Probe(h.backend, h.account, h.id, h.fence, h.project_id) for h in chosen.values() if h.probes]
        if probes:
            yield from self._parks.probe(probes, now)
        return {head.project_id: head.id for head in chosen.values()}, later

    def _begin(self, heads: Collection[Head], reserved: dict[int, int], now: int) -> Generator[Step, Rows, None]:
        started = _STARTED.rows(
            (h.id, h.attempt + 1, h.fence, h.node, h.backend, h.model if h.backend == h.was else None, h.account,
             reserved.get(h.id), h.probes)
            for h in heads
        )  # fmt: skip
        yield Statement(self._attempts, {"now": now, "items": started})
        told: list[EventRow] = []
        for h in heads:
            if h.backend != h.was:
                told.append((yield from self._rerouted(h)))
            facts: dict[str, object] = {"attempt": h.attempt + 1, "fence": h.fence, "node": h.node, "slot": h.slot}
            if h.home not in (None, h.place):
                facts["anew"] = f"what was begun of it lies on {h.home}"
            told.append(event(EventType.STARTED, h.id, h.project_id, **facts))
        yield events_statement(self._dialect, now, told)
        if reserved:
            yield from self._spending.reserve(reserved.values(), now)

    def _rerouted(self, head: Head) -> Generator[Step, Rows, EventRow]:
        account = account_of(":node", ":project", ":backend")
        rows = yield Statement(
            "SELECT k.failure, k.reason FROM parks k WHERE k.backend = :backend "
            f"AND k.account IN ('', {account}) ORDER BY k.since LIMIT 1",
            {"node": head.node, "project": head.project_id, "backend": head.was},
        )
        reason = ": ".join(rows[0]) if rows else ""
        facts = {"from": head.was, "to": head.backend, "reason": f"{head.was} takes no work: {reason}"}
        return event(EventType.REROUTED, head.id, head.project_id, **facts)


def _executions(rows: Iterable[Rows]) -> dict[int, Execution]:
    return {execution.id: execution for some in rows for execution in map(to_execution, some)}


def _gone() -> StoreError:
    return StoreError("what was to be claimed is no longer queued")


def _admitted(heads: Iterable[Head]) -> tuple[dict[int, Head], dict[int, int], set[int]]:
    """By execution id, what may be taken together, and what it sets aside; the projects to look at afterwards."""
    chosen: dict[int, Head] = {}
    reserved: dict[int, int] = {}
    later: set[int] = set()
    tried: set[str] = set()
    for head in heads:
        budget = Budget(head.per_execution_usd, head.per_day_usd)
        if head.probes and head.backend in tried:  # one probe, and the others see it; a fallback may be free for them
            later.add(head.project_id)
        elif fits(budget, head.cost_usd, head.forgiven_usd, head.booked + sum(reserved.values())):
            chosen[head.id] = head
            amount = budget.reservation(head.cost_usd, head.forgiven_usd)
            if amount is not None:
                reserved[head.id] = amount
            if head.probes:
                tried.add(head.backend)
    return chosen, reserved, later
