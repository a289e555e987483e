"""Claims of workers elsewhere: from all projects at once, whatever has waited longest, by what each worker takes.

A worker is known by its name alone. Its claims have leases of their own, and are taken back as soon as those end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pilot.domain.budget import Budget
from pilot.domain.execution import Execution
from pilot.domain.work import Claim as Claimed
from pilot.domain.work import Made, Wanted
from pilot.store.claim import Claim
from pilot.store.database import Dialect, Row, Rows, Statement, Step
from pilot.store.heads import PAUSED, ClaimRequest, among, due_projects, head
from pilot.store.made import made_of, to_made
from pilot.store.nodes import EXPIRED, Nodes, Worker
from pilot.store.places import elsewhere
from pilot.store.records import Table, dumps, ids

Filter = tuple[str | None, str | None, str | None]
"""What decides which rows a worker gets: lanes and kinds by `among`, names of projects as `_NAMES` rows."""

_NAMES = Table(name="text")
_OVERDUE = """
    SELECT 1 FROM executions WHERE status = 'queued' AND due = 0 AND available_at <= :now"""


@dataclass(frozen=True, slots=True)
class Ask:
    """One worker that wants up to `max` executions for `lease` ms; it is there for `stay` ms, and may spend so much."""

    worker: str
    max: int
    lease: int
    stay: int
    budget: Budget
    filter: Filter


def filter_of(wanted: Wanted) -> Filter:
    """The same for workers that want the same."""
    names = dumps([[name] for name in sorted(set(wanted.projects))]) if wanted.projects else None
    return among(sorted(set(wanted.lanes))), among(sorted(set(wanted.kinds))), names


class Pool:
    """The operations."""

    def __init__(self, dialect: Dialect, claim: Claim, nodes: Nodes) -> None:
        self._claim = claim
        self._nodes = nodes
        self._made = made_of(dialect)
        named = f"""
            WITH walk(project_id) AS (SELECT x.id FROM projects x
              WHERE x.name IN (SELECT w.name FROM {_NAMES.of(dialect, "w", "names")}))"""
        # What a direct run has reserved is its alone, and its project gives nothing: it goes first there.
        rest = f"""
            FROM walk JOIN projects p ON p.id = walk.project_id LEFT JOIN nodes n ON n.id = :node
              JOIN executions e ON e.id = ({head(dialect, ":node", external=True, lanes=":lanes", kinds=":kinds")})
            WHERE p.running < p.max_running AND NOT {PAUSED.format(project="p.id")} AND e.reserved_for IS NULL
              AND NOT {elsewhere("''", "e")}"""
        first = f"SELECT p.id, e.id, p.max_running - p.running {rest} ORDER BY e.priority, e.id LIMIT :most"
        due = due_projects(external=True)
        self._first = {False: f"{due} {first}", True: f"{named} {first}"}
        self._any = {False: f"{due} SELECT 1 {rest} LIMIT 1", True: f"{named} SELECT 1 {rest} LIMIT 1"}

    def __call__(
        self, asks: Sequence[Ask], now: int, *, expire: bool = True
    ) -> Generator[Step, Rows, list[list[Claimed]]]:
        """Answers in the order of the asks. `expire`: take back first what workers hold on ended leases."""
        yield from self._claim.promote([None], now)
        if expire:
            yield from self._nodes.expire(now)
        yield from self._nodes.seen([Worker(a.worker, a.lease, a.stay, a.budget) for a in asks], now)
        taken = yield from self._take(asks, now)
        found = [execution for executions in taken for execution in executions]
        made: Mapping[int, tuple[Made, ...]] = {}
        if found:
            made = to_made((yield Statement(self._made, {"ids": ids(execution.id for execution in found)})))
        return [[_claimed(execution, made) for execution in executions] for executions in taken]

    def _take(self, asks: Sequence[Ask], now: int) -> Generator[Step, Rows, list[list[Execution]]]:
        taken: list[list[Execution]] = [[] for _ in asks]
        refused: set[tuple[Filter, int]] = set()
        lists: dict[Filter, deque[Row]] = {}
        more = True
        while more:
            wanting = [n for n, ask in enumerate(asks) if len(taken[n]) < ask.max]
            chosen, several = yield from self._choose(asks, wanting, taken, refused, lists, now)
            requests = [
                ClaimRequest(
                    project, asks[n].worker, asks[n].lease, external=True, lanes=asks[n].filter[0],
                    kinds=asks[n].filter[1], head=first,
                )
                for project, (first, n) in chosen.items()
            ]  # fmt: skip
            answers = (yield from self._claim.take(requests, now)) if requests else []
            more = several
            for (project, (_, n)), execution in zip(chosen.items(), answers, strict=True):
                if execution is None:  # the day's money, or a probe; others may have it
                    refused.add((asks[n].filter, project))
                    more = True
                else:
                    taken[n].append(execution)
            if any(answers):  # what was seen holds as long as nothing is written
                lists.clear()
        return taken

    def _choose(
        self, asks: Sequence[Ask], wanting: Sequence[int], taken: Sequence[Sequence[Execution]],
        refused: set[tuple[Filter, int]], lists: dict[Filter, deque[Row]], now: int,
    ) -> Generator[Step, Rows, tuple[dict[int, tuple[int, int]], bool]]:  # fmt: skip
        """By project, its first and who gets it; and whether one of them has more to give.

        `lists`: what is left of an earlier look, by filter; each new one looks twice as far past what was refused.
        """
        chosen: dict[int, tuple[int, int]] = {}
        several = False
        wanted = sum(asks[n].max - len(taken[n]) for n in wanting)
        asked: set[Filter] = set()
        for n in wanting:
            ask = asks[n]
            if ask.filter not in asked and not lists.get(ask.filter):
                most = wanted + 2 * len(refused)
                rows = yield Statement(self._first[ask.filter[2] is not None], {**_params(ask, now), "most": most})
                lists[ask.filter] = deque(row for row in rows if (ask.filter, row[0]) not in refused)
            asked.add(ask.filter)
            firsts, room = lists[ask.filter], ask.max - len(taken[n])
            while room and firsts:
                project, first, free = firsts.popleft()
                if project not in chosen:
                    chosen[project] = first, n
                    several = several or free > 1
                    room -= 1
        return chosen, several

    def waiting(self, asks: Iterable[Ask], now: int) -> Iterator[Statement]:
        """Statements of which one finds a row when it is worth while to ask for these, or there is to be cleared up."""
        yield Statement(f"{_OVERDUE} UNION ALL SELECT 1 FROM executions WHERE {EXPIRED} LIMIT 1", {"now": now})
        for ask in {ask.filter: ask for ask in asks}.values():
            yield Statement(self._any[ask.filter[2] is not None], _params(ask, now))


def _params(ask: Ask, now: int) -> dict[str, object]:
    lanes, kinds, names = ask.filter
    return {"now": now, "node": ask.worker, "lanes": lanes, "kinds": kinds, "names": names}


def _claimed(execution: Execution, made: Mapping[int, tuple[Made, ...]]) -> Claimed:
    return Claimed(
        execution=execution,
        fence=execution.fence,
        lease_until=execution.lease_until or 0,
        made=made.get(execution.id, ()),
    )
