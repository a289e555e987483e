"""Exit codes, and which one an ended execution deserves."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pilot.domain.execution import Execution

EXIT_CODES = (
    (0, "done"),
    (1, "the task failed, or something else went wrong"),
    (2, "usage or configuration"),
    (3, "needs a human"),
    (4, "not found"),
    (64, "cost cap"),
    (75, "busy or rate-limited: try later"),
    (124, "timed out"),
    (130, "interrupted"),
)


def exit_code(execution: Execution) -> int:
    """The code of `pilot run` for how its execution stands at the end."""
    match execution.status:
        case "completed":
            return 0
        case "needs_human" | "failed" if execution.failure_class == "budget":
            return 64
        case "needs_human":
            return 3
        case "cancelled":
            return 130
        case "queued" | "blocked":  # parked or waiting for its next try, which this process does not make
            return 75
        case "failed" if execution.failure_class in ("timeout", "stall"):
            return 124
        case "failed" if execution.failure_class in ("rate_limit", "quota"):
            return 75
        case _:
            return 1


def table() -> str:
    """The codes for `--help`."""
    return "\n".join(f"  {code:>3}  {meaning}" for code, meaning in EXIT_CODES)
