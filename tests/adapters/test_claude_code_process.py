"""The claude-code backend and a program that behaves as no version of the CLI should."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pilot.backends.claude_code import LINE_LIMIT, ClaudeCode
from pilot.config.executor import ClaudeCodeSettings
from pilot.domain.agent import AgentRequest, OutputKind
from pilot.domain.outcome import Ending, FailureClass, Outcome
from pilot.testing import Seen

PROLOGUE = f"""#!{sys.executable} -S
import json, os, signal, sys, time
out = sys.stdout.buffer
def say(**event):
    out.write(json.dumps(event).encode() + b"\\n")
    out.flush()
def result(text="done"):
    say(type="result", subtype="success", is_error=False, num_turns=1, result=text)
say(type="system", subtype="init", session_id=sys.argv[sys.argv.index("--session-id") + 1], model="m")
sys.stdin.readline()
"""


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Any]:
    async def execute(script: str, seen: Seen | None = None) -> Outcome:
        program = tmp_path / "claude"
        program.write_text(PROLOGUE + script)
        program.chmod(0o755)
        workspace = tmp_path / "workspace"
        workspace.mkdir(exist_ok=True)
        request = AgentRequest(
            prompt="do it", workspace=str(workspace), execution=1, attempt=1, project="p", task_id="T-1",
            environment={"PATH": "/usr/bin:/bin"}, marker="test/claude",
        )  # fmt: skip
        backend = ClaudeCode(ClaudeCodeSettings(command=str(program)), environ={})
        return await backend.execute(request, seen or Seen())

    return execute


async def test_an_interrupt_is_asked_for_before_any_signal(run: Callable[..., Any], tmp_path: Path) -> None:
    seen = Seen()
    polite = """
for line in sys.stdin:
    if json.loads(line)["request"] == {"subtype": "interrupt"}:
        time.sleep(0.3)  # a signal now would be the end of it
        open("interrupted", "w").close()
"""
    task = asyncio.create_task(run(polite, seen))
    await seen.until(1)

    started = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert (tmp_path / "workspace/interrupted").exists()
    assert time.monotonic() - started < 4, "it exits at the end of its input"


async def test_bytes_that_are_no_text_come_through(run: Callable[..., Any]) -> None:
    seen = Seen()
    odd = b"\xff\xfe\x00\x1b]0;title\x07\x1b[2J"
    end = await run(f"out.write({odd!r} + b'\\n'); result('\\x00 \\x1b[31m \\ud800')", seen)

    assert end.ending is Ending.DONE
    assert "\0" not in end.text
    assert end.text.encode()
    assert (OutputKind.STDOUT, odd + b"\n") in seen.pieces


async def test_a_line_of_100_mb_is_cut_and_the_run_goes_on(run: Callable[..., Any]) -> None:
    seen = Seen()
    end = await run("for _ in range(100): out.write(b'x' * (1 << 20))\nout.write(b'\\n'); result()", seen)

    assert (end.ending, end.text) == (Ending.DONE, "done")
    assert max(len(data) for _, data in seen.pieces) <= LINE_LIMIT + 1


async def test_a_result_is_not_believed_when_the_process_crashes(run: Callable[..., Any]) -> None:
    end = await run("result(); os._exit(3)")
    assert (end.failure, "did not" in end.detail) == (FailureClass.AGENT, True)


async def test_an_end_without_a_result_shows_what_stderr_said(run: Callable[..., Any]) -> None:
    end = await run("sys.stderr.write('noise\\n' * 5000 + 'TypeError: x is not a function\\n')")
    assert end.failure is FailureClass.AGENT
    assert "x is not a function" in end.detail
    assert len(end.excerpt) < 5000


async def test_a_session_that_the_program_names_otherwise_is_the_one_to_keep(run: Callable[..., Any]) -> None:
    seen = Seen()
    end = await run("say(type='system', subtype='init', session_id='other'); result()", seen)
    assert (seen.sessions[1:], end.session_id) == (["other"], "other")


async def test_a_store_that_takes_its_time_is_not_the_agent_s_fault(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pilot.backends.claude_code.AFTER_RESULT", 0.2)

    class Slow(Seen):
        async def output(self, kind: OutputKind, data: bytes) -> None:
            await super().output(kind, data)
            if b'"result"' in data:
                await asyncio.sleep(0.5)

    seen = Slow()
    end = await run("result()\nsay(type='from_the_future', last=True)", seen)
    assert end.ending is Ending.DONE
    assert any(b"from_the_future" in data for _, data in seen.pieces)


async def test_what_the_caller_raises_ends_the_agent(run: Callable[..., Any], tmp_path: Path) -> None:
    class Lost(Seen):
        async def output(self, kind: OutputKind, data: bytes) -> None:
            raise FileNotFoundError("of the store, not of the agent")

    with pytest.raises(FileNotFoundError, match="of the store"):
        await run("open('pid', 'w').write(str(os.getpid())); sys.stdin.read()", Lost())
    pid = tmp_path / "workspace/pid"
    assert not pid.exists() or not Path("/proc", pid.read_text()).exists()
