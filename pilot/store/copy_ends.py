"""Where a copy comes from and where it goes to: what an engine does for `copying`, and what is asked of both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from pilot.domain.errors import Busy
from pilot.domain.ports import Node, NodeKind
from pilot.store.copy_tables import CopyTable, Key, Mark
from pilot.store.database import Row


class CopyEnd(Protocol):
    """One store, on one connection. All errors are `StoreError`s in words, without passwords.

    A place that is read from changes nothing; nobody writes to it from `hold` to `close`, which also a death of this
    process ends. A place that is written to has a mark from `begin` to `finish`, and nobody can open it meanwhile.
    """

    words: str

    def identity(self) -> str:
        """Which of all databases this is, whatever it is called."""
        ...

    def hold(self) -> None:
        """Keep everybody from writing; a source from here on. Raises `Busy` when somebody does not let go."""
        ...

    def clock(self) -> int:
        """UTC ms, by the clock that its leases go by."""
        ...

    def store(self) -> str:
        """The id of the store; of a source."""
        ...

    def nodes(self) -> list[tuple[Node, int]]:
        """Each node and the end of its lease; of a source."""
        ...

    def numbers(self, tables: Sequence[CopyTable]) -> dict[str, int]:
        """By table, the highest number that it ever gave to a row; tables that give none are left out."""
        ...

    def count(self, table: CopyTable) -> int:
        """Its rows."""
        ...

    def rows(self, table: CopyTable, after: Key | None = None, upto: Key | None = None) -> Iterator[Row]:
        """Its rows in the order of their keys, behind `after` and up to and with `upto`."""
        ...

    def mark(self) -> Mark | None:
        """The mark of a copy that is not whole, when there is one; of a target, which need not exist."""
        ...

    def taken(self, tables: Sequence[CopyTable]) -> str | None:
        """The id of the store that a target without a mark holds already; None: nothing is in it."""
        ...

    def begin(self, tables: Sequence[CopyTable], mark: Mark) -> None:
        """Make a target of it, empty and marked; what an unfinished copy had put there is thrown away.

        Raises `StoreRefused` when anything else is there.
        """
        ...

    def write(self, table: CopyTable, rows: Sequence[Row], mark: Mark) -> None:
        """Put rows in and renew the mark, in one transaction."""
        ...

    def finish(self, tables: Sequence[CopyTable], numbers: Mapping[str, int], verify: Callable[[], None]) -> None:
        """Make a store of a whole copy: numbers go on behind these, triggers are at work, no mark.

        In one transaction, in which `verify` reads what is there, and raises where it is not right.
        """
        ...

    def close(self) -> None:
        """Let go of everything."""
        ...


UNSOUND = "the store is not sound, and can't be copied ({error}); `pilot db check` says what is wrong with it"
NODES = "SELECT id, kind, host, boot_id, pid, start_ticks, version, max_running, lease_until FROM nodes"


def to_node(row: Row) -> tuple[Node, int]:
    """From the columns of `NODES`."""
    id, kind, host, boot_id, pid, start_ticks, version, max_running, until = row
    return Node(id, NodeKind(kind), host, boot_id, pid, start_ticks, version, max_running), until


def in_nobodys_hands(end: CopyEnd, alive: Callable[[Node], bool | None]) -> None:
    """Raise `Busy` while a node is up: by its lease, or by its process, which may have been stopped for a while.

    A worker does not hold the store: who answers it does, and is a node itself.
    """
    now = end.clock()
    for node, until in end.nodes():
        if node.kind is NodeKind.WORKER:
            continue
        if until > now:
            wait = -(-(until - now) // 1000)
            raise Busy(
                f"{node.id} ({node.version}) works with {end.words}; nothing was copied. "
                f"Stop it first; if it was killed, try again in {wait} s"
            )
        if alive(node):
            raise Busy(
                f"{node.id} works with {end.words}: its lease has ended, and its process (pid {node.pid}) is there. "
                "Stop it first; nothing was copied"
            )
