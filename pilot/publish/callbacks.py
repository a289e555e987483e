"""Calls back whoever put a task in and asked for it: `{event, execution}` by a signed POST, in order per execution.

It may arrive twice when an answer was lost, or pilot was killed before it was noted; then with the same
`X-Pilot-Delivery`. What the execution is like is read when it is sent: a late one says how things stand now.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import structlog

from pilot.clients.hooks import Forbidden, HookError, Hooks, Rejected, Unavailable, Unreachable, place
from pilot.domain.delivery import Effect
from pilot.domain.errors import NotFound
from pilot.domain.outside import GiveUp, Later, Outbox
from pilot.domain.ports import Clock
from pilot.domain.redact import redacted
from pilot.publish.patience import put_off
from pilot.store.history import History

log = structlog.get_logger()
GONE = (404, 410)
"""Answers of a receiver that is no more."""
REFUSALS = 5
"""Tries before any other refusal counts: whoever takes it in may just be changed."""
REST, LONGEST_REST = 10_000, 300_000
"""ms for which a host is left alone that nobody answers at, doubled each time, and the longest."""


@dataclass(slots=True)
class _Rest:
    until: int
    next: int = REST


class Callbacks:
    """The handler of `EffectKind.CALLBACK`. `redact` takes secrets out of what goes outside.

    A host at which nobody answers is left alone for a while by all of its callbacks: each would take a place in the
    outbox's loop until its time is up, and pull requests wait for such a place, too.
    """

    def __init__(
        self, outbox: Outbox, history: History, hooks: Hooks, *, clock: Clock, redact: Callable[[str], str]
    ) -> None:
        self._outbox = outbox
        self._history = history
        self._hooks = hooks
        self._clock = clock
        self._redact = redact
        self._rests: dict[str, _Rest] = {}

    async def __call__(self, effect: Effect) -> Mapping[str, Any] | None:
        """POST it. Raises `Later`, `GiveUp`."""
        if effect.execution is None:
            raise GiveUp("a callback is of an execution, and this one is of none")
        url, type = str(effect.payload["url"]), str(effect.payload["type"])
        host = place(url)
        self._awake(effect, host)
        try:
            execution = (await self._outbox.report(effect.execution)).execution
        except NotFound:
            return None  # pruned meanwhile
        document = {"event": type, "execution": await self._history.document(execution)}
        try:
            await self._hooks.post(url, type, effect.key, redacted(document, self._redact))
        except Forbidden as error:
            raise GiveUp(str(error)) from None
        except Unreachable as error:
            self._leave_alone(host)
            raise put_off(effect, str(error), self._clock()) from None
        except HookError as error:
            self._rests.pop(host, None)
            raise self._refused(effect, error) from None
        self._rests.pop(host, None)
        return None

    def _refused(self, effect: Effect, error: HookError) -> Later | GiveUp:
        """It was answered, and with no."""
        if isinstance(error, Rejected) and (error.status in GONE or effect.tries + 1 >= REFUSALS):
            return GiveUp(str(error))
        at = error.until if isinstance(error, Unavailable) else None
        return put_off(effect, str(error), self._clock(), at)

    def _awake(self, effect: Effect, host: str) -> None:
        """Let one try what has rested, and nobody what rests. Raises `Later`, `GiveUp`."""
        rest = self._rests.get(host)
        if rest is None:
            return
        now = self._clock()
        if now < rest.until:
            raise put_off(effect, f"nobody answers at {host}, and it is left alone for a moment", now, rest.until)
        rest.until = now + REST

    def _leave_alone(self, host: str) -> None:
        rest = self._rests.setdefault(host, _Rest(0))
        log.warning("callback.unanswered", host=host, seconds=rest.next / 1000)
        rest.until = self._clock() + rest.next
        rest.next = min(rest.next * 2, LONGEST_REST)
