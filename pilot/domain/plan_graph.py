"""Who waits for whom: an order, or the cycles that leave none. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence


def ordered(nodes: Sequence[tuple[str, Iterable[str]]]) -> tuple[list[int], list[int]]:
    """Indices in an order in which each stands behind what it waits for, and those for which there is none."""
    index = {id: at for at, (id, _) in enumerate(nodes)}
    waiting = [0] * len(nodes)
    behind: list[list[int]] = [[] for _ in nodes]
    for at, (_, deps) in enumerate(nodes):
        for dep in deps:
            behind[index[dep]].append(at)
            waiting[at] += 1
    ready = [at for at, count in enumerate(waiting) if not count]
    order: list[int] = []
    while ready:
        order.append(heapq.heappop(ready))
        for at in behind[order[-1]]:
            waiting[at] -= 1
            if not waiting[at]:
                heapq.heappush(ready, at)
    return order, [at for at, count in enumerate(waiting) if count]


def cycles(waits: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Of steps that can't be ordered, one cycle of each tangle, from its first step on.

    Each waits for at least one other of them, so whoever follows the first of these comes round.
    """
    seen: dict[str, int] = {}
    found: list[list[str]] = []
    order = {id: at for at, id in enumerate(waits)}
    for walk, start in enumerate(waits):
        path: list[str] = []
        id = start
        while id not in seen:
            seen[id] = walk
            path.append(id)
            id = next(dep for dep in waits[id] if dep in waits)
        if seen[id] == walk:
            cycle = path[path.index(id) :]
            at = cycle.index(min(cycle, key=order.__getitem__))
            found.append(cycle[at:] + cycle[:at])
    return found
