"""The PostgreSQL engine: one writer at a time over all nodes, and one commit for all who wait in a process.

Whoever writes holds the store's advisory lock until its commit, so that every operation means what it means on
SQLite, and ids are committed in the order in which they were given out: who follows the events misses none.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from pilot.domain.errors import PilotError
from pilot.domain.ports import PlanSteps
from pilot.domain.task import Task
from pilot.store.database import Dialect, Item, Listener, Operation, Result, Rows, Statement
from pilot.store.group import Group, Groups, Work, answer, refuse
from pilot.store.postgres_dialect import PATIENCE, Failed, Lost, PostgresDialect, passes, translate
from pilot.store.postgres_group import CROWD, NOW, Results, Transaction
from pilot.store.postgres_migrate import prepare
from pilot.store.postgres_place import Place
from pilot.store.postgres_signals import PostgresSignals
from pilot.store.postgres_steps import Waiting, through
from pilot.store.postgres_wire import Wire

READERS = 3
"""Connections that read, at most."""
LONG = 20_000
"""Characters of a task that are as much work as another one."""


_TENDED = (50, 500, 5_000)
"""After so many groups, and each time after as many as the last, the planner is told what has become of the tables:
who plans for a table that is empty reads it from end to end when it is full. The server does so by itself, but not
within the first minutes.
"""
_UNKNOWN = """
    SELECT relname FROM pg_stat_user_tables WHERE schemaname = current_schema() AND n_mod_since_analyze > 200
    AND last_analyze IS NULL AND last_autoanalyze IS NULL"""


class PostgresDatabase:
    """Implements `Database` on one schema of a database. Made by `open_postgres`."""

    def __init__(self, place: Place, clock: Callable[[], int] | None, transaction: Transaction) -> None:
        self.place = place
        self.dialect: Dialect = PostgresDialect()
        self._transaction = transaction
        self.clock: Callable[[], int] = clock or transaction.clock
        self._waiting = Groups(self._commit)
        self._writing = ThreadPoolExecutor(1, "pilot-writer")
        self._reading = ThreadPoolExecutor(READERS, "pilot-reader")
        self._thread: asyncio.Future[Results] | None = None
        self._idle: deque[Wire] = deque()
        self._signals = PostgresSignals(place, transaction.channel, transaction.id)
        self._seen: Rows | None = None
        self._groups = 0
        self._tending: asyncio.Future[None] | None = None

    async def write(self, operation: Operation[Item, Result], item: Item) -> Result:
        """See `Database.write`."""
        return await self._waiting.write(operation, item)

    async def read(self, sql: str, params: Mapping[str, Any] | None = None) -> Rows:
        """See `Database.read`."""
        return (await self.read_all([Statement(sql, params or {})]))[0]

    async def read_all(self, statements: Sequence[Statement]) -> list[Rows]:
        """See `Database.read_all`."""
        return await asyncio.get_running_loop().run_in_executor(self._reading, self._read, statements)

    def listen(self, listener: Listener) -> Callable[[], None]:
        """See `Database.listen`."""
        return self._signals.listen(listener)

    async def changed(self) -> bool:
        """See `Database.changed`."""
        # What each open store committed; the server's transactions are other databases', too. Who has come and gone
        # meanwhile left events.
        seen = await self.read("SELECT id, n FROM writers UNION ALL SELECT '', max(id) FROM events ORDER BY 1")
        before, self._seen = self._seen, seen
        return before != seen

    async def close(self) -> None:
        """See `Database.close`."""
        await self._waiting.settled()
        await self._signals.close()
        if self._tending is not None:
            await asyncio.wait([self._tending])
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._writing, self._transaction.close)
        self._writing.shutdown(wait=False)
        await asyncio.to_thread(self._reading.shutdown)
        self._forget()

    def _read(self, statements: Sequence[Statement]) -> list[Rows]:
        deadline, pause = time.monotonic() + PATIENCE, 0.02
        while True:
            wire: Wire | None = None
            try:
                wire = self._idle_one() or Wire(self.place, read_only=True)
                rows = wire.again(statements)
            except Failed as error:
                if wire is not None and (isinstance(error, Lost) or passes(error)):
                    wire.close()
                    self._forget()
                elif wire is not None:
                    self._idle.append(wire)
                if not passes(error) or time.monotonic() + pause > deadline:
                    raise translate(error, self.place.name) from None
                time.sleep(pause)
                pause = min(pause * 2, 0.5)
            except BaseException:
                if wire is not None:
                    wire.close()
                raise
            else:
                self._idle.append(wire)
                return rows

    def _count(self) -> None:
        self._groups += 1
        if self._groups in _TENDED or not self._groups % _TENDED[-1]:
            self._tending = asyncio.get_running_loop().run_in_executor(self._reading, self._tend)

    def _tend(self) -> None:
        # What fails here is only slow.
        with suppress(PilotError):
            for (table,) in self._read([Statement(_UNKNOWN)])[0]:
                self._read([Statement(f'ANALYZE "{table}"')])
        self._transaction.plan_anew()

    def _forget(self) -> None:
        # What ended one connection has most likely ended all.
        while (wire := self._idle_one()) is not None:
            wire.close()

    def _idle_one(self) -> Wire | None:
        try:
            return self._idle.pop()
        except IndexError:  # another thread may have taken the last between a look and this
            return None

    async def _commit(self, group: Group) -> None:
        work = [(operation, [item for item, _ in waiting]) for operation, waiting in group.items()]
        try:
            # For a few a thread takes longer to wake up than for what it would do.
            results, tokens = await self._through(self._transaction.commit(work), here=_many(work) < CROWD)
        except Exception as error:  # noqa: BLE001  every waiting caller gets it
            refuse(group, translate(error, self.place.name) if isinstance(error, Failed) else error)
            return
        answer(group, results)
        self._count()
        if tokens:
            self._signals.tell(tokens)

    async def _through(self, going: Waiting[Results], *, here: bool) -> Results:
        """`here`: in this loop, which has little to do for it; the thread goes on with what may wait."""
        if here and (self._thread is None or self._thread.done()):  # nobody may have waited for its end
            found = _step(going)
            while isinstance(found, Wire):
                try:
                    await _readable(found)
                except BaseException:
                    going.close()  # or the next group would be written behind a half of this one
                    raise
                found = _step(going)
            if found is not None:
                return found
        self._thread = asyncio.get_running_loop().run_in_executor(self._writing, through, going)
        return await asyncio.shield(self._thread)  # which goes on, whoever has gone


def _step(going: Waiting[Results]) -> Wire | Results | None:
    try:
        return next(going)
    except StopIteration as stop:
        results: Results = stop.value
        return results


async def _readable(wire: Wire) -> None:
    """Until there is something to read, or the server's time is up."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()

    def done() -> None:
        if not future.done():
            future.set_result(None)

    socket = wire.socket
    loop.add_reader(socket, done)
    late = loop.call_later(wire.patience + 0.001, done)
    try:
        await future
    finally:
        late.cancel()
        loop.remove_reader(socket)


def _many(work: Work) -> int:
    return sum(_weight(item) for _, items in work for item in items)


def _weight(item: object) -> int:
    if isinstance(item, Task):
        return 1 + len(item.body) // LONG
    return len(item.tasks) if isinstance(item, PlanSteps) else 1


async def open_postgres(url: str, clock: Callable[[], int] | None, *, create: bool = True) -> PostgresDatabase:
    """Open the store in the first schema of the search path, bringing it up to this version first.

    `clock` None: the server's. Raises as `open_sqlite` does.
    """
    place = Place(url)
    transaction = await asyncio.to_thread(_transaction, place, clock, create)
    return PostgresDatabase(place, clock, transaction)


def _transaction(place: Place, clock: Callable[[], int] | None, create: bool) -> Transaction:
    wire, schema = prepare(place, clock, create)
    transaction = Transaction(place, schema, wire, clock)
    try:
        ((now,),) = wire.rows(NOW)
    except Failed as error:
        wire.close()
        raise translate(error, place.name) from None
    transaction.measure(now)
    return transaction
