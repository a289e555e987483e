"""`pilot db copy`: a whole store into another place, on any engine: verified, and resumed where it was broken off."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

from pilot.domain.errors import StoreError, StoreRefused, UsageError
from pilot.domain.ports import Clock, Node
from pilot.store.copy_ends import CopyEnd, in_nobodys_hands
from pilot.store.copy_tables import CopyTable, Mark, Tally, copy_tables
from pilot.store.database import Row
from pilot.store.migrate import newest

BATCH, BYTES = 5_000, 4 << 20
"""Rows, and about so many bytes of them, that go into one transaction."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far it is. `doing`: copying | verifying."""

    doing: str
    table: str
    rows: int
    of: int


@dataclass(frozen=True, slots=True)
class Copied:
    """What is in the target now. `already`: it was there, whole, before this run."""

    source: str
    target: str
    store: str
    tallies: dict[str, Tally]
    resumed: bool = False
    restarted: bool = False
    already: bool = False

    @property
    def rows(self) -> int:
        """Of all tables."""
        return sum(tally.rows for tally in self.tallies.values())


@dataclass(slots=True)
class Copying:
    """One run. `alive` judges a node of this machine by its process, None for another machine's."""

    source: CopyEnd
    target: CopyEnd
    alive: Callable[[Node], bool | None]
    tell: Callable[[Progress], None] = lambda _: None
    batch: int = BATCH
    tables: Sequence[CopyTable] = field(default_factory=copy_tables)

    def run(self, *, fresh: bool = False) -> Copied:
        """Copy all that is not there yet. Raises `Busy` while anybody works with the source, `StoreRefused` for a
        target that holds anything else, `StoreError` when something could not be done or proved: then the target stays
        marked, and the same call goes on.
        """
        if self.source.identity() == self.target.identity():
            raise UsageError(f"{self.source.words} and {self.target.words} are one and the same store")
        self.source.hold()
        in_nobodys_hands(self.source, self.alive)
        store = self.source.store()
        mark = self.target.mark()
        if mark is None and self.target.taken(self.tables) is not None:
            return self._already(store)
        resumed = mark is not None and self._goes_on(mark, store, fresh)
        begun = mark if mark is not None and resumed else Mark(store, newest("sqlite"), self.source.clock())
        if not resumed:
            self.target.begin(self.tables, begun)
        for table in self.tables:
            self._copy(table, begun)
        self.target.finish(self.tables, self.source.numbers(self.tables), lambda: self._verify(begun))
        return Copied(
            self.source.words,
            self.target.words,
            store,
            begun.tallies,
            resumed=resumed,
            restarted=mark is not None and not resumed,
        )

    def _goes_on(self, mark: Mark, store: str, fresh: bool) -> bool:
        """Whether what was copied still stands in the source as it was; raises for another store's copy."""
        if mark.store != store and not fresh:
            raise StoreRefused(
                f"{self.target.words} is the unfinished copy of another store ({mark.store}; this is {store}); "
                "it is left as it is. Name another place, or throw it away with --fresh"
            )
        if mark.schema != newest("sqlite"):
            raise StoreRefused(
                f"{self.target.words} is an unfinished copy with schema {mark.schema}, and this pilot has "
                f"{newest('sqlite')}; it is left as it is. Remove it and begin anew, or finish it with the pilot that "
                "began it"
            )
        if fresh:
            return False
        for table in self.tables:
            before = mark.tallies.get(table.name)
            if before is not None and before.after is not None:
                of = before.rows
                now = self._tally("verifying", table, of, self.source.rows(table, None, before.after))
                if not now.same(before):
                    return False
        return True

    def _copy(self, table: CopyTable, mark: Mark) -> None:
        tally = replace(mark.tallies.get(table.name) or Tally())
        of = self.source.count(table)
        self.tell(Progress("copying", table.name, tally.rows, of))
        rows: list[Row] = []
        size = 0

        def put() -> None:
            mark.tallies[table.name] = replace(tally)
            self.target.write(table, rows, mark)
            self.tell(Progress("copying", table.name, tally.rows, of))

        for row, wide in tally.through(table, self.source.rows(table, tally.after)):
            rows.append(row)
            size += wide
            if len(rows) >= self.batch or size >= BYTES:
                put()
                rows, size = [], 0
        if rows:
            put()
        mark.tallies[table.name] = tally

    def _tally(self, doing: str, table: CopyTable, of: int, rows: Iterator[Row]) -> Tally:
        tally = Tally()
        self.tell(Progress(doing, table.name, 0, of))
        for _ in tally.through(table, rows):
            if tally.rows % self.batch == 0:
                self.tell(Progress(doing, table.name, tally.rows, of))
        self.tell(Progress(doing, table.name, tally.rows, of))
        return tally

    def _verify(self, mark: Mark) -> None:
        """Read all of the target again; raises for the first table that is not the source's."""
        for table in self.tables:
            meant = mark.tallies[table.name]
            found = self._tally("verifying", table, meant.rows, self.target.rows(table))
            if not found.same(meant):
                what = f"{found.rows} rows for {meant.rows}" if found.rows != meant.rows else "other content"
                raise StoreError(
                    f"{self.target.words}: table {table.name} has {what}, so the copy is not right and stays unusable. "
                    "Has anything else written to it? Begin anew with --fresh"
                )

    def _already(self, store: str) -> Copied:
        """What a call makes of a target that holds something: a copy that nobody has used is as good as one just made;
        raises `StoreRefused` for anything else.
        """
        refused = StoreRefused(
            f"{self.target.words} is not empty; it is left as it is. Name a database, or a file, that has nothing in it"
        )
        if self.target.taken(self.tables) != store:
            raise refused
        if any(self.target.count(table) != self.source.count(table) for table in self.tables):
            raise refused
        tallies = {}
        for table in self.tables:
            of = self.source.count(table)
            tallies[table.name] = self._tally("verifying", table, of, self.source.rows(table))
            if not self._tally("verifying", table, of, self.target.rows(table)).same(tallies[table.name]):
                raise refused
        return Copied(self.source.words, self.target.words, store, tallies, already=True)


@contextmanager
def open_end(url: str, clock: Clock | None, *, target: bool = False) -> Iterator[CopyEnd]:
    """A store as one end of a copy, by its URL; a source has to exist, and is brought up to date first.

    `clock` None: this machine's for a file, its own for a server.
    """
    from pilot.store import is_postgres, of_postgres, sqlite_path, wall_clock

    end: CopyEnd
    if is_postgres(url):
        end = of_postgres("copy_postgres").PostgresEnd(url, clock, target=target)
    else:
        from pilot.store.copy_sqlite import SqliteEnd

        end = SqliteEnd(sqlite_path(url), clock or wall_clock, target=target)
    try:
        yield end
    finally:
        end.close()


def copy_store(
    source: str,
    target: str,
    alive: Callable[[Node], bool | None],
    tell: Callable[[Progress], None] = lambda _: None,
    *,
    clock: Clock | None = None,
    fresh: bool = False,
) -> Copied:
    """Copy the store at one URL to another. See `Copying.run`."""
    with ExitStack() as ends:
        origin = ends.enter_context(open_end(source, clock))
        end = ends.enter_context(open_end(target, clock, target=True))
        return Copying(origin, end, alive, tell).run(fresh=fresh)
