"""When an agent's run is taken for over: one policy, asked with what was seen of the run."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

BUSY = 0.02
"""Share of one processor, over the time looked at, that counts as work."""
TOOL_PATIENCE = 3
"""So many times `stall` may pass in silence while a tool call is open: a build says nothing, and a lock is no work."""


class Verdict(StrEnum):
    """What is to be done with the run."""

    GOES_ON = "goes_on"
    TIMEOUT = "timeout"
    STALL = "stall"
    BUDGET = "budget"


@dataclass(frozen=True, slots=True, kw_only=True)
class Signs:
    """What is seen of a run. Seconds, dollars.

    `left`: until its deadline. `idle`: since it last said anything. `looked`: since its processor time was last
    looked at, and `worked`: what it has used since. `tools`: calls that are open. `cost`: what it has cost so far.
    """

    left: float
    idle: float
    looked: float
    worked: float
    tools: int
    cost: float | None


@dataclass(frozen=True, slots=True)
class Liveness:
    """`stall`: seconds without a sign of life (output, work, an open tool call). `budget`: dollars; None: no limit."""

    stall: float
    budget: float | None = None

    def patience(self, tools: int) -> float:
        """Seconds of silence without work that are borne."""
        return self.stall * (TOOL_PATIENCE if tools else 1)

    def verdict(self, signs: Signs) -> Verdict:
        """What these signs mean. Work is looked at only once it has been silent for `stall` seconds."""
        if signs.left <= 0:
            return Verdict.TIMEOUT
        if self.budget is not None and signs.cost is not None and signs.cost > self.budget:
            return Verdict.BUDGET
        if signs.idle < self.patience(signs.tools) or signs.worked > BUSY * signs.looked:
            return Verdict.GOES_ON
        return Verdict.STALL

    def pause(self, signs: Signs) -> float:
        """Seconds after which silence alone may change the verdict."""
        return max(min(signs.left, self.patience(signs.tools) - signs.idle), 0.0)
