"""One run of an agent, watched: its time, its signs of life, its cost, and the journal that may be lost meanwhile."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from pilot.domain.agent import AgentRequest, Backend
from pilot.domain.errors import PilotError
from pilot.domain.liveness import Liveness, Signs, Verdict
from pilot.domain.outcome import FailureClass, Outcome, failed
from pilot.runner.cpu import cpu_seconds
from pilot.runner.record import Recorder


@dataclass(slots=True)
class _Work:
    """Processor time of the run's processes, and when it was looked at."""

    marker: str
    used: float = 0.0
    at: float = 0.0
    done: float = 0.0

    async def look(self, now: float) -> None:
        used = await asyncio.to_thread(cpu_seconds, self.marker)
        # Less than before: a process has come to its end, and what it used went with it. That is work, too.
        self.done = now - self.at if used < self.used else used - self.used
        self.used, self.at = used, now


async def watch(
    backend: Backend, request: AgentRequest, recorder: Recorder, *, deadline: float, policy: Liveness
) -> Outcome | Verdict:
    """Run the agent to its end, or end it as the policy says: the verdict. `deadline` is loop time.

    Cancelled, it ends the agent first. Raises what the recorder met (`LeaseLost`), the agent ended.
    """
    loop = asyncio.get_running_loop()
    recorder.begin(policy.budget)
    work = _Work(request.marker, at=loop.time())
    task = asyncio.ensure_future(_executed(backend, request, recorder))
    alarms = [asyncio.ensure_future(event.wait()) for event in (recorder.broken, recorder.overspent)]
    try:
        while True:
            signs = _signs(recorder, deadline - loop.time())
            await asyncio.wait({task, *alarms}, timeout=policy.pause(signs), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            verdict = Verdict.GOES_ON
            if not recorder.broken.is_set():
                verdict = await _judged(policy, recorder, work, deadline)
            if verdict is not Verdict.GOES_ON or recorder.broken.is_set():
                await _end(task)
                if not task.cancelled() and task.exception() is None:
                    return task.result()  # it had come to its end all the same
                recorder.check()
                return verdict
    finally:
        for alarm in alarms:
            alarm.cancel()
        await _end(task)


def _signs(recorder: Recorder, left: float, looked: float = 0.0, worked: float = 0.0) -> Signs:
    return Signs(
        left=left,
        idle=recorder.idle,
        looked=looked,
        worked=worked,
        tools=recorder.open_tools,
        cost=recorder.used.cost_usd,
    )


async def _judged(policy: Liveness, recorder: Recorder, work: _Work, deadline: float) -> Verdict:
    """The verdict by what is said; work is looked at only when that alone would end the run."""
    loop = asyncio.get_running_loop()
    verdict = policy.verdict(_signs(recorder, deadline - loop.time()))
    if verdict is not Verdict.STALL:
        return verdict
    since = work.at
    await work.look(loop.time())
    verdict = policy.verdict(_signs(recorder, deadline - loop.time(), work.at - since, work.done))
    if verdict is Verdict.GOES_ON:
        recorder.touch()
    return verdict


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
