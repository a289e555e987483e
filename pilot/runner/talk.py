"""What passes between pilot and the agent in one attempt: its runs, the session they share, and their verdicts."""

from __future__ import annotations

import asyncio
import secrets
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace

from pilot.config.executor import ExecutorSettings
from pilot.domain.agent import AgentRequest, Backend, Sandbox
from pilot.domain.execution import Execution
from pilot.domain.liveness import Liveness, Verdict
from pilot.domain.outcome import Ending, FailureClass, GateResult, Outcome, Usage, failed
from pilot.domain.payload import Payload
from pilot.runner import prompt
from pilot.runner.agent import watch
from pilot.runner.pointed import is_test, read_task
from pilot.runner.proctree import MARKER
from pilot.runner.record import Recorder
from pilot.runner.workspace import Workspace


@dataclass(frozen=True, slots=True)
class Place:
    """Where the agent works, what keeps it there, and what it is told about it."""

    ws: Workspace
    sandbox: Sandbox | None
    facts: prompt.Facts


@dataclass(slots=True, kw_only=True)
class Talk:
    """The agent's runs. `allowed` is seconds, `deadline` loop time; `budget` is dollars, None for no limit.

    `booked` tells what was booked for a session before. `payload`: what the task points to, under the project's
    `allow_commands`.
    """

    execution: Execution
    executor: ExecutorSettings
    backend: Backend
    recorder: Recorder
    environment: Mapping[str, str]
    marker: str
    allowed: float
    deadline: float
    booked: Callable[[str], Awaitable[Usage]]
    budget: float | None = None
    payload: Payload | None = None
    allow_commands: tuple[str, ...] = ()
    session: str | None = None
    model: str | None = None
    _stalled: bool = field(default=False)
    _task: Execution | None = field(default=None)
    """The execution with the whole of its text, wherever that stands."""

    async def begin(self, place: Place, asked: str = "") -> Outcome:
        """The first run: in the session there is, else in a new one that is told everything.

        `asked`: what pilot asked a person before, of whom the execution has the answer.
        """
        if self.by_machine:  # one run of a program, that nobody talks to
            return await self._run(place, self.execution.title)
        self.take_up()
        feedback = prompt.answered(asked, self.execution.feedback)
        everything = await self._whole(place, feedback)
        if self.session is None:
            return await self._run(place, everything)
        words = prompt.go_on(replace(self.execution, feedback=feedback), fence=fence())
        return await self._run(place, words, otherwise=everything)

    @property
    def by_machine(self) -> bool:
        """Whether no agent is needed."""
        return self.payload is not None and self.payload.work.by_machine

    @property
    def only_looks(self) -> bool:
        """Whether a machine's verdict is all that is asked for, and no files."""
        return self.by_machine and is_test(self.execution, self.payload)

    def take_up(self) -> None:
        """Whatever is said next is said in the session there is."""
        self.session = self.execution.session_id if self.backend.capabilities().resume else None

    async def repair(self, place: Place, red: GateResult) -> Outcome:
        """The agent gets a red gate back: in its session, or in a new one that is told everything."""
        words = prompt.repair(red.name, red.command, red.tail, fence=fence())
        everything = await self._whole(place, words)
        if self.session is None or not self.backend.capabilities().resume:
            self.session = None
            return await self._run(place, everything)
        return await self._run(place, words, otherwise=everything)

    @property
    def time_left(self) -> float:
        """Seconds until nothing new may be begun."""
        return self.deadline - asyncio.get_running_loop().time()

    async def _whole(self, place: Place, feedback: str | None) -> str:
        if self.payload is None:
            self._task = self.execution
        if self._task is None:
            text = await asyncio.to_thread(read_task, place.ws, self.execution, self.payload)
            self._task = replace(self.execution, body=text)
        return prompt.build(self._task, place.facts, fence=fence(), feedback=feedback)

    async def _run(self, place: Place, words: str, *, otherwise: str | None = None) -> Outcome:
        """One run of the agent. `otherwise`: what a new session is told when the one to go on in is gone."""
        ended = await self._watched(place, words)
        if ended is Verdict.STALL and not self._stalled and self._can_go_on():
            self._stalled = True
            await self.recorder.say("no sign of life; the agent was ended, and goes on in its session once")
            again = prompt.go_on(replace(self.execution, feedback=None), fence=fence())
            ended = await self._watched(place, again)
            otherwise = otherwise or words  # the session may have begun in this very run
        if isinstance(ended, Verdict):
            return self._ended_by(ended)
        if ended.usage != Usage():
            self.recorder.usage(ended.usage)
        self.model = ended.model or self.model
        if ended.session_lost and otherwise is not None:
            await self.recorder.say("the agent's session is gone; a new one begins")
            self.session = None
            return await self._run(place, otherwise)
        self.session = ended.session_id or self.recorder.session_id or self.session
        return await self._asks(ended)

    async def _watched(self, place: Place, words: str) -> Outcome | Verdict:
        execution, ws = self.execution, place.ws
        ws.scratch.mkdir(exist_ok=True)
        request = AgentRequest(
            prompt=words,
            workspace=str(ws.path),
            execution=execution.id,
            attempt=execution.attempt,
            project=execution.project,
            task_id=execution.task_id,
            environment={**self.environment, MARKER: self.marker},
            marker=self.marker,
            model=execution.model,
            session_id=self.session,
            new_session_id=str(uuid.uuid4()),
            instructions=await asyncio.to_thread(prompt.instructions, ws.path),
            timeout=max(self.time_left, 0.001),
            scratch=str(ws.scratch),
            session_used=await self._session_used(),
            sandbox=place.sandbox,
            budget_usd=self._budget_left(),
            kind=execution.kind,
            payload=self.payload if self.by_machine else None,
            allow_commands=self.allow_commands,
        )
        # A program may wait for as long as it likes, within its time: only of an agent is silence a sign.
        stall = self.allowed if self.by_machine else self.executor.stall_timeout
        policy = Liveness(stall, request.budget_usd)
        return await watch(self.backend, request, self.recorder, deadline=self.deadline, policy=policy)

    def _ended_by(self, verdict: Verdict) -> Outcome:
        """What it means that the policy ended the run."""
        match verdict:
            case Verdict.TIMEOUT:
                return failed(FailureClass.TIMEOUT, f"not done within {self.allowed:g} s")
            case Verdict.BUDGET:
                cost = self.recorder.total.cost_usd or 0.0
                words = f"the attempt has cost {cost:.2f} USD, and may cost {self.budget or 0.0:.2f}"
                return failed(FailureClass.BUDGET, words)
            case _:
                return failed(FailureClass.STALL, f"no sign of life for {self.executor.stall_timeout:g} s")

    async def _asks(self, outcome: Outcome) -> Outcome:
        """A question at the end of what the agent said is one, whatever its backend knows of questions."""
        if self.by_machine or outcome.ending not in (Ending.DONE, Ending.NO_CHANGE):
            return outcome
        question, problem = prompt.read_question(outcome.text)
        if problem:
            await self.recorder.say(f"the agent's last message has {problem}; it is taken for no question")
        return outcome if question is None else replace(outcome, ending=Ending.QUESTION, question=question)

    async def _session_used(self) -> Usage:
        """What was booked for the session: by other attempts, and by this one's runs in it."""
        if self.session is None:
            return Usage()
        return (await self.booked(self.session)).plus(self.recorder.total)

    def _budget_left(self) -> float | None:
        return None if self.budget is None else max(self.budget - (self.recorder.total.cost_usd or 0.0), 0.0)

    def _can_go_on(self) -> bool:
        self.session = self.recorder.session_id or self.session
        return self.session is not None and self.backend.capabilities().resume and self.time_left > 0


def fence() -> str:
    """What nobody who writes a ticket can know: it marks where their words end in a prompt."""
    return secrets.token_hex(8)
