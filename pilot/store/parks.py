"""Parks: a backend whose account is used up takes no work, on any node, until one claim has found it well again.

A park is closed until its time, or until a person opens it; then it is half-open: one claim may try it, its probe,
and the others wait for what comes of that. A probe that says nothing (cancelled, interrupted, lost) leaves its place
to the next by itself: it holds it only as long as it runs under its fence.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pilot.domain.errors import NotFound
from pilot.domain.events import EventType
from pilot.domain.execution import Execution
from pilot.domain.outcome import Ending, FailureClass, Outcome
from pilot.domain.policy import Park, parked_until
from pilot.domain.ports import Finish
from pilot.domain.text import clean
from pilot.store.database import Dialect, Notify, Rows, Statement, Step
from pilot.store.records import LARGE, OWED, Table, event, events_statement, short

FORGOTTEN = 7 * 24 * 60 * 60 * 1000
"""ms after which a half-open park that nothing tries is no news any more: its account may be no one's now."""
OPENED = 0
"""`until` of a park that a person opened: a time that no clock goes back behind."""

_PARKS = Table(
    backend="text", account="text", failure="text", reason="text", until="bigint", tries="bigint",
    execution_id="bigint",
)  # fmt: skip
_KEYS = Table(backend="text")
_PROBES = Table(backend="text", account="text", id="bigint", fence="bigint")
_CLAIMS = Table(id="bigint", fence="bigint")

TRIED = (
    "EXISTS (SELECT 1 FROM executions x WHERE x.id = k.probe_id AND x.status = 'running' AND x.fence = k.probe_fence)"
)
"""Park `k` has its probe."""
CLOSED = f"(k.until IS NULL OR k.until > :now OR {TRIED})"
"""Park `k` lets nothing through."""


def account_of(node: str, project: str, backend: str) -> str:
    """The account by SQL expressions; NULL where the node did not say."""
    return (
        f"(SELECT a.account FROM node_accounts a WHERE a.node_id = {node} AND a.project_id = {project} "
        f"AND a.backend = {backend})"
    )


def standing(backend: str, account: str, *, closed: bool) -> str:
    """Whether there is a park of that backend and account; `closed`: that lets nothing through."""
    # `|| ''`: the account is looked up for the few backends that have a park, not for every row that is looked at.
    which = f"k.backend = {backend} AND k.account || '' IN ('', {account})"
    return f"EXISTS (SELECT 1 FROM parks k WHERE {which}{f' AND {CLOSED}' if closed else ''})"


class Probe(NamedTuple):
    """A claim that is to be one."""

    backend: str
    account: str
    id: int
    fence: int
    project_id: int


@dataclass(frozen=True, slots=True)
class Unpark:
    """What a person opens; `account` None: whatever the account."""

    backend: str
    by: str
    account: str | None = None


class Parks:
    """The operations on parks, and their part in those on executions."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._known = f"""
            SELECT k.backend, k.account, k.until, k.tries, k.failure, k.reason FROM parks k
            WHERE k.backend IN (SELECT b.backend FROM {_KEYS.of(dialect, "b")})"""
        self._park = f"""
            INSERT INTO parks (backend, account, failure, reason, until, since, changed_at, tries, execution_id)
            SELECT p.backend, p.account, p.failure, p.reason, p.until, :now, :now, p.tries, p.execution_id
            FROM {_PARKS.of(dialect, "p")} WHERE true
            ON CONFLICT (backend, account) DO UPDATE SET failure = excluded.failure, reason = excluded.reason,
              until = excluded.until, changed_at = excluded.changed_at, tries = excluded.tries,
              execution_id = excluded.execution_id, probe_id = NULL, probe_fence = NULL"""
        self._probe = f"""
            UPDATE parks SET probe_id = t.id, probe_fence = t.fence FROM {_PROBES.of(dialect, "t")}
            WHERE parks.backend = t.backend AND parks.account IN ('', t.account)"""
        self._end = f"""
            DELETE FROM parks WHERE EXISTS (SELECT 1 FROM {_CLAIMS.of(dialect, "c")}
              WHERE c.id = parks.probe_id AND c.fence = parks.probe_fence)
            RETURNING parks.backend, parks.account, parks.probe_id"""

    def probe(self, claims: Sequence[Probe], now: int) -> Generator[Step, Rows, None]:
        """Make each claim the probe of what is half-open for its account."""
        yield Statement(self._probe, {"items": _PROBES.rows(claim[:-1] for claim in claims)})
        told = [event(EventType.PROBED, e.id, e.project_id, backend=e.backend, account=e.account) for e in claims]
        yield events_statement(self._dialect, now, told)

    def answered(self, claims: Iterable[tuple[int, int]], now: int) -> Generator[Step, Rows, None]:
        """The model has answered these claims (execution id, fence): the parks that they are the probes of end."""
        rows = yield Statement(self._end, {"items": _CLAIMS.rows(claims)})
        if rows:
            told = [
                event(EventType.UNPARKED, None, None, backend=backend, account=account, by=f"execution {id}")
                for backend, account, id in sorted(rows)
            ]
            yield events_statement(self._dialect, now, told)
            yield Notify({"*"})

    def settle(
        self, finishes: Sequence[Finish], accounts: Mapping[int, str], probes: set[int], now: int
    ) -> Generator[Step, Rows, None]:
        """What ended attempts mean for parks. `accounts`, `probes`: by execution id, of those attempts."""
        parking = [finish for finish in finishes if finish.settlement.park is not None]
        if parking:
            yield from self._close(parking, accounts, now)
        tried = [finish for finish in finishes if finish.execution.id in probes]
        well = [f for f in tried if f.settlement.park is None and not _says_nothing(f.outcome)]
        if well:
            yield from self.answered(((f.execution.id, f.execution.fence) for f in well), now)
        if tried:  # whatever waited for the answer: for one of them the place is free, or the backend
            yield Notify({"*"})

    def _close(self, finishes: Sequence[Finish], accounts: Mapping[int, str], now: int) -> Generator[Step, Rows, None]:
        longest: dict[tuple[str, str], tuple[float, Park, Execution]] = {}
        for finish in finishes:
            park, execution = finish.settlement.park, finish.execution
            assert park is not None  # noqa: S101  chosen by it
            account = accounts.get(execution.id, "") if park.account is None else park.account
            lasting = math.inf if park.until is None else park.until
            key = clean(park.backend), clean(account)
            if key not in longest or lasting >= longest[key][0]:
                longest[key] = lasting, park, execution
        known = yield Statement(self._known, {"items": _KEYS.rows({(backend,) for backend, _ in longest})})
        before = {(backend, account): stored for backend, account, *stored in known}
        rows, told = [], []
        for key, (_, park, execution) in longest.items():
            stored = before.get(key)
            until, tries = _merged(park, None if stored is None else (stored[0], stored[1]), now)
            failure, reason = str(park.failure), short(park.reason)
            if stored is not None and until is None and park.until is not None:
                failure, reason = stored[2:]  # it is still what a person has to mend
            rows.append((*key, failure, reason, until, tries, execution.id))
            facts = {"backend": key[0], "account": key[1], "until": until, "reason": reason}
            told.append(event(EventType.PARKED, execution.id, None, **facts))
        yield Statement(self._park, {"now": now, "items": _PARKS.rows(rows)})
        yield events_statement(self._dialect, now, told)
        yield OWED

    def unpark(self, requests: Sequence[Unpark], now: int) -> Generator[Step, Rows, list[Exception | None]]:
        """Let parked backends be tried. What is half-open already stays so."""
        answers: list[Exception | None] = []
        for request in requests:
            which = "backend = :backend AND (:account IS NULL OR account = :account)"
            given = {"backend": request.backend, "account": request.account}
            rows = yield Statement(
                f"UPDATE parks SET until = {OPENED}, changed_at = :now WHERE {which} "
                "AND (until IS NULL OR until > :now) RETURNING parks.account",
                {**given, "now": now},
            )
            if rows:
                told = [
                    event(
                        EventType.HALF_OPENED, None, None, backend=request.backend, account=account,
                        by=clean(request.by),
                    )
                    for (account,) in sorted(rows)
                ]  # fmt: skip
                yield events_statement(self._dialect, now, told)
                yield Notify({"*"})
            there = rows or (yield Statement(f"SELECT 1 FROM parks WHERE {which} LIMIT 1", given))
            answers.append(None if there else NotFound(f"backend {request.backend!r} is not parked"))
        return answers

    def forget(self, requests: Sequence[None], now: int) -> Generator[Step, Rows, list[list[str]]]:
        """Remove the parks that were half-open for long and that nothing tries; their backends."""
        rows = yield Statement(
            "DELETE FROM parks WHERE until < :past AND changed_at < :past AND "
            f"NOT {TRIED.replace('k.', 'parks.')} RETURNING parks.backend, parks.account",
            {"past": now - FORGOTTEN},
        )
        if rows:
            told = [
                event(EventType.UNPARKED, None, None, backend=backend, account=account, by="time")
                for backend, account in sorted(rows)
            ]
            yield events_statement(self._dialect, now, told)
            yield Notify({"*"})
        return [sorted(backend for backend, _ in rows)] * len(requests)


_ELSEWHERE = (
    FailureClass.INFRA, FailureClass.NETWORK, FailureClass.CONFLICT, FailureClass.STALL, FailureClass.TIMEOUT,
)  # fmt: skip
"""Had the model answered before, the park would be over already."""


def _says_nothing(outcome: Outcome) -> bool:
    """Whether the end tells nothing of the backend's account."""
    return outcome.ending in (Ending.CANCELLED, Ending.INTERRUPTED) or outcome.failure in _ELSEWHERE


def _merged(park: Park, before: tuple[int | None, int] | None, now: int) -> tuple[int | None, int]:
    """(until, tries) of a park over what is stored: of two that are closed the longer, of a half-open one the new."""
    if before is None:
        tries, until = 1, parked_until(park, 1, now)
    elif before[0] is not None and before[0] <= now:
        tries = before[1] + 1
        until = parked_until(park, tries, now)
    else:
        tries, until = before[1], parked_until(park, before[1], now)
        until = None if until is None or before[0] is None else max(until, before[0])
    return (None if until is None else min(until, LARGE)), tries
