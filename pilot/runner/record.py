"""What an attempt says, on its way into the journal: in order, in pieces, bounded, and late rather than lost."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from types import TracebackType

import structlog

from pilot.domain.agent import OutputKind
from pilot.domain.errors import Busy, StoreError
from pilot.domain.execution import Execution
from pilot.domain.outcome import Usage
from pilot.domain.ports import Journal
from pilot.domain.redact import Redactor

log = structlog.get_logger()
PIECE = 64 << 10
"""Bytes of one stored piece, at most."""
FLUSH = 256 << 10
"""Bytes that are written without waiting for more."""
INTERVAL = 0.2
"""Seconds until whatever there is gets written."""
HIGH = 1 << 20
"""Bytes not yet written at which who speaks has to wait."""
LIMIT = 64 << 20
"""Bytes of one attempt; what comes after is left out, but for the end."""
END = 1 << 20
"""Bytes of the end that are kept all the same: a failure's reason stands there."""
_PATIENCE = 60.0
"""Seconds for a store that can't write (a full disk, a lock) to come back."""

_STREAMS = frozenset({OutputKind.STDOUT, OutputKind.STDERR})
"""Kinds that are one flow of bytes; the pieces of the others stay apart unless they end with a newline."""
_ANSWERS = frozenset({OutputKind.TEXT, OutputKind.TOOL})
"""Kinds that show that the model has answered."""
_HEARD = _ANSWERS | {OutputKind.RESULT, OutputKind.STDOUT}
"""Kinds after which it is not certain that no model has worked."""


class Recorder:
    """Implements `agent.Emit` for one attempt. A context manager: leaving it writes what is left.

    Raises `LeaseLost` (or `StoreError`, when the store stays away) from `output` as soon as a write has failed;
    `broken` is set then, for who waits in silence. `used` is the present run's usage, `open_tools` its calls that
    are not over; `overspent` is set once the run costs more than it may. `begun`: an agent was started;
    `heard`: and said something that may be a model's.
    """

    def __init__(
        self,
        journal: Journal,
        execution: Execution,
        *,
        limit: int = LIMIT,
        end: int = END,
        interval: float = INTERVAL,
        redact: Redactor | None = None,
    ) -> None:
        self.broken = asyncio.Event()
        self.overspent = asyncio.Event()
        self.session_id: str | None = None
        self.used = Usage()
        self.open_tools = 0
        self.begun = self.heard = False
        self._booked = Usage()
        self._budget: float | None = None
        self._answered = False
        self._noted: tuple[bool, Usage] = (False, Usage())
        self._journal = journal
        self._execution = execution
        self._limit = limit
        self._end = end
        self._interval = interval
        self._redact = redact or Redactor()
        self._held: tuple[OutputKind, bytes] | None = None
        self._error: Exception | None = None
        self._runs: list[tuple[OutputKind, list[bytes]]] = []
        self._size = 0
        self._taken = 0
        self._left_out = 0
        self._late: deque[tuple[OutputKind, bytes]] = deque()
        self._late_size = 0
        self._news = asyncio.Event()
        self._full = asyncio.Event()
        self._room = asyncio.Event()
        self._writing = False
        self._closing = False
        self._loop = asyncio.get_running_loop()
        self._activity = self._loop.time()
        self._writer: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Recorder:
        self._writer = asyncio.create_task(self._write())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
        if error is None:
            self.check()

    @property
    def idle(self) -> float:
        """Seconds since the last sign of life; none while it is the store that others wait for."""
        return 0.0 if self._writing else self._loop.time() - self._activity

    async def output(self, kind: OutputKind, data: bytes) -> None:
        """See `Emit.output`."""
        if self._error is not None:
            raise self._error
        self._activity = self._loop.time()
        if not data:
            return
        self._heed(kind)
        if kind in _STREAMS:
            data = self._joined(kind, data)
        else:
            self._let_go()
        self._accept(kind, data)
        while self._size >= HIGH and self._error is None:
            self._room.clear()
            await self._room.wait()
        self.check()

    async def session(self, session_id: str) -> None:
        """See `Emit.session`."""
        self._activity = self._loop.time()
        await patiently(lambda: self._journal.note(self._execution, session_id=session_id))
        self.session_id = session_id

    def usage(self, usage: Usage) -> None:
        """See `Emit.usage`."""
        self.used = usage
        if self._budget is not None and usage.cost_usd is not None and usage.cost_usd > self._budget:
            self.overspent.set()
        self._news.set()

    @property
    def total(self) -> Usage:
        """What all runs of the attempt have used up."""
        return self._booked.plus(self.used)

    def begin(self, budget: float | None = None) -> None:
        """The agent's next run in this attempt begins; it may cost so many dollars."""
        self._booked, self.used, self._budget = self.total, Usage(), budget
        self.open_tools = 0
        self.begun = True
        self.overspent.clear()
        self.touch()

    def touch(self) -> None:
        """A sign of life from pilot itself."""
        self._activity = self._loop.time()

    async def say(self, words: str) -> None:
        """A note of pilot's own."""
        await self.output(OutputKind.PILOT, words.rstrip("\n").encode(errors="replace") + b"\n")

    async def flush(self) -> None:
        """Return when what was taken is written, but for what is kept for the end; raises what `output` does."""
        self._let_go()
        while (self._runs or self._writing) and self._error is None:
            self._room.clear()
            self._full.set()
            await self._room.wait()
        self.check()

    async def close(self) -> None:
        """Write all that is left. Cancelled, it gives up; a failure is kept for `output` to raise."""
        writer = self._writer
        if writer is None:
            return
        self._let_go()
        if self._late:
            if self._left_out:
                words = f"… {self._left_out:,} bytes of output left out …\n".encode()
                self._runs.append((OutputKind.PILOT, [words]))
            self._runs += [(kind, [data]) for kind, data in self._late]
            self._late.clear()
        self._closing = True
        self._news.set()
        self._full.set()
        try:
            await asyncio.wait([writer])
        finally:
            writer.cancel()
            await asyncio.wait([writer])
        self._writer = None

    def _heed(self, kind: OutputKind) -> None:
        if kind is OutputKind.TOOL:
            self.open_tools += 1
        elif kind is OutputKind.RESULT:
            self.open_tools = max(self.open_tools - 1, 0)
        self._answered = self._answered or kind in _ANSWERS
        self.heard = self.heard or (self.begun and kind in _HEARD)

    def _joined(self, kind: OutputKind, data: bytes) -> bytes:
        """The piece with what was held back of the one before, without what may be the beginning of a secret."""
        if self._held is not None and self._held[0] is kind:
            data, self._held = self._held[1] + data, None
        else:
            self._let_go()
        cut = self._redact.unfinished(data)
        if cut < len(data):
            self._held = (kind, data[cut:])
        return data[:cut]

    def _let_go(self) -> None:
        """What was held back is not going to be continued."""
        if self._held is not None:
            (kind, data), self._held = self._held, None
            self._accept(kind, data)

    def _accept(self, kind: OutputKind, data: bytes) -> None:
        room = self._limit - self._taken
        if len(data) <= room and not self._late:
            if data:
                self._take(kind, data)
            return
        data = self._redact(data)  # before it is cut: half of a secret looks like none
        if room > 0:
            self._take(kind, data[:room])
        self._take_late(kind, data[max(room, 0) :])

    def _take(self, kind: OutputKind, data: bytes) -> None:
        self._taken += len(data)
        self._size += len(data)
        last, chunks = self._runs[-1] if self._runs else (None, [])
        if last is kind and (kind in _STREAMS or chunks[-1].endswith(b"\n")):
            chunks.append(data)
        else:
            self._runs.append((kind, [data]))
        self._news.set()
        if self._size >= FLUSH:
            self._full.set()

    def _take_late(self, kind: OutputKind, data: bytes) -> None:
        self._left_out += max(len(data) - self._end, 0)
        data = data[-self._end :]
        self._late.append((kind, data))
        self._late_size += len(data)
        while (over := self._late_size - self._end) > 0:
            first, oldest = self._late.popleft()
            cut = min(over, len(oldest))
            self._late_size -= cut
            self._left_out += cut
            if cut < len(oldest):
                self._late.appendleft((first, oldest[cut:]))

    def check(self) -> None:
        """Raise what a write has met."""
        if self._error is not None:
            raise self._error

    async def _write(self) -> None:
        while self._runs or not self._closing or self._noted != (self._answered, self.total):
            await self._news.wait()
            if not self._closing:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._interval):
                        await self._full.wait()
            runs, self._runs, self._size = self._runs, [], 0
            self._full.clear()
            if not self._closing:
                self._news.clear()
            self._writing = True
            try:
                await self._store(self._clean(runs))
            except Exception as error:  # noqa: BLE001  the border between two tasks: raised where it is waited for
                self._error = error
                self.broken.set()
                return
            finally:
                self._writing = False
                self._activity = self._loop.time()
                self._room.set()

    def _clean(self, runs: Sequence[tuple[OutputKind, list[bytes]]]) -> list[tuple[OutputKind, bytes]]:
        """What is written: without secrets, in pieces. One look at all of it tells that there is none, mostly."""
        whole = [(kind, chunks[0] if len(chunks) == 1 else b"".join(chunks)) for kind, chunks in runs]
        if self._redact.suspects(b"\n".join(data for _, data in whole)):
            whole = [(kind, self._redact(data)) for kind, data in whole]
        return [piece for kind, data in whole for piece in _pieces(kind, data)]

    async def _store(self, pieces: Sequence[tuple[OutputKind, bytes]]) -> None:
        if pieces:
            await patiently(lambda: self._journal.write(self._execution, pieces))
        news = (self._answered, self.total)
        if news != self._noted:
            answered = {"answered": "yes"} if self._answered and not self._noted[0] else {}
            await patiently(lambda: self._journal.note(self._execution, news[1], **answered))
            self._noted = news


async def patiently(write: Callable[[], Awaitable[None]]) -> None:
    """Write, and again while the store can't (a full disk, a lock): hours of an agent's work may hang on it."""
    loop = asyncio.get_running_loop()
    until, pause = loop.time() + _PATIENCE, 0.1
    while True:
        try:
            await write()
        except (StoreError, Busy) as error:
            if loop.time() + pause > until:
                raise
            log.warning("journal.delayed", error=str(error))
        else:
            return
        await asyncio.sleep(pause)
        pause = min(pause * 2, 5.0)


def _pieces(kind: OutputKind, data: bytes) -> Iterator[tuple[OutputKind, bytes]]:
    """Pieces of at most `PIECE` bytes, never cut inside a character."""
    start = 0
    while len(data) - start > PIECE:
        end = start + PIECE
        for _ in range(3):
            if data[end] & 0xC0 != 0x80:
                break
            end -= 1
        yield kind, data[start:end]
        start = end
    yield kind, data[start:] if start else data
