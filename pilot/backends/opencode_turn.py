"""One turn of a session on an OpenCode server, whoever started that: asked, followed to its end, or stopped.

Measured with 1.18: events come for exactly one directory, none is lost once the stream has said `server.connected`,
none is repeated after a break. "idle" is said before a turn is stored, twice after an error, and again by an abort of
what is idle already; an error is followed by a good answer at times. So events only say when to look; whether a turn
is over is read from its status and its messages.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable

from pilot.backends.opencode_cli import Model, prompt
from pilot.backends.opencode_events import Record, retry_in
from pilot.backends.opencode_outcome import cut_off, held_up, outcome, server_gone
from pilot.backends.opencode_session import Ended, begin, check, descendants, new_id, set_up, so_far
from pilot.backends.reading import Piece, as_event, as_list
from pilot.clients.opencode import Client, OpenCodeError, Unreachable
from pilot.domain.agent import AgentRequest, Emit, OutputKind
from pilot.domain.outcome import Outcome, Usage
from pilot.runner.process import Line
from pilot.store import wall_clock

STOP = 5.0
"""Seconds in which an abort has to be obeyed."""
AGAIN = 0.5
"""Seconds between two aborts, one of which may be lost, and between two attempts to connect."""
LOST = 15.0
"""Seconds without a server after which nobody is waited for any longer."""
LOOK = 30.0
"""Seconds after which a turn is looked at although nothing was said."""
STORED = 3.0
"""Seconds in which an idle session has its last message stored."""
BEGUN = 20.0
"""Seconds in which a turn begins, though the session is said to be idle."""
COMPLAINT = 8 << 10
"""Bytes of the end of what the server says on its own account."""


News = str | Line | int | Unreachable | None
"""An event; a line of the server's own, its exit status; a broken connection, a new one (None)."""


class Turn:
    """What one `execute` does on a server: `run`, and `stop` whenever that did not come to its end.

    `oom`: whether the kernel has killed for memory meanwhile; asked when the server is gone.
    """

    def __init__(
        self,
        client: Client,
        request: AgentRequest,
        emit: Emit,
        model: Model,
        *,
        oom: Callable[[], bool] = lambda: False,
    ) -> None:
        self._client = client
        self._request = request
        self._emit = emit
        self._model = model
        self._oom = oom
        self._directory = request.workspace
        # full, nobody reads on: what the store can't take yet waits with the server
        self._news: asyncio.Queue[News] = asyncio.Queue(maxsize=32)
        self._record: Record | None = None
        self._posting: asyncio.Task[None] | None = None
        self._over = False
        self._complaint = bytearray()
        self._look = 0.0
        self._idle_since: float | None = None
        self._lost_since: float | None = None
        self._refused = 0
        self._exit: int | None = None
        self._used = Usage()

    @property
    def complaint(self) -> str:
        """The end of what the server said on its own account."""
        return self._complaint.decode(errors="replace")

    async def put(self, news: Line | int) -> None:
        """News of the server's process; waits while nobody takes them."""
        await self._news.put(news)

    async def take(self, until: float | None = None) -> News:
        """The next news. A line is noted and handed on already. Raises `TimeoutError` at loop time `until`."""
        # the limit is on waiting for news, never on the store that takes them
        async with asyncio.timeout_at(until):
            news = await self._news.get()
        if isinstance(news, Line):
            await self._note(news)
        return news

    async def _note(self, line: Line) -> None:
        self._complaint += line.data + b"\n"
        del self._complaint[:-COMPLAINT]
        kind = OutputKind.STDERR if line.stream == "stderr" else OutputKind.STDOUT
        await self._emit.output(kind, line.data + b"\n")

    async def run(self) -> Outcome:
        """The whole turn. Raises `OpenCodeError` for what the server does before the prompt is there."""
        try:
            async with self._hearing():
                await self._listening()
                record = await self._open()
                await self._ask(record)
                return await self._follow(record)
        except Ended as end:
            return end.outcome

    async def stop(self) -> None:
        """Have the session stop, and see it stopped; returns soon in any case."""
        if self._posting is None or self._over:
            return
        if not self._posting.done():
            await asyncio.wait({self._posting}, timeout=STOP)
        if self._record is not None:
            with contextlib.suppress(OpenCodeError):
                await self._abort(self._record.session)

    # -- beginning ----------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _hearing(self) -> AsyncIterator[None]:
        task = asyncio.ensure_future(self._hear())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def _hear(self) -> None:
        while True:
            why = Unreachable("the stream of events has ended")
            try:
                async with self._client.events(self._directory) as events:
                    async for event in events:
                        await self._news.put(None if '"server.connected"' in event[:200] else event)
            except OpenCodeError as error:
                why = error if isinstance(error, Unreachable) else Unreachable(str(error))
            await self._news.put(why)
            await asyncio.sleep(AGAIN)

    async def _listening(self) -> None:
        """Wait for the stream of events: what happens before it is there is never told."""
        deadline, why = asyncio.get_running_loop().time() + 2 * LOST, "no answer"
        try:
            while (news := await self.take(deadline)) is not None:
                if isinstance(news, int):
                    raise Ended(server_gone(None, news, self.complaint, oom=self._oom()))
                if isinstance(news, Unreachable):
                    why = str(news)
        except TimeoutError:
            raise Unreachable(f"no stream of events: {why}") from None

    async def _open(self) -> Record:
        """The session, told to the caller at once."""
        await set_up(self._client, self._directory, self._model)
        given = self._request.session_id
        if given is None:
            session = await begin(self._client, self._directory, self._request.task_id)
            self._record = Record(session, new_id("msg"))
            await self._emit.session(session)
        else:
            await check(self._client, self._directory, given)
            if given in as_event(await self._client.status(self._directory)):
                await self._abort(given)  # nobody has ended an earlier run
            self._record = Record(given, new_id("msg"), await so_far(self._client, given))
        return self._record

    async def _ask(self, record: Record) -> None:
        """Send the prompt. With ids of ours it is worked on once, however often a broken connection has it sent."""
        body = prompt(self._request, self._model, record.message, new_id("prt"))
        for last in (False, False, True):
            # an abort beside it could be lost: it is sent to its end, whoever cancels us
            self._posting = asyncio.ensure_future(self._client.prompt(record.session, body))
            self._posting.add_done_callback(_seen)
            try:
                await asyncio.shield(self._posting)
            except Unreachable as error:
                if last:
                    # it can have done all that was asked and ended, with its answer to the prompt on the way
                    await self._last_words(record)
                    if not self._exit and _done(record):
                        self._over = True
                        raise Ended(outcome(record)) from error
                    raise
                await asyncio.sleep(AGAIN)
            else:
                return

    # -- following ----------------------------------------------------------------------------------------------

    async def _follow(self, record: Record) -> Outcome:
        """Hand on what happens until the turn is over."""
        now = asyncio.get_running_loop().time
        self._look = now() + LOOK
        while True:
            try:
                news = await self.take(self._look)
            except TimeoutError:
                await self._check_exit(record)
            else:
                await self._heard(record, news)
            await self._refuse(record)
            if (end := held_up(record, wall_clock())) is not None:
                with contextlib.suppress(OpenCodeError):
                    await self._abort(record.session)
                return await self._told(record, end)
            if self._exit is None and (record.idle or now() >= self._look):
                record.idle = False
                if await self._is_over(record):
                    self._over = True
                    await self._reread_children(record)
                    return await self._told(record, outcome(record))

    async def _heard(self, record: Record, news: News) -> None:
        now = asyncio.get_running_loop().time()
        match news:
            case str():
                await self._show(record, record.read(news, now))
            case int():
                # its last words may still be on their way, until the stream of events breaks
                self._exit, self._look = news, now + STORED
                if self._lost_since is not None:
                    await self._check_exit(record)
            case Unreachable():
                await self._check_exit(record)
                self._lost_since = self._lost_since or now
                if now - self._lost_since > LOST:
                    raise Ended(await self._told(record, cut_off(record, str(news))))
            case None:
                # connected again: what happened meanwhile is never told
                self._lost_since, record.idle = None, True
                await self._still_asked(record)

    async def _check_exit(self, record: Record) -> None:
        if self._exit is not None:
            self._over = True
            if not self._exit and _done(record):
                raise Ended(await self._told(record, outcome(record)))
            end = server_gone(record, self._exit, self.complaint, oom=self._oom())
            raise Ended(await self._told(record, end))

    async def _show(self, record: Record, pieces: Iterable[Piece]) -> None:
        for kind, data in pieces:
            await self._emit.output(kind, data)
        if (used := record.usage) != self._used:
            self._used = used
            self._emit.usage(used)

    async def _told(self, record: Record, end: Outcome) -> Outcome:
        """The end, after what was said before it."""
        await self._tell(record)
        return end

    async def _tell(self, record: Record) -> None:
        """What was said and is not handed on yet; every call that began has its own end."""
        while not self._news.empty():
            news = self._news.get_nowait()
            if isinstance(news, Line):
                await self._note(news)
            elif isinstance(news, str):
                await self._show(record, record.read(news, 0.0))
            elif isinstance(news, int):
                self._exit = news
        await self._show(record, record.close())

    async def _last_words(self, record: Record) -> None:
        """The same until the stream of events breaks: of much that was said, most has no room in the queue yet."""
        until = asyncio.get_running_loop().time() + STORED
        with contextlib.suppress(TimeoutError):
            while not isinstance(news := await self.take(until), Unreachable):
                if isinstance(news, str):
                    await self._show(record, record.read(news, 0.0))
                elif isinstance(news, int):
                    self._exit = news
        await self._tell(record)

    async def _is_over(self, record: Record) -> bool:
        """Whether the session has come to rest after our message. Says when to look again."""
        now = asyncio.get_running_loop().time()
        try:
            status = as_event(await self._client.status(self._directory)).get(record.session)
            if status is not None:
                self._idle_since, self._look = None, now + LOOK
                record.retry = retry_in(as_event(status))
                return False
            await self._show(record, record.reread(record.session, await self._client.messages(record.session)))
        except Unreachable:
            self._look = now + AGAIN  # the stream of events says when it is for good
            return False
        except OpenCodeError as error:
            raise Ended(await self._told(record, cut_off(record, str(error)))) from error
        last = as_event(record.last)
        if as_event(last.get("time")).get("completed") is not None:
            return True
        self._idle_since = self._idle_since or now
        self._look = now + AGAIN / 2
        return now - self._idle_since > (STORED if last or record.error else BEGUN)

    async def _reread_children(self, record: Record) -> None:
        """What sub-agents used up, if events did not tell."""
        with contextlib.suppress(OpenCodeError):
            for child in await descendants(self._client, record.session):
                record.sessions.add(child)
                await self._show(record, record.reread(child, await self._client.messages(child)))

    # -- stopping -----------------------------------------------------------------------------------------------

    async def _refuse(self, record: Record) -> None:
        """Nobody is here to answer: the turn stops, and a person is asked."""
        for asked in record.asked[self._refused :]:
            self._refused += 1
            with contextlib.suppress(OpenCodeError):  # answered by somebody else, or gone with its session
                if asked.permission:
                    await self._client.refuse(self._directory, asked.id)
                else:
                    await self._client.leave_unanswered(self._directory, asked.id)

    async def _still_asked(self, record: Record) -> None:
        with contextlib.suppress(OpenCodeError):
            for one in as_list(await self._client.permissions(self._directory)):
                record.ask(as_event(one), permission=True)
            for one in as_list(await self._client.questions(self._directory)):
                record.ask(as_event(one), permission=False)

    async def _abort(self, session: str) -> None:
        """Ask for the end until it is seen twice in a row: right after the prompt, a session does not look busy yet."""
        deadline = asyncio.get_running_loop().time() + STOP
        seen = 0
        while seen < 2 and asyncio.get_running_loop().time() < deadline:
            await self._client.abort(session)
            await asyncio.sleep(AGAIN / 2)
            busy = session in as_event(await self._client.status(self._directory))
            seen = 0 if busy else seen + 1
        self._over = seen == 2


def _done(record: Record) -> bool:
    return as_event(record.last).get("finish") == "stop"


def _seen(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        task.exception()
