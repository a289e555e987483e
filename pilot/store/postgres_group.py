"""One group of operations as one transaction on PostgreSQL, and what became of it when its connection is lost."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any

from pilot.domain.errors import Outdated, StoreError
from pilot.store.database import Rows, Statement
from pilot.store.group import Work
from pilot.store.migrate import newest
from pilot.store.postgres_dialect import PATIENCE, Failed, Lost, blames_item, passes
from pilot.store.postgres_place import Place
from pilot.store.postgres_session import SILENCE
from pilot.store.postgres_steps import Steps, Waiting, answer, apart, drive, heard, make_up, sent, through
from pilot.store.postgres_wire import Wire

LOCK = 0x50494C54
"""Class of the advisory lock that whoever writes holds; its object is the schema."""
MOST = 7000
"""Bytes of tokens that one NOTIFY carries."""
CROWD = 16
"""Items of a group from which on the server works while more is made ready; of less, each time it wakes costs more."""

_BEGIN = Statement("BEGIN")
_DISCARD = Statement("DISCARD PLANS")
_COMMIT = Statement("COMMIT")
# After the lock, which is a statement of its own: what it waited for has to be seen.
NOW = Statement("SELECT floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint")
_LOOK = f"""
    SELECT t.now, (SELECT max(number) FROM pilot_schema),
      set_config('pilot.now', coalesce(:fixed::bigint, t.now)::text, true) FROM ({NOW.sql} AS now) t"""
# Refused outside a transaction: where BEGIN failed, nothing behind the next Sync is written by itself.
_INSIDE = Statement("LOCK TABLE pilot_schema IN ACCESS SHARE MODE")
# Only where something was written: a look in vain costs the disk nothing.
_MARK = """
    INSERT INTO writers (id, n, since) SELECT :id, :n, :now WHERE pg_current_xact_id_if_assigned() IS NOT NULL
    ON CONFLICT (id) DO UPDATE SET n = excluded.n, since = excluded.since"""
_STALE = 86_400_000
"""ms after its last group when a store that was never closed is forgotten: whoever may still ask is long done."""
Results = tuple[list[Any], set[str]]
"""Of each operation, in their order; and what to tell."""


def lock(schema: int) -> Statement:
    """Take the lock of the store in the schema with this oid, until the transaction ends."""
    # an oid has no sign, what locks take has
    object = schema - (1 << 32) if schema >= 1 << 31 else schema
    return Statement("SELECT pg_advisory_xact_lock(:class::int, :object::int)", {"class": LOCK, "object": object})


_SKEW = 100
"""ms by which this process may have been wrong about the server's clock, once it hears of it."""


class _Skewed(Exception):
    """What was written is of another time: the machine slept, or the server's clock was set."""


class _Unknown(Exception):
    """The connection was lost while it committed."""

    def __init__(self, late: Sequence[Steps], results: Callable[[], Results]) -> None:
        """`late`: those that still want rows."""
        self.late = late
        self.results = results


class Transaction:
    """The writing connection of a process. One group at a time, and never two threads."""

    def __init__(
        self, place: Place, schema: int, wire: Wire | None = None, clock: Callable[[], int] | None = None
    ) -> None:
        """`clock`: in place of the server's."""
        self._fixed = clock
        self.id = uuid.uuid4().hex
        self._place = place
        self.channel = f"pilot_{schema}"
        """Of NOTIFY."""
        self._lock = lock(schema)
        self._wire = wire
        self._known = newest("postgres")
        self._n = 0
        self._marked = False
        self._stale = False
        self._looked = self._skewed = False
        self._began = self._ahead = 0
        """ms that the server's clock is ahead of this process's monotonic one, once it is measured."""

    def clock(self) -> int:
        """The server's time, UTC ms, going on from what the last group was told."""
        return _monotonic() + self._ahead

    def measure(self, now: int) -> None:
        """The server's clock says so."""
        self._ahead = now - _monotonic()

    def plan_anew(self) -> None:
        """The tables are not what they were when the statements were planned."""
        self._stale = True

    def commit(self, work: Work) -> Waiting[Results]:
        """Run all of it; durable at the end. Raises `Failed` and `StoreError`: nothing was written."""
        deadline, pause = time.monotonic() + PATIENCE, 0.02
        while True:
            try:
                return (yield from self._once(work))
            except _Unknown as lost:
                yield None
                if self._committed(lost.late):
                    return lost.results()
                deadline = max(deadline, time.monotonic() + 1)
            except _Skewed:
                continue
            except Failed as error:
                if not passes(error) or time.monotonic() + pause > deadline:
                    raise
            yield None
            time.sleep(pause)
            pause = min(pause * 2, 0.5)

    def close(self) -> None:
        """Let go of the connection."""
        wire, self._wire = self._wire, None
        if wire is None:
            return
        if self._marked:
            with suppress(Failed):  # then it is swept later
                wire.send(Statement("SET synchronous_commit = off"))
                wire.rows(Statement("DELETE FROM writers WHERE id = :id", {"id": self.id}))
        wire.close()

    def _once(self, work: Work) -> Waiting[Results]:
        try:
            if self._wire is None:
                yield None
            wire = self._connected()
            try:
                return (yield from self._together(wire, work))
            except Exception as error:
                if isinstance(error, _Unknown | _Skewed | Outdated) or not blames_item(error):
                    raise
                yield None
                # Who is at fault is found in a second go, so that the first needs no savepoints.
                wire.drop()
                yield from self._begin(wire, eager=True)
                tokens = set[str]()
                results = [apart(wire, operation, items, tokens) for operation, items in work]
                yield from self._end(wire, (), lambda: (results, tokens), tokens)
                return results, tokens
        except Exception as error:
            yield None
            self._tidy(error)
            raise
        except BaseException:  # nobody goes on with it
            self._give_up()
            raise

    def _together(self, wire: Wire, work: Work) -> Waiting[Results]:
        tokens = set[str]()
        steps = (Steps(operation, items) for operation, items in work)
        first = next(steps)  # made ready before anybody has to wait for the lock
        eager = sum(len(items) for _, items in work) >= CROWD
        yield from self._begin(wire, eager=eager)
        driven: list[Steps] = []
        for each in chain((first,), steps):
            yield from drive(wire, each, tokens, self._part, eager=eager)
            driven.append(each)

        def results() -> Results:
            return [each.result for each in driven], tokens

        yield from self._end(wire, [each for each in driven if each.step is not None], results, tokens)
        return results()

    def _tidy(self, error: BaseException) -> None:
        wire = self._wire
        if wire is None:
            return
        of_server = isinstance(error, Failed) and not isinstance(error, Lost) and not passes(error)
        if of_server or isinstance(error, _Skewed):
            with suppress(Failed):
                wire.drop()
                return
        self._give_up()

    def _give_up(self) -> None:
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.close()

    def _connected(self) -> Wire:
        if self._wire is None:
            self._wire = Wire(self._place)
        self._wire.timed = True
        return self._wire

    def _begin(self, wire: Wire, *, eager: bool) -> Waiting[None]:
        """Take the lock. Nobody waits for it here: what is written next is sent behind it, or, if `eager`, after it."""
        if wire.outgrown() or self._stale:
            self._stale = False
            wire.send(_DISCARD)
        self._looked = self._skewed = False
        self._began = _monotonic()
        wire.send(_BEGIN)
        wire.send(self._lock)
        fixed = None if self._fixed is None else self._fixed()
        # What is sent behind it in one go is answered with it, and has its own time.
        wire.send(Statement(_LOOK, {"fixed": fixed}), self._saw, PATIENCE + SILENCE if eager else None)
        if eager:
            yield from self._part(wire)

    def _part(self, wire: Wire) -> Waiting[None]:
        """Have the server begin with what is queued. What comes next is of the transaction, or fails."""
        wire.push()
        yield from sent(wire)
        if not self._looked:  # nobody knows yet whether it has begun
            wire.send(_INSIDE)

    def _saw(self, rows: Rows) -> None:
        ((now, schema, _),) = rows
        if schema is not None and schema > self._known:  # who slept through an upgrade writes nothing
            raise Outdated(self._place.name, schema, self._known)
        # It was so late there at some moment since the question was sent.
        least, most = now - _monotonic() - 1, now - self._began + 1
        ahead = min(max(self._ahead, least), most)
        self._looked, self._skewed, self._ahead = True, abs(ahead - self._ahead) > _SKEW, ahead

    def _end(
        self, wire: Wire, late: Sequence[Steps], results: Callable[[], Results], tokens: set[str]
    ) -> Waiting[None]:
        """`late`: those that go on once what they do is under way to the disk, and then only make their results."""
        if not self._looked:
            wire.push()
            yield from answer(wire)
        if self._skewed:
            raise _Skewed
        now = self.clock()
        self._n += 1
        if not self._marked:
            wire.send(Statement("DELETE FROM writers WHERE since < :old", {"old": now - _STALE}))
        wire.send(Statement(_MARK, {"id": self.id, "n": self._n, "now": now}))
        if tokens:
            message = " ".join((self.id, *sorted(tokens)))
            message = message if len(message) <= MOST else f"{self.id} *"  # say only that there is much
            wire.send(Statement("SELECT pg_notify(:channel, :message)", {"channel": self.channel, "message": message}))
        try:
            wire.ask(_COMMIT)
            if late:
                yield from heard(wire)
                for each in late:
                    each.end()
            yield from answer(wire)
        except Lost:
            raise _Unknown(late, results) from None
        if wire.tag != b"COMMIT":
            raise Failed("", "the server did not commit, and did not say why")
        self._marked = True

    def _committed(self, late: Sequence[Steps]) -> bool:
        """Whether the last group is in the store, which is certain once its lock is ours."""
        deadline, pause = time.monotonic() + 2 * PATIENCE, 0.05
        while True:
            try:
                wire = self._connected()
                through(self._begin(wire, eager=False))
                found = wire.rows(Statement("SELECT n FROM writers WHERE id = :id", {"id": self.id}))
                committed = found == [(self._n,)]
                if committed:
                    make_up(wire, late)
                wire.drop()
            except Outdated as error:
                self._tidy(error)  # or it keeps the lock
                raise
            except Failed as error:
                self._tidy(error)
                if time.monotonic() + pause > deadline:
                    raise StoreError(
                        f"{self._place.name} was lost while it committed: whether it was written is not known. "
                        "Look before you repeat it"
                    ) from None
                time.sleep(pause)
                pause = min(pause * 2, 0.5)
            else:
                return committed


def _monotonic() -> int:
    return time.monotonic_ns() // 1_000_000
