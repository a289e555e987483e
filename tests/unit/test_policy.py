"""Admission: the table is whole, and no sequence of failures breaks its promises."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot.domain.execution import Execution, Status, check_transition
from pilot.domain.outcome import Ending, FailureClass, Outcome, Question, failed
from pilot.domain.policy import (
    MINUTE,
    RULES,
    SECOND,
    Parking,
    Rule,
    Settlement,
    backoff,
    mark_of,
    parked_until,
    settle,
)
from tests.unit.rows import NOW, execution

F = FailureClass
GATES = [F.LINT, F.TEST, F.BUILD, F.CI]
UNCOUNTED = {
    F.REFUSAL, F.RATE_LIMIT, F.QUOTA, F.AUTH, F.INVALID_CONFIG, F.NETWORK, F.INFRA, F.CONFLICT, F.BUDGET, F.CANCELLED,
}  # fmt: skip
PARKING = {F.RATE_LIMIT, F.QUOTA, F.AUTH, F.INVALID_CONFIG}

jitters = st.floats(0, 1, exclude_max=True)
outcomes = st.builds(
    failed, st.sampled_from(FailureClass), st.text("abc", min_size=1, max_size=2), excerpt=st.text("xyz", max_size=2)
)


def decide(outcome: Outcome, jitter: float = 0.0, **row: object) -> Settlement:
    return settle(execution(**row), outcome, now=NOW, jitter=jitter)


def after(row: Execution, outcome: Outcome, settlement: Settlement) -> Execution:
    """The row as the store would keep it, claimed once more when it is queued."""
    judged = outcome.ending is Ending.FAILED
    return replace(
        row,
        status=settlement.to,
        failures=row.failures + settlement.counted,
        attempt=row.attempt + 1,
        failure_class=outcome.failure if judged else row.failure_class,
        streak=settlement.streak if judged else row.streak,
        mark=settlement.mark if judged else row.mark,
    )


def test_every_class_has_its_rule() -> None:
    assert set(RULES) == set(FailureClass)
    assert {failure for failure, rule in RULES.items() if not rule.counts} == UNCOUNTED
    assert {failure for failure, rule in RULES.items() if rule.parks is not Parking.NEVER} == PARKING
    assert all(RULES[gate] == Rule(counts=True, resume=True) for gate in GATES)
    for failure, rule in RULES.items():
        first, longest = rule.backoff
        assert 0 <= first <= longest
        assert rule.last in (Status.FAILED, Status.NEEDS_HUMAN, Status.CANCELLED)
        bounded = rule.counts or rule.cap is not None or rule.parks is not Parking.NEVER
        assert bounded, f"{failure} would run for ever"


@given(st.lists(outcomes, max_size=40), st.integers(1, 5), jitters)
def test_no_sequence_of_failures_makes_more_attempts_than_it_may(
    sequence: list[Outcome], most: int, jitter: float
) -> None:
    row = execution(max_attempts=most)
    for outcome in sequence:
        settlement = settle(row, outcome, now=NOW, jitter=jitter)
        check_transition(Status.RUNNING, settlement.to)
        assert settlement.reason
        assert settlement.counted <= (outcome.failure not in UNCOUNTED)
        row = after(row, outcome, settlement)
        assert row.failures <= most
        if row.status is not Status.QUEUED:
            break
        assert row.failures < most, "the last one it had is used up"


@given(st.sampled_from(sorted(UNCOUNTED)), st.integers(0, 99), st.integers(1, 5), jitters)
def test_what_does_not_count_never_fails_by_count(failure: F, failures: int, most: int, jitter: float) -> None:
    settlement = decide(failed(failure, "x"), jitter, failures=failures, max_attempts=most, attempt=failures + 1)

    assert not settlement.counted
    assert settlement.to is not Status.FAILED


@given(st.lists(st.sampled_from([Ending.INTERRUPTED, Ending.QUESTION]), min_size=1, max_size=30))
def test_shutdowns_and_questions_cost_nothing(endings: list[Ending]) -> None:
    row = execution(max_attempts=1, failures=0, streak=2, mark="m", failure_class="network")
    for ending in endings:
        outcome = Outcome(ending=ending, question=Question("Which?"))
        settlement = settle(row, outcome, now=NOW, jitter=0.0)
        row = after(row, outcome, settlement)
        assert settlement.keep_session
        assert settlement.to is (Status.QUEUED if ending is Ending.INTERRUPTED else Status.NEEDS_HUMAN)
    assert (row.failures, row.streak, row.mark) == (0, 2, "m")


@given(st.integers(0, 5), st.integers(1, 5), st.text(max_size=5), st.booleans())
def test_cancelled_never_runs_again(failures: int, most: int, detail: str, asked: bool) -> None:
    outcome = Outcome(ending=Ending.CANCELLED, detail=detail) if asked else failed(F.CANCELLED, detail or "x")
    settlement = decide(outcome, failures=failures, max_attempts=most)

    assert settlement.to is Status.CANCELLED
    assert settlement.reason
    assert not settlement.counted


@given(st.sampled_from(FailureClass), st.integers(1, 200), jitters, jitters)
def test_pauses_grow_within_their_bounds(failure: F, times: int, jitter: float, other: float) -> None:
    rule = RULES[failure]
    first, longest = rule.backoff
    pause = backoff(rule, times, jitter)

    assert first // 2 <= pause <= longest
    assert backoff(rule, times + 1, jitter) >= pause
    if first:
        full = min(longest, first * 2 ** (times - 1))
        assert full // 2 <= pause <= full
        assert abs(backoff(rule, times, other) - pause) <= full // 2 + 1


@pytest.mark.parametrize(
    ("failure", "pauses"),
    [
        (F.NETWORK, [10, 20, 40, 80, 160, 300, 300]),
        (F.AGENT, [10, 20, 40, 80, 160, 300, 300]),
        (F.RATE_LIMIT, [60, 120, 240, 480, 960, 1920, 3600]),
        (F.TEST, [0, 0, 0]),
    ],
)
def test_pauses_double(failure: F, pauses: list[int]) -> None:
    full = [round(backoff(RULES[failure], n, 1.0) / SECOND) for n in range(1, len(pauses) + 1)]
    assert full == pauses


@pytest.mark.parametrize("failure", sorted(PARKING))
def test_some_failures_park_the_backend_and_let_the_task_wait(failure: F) -> None:
    settlement = decide(failed(failure, "why", retry_at=NOW + 5 * MINUTE), failures=2)

    assert (settlement.to, settlement.counted, settlement.available_at) == (Status.QUEUED, False, None)
    assert settlement.park is not None
    assert (settlement.park.backend, settlement.park.failure, settlement.park.reason) == ("claude-code", failure, "why")
    for_a_person = failure in (F.AUTH, F.INVALID_CONFIG)
    assert settlement.park.until == (None if for_a_person else NOW + 5 * MINUTE)


def test_a_reset_in_the_year_3000_is_not_believed() -> None:
    settlement = decide(failed(F.QUOTA, "x", retry_at=NOW + 10**14))

    assert settlement.park is not None
    assert settlement.park.until == NOW + 35 * 24 * 60 * MINUTE


@pytest.mark.parametrize("failure", [F.RATE_LIMIT, F.QUOTA])
@pytest.mark.parametrize("named", [None, 0, NOW - 1, NOW])
def test_a_reset_that_is_no_help_is_guessed(failure: F, named: int | None) -> None:
    first, longest = RULES[failure].backoff
    waits = []
    # How often it was tried is the park's to know, whichever task tried it.
    for streak in range(3):
        settlement = decide(failed(failure, "x", retry_at=named), failure_class=failure, streak=streak)
        assert settlement.park is not None
        assert settlement.park.until == NOW + first // 2
        until = parked_until(settlement.park, streak + 1, NOW + 7)
        assert until is not None
        waits.append(until - NOW - 7)
        assert parked_until(settlement.park, 500, NOW) == NOW + longest
    assert waits == [first // 2, first, first * 2]


def test_a_limit_never_gives_up_unless_told_to() -> None:
    row = execution(failure_class="rate_limit", streak=500, failures=2)
    assert settle(row, failed(F.RATE_LIMIT, "x"), now=NOW, jitter=0.0).to is Status.QUEUED

    rules = {**RULES, F.RATE_LIMIT: replace(RULES[F.RATE_LIMIT], cap=3, last=Status.NEEDS_HUMAN)}
    given_up = settle(row, failed(F.RATE_LIMIT, "x"), now=NOW, jitter=0.0, rules=rules)
    assert given_up.to is Status.NEEDS_HUMAN
    assert given_up.park is None


@pytest.mark.parametrize("failure", [F.NETWORK, F.INFRA])
def test_what_is_outside_is_tried_five_times_then_asked_about(failure: F) -> None:
    row, pauses = execution(), []
    while row.status is not Status.NEEDS_HUMAN:
        outcome = failed(failure, "unreachable")
        settlement = settle(row, outcome, now=NOW, jitter=0.0)
        row = after(row, outcome, settlement)
        pauses.append(settlement.available_at and settlement.available_at - NOW)
    assert pauses[:5] == [5000, 10000, 20000, 40000, 80000]
    assert (len(pauses), row.failures) == (6, 0)


def test_another_class_begins_a_new_row_of_failures() -> None:
    settlement = decide(failed(F.INFRA, "disk"), failure_class="network", streak=5)
    assert (settlement.to, settlement.streak) == (Status.QUEUED, 1)


@pytest.mark.parametrize("failure", [f for f in FailureClass if RULES[f].counts and RULES[f].cap is None])
def test_two_identical_failures_are_for_a_person(failure: F) -> None:
    outcome = failed(failure, "red", excerpt="E assert f(3) in 0.12s at 0x7f00")
    again = failed(failure, "red", excerpt="E assert f(4) in 0.98s at 0x7eff")
    settlement = decide(again, failure_class=failure, streak=1, failures=1, mark=mark_of(outcome))

    assert settlement.to is Status.NEEDS_HUMAN
    assert settlement.counted
    assert settlement.reason == f"{failure}: red (the same failure twice in a row)"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("failed in 0.31s", "failed in 12.04s", True),
        ("ok after 1m12s, 3ms", "ok after 2m3.5s, 14ms", True),
        ("at 2026-11-24T15:41:40.123Z: E", "at 2027-01-01T03:02:01.9Z: E", True),
        ("at 0x7f3a2b line 12", "at 0x7e0000 line 13", True),
        ("tree 3f2a9c0d1e5b7788 red", "tree 00ffee00ffee00ff red", True),
        ("/tmp/pytest-of-ann/pytest-12/x", "/tmp/pytest-of-ann/pytest-13/x", True),
        ("FAILED test_case_1", "FAILED test_case_2", False),
        ("FAILED test_utf8", "FAILED test_utf16", False),
        ("test_a failed", "test_b failed", False),
    ],
)
def test_what_counts_as_the_same_failure(one: str, other: str, same: bool) -> None:
    marks = [mark_of(failed(F.TEST, "red", excerpt=excerpt)) for excerpt in (one, other)]
    assert (marks[0] == marks[1]) is same


def test_the_same_words_of_another_class_are_another_failure() -> None:
    assert mark_of(failed(F.TEST, "x")) != mark_of(failed(F.LINT, "x"))


@given(st.text(), st.text(min_size=1))
def test_a_mark_can_be_made_of_anything(excerpt: str, detail: str) -> None:
    mark = mark_of(failed(F.TEST, detail, excerpt=excerpt + "\ud800"))
    assert len(mark) == 16
    assert mark == mark_of(failed(F.TEST, detail, excerpt=excerpt + "\ud800"))


def test_a_failure_that_is_retried_is_told_to_the_next_attempt() -> None:
    settlement = decide(failed(F.TEST, "test is red", excerpt="E   assert 1 == 2"))
    assert (settlement.feedback, settlement.keep_session) == ("E   assert 1 == 2", True)

    settlement = decide(failed(F.AGENT, "exit code 3"))
    assert (settlement.feedback, settlement.keep_session) == ("exit code 3", False)


@pytest.mark.parametrize("ending", [Ending.DONE, Ending.NO_CHANGE])
def test_an_end_that_is_none_of_a_failure_completes(ending: Ending) -> None:
    settlement = decide(Outcome(ending=ending), failures=2, streak=1, mark="m")
    assert (settlement.to, settlement.counted, settlement.streak, settlement.mark) == (Status.COMPLETED, False, 0, None)


@given(outcomes, st.integers(1, 4))
def test_a_direct_run_gives_its_answer_after_the_attempts_it_was_asked_for(outcome: Outcome, attempts: int) -> None:
    settlement = decide(outcome, attempt=attempts, max_attempts=attempts, reserved_for="n1")
    assert settlement.to is not Status.QUEUED
    if outcome.failure in (F.RATE_LIMIT, F.AUTH):
        assert settlement.park is not None, "others are still told"


def test_a_direct_run_lets_everyone_of_its_chain_try_it_once() -> None:
    spent, chain = failed(F.QUOTA, "spent"), ("codex", "opencode")
    ends = [decide(spent, attempt=n, max_attempts=1, reserved_for="n1", fallback=chain).to for n in (1, 2, 3)]
    assert ends == [Status.QUEUED, Status.QUEUED, Status.FAILED]
    red = decide(failed(F.AGENT, "exit code 3"), attempt=1, max_attempts=1, reserved_for="n1", fallback=chain)
    assert red.to is Status.FAILED, "another agent is no second try"


def test_a_direct_run_that_is_interrupted_has_not_answered() -> None:
    assert decide(Outcome(ending=Ending.INTERRUPTED), max_attempts=1, reserved_for="n1").to is Status.QUEUED
