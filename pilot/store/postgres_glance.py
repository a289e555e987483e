"""Reading a PostgreSQL store without an event loop, for commands that answer at once; see `glance`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from pilot.store import wall_clock
from pilot.store.database import Dialect, Item, Listener, Operation, Result, Rows, Statement
from pilot.store.history import History
from pilot.store.postgres_dialect import Failed, PostgresDialect, translate
from pilot.store.postgres_group import NOW
from pilot.store.postgres_migrate import prepare
from pilot.store.postgres_place import Place
from pilot.store.postgres_wire import Wire


class PostgresGlance:
    """A `Database` that only reads, and is done when it returns. Its clock is the server's."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.dialect: Dialect = PostgresDialect()
        wire, _ = prepare(place, None, create=False)
        self._wire: Wire = wire
        try:
            wire.script("SET default_transaction_read_only = on")
            ((now,),) = wire.rows(NOW)
        except Failed as error:
            wire.close()
            raise translate(error, place.name) from None
        self.ahead = int(now) - wall_clock()
        """Milliseconds that the server's clock is ahead of this machine's."""
        self.clock: Callable[[], int] = lambda: wall_clock() + self.ahead

    async def read(self, sql: str, params: Mapping[str, Any] | None = None) -> Rows:
        """See `Database.read`."""
        return (await self.read_all([Statement(sql, params or {})]))[0]

    async def read_all(self, statements: Sequence[Statement]) -> list[Rows]:
        """See `Database.read_all`."""
        try:
            return self._wire.again(statements)
        except Failed as error:
            raise translate(error, self.place.name) from None

    async def write(self, operation: Operation[Item, Result], item: Item) -> Result:
        """Never."""
        raise TypeError("a glance only reads")

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Never."""
        raise TypeError("a glance only reads")

    async def changed(self) -> bool:
        """Never asked: whoever follows asks `History` itself."""
        return True

    async def close(self) -> None:
        """See `Database.close`."""
        self._wire.close()


@contextmanager
def glance(url: str) -> Iterator[tuple[History, int]]:
    """The history of the store at this URL, and how far its clock is ahead (ms). Raises as opening does."""
    database = PostgresGlance(Place(url))
    try:
        yield History(database), database.ahead
    finally:
        database._wire.close()
