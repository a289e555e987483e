"""Sets of values on their way into a statement, and the event rows that go with them."""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any

from pilot.domain.events import EventType
from pilot.domain.outcome import Usage
from pilot.domain.text import REPLACEMENT, clean
from pilot.store.database import Dialect, Notify, Statement

OPEN_STATUSES = "('blocked', 'queued', 'running', 'needs_human')"
"""Literal, as in the partial indexes: a bound parameter could not use them."""

LIVE_PULLS = "('owed', 'open')"
"""Literal, likewise."""

OWED = Notify(("outbox",))
"""The hint that something may be owed to the outside."""
LARGE = 1 << 53
"""Sums of it stay integers."""
_FIGURES = tuple(field.name for field in fields(Usage))
_ENCODER = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False)
_NUL = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")


def dumps(value: Any) -> str:
    """JSON without spaces, of text that both engines store. Raises ValueError for NaN and infinity.

    Everything written goes through here: one lone surrogate in a column is a row that nobody can read any more.
    """
    text = clean(_ENCODER.encode(value))
    if "\\u0000" in text:
        text = _NUL.sub(rf"\1{REPLACEMENT}", text)
    return text


class Table:
    """A shape of records: `FROM {table.of("items", "f")}` in a statement, `table.rows(...)` as its parameter."""

    def __init__(self, **columns: str) -> None:
        self.columns = columns

    def of(self, dialect: Dialect, alias: str, name: str = "items") -> str:
        """The FROM item."""
        return dialect.records(name, alias, self.columns)

    def rows(self, rows: Iterable[Sequence[Any]]) -> str:
        """The parameter: one JSON array per row, in the order of the columns, each of which it has to have."""
        found = list(rows)
        width = len(self.columns)
        for row in found:
            if len(row) != width:  # what is missing would be NULL, and nobody would know
                raise ValueError(f"a row of {len(row)} values for {width} columns: {', '.join(self.columns)}")
        try:
            array("q", [value for row in found for value in row if value.__class__ is int])
        except OverflowError:
            found = [[_storable(value) for value in row] for row in found]
        return dumps(found)


def _storable(value: Any) -> Any:
    """NULL for a number beyond 64 bits: it is nobody's id, and no column has it."""
    return None if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63 else value


_EVENTS = Table(type="text", execution_id="bigint", project_id="bigint", data="text")
_IDS = Table(id="bigint")

EventRow = tuple[str, int | None, int | None, str]


def event(type: EventType, execution: int | None, project: int | None, /, **data: Any) -> EventRow:
    """One row for `events_statement`."""
    return type.value, execution, project, dumps(data)


def events_statement(dialect: Dialect, now: int, rows: Sequence[EventRow]) -> Statement:
    """Append events, in order."""
    source = _EVENTS.of(dialect, "v")
    return Statement(
        "INSERT INTO events (at, type, execution_id, project_id, data) "
        f"SELECT :now, v.type, v.execution_id, v.project_id, v.data FROM {source}",
        {"now": now, "items": _EVENTS.rows(rows)},
    )


def ids_of(dialect: Dialect, name: str = "ids") -> str:
    """A sub-select of the bound list of ids."""
    return f"(SELECT i.id FROM {_IDS.of(dialect, 'i', name)})"


def ids(values: Iterable[int]) -> str:
    """The parameter for `ids_of`."""
    return dumps([[_storable(value)] for value in values])


def short(text: str | None) -> str | None:
    """A reason, as a column holds it."""
    return None if text is None else clean(text)[:2000]


def known(usage: Usage) -> dict[str, float | None]:
    """By column. An agent's own figures: what can't be an amount (NaN, 1e999, -1) is not known."""
    figures = ((name, getattr(usage, name)) for name in _FIGURES)
    return {name: n if n is not None and 0 <= n < LARGE else None for name, n in figures}
