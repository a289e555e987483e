"""The vocabulary of the event log."""

from __future__ import annotations

import re

import pytest

from pilot.domain.events import Event, EventType
from pilot.domain.execution import FINAL, Status


@pytest.mark.parametrize("type", EventType)
def test_an_event_is_named_by_what_happened_to_what(type: EventType) -> None:
    assert re.fullmatch(r"(execution|backend|project|node|trigger|pull|delivery)\.[a-z_]+", type)


def test_no_two_facts_share_a_name() -> None:
    assert len({str(type) for type in EventType}) == len(EventType)


@pytest.mark.parametrize("status", sorted(FINAL))
def test_every_end_has_its_event(status: Status) -> None:
    assert EventType(f"execution.{status}") in EventType


def test_an_event_does_not_change() -> None:
    event = Event(1, 2, EventType.QUEUED, 3, 4, {"status": "queued"})
    with pytest.raises(AttributeError):
        event.id = 2  # type: ignore[misc]
