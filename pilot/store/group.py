"""What waits together: items of each operation, with the futures of who asked."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from pilot.store.database import Operation

Group = dict[Operation[Any, Any], list[tuple[Any, asyncio.Future[Any]]]]
Work = Sequence[tuple[Operation[Any, Any], list[Any]]]

CROWD, GATHER = 3, 0.0015
"""After a group of so many the next one waits for so many seconds, unless as many have come again: what costs is the
statements of a group, not the items in them.
"""


def size(group: Mapping[Any, Sequence[Any]]) -> int:
    """How many wait."""
    return sum(map(len, group.values()))


def refuse(group: Group, error: Exception) -> None:
    """The same answer to everybody."""
    for waiting in group.values():
        for _, future in waiting:
            if not future.done():
                future.set_exception(error)


def answer(group: Group, results: Sequence[Sequence[Any]]) -> None:
    """To each its own."""
    for waiting, answers in zip(group.values(), results, strict=True):
        for (_, future), result in zip(waiting, answers, strict=True):
            if future.done():
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)
