"""The steps of one attempt, each a method; `runner.py` puts them in order."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from pilot.config.executor import ExecutorSettings
from pilot.config.schema import ProjectSettings
from pilot.domain.agent import Sandbox
from pilot.domain.errors import LeaseLost, PilotError, WorkspaceError
from pilot.domain.execution import Execution
from pilot.domain.outcome import Ending, FailureClass, GateResult, Outcome, Publication, Question, Usage
from pilot.domain.ports import Journal
from pilot.domain.redact import Redactor
from pilot.domain.sensitive import allows
from pilot.domain.text import one_line, tail
from pilot.domain.work import Made
from pilot.runner import prompt
from pilot.runner.files import remove_tree
from pilot.runner.finalise import bounded, in_own_time
from pilot.runner.gates import Gates, judge
from pilot.runner.inspection import inspect
from pilot.runner.record import Recorder, patiently
from pilot.runner.setup import set_up
from pilot.runner.talk import Place, Talk
from pilot.runner.workspace import Snapshot, Workspace, Workspaces

_SAID = 16 << 10
"""Characters of the agent's last words that are kept while a person is asked: the pull request will have them."""
_GOES_ON = frozenset(
    {
        FailureClass.RATE_LIMIT,
        FailureClass.QUOTA,
        FailureClass.AUTH,
        FailureClass.INVALID_CONFIG,
        FailureClass.NETWORK,
        FailureClass.INFRA,
        FailureClass.BUDGET,
    }
)
"""Failures that are not the work's: it goes on later where it stopped, so nothing of it is committed yet."""
_REFUSED = frozenset({FailureClass.RATE_LIMIT, FailureClass.QUOTA, FailureClass.AUTH, FailureClass.INVALID_CONFIG})
"""Failures by which a model does not begin to work; from an agent that said nothing before, they cost nothing."""


Confine = Callable[[Execution, ExecutorSettings, Workspace], Sandbox | None]
"""What keeps an attempt's processes to its workspace; blocking. Raises `ConfigError` when that can't be had."""

Publish = Callable[[Execution, str], Publication | None]
"""The pull request that an execution's change is to become, from the name of the branch that it started at."""


@dataclass(slots=True, kw_only=True)
class Attempt:
    """One attempt under way. Everything that runs a program for it runs it in `sandbox`."""

    execution: Execution
    project: ProjectSettings
    workspaces: Workspaces
    journal: Journal
    recorder: Recorder
    talk: Talk
    confine: Confine
    redact: Redactor
    publish: Publish
    live: Collection[str] = ()
    made: Sequence[Made] = ()
    ws: Workspace | None = None
    sandbox: Sandbox | None = None
    gates: tuple[GateResult, ...] = ()
    snapshot: Snapshot | None = None

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
            async with asyncio.timeout_at(self.talk.deadline):
                self.ws = ws = await self.workspaces.prepare(self.project, self.execution, self.live, self.made)
        except TimeoutError as error:
            words = f"the workspace was not ready within {self.talk.allowed:g} s"
            raise WorkspaceError(FailureClass.INFRA, words) from error
        self.sandbox = await asyncio.to_thread(self.confine, self.execution, self.talk.executor, ws)
        sandbox = "none" if self.sandbox is None else self.sandbox.name
        await patiently(
            lambda: self.journal.note(
                self.execution, workspace=str(ws.path), branch=ws.branch, base_sha=ws.base_sha, sandbox=sandbox
            )
        )
        if not ws.fresh:
            return
        if self.project.setup:
            await self.step("setup")
            await set_up(self.project.setup, ws, self.talk, self.recorder, self.sandbox)
            made = await self.workspaces.set_up(ws)
            if made:
                await self.recorder.say(f"set-up made files that are left out of the change: {_some(made)}")
        else:
            ws.record.set_up = True
            ws.save()

    async def work(self) -> Outcome:
        """The agent's run; nothing to do for it when a person has let go out what it did before."""
        record = self.space.record
        if record.asked is not None and (allows(self.execution.feedback) or record.allowed == record.asked):
            await self.step("publish")
            record.allowed = record.asked
            self.space.save()
            self.talk.take_up()
            await self.recorder.say("a person has let this change be published as it is")
            return Outcome(ending=Ending.DONE, text=record.said)
        await self.step("payload" if self.talk.by_machine else "agent")
        asked = record.words if record.asked is not None else ""
        self._forget_question()
        outcome = await self.talk.begin(self._place(), asked)
        if self.talk.only_looks and self.space.mode != "in_place":
            left = await in_own_time(self.workspaces.restore(self.space))  # no part of any change, as with gates
            if left:
                await self.recorder.say(f"the test left files behind, which were put back: {_some(left)}")
        return outcome

    async def repair(self, red: GateResult) -> Outcome:
        """The agent gets a red gate back."""
        await self.step("repair")
        self._forget_question()
        return await self.talk.repair(self._place(), red)

    async def doubt(self, snapshot: Snapshot, said: str) -> Question | None:
        """What a person has to be asked before this is published; None when it may go out, or goes nowhere.

        What they answer counts for exactly this tree, and is remembered in the workspace: a lost one asks again.
        """
        record = self.space.record
        if self.publication is None or record.allowed == snapshot.tree:
            return None
        await self.step("inspect")
        question = await in_own_time(inspect(self.space, snapshot, self.redact))
        if question is not None:
            record.asked, record.allowed = snapshot.tree, None
            record.words, record.said = self.redact(question.text), self.redact(tail(said, _SAID))
            self.space.save()
        return question

    @property
    def publication(self) -> Publication | None:
        """The pull request that the change is to become."""
        return self.publish(self.execution, self.space.record.base_name)

    @property
    def goes_on_later(self) -> bool:
        """Whether an open pull request needs the workspace, whatever becomes of this attempt."""
        return self.space.branch in self.live

    def adds(self, snapshot: Snapshot) -> bool:
        """Whether there is a change, and more of it than there was when the execution began."""
        return snapshot.changed and snapshot.head_sha != self.space.record.since

    @property
    def brings_together(self) -> bool:
        """Whether the branch has something without a change, too: what several steps before this one have made."""
        return self.space.record.joined

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
        if not self.project.gates:
            return None
        await self.step("gates")
        ws = self.space
        talk = self.talk
        gates = Gates(
            self.project.gates,
            ws.path,
            talk.environment,
            talk.marker,
            lambda: self.workspaces.restore(ws),
            self.sandbox,
        )
        results = await gates.run(snapshot.tree, self.recorder)
        redact = self.redact
        self.gates = tuple(replace(one, command=redact(one.command), tail=redact(one.tail)) for one in results)
        red = judge(self.gates)
        if red is not None:
            self._forget_question()
        return red

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
                if self.sandbox is not None:
                    self.sandbox.close()
                remove_tree(self.ws.scratch)
            self.ws.close()

    def ended(self, outcome: Outcome) -> Outcome:
        """The outcome with all that the attempt learnt, and no secret in it."""
        ws, snapshot = self.ws, self.snapshot
        there = ws is not None and snapshot is not None and ws.record.preserved == snapshot.head_sha
        adds = snapshot is not None and snapshot.changed and outcome.ending is not Ending.NO_CHANGE
        changed = there and adds
        stands = there and (adds or self.brings_together)
        redact, asks = self.redact, outcome.question
        return replace(
            outcome,
            detail=redact(outcome.detail),
            excerpt=redact(outcome.excerpt),
            text=redact(outcome.text),
            question=None if asks is None else _redacted(asks, redact),
            session_id=outcome.session_id or self.talk.session or self.recorder.session_id,
            session_lost=False,
            model=outcome.model or self.talk.model,
            usage=self.recorder.total,
            unspent=self._unspent(outcome.failure),
            branch=ws.branch if ws is not None and stands else None,
            base_sha=ws.base_sha if ws is not None else None,
            head_sha=snapshot.head_sha if snapshot is not None and stands else None,
            tree=snapshot.tree if snapshot is not None and stands else None,
            publication=self.publication if changed and outcome.ending is Ending.DONE else None,
            gates=self.gates,
        )

    def _forget_question(self) -> None:
        """The agent goes on: an answer that comes after this one is none to what was asked about its work so far."""
        record = self.space.record
        if record.asked is not None:
            record.asked, record.words, record.said = None, "", ""
            self.space.save()

    def _unspent(self, failure: FailureClass | None) -> bool:
        recorder = self.recorder
        refused = self.talk.by_machine or (failure in _REFUSED and not recorder.heard)
        return recorder.total == Usage() and (refused or not recorder.begun)

    @property
    def time_is_up(self) -> bool:
        """Whether nothing new may be begun."""
        return self.talk.time_left <= 0

    def _place(self) -> Place:
        ws = self.space
        facts = prompt.Facts(
            project=self.project.name,
            branch=ws.branch,
            base=f"{ws.record.base_name} ({ws.base_sha[:12]})",
            checks=[gate.run for gate in self.project.gates if gate.required],
            worked=ws.record.since is not None,
        )
        return Place(ws, self.sandbox, facts)

    async def _say_last(self, words: str) -> None:
        try:
            await self.recorder.say(words)
        except PilotError:
            return

    def goes_on(self, outcome: Outcome) -> bool:
        """Whether the next attempt goes on where this one stopped, as if nothing had been."""
        return outcome.failure in _GOES_ON or outcome.ending in (Ending.QUESTION, Ending.CANCELLED, Ending.INTERRUPTED)


def _some(paths: tuple[str, ...]) -> str:
    shown = ", ".join(one_line(path, 80) for path in paths[:5])
    return shown if len(paths) <= 5 else f"{shown} and {len(paths) - 5} more"


def _redacted(asks: Question, redact: Redactor) -> Question:
    options = tuple(redact(option) for option in asks.options)
    return Question(redact(asks.text), options, asks.default and redact(asks.default))
