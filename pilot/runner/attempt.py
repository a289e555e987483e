"""The steps of one attempt, each a method; `runner.py` puts them in order."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pilot.config.executor import ExecutorSettings
from pilot.config.schema import ProjectSettings
from pilot.domain.agent import AgentRequest, Backend
from pilot.domain.errors import LeaseLost, PilotError, WorkspaceError
from pilot.domain.execution import Execution
from pilot.domain.outcome import Ending, FailureClass, GateResult, Outcome, Usage, failed
from pilot.domain.ports import Journal
from pilot.domain.text import one_line
from pilot.runner import prompt
from pilot.runner.agent import Broken, watch
from pilot.runner.files import remove_tree
from pilot.runner.finalise import bounded, in_own_time
from pilot.runner.gates import Gates, judge
from pilot.runner.proctree import MARKER
from pilot.runner.record import Recorder, patiently
from pilot.runner.shell import run_shell
from pilot.runner.workspace import Snapshot, Workspace, Workspaces

SETUP_TIMEOUT = 1800.0
_GOES_ON = frozenset(
    {
        FailureClass.RATE_LIMIT,
        FailureClass.QUOTA,
        FailureClass.AUTH,
        FailureClass.INVALID_CONFIG,
        FailureClass.NETWORK,
        FailureClass.INFRA,
    }
)
"""Failures that are not the work's: it goes on later where it stopped, so nothing of it is committed yet."""


@dataclass(slots=True)
class Attempt:
    """One attempt under way. `allowed` is seconds, `deadline` loop time."""

    execution: Execution
    project: ProjectSettings
    executor: ExecutorSettings
    backend: Backend
    workspaces: Workspaces
    journal: Journal
    recorder: Recorder
    marker: str
    environment: Mapping[str, str]
    allowed: float
    deadline: float
    ws: Workspace | None = None
    session: str | None = None
    usage: Usage = field(default_factory=Usage)
    model: str | None = None
    gates: tuple[GateResult, ...] = ()
    snapshot: Snapshot | None = None
    _stalled: bool = field(default=False)

    @property
    def space(self) -> Workspace:
        """The workspace; there is one from the second step on."""
        assert self.ws is not None  # noqa: S101  `open` comes first
        return self.ws

    async def step(self, phase: str, **facts: str | None) -> None:
        """Say what comes now, durably, before it is done; raises `LeaseLost` when this run may do nothing more.

        What was said before stands in the journal then, so that who follows both sees them in order.
        """
        await self.recorder.flush()
        await patiently(lambda: self.journal.note(self.execution, phase=phase, **facts))
        self.recorder.touch()

    async def open(self) -> None:
        """The workspace, and set-up when it is new."""
        await self.step("workspace", input_hash=prompt.freeze(self.execution))
        try:
            async with asyncio.timeout_at(self.deadline):
                self.ws = ws = await self.workspaces.prepare(self.project, self.execution)
        except TimeoutError as error:
            words = f"the workspace was not ready within {self.allowed:g} s"
            raise WorkspaceError(FailureClass.INFRA, words) from error
        facts: dict[str, Any] = {"workspace": str(ws.path), "branch": ws.branch, "base_sha": ws.base_sha}
        await patiently(lambda: self.journal.note(self.execution, **facts))
        if not ws.fresh:
            return
        if self.project.setup:
            await self.step("setup")
            for command in self.project.setup:
                await self._set_up(command)
            made = await self.workspaces.set_up(ws)
            if made:
                await self.recorder.say(f"set-up made files that are left out of the change: {_some(made)}")
        else:
            ws.record.set_up = True
            ws.save()

    async def _set_up(self, command: str) -> None:
        await self.recorder.say(f"set-up: {one_line(command, 500)}")
        ran = await run_shell(
            command,
            cwd=self.space.path,
            env=self.environment,
            marker=self.marker,
            timeout=min(SETUP_TIMEOUT, self._time_left()),
            emit=self.recorder,
        )
        if ran.timed_out or ran.exit_code:
            how = "took too long" if ran.timed_out else f"ended with exit code {ran.exit_code}"
            raise WorkspaceError(FailureClass.INFRA, f"set-up {one_line(command)!r} {how}", ran.tail)

    async def work(self) -> Outcome:
        """The agent's run: in the session there is, else in a new one that is told everything."""
        await self.step("agent")
        self.session = self.execution.session_id if self.backend.capabilities().resume else None
        if self.session is None:
            return await self._run(self._whole(self.execution.feedback))
        words = prompt.go_on(self.execution, fence=_fence())
        return await self._run(words, otherwise=self._whole(self.execution.feedback))

    async def repair(self, red: GateResult) -> Outcome:
        """The agent gets a red gate back: in its session, or in a new one that is told everything."""
        await self.step("repair")
        words = prompt.repair(red.name, red.command, red.tail, fence=_fence())
        whole = self._whole(words)
        if self.session is None or not self.backend.capabilities().resume:
            self.session = None
            return await self._run(whole)
        return await self._run(words, otherwise=whole)

    async def commit(self) -> Snapshot:
        """What is there becomes one commit, in the time that finalisation has of its own."""
        await self.step("commit")
        self.snapshot = snapshot = await in_own_time(
            self.workspaces.snapshot(self.space, one_line(self.execution.title, 100) or self.execution.task_id)
        )
        for note in snapshot.notes:
            await self.recorder.say(note)
        return snapshot

    async def preserve(self, snapshot: Snapshot) -> None:
        """The commit gets onto the branch in the project's repository."""
        await self.step("preserve")
        await in_own_time(self.workspaces.preserve(self.space, snapshot))
        if snapshot.changed:
            await patiently(lambda: self.journal.note(self.execution, head_sha=snapshot.head_sha))
            counts = f"{len(snapshot.files)} files, +{snapshot.insertions} -{snapshot.deletions}"
            await self.recorder.say(f"branch {self.space.branch} is at {snapshot.head_sha[:12]} ({counts})")

    async def check(self, snapshot: Snapshot) -> Outcome | None:
        """The gates, on exactly what was preserved; the failure that they show, if any."""
        await self.step("gates")
        ws = self.space
        gates = Gates(self.project.gates, ws.path, self.environment, self.marker, lambda: self.workspaces.restore(ws))
        self.gates = await gates.run(snapshot.tree, self.recorder)
        return judge(self.gates)

    async def keep(self, *, hurried: bool = False) -> None:
        """Keep the work as it is, for an attempt that will go on with it. `hurried`: one cancel breaks it off.

        The workspace stays in any case, so a git that fails here must not outweigh what the agent's run came to.
        """
        await self.step("preserve")
        keeping = self.workspaces.keep_wip(self.space)
        try:
            commit = await (bounded(keeping) if hurried else in_own_time(keeping))
        except WorkspaceError as error:
            await self.recorder.say(f"the work stays in {self.space.path} only: {error}")
            return
        if commit is not None:
            name = f"refs/pilot/wip/{self.execution.id}"
            await self.recorder.say(f"the unfinished work is kept as {name} ({commit[:12]})")

    async def give_back(self) -> None:
        """A step failed: the user's own checkout does not stay with it; any other workspace waits as it is."""
        if self.ws is not None and self.ws.mode == "in_place":
            await self.rescue()

    async def rescue(self) -> None:
        """Keep the work of an attempt that is being stopped; never raises but for a second cancellation."""
        if self.ws is None:
            return
        try:
            await self.keep(hurried=True)
            await bounded(self.workspaces.release(self.ws, keep=True))
        except (PilotError, OSError) as error:
            # The work is where it was: in the workspace, which stays.
            if not isinstance(error, LeaseLost):
                await self._say_last(f"the work stays in {self.ws.path}: {error}")

    async def release(self, *, keep: bool) -> None:
        """Give up the workspace, or say why it stays."""
        ws = self.space
        try:
            gone = await in_own_time(self.workspaces.release(ws, keep=keep))
        except WorkspaceError as error:
            await self.recorder.say(str(error))
            return
        if not gone and not keep:
            await self.recorder.say(f"the workspace stays, for what is nowhere else: {ws.path}")

    def leave(self) -> None:
        """Whatever came: others may work in the workspace now."""
        if self.ws is not None:
            with contextlib.suppress(OSError):
                remove_tree(self.ws.scratch)
            self.ws.close()

    def ended(self, outcome: Outcome) -> Outcome:
        """The outcome with all that the attempt learnt."""
        ws, snapshot = self.ws, self.snapshot
        there = ws is not None and snapshot is not None and ws.record.preserved == snapshot.head_sha
        changed = snapshot is not None and snapshot.changed and there
        return replace(
            outcome,
            session_id=outcome.session_id or self.session or self.recorder.session_id,
            session_lost=False,
            model=outcome.model or self.model,
            usage=self.usage,
            branch=ws.branch if ws is not None and changed and outcome.ending is not Ending.NO_CHANGE else None,
            base_sha=ws.base_sha if ws is not None else None,
            head_sha=snapshot.head_sha if snapshot is not None and changed else None,
            tree=snapshot.tree if snapshot is not None and changed else None,
            gates=self.gates,
        )

    @property
    def time_is_up(self) -> bool:
        """Whether nothing new may be begun."""
        return self._time_left() <= 0

    def _time_left(self) -> float:
        return self.deadline - asyncio.get_running_loop().time()

    def _whole(self, feedback: str | None) -> str:
        ws = self.space
        facts = prompt.Facts(
            project=self.project.name,
            branch=ws.branch,
            base=f"{ws.record.base_name} ({ws.base_sha[:12]})",
            checks=[gate.run for gate in self.project.gates if gate.required],
        )
        return prompt.build(self.execution, facts, fence=_fence(), feedback=feedback)

    async def _run(self, words: str, *, otherwise: str | None = None) -> Outcome:
        """One run of the agent. `otherwise`: what a new session is told when the one to go on in is gone."""
        ended = await self._watched(words)
        if ended is Broken.STALL and not self._stalled and self._can_go_on():
            self._stalled = True
            await self.recorder.say("no sign of life; the agent was ended, and goes on in its session once")
            ended = await self._watched(prompt.go_on(replace(self.execution, feedback=None), fence=_fence()))
        if ended is Broken.TIMEOUT:
            return failed(FailureClass.TIMEOUT, f"not done within {self.allowed:g} s")
        if ended is Broken.STALL:
            return failed(FailureClass.STALL, f"no sign of life for {self.executor.stall_timeout:g} s")
        assert isinstance(ended, Outcome)  # noqa: S101  all else was told apart above
        self.usage = self.usage.plus(ended.usage)
        self.model = ended.model or self.model
        if ended.session_lost and otherwise is not None:
            await self.recorder.say("the agent's session is gone; a new one begins")
            self.session = None
            return await self._run(otherwise)
        self.session = ended.session_id or self.recorder.session_id or self.session
        return await self._asks(ended)

    async def _watched(self, words: str) -> Outcome | Broken:
        ws, execution = self.space, self.execution
        ws.scratch.mkdir(exist_ok=True)
        request = AgentRequest(
            prompt=words,
            workspace=str(ws.path),
            execution=execution.id,
            attempt=execution.attempt,
            project=self.project.name,
            task_id=execution.task_id,
            environment={**self.environment, MARKER: self.marker},
            marker=self.marker,
            model=execution.model,
            session_id=self.session,
            new_session_id=str(uuid.uuid4()),
            instructions=await asyncio.to_thread(prompt.instructions, ws.path),
            timeout=max(self._time_left(), 0.001),
            scratch=str(ws.scratch),
        )
        return await watch(
            self.backend, request, self.recorder, deadline=self.deadline, stall=self.executor.stall_timeout
        )

    async def _asks(self, outcome: Outcome) -> Outcome:
        """A question at the end of what the agent said is one, whatever its backend knows of questions."""
        if outcome.ending not in (Ending.DONE, Ending.NO_CHANGE):
            return outcome
        question, problem = prompt.read_question(outcome.text)
        if problem:
            await self.recorder.say(f"the agent's last message has {problem}; it is taken for no question")
        return outcome if question is None else replace(outcome, ending=Ending.QUESTION, question=question)

    def _can_go_on(self) -> bool:
        self.session = self.recorder.session_id or self.session
        return self.session is not None and self.backend.capabilities().resume and not self.time_is_up

    async def _say_last(self, words: str) -> None:
        try:
            await self.recorder.say(words)
        except PilotError:
            return

    def goes_on(self, outcome: Outcome) -> bool:
        """Whether the next attempt goes on where this one stopped, as if nothing had been."""
        return outcome.failure in _GOES_ON or outcome.ending in (Ending.QUESTION, Ending.CANCELLED, Ending.INTERRUPTED)


def _fence() -> str:
    return secrets.token_hex(8)


def _some(paths: tuple[str, ...]) -> str:
    shown = ", ".join(one_line(path, 80) for path in paths[:5])
    return shown if len(paths) <= 5 else f"{shown} and {len(paths) - 5} more"
