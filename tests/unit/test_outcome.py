"""Outcomes are whole, or are not made; unknown stays unknown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot.domain.outcome import Ending, FailureClass, GateResult, Outcome, Question, Usage, failed

tokens = st.none() | st.integers(0, 10**9)
usages = st.builds(Usage, tokens, tokens, st.none() | st.integers(0, 1000).map(lambda cents: cents / 4))


@given(usages, usages, usages)
def test_usage_adds_up_in_any_order(a: Usage, b: Usage, c: Usage) -> None:
    assert a.plus(b) == b.plus(a)
    assert a.plus(Usage()) == Usage().plus(a) == a
    if Usage() not in (a, b, c):
        assert a.plus(b).plus(c) == a.plus(b.plus(c)) or Usage() in (a.plus(b), b.plus(c))


@given(usages, usages)
def test_one_unknown_makes_the_sum_unknown_and_never_zero(a: Usage, b: Usage) -> None:
    if Usage() in (a, b):
        return
    total = a.plus(b)
    for name in ("input_tokens", "output_tokens", "cost_usd"):
        one, other, both = getattr(a, name), getattr(b, name), getattr(total, name)
        assert both == (None if one is None or other is None else one + other)


def test_nothing_plus_nothing_is_unknown() -> None:
    assert Usage().plus(Usage()) == Usage(None, None, None)
    assert Usage(0, 0, 0.0).plus(Usage(0, 0, 0.0)) == Usage(0, 0, 0.0)


@pytest.mark.parametrize(
    "given",
    [{"failure": FailureClass.TEST}, {"detail": "red"}, {"failure": None, "detail": "red"}, {}],
)
def test_a_failure_needs_a_class_and_words(given: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="needs a class and a detail"):
        Outcome(ending=Ending.FAILED, **given)  # type: ignore[arg-type]


def test_a_question_needs_its_question() -> None:
    with pytest.raises(ValueError, match="needs its question"):
        Outcome(ending=Ending.QUESTION)
    assert Outcome(ending=Ending.QUESTION, question=Question("Which?")).question == Question("Which?", (), None)


@pytest.mark.parametrize("ending", [Ending.DONE, Ending.NO_CHANGE, Ending.CANCELLED, Ending.INTERRUPTED])
def test_other_ends_need_nothing(ending: Ending) -> None:
    outcome = Outcome(ending=ending)
    assert (outcome.failure, outcome.usage, outcome.delivered, outcome.gates) == (None, Usage(), False, ())


def test_a_failure_in_one_line() -> None:
    outcome = failed(FailureClass.TEST, "red", excerpt="E", session_id="s-1")
    assert (outcome.ending, outcome.failure, outcome.detail) == (Ending.FAILED, FailureClass.TEST, "red")
    assert (outcome.excerpt, outcome.session_id) == ("E", "s-1")


@pytest.mark.parametrize(
    ("exit_code", "timed_out", "passed"),
    [(0, False, True), (0, True, False), (1, False, False), (None, False, False), (-9, True, False)],
)
def test_a_gate_passes_with_code_0_in_time_only(exit_code: int | None, timed_out: bool, passed: bool) -> None:
    gate = GateResult("test", "test", "make test", True, exit_code, 10, "t", timed_out=timed_out)
    assert gate.passed is passed
