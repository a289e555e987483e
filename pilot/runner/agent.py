"""One run of an agent, watched: its time, its silence, and the journal that may be lost meanwhile."""

from __future__ import annotations

import asyncio
from enum import StrEnum

from pilot.domain.agent import AgentRequest, Backend
from pilot.domain.errors import PilotError
from pilot.domain.outcome import FailureClass, Outcome, failed
from pilot.runner.cpu import cpu_seconds
from pilot.runner.record import Recorder

BUSY = 0.02
"""Share of one processor, over the time of silence, that counts as a sign of life."""


class Broken(StrEnum):
    """Why pilot itself ended a run."""

    TIMEOUT = "timeout"
    STALL = "stall"


async def watch(
    backend: Backend, request: AgentRequest, recorder: Recorder, *, deadline: float, stall: float
) -> Outcome | Broken:
    """Run the agent to its end, or end it: at `deadline` (loop time), or after `stall` seconds without a sign of life.

    Signs of life are output of any kind and work: processor time of its processes. Cancelled, it ends the agent
    first. Raises what the recorder met (`LeaseLost`), the agent ended.
    """
    loop = asyncio.get_running_loop()
    recorder.touch()
    used = 0.0
    task = asyncio.ensure_future(_executed(backend, request, recorder))
    lost = asyncio.ensure_future(recorder.broken.wait())
    try:
        while True:
            pause = min(deadline - loop.time(), stall - recorder.idle)
            await asyncio.wait({task, lost}, timeout=max(pause, 0.0), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            why = None
            if loop.time() >= deadline:
                why = Broken.TIMEOUT
            elif recorder.idle >= stall:
                before, used = used, await asyncio.to_thread(cpu_seconds, request.marker)
                if used < before or used - before > BUSY * stall:  # less: a process has come to its end
                    recorder.touch()
                    continue
                why = Broken.STALL
            if why is not None or lost.done():
                await _end(task)
                if not task.cancelled() and task.exception() is None:
                    return task.result()  # it had come to its end all the same
                if why is not None and not lost.done():
                    return why
                recorder.check()
    finally:
        lost.cancel()
        await _end(task)


async def _executed(backend: Backend, request: AgentRequest, recorder: Recorder) -> Outcome:
    """What a backend could not help to raise is a failure of the attempt, not of pilot."""
    try:
        return await backend.execute(request, recorder)
    except PilotError:
        raise
    except (FileNotFoundError, PermissionError) as error:
        return failed(FailureClass.INVALID_CONFIG, f"{backend.name} can't be started: {error}")
    except OSError as error:
        return failed(FailureClass.INFRA, f"{backend.name} can't be run: {error}")
    except Exception as error:  # noqa: BLE001  the border to a plug-in
        return failed(FailureClass.UNKNOWN, f"{backend.name} broke: {type(error).__name__}: {error}")


async def _end(task: asyncio.Future[Outcome]) -> None:
    """Cancel it and wait until it is over; cancelled meanwhile, hurry it, and raise that at the end."""
    cancelled = False
    if not task.done():
        task.cancel()
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            cancelled = True
            task.cancel()
    if not task.cancelled():
        task.exception()  # seen
    if cancelled:
        raise asyncio.CancelledError
