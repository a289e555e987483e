"""What people do to executions that nobody runs, or ask of those that somebody does."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

from pilot.domain.errors import NotFound, UsageError
from pilot.domain.events import EventType
from pilot.domain.execution import Status
from pilot.domain.text import clean
from pilot.store.database import Dialect, Notify, Rows, Statement, Step
from pilot.store.dependents import Dependents
from pilot.store.records import OWED, Table, event, events_statement, ids, ids_of

_ASKED = Table(id="bigint", reason="text")


@dataclass(frozen=True, slots=True)
class CancelRequest:
    """One execution to end, by whom, and why (for people)."""

    id: int
    by: str
    reason: str = ""

    @property
    def words(self) -> str:
        """What the row will say."""
        return clean(self.reason or f"cancelled by {self.by}")


@dataclass(frozen=True, slots=True)
class AnswerRequest:
    """What a person says to an execution that is held. `question`: only while it asks that one (id)."""

    id: int
    text: str
    by: str
    question: int | None = None


class Cancel:
    """At once for what nobody runs; a request, seen by the node that runs it, for what is running."""

    def __init__(self, dialect: Dialect, dependents: Dependents) -> None:
        self._dialect = dialect
        self._dependents = dependents
        self._end = f"""
            UPDATE executions SET status = 'cancelled', reason = c.reason, finished_at = :now, due = 0,
              reserved_for = NULL
            FROM {_ASKED.of(dialect, "c")}
            WHERE executions.id = c.id AND executions.status IN ('blocked', 'queued', 'needs_human')
            RETURNING executions.id, executions.project_id, executions.has_dependents, executions.reason"""
        self._ask = f"""
            UPDATE executions SET cancel_requested = 1, reason = c.reason FROM {_ASKED.of(dialect, "c")}
            WHERE executions.id = c.id AND executions.status = 'running' AND executions.cancel_requested = 0
            RETURNING executions.id, executions.project_id"""

    def __call__(self, requests: Sequence[CancelRequest], now: int) -> Generator[Step, Rows, list[Status | Exception]]:
        """The state afterwards: `cancelled`, `running` (asked to end), or the final state it had already."""
        first: dict[int, CancelRequest] = {}
        for request in requests:
            first.setdefault(request.id, request)
        items = _ASKED.rows((request.id, request.words) for request in first.values())
        ended = yield Statement(self._end, {"now": now, "items": items})
        asked = yield Statement(self._ask, {"items": items})
        events = [event(EventType.CANCELLED, id, project, reason=reason) for id, project, _, reason in ended] + [
            event(EventType.CANCEL_ASKED, id, project, by=first[id].by) for id, project in asked
        ]
        if events:
            yield events_statement(self._dialect, now, events)
        if ended:
            yield Statement(
                "UPDATE questions SET answered_at = :now, answered_by = 'cancelled' "
                f"WHERE answered_at IS NULL AND execution_id IN {ids_of(self._dialect)}",
                {"now": now, "ids": ids(id for id, *_ in ended)},
            )
            yield from self._dependents.follow(
                {id: Status.CANCELLED for id, _, dependents, _ in ended if dependents}, now
            )
        yield Notify({str(project) for _, project, *_ in ended} | ({"cancel"} if asked else set()))
        if ended:
            yield OWED
        rows = yield Statement(
            f"SELECT id, status FROM executions WHERE id IN {ids_of(self._dialect)}",
            {"ids": ids(first)},
        )
        after = {id: Status(status) for id, status in rows}
        return [
            after[request.id] if request.id in after else NotFound(f"no execution {request.id}") for request in requests
        ]


class Answer:
    """Sends a held execution back to its queue, once: the first answer wins."""

    def __init__(self, dialect: Dialect, dependents: Dependents) -> None:
        self._dialect = dialect
        self._dependents = dependents

    def __call__(self, requests: Sequence[AnswerRequest], now: int) -> Generator[Step, Rows, list[Exception | None]]:
        """None, or why the answer was not taken."""
        answers = []
        for request in requests:
            answers.append((yield from self._one(request, now)))
        return answers

    def _one(self, request: AnswerRequest, now: int) -> Generator[Step, Rows, Exception | None]:
        text = clean(request.text).strip()
        if not 0 < request.id < 1 << 63:
            return NotFound(f"no execution {request.id}")
        if not text:
            return UsageError("an answer can't be empty")
        rows = yield Statement(
            # What was counted counts from here again: a person has looked at it, and wants it tried.
            "UPDATE executions SET status = 'queued', reason = NULL, feedback = :text, due = 1, available_at = :now, "
            "failures = 0, streak = 0, mark = NULL, losses = 0, "
            "forgiven_usd = coalesce(cost_usd, 0), "
            "failure_class = CASE WHEN failure_class <> 'budget' THEN failure_class END "
            "WHERE id = :id AND status = 'needs_human' AND (CAST(:question AS bigint) IS NULL "
            "  OR EXISTS (SELECT 1 FROM questions q "
            "  WHERE q.id = :question AND q.execution_id = executions.id AND q.answered_at IS NULL)) "
            "RETURNING executions.project_id, executions.instant = 1 OR executions.dedupe IS NOT NULL",
            {"id": request.id, "text": text, "now": now, "question": request.question},
        )
        if not rows:
            state = yield Statement("SELECT status FROM executions WHERE id = :id", {"id": request.id})
            if not state:
                return NotFound(f"no execution {request.id}")
            if state[0][0] == "needs_human":
                return UsageError("that question is not open any more")
            return UsageError(f"execution {request.id} is {state[0][0]}; it asks nothing")
        yield Statement(
            "UPDATE questions SET answer = :text, answered_by = :by, answered_at = :now "
            "WHERE execution_id = :id AND answered_at IS NULL",
            {"id": request.id, "text": text, "by": clean(request.by), "now": now},
        )
        yield events_statement(
            self._dialect, now, [event(EventType.ANSWERED, request.id, rows[0][0], by=clean(request.by))]
        )
        yield Notify({str(rows[0][0])})
        yield OWED
        if rows[0][1]:  # what it makes may be there by now
            yield from self._dependents.let_go([request.id], now)
        return None
