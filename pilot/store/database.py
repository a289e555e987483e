"""What an engine does for the SQL above it, and the few fragments in which engines differ.

An operation is a generator: it yields statements and is sent their rows, so that the same text serves an engine that
runs each as it comes (SQLite) and one that sends in one go all whose rows nobody waits for (PostgreSQL). An operation
takes *all* items that wait at the moment: concurrent callers share its statements and one commit.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

Row = tuple[Any, ...]
Rows = list[Row]
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Statement:
    """One SQL text with `:name` parameters; `many` binds it once per mapping instead and gives no rows."""

    sql: str
    params: Mapping[str, Any] = field(default_factory=dict)
    many: Sequence[Mapping[str, Any]] | None = None


@dataclass(frozen=True, slots=True)
class Notify:
    """Wake-ups to send once the transaction is committed.

    A project's id: something about it has changed. "+" before it: it has got work that a node may claim at once.
    "*", "cancel", "outbox", "inbox": for all that may be runnable, that is to end, that is owed, that has come in.
    """

    tokens: Iterable[str]


@dataclass(frozen=True, slots=True)
class Ahead:
    """A statement whose rows are wanted later. What it gives is a list that may be read from the next `HEARD` on.

    `again`: what gives the same rows once the first is committed; for those that are wanted behind `LAST`.
    """

    statement: Statement
    again: Statement | None = None


@dataclass(frozen=True, slots=True)
class Heard:
    """The rows of all that was sent `Ahead` are there; what was sent behind it may be under way still."""


@dataclass(frozen=True, slots=True)
class Last:
    """Nothing is written from here on. `HEARD`, perhaps when all is committed already: what follows makes results."""


HEARD, LAST = Heard(), Last()
BEHIND_LAST = "an operation went on behind LAST"
Step = Statement | Ahead | Heard | Last | Notify
Operation = Callable[[Sequence[Item]], Generator[Step, Rows, Sequence[Result | Exception]]]
"""Results in the order of the items; an exception as a result is raised for that item alone."""

Listener = Callable[[Collection[str]], None]


class Dialect(Protocol):
    """The fragments of SQL that are not the same everywhere."""

    def records(self, name: str, alias: str, columns: Mapping[str, str]) -> str:
        """A FROM item: the JSON array bound to `:name` as a table `alias` with these columns and types.

        Types: `bigint`, `text`, `float`.
        """
        ...

    def elements(self, column: str, alias: str) -> str:
        """A FROM item: the JSON array of texts in a column of the query around it, as `n` (ascending) and `value`."""
        ...


class Database(Protocol):
    """One store. Raises `StoreError`, or `Busy` when another process holds the lock for too long."""

    dialect: Dialect
    clock: Callable[[], int]

    async def write(self, operation: Operation[Item, Result], item: Item) -> Result:
        """Run the operation for this item in a transaction shared with whoever else waits; durable on return."""
        ...

    async def read(self, sql: str, params: Mapping[str, Any] | None = None) -> Rows:
        """One SELECT on a connection that can't write."""
        ...

    async def read_all(self, statements: Sequence[Statement]) -> list[Rows]:
        """Several of them in a row, in one hop."""
        ...

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call it with tokens of `Notify`, also other processes'; a hint that may be lost. Returns the way out."""
        ...

    async def changed(self) -> bool:
        """Whether anybody committed since the last call: the timer behind lost hints."""
        ...

    async def close(self) -> None:
        """Finish what is under way and let go of the file."""
        ...
