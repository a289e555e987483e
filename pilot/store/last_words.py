"""What a worker says of its claim: that it goes on, and how it ended. All of it counts only while the claim stands."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from pilot.domain.agent import OutputKind
from pilot.domain.budget import Budget
from pilot.domain.errors import LeaseLost, NotFound, UsageError
from pilot.domain.execution import Execution, Status
from pilot.domain.outcome import Ending, FailureClass, Outcome
from pilot.domain.pointer import pointer
from pilot.domain.policy import Rule, Settlement, settle
from pilot.domain.ports import Finish
from pilot.domain.work import Artifact, Beaten, Progress, Settled, writes_once
from pilot.store.beside import beside_of, to_beside
from pilot.store.database import Dialect, Rows, Statement, Step
from pilot.store.finish import FinishClaims
from pilot.store.journal import Note, Pieces, SqlJournal
from pilot.store.nodes import LOST, Nodes, Worker
from pilot.store.records import Table, ids, ids_of, known
from pilot.store.rows import EXECUTION_SELECT, to_execution

_BEATS = Table(id="bigint", fence="bigint", node="text", lease="bigint")
_CLAIMS = Table(id="bigint", fence="bigint", node="text")

Answer = Settled | Exception
Rules = Callable[[], Mapping[FailureClass, Rule]]


class Verb(StrEnum):
    """The last word."""

    COMPLETE = "complete"
    FAIL = "fail"
    RELEASE = "release"


_VERB_OF = {
    Ending.DONE: Verb.COMPLETE,
    Ending.NO_CHANGE: Verb.COMPLETE,
    Ending.QUESTION: Verb.COMPLETE,
    Ending.FAILED: Verb.FAIL,
    Ending.INTERRUPTED: Verb.RELEASE,
}


@dataclass(frozen=True, slots=True)
class ClaimKey:
    """Which claim somebody speaks of; `node` is the worker's node id."""

    id: int
    node: str
    fence: int

    def stands(self, execution: Execution) -> bool:
        """Whether this is the running claim."""
        return (execution.status, execution.fence, execution.node) == (Status.RUNNING, self.fence, self.node)

    def lost(self) -> LeaseLost:
        """What who lost it is told."""
        return LeaseLost(
            f"execution {self.id} is not {self.node}'s under fence {self.fence} (any more); nothing was written"
        )


@dataclass(frozen=True, slots=True)
class Word:
    """The end of a claim, as its worker says it."""

    claim: ClaimKey
    outcome: Outcome
    artifacts: tuple[Artifact, ...] = ()

    @property
    def verb(self) -> Verb:
        """What it amounts to: the same verb again is the same word."""
        return _VERB_OF[self.outcome.ending]


@dataclass(frozen=True, slots=True)
class Renewal:
    """A claim that goes on for `lease` ms, and what its worker tells of it."""

    claim: ClaimKey
    lease: int
    progress: Progress
    budget: Budget


class LastWords:
    """The operations on claims that end."""

    def __init__(self, dialect: Dialect, finish: FinishClaims, rules: Rules, jitter: Callable[[], float]) -> None:
        self._finish = finish
        self._rules = rules
        self._jitter = jitter
        self._rows = f"SELECT {EXECUTION_SELECT} FROM executions WHERE id IN {ids_of(dialect)}"
        self._beside = beside_of(dialect)
        self._said = f"""
            SELECT a.execution_id, a.fence, a.node, a.outcome, a.detail
            FROM {_CLAIMS.of(dialect, "c")} JOIN attempts a
              ON a.execution_id = c.id AND a.fence = c.fence AND a.node = c.node
            WHERE a.finished_at IS NOT NULL"""

    def __call__(self, words: Sequence[Word], now: int) -> Generator[Step, Rows, list[Answer]]:
        """Answers in the order of the words. Of one claim the first counts, and the same again is a duplicate."""
        wanted = {"ids": ids({word.claim.id for word in words})}
        stored = _by_id((yield Statement(self._rows, wanted)))
        errors: dict[int, Exception] = {}
        first: dict[ClaimKey, int] = {}
        for n, word in enumerate(words):
            execution = stored.get(word.claim.id)
            if execution is None:
                errors[n] = NotFound(f"no execution {word.claim.id}")
            elif word.claim.stands(execution) and word.claim not in first:
                problem = _problem(execution, word)
                if problem is None:
                    first[word.claim] = n
                else:
                    errors[n] = problem
        ends = [self._end(stored[claim.id], words[n], now) for claim, n in first.items()]
        if ends:
            yield from self._finish(ends, now)
        later = [n for n, word in enumerate(words) if n not in errors and first.get(word.claim) != n]
        if later:
            said = yield from self._heard([words[n].claim for n in later])
            errors |= {n: words[n].claim.lost() for n in later if said.get(words[n].claim) is not words[n].verb}
        after = _by_id((yield Statement(self._rows, wanted)))
        beside = to_beside((yield Statement(self._beside, wanted)))
        return [
            errors[n]
            if n in errors
            else Settled(after[word.claim.id], first.get(word.claim) != n, *beside[word.claim.id])
            for n, word in enumerate(words)
        ]

    def _end(self, execution: Execution, word: Word, now: int) -> Finish:
        # No pull request comes of it: that takes a push by the node that has the branch.
        outcome = replace(word.outcome, publication=None)
        settlement = settle(execution, outcome, now=now, jitter=self._jitter(), rules=self._rules())
        settlement = without_park(settlement, now)
        return Finish(execution=execution, outcome=outcome, settlement=settlement, artifacts=word.artifacts)

    def _heard(self, claims: Sequence[ClaimKey]) -> Generator[Step, Rows, dict[ClaimKey, Verb]]:
        """How each claim ended by its worker's own word."""
        rows = yield Statement(self._said, {"items": _CLAIMS.rows((c.id, c.fence, c.node) for c in set(claims))})
        return {
            ClaimKey(id, node, fence): _VERB_OF[Ending(outcome)]
            for id, fence, node, outcome, detail in rows
            if outcome in list(_VERB_OF) and not (detail or "").startswith(LOST.format(node=node))
        }


def without_park(settlement: Settlement, now: int) -> Settlement:
    """The same, where a worker's allowance is used up: it is no node's here, so only this execution waits for it."""
    park = settlement.park
    if park is None:
        return settlement
    if park.until is None:
        return replace(settlement, to=Status.NEEDS_HUMAN, park=None)
    first, longest = park.pause
    until = now + min(longest, first << min(max(settlement.streak, 1) - 1, 30)) if first else park.until
    return replace(settlement, available_at=until, park=None)


def _problem(execution: Execution, word: Word) -> UsageError | None:
    if not word.artifacts:
        return None
    try:
        payload = pointer(execution.payload)
    except UsageError:  # it was let in, and who did it all the same may say so
        payload = None
    words = writes_once(word.artifacts, dual=payload is not None and payload.dual)
    return None if words is None else UsageError(words)


def _by_id(rows: Rows) -> dict[int, Execution]:
    return {execution.id: execution for execution in map(to_execution, rows)}


class Renewals:
    """The operations on claims that go on."""

    def __init__(self, dialect: Dialect, nodes: Nodes, journal: SqlJournal) -> None:
        self._nodes = nodes
        self._journal = journal
        self._rows = f"SELECT {EXECUTION_SELECT} FROM executions WHERE id IN {ids_of(dialect)}"
        self._beat = f"""
            UPDATE executions SET lease_until = :now + b.lease FROM {_BEATS.of(dialect, "b")}
            WHERE executions.id = b.id AND executions.fence = b.fence AND executions.node = b.node
              AND executions.status = 'running'
            RETURNING executions.id, executions.node, executions.fence, executions.lease_until,
              executions.cancel_requested"""

    def beat(self, renewals: Sequence[Renewal], now: int) -> Generator[Step, Rows, list[Beaten | Exception]]:
        """Each lease from now, with what its worker tells."""
        leases = {r.claim: r.lease for r in renewals}  # of one that came twice, the later
        items = _BEATS.rows((c.id, c.fence, c.node, lease) for c, lease in leases.items())
        rows = yield Statement(self._beat, {"now": now, "items": items})
        beaten = {ClaimKey(id, node, fence): Beaten(until, bool(c)) for id, node, fence, until, c in rows}
        mine = [r for r in renewals if r.claim in beaten]
        if mine:
            yield from self._nodes.seen([Worker(r.claim.node, r.lease, 0, r.budget) for r in mine], now)
        telling = [r for r in mine if r.progress != Progress()]
        if telling:
            stored = _by_id((yield Statement(self._rows, {"ids": ids({r.claim.id for r in telling})})))
            yield from self._journal.notes([_note(stored[r.claim.id], r.progress) for r in telling])
        missing = yield from self._missing([r.claim for r in renewals if r.claim not in beaten])
        return [beaten[r.claim] if r.claim in beaten else missing[r.claim] for r in renewals]

    def output(
        self, writes: Sequence[tuple[ClaimKey, Sequence[tuple[OutputKind, bytes]]]], now: int
    ) -> Generator[Step, Rows, list[Exception | None]]:
        """Each claim's pieces, in order."""
        stored = _by_id((yield Statement(self._rows, {"ids": ids({claim.id for claim, _ in writes})})))
        standing = [
            Pieces(stored[claim.id], pieces)
            for claim, pieces in writes
            if claim.id in stored and claim.stands(stored[claim.id])
        ]
        if standing:
            yield from self._journal.output(standing)
        return [
            NotFound(f"no execution {claim.id}") if claim.id not in stored
            else None if claim.stands(stored[claim.id]) else claim.lost()
            for claim, _ in writes
        ]  # fmt: skip

    def _missing(self, claims: Sequence[ClaimKey]) -> Generator[Step, Rows, dict[ClaimKey, Exception]]:
        if not claims:
            return {}
        stored = _by_id((yield Statement(self._rows, {"ids": ids({claim.id for claim in claims})})))
        return {claim: claim.lost() if claim.id in stored else NotFound(f"no execution {claim.id}") for claim in claims}


def _note(execution: Execution, progress: Progress) -> Note:
    figures = {} if progress.usage is None else known(progress.usage)
    return Note(execution, {**progress.facts, **figures})
