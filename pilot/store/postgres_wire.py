"""One connection to PostgreSQL: statements in a row, one round trip for as many as need no answer in between.

It drives libpq's pipeline mode itself, through psycopg: a group of a hundred executions is some twenty statements,
and what each would cost in a cursor of its own is more than what the server does for it.
"""

from __future__ import annotations

import math
import select
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import count
from typing import NamedTuple

import psycopg
from psycopg import pq
from psycopg.adapt import Transformer

from pilot.store.database import Rows, Statement
from pilot.store.postgres_dialect import UNTYPED, Failed, Lost, bound, refused, translated, untyped
from pilot.store.postgres_place import Place
from pilot.store.postgres_session import LOCKED, LONGEST, SILENCE, load, settings

_DONE = (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK, pq.ExecStatus.EMPTY_QUERY)
_SILENT = "the server does not answer"
_FATAL = ("57P01", "57P02", "57P03", "57P05", "25P03", "25P04")


_ROLLBACK = Statement("ROLLBACK")
_KEPT = 8000
"""Bytes that libpq keeps until it is told to send them: of 8192 it sends by itself what makes whole blocks."""
_Key = tuple[bytes, tuple[int, ...]]


class _Sent(NamedTuple):
    """What an answer is awaited to; `key` None: a Sync. `by`: until when, at the latest (monotonic seconds)."""

    key: _Key | None
    prepared: bool = False
    heard: Callable[[Rows], None] | None = None
    by: float = math.inf


class Wire:
    """One connection. Not for two threads at once.

    `send` only queues and `push` sends what is queued: neither waits. `rows` waits until all of it is answered. What
    fails raises `Failed`, what ends the connection `Lost`, after which only `close` is of use.
    """

    def __init__(self, place: Place, *, read_only: bool = False, patient: bool = False) -> None:
        """`patient`: for what reads or changes everything, and may take its time."""
        self._place = place
        self._longest = 86_400.0 if patient else SILENCE + (LOCKED + LONGEST) / 1000
        try:
            self._connection = psycopg.Connection.connect(place.conninfo, autocommit=True)
        except psycopg.Error as error:
            raise refused(place.said(str(error))) from None
        self._pg = self._connection.pgconn
        load(self._connection)
        self._loaded = Transformer(self._connection)
        self._known: dict[_Key, bytes] = {}
        self._numbers = count()
        self.tag = b""
        self.timed = False
        """Whether its transactions say what time it is."""
        self._bytes, self._planned, self._queued = 0, 1 << 16, 0
        self._sent: deque[_Sent] = deque()
        self._got: pq.abc.PGresult | None = None
        self._results: list[pq.abc.PGresult] = []
        self._failed: Failed | None = None
        self._until = math.inf
        self.unsent = False
        self._poll = select.poll()
        self._poll.register(self._pg.socket, select.POLLIN)
        self.version = self._pg.server_version
        self.encoding = (self._pg.parameter_status(b"server_encoding") or b"").decode()
        try:
            self._pg.nonblocking = 1
            self.script(settings(read_only=read_only, patient=patient))
            self._pg.enter_pipeline_mode()
        except BaseException:
            self.close()
            raise

    def drop(self) -> None:
        """Forget what is queued, and end the transaction with nothing written."""
        try:
            self.rows()
        except Lost:
            raise
        except Failed:  # was said already
            pass
        self.rows(_ROLLBACK)

    def script(self, sql: str, seconds: float | None = None) -> None:
        """Several statements without parameters, nothing being queued."""
        if self._sent:
            self.rows()
        pipelined = self._pg.pipeline_status == pq.PipelineStatus.ON
        if pipelined:
            self._pg.exit_pipeline_mode()
        deadline = time.monotonic() + (self._longest if seconds is None else seconds)
        try:  # not with what waits for ever for a server that stands still
            self._pg.send_query(sql.encode())
            found: list[pq.abc.PGresult] = []
            while self._is_there(deadline) and (result := self._pg.get_result()) is not None:
                found.append(result)
        except psycopg.Error as error:
            raise Lost("", self._place.said(str(error))) from None
        if pipelined:
            self._pg.enter_pipeline_mode()
        for result in found:
            if result.status not in _DONE:
                raise self._failure(result)

    def outgrown(self) -> bool:
        """Whether four times as much was said to it as when this was last so: its plans are for smaller tables."""
        if self._bytes < self._planned:
            return False
        self._planned = 4 * self._bytes
        return True

    def send(
        self, statement: Statement, heard: Callable[[Rows], None] | None = None, seconds: float | None = None
    ) -> None:
        """Queue it. `heard` gets its rows, within so many seconds, whatever stands behind it."""
        text, names = translated(statement.sql, timed=self.timed)
        for params in (statement.params,) if statement.many is None else statement.many:
            values, types, formats = bound(text, names, params)
            said = sum(map(len, filter(None, values)))
            self._bytes += said
            self._queued += said + 64 + 16 * len(values)  # with all that the protocol has around them
            key = (text, tuple(types))
            try:
                name = self._known.get(key)
                if name is None:
                    name = self._known[key] = b"p%d" % next(self._numbers)
                    self._queued += len(text)
                    self._pg.send_prepare(name, text, types)
                    self._sent.append(_Sent(key, prepared=True))
                self._pg.send_query_prepared(name, values, formats)
            except psycopg.Error as error:
                raise Lost("", self._place.said(str(error))) from None
            self._sent.append(_Sent(key, heard=heard))
        if seconds is not None:  # and what stands before it is answered first
            by = time.monotonic() + seconds
            self._sent = deque(one._replace(by=min(one.by, by)) for one in self._sent)

    def push(self) -> None:
        """Have the server begin with what is queued, while more is made ready; `unsent`: not with all of it yet.

        By a Sync: only after one the server watches that somebody goes on with the transaction, and its lock.
        """
        try:
            self._pg.pipeline_sync()
            self.unsent = bool(self._pg.flush())
        except psycopg.Error as error:
            raise Lost("", self._place.said(str(error))) from None
        self._sent.append(_Sent(None))
        self._queued = 0
        self._until = time.monotonic() + self._longest

    def sent(self) -> None:
        """Wait until all that was pushed is sent."""
        try:
            while self.unsent and self._pg.flush():
                self._wait(self._until, sends=True)
        except psycopg.Error as error:
            raise Lost("", self._place.said(str(error))) from None
        self.unsent = False
        self._until = time.monotonic() + self._longest

    def overflows(self) -> bool:
        """Whether so much was queued since the last Sync that libpq has sent of it by itself."""
        return self._queued > _KEPT

    def ask(self, statement: Statement) -> None:
        """Send it with all that is queued: `rows` gives its rows."""
        self.send(statement)
        self.push()

    def rows(self, statement: Statement | None = None) -> Rows:
        """Send it with all that is queued; the rows of the last that was sent."""
        if statement is not None:
            self.send(statement)
        results = self._all(self._longest)
        return self._load(results[-1]) if results else []

    def all_rows(self, statements: Sequence[Statement], seconds: float | None = None) -> list[Rows]:
        """Send these, with all that is queued; the rows of each of them."""
        for statement in statements:
            self.send(statement)
        results = self._all(self._longest if seconds is None else seconds)
        return [self._load(result) for result in results[len(results) - len(statements) :]] if statements else []

    def answer(self) -> Rows | None:
        """What `rows` gives, without waiting for it: None while not all is answered that was pushed."""
        if not self._is_answered(len(self._sent)):
            return None
        results = self._settle()
        return self._load(results[-1]) if results else []

    def heard(self) -> bool:
        """Whether whoever wants rows has them, without waiting for it; what was pushed behind them may be under way."""
        wanted = max((n for n, one in enumerate(self._sent, 1) if one.heard is not None), default=0)
        if not self._is_answered(wanted):
            return False
        self._settle()
        return True

    def _is_answered(self, wanted: int) -> bool:
        for _ in range(wanted):
            if not self._answer(None):
                if not self.patience:
                    raise Lost("", _SILENT)
                return False
        return True

    def wait(self) -> None:
        """Until there is something to read, or the server's time is up."""
        self._poll.modify(self._pg.socket, select.POLLIN)
        self._poll.poll(1000 * self.patience + 1)

    @property
    def socket(self) -> int:
        """The descriptor that becomes readable when more is answered."""
        return self._pg.socket

    @property
    def patience(self) -> float:
        """Seconds left to the server for its next answer."""
        by = min(self._until, self._sent[0].by) if self._sent else self._until
        return max(0.0, by - time.monotonic())

    @property
    def pushed(self) -> bool:
        """Whether all that was queued is behind a Sync."""
        return not self._sent or self._sent[-1].key is None

    def again(self, statements: Sequence[Statement]) -> list[Rows]:
        """`all_rows`, of what only reads: once more where a NULL's type had to be found out first."""
        try:
            return self.all_rows(statements)
        except Failed as error:
            if error.code not in UNTYPED:
                raise
        return self.all_rows(statements)

    def _load(self, result: pq.abc.PGresult) -> Rows:
        if result.ntuples == 0:
            return []
        self._loaded.set_pgresult(result)
        return self._loaded.load_rows(0, result.ntuples, tuple)

    def _all(self, seconds: float) -> list[pq.abc.PGresult]:
        if not self.pushed or not self._sent:
            self.push()
        return self._receive(len(self._sent), seconds)

    def _receive(self, wanted: int, seconds: float) -> list[pq.abc.PGresult]:
        """The results of the first so many of what was sent, behind which there is a Sync."""
        deadline = time.monotonic() + seconds
        for _ in range(wanted):
            self._answer(deadline)
        return self._settle()

    def _settle(self) -> list[pq.abc.PGresult]:
        results, failed = self._results, self._failed
        self._results, self._failed = [], None
        if failed is not None:
            raise failed
        self.tag = (results[-1].command_status or b"") if results else b""
        return results

    def _answer(self, deadline: float | None) -> bool:
        """Take the answer to the first of what was sent; False: it is not there yet, and there is no deadline."""
        one = self._sent[0]
        while self._is_there(deadline if deadline is None else min(deadline, one.by)):
            result = self._pg.get_result()
            if one.key is None or result is None:
                self._sent.popleft()
                result, self._got = (result if one.key is None else self._got), None
                assert result is not None  # noqa: S101  libpq answers each
                self._note(one, result)
                self._until = time.monotonic() + self._longest  # for what is next
                return True
            self._got = result  # behind the last there is nothing
        return False

    def _note(self, one: _Sent, result: pq.abc.PGresult) -> None:
        if one.key is None:
            if result.status != pq.ExecStatus.PIPELINE_SYNC:
                raise Lost("", "the server's answers do not fit what it was asked")
        elif result.status not in _DONE:
            if one.prepared:
                del self._known[one.key]
            if self._failed is None and result.status != pq.ExecStatus.PIPELINE_ABORTED:
                self._failed = self._failure(result, one.key[0])
        elif not one.prepared:
            self._results.append(result)
            if one.heard is not None:
                one.heard(self._load(result))

    def _is_there(self, deadline: float | None) -> bool:
        """Whether libpq has the next result. Waited for until the deadline; without one, looked for."""
        pg, looked = self._pg, False
        try:
            while (unsent := bool(pg.flush())) or pg.is_busy():
                if deadline is not None:
                    self._wait(deadline, sends=unsent)
                elif looked:
                    return False
                else:
                    pg.consume_input()
                looked = True
        except psycopg.Error as error:
            raise Lost("", self._place.said(str(error))) from None
        return True

    def _wait(self, deadline: float, *, sends: bool) -> None:
        """Until there is something to read, which is read, or room for what is to be sent."""
        self._poll.modify(self._pg.socket, select.POLLIN | (select.POLLOUT if sends else 0))
        left = deadline - time.monotonic()
        if left <= 0 or not (events := self._poll.poll(left * 1000)):
            raise Lost("", _SILENT)
        if any(event & ~select.POLLOUT for _, event in events):
            self._pg.consume_input()

    def _failure(self, result: pq.abc.PGresult, statement: bytes = b"") -> Failed:
        """Raises `Lost`."""
        field = result.error_field
        code = (field(pq.DiagnosticField.SQLSTATE) or b"").decode()
        primary = field(pq.DiagnosticField.MESSAGE_PRIMARY)
        text = primary.decode("utf-8", "replace") if primary else result.get_error_message()
        gone = code in _FATAL or self._pg.status != pq.ConnStatus.OK or (not code and not primary)
        failure = (Lost if gone else Failed)(code, self._place.said(text))
        failure.add_note(statement.decode())
        if code in UNTYPED:
            untyped.add(statement)
        if gone:
            raise failure
        return failure

    def close(self) -> None:
        """Let go of it."""
        self._connection.close()
