"""What a running attempt writes: facts about itself and its output, each under its fence."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pilot.domain.agent import OutputKind
from pilot.domain.errors import LeaseLost
from pilot.domain.execution import Execution
from pilot.domain.outcome import Usage
from pilot.store.database import Database, Dialect, Rows, Statement, Step
from pilot.store.parks import Parks
from pilot.store.records import Table, known

_FACTS = ("session_id", "model", "workspace", "branch", "base_sha", "head_sha", "input_hash")
_USAGE = {"input_tokens": "bigint", "output_tokens": "bigint", "cost_usd": "float"}
_OWN = ("phase", "sandbox")
"""Facts of the attempt alone."""
FACTS = frozenset({*_FACTS, *_OWN, "answered"})
"""What may be noted."""
_NOTES = Table(id="bigint", fence="bigint", **dict.fromkeys((*_OWN, *_FACTS), "text"), **_USAGE)
_CLAIMS = Table(n="bigint", id="bigint", fence="bigint")


@dataclass(frozen=True, slots=True)
class Note:
    """Facts of one running attempt, by `FACTS` and its usage."""

    execution: Execution
    facts: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Pieces:
    """Output of one running attempt, in order."""

    execution: Execution
    pieces: Sequence[tuple[OutputKind, bytes]]


class SqlJournal:
    """Implements `ports.Journal`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        dialect = database.dialect
        kept = ", ".join(f"{fact} = coalesce(n.{fact}, executions.{fact})" for fact in _FACTS)
        self._note = f"""
            UPDATE executions SET {kept} FROM {_NOTES.of(dialect, "n")}
            WHERE executions.id = n.id AND executions.fence = n.fence AND executions.status = 'running'
            RETURNING executions.id, executions.fence"""
        own = ", ".join(
            f"{fact} = coalesce(n.{fact}, attempts.{fact})"
            for fact in (*_OWN, "session_id", "model", "head_sha", *_USAGE)
        )
        self._attempt = f"""
            UPDATE attempts SET {own} FROM {_NOTES.of(dialect, "n")}
            WHERE attempts.execution_id = n.id AND attempts.fence = n.fence"""
        self._standing = _standing(dialect)
        self._parks = Parks(dialect)

    async def note(self, execution: Execution, usage: Usage | None = None, /, **facts: str | None) -> None:
        """See `Journal.note`."""
        unknown = facts.keys() - FACTS
        if unknown:
            raise TypeError(f"no such fact: {', '.join(sorted(unknown))}")
        figures = {} if usage is None else known(usage)
        await self._database.write(self.notes, Note(execution, {**facts, **figures}))

    async def write(self, execution: Execution, pieces: Sequence[tuple[OutputKind, bytes]]) -> None:
        """See `Journal.write`."""
        await self._database.write(self.output, Pieces(execution, pieces))

    def notes(self, notes: Sequence[Note]) -> Generator[Step, Rows, list[Exception | None]]:
        """The operation behind `note`."""
        # One row per claim: of two that meet in one group, an update would take either and lose the other.
        claims: dict[tuple[int, int], dict[str, Any]] = {}
        for n in notes:
            told = claims.setdefault((n.execution.id, n.execution.fence), {})
            told.update({name: fact for name, fact in n.facts.items() if fact is not None})
        rows = yield Statement(self._note, {"items": _rows(claims)})
        mine = {(id, fence): claims[id, fence] for id, fence in rows}
        if mine:
            yield Statement(self._attempt, {"items": _rows(mine)})
        answered = [claim for claim, told in mine.items() if told.get("answered")]
        if answered:
            yield from self._parks.answered(answered, self._database.clock())
        return [None if (n.execution.id, n.execution.fence) in mine else _lost(n.execution) for n in notes]

    def output(self, writes: Sequence[Pieces]) -> Generator[Step, Rows, list[Exception | None]]:
        """The operation behind `write`."""
        rows = yield Statement(
            self._standing,
            {"items": _CLAIMS.rows((n, w.execution.id, w.execution.fence) for n, w in enumerate(writes))},
        )
        standing = {n for n, *_ in rows}
        last: dict[int, int] = {id: seq for _, id, seq in rows}
        now = self._database.clock()
        values = []
        for n, w in enumerate(writes):
            id = w.execution.id
            if n not in standing:
                continue
            for kind, data in w.pieces:
                last[id] += 1
                values.append(
                    {
                        "id": id,
                        "attempt": w.execution.attempt,
                        "seq": last[id],
                        "at": now,
                        "kind": kind,
                        "data": data,
                    }
                )
        if values:
            yield Statement(
                "INSERT INTO output (execution_id, attempt, seq, at, kind, data) "
                "VALUES (:id, :attempt, :seq, :at, :kind, :data)",
                many=values,
            )
        return [None if n in standing else _lost(w.execution) for n, w in enumerate(writes)]


def _rows(claims: Mapping[tuple[int, int], Mapping[str, Any]]) -> str:
    return _NOTES.rows([*claim, *map(told.get, (*_OWN, *_FACTS, *_USAGE))] for claim, told in claims.items())


def _standing(dialect: Dialect) -> str:
    return f"""
        SELECT c.n, e.id, coalesce((SELECT max(o.seq) FROM output o
            WHERE o.execution_id = e.id AND o.attempt = e.attempt), 0)
        FROM {_CLAIMS.of(dialect, "c")} JOIN executions e
          ON e.id = c.id AND e.fence = c.fence AND e.status = 'running'"""


def _lost(execution: Execution) -> LeaseLost:
    return LeaseLost(f"execution {execution.id} (fence {execution.fence}) is no longer this run's")
