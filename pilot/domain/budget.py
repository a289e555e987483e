"""What agents may spend: limits, and what a claim sets aside of them."""

from __future__ import annotations

from dataclasses import dataclass

from pilot.domain.execution import Execution

DAY = 24 * 60 * 60 * 1000
MILLIONTHS = 1_000_000
UNLIMITED = 1.0
"""Dollars set aside for an attempt whose execution has no limit of its own, so that a day's limit is kept."""


@dataclass(frozen=True, slots=True)
class Budget:
    """Spending limits in USD; None: no limit. `per_day` is of a UTC day, over all projects."""

    per_execution: float | None = None
    per_day: float | None = None

    def left(self, execution: Execution) -> float | None:
        """What the execution may still cost, from its last answer by a person on; None: no limit."""
        return self.left_of(execution.cost_usd, execution.forgiven_usd)

    def left_of(self, cost: float | None, forgiven: float) -> float | None:
        """The same by the row's figures: its cost as far as known, and what of it no longer counts."""
        if self.per_execution is None:
            return None
        return max(0.0, self.per_execution - max(0.0, (cost or 0.0) - forgiven))

    def reservation(self, cost: float | None, forgiven: float) -> int | None:
        """Millionths of a dollar that the next attempt sets aside; None: nothing is limited."""
        if self == Budget():
            return None
        left = self.left_of(cost, forgiven)
        wanted = UNLIMITED if left is None else left
        return millionths(wanted if self.per_day is None else min(wanted, self.per_day))

    def room(self, booked: int) -> int | None:
        """Millionths of a dollar that the day has left when so many are spent or set aside; None: no limit."""
        return None if self.per_day is None else max(0, millionths(self.per_day) - booked)


def millionths(usd: float) -> int:
    """Dollars as whole millionths, whose sums are exact."""
    return round(usd * MILLIONTHS)


def day_of(at: int) -> int:
    """The UTC day of a time (ms), counted from 1970-01-01."""
    return at // DAY


def day_after(at: int) -> int:
    """When (UTC ms) the next UTC day begins."""
    return (day_of(at) + 1) * DAY
