"""An execution as the store would give it, for tests that need no store."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from pilot.domain.execution import Execution, Status

NOW = 1_800_000_000_000

_GIVEN: dict[str, Any] = {
    "id": 1, "project_id": 1, "project": "api", "project_path": "/src/api", "task_id": "GH-46", "title": "Fix it",
    "body": "", "source": "github", "kind": "code", "labels": (), "priority": 2, "lane": 0,
    "status": Status.RUNNING, "available_at": NOW, "deps_left": 0, "slot": 0, "node": "n1", "fence": 1,
    "lease_until": NOW + 60_000, "cancel_requested": False, "attempt": 1, "failures": 0, "losses": 0, "streak": 0,
    "max_attempts": 3, "backend": "claude-code", "options": {}, "created_at": NOW,
    "delivery": "none", "checks": "none", "fallback": (), "external": False, "forgiven_usd": 0.0,
}  # fmt: skip


def execution(**values: Any) -> Execution:
    """A running one; everything that is not given is what a first attempt has."""
    unknown = dict.fromkeys(field.name for field in fields(Execution))
    return Execution(**{**unknown, **_GIVEN, **values})
