"""The feed: asks every source what is new, hands stored webhooks to them, and knows how each of them does."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import structlog

from pilot.domain.delivery import Arrival
from pilot.domain.errors import NotFound, PilotError
from pilot.domain.outside import Later, Source, SourcePaused
from pilot.domain.text import one_line
from pilot.sources.desk import Desk

log = structlog.get_logger()
HANDLING = 20.0
"""Seconds that acting on one webhook may take; then it is tried again later."""
BATCH = 4
"""Webhooks in hand at a time. Few, for a node that is killed keeps them until their lease ends."""
IN_HAND = 90.0
"""Seconds of their lease: `BATCH` of them one after the other, at their longest."""
SWEEP = 5.0
"""Seconds after which stored webhooks are looked for without having been told of any."""
TRIES = 5
"""Errors of no known kind after which a webhook is put aside, so that it holds up nobody."""
OLD = 24 * 60 * 60 * 1000
"""ms after which a webhook is not waited for any more; polls have found what it told of."""
FIRST_PAUSE, LONGEST_PAUSE = 10.0, 300.0
"""Seconds between tries: doubled each time, up to the longest."""
GRACE = 5.0
"""Seconds that what is being done gets to its end when the feed stops."""
LEASE = 30.0
"""Seconds after which another node polls a source whose node went silent; renewed at a third of it."""
SOON = 0.25
"""Seconds after a duty's end when another node tries to have it; whoever lives has kept it long before."""
QUIET = 30.0
"""Seconds between two notes that a source is well, while nothing changes."""


class Poller(Protocol):
    """What looks at the outside now and then: a source, or what watches pull requests."""

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def every(self) -> float | None: ...  # noqa: D102

    async def poll(self) -> None:
        """Look once. Raises `SourcePaused`."""
        ...


@runtime_checkable
class Listening(Protocol):
    """A source with a loop of its own, and a duty that it holds itself: a long poll."""

    async def run(self) -> None:
        """Until cancelled. Raises `SourcePaused`."""
        ...


class Feed:
    """Runs `sources`, and other `pollers`, on this node; of all nodes one polls a source at a time: `await run()`.

    Nothing that goes wrong in a source ends the feed: it is logged, shown, and tried again with growing pauses.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        desk: Desk,
        pollers: Sequence[Poller] = (),
        *,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._desk = desk
        self._jitter = jitter
        self._sources, self._pollers = tuple(sources), tuple(pollers)
        self._changed, self._stopping = asyncio.Event(), asyncio.Event()
        self._stored: dict[str, asyncio.Event] = {}
        self._wanted: dict[str, asyncio.Event] = {}
        self._noted: dict[str, tuple[str, float]] = {}

    def nudge(self, source: str) -> None:
        """A webhook of that source has been stored."""
        self._stored.setdefault(source, asyncio.Event()).set()

    def hurry(self, poller: str) -> None:
        """Look at once, unless it is paused."""
        self._wanted.setdefault(poller, asyncio.Event()).set()

    def reconfigure(self, sources: Sequence[Source], pollers: Sequence[Poller] = ()) -> None:
        """Run these from now on; what is being done comes to its end first."""
        self._sources, self._pollers = tuple(sources), tuple(pollers)
        self._changed.set()

    async def run(self) -> None:
        """Until cancelled; what is being done then gets `GRACE` seconds."""
        while True:
            self._changed.clear()
            self._stopping.clear()
            async with asyncio.TaskGroup() as group:
                loops = [group.create_task(loop) for loop in self._loops()]
                try:
                    await self._changed.wait()
                finally:
                    await self._end(loops)

    def _loops(self) -> Iterator[Coroutine[Any, Any, None]]:
        for poller in (*self._sources, *self._pollers):
            if poller.every is not None:
                yield self._poll(poller, poller.every)
        for source in self._sources:
            if _takes_webhooks(source):
                yield self._receive(source)
            if isinstance(source, Listening):
                yield self._listen(source.name, source)

    async def _end(self, loops: Sequence[asyncio.Task[None]]) -> None:
        self._stopping.set()
        for event in (*self._stored.values(), *self._wanted.values()):
            event.set()
        try:
            await asyncio.wait(loops, timeout=GRACE) if loops else None
        finally:
            for loop in loops:
                loop.cancel()

    # Polls

    async def _poll(self, poller: Poller, every: float) -> None:
        """Keep the duty all the time, so that another node may have it soon after this one is gone."""
        duty, failures = f"source:{poller.name}", 0
        wanted = self._wanted.setdefault(poller.name, asyncio.Event())
        loop, due = asyncio.get_running_loop(), 0.0
        try:
            while not self._stopping.is_set():
                asked, again = wanted.is_set() and not failures, LEASE / 3
                wanted.clear()
                try:
                    held = await self._desk.duties.hold(duty, self._desk.node, int(LEASE * 1000))
                    if held and (asked or loop.time() >= due):
                        due = loop.time() + every * (0.9 + 0.2 * self._jitter())
                        await self._look(poller, duty)
                        await self._well(poller.name)
                        failures = 0
                    elif not held:
                        again = min(again, until_free(await self._desk.duties.free_at(duty), self._desk.clock()))
                except Exception as error:  # noqa: BLE001  a border: one source's trouble is its own
                    failures += 1
                    due = max(due, loop.time() + await self._unwell(poller.name, error, failures))
                pause = min(again, due - loop.time()) if due > loop.time() else again
                await self._rest(self._stopping if failures else wanted, pause)
        finally:
            with contextlib.suppress(PilotError):
                await self._desk.duties.release(duty, self._desk.node)

    async def _look(self, poller: Poller, duty: str) -> None:
        """One poll, however long it takes: the duty is kept meanwhile, and the poll ended when it is another's."""
        async with asyncio.timeout(None) as limit:
            keeper = asyncio.create_task(self._keep(duty, limit))
            try:
                await poller.poll()
            finally:
                keeper.cancel()

    async def _keep(self, duty: str, limit: asyncio.Timeout) -> None:
        kept = True
        while kept:
            await asyncio.sleep(LEASE / 3)
            with contextlib.suppress(PilotError):
                kept = await self._desk.duties.hold(duty, self._desk.node, int(LEASE * 1000))
        limit.reschedule(asyncio.get_running_loop().time())

    async def _listen(self, name: str, source: Listening) -> None:
        failures, loop = 0, asyncio.get_running_loop()
        while not self._stopping.is_set():
            began = loop.time()
            task = asyncio.ensure_future(source.run())
            stop = asyncio.ensure_future(self._stopping.wait())
            try:
                await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                stop.cancel()
                task.cancel()
                (ended,) = await asyncio.gather(task, return_exceptions=True)
            if isinstance(ended, Exception):
                failures = 1 if loop.time() - began > LONGEST_PAUSE else failures + 1
                await self._rest(self._stopping, await self._unwell(name, ended, failures))

    # Webhooks

    async def _receive(self, source: Source) -> None:
        stored = self._stored.setdefault(source.name, asyncio.Event())
        while not self._stopping.is_set():
            stored.clear()
            pause, found = SWEEP, []
            try:
                found = await self._desk.inbox.take(self._desk.node, source.name, lease=int(IN_HAND * 1000), max=BATCH)
            except PilotError as error:
                log.error("inbox.failed", source=source.name, error=str(error))
            for arrival in found:
                paused = await self._handle(source, arrival)
                if paused is not None:  # the others in hand come back when their lease ends
                    await self._rest(self._stopping, min(paused, LONGEST_PAUSE))
                    break
            if not found:
                await self._rest(stored, pause)

    async def _handle(self, source: Source, arrival: Arrival) -> float | None:
        """Deal with one; seconds to let the source rest, where it asks for that."""
        try:
            async with asyncio.timeout(HANDLING):
                await source.handle(arrival)
        except (Later, SourcePaused) as error:
            at = error.at if isinstance(error, Later) else error.until
            until = at if at is not None else self._desk.clock() + int(_pause(arrival.tries) * 1000)
            await self._put_off(arrival, until, str(error), last=self._desk.clock() - arrival.received_at > OLD)
            if isinstance(error, SourcePaused):
                return await self._unwell(source.name, error, arrival.tries + 1)
        except asyncio.CancelledError:
            await asyncio.shield(self._put_off(arrival, self._desk.clock(), "interrupted", last=False))
            raise
        except Exception as error:  # noqa: BLE001  a border: one webhook's trouble is its own
            words = _words(error) or f"it took longer than {HANDLING:g} s"
            until = self._desk.clock() + int(_pause(arrival.tries) * 1000)
            await self._put_off(arrival, until, words, last=arrival.tries + 1 >= TRIES)
        else:
            with contextlib.suppress(PilotError):  # its lease ends, and it is looked at again
                await self._desk.inbox.handled(arrival, self._desk.node)
        return None

    async def _put_off(self, arrival: Arrival, until: int, why: str, *, last: bool) -> None:
        facts: dict[str, Any] = {"source": arrival.source, "webhook": arrival.id, "type": arrival.event}
        facts |= {"action": one_line(arrival.action, 60), "tries": arrival.tries + 1, "error": why}
        with contextlib.suppress(PilotError):
            if last:
                log.error("webhook.put_aside", **facts)
                await self._desk.inbox.handled(arrival, self._desk.node)
            else:
                log.warning("webhook.put_off", until=until, **facts)
                await self._desk.inbox.postpone(arrival, self._desk.node, until, why)

    # How they do

    async def _well(self, name: str) -> None:
        now = asyncio.get_running_loop().time()
        status, at = self._noted.get(name, ("", 0.0))
        if status != "ok" or now - at >= QUIET:
            await self._desk.health.saw(name, "ok")
            self._noted[name] = ("ok", now)
            if status not in ("", "ok"):
                log.info("source.well", source=name)

    async def _unwell(self, name: str, error: Exception, failures: int) -> float:
        """Say so, where people look; seconds until the next try."""
        now = self._desk.clock()
        pause, until, remedy = _pause(failures - 1), None, ""
        if isinstance(error, SourcePaused):
            remedy = error.remedy
            if error.until is not None:
                pause = max(0.0, (error.until - now) / 1000)
        reason = _words(error) or "it took too long"
        reason = f"{reason}; {remedy}" if remedy else reason
        until = now + int(pause * 1000)
        known = isinstance(error, SourcePaused)
        status = "failing" if remedy or (not known and failures >= TRIES) else "paused"
        log.warning("source.paused", source=name, status=status, until=until, error=reason, exc_info=not known)
        self._noted[name] = (status, 0.0)
        with contextlib.suppress(PilotError):
            await self._desk.health.saw(name, status, reason=reason, until=until)
        return pause

    async def _rest(self, event: asyncio.Event, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await event.wait()


def until_free(at: int, now: int) -> float:
    """Seconds to wait for a duty that another node has until a time, if it does not keep it; both UTC ms."""
    return max(0.0, at - now) / 1000 + SOON


def _takes_webhooks(source: Source) -> bool:
    try:
        source.verify({}, b"")
    except NotFound:
        return False
    except Exception:  # noqa: BLE001  it looked at it, so it takes some
        return True
    return True


def _pause(failures: int) -> float:
    return min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(failures, 10))


def _words(error: Exception) -> str:
    words = str(error)
    return one_line(words if isinstance(error, PilotError) or not words else f"{type(error).__name__}: {words}", 500)
