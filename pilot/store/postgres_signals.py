"""Wake-ups between nodes: LISTEN on a connection of its own. They are hints, as those of `signals` are."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress

import psycopg

from pilot.store.database import Listener
from pilot.store.postgres_place import Place

EVERYTHING = ("*", "cancel", "outbox")
"""What a listener is told that may have missed something."""
PACE = 0.02
"""Seconds between two sets of tokens from outside: many nodes' every commit would have each of them look at once."""
_LONGEST = 5.0  # seconds between two attempts to connect


class PostgresSignals:
    """Hands on what other processes committed; `own` is who sends in this one, whose listeners are told at once."""

    def __init__(self, place: Place, channel: str, own: str) -> None:
        self._place = place
        self._channel = channel
        self._own = own
        self._listeners: list[Listener] = []
        self._hearing: asyncio.Task[None] | None = None
        self._gathered: set[str] = set()
        self._due: asyncio.TimerHandle | None = None
        self._told = 0.0

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` in this loop with every set of tokens from now on."""
        self._listeners.append(listener)
        if self._hearing is None:
            self._hearing = asyncio.create_task(self._hear())
        return lambda: self._listeners.remove(listener)

    def tell(self, tokens: Iterable[str]) -> None:
        """Tell the listeners of this process."""
        found = frozenset(tokens)
        for listener in tuple(self._listeners):
            listener(found)

    def _gather(self, tokens: Iterable[str]) -> None:
        self._gathered.update(tokens)
        if self._due is None:
            loop = asyncio.get_running_loop()
            self._due = loop.call_at(self._told + PACE, self._hand_on)  # at once, if that is past

    def _hand_on(self) -> None:
        tokens, self._gathered, self._due = self._gathered, set(), None
        self._told = asyncio.get_running_loop().time()
        self.tell(tokens)

    async def close(self) -> None:
        """Stop listening."""
        if self._due is not None:
            self._due.cancel()
        if self._hearing is not None:
            self._hearing.cancel()
            with suppress(asyncio.CancelledError):
                await self._hearing

    async def _hear(self) -> None:
        pause = 0.1
        while True:
            with suppress(psycopg.Error, OSError):
                connection = await self._connect()
                try:
                    pause = 0.1
                    self.tell(EVERYTHING)  # whatever was said while nobody listened
                    await self._until_lost(connection)
                finally:
                    connection.close()
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST)

    async def _connect(self) -> psycopg.Connection:
        connecting = asyncio.ensure_future(asyncio.to_thread(self._open))
        try:
            return await asyncio.shield(connecting)
        except asyncio.CancelledError:
            with suppress(psycopg.Error, OSError):
                (await connecting).close()
            raise

    def _open(self) -> psycopg.Connection:
        connection = psycopg.Connection.connect(self._place.conninfo, autocommit=True)
        try:
            connection.execute(f'LISTEN "{self._channel}"'.encode())
        except BaseException:
            connection.close()
            raise
        return connection

    async def _until_lost(self, connection: psycopg.Connection) -> None:
        loop, lost = asyncio.get_running_loop(), asyncio.Event()
        pg = connection.pgconn

        def readable() -> None:
            try:
                pg.consume_input()
                while (notify := pg.notifies()) is not None:
                    sender, *tokens = notify.extra.decode("ascii", "ignore").split()
                    if sender != self._own:
                        self._gather(tokens)
            except (psycopg.Error, ValueError):
                lost.set()

        fd = pg.socket
        loop.add_reader(fd, readable)
        try:
            readable()  # what came with the answer to LISTEN
            await lost.wait()
        finally:
            loop.remove_reader(fd)
