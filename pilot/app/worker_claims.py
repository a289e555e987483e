"""What a worker elsewhere holds: its leases renewed, its words brought to the server, each under its fence."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import structlog

from pilot.dispatch.maintenance import SELF_FENCE
from pilot.dispatch.run import Run, Stop
from pilot.domain.agent import OutputKind
from pilot.domain.errors import Busy, LeaseLost, PilotError, StoreError
from pilot.domain.execution import Execution
from pilot.domain.outcome import Ending, Outcome, Usage
from pilot.domain.ports import Finish
from pilot.domain.text import tail
from pilot.domain.work import Artifact, Beaten, Claim, Progress, Settled, WorkQueue

T = TypeVar("T")
log = structlog.get_logger()
FENCED = max(SELF_FENCE, 0.8)
"""Part of the lease after which a run is ended if it could not be renewed. The server may be on its way back."""
REQUEST = 768 << 10
"""Bytes of output in one request, as JSON; the server takes 1 MiB."""
PIECE = 96 << 10
"""Bytes of one piece, at most: each may take six in JSON."""
SUMMARY, EXCERPT = 60_000, 8_000
"""Characters of an agent's last words, and of a failure's evidence, that are sent: their ends."""
_LONGEST = 5.0


@dataclass(slots=True, eq=False)
class Held:
    """One claim. `until`: loop time up to which it is certain; `lost`: it is somebody else's, or may be."""

    claim: Claim
    until: float
    lost: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: bool = False


class Claims:
    """Implements `Journal` and the dispatcher's `FinishQueue` for what this worker has claimed.

    Whatever has to be said is said again while the server is away, for as long as the lease is certain; after that
    the run is ended, and nothing more is said. `made` gives the files that come with a result.
    """

    def __init__(
        self,
        queue: WorkQueue,
        worker: str,
        lease: int,
        runs: Mapping[int, Run],
        made: Callable[[Execution, Outcome], Awaitable[Sequence[Artifact]]],
    ) -> None:
        self._queue = queue
        self._worker = worker
        self._lease = lease
        self._runs = runs
        self._made = made
        self.settled: dict[int, Settled] = {}
        """What the server made of results, by id; who has read one takes it out."""
        self._held: dict[int, Held] = {}

    def take(self, claim: Claim, asked: float) -> Held:
        """It is held from now on; `asked` is the loop's time before it was asked for."""
        held = self._held[claim.execution.id] = Held(claim, asked + self._fenced)
        return held

    def drop(self, held: Held) -> None:
        """It has ended."""
        if self._held.get(held.claim.execution.id) is held:
            del self._held[held.claim.execution.id]

    @property
    def _fenced(self) -> float:
        return self._lease / 1000 * FENCED

    # Renewing

    async def renew(self, held: Held) -> None:
        """Renew it at half of its lease, sooner after a failure, until it is lost."""
        loop, id = asyncio.get_running_loop(), held.claim.execution.id
        # One that was waited for may be older than it looks: it is renewed at once.
        pause = self._lease / 2000 if held.until - loop.time() > self._fenced * 0.9 else 0.0
        while not held.lost.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, min(pause, held.until - loop.time()))):
                    await held.lost.wait()
            if loop.time() >= held.until:
                self._lose(held, "the lease could not be renewed")
                return
            now = loop.time()
            try:
                # A connection may be dead without a word: half of what is left is for the next one.
                async with asyncio.timeout_at(min(held.until, now + max((held.until - now) / 2, self._lease / 8000))):
                    await self._beat(held)
                pause = self._lease / 2000
            except LeaseLost as lost:
                self._lose(held, str(lost))
            except TimeoutError:
                log.warning("heartbeat.failed", execution=id, error="no answer")
                pause = 0.0
            except PilotError as error:
                log.warning("heartbeat.failed", execution=id, error=str(error))
                pause = min(self._lease / 8000, 2.0)

    async def _beat(self, held: Held, progress: Progress | None = None) -> Beaten:
        asked = asyncio.get_running_loop().time()
        claim = held.claim
        answer = await self._queue.heartbeat(
            claim.execution.id, self._worker, claim.fence, lease=self._lease, progress=progress or Progress()
        )
        held.until = max(held.until, asked + self._fenced)
        if answer.cancel_requested and not held.cancelled:
            held.cancelled = True
            run = self._runs.get(claim.execution.id)
            if run is not None and run.stopped is None:
                run.stop(Stop.CANCEL)
        return answer

    def _lose(self, held: Held, why: str) -> None:
        held.lost.set()
        run = self._runs.get(held.claim.execution.id)
        if run is not None and run.execution.fence == held.claim.fence and not run.task.done():
            run.stop(Stop.LOST, why)

    # The journal of a run

    async def note(self, execution: Execution, usage: Usage | None = None, /, **facts: str | None) -> None:
        """See `Journal.note`; the server keeps what it can show."""
        told = {name: fact for name, fact in facts.items() if fact is not None}
        held = self._mine(execution)
        await self._insist(held, lambda: self._beat(held, Progress(facts=told, usage=usage)))

    async def write(self, execution: Execution, pieces: Sequence[tuple[OutputKind, bytes]]) -> None:
        """See `Journal.write`. A request whose answer was lost is sent again: it may stand there twice."""
        held = self._mine(execution)
        for some in requests(pieces):
            await self._insist(held, lambda some=some: self._output(held, some))  # type: ignore[misc]

    async def _output(self, held: Held, pieces: Sequence[tuple[OutputKind, bytes]]) -> None:
        await self._queue.output(held.claim.execution.id, self._worker, held.claim.fence, pieces)

    def _mine(self, execution: Execution) -> Held:
        held = self._held.get(execution.id)
        if held is None or held.claim.fence != execution.fence:
            raise LeaseLost(f"execution {execution.id} (fence {execution.fence}) is no longer this run's")
        return held

    # Its end

    async def finish(self, finish: Finish) -> None:
        """See `ports.Queue.finish`: the outcome is the worker's, what follows from it is the server's to decide."""
        execution, outcome = finish.execution, _fitting(finish.outcome)
        held = self._mine(execution)
        id, fence = execution.id, execution.fence
        match outcome.ending:
            case Ending.DONE | Ending.NO_CHANGE | Ending.QUESTION:
                files = await self._made(execution, outcome)
                settled = await self._insist(
                    held, lambda: self._queue.complete(id, self._worker, fence, outcome, files)
                )
            case Ending.FAILED:
                settled = await self._insist(held, lambda: self._queue.fail(id, self._worker, fence, outcome))
            case _:
                settled = await self._insist(held, lambda: self._queue.release(id, self._worker, fence, outcome.detail))
        self.settled[id] = settled

    async def _insist(self, held: Held, say: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Say it, and again while the server is away. Raises `LeaseLost` as soon as the claim is not certain."""
        pause, id = 0.2, held.claim.execution.id
        lost = asyncio.ensure_future(held.lost.wait())
        try:
            while not held.lost.is_set():
                saying = asyncio.ensure_future(say())
                try:
                    await asyncio.wait({saying, lost}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    if not saying.done():
                        saying.cancel()
                        await asyncio.wait({saying})
                if saying.cancelled():
                    break
                try:
                    return saying.result()
                except LeaseLost as error:
                    self._lose(held, str(error))
                    raise
                except (Busy, StoreError) as error:
                    log.warning("server.away", execution=id, error=str(error))
                await asyncio.wait({lost}, timeout=pause)
                pause = min(pause * 2, _LONGEST)
        finally:
            lost.cancel()
        raise LeaseLost(f"execution {id} (fence {held.claim.fence}) is no longer this run's")


def requests(pieces: Sequence[tuple[OutputKind, bytes]]) -> list[list[tuple[OutputKind, bytes]]]:
    """The pieces in order, so many at once as one request may hold."""
    found: list[list[tuple[OutputKind, bytes]]] = []
    size = REQUEST
    for kind, data in pieces:
        for start in range(0, len(data), PIECE):
            piece = data[start : start + PIECE]
            weight = _weight(piece)
            if size + weight > REQUEST:
                found.append([])
                size = 0
            found[-1].append((kind, piece))
            size += weight
    return found


def _weight(data: bytes) -> int:
    """Bytes that it takes in a request."""
    return 60 + max(len(json.dumps(data.decode(errors="replace"))), len(data) * 4 // 3)


def _fitting(outcome: Outcome) -> Outcome:
    """The outcome with no text that is longer than a request may be.

    Where nothing was changed no commit is named either: a merge of what is there already is made where it is needed.
    """
    if outcome.ending is Ending.NO_CHANGE:
        outcome = replace(outcome, branch=None, head_sha=None, tree=None)
    gates = tuple(replace(gate, tail=tail(gate.tail, EXCERPT)) for gate in outcome.gates)
    text, excerpt = tail(outcome.text, SUMMARY), tail(outcome.excerpt, EXCERPT)
    return replace(outcome, text=text, excerpt=excerpt, detail=outcome.detail[:2000], gates=gates)
