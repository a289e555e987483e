"""What was spent and what is set aside, by UTC day: booked with the claim, settled with the attempt's end.

An attempt whose cost nobody told keeps what was set aside for it: unknown is not nothing.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence

from pilot.domain.budget import DAY, Budget, day_of, millionths
from pilot.store.database import Dialect, Rows, Statement, Step
from pilot.store.records import Table

_BOOKED = Table(day="bigint", spent="bigint", reserved="bigint")
_TODAY = f":now / {DAY}"
# That of the attempt's beginning as it is written, whatever the node takes for now.
BOOKED = f"coalesce((SELECT s.spent + s.reserved FROM spending s WHERE s.day = {_TODAY}), 0)"
"""Millionths of a dollar that today has no longer."""
_DAY = f"coalesce(b.day, {_TODAY})"


class Spending:
    """Its statements."""

    def __init__(self, dialect: Dialect) -> None:
        self._begin = f"""
            INSERT INTO spending (day) SELECT {_DAY} FROM {_BOOKED.of(dialect, "b")} WHERE true
            ON CONFLICT (day) DO NOTHING"""
        self._book = f"""
            UPDATE spending SET spent = spending.spent + b.spent, reserved = spending.reserved + b.reserved
            FROM {_BOOKED.of(dialect, "b")} WHERE spending.day = {_DAY}"""

    def reserve(self, amounts: Iterable[int], now: int) -> Generator[Step, Rows, None]:
        """Set so much aside of today."""
        yield from self._change([(None, 0, sum(amounts))], now)

    def settle(self, attempts: Iterable[tuple[int, int | None, float | None]], now: int) -> Generator[Step, Rows, None]:
        """Attempts that ended: (begun at, set aside, cost). The day of their beginning bears it."""
        days: dict[int, tuple[int, int]] = {}
        for started_at, reserved, cost in attempts:
            if cost is not None:
                spent, freed = days.get(day_of(started_at), (0, 0))
                days[day_of(started_at)] = spent + millionths(cost), freed - (reserved or 0)
        changes = [(day, *amounts) for day, amounts in days.items() if amounts != (0, 0)]
        if changes:
            yield from self._change(changes, now)

    def _change(self, rows: Sequence[tuple[int | None, int, int]], now: int) -> Generator[Step, Rows, None]:
        """By day; None: today."""
        items = {"now": now, "items": _BOOKED.rows(rows)}
        yield Statement(self._begin, items)
        yield Statement(self._book, items)


def fits(budget: Budget, cost: float | None, forgiven: float, booked: int) -> bool:
    """Whether the day has room for an attempt at an execution that has cost so much."""
    room, amount = budget.room(booked), budget.reservation(cost, forgiven)
    return room is None or amount is None or amount <= room
