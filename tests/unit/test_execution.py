"""The states and their one table."""

from __future__ import annotations

import pytest

from pilot.domain.errors import IllegalTransition
from pilot.domain.execution import FINAL, OPEN, TRANSITIONS, Status, check_transition

EDGES = {
    ("blocked", "queued"), ("blocked", "cancelled"),
    ("queued", "running"), ("queued", "completed"), ("queued", "cancelled"),
    ("running", "queued"), ("running", "needs_human"), ("running", "completed"), ("running", "failed"),
    ("running", "cancelled"),
    ("needs_human", "queued"), ("needs_human", "failed"), ("needs_human", "cancelled"),
}  # fmt: skip


@pytest.mark.parametrize("before", Status)
@pytest.mark.parametrize("after", Status)
def test_exactly_the_edges_of_the_table_are_allowed(before: Status, after: Status) -> None:
    if (before, after) in EDGES:
        check_transition(before, after)
    else:
        with pytest.raises(IllegalTransition, match=f"that is {before} can't become {after}"):
            check_transition(before, after)


@pytest.mark.parametrize("final", sorted(FINAL))
def test_nothing_leaves_a_final_state(final: Status) -> None:
    assert final.final
    for after in Status:
        with pytest.raises(IllegalTransition):
            check_transition(final, after)


def test_the_table_is_closed_and_every_open_state_has_a_way_out() -> None:
    assert set(TRANSITIONS) == set(Status)
    assert set(Status) == OPEN | FINAL
    assert not OPEN & FINAL
    for state in OPEN:
        assert not state.final
        reached, front = {state}, {state}
        while front:
            front = {after for before in front for after in TRANSITIONS[before]} - reached
            reached |= front
        assert reached & FINAL, f"{state} can end"
        assert Status.CANCELLED in TRANSITIONS[state], f"{state} can be cancelled"


def test_only_what_is_queued_can_run() -> None:
    assert [before for before, after in TRANSITIONS.items() if Status.RUNNING in after] == [Status.QUEUED]
