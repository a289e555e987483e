"""What the runner sees of an agent while it runs: tool calls, usage, cost."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pilot.config.executor import ExecutorSettings
from pilot.domain.agent import AgentRequest, Capabilities, Check, Emit, OutputKind
from pilot.domain.outcome import Ending, FailureClass, Outcome, Usage
from pilot.runner.runner import AttemptRunner
from tests.core.worksite import ENVIRON, STORE, Site, execution, site, until

Step = tuple[str, Any]


@dataclass
class Played:
    """A backend whose runs are lists of steps: ("tool" | "result" | "text" | "usage" | "wait" | "end", value)."""

    runs: list[list[Step]]
    requests: list[AgentRequest] = field(default_factory=list)
    name: str = "played"

    def account(self) -> str:
        return ""

    def capabilities(self) -> Capabilities:
        return Capabilities(resume=True, cost=True)

    async def check(self) -> list[Check]:
        return []

    async def execute(self, request: AgentRequest, emit: Emit) -> Outcome:
        self.requests.append(request)
        await emit.session(request.session_id or request.new_session_id)
        for step, value in self.runs.pop(0):
            match step:
                case "usage":
                    emit.usage(value)
                case "wait":
                    await asyncio.sleep(value)
                case "end":
                    assert isinstance(value, Outcome)
                    return value
                case kind:
                    await emit.output(OutputKind(kind), value)
        return Outcome(ending=Ending.DONE, text="done")


@dataclass
class Ledger:
    booked: dict[str, Usage] = field(default_factory=dict)

    async def used(self, session: str) -> Usage:
        return self.booked.get(session, Usage())


def runner(s: Site, *runs: list[Step], ledger: Ledger | None = None, budget: float | None = None) -> AttemptRunner:
    backend = s.backend = Played(list(runs))
    return AttemptRunner(
        project=lambda _: s.project,
        backend=lambda _: backend,
        executor=lambda _: s.executor,
        workspaces=s.workspaces,
        journal=s.notebook,
        state_dir=s.state,
        store_id=STORE,
        environ=ENVIRON,
        booked=(ledger or Ledger()).used,
        budget=lambda _: budget,
    )


def executor(s: Site, **settings: Any) -> None:
    s.executor = ExecutorSettings.model_validate(settings)


def requests(s: Site) -> list[AgentRequest]:
    assert isinstance(s.backend, Played)
    return s.backend.requests


async def test_a_tool_call_that_is_open_is_no_silence(tmp_path: Path) -> None:
    s = site(tmp_path)
    executor(s, stall_timeout=1)
    run: list[Step] = [("tool", b"Bash make\n"), ("wait", 2), ("result", b"ok\n"), ("text", b"Done.\n")]

    outcome = await runner(s, run)(execution())

    assert outcome.ending is Ending.NO_CHANGE
    assert len(requests(s)) == 1


async def test_a_tool_call_that_never_ends_is_a_stall_all_the_same(tmp_path: Path) -> None:
    s = site(tmp_path)
    executor(s, stall_timeout=1)
    hung: list[Step] = [("tool", b"Bash make\n"), ("wait", 60)]

    outcome = await runner(s, hung, hung)(execution())

    assert (outcome.failure, len(requests(s))) == (FailureClass.STALL, 2)


async def test_silence_after_a_tool_call_is_over_is_silence(tmp_path: Path) -> None:
    s = site(tmp_path)
    executor(s, stall_timeout=1)
    hung: list[Step] = [("tool", b"Bash make\n"), ("result", b"ok\n"), ("wait", 2.5), ("text", b"late\n")]

    outcome = await runner(s, hung, hung)(execution())

    assert (outcome.failure, len(requests(s))) == (FailureClass.STALL, 2)


async def test_a_run_that_costs_more_than_it_may_is_ended_and_held_with_its_work(tmp_path: Path) -> None:
    s = site(tmp_path)
    run: list[Step] = [("usage", Usage(10, 5, 0.4)), ("text", b"On.\n"), ("usage", Usage(90, 50, 1.2)), ("wait", 60)]

    outcome = await runner(s, run, budget=1.0)(execution())

    assert (outcome.ending, outcome.failure) == (Ending.FAILED, FailureClass.BUDGET)
    assert "1.20" in outcome.detail
    assert "1.00" in outcome.detail
    assert outcome.usage == Usage(90, 50, 1.2)
    assert Path(s.notebook.facts["workspace"] or "").exists()


async def test_what_is_left_of_the_budget_goes_to_the_repair(tmp_path: Path) -> None:
    s = site(tmp_path, gates=({"name": "t", "run": "false"},))
    first = Outcome(ending=Ending.DONE, text="done", usage=Usage(10, 5, 0.4))

    class Changing(Played):
        async def execute(self, request: AgentRequest, emit: Emit) -> Outcome:
            Path(request.workspace, f"new{len(self.requests)}").write_text("x")
            return await super().execute(request, emit)

    act = runner(s, budget=1.0)
    s.backend = backend = Changing([[("end", first)], [("usage", Usage(1, 1, 0.7)), ("wait", 60)]])
    act._backend = lambda _: backend
    outcome = await act(execution())

    assert [request.budget_usd for request in backend.requests] == [1.0, pytest.approx(0.6)]
    assert outcome.failure is FailureClass.BUDGET
    assert outcome.usage.cost_usd == pytest.approx(1.1)


async def test_a_session_is_told_what_was_booked_for_it_before(tmp_path: Path) -> None:
    s = site(tmp_path)
    ledger = Ledger({"5f3c0000-0000-4000-8000-000000000000": Usage(1000, 200, None)})

    await runner(s, [("text", b"Done.\n")], ledger=ledger)(
        execution(session_id="5f3c0000-0000-4000-8000-000000000000", attempt=2)
    )

    assert requests(s)[0].session_used == Usage(1000, 200, None)


async def test_what_a_cancelled_run_has_used_up_is_noted(tmp_path: Path) -> None:
    s = site(tmp_path)
    task = asyncio.ensure_future(
        runner(s, [("text", b"On.\n"), ("usage", Usage(90, 50, 1.2)), ("wait", 60)])(execution())
    )
    await until(lambda: requests(s) and s.notebook.used == Usage(90, 50, 1.2))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_that_the_model_has_answered_is_noted_once(tmp_path: Path) -> None:
    s = site(tmp_path)

    await runner(s, [("stderr", b"starting\n"), ("raw", b"{}\n")])(execution())
    assert "answered" not in s.notebook.facts

    await runner(s, [("tool", b"Bash ls\n"), ("result", b"\n"), ("text", b"Done.\n")])(execution(id=8, task_id="X-2"))
    assert s.notebook.facts["answered"]


async def test_usage_that_is_not_known_stays_unknown(tmp_path: Path) -> None:
    s = site(tmp_path)

    outcome = await runner(s, [("text", b"Done.\n")])(execution())

    assert outcome.usage == Usage()


async def test_a_session_that_did_not_outlive_its_stall_begins_anew_with_everything(tmp_path: Path) -> None:
    s = site(tmp_path)
    executor(s, stall_timeout=1)
    lost = Outcome(ending=Ending.FAILED, failure=FailureClass.AGENT, detail="no such session", session_lost=True)

    outcome = await runner(s, [("wait", 60)], [("end", lost)], [("text", b"Done.\n")])(execution())

    assert outcome.ending is Ending.NO_CHANGE
    first, second, third = requests(s)
    assert (second.session_id, third.session_id) == (first.new_session_id, None)
    assert "Please add it." in third.prompt
