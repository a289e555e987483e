"""`SqlWorkQueue`: the queue as workers use it, on any engine. See `domain.work.WorkQueue`."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from pilot.domain.agent import OutputKind
from pilot.domain.budget import Budget
from pilot.domain.errors import NotFound, UsageError
from pilot.domain.execution import Enqueued, Execution, Status
from pilot.domain.outcome import Ending, FailureClass, Outcome
from pilot.domain.policy import RULES, Rule
from pilot.domain.ports import Document
from pilot.domain.task import Project, Task
from pilot.domain.text import one_line
from pilot.domain.work import (
    LEASE,
    LEASES,
    MAX_CLAIMED,
    WORKER,
    Artifact,
    Beaten,
    Claim,
    Next,
    Progress,
    Settled,
    Wanted,
)
from pilot.store.admin import Registration
from pilot.store.artifacts import check_artifacts
from pilot.store.database import Database
from pilot.store.history import History
from pilot.store.journal import FACTS, SqlJournal
from pilot.store.last_words import ClaimKey, LastWords, Renewal, Renewals, Word
from pilot.store.pool import Ask, Pool, filter_of
from pilot.store.queue import SqlQueue, Steps
from pilot.store.stats import stats
from pilot.store.waiters import Waiters

T = TypeVar("T")
_ANY, _NOTHING = Wanted(), Progress()
JUMP = 2_000
"""ms by which the wall clock may leave the steady one between two looks: it is set bit by bit, not at once."""
GONE = "its worker had gone before it got it"


class SqlWorkQueue:
    """One transaction per method, shared with whoever else waits.

    A project that nobody knows by that name gives nothing: it may be made known while a worker waits for it.
    `steady`: seconds that pass evenly, to know a wall clock that jumped or a machine that slept; None: it can't be.
    """

    def __init__(
        self,
        database: Database,
        queue: SqlQueue,
        journal: SqlJournal,
        *,
        rules: Callable[[], Mapping[FailureClass, Rule]] = lambda: RULES,
        budget: Callable[[], Budget] = Budget,
        jitter: Callable[[], float] = random.random,
        steady: Callable[[], float] | None = None,
    ) -> None:
        self._database = database
        self._queue = queue
        self._history = History(database)
        self._rules = rules
        self._budget = budget
        self._pool = Pool(database.dialect, queue.claiming, queue.known_nodes)
        self._last_words = LastWords(database.dialect, queue.finishing, lambda: self._rules(), jitter)
        self._renewals = Renewals(database.dialect, queue.known_nodes, journal)
        self._waiters = Waiters(database.listen, self._worthwhile, self._take_all, self._give_back, self._due)
        self._giving_back: set[asyncio.Task[None]] = set()
        self._steady = steady
        self._seen = (database.clock(), 0.0 if steady is None else steady() * 1000)
        self._trusting = 0.0

    def govern(self, rules: Callable[[], Mapping[FailureClass, Rule]], budget: Callable[[], Budget]) -> None:
        """Ask these, each time, what follows from a failure and what workers may spend; also after a reload."""
        self._rules, self._budget = rules, budget

    # Operations: bound methods, so that calls of one kind meet in one set of statements.

    def _claims(self, items: Sequence[Ask]) -> Steps:
        now = self._database.clock()
        return self._pool(items, now, expire=self._trusts(now))

    def _beats(self, items: Sequence[Renewal]) -> Steps:
        return self._renewals.beat(items, self._database.clock())

    def _outputs(self, items: Sequence[tuple[ClaimKey, Sequence[tuple[OutputKind, bytes]]]]) -> Steps:
        return self._renewals.output(items, self._database.clock())

    def _ends(self, items: Sequence[tuple[Word, Ask | None]]) -> Steps:
        now = self._database.clock()
        answers = yield from self._last_words([word for word, _ in items], now)
        # Only then: what a last word sets free may be what is next.
        going_on = [
            (n, answer, ask)
            for n, (answer, (_, ask)) in enumerate(zip(answers, items, strict=True))
            if ask is not None and isinstance(answer, Settled)
        ]
        if going_on:
            taken = yield from self._pool([ask for _, _, ask in going_on], now, expire=self._trusts(now))
            for (n, settled, _), claims in zip(going_on, taken, strict=True):
                answers[n] = replace(settled, claims=tuple(claims))
        return answers

    def _trusts(self, now: int) -> bool:
        """Whether a lease that has ended by this clock has ended. After a jump, who lives gets time to speak first."""
        if self._steady is None:
            return True
        steady = self._steady() * 1000
        jumped = abs((now - self._seen[0]) - (steady - self._seen[1])) > JUMP
        self._seen = (now, steady)
        if jumped:
            self._trusting = steady + LEASE
        return steady >= self._trusting

    async def claim(
        self, worker: str, *, max: int = 1, wanted: Wanted = _ANY, lease: int = LEASE, wait: float = 0.0
    ) -> list[Claim]:
        """See `WorkQueue.claim`. Who is cancelled meanwhile has claimed nothing: it is given back."""
        if not (math.isfinite(wait) and wait >= 0):
            raise UsageError(f"wait {wait} makes no sense: it is seconds, 0 or more")
        ask = self._ask(worker, Next(max=max, wanted=wanted, lease=lease), stay=int(wait * 1000))
        heard = self._waiters.heard
        found = await self._take(ask)
        return found if found or not wait else await self._waiters.wait(ask, wait, heard)

    async def heartbeat(
        self, id: int, worker: str, fence: int, *, lease: int = LEASE, progress: Progress = _NOTHING
    ) -> Beaten:
        """See `WorkQueue.heartbeat`."""
        unknown = progress.facts.keys() - FACTS
        if unknown:
            raise UsageError(f"no such fact: {', '.join(sorted(unknown))}; there are {', '.join(sorted(FACTS))}")
        renewal = Renewal(_key(id, worker, fence), _lease(lease), progress, self._budget())
        return await self._database.write(self._beats, renewal)

    async def output(self, id: int, worker: str, fence: int, pieces: Sequence[tuple[OutputKind, bytes]]) -> None:
        """See `WorkQueue.output`."""
        await self._database.write(self._outputs, (_key(id, worker, fence), pieces))

    async def complete(
        self,
        id: int,
        worker: str,
        fence: int,
        outcome: Outcome,
        artifacts: Sequence[Artifact] = (),
        *,
        next: Next | None = None,
    ) -> Settled:
        """See `WorkQueue.complete`."""
        if outcome.ending not in (Ending.DONE, Ending.NO_CHANGE, Ending.QUESTION):
            raise UsageError(f"what is {outcome.ending} is not complete; `fail` or `release` says that")
        check_artifacts(artifacts)
        return await self._end(Word(_key(id, worker, fence), outcome, tuple(artifacts)), worker, next)

    async def fail(self, id: int, worker: str, fence: int, outcome: Outcome, *, next: Next | None = None) -> Settled:
        """See `WorkQueue.fail`. A used-up allowance parks no backend: it is the worker's own, and this row waits."""
        if outcome.ending is not Ending.FAILED:
            raise UsageError(f"what is {outcome.ending} has not failed; `complete` says that")
        return await self._end(Word(_key(id, worker, fence), outcome), worker, next)

    async def release(self, id: int, worker: str, fence: int, reason: str = "") -> Settled:
        """See `WorkQueue.release`."""
        key = _key(id, worker, fence)
        detail = one_line(reason, 500) or f"given back by {key.node}"
        return await self._end(Word(key, Outcome(ending=Ending.INTERRUPTED, detail=detail)))

    async def enqueue(self, task: Task) -> Enqueued:
        """See `Queue.enqueue`."""
        return await self._queue.enqueue(task)

    async def register(self, projects: Sequence[Registration]) -> list[Project]:
        """See `Queue.register`."""
        return await self._queue.register(projects)

    async def get(self, id: int) -> Execution:
        """One execution. Raises `NotFound`."""
        return await self._queue.get(id)

    async def counts(self) -> dict[Status, int]:
        """How many executions there are of each status; every status is there."""
        return await self._history.counts()

    async def stats(self) -> Document:
        """Counts, waits, throughput and failures; see `store.stats`."""
        return await stats(self._database, await self.counts(), self._database.clock())

    async def drain(self) -> None:
        """Answer all who wait with nothing; from now on nobody waits."""
        await self._waiters.close()

    async def close(self) -> None:
        """Nobody waits any more, and what was claimed for those who have gone is given back."""
        await self.drain()
        if self._giving_back:
            await asyncio.wait(self._giving_back)

    def _ask(self, worker: str, next: Next, stay: int = 0) -> Ask:
        if not 1 <= next.max <= MAX_CLAIMED:
            raise UsageError(f"max {next.max} is out of range: 1 to {MAX_CLAIMED}")
        return Ask(_node(worker), next.max, _lease(next.lease), stay, self._budget(), filter_of(next.wanted))

    async def _end(self, word: Word, worker: str = "", next: Next | None = None) -> Settled:
        if next is None:
            settled: Settled = await self._database.write(self._ends, (word, None))
            return settled
        ending: asyncio.Future[Settled]
        ending = asyncio.ensure_future(self._database.write(self._ends, (word, self._ask(worker, next))))
        return await self._unless_gone(ending, lambda settled: settled.claims)

    async def _take(self, ask: Ask) -> list[Claim]:
        taking = asyncio.ensure_future(self._database.write(self._claims, ask))
        return await self._unless_gone(taking, lambda claims: claims)

    async def _unless_gone(self, asking: asyncio.Future[T], claims: Callable[[T], Sequence[Claim]]) -> T:
        """The answer; what is claimed for a caller that is cancelled meanwhile goes back."""
        try:
            return await asyncio.shield(asking)
        except asyncio.CancelledError:
            self._in_background(self._untake(asking, claims))
            raise

    async def _untake(self, asking: asyncio.Future[T], claims: Callable[[T], Sequence[Claim]]) -> None:
        await asyncio.wait([asking])
        if not asking.cancelled() and asking.exception() is None:
            await self._release_all(claims(asking.result()))

    async def _take_all(self, asks: Sequence[Ask]) -> list[list[Claim]]:
        return list(await asyncio.gather(*(self._database.write(self._claims, ask) for ask in asks)))

    def _give_back(self, claims: Sequence[Claim]) -> None:
        if claims:
            self._in_background(self._release_all(claims))

    async def _release_all(self, claims: Sequence[Claim]) -> None:
        # Whatever can't be given back comes back by its lease.
        words = [
            Word(
                ClaimKey(c.execution.id, c.execution.node or "", c.fence),
                Outcome(ending=Ending.INTERRUPTED, detail=GONE),
            )
            for c in claims
        ]
        ending = (self._database.write(self._ends, (word, None)) for word in words)
        await asyncio.gather(*ending, return_exceptions=True)

    def _in_background(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._giving_back.add(task)
        task.add_done_callback(self._giving_back.discard)

    async def _worthwhile(self, asks: Sequence[Ask]) -> bool:
        for statement in self._pool.waiting(asks, self._database.clock()):
            if await self._database.read(statement.sql, statement.params):
                return True
        return False

    async def _due(self) -> float | None:
        due = await self._queue.next_due()
        return None if due is None else (due - self._database.clock()) / 1000


def _node(worker: str) -> str:
    if not (0 < len(worker) <= 80 and worker.isprintable() and worker.strip()):
        raise UsageError("a worker's name is 1 to 80 printable characters")
    return WORKER + worker


def _lease(lease: int) -> int:
    shortest, longest = LEASES
    if not shortest <= lease <= longest:
        raise UsageError(f"a lease is {shortest // 1000} to {longest // 1000} seconds, not {lease / 1000:g}")
    return lease


def _key(id: int, worker: str, fence: int) -> ClaimKey:
    if not 0 < id < 1 << 63:
        raise NotFound(f"no execution {id}")
    if not 0 <= fence < 1 << 63:
        raise UsageError(f"fence {fence} is out of range; it came with the claim")
    return ClaimKey(id, _node(worker), fence)
