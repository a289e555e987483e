"""One execution as it goes on: its events and its agents' output in the order of their times, to its end.

The id of each message is the place of everything so far, `EVENT-ATTEMPT-SEQ` (the last event, and the last piece of
output), so that a reader resumes exactly; the last one's ends in `-end`.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING, Any

from pilot.api.sse import BEAT, HEARTBEAT, Listener, message
from pilot.domain.errors import UsageError
from pilot.domain.events import Event, EventType
from pilot.domain.execution import Execution
from pilot.domain.redact import redacted
from pilot.store.documents import piece_document
from pilot.store.event_log import EventLog, Wanted

if TYPE_CHECKING:
    from pilot.store.history import History, Piece

PIECES = 20
EVENTS = 200
_PLACE = re.compile(r"(\d{1,18})(?:-(\d{1,9})-(\d{1,18})(-end)?)?", re.ASCII)
_ENDINGS = frozenset(
    (
        EventType.COMPLETED, EventType.FAILED, EventType.CANCELLED, EventType.RETRIED, EventType.ASKED, EventType.LOST,
        EventType.CANCEL_ASKED,
    )
)  # fmt: skip
"""Events that come behind the output of the same millisecond."""


class Tail(Listener):
    """One connection that follows an execution, and what it has been sent."""

    def __init__(
        self, execution: int, event: int, attempt: int, seq: int, token: str, abort: Callable[[], None]
    ) -> None:
        super().__init__(token, abort)
        self.execution = execution
        self._event = event
        self._attempt = attempt
        self._seq = seq

    @property
    def place(self) -> tuple[int, int, int]:
        """The execution, and its last piece of output that was sent."""
        return self.execution, self._attempt, self._seq

    @property
    def event(self) -> int:
        """The last event that was sent."""
        return self._event

    @property
    def id(self) -> str:
        """The place of everything so far."""
        return f"{self._event}-{self._attempt}-{self._seq}"

    def passed(self, event: Event) -> None:
        """It is sent."""
        self._event = event.id

    def heard(self, piece: Piece) -> None:
        """It is sent."""
        self._attempt, self._seq = piece.attempt, piece.seq


def place_after(text: str) -> tuple[int, int, int, bool]:
    """(event, attempt, seq, whether the end was seen) of a Last-Event-ID; an event's id alone does, too."""
    if not text:
        return 0, 0, 0, False
    found = _PLACE.fullmatch(text)
    if found is None:
        raise UsageError("Last-Event-ID: not an id of this stream, which are EVENT-ATTEMPT-SEQ")
    return int(found[1]), int(found[2] or 0), int(found[3] or 0), found[4] is not None


async def until_its_end(
    tail: Tail,
    log: EventLog,
    history: History,
    document: Callable[[Event], dict[str, object]],
    redact: Callable[[str], str],
) -> AsyncGenerator[bytes, None]:
    """What to send: all there is, then what comes, then the end; a comment when there is nothing for a while."""
    while not tail.ended:
        # The state first: what is written before an end is then still read after it.
        execution = await history.execution(tail.execution)
        events: deque[Event] = deque()
        await _news(tail, log, events)
        while pieces := await history.output(tail.execution, after=tail.place[1:], limit=PIECES):
            # Again: an attempt that began meanwhile comes before what it says.
            await _news(tail, log, events)
            told = []
            for piece in pieces:
                while events and _is_before(events[0], piece):
                    told.append(_event(tail, events.popleft(), document))
                tail.heard(piece)
                told.append(message(redacted(piece_document(piece), redact), tail.id, "output"))
            yield b"".join(told)
        if events:
            yield b"".join([_event(tail, event, document) for event in events])
        if execution is None or execution.status.final:
            yield message(redacted(_end(tail.execution, execution), redact), f"{tail.id}-end", "end")
            return
        if not await tail.wait(HEARTBEAT):
            yield BEAT


async def _news(tail: Tail, log: EventLog, events: deque[Event]) -> None:
    """Add to the events that are not sent yet what has come since."""
    wanted = Wanted(execution=tail.execution)
    while page := await log.between(events[-1].id if events else tail.event, 1 << 62, wanted, EVENTS):
        events += page


def _event(tail: Tail, event: Event, document: Callable[[Event], dict[str, object]]) -> bytes:
    tail.passed(event)
    return message(document(event), tail.id)


def _is_before(event: Event, piece: Piece) -> bool:
    return event.at < piece.at or (event.at == piece.at and event.type not in _ENDINGS)


def _end(id: int, execution: Execution | None) -> dict[str, Any]:
    if execution is None:
        return {"execution": id, "status": None, "outcome": None, "reason": "it was removed with the history"}
    return {
        "execution": id,
        "status": str(execution.status),
        "outcome": execution.outcome,
        "reason": execution.reason,
    }
