"""Events as they happen, for any number of readers at the price of one: what is told is read and written once.

`Hub` follows the event log by a cursor; signals are hints, and a timer stands behind them. A reader begins in the
store, behind the event that it saw last, and is joined to the hub exactly where the hub is: no gap, nothing twice.
What it does not take in time piles up for it alone, and not far: then its connection is closed, and it may resume.
"""

from __future__ import annotations

import asyncio
import resource
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import structlog
from starlette.requests import Request
from starlette.responses import Response

from pilot.api.execution_stream import Tail, place_after, until_its_end
from pilot.api.sse import BEAT, HEARTBEAT, EventStream, Listener, message
from pilot.domain.errors import NotFound, PilotError, UsageError
from pilot.domain.events import Event
from pilot.domain.redact import redacted
from pilot.domain.task import Project
from pilot.store.database import Database
from pilot.store.documents import event_document
from pilot.store.event_log import EventLog, Wanted

if TYPE_CHECKING:
    from pilot.store.history import History

log = structlog.get_logger()
MOST = 1_000
"""Readers at a time."""
PAGE = 500
"""Events that are read at a time for one reader who catches up."""
TOLD = 2_000
"""Events that everybody is told at a time; the next ones have to wait for the pause between two rounds."""
WINDOW = 10_000
"""Ids that one read looks through: a rare type among a million events is found in many short reads."""
HELD = 1 << 20
"""Bytes that may wait for one reader."""
TIMER = 1.0
"""Seconds until the log is looked at though nothing hinted at it."""
EARSHOT = 0.2
"""Seconds between looks for new output."""
REVIEW = 1.0
"""Seconds between looks at whether the readers' tokens still count."""
SLICE = 20
"""Readers who are told before others have their turn in the loop."""
PRICE = 0.002
"""Seconds between two rounds, per reader: to tell one costs some 100 µs; all of them get a twentieth of the time."""
LONGEST = 1.0


class Reader(Listener):
    """One connection: what it wants, from behind which event, and what waits for it."""

    def __init__(self, wanted: Wanted, after: int, token: str, abort: Callable[[], None]) -> None:
        super().__init__(token, abort)
        self.wanted = wanted
        self.after = after
        self._chunks: deque[bytes] = deque()
        self._held = 0

    def give(self, chunk: bytes) -> bool:
        """Put something before it; False: it has too much before it already."""
        if self._chunks and self._held + len(chunk) > HELD:
            self._chunks.clear()
            return False
        self._chunks.append(chunk)
        self._held += len(chunk)
        self.wake()
        return True

    def take(self) -> bytes:
        """All that waits."""
        chunk = b"".join(self._chunks)
        self._chunks.clear()
        self._held = 0
        return chunk


class Hub:
    """The readers of one process. `redact` takes secrets out of what is told; `valid`: a token's id still counts."""

    def __init__(
        self,
        database: Database,
        history: History,
        *,
        redact: Callable[[str], str] = str,
        valid: Callable[[str], Awaitable[bool]] | None = None,
    ) -> None:
        self._database = database
        self._history = history
        self._log = EventLog(database)
        self._redact = redact
        self._valid = valid
        self._cursor: int | None = None  # None: nobody listens, and the log is not followed
        self._everybody: set[Listener] = set()
        self._readers: set[Reader] = set()
        self._tails: set[Tail] = set()
        self._names: dict[int, str] = {}
        self._hint = asyncio.Event()
        self._somebody = asyncio.Event()
        self._closed = False
        # Workers come first: where only 1,024 files may be open, streams get half of them.
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._room = MOST if files == resource.RLIM_INFINITY else files // 2

    # -- routes

    async def events_response(
        self,
        request: Request,
        *,
        types: Collection[str] = (),
        execution: int | None = None,
        project: Project | None = None,
        after: int | None = None,
    ) -> Response:
        """Events from now on, or from behind the one that the reader saw last. Raises `UsageError`."""
        wanted = Wanted(frozenset(types), execution, None if project is None else project.id)
        given = request.headers.get("last-event-id", "").strip()
        if given and not (given.isascii() and given.isdecimal() and len(given) < 19):
            raise UsageError("Last-Event-ID: not the id of an event of this stream")
        last = await self._log.last()
        seen = int(given) if given else after
        reader = Reader(wanted, last if seen is None else max(0, min(seen, last)), *_who(request))
        return EventStream(self, reader, lambda: self._events(reader))

    async def execution_response(self, request: Request, id: int) -> Response:
        """An execution's events and output from its beginning to its end, or from behind what the reader saw last.

        Raises `NotFound`, and `UsageError` for a Last-Event-ID of another stream.
        """
        event, attempt, seq, ended = place_after(request.headers.get("last-event-id", "").strip())
        execution = await self._history.execution(id)
        if execution is None:
            raise NotFound(f"there is no execution {id}")
        if ended and execution.status.final:
            return Response(status_code=204)  # who reconnects by itself stops at this
        tail = Tail(id, event, attempt, seq, *_who(request))
        return EventStream(self, tail, lambda: self._execution(tail))

    # -- the loops

    async def run(self) -> None:
        """Follow the log until cancelled; then every stream ends."""
        leave = self._database.listen(lambda _tokens: self._hint.set())
        try:
            async with asyncio.TaskGroup() as loops:
                for loop in (self._follow, self._overhear, self._review):
                    loops.create_task(loop())
        finally:
            leave()
            self.close()

    def close(self) -> None:
        """End every stream at once; there are no new ones."""
        self._closed = True
        for listener in tuple(self._everybody):
            listener.end()

    async def _follow(self) -> None:
        while True:
            await self._somebody.wait()
            with suppress(TimeoutError):
                async with asyncio.timeout(TIMER):
                    await self._hint.wait()
            self._hint.clear()
            try:
                while await self._round():
                    await self._pause()
            except PilotError as error:  # it is read again; what could not be read is not "nothing new"
                log.warning("stream.not_read", error=str(error))
                await asyncio.sleep(TIMER)
            await self._pause()

    async def _pause(self) -> None:
        await asyncio.sleep(min(max(len(self._readers), 5) * PRICE, LONGEST))

    async def _round(self) -> bool:
        """Tell everybody the next page; whether there may be more."""
        if (after := self._cursor) is None:
            return False
        events = await self._log.between(after, 1 << 62, Wanted(), TOLD)
        if not events:
            return False
        await self._learn_names(events)
        if self._cursor != after:  # all have gone meanwhile, and others come, who are elsewhere
            return True
        # From here to the copy of the readers nothing waits: who joins now is behind this page.
        self._cursor = events[-1].id
        readers = tuple(self._readers)
        about = {event.execution_id for event in events}
        for tail in self._tails:
            if tail.execution in about:
                tail.wake()
        await self._tell(readers, events)
        return len(events) == TOLD

    async def _tell(self, readers: Sequence[Reader], events: Sequence[Event]) -> None:
        texts: dict[int, bytes] = {}
        chunks: dict[tuple[Wanted, int], bytes] = {}
        told = 0
        for reader in readers:
            key = reader.wanted, max(reader.after, events[0].id - 1)
            if key not in chunks:
                chunks[key] = b"".join(self._texts(texts, events, *key))
            if not chunks[key] or reader.ended:
                continue
            if not reader.give(chunks[key]):
                log.info("stream.dropped", token=reader.token, reason="it did not take what it was sent")
                reader.end()
            told += 1
            if told % SLICE == 0:
                await asyncio.sleep(0)

    def _texts(self, texts: dict[int, bytes], events: Sequence[Event], wanted: Wanted, after: int) -> list[bytes]:
        found = []
        for event in events:
            if event.id > after and wanted.fits(event):
                if event.id not in texts:
                    texts[event.id] = message(self.document(event), str(event.id))
                found.append(texts[event.id])
        return found

    async def _overhear(self) -> None:
        """Wake those whose execution has said something."""
        while True:
            await self._somebody.wait()
            await asyncio.sleep(EARSHOT)
            if not self._tails:
                continue
            try:
                spoke = await self._log.spoke({tail.place for tail in self._tails})
            except PilotError as error:
                log.warning("stream.not_read", error=str(error))
                continue
            for tail in self._tails:
                if tail.execution in spoke:
                    tail.wake()

    async def _review(self) -> None:
        """Send those away whose token counts no more."""
        while True:
            await self._somebody.wait()
            await asyncio.sleep(REVIEW)
            if self._valid is None:
                continue
            for token in {listener.token for listener in self._everybody if listener.token}:
                with suppress(PilotError):  # not known is not revoked; it is asked again
                    if not await self._valid(token):
                        for listener in tuple(self._everybody):
                            if listener.token == token:
                                listener.end()

    # -- readers

    def enter(self, listener: Listener) -> str:
        """See `Places.enter`."""
        if self._closed:
            return "this server is going down; connect again in a moment"
        if len(self._everybody) >= min(MOST, self._room):
            return f"{len(self._everybody):,} streams are open already; close some, or try again later"
        self._everybody.add(listener)
        return ""

    def leave(self, listener: Listener) -> None:
        """See `Places.leave`."""
        self._everybody.discard(listener)
        if isinstance(listener, Reader):
            self._readers.discard(listener)
        elif isinstance(listener, Tail):
            self._tails.discard(listener)
        if not self._readers and not self._tails:
            self._cursor = None
            self._somebody.clear()

    async def _events(self, reader: Reader) -> AsyncGenerator[bytes, None]:
        async for chunk in self._catch_up(reader):
            yield chunk
        while not reader.ended:
            if not await reader.wait(HEARTBEAT):
                yield BEAT
            elif chunk := reader.take():
                yield chunk

    async def _catch_up(self, reader: Reader) -> AsyncGenerator[bytes, None]:
        """What the store has up to where the hub is; then the reader is the hub's."""
        while not reader.ended:
            target = self._cursor
            if target is None:
                target = await self._log.last()
                if self._cursor is not None:  # somebody else was quicker to wake the hub: it may be ahead
                    continue
            if reader.after >= target:
                break
            until = min(target, reader.after + WINDOW) if reader.wanted.execution is None else target
            events = await self._log.between(reader.after, until, reader.wanted, PAGE)
            await self._learn_names(events)
            reader.after = events[-1].id if len(events) == PAGE else until
            if events:
                yield b"".join(message(self.document(event), str(event.id)) for event in events)
        self._join(reader)

    def _join(self, reader: Reader) -> None:
        if reader.ended:
            return
        if self._cursor is None:
            self._cursor = reader.after
        self._readers.add(reader)
        self._somebody.set()
        self._hint.set()

    async def _execution(self, tail: Tail) -> AsyncGenerator[bytes, None]:
        if self._cursor is None:
            last = await self._log.last()
            if self._cursor is None:
                self._cursor = last
        self._tails.add(tail)
        self._somebody.set()
        async for chunk in until_its_end(tail, self._log, self._history, self.document, self._redact):
            yield chunk

    # -- documents

    def document(self, event: Event) -> dict[str, object]:
        """As `pilot events --json` has it, and the project's name."""
        document = event_document(event)
        project = None if event.project_id is None else self._names.get(event.project_id)
        told: dict[str, object] = redacted({**document, "project": project}, self._redact)
        return told

    async def _learn_names(self, events: Sequence[Event]) -> None:
        if {event.project_id for event in events} - self._names.keys() - {None}:
            self._names = {project.id: project.name for project in await self._history.projects()}


def _who(request: Request) -> tuple[str, Callable[[], None]]:
    """The caller's token, and how to cut its connection."""
    state = request.scope.get("state", {})
    caller = state.get("caller")
    return (caller.token if caller is not None else "", state.get("abort") or (lambda: None))
