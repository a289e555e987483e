"""The time that preserving the work has: its own, whatever came of the attempt's."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from pilot.domain.errors import WorkspaceError
from pilot.domain.outcome import FailureClass

FINALISATION = 60.0
"""Seconds."""

T = TypeVar("T")


async def bounded(work: Coroutine[Any, Any, T]) -> T:
    """Do it within `FINALISATION`. Raises `WorkspaceError`, class `infra`, when that is over."""
    try:
        async with asyncio.timeout(FINALISATION):
            return await work
    except TimeoutError as error:
        raise WorkspaceError(
            FailureClass.INFRA, f"the work could not be preserved within {FINALISATION:g} s"
        ) from error


async def in_own_time(work: Coroutine[Any, Any, T]) -> T:
    """The same, and to its end also when the attempt is cancelled meanwhile; a second cancel breaks it off."""
    task = asyncio.ensure_future(bounded(work))
    try:
        await asyncio.wait([task])
    except asyncio.CancelledError:
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # seen: the cancellation is what counts
        raise
    return task.result()
