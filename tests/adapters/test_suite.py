"""The suite notices what it is there for: backends that break one promise each, and the test that has to fail."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import os
import signal
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from pilot.domain.agent import AgentRequest, Backend, Capabilities, Check, Emit, OutputKind
from pilot.domain.outcome import Ending, FailureClass, Outcome, Usage, failed
from pilot.testing import SECRET, BackendSuite, Script, Seen
from tests.adapters import test_claude_code_suite, test_command

Claude, Plain = test_claude_code_suite.TestClaudeCode, test_command.TestCommand


class Broken:
    """A backend that is right but for one thing."""

    def __init__(self, right: Backend) -> None:
        self.right = right
        self.name = right.name

    def capabilities(self) -> Capabilities:
        return self.right.capabilities()

    def account(self) -> str:
        return self.right.account()

    async def check(self) -> list[Check]:
        return await self.right.check()

    async def execute(self, request: AgentRequest, emit: Emit) -> Outcome:
        return await self.right.execute(self.asked(request), self.told(emit))

    def asked(self, request: AgentRequest) -> AgentRequest:
        return request

    def told(self, emit: Emit) -> Emit:
        return emit


class Wrapped:
    """An Emit that hands on what `keep` keeps."""

    def __init__(self, emit: Emit) -> None:
        self.emit = emit

    async def output(self, kind: OutputKind, data: bytes) -> None:
        await self.emit.output(kind, data)

    async def session(self, session_id: str) -> None:
        await self.emit.session(session_id)

    def usage(self, usage: Usage) -> None:
        self.emit.usage(usage)


class HoldsOn(Broken):
    async def execute(self, request: AgentRequest, emit: Emit) -> Outcome:
        try:
            return await super().execute(request, emit)
        except asyncio.CancelledError:
            return Outcome(ending=Ending.DONE)


class LeavesChildren(Broken):
    async def execute(self, request: AgentRequest, emit: Emit) -> Outcome:
        argv = list(self.right._argv)  # type: ignore[attr-defined]
        process = await asyncio.create_subprocess_exec(
            *argv, cwd=request.workspace, env={**request.environment, "PILOT_RUN": request.marker},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        return Outcome(ending=Ending.DONE) if await process.wait() == 0 else failed(FailureClass.AGENT, "no")


class Succeeds(Broken):
    async def execute(self, request: AgentRequest, emit: Emit) -> Outcome:
        outcome = await super().execute(request, emit)
        return Outcome(ending=Ending.DONE, text=outcome.text)


class Raises(Broken):
    async def execute(self, request: AgentRequest, emit: Emit) -> Outcome:
        outcome = await super().execute(request, emit)
        if outcome.ending is Ending.FAILED:
            raise FileNotFoundError(outcome.detail)
        return outcome


class CountsFromNothing(Broken):
    async def execute(self, request: AgentRequest, emit: Emit) -> Outcome:
        return replace(await super().execute(request, emit), usage=Usage(0, 0, 0.0))


class Escapes(Broken):
    def asked(self, request: AgentRequest) -> AgentRequest:
        return replace(request, sandbox=None)


class Leaks(Broken):
    def asked(self, request: AgentRequest) -> AgentRequest:
        return replace(request, environment={**os.environ, **request.environment})


class Cuts(Broken):
    def asked(self, request: AgentRequest) -> AgentRequest:
        return replace(request, prompt=request.prompt[:100_000])


class Forgets(Broken):
    def asked(self, request: AgentRequest) -> AgentRequest:
        return replace(request, session_id=None)


class Gathers(Broken):
    async def execute(self, request: AgentRequest, emit: Emit) -> Outcome:
        all_of_it = Seen()
        outcome = await self.right.execute(request, all_of_it)
        await emit.output(OutputKind.STDOUT, all_of_it.all)
        return outcome


class SaysLate(Broken):
    def told(self, emit: Emit) -> Emit:
        class Late(Wrapped):
            async def session(self, session_id: str) -> None:
                self.task = asyncio.create_task(self.emit.session(session_id))

        return Late(emit)


class HalfCalls(Broken):
    def told(self, emit: Emit) -> Emit:
        class Half(Wrapped):
            async def output(self, kind: OutputKind, data: bytes) -> None:
                if kind is not OutputKind.RESULT:
                    await self.emit.output(kind, data)

        return Half(emit)


class GivesAway(Broken):
    def account(self) -> str:
        return SECRET[:12]


class IsNeverTheSame(Broken):
    numbers = itertools.count()

    def account(self) -> str:
        return str(next(self.numbers))


class BreaksDoctor(Broken):
    async def check(self) -> list[Check]:
        checks = await super().check()
        if checks[0].ok is False:
            raise RuntimeError("not there")
        return checks


class LeavesItRunning(Broken):
    processes: ClassVar[list[asyncio.subprocess.Process]] = []

    async def check(self) -> list[Check]:
        program = (await self.right.check())[0].detail
        self.processes.append(await asyncio.create_subprocess_exec(program, stdout=asyncio.subprocess.DEVNULL))
        return [Check("it", True, program)]


def mutant(broken: type[Broken], suite: type[Any], test: str, **arguments: Any) -> Any:
    return pytest.param(broken, suite, test, arguments, id=f"{broken.__name__}-{suite.__name__}")


MUTANTS = [
    mutant(HoldsOn, Plain, "test_cancelled_in_silence_before_any_output"),
    mutant(LeavesChildren, Plain, "test_nothing_is_left_of_a_run_that_ended_by_itself", code=0),
    mutant(Succeeds, Plain, "test_a_failure_has_a_class_a_reason_and_evidence"),
    mutant(Raises, Plain, "test_an_agent_that_is_not_there_is_a_matter_of_configuration", how="missing"),
    mutant(CountsFromNothing, Plain, "test_what_it_used_up_is_told_and_what_is_unknown_is_not_nothing"),
    mutant(Escapes, Plain, "test_it_is_started_in_the_sandbox_that_was_given"),
    mutant(Leaks, Plain, "test_it_runs_in_the_workspace_and_sees_only_what_it_was_given"),
    mutant(Cuts, Plain, "test_a_prompt_of_1_mb_arrives_whole"),
    mutant(Forgets, Plain, "test_a_session_is_gone_on_with"),
    mutant(Forgets, Claude, "test_a_session_is_gone_on_with"),
    mutant(Gathers, Plain, "test_a_line_of_100_mb_costs_no_memory"),
    mutant(SaysLate, Claude, "test_a_session_is_stored_before_anything_is_built_on_it"),
    mutant(HalfCalls, Claude, "test_a_tool_call_has_its_beginning_and_its_end"),
    mutant(GivesAway, Plain, "test_whose_allowance_it_uses_up_is_a_short_word_that_gives_no_secret_away"),
    mutant(IsNeverTheSame, Plain, "test_whose_allowance_it_uses_up_is_a_short_word_that_gives_no_secret_away"),
    mutant(BreaksDoctor, Plain, "test_doctor_is_told_whether_it_is_there"),
    mutant(LeavesItRunning, Plain, "test_doctor_is_told_whatever_the_agent_does", script=lambda: Script().wait()),
]


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "broken"])
@pytest.mark.parametrize(("broken", "suite", "test", "arguments"), MUTANTS)
async def test_a_broken_promise_is_noticed_and_a_kept_one_is_not(
    broken: type[Broken],
    suite: type[BackendSuite],
    test: str,
    arguments: dict[str, Any],
    kept: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Mutant(suite):  # type: ignore[valid-type,misc]
        def backend(self, program: Path) -> Backend:
            right = super().backend(program)
            return Broken(right) if kept else broken(right)

    one = Mutant()
    one.set(tmp_path)
    method = getattr(one, test)
    if "monkeypatch" in inspect.signature(method).parameters:
        arguments = {**arguments, "monkeypatch": monkeypatch}

    async def tried() -> None:
        if inspect.isawaitable(running := method(**arguments)):
            await running
        one.struck()

    try:
        if kept:
            await tried()
        else:
            with pytest.raises((Exception, pytest.fail.Exception)):
                await tried()
    finally:
        for pid in one.left():
            os.kill(pid, signal.SIGKILL)
        while LeavesItRunning.processes:
            process = LeavesItRunning.processes.pop()
            process.kill()
            await process.wait()
