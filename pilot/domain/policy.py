"""Admission: whether, when and how a failed execution may run again. One table and one function."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from pilot.domain.execution import Execution, Status
from pilot.domain.outcome import Ending, FailureClass, Outcome, Question
from pilot.domain.pointer import by_machine

SECOND = 1000
MINUTE = 60 * SECOND
LONGEST_PARK = 35 * 24 * 60 * MINUTE
"""A reset time is an agent's word; no allowance renews itself more rarely than by the month."""
MAX_LOSSES = 5
"""A task under which its node died this often in a row is held: it may be what kills the node."""


class Parking(StrEnum):
    """What a failure does to its backend, for every node."""

    NEVER = "never"
    UNTIL_RESET = "until_reset"  #: until the time the failure named, else a growing guess
    FOR_A_PERSON = "for_a_person"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What follows from one failure class.

    `counts`: uses up one of `max_attempts`. `cap`: how often in a row this class alone may be retried
    (None: no limit of its own). `backoff`: first pause and longest pause, ms; doubled each time.
    `resume`: the next attempt goes on in the agent's session. `last`: the state when nothing is left.
    """

    counts: bool
    cap: int | None = None
    backoff: tuple[int, int] = (0, 0)
    resume: bool = False
    last: Status = Status.FAILED
    parks: Parking = Parking.NEVER


_BACKOFF = (10 * SECOND, 5 * MINUTE)
_GATE = Rule(counts=True, resume=True)
_HELD = Rule(counts=False, cap=0, last=Status.NEEDS_HUMAN)
_OUTSIDE = Rule(counts=False, cap=5, backoff=_BACKOFF, resume=True, last=Status.NEEDS_HUMAN)

RULES: Mapping[FailureClass, Rule] = {
    FailureClass.LINT: _GATE,
    FailureClass.TEST: _GATE,
    FailureClass.BUILD: _GATE,
    FailureClass.CI: _GATE,
    FailureClass.AGENT: Rule(counts=True, backoff=_BACKOFF),
    FailureClass.NO_CHANGE: Rule(counts=True, cap=0),
    FailureClass.REFUSAL: _HELD,
    FailureClass.TIMEOUT: Rule(counts=True, resume=True),
    FailureClass.STALL: Rule(counts=True, resume=True),
    FailureClass.OOM: Rule(counts=True, backoff=_BACKOFF),
    FailureClass.RATE_LIMIT: Rule(counts=False, backoff=(MINUTE, 60 * MINUTE), resume=True, parks=Parking.UNTIL_RESET),
    FailureClass.QUOTA: Rule(counts=False, backoff=(5 * MINUTE, 60 * MINUTE), resume=True, parks=Parking.UNTIL_RESET),
    FailureClass.AUTH: Rule(counts=False, resume=True, parks=Parking.FOR_A_PERSON),
    FailureClass.INVALID_CONFIG: Rule(counts=False, resume=True, parks=Parking.FOR_A_PERSON),
    FailureClass.NETWORK: _OUTSIDE,
    FailureClass.INFRA: _OUTSIDE,
    FailureClass.CONFLICT: _HELD,
    FailureClass.BUDGET: _HELD,
    FailureClass.CANCELLED: Rule(counts=False, cap=0, last=Status.CANCELLED),
    FailureClass.UNKNOWN: Rule(counts=True, backoff=_BACKOFF),
}


_DECIDED = frozenset({FailureClass.LINT, FailureClass.TEST, FailureClass.BUILD, FailureClass.AGENT})
"""What a program's exit code has said."""


@dataclass(frozen=True, slots=True)
class Park:
    """A backend that takes no work; `until` None means until a person says so.

    `account`: whose allowance is used up; None: that of the attempt's claim. `pause`: the first pause and the longest
    one, ms, where nobody named a time; 0: `until` was named, and stands.
    """

    backend: str
    failure: FailureClass
    reason: str
    until: int | None
    account: str | None = None
    pause: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """What becomes of an execution whose attempt has ended."""

    to: Status
    reason: str | None = None
    counted: bool = False
    available_at: int | None = None
    """UTC ms; None: from the moment at which this is written."""
    keep_session: bool = False
    feedback: str | None = None
    question: Question | None = None
    park: Park | None = None
    streak: int = 0
    mark: str | None = None
    failure: FailureClass | None = None
    """Stored as the execution's, when what keeps it from going on is not how the attempt failed."""


def backoff(rule: Rule, times: int, jitter: float) -> int:
    """Pause in ms before retry number `times` (from 1); `jitter` in [0, 1) spreads it over the upper half."""
    first, longest = rule.backoff
    if not first:
        return 0
    full = min(longest, first * 2 ** min(times - 1, 30))
    return int(full * (0.5 + jitter / 2))


def parked_until(park: Park, tries: int, now: int) -> int | None:
    """When (UTC ms) a park ends that was found closed `tries` times in a row; a named time stands as it is."""
    first, longest = park.pause
    if park.until is None or not first:
        return park.until
    return now + min(longest, first << min(tries - 1, 30))


_VARYING = re.compile(
    r"\d{4}-\d\d-\d\dT[\d:.]+|0x[0-9a-f]+|[0-9a-f]{12,}"
    r"|(?<![a-z0-9_])(?:(?:\d+(?:\.\d+)?(?:ms|[hms]))+|\d+)",  # 1m12s, 46; not the 1 of `test_1`
    re.IGNORECASE,
)


def mark_of(outcome: Outcome) -> str:
    """A fingerprint by which two failures count as identical: numbers (not in names), hashes, times left out."""
    evidence = _VARYING.sub("#", outcome.excerpt or outcome.detail)
    return hashlib.sha256(f"{outcome.failure}\n{evidence}".encode(errors="replace")).hexdigest()[:16]


def settle(
    execution: Execution,
    outcome: Outcome,
    *,
    now: int,
    jitter: float,
    rules: Mapping[FailureClass, Rule] = RULES,
) -> Settlement:
    """Decide the next state from the row as it was claimed and the attempt's end."""
    match outcome.ending:
        case Ending.DONE | Ending.NO_CHANGE:
            return Settlement(to=Status.COMPLETED, keep_session=True)
        case Ending.CANCELLED:
            return Settlement(to=Status.CANCELLED, reason=outcome.detail or "cancelled", keep_session=True)
        case Ending.INTERRUPTED:
            return Settlement(to=Status.QUEUED, reason=outcome.detail or "shutdown", keep_session=True)
        case Ending.QUESTION:
            assert outcome.question is not None  # noqa: S101  Outcome checks it
            return Settlement(
                to=Status.NEEDS_HUMAN,
                reason=outcome.question.text,
                keep_session=True,
                question=outcome.question,
            )
        case Ending.FAILED:
            settlement = _settle_failure(execution, outcome, now, jitter, rules)
            # Whoever does it instead, while it is parked, has a try as well.
            others = len(execution.fallback) if settlement.park is not None else 0
            if (
                settlement.to is Status.QUEUED
                and execution.reserved_for is not None
                and execution.attempt >= execution.max_attempts + others
            ):
                # A direct run makes the attempts it was asked for, of whatever kind, and gives its answer.
                return replace(settlement, to=Status.FAILED)
            return settlement


def _park(execution: Execution, outcome: Outcome, rule: Rule, now: int, jitter: float) -> Park:
    failure = outcome.failure or FailureClass.UNKNOWN
    if rule.parks is Parking.FOR_A_PERSON:
        return Park(execution.backend, failure, outcome.detail, None)
    named = outcome.retry_at or 0
    if named > now:
        return Park(execution.backend, failure, outcome.detail, min(named, now + LONGEST_PARK))
    # How often it was found used up is the park's to know: another task has tried it the last time.
    pause = backoff(rule, 1, jitter), rule.backoff[1]
    return Park(execution.backend, failure, outcome.detail, now + pause[0], pause=pause)


def _settle_failure(
    execution: Execution,
    outcome: Outcome,
    now: int,
    jitter: float,
    rules: Mapping[FailureClass, Rule],
) -> Settlement:
    failure = outcome.failure or FailureClass.UNKNOWN
    rule = rules.get(failure, RULES[failure])
    streak = execution.streak + 1 if execution.failure_class == failure else 1
    mark = mark_of(outcome)
    reason = f"{failure}: {outcome.detail}"
    pause = backoff(rule, streak, jitter)
    held = Settlement(
        to=Status.NEEDS_HUMAN, reason=reason, counted=rule.counts, keep_session=True, streak=streak, mark=mark
    )
    if rule.parks is not Parking.NEVER:
        if rule.cap is None or streak <= rule.cap:
            park = _park(execution, outcome, rule, now, jitter)
            return Settlement(
                to=Status.QUEUED,
                reason=reason,
                keep_session=True,
                park=park,
                streak=streak,
                mark=mark,
            )
        return held
    if failure in _DECIDED and by_machine(execution.payload):
        return replace(held, to=rule.last)  # the same command on the same files would only say it again
    if rule.counts and mark == execution.mark:
        return replace(held, reason=f"{reason} (the same failure twice in a row)")
    used_up = rule.counts and execution.failures + 1 >= execution.max_attempts
    if used_up or (rule.cap is not None and streak > rule.cap):
        return replace(held, to=rule.last)
    return replace(
        held,
        to=Status.QUEUED,
        available_at=now + pause if pause else None,
        keep_session=rule.resume,
        feedback=outcome.excerpt or outcome.detail,
    )
