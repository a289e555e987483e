"""Tells whoever asked how things stand: each event of a task goes back to the source that it came from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from pilot.domain.delivery import Effect, Report
from pilot.domain.events import EventType
from pilot.domain.outside import GiveUp, Later, Outbox
from pilot.domain.ports import Clock
from pilot.domain.text import one_line

MINUTE = 60_000
UNKNOWN = 60 * MINUTE
"""ms: the longest pause for a source that this node does not have; another node may."""
TRIES = 12
"""Tries, over the better part of an hour, before a refusal counts: access that is lost for a moment comes back."""


class Teller(Protocol):
    """The part of a `Source` that speaks."""

    async def acknowledge(self, report: Report) -> Mapping[str, Any] | None:
        """See `Source.acknowledge`."""
        ...

    async def report(self, report: Report) -> Mapping[str, Any] | None:
        """See `Source.report`."""
        ...


@dataclass(frozen=True, slots=True)
class Reports:
    """The handler of `EffectKind.REPORT`. `sources`: this node's, by name, asked each time."""

    outbox: Outbox
    sources: Callable[[], Mapping[str, Teller]]
    clock: Clock

    async def __call__(self, effect: Effect) -> Mapping[str, Any] | None:
        """Show the newest state, also for an older event: what lies between is then covered, too."""
        if effect.execution is None:
            raise GiveUp("a report is of an execution, and this one is of none")
        report = await self.outbox.report(effect.execution)
        if report.origin is None:
            return None
        name = str(report.origin.get("source", ""))
        source = self.sources().get(name)
        if source is None:
            wait = min(MINUTE << min(effect.tries, 10), UNKNOWN)
            raise Later(f"source {one_line(name, 40)} is not configured on the nodes that run", self.clock() + wait)
        first = report.type == EventType.QUEUED and not report.sent
        try:
            result = await (source.acknowledge(report) if first else source.report(report))
        except GiveUp as error:
            if effect.tries < TRIES:
                raise Later(str(error)) from error
            raise
        await self.outbox.supersede(effect, report.event)
        return result
