"""The steps of operations on one connection, none of which waits for an answer by itself.

Whoever drives them (the loop, or a thread that may wait) is handed the connection whenever only its answer is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, TypeVar

from pilot.domain.errors import StoreError
from pilot.store.database import BEHIND_LAST, Ahead, Heard, Last, Notify, Operation, Rows, Statement, Step
from pilot.store.postgres_dialect import Failed, blames_item
from pilot.store.postgres_wire import Wire

T = TypeVar("T")
Waiting = Generator[Wire | None, None, T]
"""It yields the connection, to go on once there is something to read or the server's time is up, and None before what
may wait otherwise, or takes long: that is for a thread.
"""
_SAVE, _BACK = Statement("SAVEPOINT operation"), Statement("ROLLBACK TO operation")
_RELEASE = Statement("RELEASE operation")
_WRITES = ("INSERT", "UPDATE", "DELETE")


def through(going: Waiting[T]) -> T:
    """All of it, in a thread that may wait."""
    try:
        while True:
            if (wire := next(going)) is not None:
                wire.wait()
    except StopIteration as stop:
        result: T = stop.value
        return result


def sent(wire: Wire) -> Waiting[None]:
    """Until all that was pushed is on its way."""
    if wire.unsent:
        yield None
        wire.sent()


def answer(wire: Wire) -> Waiting[Rows]:
    """Until all that was pushed is answered; the rows of the last."""
    yield from sent(wire)
    while (rows := wire.answer()) is None:
        yield wire
    return rows


def heard(wire: Wire) -> Waiting[None]:
    """Until whoever wants rows has them."""
    yield from sent(wire)
    while not wire.heard():
        yield wire


class Steps:
    """The steps of an operation; the first is made ready at once. `step` None: it has ended, with `result`."""

    def __init__(self, operation: Operation[Any, Any], items: list[Any]) -> None:
        self._steps = operation(items)
        self._many = len(items)
        self.result: Sequence[Any] = ()
        self.step: Step | None = None
        self.ahead: list[tuple[Ahead, Rows]] = []
        self.go_on(None)

    def go_on(self, rows: Any) -> None:
        """`rows`: of the last step; None begins."""
        try:
            self.step = self._steps.send(rows)
        except StopIteration as stop:
            self.step, self.result = None, stop.value

    def end(self) -> None:
        """It has come to `LAST`, and its rows are there. What fails now can't be taken back: it is the answer."""
        try:
            self.go_on([])
            if self.step is not None:
                raise RuntimeError(BEHIND_LAST)  # noqa: TRY301
        except Exception as error:  # noqa: BLE001
            self.step, self.result = None, [error] * self._many


def make_up(wire: Wire, late: Sequence[Steps]) -> None:
    """What is committed, and was not heard any more."""
    for each in late:
        if each.step is None:
            continue
        for ahead, rows in each.ahead:
            if ahead.again is not None:
                rows[:] = wire.rows(ahead.again)
        each.end()


def drive(
    wire: Wire,
    steps: Steps,
    tokens: set[str],
    part: Callable[[Wire], Waiting[None]] | None = None,
    *,
    eager: bool = False,
) -> Waiting[None]:
    """To its end, or to `LAST`. `part`: has the server begin with what is queued; None: each is waited for.

    `eager`: with each at once.
    """
    while (step := steps.step) is not None:
        rows: Rows = []
        later = isinstance(step, Ahead)
        statement = step.statement if isinstance(step, Ahead) else step
        if isinstance(statement, Notify):
            tokens.update(statement.tokens)
        elif isinstance(statement, Heard):
            if not wire.pushed:  # waiting sends all of it, and what has no Sync behind it nobody watches
                wire.push()
            yield from heard(wire)
        elif isinstance(statement, Last):
            if part is not None:
                return
        elif part is not None and (later or statement.many is not None or silent(statement.sql)):
            wire.send(statement, rows.extend if later else None)  # and fails somewhat later
            if isinstance(step, Ahead):
                steps.ahead.append((step, rows))
            if eager or wire.overflows():  # what the server has a part of it does not watch
                yield from part(wire)
        else:
            wire.ask(statement)
            rows = yield from answer(wire)
        steps.go_on(rows)


@lru_cache(maxsize=2048)
def silent(sql: str) -> bool:
    """Whether it gives no rows, so that nobody has to wait for them."""
    return sql.split(maxsplit=1)[0].upper() in _WRITES and "RETURNING" not in sql.upper()


def apart(wire: Wire, operation: Operation[Any, Any], items: list[Any], tokens: set[str]) -> Sequence[Any]:
    """In a thread: all items at once; when one of them is bad, each by itself, so that it fails alone."""
    wire.send(_SAVE)
    told: set[str] = set()
    try:
        steps = Steps(operation, items)
        through(drive(wire, steps, told))
        wire.rows(_RELEASE)
    except Exception as error:
        if not blames_item(error):
            raise
        with suppress(Failed):
            wire.rows()
        wire.send(_BACK)
        wire.rows(_RELEASE)
        if len(items) == 1:
            return [StoreError(f"the store refused: {error}") if isinstance(error, Failed) else error]
        return [apart(wire, operation, [item], tokens)[0] for item in items]
    tokens |= told
    return steps.result
