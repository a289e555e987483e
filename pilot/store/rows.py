"""Rows of `executions` as values. The column order is that of the dataclass, written down once."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

from pilot.domain.execution import Execution, Status

EXECUTION_COLUMNS: tuple[str, ...] = tuple(f.name for f in fields(Execution))
EXECUTION_SELECT = ", ".join(f"executions.{name}" for name in EXECUTION_COLUMNS)

_AT = {name: i for i, name in enumerate(EXECUTION_COLUMNS)}
_JSON = tuple(_AT[name] for name in ("labels", "fallback", "payload", "origin", "options", "artifacts"))
_LABELS, _STATUS, _CANCEL = _AT["labels"], _AT["status"], _AT["cancel_requested"]
_FALLBACK, _EXTERNAL, _INSTANT = _AT["fallback"], _AT["external"], _AT["instant"]
_PUT = tuple(getattr(Execution, name).__set__ for name in EXECUTION_COLUMNS)
_EMPTY: dict[str | None, Any] = {None: None, "[]": (), "{}": {}}


def to_execution(row: tuple[Any, ...]) -> Execution:
    """One row of `EXECUTION_SELECT` as an `Execution`."""
    values = list(row)
    for i in _JSON:
        text = values[i]
        # Most rows have nothing in them; parsing "[]" a million times is what a drain would spend its time on.
        values[i] = _EMPTY[text] if text in _EMPTY else json.loads(text)
    values[_LABELS] = tuple(values[_LABELS])
    values[_STATUS] = Status(values[_STATUS])
    values[_CANCEL] = bool(values[_CANCEL])
    values[_FALLBACK] = tuple(values[_FALLBACK])
    values[_EXTERNAL] = bool(values[_EXTERNAL])
    values[_INSTANT] = bool(values[_INSTANT])
    # A frozen class's own `__init__` sets each field by name, three times slower; a drain makes thousands in a second.
    execution = object.__new__(Execution)
    for put, value in zip(_PUT, values, strict=True):
        put(execution, value)
    return execution
