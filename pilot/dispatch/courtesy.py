"""Courtesy: of several nodes that hear of the same work, those that lately came too late let others go first."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Iterable

FIRST, LONGEST = 0.004, 0.064
"""Seconds that a node waits after it came too late once, and at most, give or take a half; doubled each time, halved
when it came in time.

A claim in vain costs all nodes their turn at the one writer. Where one node has room for all that comes, the others
soon only look; when it is full, they are there within the longest of these.
"""


class Courtesy:
    """Of one node. How long it waits before it looks for what it was told of."""

    def __init__(self, jitter: Callable[[], float] = random.random) -> None:
        self._jitter = jitter
        self.seconds = 0.0

    async def wait(self) -> None:
        """Let others go first, unless this node came in time of late."""
        if self.seconds:
            await asyncio.sleep(self.seconds * (0.5 + self._jitter()))

    def unseen(self, tokens: Collection[str]) -> set[int]:
        """Projects that are said to have got work, for a node that came in time of late: it claims without a look."""
        if self.seconds or "*" in tokens:
            return set()
        return projects(token[1:] for token in tokens if token[:1] == "+")

    def came(self, in_time: bool) -> None:
        """What there was to claim was there, or another node's already."""
        if in_time:
            self.seconds = self.seconds / 2 if self.seconds > FIRST else 0.0
        else:
            self.seconds = min(max(self.seconds * 2, FIRST), LONGEST)


def projects(tokens: Iterable[str]) -> set[int]:
    """The ids among them. Anybody may send anything, and a number of thousands of digits is refused by `int`."""
    return {int(token) for token in tokens if len(token) < 20 and token.isdecimal()}
