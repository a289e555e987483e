"""One attempt from its claim to its outcome, with real git, real processes and agents that are scripts."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pilot.config.executor import ExecutorSettings
from pilot.domain.agent import AgentRequest, Emit, OutputKind
from pilot.domain.errors import LeaseLost, WorkspaceError
from pilot.domain.execution import Execution
from pilot.domain.outcome import Ending, FailureClass, Outcome, Question, Usage, failed
from pilot.runner import finalise
from pilot.runner.prompt import freeze
from pilot.runner.workspace import Workspaces
from tests.core.worksite import (
    STORE,
    Scripted,
    Site,
    again,
    execution,
    files_of,
    git,
    looks,
    shell,
    site,
    until,
)

ASK = 'printf \'```pilot-question\\n{"question": "Which one?", "options": ["a", "b"]}\\n```\\n\''


def executor(s: Site, **settings: Any) -> None:
    s.executor = ExecutorSettings.model_validate(settings)


def kept(s: Site) -> list[str]:
    """The workspaces that there are."""
    return [path.name for path in (s.state / "workspaces").glob("*")]


async def started(s: Site, *scripts: str, execution: Execution, sign: str = "started") -> asyncio.Future[Outcome]:
    """An attempt whose agent has said that it runs."""
    task = asyncio.ensure_future(s.run(*scripts, execution=execution))
    await until(lambda: sign in s.notebook.text() or task.done(), "the agent starts")
    assert not task.done(), task.result()
    return task


async def test_a_task_becomes_a_finished_branch(tmp_path: Path) -> None:
    s = site(tmp_path, gates=({"name": "test", "run": "test -e page.html"},))
    before = looks(s.repo)

    outcome = await s.run("echo hello; echo '<h1>' > page.html", execution=execution())

    assert (outcome.ending, outcome.delivered, outcome.branch) == (Ending.DONE, True, "pilot/GH-46")
    assert outcome.head_sha == git(s.repo, "rev-parse", "pilot/GH-46")
    assert outcome.base_sha == git(s.repo, "rev-parse", "main")
    assert outcome.tree == git(s.repo, "rev-parse", "pilot/GH-46^{tree}")
    assert [gate.passed for gate in outcome.gates] == [True]
    assert looks(s.repo) == before
    assert s.notebook.phases == ["workspace", "agent", "commit", "preserve", "gates", "finish"]
    assert s.notebook.facts == {
        "input_hash": freeze(execution()),
        "workspace": f"{s.state}/workspaces/7-gh-46/api",
        "branch": "pilot/GH-46",
        "base_sha": outcome.base_sha,
        "sandbox": "none",
        "session_id": outcome.session_id,
        "head_sha": outcome.head_sha,
    }
    assert "hello\n" in s.notebook.text(OutputKind.STDOUT)
    assert kept(s) == []


async def test_what_the_agent_is_given(tmp_path: Path) -> None:
    s = site(tmp_path, gates=({"name": "t", "run": "make check"},))
    (s.repo / "AGENTS.md").write_text("be brief")
    git(s.repo, "add", "-A")
    git(s.repo, "commit", "-qm", "agents")
    executor(s, environment={"set": {"MODEL_KEY": "k"}})

    await s.run("env; pwd", execution=execution(model="m1", options={"timeout": 60_000}))

    (request,) = s.requests
    assert (request.execution, request.attempt, request.project, request.task_id) == (7, 1, "api", "GH-46")
    assert (request.model, request.session_id, request.instructions) == ("m1", None, "be brief")
    assert request.marker == f"{STORE}:7:1"
    assert 50 < request.timeout <= 60
    assert "make check" in request.prompt
    said = s.notebook.text(OutputKind.STDOUT).splitlines()
    names = {line.partition("=")[0] for line in said if "=" in line}
    assert names == {"PATH", "HOME", "LANG", "MODEL_KEY", "PILOT_RUN", "PWD"}
    assert said[-1] == request.workspace
    assert not Path(request.scratch).exists()


async def test_nothing_to_change_is_no_failure_and_leaves_nothing(tmp_path: Path) -> None:
    s = site(tmp_path, gates=({"name": "t", "run": "false"},))

    outcome = await s.run("echo all is well", execution=execution())

    assert (outcome.ending, outcome.failure, outcome.branch, outcome.delivered) == (Ending.NO_CHANGE, None, None, False)
    assert "pilot" not in git(s.repo, "for-each-ref")
    assert kept(s) == []


async def test_a_red_gate_is_a_failure_with_the_work_preserved(tmp_path: Path) -> None:
    s = site(tmp_path, gate_repairs=0, gates=({"name": "lint", "kind": "lint", "run": "echo 'E1 bad'; exit 4"},))

    outcome = await s.run("echo x > new", execution=execution())

    assert (outcome.ending, outcome.failure, outcome.delivered) == (Ending.FAILED, FailureClass.LINT, False)
    assert outcome.detail == "gate lint is red (exit code 4)"
    assert outcome.excerpt == "E1 bad\n"
    assert "new" in files_of(s.repo, "pilot/GH-46")
    assert kept(s) == ["7-gh-46"]


async def test_a_red_gate_is_repaired_in_the_same_session(tmp_path: Path) -> None:
    s = site(tmp_path, gates=({"name": "test", "run": "echo 'want good'; grep good new"},))

    outcome = await s.run("echo bad > new", "grep -c 'want good' $1; echo good > new", execution=execution())

    assert outcome.delivered
    first, second = s.requests
    assert (second.session_id, second.workspace) == (first.new_session_id, first.workspace)
    assert "Please add it." not in second.prompt
    assert files_of(s.repo, "pilot/GH-46")["new"] == "good"
    assert s.notebook.phases == [
        "workspace", "agent", "commit", "preserve", "gates", "repair", "commit", "preserve", "gates", "finish",
    ]  # fmt: skip


async def test_without_sessions_a_repair_is_told_everything(tmp_path: Path) -> None:
    s = site(tmp_path, gates=({"name": "test", "run": "echo 'want good'; grep good new"},))

    outcome = await s.run("echo bad > new", "cat new; echo good > new", execution=execution(), resume=False)

    assert outcome.delivered
    assert outcome.text == "bad\n"
    second = s.requests[1]
    assert second.session_id is None
    assert "Please add it." in second.prompt
    assert "want good" in second.prompt


@pytest.mark.parametrize(
    ("gate", "repair", "runs"),
    [
        ("grep -q never new; cat new; false", "date +%N%N > new", 3),  # another failure each time: as often as allowed
        ("echo 'line 7 at 12:30:01'; false", "echo $$ >> new", 2),  # the same failure: once is enough
        ("wc -c < new; false", "true", 2),  # the repair changed nothing: the same gate is not even run again
    ],
)
async def test_repairs_end(tmp_path: Path, gate: str, repair: str, runs: int) -> None:
    s = site(tmp_path, gate_repairs=2, gates=({"name": "t", "run": gate.replace("cat new", "tr 0-9 a-j < new")},))

    outcome = await s.run("echo first > new", repair, execution=execution())

    assert outcome.failure is FailureClass.TEST
    assert len(s.requests) == runs
    assert outcome.head_sha == git(s.repo, "rev-parse", "pilot/GH-46")


async def test_a_question_holds_the_work_and_the_session(tmp_path: Path) -> None:
    s = site(tmp_path, keep_workspace="never")
    first = execution()

    outcome = await s.run(f"echo half > new; {ASK}", execution=first)

    assert outcome.ending is Ending.QUESTION
    assert outcome.question == Question("Which one?", ("a", "b"))
    assert outcome.session_id == s.requests[0].new_session_id
    assert (outcome.branch, outcome.delivered) == (None, False)
    assert "pilot/GH-46" not in git(s.repo, "branch", "--list")
    assert files_of(s.repo, "refs/pilot/wip/7")["new"] == "half"
    assert kept(s) == ["7-gh-46"]
    session = outcome.session_id

    outcome = await s.run("cat new; cat $1", execution=again(first, s.notebook, feedback="Take b."))

    assert outcome.delivered
    assert outcome.text.startswith("half\n")
    assert "Take b." in outcome.text
    assert s.requests[0].session_id == session
    assert "Please add it." not in s.requests[0].prompt
    assert kept(s) == []


async def test_an_answer_without_a_session_comes_with_the_whole_task(tmp_path: Path) -> None:
    s = site(tmp_path)
    await s.run(ASK, execution=execution(), resume=False)

    await s.run("true", execution=again(execution(), s.notebook, feedback="Take b."), resume=False)

    assert s.requests[0].session_id is None
    assert "Please add it." in s.requests[0].prompt
    assert "Take b." in s.requests[0].prompt


@pytest.mark.parametrize("failure", ["agent", "refusal", "oom", "unknown"])
async def test_what_a_failed_agent_did_is_on_the_branch(tmp_path: Path, failure: str) -> None:
    s = site(tmp_path, gates=({"name": "t", "run": "touch ran"},))

    outcome = await s.run(f"echo x > new; echo {failure}; exit 3", execution=execution())

    assert (outcome.ending, outcome.failure, outcome.delivered) == (Ending.FAILED, FailureClass(failure), False)
    assert outcome.gates == ()
    assert "new" in files_of(s.repo, "pilot/GH-46")


@pytest.mark.parametrize("failure", ["rate_limit", "quota", "auth", "network", "infra", "invalid_config"])
async def test_what_will_go_on_is_kept_uncommitted(tmp_path: Path, failure: str) -> None:
    s = site(tmp_path, keep_workspace="never")

    outcome = await s.run(f"echo x > new; echo {failure}; exit 3", execution=execution())

    assert outcome.failure is FailureClass(failure)
    assert "pilot/GH-46" not in git(s.repo, "branch", "--list")
    assert "new" in files_of(s.repo, "refs/pilot/wip/7")
    assert shell(s.state / "workspaces/7-gh-46/api", "git status --short") == "?? new\n"


@pytest.mark.parametrize("end", ["echo rate_limit; exit 3", ASK])
async def test_a_git_that_fails_does_not_hide_why_the_agent_stopped(
    tmp_path: Path, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    s = site(tmp_path)

    async def keep_wip(*_: Any) -> None:
        raise WorkspaceError(FailureClass.INFRA, "no space left")

    monkeypatch.setattr(Workspaces, "keep_wip", keep_wip)

    outcome = await s.run(f"echo x > new; {end}", execution=execution())

    assert outcome.failure is FailureClass.RATE_LIMIT or outcome.ending is Ending.QUESTION
    assert "no space left" in s.notebook.text(OutputKind.PILOT)
    assert (s.state / "workspaces/7-gh-46/api/new").exists()


async def test_set_up_runs_once_in_a_new_workspace(tmp_path: Path) -> None:
    s = site(tmp_path, setup=("mkdir deps; echo 1 >> deps/lib", "test -e deps/lib"), gate_repairs=0,
             gates=({"name": "t", "run": "wc -l < deps/lib; false"},))  # fmt: skip

    outcome = await s.run("echo x > new", execution=execution())
    assert outcome.gates[0].tail.strip() == "1"
    assert s.notebook.phases[:3] == ["workspace", "setup", "agent"]
    assert files_of(s.repo, "pilot/GH-46").keys().isdisjoint({"deps/lib"})

    outcome = await s.run("echo y > new", execution=again(execution(), s.notebook))
    assert outcome.gates[0].tail.strip() == "1"


async def test_a_change_of_what_git_ignores_is_said(tmp_path: Path) -> None:
    s = site(tmp_path)

    await s.run("echo impl.py > .gitignore; echo x > impl.py", execution=execution())

    assert "the change edits .gitignore" in s.notebook.text(OutputKind.PILOT)


async def test_what_is_written_beside_the_change_is_said(tmp_path: Path) -> None:
    s = site(tmp_path, setup=("mkdir gen; echo 1 > gen/lib",))

    outcome = await s.run("echo x > new; echo y > gen/agent.py", execution=execution())

    assert outcome.delivered
    assert "gen/agent.py" not in files_of(s.repo, "pilot/GH-46")
    said = s.notebook.text(OutputKind.PILOT)
    assert "1 files in folders that set-up made are new or changed, and no part of the change: gen/agent.py" in said


async def test_a_set_up_that_fails_is_tried_again_before_any_agent_runs(tmp_path: Path) -> None:
    s = site(tmp_path, setup=(f"cat {tmp_path}/flag || exit 9",))

    outcome = await s.run("true", execution=execution())

    assert (outcome.failure, s.requests) == (FailureClass.INFRA, [])
    assert "exit code 9" in outcome.detail
    assert "No such file" in outcome.excerpt
    (tmp_path / "flag").touch()
    assert (await s.run("echo x > y", execution=again(execution(), s.notebook))).delivered


async def test_the_attempt_s_time_ends_the_agent_and_not_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L41: the time of the attempt is over, and preserving takes time all the same."""
    s = site(tmp_path)
    slow = Workspaces.snapshot

    async def snapshot(self: Workspaces, *args: Any) -> Any:
        await asyncio.sleep(0.3)
        return await slow(self, *args)

    monkeypatch.setattr(Workspaces, "snapshot", snapshot)
    script = f"echo x > new; echo $$ > {tmp_path}/pid; sleep 60"

    outcome = await s.run(script, execution=execution(options={"timeout": 5000}))

    assert (outcome.ending, outcome.failure) == (Ending.FAILED, FailureClass.TIMEOUT)
    assert outcome.detail == "not done within 5 s"
    assert outcome.head_sha == git(s.repo, "rev-parse", "pilot/GH-46")
    assert "new" in files_of(s.repo, "pilot/GH-46")
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


async def test_finalisation_has_an_end_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    s = site(tmp_path)

    async def preserve(*_: Any) -> None:
        await asyncio.sleep(3600)

    monkeypatch.setattr(Workspaces, "preserve", preserve)
    monkeypatch.setattr(finalise, "FINALISATION", 0.3)

    outcome = await s.run("echo x > new", execution=execution())

    assert outcome.failure is FailureClass.INFRA
    assert "could not be preserved" in outcome.detail
    assert (s.state / "workspaces/7-gh-46/api/new").exists()


async def test_a_silent_agent_is_taken_up_once_in_its_session(tmp_path: Path) -> None:
    s = site(tmp_path)
    executor(s, stall_timeout=1)

    outcome = await s.run("echo x > new; sleep 60", "cat $1; echo y > new", execution=execution())

    assert outcome.delivered
    first, second = s.requests
    assert second.session_id == first.new_session_id
    assert "Go on" in second.prompt


async def test_a_silent_agent_that_stays_silent_has_stalled(tmp_path: Path) -> None:
    s = site(tmp_path)
    executor(s, stall_timeout=1)

    outcome = await s.run("echo x > new; sleep 60", execution=execution())

    assert (outcome.failure, len(s.requests)) == (FailureClass.STALL, 2)
    assert "new" in files_of(s.repo, "pilot/GH-46")

    s.set(name="api")
    outcome = await s.run("sleep 60", execution=execution(id=8, task_id="GH-47"), resume=False)
    assert (outcome.failure, len(s.requests)) == (FailureClass.STALL, 1)


async def test_an_agent_that_speaks_has_not_stalled(tmp_path: Path) -> None:
    s = site(tmp_path)
    executor(s, stall_timeout=1)

    outcome = await s.run("for i in 1 2 3 4 5 6 7 8; do echo $i; sleep 0.25; done; echo x > new", execution=execution())

    assert outcome.delivered


async def test_an_agent_that_works_in_silence_has_not_stalled(tmp_path: Path) -> None:
    s = site(tmp_path)
    executor(s, stall_timeout=1)

    outcome = await s.run("timeout 3 sh -c 'while :; do :; done'; echo x > new", execution=execution())

    assert outcome.delivered
    assert len(s.requests) == 1


async def test_cancelled_the_agent_is_gone_and_the_work_is_kept(tmp_path: Path) -> None:
    s = site(tmp_path)
    task = await started(s, f"echo x > new; echo $$ > {tmp_path}/pid; echo started; sleep 60", execution=execution())

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    assert files_of(s.repo, "refs/pilot/wip/7")["new"] == "x"
    outcome = await s.run("cat new", execution=again(execution(), s.notebook))
    assert (outcome.delivered, outcome.text) == (True, "x\n")


@pytest.mark.parametrize("workspace", ["clone", "worktree", "in_place"])
@pytest.mark.parametrize("phase", ["workspace", "setup", "agent", "commit", "preserve", "gates", "repair", "finish"])
async def test_cancelled_in_any_phase_nothing_is_lost(tmp_path: Path, phase: str, workspace: str) -> None:
    """The work is on the branch, kept aside, or still in a workspace from which the next attempt goes on."""
    gate = {"name": "t", "run": "sleep 0.2; grep -q good new"}
    s = site(tmp_path, workspace=workspace, setup=("sleep 0.1",), gates=(gate,))
    task: asyncio.Future[Outcome] | None = None
    begun = tmp_path / "begun"

    def cancel(now: str) -> None:
        if now == phase:
            asyncio.get_running_loop().call_later(0.03, soon)

    def soon() -> None:
        if phase == "agent" and not begun.exists():  # it is to have made something
            asyncio.get_running_loop().call_later(0.01, soon)
        elif task is not None:
            task.cancel()

    s.notebook.on_phase = cancel
    scripts = (f"echo work > work; touch {begun}; sleep 0.2; echo bad > new", "sleep 0.2; echo good > new")
    task = asyncio.ensure_future(s.run(*scripts, execution=execution()))
    await asyncio.wait([task])

    s.notebook.on_phase = lambda _: None
    if task.cancelled():
        outcome = await s.run("echo work >> work; echo good > new", execution=again(execution(), s.notebook))
    else:
        outcome = task.result()
    assert outcome.delivered
    files = files_of(s.repo, "pilot/GH-46")
    assert files["new"] == "good"
    assert files["work"] == ("work" if phase in ("workspace", "setup") or not task.cancelled() else "work\nwork")
    assert git(s.repo, "symbolic-ref", "HEAD") == "refs/heads/main"
    assert git(s.repo, "status", "--porcelain") == ""


async def test_a_second_cancel_does_not_wait_for_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    s = site(tmp_path)
    keeping = asyncio.Event()

    async def keep_wip(*_: Any) -> None:
        keeping.set()
        await asyncio.sleep(3600)

    monkeypatch.setattr(Workspaces, "keep_wip", keep_wip)
    task = await started(s, "echo x > new; echo started; sleep 60", execution=execution())
    task.cancel()
    await keeping.wait()

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 5)


async def test_who_lost_its_lease_writes_nothing_anywhere(tmp_path: Path) -> None:
    s = site(tmp_path)
    refs = git(s.repo, "for-each-ref")
    task = await started(s, f"echo x > new; echo $$ > {tmp_path}/pid; echo started; sleep 1; echo more; sleep 60",
                         execution=execution())  # fmt: skip
    s.notebook.lost = True

    with pytest.raises(LeaseLost):
        await asyncio.wait_for(task, 10)

    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    assert git(s.repo, "for-each-ref") == refs


@pytest.mark.parametrize("phase", ["commit", "preserve", "gates", "finish"])
async def test_a_lease_lost_between_two_steps_stops_there(tmp_path: Path, phase: str) -> None:
    s = site(tmp_path, gates=({"name": "t", "run": f"touch {tmp_path}/gate"},))

    def lose(now: str) -> None:
        if now == phase:
            raise LeaseLost("lost")

    s.notebook.on_phase = lose

    with pytest.raises(LeaseLost):
        await s.run("echo x > new", execution=execution())

    assert ("pilot/GH-46" in git(s.repo, "branch", "--list")) == (phase in ("gates", "finish"))
    assert (tmp_path / "gate").exists() == (phase == "finish")


async def test_a_session_that_is_gone_begins_anew_with_everything(tmp_path: Path) -> None:
    class Forgetful(Scripted):
        async def execute(self, request: AgentRequest, emit: Emit) -> Outcome:
            if request.session_id is not None:
                self.requests.append(request)
                return replace(failed(FailureClass.AGENT, "no such session"), session_lost=True)
            return await super().execute(request, emit)

    s = site(tmp_path)
    s.backend = Forgetful(["echo x > new"])

    outcome = await s.runner()(execution(attempt=2, session_id="old", feedback="it was red"))

    assert outcome.delivered
    assert outcome.session_id == s.requests[1].new_session_id
    assert "Please add it." in s.requests[1].prompt
    assert "it was red" in s.requests[1].prompt


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (FileNotFoundError("claude"), FailureClass.INVALID_CONFIG),
        (OSError("out of files"), FailureClass.INFRA),
        (ZeroDivisionError("bug"), FailureClass.UNKNOWN),
    ],
)
async def test_what_a_backend_raises_is_an_outcome(tmp_path: Path, error: Exception, failure: FailureClass) -> None:
    class Raising(Scripted):
        async def execute(self, request: AgentRequest, emit: Emit) -> Outcome:
            (Path(request.workspace) / "new").write_text("x")
            raise error

    s = site(tmp_path)
    s.backend = Raising([])

    outcome = await s.runner()(execution())

    assert (outcome.ending, outcome.failure) == (Ending.FAILED, failure)
    assert str(error) in outcome.detail
    assert "new" in files_of(s.repo, "refs/pilot/wip/7" if failure is not FailureClass.UNKNOWN else "pilot/GH-46")


async def test_a_bug_of_pilot_s_own_keeps_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    s = site(tmp_path)

    async def snapshot(*_: Any) -> None:
        raise ZeroDivisionError("bug")

    monkeypatch.setattr(Workspaces, "snapshot", snapshot)

    outcome = await s.run("echo x > new", execution=execution())

    assert (outcome.failure, outcome.detail) == (FailureClass.UNKNOWN, "ZeroDivisionError: bug")
    assert "new" in files_of(s.repo, "refs/pilot/wip/7")


async def test_a_backend_that_can_t_be_had(tmp_path: Path) -> None:
    s = site(tmp_path)

    outcome = await s.runner()(execution())

    assert outcome.failure is FailureClass.INVALID_CONFIG


async def test_a_repository_out_of_order_is_a_failure_in_words(tmp_path: Path) -> None:
    s = site(tmp_path)
    git(s.repo, "branch", "pilot/GH-46")

    outcome = await s.run("touch ran", execution=execution())

    assert (outcome.ending, outcome.failure) == (Ending.FAILED, FailureClass.CONFLICT)
    assert "pilot/GH-46" in outcome.detail
    assert s.requests == []


async def test_a_wrong_address_is_its_project_s_affair(tmp_path: Path) -> None:
    """`invalid_config` and `auth` would park the agent for all projects."""
    s = site(tmp_path, url=f"file://{tmp_path}/nowhere")

    outcome = await s.run("true", execution=execution())

    assert outcome.failure is FailureClass.CONFLICT
    assert "nowhere" in outcome.detail


async def test_a_conflict_after_the_work_keeps_it_and_what_it_cost(tmp_path: Path) -> None:
    class Costly(Scripted):
        async def execute(self, request: AgentRequest, emit: Emit) -> Outcome:
            git(s.repo, "branch", "pilot/GH-46")
            outcome = await super().execute(request, emit)
            return replace(outcome, usage=Usage(1, 2, 0.5), model="m1")

    s = site(tmp_path)
    s.backend = Costly(["echo x > new"])

    outcome = await s.runner()(execution())

    assert (outcome.failure, outcome.usage, outcome.model) == (FailureClass.CONFLICT, Usage(1, 2, 0.5), "m1")
    assert outcome.session_id == s.requests[0].new_session_id
    assert "new" in files_of(s.repo, "refs/pilot/7")


@pytest.mark.parametrize(
    ("says", "failure", "unspent"),
    [
        (OutputKind.STDERR, FailureClass.QUOTA, True),
        (OutputKind.TEXT, FailureClass.QUOTA, False),
        (OutputKind.STDOUT, FailureClass.AUTH, False),
        (OutputKind.STDERR, FailureClass.TIMEOUT, False),
    ],
)
async def test_what_a_model_refused_to_begin_has_cost_nothing(
    tmp_path: Path, says: OutputKind, failure: FailureClass, unspent: bool
) -> None:
    class Refused(Scripted):
        async def execute(self, request: AgentRequest, emit: Emit) -> Outcome:
            await emit.output(says, b"words\n")
            return failed(failure, "no")

    s = site(tmp_path)
    s.backend = Refused([""])

    assert (await s.runner()(execution())).unspent is unspent


async def test_what_ends_before_its_agent_has_cost_nothing(tmp_path: Path) -> None:
    s = site(tmp_path, setup=("echo getting ready; false",))
    s.backend = Scripted(["true"])

    outcome = await s.runner()(execution())

    assert (outcome.failure, outcome.unspent, s.requests) == (FailureClass.INFRA, True, [])


async def test_the_cost_of_repairs_is_added(tmp_path: Path) -> None:
    class Costly(Scripted):
        async def execute(self, request: AgentRequest, emit: Emit) -> Outcome:
            return replace(await super().execute(request, emit), usage=Usage(10, 1, 0.25))

    s = site(tmp_path, gates=({"name": "t", "run": "grep good new"},))
    s.backend = Costly(["echo bad > new", "echo good > new"])

    outcome = await s.runner()(execution())

    assert outcome.usage == Usage(20, 2, 0.5)


@pytest.mark.parametrize(
    ("policy", "script", "stays"),
    [
        ("never", "echo x > new", False),
        ("on_failure", "echo x > new", False),
        ("always", "echo x > new", True),
        ("never", "echo x > new; exit 1", False),
        ("on_failure", "echo x > new; exit 1", True),
        ("always", "true", True),
        ("never", "git init -q inner; echo x > inner/only-here; echo x > new", True),
    ],
)
async def test_the_workspace_stays_as_the_project_says(tmp_path: Path, policy: str, script: str, stays: bool) -> None:
    s = site(tmp_path, keep_workspace=policy)

    await s.run(script, execution=execution())

    assert bool(kept(s)) == stays
    if stays:
        gone = await s.runner().release_workspace(execution(), keep=False)
        assert gone == ("inner" not in script)
    assert await s.runner().release_workspace(execution(id=99), keep=False)


async def test_work_goes_on_after_a_kill(tmp_path: Path) -> None:
    """The node died in the middle of the agent's run: its session and its files are taken up."""
    s = site(tmp_path)
    task = await started(s, "echo half > new; echo started; exec sleep 60", execution=execution())
    facts = again(execution(), s.notebook)
    (request,) = s.requests
    await until(lambda: s.notebook.facts.get("session_id"))
    # as recovery does it: the agent is ended, nobody wrote anything
    task.cancel()
    await asyncio.wait([task])

    outcome = await s.run("cat new; cat $1", execution=replace(facts, feedback=None))

    assert outcome.delivered
    assert s.requests[0].session_id == request.new_session_id
    assert "interrupted" in outcome.text


async def test_many_attempts_side_by_side(tmp_path: Path) -> None:
    s = site(tmp_path, max_running=4)

    outcomes = await asyncio.gather(
        *(s.runner_of("echo $PILOT_RUN > new")(execution(id=n, task_id=f"T-{n}")) for n in range(6))
    )

    assert [outcome.delivered for outcome in outcomes] == [True] * 6
    assert {files_of(s.repo, f"pilot/T-{n}")["new"].split(":")[1] for n in range(6)} == set("012345")


async def test_a_signal_that_ends_the_agent_is_its_failure(tmp_path: Path) -> None:
    s = site(tmp_path)
    outcome = await s.run(f"echo x > new; kill -{signal.SIGKILL.value} $$", execution=execution())
    assert outcome.failure is FailureClass.AGENT


async def test_the_journal_is_told_before_each_step(tmp_path: Path) -> None:
    """The phases are the named crash points: what a step does must not have begun when its note is written."""
    s = site(tmp_path, setup=(f"touch {tmp_path}/setup",), gates=({"name": "t", "run": f"touch {tmp_path}/gates"},))
    signs: dict[str, Callable[[], bool]] = {
        "workspace": lambda: bool(kept(s)),
        "setup": lambda: (tmp_path / "setup").exists(),
        "agent": lambda: (tmp_path / "agent").exists(),
        "commit": lambda: "new" in git(s.state / "workspaces/7-gh-46/api", "ls-files"),
        "preserve": lambda: "pilot/GH-46" in git(s.repo, "branch", "--list"),
        "gates": lambda: (tmp_path / "gates").exists(),
        "finish": lambda: not kept(s),
    }
    early = []
    s.notebook.on_phase = lambda phase: early.append(phase) if signs[phase]() else None

    await s.run(f"touch {tmp_path}/agent; echo x > new", execution=execution())

    assert early == []
    assert all(sign() for name, sign in signs.items() if name != "commit" and name != "workspace")
