from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from pilot.domain.liveness import BUSY, TOOL_PATIENCE, Liveness, Signs, Verdict

WELL = Signs(left=3600, idle=0, looked=0, worked=0, tools=0, cost=None)
POLICY = Liveness(stall=600, budget=5.0)
seconds = st.floats(0, 10_000)
signs = st.builds(
    Signs,
    left=st.floats(-10, 10_000),
    idle=seconds,
    looked=seconds,
    worked=seconds,
    tools=st.integers(0, 3),
    cost=st.none() | st.floats(0, 10),
)


def test_silence_is_borne_for_a_while() -> None:
    assert POLICY.verdict(replace(WELL, idle=599)) is Verdict.GOES_ON
    assert POLICY.verdict(replace(WELL, idle=600)) is Verdict.STALL


def test_an_open_tool_call_is_given_longer_but_not_for_ever() -> None:
    assert POLICY.verdict(replace(WELL, idle=601, tools=1)) is Verdict.GOES_ON
    assert POLICY.verdict(replace(WELL, idle=600 * TOOL_PATIENCE, tools=2)) is Verdict.STALL


def test_work_is_a_sign_of_life_and_a_heartbeat_is_not() -> None:
    assert POLICY.verdict(replace(WELL, idle=900, looked=300, worked=300 * BUSY + 1)) is Verdict.GOES_ON
    assert POLICY.verdict(replace(WELL, idle=900, looked=300, worked=300 * BUSY / 2)) is Verdict.STALL


def test_what_is_not_known_is_not_too_much() -> None:
    assert POLICY.verdict(replace(WELL, cost=5.0)) is Verdict.GOES_ON
    assert POLICY.verdict(replace(WELL, cost=5.01)) is Verdict.BUDGET
    assert POLICY.verdict(WELL) is Verdict.GOES_ON
    assert Liveness(stall=600).verdict(replace(WELL, cost=1e9)) is Verdict.GOES_ON


@given(signs)
def test_no_sign_of_life_outweighs_the_deadline(seen: Signs) -> None:
    assert (POLICY.verdict(seen) is Verdict.TIMEOUT) == (seen.left <= 0)


@given(signs)
def test_a_run_that_goes_on_is_looked_at_again_before_it_can_stall_or_time_out(seen: Signs) -> None:
    pause = POLICY.pause(seen)

    assert 0 <= pause <= max(seen.left, 0)
    assert seen.idle + pause <= max(POLICY.patience(seen.tools), seen.idle)
