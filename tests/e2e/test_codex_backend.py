"""The codex backend with the real CLI and a scripted model."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pilot.backends.codex import AFTER_END, Codex
from pilot.config.executor import CodexSettings
from pilot.domain.agent import AgentRequest, OutputKind
from pilot.domain.outcome import Ending, FailureClass, Outcome, Usage
from pilot.testing.seen import Seen
from tests.e2e.codex import MODULES, codex_binary, codex_environment, heard, provider, threads
from tests.e2e.responses_server import ResponsesServer, Turn, shell, status, text, tool

variants = pytest.mark.variants
PASSED = ("PATH", "HOME", "LANG", "TMPDIR")
UNKNOWN = "01a20ebf-8f1a-7ab3-b994-6d15adc42e9a"


class Watched(Seen):
    """An Emit that can be waited for."""

    def said(self, kind: OutputKind) -> str:
        return self.of(kind).decode()

    async def hears(self, kind: OutputKind, words: str, seconds: float = 30) -> None:
        async with asyncio.timeout(seconds):
            while words not in self.said(kind):
                await self.until(self.size + 1)


class Bench:
    """One workspace, one home, one model server: everything that a run needs."""

    def __init__(self, tmp_path: Path, server: ResponsesServer) -> None:
        self.server = server
        self.workspace = tmp_path / "workspace"
        self.workspace.mkdir()
        subprocess.run(["git", "init", "-q", str(self.workspace)], check=True)
        self.home = tmp_path / "home"
        self.environment = codex_environment(self.home)
        self.seen = Watched()
        self.marker = f"test/{uuid.uuid4().hex}"
        self.args = provider(server.url)

    def backend(self, environ: dict[str, str] | None = None, **settings: Any) -> Codex:
        given = {"command": codex_binary(), "model": "scripted-model", **settings}
        given["extra_args"] = [*self.args, *given.get("extra_args", ())]
        environ = self.environment if environ is None else environ
        passed: dict[str, str] = {name: environ[name] for name in PASSED if name in environ}
        return Codex(CodexSettings.model_validate(given), environ=environ, environment=passed)

    def request(self, prompt: str = "Do it.", **more: Any) -> AgentRequest:
        passed = {name: self.environment[name] for name in PASSED}
        given: dict[str, Any] = {
            "prompt": prompt, "workspace": str(self.workspace), "execution": 1, "attempt": 1, "project": "p",
            "task_id": "T-1", "environment": passed, "marker": self.marker,
        }  # fmt: skip
        return AgentRequest(**given | more)

    async def run(self, request: AgentRequest | None = None, **settings: Any) -> Outcome:
        return await self.backend(**settings).execute(request or self.request(), self.seen)

    def left(self) -> list[str]:
        """Processes of this bench's runs that still live, by their environment."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if f"={self.marker}/".encode() in path.read_bytes():
                    found.append((path.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue
        return found


Make = Callable[..., Bench]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Make]:
    servers: list[ResponsesServer] = []

    def make(*turns: Turn) -> Bench:
        servers.append(ResponsesServer(turns).__enter__())
        return Bench(tmp_path, servers[-1])

    yield make
    for server in servers:
        server.__exit__(None, None, None)


async def test_a_success_writes_its_file_and_knows_what_it_used(bench: Make) -> None:
    b = bench(shell("echo hi > a.txt; cat a.txt", text="I write it.", reasoning="Hm."), text("All done."))

    started = time.monotonic()
    end = await b.run(b.request("Write a.txt.", model="some-model"))

    assert end.ending is Ending.DONE, end
    assert time.monotonic() - started < AFTER_END, "it should exit by itself"
    assert (b.workspace / "a.txt").read_text() == "hi\n"
    assert (end.text, end.model, end.usage) == ("All done.", "some-model", Usage(200, 40))
    assert b.seen.used[-1] == Usage(200, 40)
    assert [end.session_id] == b.seen.sessions == threads(b.home)
    assert b.seen.said(OutputKind.TEXT) == "I write it.\nAll done.\n"
    assert b.seen.said(OutputKind.TOOL) == "shell echo hi > a.txt; cat a.txt\n"
    assert b.seen.said(OutputKind.RESULT) == "hi\n"
    events = [json.loads(line)["type"] for line in b.seen.said(OutputKind.RAW).splitlines()]
    assert (events[0], events[-1]) == ("thread.started", "turn.completed")
    assert b.server.agent_requests[0].body["model"] == "some-model"
    assert b.server.agent_requests[0].headers["authorization"] == "Bearer dummy"
    assert b.left() == []


async def test_a_patch_is_a_tool_call_too(bench: Make) -> None:
    patch = "*** Begin Patch\n*** Add File: p.txt\n+hello\n*** End Patch\n"
    b = bench({"tools": [{"name": "apply_patch", "freeform": patch}]}, text("Done."))
    end = await b.run(b.request(model="gpt-5.5"))
    assert (end.ending, (b.workspace / "p.txt").read_text()) == (Ending.DONE, "hello\n")
    assert b.seen.said(OutputKind.TOOL) == f"file_change add {b.workspace}/p.txt\n"
    assert b.seen.said(OutputKind.RESULT) == "completed\n"


async def test_it_goes_on_in_its_session_with_its_sandbox_and_counts_only_its_own(bench: Make) -> None:
    b = bench(text("First."), shell("echo hi > b.txt"), text("Second."))
    first = await b.run(b.request("The first thing."))

    second = await b.run(b.request("The second thing.", session_id=first.session_id, session_used=first.usage))

    assert (second.ending, second.text, second.session_id) == (Ending.DONE, "Second.", first.session_id)
    assert (first.usage, second.usage) == (Usage(100, 20), Usage(200, 40))
    assert (b.workspace / "b.txt").exists()
    told = heard(b.server.agent_requests[1])
    assert told.index("The first thing.") < told.index("The second thing.")
    third = await b.run(b.request("The third.", session_id=first.session_id, session_used=Usage()))
    assert third.usage == Usage(400, 80), "what nobody has booked is this run's"


async def test_a_session_that_is_gone_is_said_not_replaced(bench: Make) -> None:
    b = bench()
    for unknown in (UNKNOWN, "a-name", "--last"):
        end = await b.run(b.request(session_id=unknown))
        assert (end.failure, end.session_lost, end.session_id) == (FailureClass.AGENT, True, None)
    assert b.server.requests == []
    assert b.seen.sessions == []


OUTCOMES: list[Any] = [
    (status(401, "bad key", times=9), FailureClass.AUTH, "401 Unauthorized: bad key"),
    (status(400, "odd request"), FailureClass.AGENT, "odd request"),
    (status(404, "The model `x` does not exist", error="model_not_found"), FailureClass.INVALID_CONFIG, "`x`"),
    (status(429, "slow down"), FailureClass.RATE_LIMIT, "429 Too Many Requests"),
    (status(429, "spent", error="insufficient_quota"), FailureClass.QUOTA, "Check your plan"),
    (status(500, times=9), FailureClass.NETWORK, "high demand"),
    ({"cut": True, "times": 9}, FailureClass.NETWORK, "stream disconnected"),
    ({"incomplete": "content_filter", "text": "half", "times": 9}, FailureClass.REFUSAL, "content_filter"),
]
MORE_OUTCOMES: list[tuple[Turn, FailureClass, str]] = [
    (status(403, "no access", times=9), FailureClass.AUTH, "403 Forbidden: no access"),
    (status(413, "too much", times=9), FailureClass.AGENT, "413"),
    ({"sse_error": "rate_limit_exceeded", "message": "Rate limit reached.", "times": 9}, FailureClass.RATE_LIMIT,
     "Rate limit reached"),
    (status(429, body={"error": {"type": "usage_not_included"}}), FailureClass.QUOTA, "upgrade to Plus"),
    (status(502, times=9), FailureClass.NETWORK, "502 Bad Gateway"),
    (status(503, error="server_is_overloaded", times=9), FailureClass.NETWORK, "at capacity"),
    ({"cut": "reset", "times": 9}, FailureClass.NETWORK, "error sending request"),
    ({"sse_error": "context_length_exceeded"}, FailureClass.AGENT, "ran out of room"),
    ({"sse_error": "invalid_prompt", "message": "Invalid prompt: against our usage policy"}, FailureClass.REFUSAL,
     "usage policy"),
    ({"incomplete": "max_output_tokens", "text": "half"}, FailureClass.AGENT, "max_output_tokens"),
]  # fmt: skip
OUTCOMES += [pytest.param(*case, marks=variants) for case in MORE_OUTCOMES]


@pytest.mark.parametrize(("turn", "failure", "words"), OUTCOMES)
async def test_what_goes_wrong_at_the_model_has_its_class(
    bench: Make, turn: Turn, failure: FailureClass, words: str
) -> None:
    b = bench(turn)
    end = await b.run()
    assert (end.ending, end.failure) == (Ending.FAILED, failure), end
    assert words in end.detail
    assert end.excerpt
    assert end.retry_at is None
    assert end.usage == Usage(), "unknown is not nothing"
    assert end.session_id == b.seen.sessions[0]


@pytest.mark.parametrize(("hours", "zone"), [(2, None), (72, "America/New_York")])
async def test_a_used_up_allowance_says_when_it_is_back(bench: Make, hours: int, zone: str | None) -> None:
    reset = int(time.time()) + hours * 3600
    error = {"type": "usage_limit_reached", "message": "spent", "plan_type": "plus", "resets_at": reset}
    b = bench(status(429, body={"error": error}))
    if zone:
        b.environment["TZ"] = zone
    end = await b.run()
    assert end.failure is FailureClass.QUOTA
    assert end.retry_at is not None
    assert 0 <= end.retry_at / 1000 - reset <= 60, datetime.fromtimestamp(end.retry_at / 1000, UTC)


async def test_trouble_that_passes_is_a_note(bench: Make) -> None:
    b = bench({"cut": True}, text("Whole."))
    end = await b.run()
    assert (end.ending, end.text) == (Ending.DONE, "Whole.")
    assert "waits for its model: Reconnecting... 1/1 (stream disconnected" in b.seen.said(OutputKind.PILOT)


async def test_a_rate_limit_that_passes_soon_is_waited_for(bench: Make) -> None:
    b = bench(status(429, "slow down", headers={"retry-after": "1"}), text("On again."))
    end = await b.run()
    assert (end.ending, end.text) == (Ending.DONE, "On again.")


async def test_a_stream_that_falls_silent_is_given_up_by_the_cli_itself(bench: Make) -> None:
    b = bench({"silence": 60, "times": 9})
    b.args = provider(b.server.url, silence=0.3)
    end = await b.run()
    assert (end.failure, "idle timeout" in end.detail) == (FailureClass.NETWORK, True)


async def test_a_network_that_is_away_ends_the_run_although_the_cli_waits_for_ever(
    bench: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pilot.backends.codex.HELD_UP", 1.5)
    b = bench()
    b.args = provider("http://127.0.0.1:1")
    end = await b.run()
    assert (end.failure, "waiting for network" in end.detail) == (FailureClass.NETWORK, True)
    assert b.seen.said(OutputKind.RAW).count("waiting for network") == 1, "more of the same is no sign of life"
    assert b.left() == []


async def test_a_far_rate_limit_ends_the_run_although_the_cli_waits_for_it(
    bench: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pilot.backends.codex.HELD_UP", 0.5)
    b = bench(status(429, "slow down", headers={"retry-after": "3600"}, times=9))
    end = await b.run()
    assert (end.failure, "429" in end.detail) == (FailureClass.RATE_LIMIT, True)
    assert len(b.server.requests) == 1


async def test_what_it_is_set_up_with_wrongly_is_a_matter_of_configuration(bench: Make) -> None:
    b = bench()
    for settings, words in (
        ({"extra_args": ["--nope"]}, "--nope"),
        ({"extra_args": ["-c", 'model_provider="nobody"']}, "nobody"),
        ({"extra_args": ["-c", 'model_providers.scripted.env_key="NOT_SET"']}, "NOT_SET"),
        ({"extra_args": ["-c", 'sandbox_mode="nope"']}, "nope"),
        ({"command": "/nowhere/codex"}, "/nowhere/codex"),
    ):
        end = await b.run(**settings)
        assert (end.failure, words in end.detail) == (FailureClass.INVALID_CONFIG, True), end
    end = await b.run(b.request(workspace="/nowhere"))
    assert end.failure is FailureClass.INFRA
    assert (await b.run(b.request(" "))).failure is FailureClass.AGENT
    b.environment["CODEX_HOME"] = "/nowhere/codex-home"
    end = await b.run()
    assert (end.failure, "/nowhere/codex-home" in end.detail) == (FailureClass.INVALID_CONFIG, True), end
    assert b.server.requests == []


async def test_a_home_in_which_it_can_run_no_command_is_said_before_a_token_is_used(bench: Make) -> None:
    b = bench(shell("echo hi > a.txt"), text("Done."))
    b.environment["TMPDIR"] = str(b.home.parent)
    end = await b.run()
    assert (end.failure, "temporary dir" in end.detail) == (FailureClass.INVALID_CONFIG, True), end
    assert b.server.requests == []
    assert (await b.run(sandbox="danger-full-access")).ending is Ending.DONE
    assert (b.workspace / "a.txt").exists()


async def test_a_machine_on_which_its_sandbox_can_not_be_made_is_no_success(bench: Make, tmp_path: Path) -> None:
    words = "I could not run a command: bwrap fails."
    b = bench(shell("echo hi > a.txt"), text(words), shell("echo hi > a.txt"), text("The sandbox works."))
    nested = tmp_path / "nested"
    nested.write_text(f'#!/bin/sh\nexec bwrap --dev-bind / / --cap-drop ALL "{codex_binary()}" "$@"\n')
    nested.chmod(0o755)

    end = await b.run(command=str(nested))

    assert (end.failure, "does not work here: bwrap" in end.detail) == (FailureClass.INVALID_CONFIG, True), end
    assert not (b.workspace / "a.txt").exists()
    assert (end.usage, end.text) == (Usage(200, 40), words)
    assert (await b.run()).ending is Ending.DONE


async def test_what_it_may_not_do_becomes_a_question_and_the_answer_goes_on(bench: Make) -> None:
    patch = {"tools": [{"name": "apply_patch", "freeform": "*** Begin Patch\n*** Add File: p\n+x\n*** End Patch\n"}]}
    b = bench(patch, text("I may not."), patch, text("Written."))

    end = await b.run(b.request(model="gpt-5.5"), sandbox="read-only")

    assert end.ending is Ending.QUESTION
    assert end.question is not None
    assert "read-only" in end.question.text
    assert not (b.workspace / "p").exists()
    answered = await b.run(b.request("You may.", model="gpt-5.5", session_id=end.session_id))
    assert answered.ending is Ending.DONE
    assert (b.workspace / "p").exists()


async def test_its_sandbox_keeps_commands_to_the_workspace(bench: Make) -> None:
    elsewhere = Path("/var/tmp") / f"elsewhere-{uuid.uuid4().hex}"
    orders = f"touch {elsewhere}; git commit -q --allow-empty -m x; echo in > in.txt"
    asks = tool("exec_command", cmd="touch x", sandbox_permissions="require_escalated", justification="I need it")
    b = bench(shell(orders), shell("rm -rf nothing"), text("Done."), asks, text("No."))
    end = await b.run()
    assert end.ending is Ending.DONE, "that it forbids `rm -f` is between it and the agent"
    assert (b.workspace / "in.txt").exists()
    try:
        assert not elsewhere.exists()
    finally:
        elsewhere.unlink(missing_ok=True)
    told = heard(b.server.agent_requests[-1])
    assert "index.lock': Read-only file system" in told, "pilot commits; the agent can't"
    assert "rm -f style commands are not permitted" in told
    assert (await b.run(b.request(session_id=end.session_id))).ending is Ending.QUESTION


LONG = "setsid sleep 4711 & sleep 4712 & (trap '' TERM INT; sleep 4713) & echo up > up; sleep 4714"


@pytest.mark.parametrize("sandbox", ["workspace-write", pytest.param("danger-full-access", marks=variants)])
async def test_a_cancel_in_a_long_tool_leaves_nothing_and_the_session_goes_on(bench: Make, sandbox: str) -> None:
    b = bench(shell(LONG), text("On again."))
    task = asyncio.create_task(b.run(sandbox=sandbox))
    await b.seen.hears(OutputKind.TOOL, "sleep 4711")
    async with asyncio.timeout(30):
        while not (b.workspace / "up").exists():
            await asyncio.sleep(0.01)
    assert len(b.left()) >= 4

    started = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert b.left() == []
    assert time.monotonic() - started < 5, "it should obey the interrupt, not wait for the next signal"
    assert (await b.run(b.request("Go on.", session_id=b.seen.sessions[0]))).text == "On again."


async def test_a_cancel_while_it_starts_leaves_nothing(bench: Make) -> None:
    b = bench({"silence": 60, "times": 9})
    for wait in (0.0, 0.1):
        task = asyncio.create_task(b.run())
        async with asyncio.timeout(30):
            while not b.left():
                await asyncio.sleep(0.01)
        await asyncio.sleep(wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert b.left() == []


async def test_killed_from_outside_is_a_failure_with_that_reason(bench: Make) -> None:
    b = bench(shell("kill -9 $PPID"), text("never"))
    end = await b.run(sandbox="danger-full-access")
    assert (end.failure, "SIGKILL" in end.detail) == (FailureClass.AGENT, True)
    assert b.left() == []


async def test_what_the_agent_leaves_in_the_background_ends_with_it(bench: Make) -> None:
    late = tool("exec_command", cmd="sleep 482; echo late", yield_time_ms=250)
    b = bench(shell("setsid sleep 481 >/dev/null 2>&1 & echo up"), late, text("Done."))
    end = await b.run(sandbox="danger-full-access")
    assert (end.ending, b.left()) == (Ending.DONE, [])
    assert b.seen.said(OutputKind.RESULT).splitlines()[-1] == "command_execution: not done at the end of the turn"


async def test_the_npm_script_is_not_what_is_run(bench: Make) -> None:
    b = bench(shell("tr '\\0' ' ' < /proc/$PPID/cmdline"), text("Done."))
    end = await b.run(command=str(MODULES / ".bin/codex"), sandbox="danger-full-access")
    assert end.ending is Ending.DONE
    assert b.seen.said(OutputKind.RESULT).startswith(f"{codex_binary()} exec ")


async def test_a_repository_does_not_steer_it_even_where_its_user_trusts_the_repository(
    bench: Make, tmp_path: Path
) -> None:
    b = bench(shell("true"), text("Done."))
    main, hook = tmp_path / "main", f"touch {tmp_path}/hooked"
    (main / ".codex").mkdir(parents=True)
    (main / ".codex/config.toml").write_text(
        f'developer_instructions = "Theirs."\nnotify = ["touch", "{tmp_path}/told"]\n'
        f'[mcp_servers.evil]\ncommand = "touch"\nargs = ["{tmp_path}/served"]\n'
    )
    hooks = {name: [{"hooks": [{"type": "command", "command": hook}]}] for name in ("SessionStart", "Stop")}
    (main / ".codex/hooks.json").write_text(json.dumps({"hooks": hooks}))
    git = ["git", "-C", str(main), "-c", "user.name=a", "-c", "user.email=a@b.example"]
    subprocess.run(["git", "init", "-q", str(main)], check=True)
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "Begin"], check=True)
    subprocess.run([*git, "worktree", "add", "-q", "-b", "work", str(tmp_path / "linked")], check=True)
    (b.home / ".codex").mkdir()
    (b.home / ".codex/config.toml").write_text(f'[projects."{main}"]\ntrust_level = "trusted"\n')

    end = await b.run(b.request(workspace=str(tmp_path / "linked")))

    assert end.ending is Ending.DONE
    assert "Theirs." not in json.dumps(b.server.agent_requests[0].body)
    assert not [name for name in ("told", "served", "hooked") if (tmp_path / name).exists()]


async def test_what_a_repository_tells_agents_is_told_once_and_no_link_leads_out(bench: Make, tmp_path: Path) -> None:
    b = bench(text("Done."), text("Done."))
    (tmp_path / "secret").write_text("hunter2-hunter2")
    (b.workspace / "AGENTS.md").symlink_to(tmp_path / "secret")
    end = await b.run(b.request("Go.", instructions="- Use tabs only.\n"))
    await b.run(b.request(f"Look at @{tmp_path}/secret.", session_id=end.session_id, instructions="- Use tabs only.\n"))
    told = heard(b.server.agent_requests[-1])
    assert told.count("- Use tabs only.") == 1
    assert "hunter2-hunter2" not in told


_MORE_PROMPTS = [pytest.param(prompt, marks=variants) for prompt in ("-", "!touch x", "$skill")]


@pytest.mark.parametrize("prompt", ["/compact", "--help", "é \ud800 \0 end", *_MORE_PROMPTS])
async def test_a_prompt_is_never_an_order_to_the_cli(bench: Make, prompt: str) -> None:
    b = bench(text("Done."))
    end = await b.run(b.request(prompt))
    assert (end.ending, len(b.server.agent_requests)) == (Ending.DONE, 1), end
    assert prompt[:2] in heard(b.server.agent_requests[0])
    assert not (b.workspace / "x").exists()


async def test_much_output_and_a_large_prompt_come_through_whole(bench: Make) -> None:
    last = "y" * 3_000_000
    b = bench(shell("seq 1 400000"), text(last))
    end = await b.run(b.request("x" * 1_000_000))
    assert (end.ending, len(end.text)) == (Ending.DONE, len(last))
    assert "x" * 1_000_000 in heard(b.server.agent_requests[0])
    assert max(len(data) for kind, data in b.seen.pieces if kind is OutputKind.RESULT) < 3000
    end = await b.run(b.request("x" * 1_100_000))
    assert (end.failure, "maximum length of 1048576" in end.detail) == (FailureClass.AGENT, True)


async def test_an_agent_that_stays_after_its_turn_keeps_its_success(
    bench: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pilot.backends.codex.AFTER_END", 0.5)
    b = bench(text("Done."))
    stays = tmp_path / "stays"
    stays.write_text(f'#!/bin/sh\n"{codex_binary()}" "$@"\nsleep 491\n')
    stays.chmod(0o755)
    end = await b.run(command=str(stays))
    assert (end.ending, end.text, b.left()) == (Ending.DONE, "Done.", [])


async def test_only_what_it_needs_is_in_its_commands_environment(bench: Make) -> None:
    b = bench(shell("env"), text("Done."))
    b.environment |= {"GITHUB_TOKEN": "hub-secret", "CODEX_THREAD_ID": "other", "CODEX_API_KEY": "key-secret"}
    await b.run()
    shown = b.seen.said(OutputKind.RAW)
    assert f"HOME={b.home}" in shown
    assert f"PILOT_RUN={b.marker}" in shown
    assert "hub-secret" not in shown
    assert "key-secret" not in shown
    assert b.server.agent_requests[0].headers["authorization"] == "Bearer key-secret"
    own = {**b.request().environment, "CODEX_API_KEY": "given-by-setting"}
    await b.run(b.request(environment=own))
    assert b.server.agent_requests[-1].headers["authorization"] == "Bearer given-by-setting"


async def test_doctor_finds_it_or_says_what_to_do(bench: Make) -> None:
    b = bench()
    checks = await b.backend().check()
    assert [check.ok for check in checks] == [True, True, True], checks
    assert "0.169." in checks[0].detail
    assert "CODEX_API_KEY" in checks[1].detail
    assert checks[2].detail == "workspace-write works"

    del b.environment["CODEX_API_KEY"]
    assert [check.ok for check in await b.backend().check()] == [True, None, True]
    (b.home / ".codex").mkdir(exist_ok=True)
    (b.home / ".codex/auth.json").write_text("{}")
    assert [check.ok for check in await b.backend(sandbox="danger-full-access").check()] == [True, True]

    b.environment["TMPDIR"] = str(b.home.parent)
    found, _, broken = await b.backend().check()
    assert "0.169." in found.detail, "and not the warning before it"
    assert (broken.ok, "does not work here" in broken.detail, bool(broken.remedy)) == (None, True, True)

    (missing,) = await b.backend(command="no-such-codex").check()
    assert (missing.ok, "npm install" in missing.remedy) == (False, True)
    assert b.server.requests == []


async def test_an_account_is_its_key_or_its_folder(bench: Make) -> None:
    b = bench()
    accounts = [
        b.backend({**os.environ, "HOME": home, **key}).account()
        for home in ("/a", "/b")
        for key in ({}, {"CODEX_API_KEY": "one"}, {"CODEX_API_KEY": "two"}, {"CODEX_HOME": "/c"})
    ]
    assert accounts[1:4] == accounts[5:8]
    assert accounts[0] != accounts[4]
    assert len(set(accounts)) == 5
