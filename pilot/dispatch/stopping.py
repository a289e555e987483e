"""Stopping in order, whoever is impatient."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


async def in_full(stopping: Coroutine[Any, Any, None], hurry: Callable[[], None]) -> None:
    """Await it to its end: a cancellation meanwhile hurries it, for it must not leave an agent behind."""
    task = asyncio.create_task(stopping)
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            cancelled = True
            hurry()
    if cancelled:
        raise asyncio.CancelledError
    task.result()
