"""What an execution's payload asks for, read from the row."""

from __future__ import annotations

from typing import Any

from pilot.domain.errors import UsageError
from pilot.domain.payload import Payload, is_pointer, parse_payload

MACHINE = "payload"
"""The backend of what pilot does by itself; nobody can choose it."""


def pointer(value: Any) -> Payload | None:
    """The pointer that a task's payload is; None for what its source wants kept. Raises `UsageError`."""
    return parse_payload(value) if is_pointer(value) else None


def by_machine(value: Any) -> bool:
    """Whether pilot itself does what this payload asks for. What can't be read is nothing it could do."""
    try:
        found = pointer(value)
    except UsageError:
        return False
    return found is not None and found.work.by_machine
