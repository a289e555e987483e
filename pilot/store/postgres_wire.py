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
from typing import Any, NamedTuple

import psycopg
from psycopg import pq
from psycopg.adapt import Loader, Transformer
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pilot.domain.errors import UsageError
from pilot.store.database import Rows, Statement
from pilot.store.postgres_dialect import PATIENCE, UNTYPED, Failed, Lost, bound, refused, translated, untyped

LOCKED = round(PATIENCE * 1000)  # ms that a statement waits for a lock
LONGEST = 15_000
"""ms that a statement may take."""
SILENCE = 2.0
"""Seconds that the server may leave unanswered what it was sent; a statement's own time is on top."""
IDLE = 2_000
"""ms that somebody who stopped in the middle of a transaction keeps the others from writing."""

# The plans that the statements were written for: as on SQLite, by index and row by row. What the planner knows of a
# table that was empty a minute ago is nothing, and a plan is kept for as long as the connection.
_PLANS = ("enable_seqscan", "enable_hashjoin", "enable_mergejoin", "enable_bitmapscan", "enable_material")
_LIMITED: dict[str, object] = {
    **dict.fromkeys(_PLANS, "off"), "plan_cache_mode": "force_generic_plan", "random_page_cost": 1.1,
    "statement_timeout": LONGEST, "idle_in_transaction_session_timeout": IDLE,
    "default_transaction_isolation": "'read committed'",
}  # fmt: skip
_UNLIMITED: dict[str, object] = {"statement_timeout": 0, "idle_in_transaction_session_timeout": 0}
_DONE = (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK, pq.ExecStatus.EMPTY_QUERY)
_FATAL = ("57P01", "57P02", "57P03", "57P05", "25P03", "25P04")


class _Int(Loader):
    def load(self, data: Any) -> int:
        return int(data == b"t")


class _Number(Loader):
    def load(self, data: Any) -> int | float:
        text = bytes(data)
        return float(text) if b"." in text or not text.lstrip(b"-").isdigit() else int(text)


class Place:
    """Where a store is. `name` is what may be shown."""

    def __init__(self, url: str) -> None:
        try:
            given = conninfo_to_dict(url)
            ports = str(given.get("port") or "1").split(",")
            if not all(port.isdecimal() for port in ports if port) or any(
                "@" in str(given.get(word) or "") for word in ("host", "dbname")
            ):
                raise psycopg.ProgrammingError  # what stands there may be meant as a password
        except psycopg.Error:
            # not with what libpq says: it quotes what it did not understand, which may be part of a password
            raise UsageError(
                "the store's URL is no postgresql:// URL as PostgreSQL understands it: in a user or a password, write "
                "%40 for @, %3A for :, %2F for / and %25 for %; behind a ? are only libpq's own parameters"
            ) from None
        user, host = given.get("user"), given.get("host") or given.get("hostaddr") or ""
        port, name = given.get("port"), given.get("dbname") or ""
        self.name = f"postgresql://{f'{user}@' if user else ''}{host}{f':{port}' if port else ''}/{name}"
        self._secrets = [str(given[word]) for word in ("password", "sslpassword", "passfile") if given.get(word)]
        own: dict[str, str | int] = {
            "application_name": "pilot", "connect_timeout": 5, "keepalives": 1, "keepalives_idle": 5,
            "keepalives_interval": 2, "keepalives_count": 3, "tcp_user_timeout": 6000, "client_encoding": "utf8",
        }  # fmt: skip
        self.conninfo = make_conninfo(url, **{key: value for key, value in own.items() if key not in given})

    def said(self, text: str) -> str:
        """A message without anything secret."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


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

    `send` only queues; `rows` sends all that is queued and waits for its end. What fails raises `Failed`, what ends
    the connection `Lost`, after which only `close` is of use.
    """

    def __init__(self, place: Place, *, read_only: bool = False, patient: bool = False) -> None:
        """`patient`: for what reads or changes everything, and may take its time."""
        self._place = place
        self._longest = 86_400.0 if patient else SILENCE + LONGEST / 1000
        try:
            self._connection = psycopg.Connection.connect(place.conninfo, autocommit=True)
        except psycopg.Error as error:
            raise refused(place.said(str(error))) from None
        self._pg = self._connection.pgconn
        self._connection.adapters.register_loader("bool", _Int)
        self._connection.adapters.register_loader("numeric", _Number)
        self._loaded = Transformer(self._connection)
        self._known: dict[_Key, bytes] = {}
        self._numbers = count()
        self.tag = b""
        self.timed = False
        """Whether its transactions say what time it is."""
        self._bytes, self._planned, self._queued = 0, 1 << 16, 0
        self._sent: deque[_Sent] = deque()
        self._poll = select.poll()
        self._poll.register(self._pg.socket, select.POLLIN)
        self.version = self._pg.server_version
        self.encoding = (self._pg.parameter_status(b"server_encoding") or b"").decode()
        try:
            self._pg.nonblocking = 1
            self._set_up(read_only, patient)
            self._pg.enter_pipeline_mode()
        except BaseException:
            self.close()
            raise

    def _set_up(self, read_only: bool, patient: bool) -> None:
        settings: dict[str, object] = {"client_min_messages": "error", "extra_float_digits": 1, "jit": "off"}
        settings |= {"lock_timeout": LOCKED, "default_transaction_read_only": int(read_only)}
        settings |= _UNLIMITED if patient else _LIMITED
        self.script(
            ";".join(f"SET {name} = {value}" for name, value in settings.items())
            # a commit that was acknowledged survives the loss of power
            + ";SELECT set_config('synchronous_commit', 'on', false)"
            " WHERE current_setting('synchronous_commit') IN ('off', 'local')"
        )

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
            while (result := self._result(deadline)) is not None:
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

    def sync(self) -> None:
        """Have the server begin with what is queued, while more is made ready; waits until all of it is sent.

        By a Sync: only after one the server watches that somebody goes on with the transaction, and its lock.
        """
        deadline = time.monotonic() + self._longest
        try:
            self._pg.pipeline_sync()
            while self._pg.flush():
                self._wait(deadline, sends=True)
        except psycopg.Error as error:
            raise Lost("", self._place.said(str(error))) from None
        self._sent.append(_Sent(None))
        self._queued = 0

    def overflows(self) -> bool:
        """Whether so much was queued since the last Sync that libpq has sent of it by itself."""
        return self._queued > _KEPT

    def rows(self, statement: Statement | None = None) -> Rows:
        """Send it with all that is queued; its rows."""
        found = self.all_rows([] if statement is None else [statement])
        return found[-1] if found else []

    def all_rows(self, statements: Sequence[Statement], seconds: float | None = None) -> list[Rows]:
        """Send these, with all that is queued; the rows of each of them."""
        for statement in statements:
            self.send(statement)
        self.sync()
        results = self._receive(len(self._sent), self._longest if seconds is None else seconds)
        self.tag = (results[-1].command_status or b"") if results else b""
        return [self._load(result) for result in results[len(results) - len(statements) :]] if statements else []

    def hear(self) -> None:
        """Wait until whoever wants rows has them; what was sent behind them goes on meanwhile."""
        wanted = max((n for n, one in enumerate(self._sent, 1) if one.heard is not None), default=0)
        if wanted == 0:
            return
        if self._sent[-1].key is not None:  # waiting sends all of it, and what has no Sync behind it nobody watches
            self.sync()
        self._receive(wanted, self._longest)

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

    def _receive(self, wanted: int, seconds: float) -> list[pq.abc.PGresult]:
        """The results of the first so many of what was sent, behind which there is a Sync."""
        deadline = time.monotonic() + seconds
        results: list[pq.abc.PGresult] = []
        failure: Failed | None = None
        for _ in range(wanted):
            key, prepared, heard, by = self._sent.popleft()
            result = self._result(min(deadline, by))
            assert result is not None  # noqa: S101  libpq answers each
            if key is None:
                self._synced(result)
                continue
            while (following := self._result(deadline)) is not None:
                result = following
            if result.status not in _DONE:
                if prepared:
                    del self._known[key]
                if failure is None and result.status != pq.ExecStatus.PIPELINE_ABORTED:
                    failure = self._failure(result, key[0])
            elif not prepared:
                results.append(result)
                if heard is not None:
                    heard(self._load(result))
        if failure is not None:
            raise failure
        return results

    def _synced(self, end: pq.abc.PGresult) -> None:
        if end.status != pq.ExecStatus.PIPELINE_SYNC:
            raise Lost("", "the server's answers do not fit what it was asked")

    def _result(self, deadline: float) -> pq.abc.PGresult | None:
        pg = self._pg
        try:
            while True:
                sends = bool(pg.flush())
                if not sends and not pg.is_busy():
                    return pg.get_result()
                self._wait(deadline, sends=sends)
        except psycopg.Error as error:
            raise Lost("", self._place.said(str(error))) from None

    def _wait(self, deadline: float, *, sends: bool) -> None:
        """Until there is something to read, which is read, or room for what is to be sent."""
        self._poll.modify(self._pg.socket, select.POLLIN | (select.POLLOUT if sends else 0))
        left = deadline - time.monotonic()
        if left <= 0 or not (events := self._poll.poll(left * 1000)):
            raise Lost("", "the server does not answer")
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
