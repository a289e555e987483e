"""How fast what agents say is read: each backend's reader over the events of a long run, in MB of them a second.

And what a sandbox costs: the start and the end of `true` in it, against the same without.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure
from benchmarks.overhead import claimed
from pilot.backends.acp_events import Record as AcpRecord
from pilot.backends.claude_events import Record as ClaudeRecord
from pilot.backends.codex_events import Record as CodexRecord
from pilot.backends.opencode_events import Record as OpenCodeRecord
from pilot.backends.reading import parsed
from pilot.config.executor import SandboxSettings
from pilot.config.schema import ProjectSettings
from pilot.domain.agent import Sandbox
from pilot.runner.process import running
from pilot.runner.sandbox import make_sandbox
from pilot.runner.sandbox_machine import Bwrap, probe
from pilot.runner.workspace import Workspaces

CALLS = 2000
WORDS = "The parser reads the date in the wrong order, so I change the order and add a test for it. " * 6
OUTPUT = "".join(f"src/module_{n}.py:{n}: passed in 0.0{n % 7} s\n" for n in range(100))
SPAWNS = 40


def _claude(n: int) -> Iterable[dict[str, Any]]:
    said = {"type": "text", "text": WORDS}
    call = {"type": "tool_use", "id": f"t{n}", "name": "Bash", "input": {"command": "make test"}}
    result = {"type": "tool_result", "tool_use_id": f"t{n}", "content": OUTPUT}
    for block in (said, call):
        yield {"type": "assistant", "message": {"id": f"m{n}", "content": [block], "usage": {"input_tokens": 9}}}
    yield {"type": "user", "message": {"content": [result]}, "tool_use_result": {"stdout": OUTPUT}}


def _codex(n: int) -> Iterable[dict[str, Any]]:
    item = {"id": f"i{n}", "type": "command_execution", "command": "make test", "aggregated_output": ""}
    yield {"type": "item.completed", "item": {"id": f"a{n}", "type": "agent_message", "text": WORDS}}
    yield {"type": "item.started", "item": {**item, "status": "in_progress"}}
    yield {
        "type": "item.completed",
        "item": {**item, "aggregated_output": OUTPUT, "exit_code": 0, "status": "completed"},
    }


def _opencode(n: int) -> Iterable[dict[str, Any]]:
    own = {"sessionID": "ses_1", "messageID": f"msg_{n}"}
    info = {
        "id": f"msg_{n}",
        "sessionID": "ses_1",
        "role": "assistant",
        "cost": 0.01,
        "tokens": {"input": 9, "output": 9},
    }
    tool = {**own, "id": f"prt_{n}", "type": "tool", "tool": "bash", "callID": f"c{n}"}
    call = {"input": {"command": "make test"}}
    yield {"type": "message.updated", "properties": {"info": info}}
    yield {
        "type": "message.part.updated",
        "properties": {"part": {**own, "id": f"p{n}", "type": "text", "text": WORDS}},
    }
    for state in ({"status": "running", **call}, {"status": "completed", "output": OUTPUT, **call}):
        yield {"type": "message.part.updated", "properties": {"part": {**tool, "state": state}}}


def _acp(n: int) -> Iterable[dict[str, Any]]:
    content = [{"type": "content", "content": {"type": "text", "text": OUTPUT}}]
    call = {"toolCallId": f"c{n}", "title": "make test", "kind": "execute"}
    for update in (
        {"sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": WORDS}},
        {"sessionUpdate": "tool_call", "status": "pending", **call},
        {"sessionUpdate": "tool_call_update", "toolCallId": f"c{n}", "status": "completed", "content": content},
    ):
        yield {"jsonrpc": "2.0", "method": "session/update", "params": {"sessionId": "s", "update": update}}


def _read_opencode() -> Callable[[bytes], object]:
    record = OpenCodeRecord("ses_1", "msg_ours")
    return lambda line: record.read(line.decode(), 0.0)


def _read_acp() -> Callable[[bytes], object]:
    record = AcpRecord(session="s")
    return lambda line: list(record.read(parsed(line) or {}, line))


def _speed(events: Callable[[int], Iterable[dict[str, Any]]], read: Callable[[bytes], object]) -> float:
    lines = [json.dumps(event).encode() for n in range(CALLS) for event in events(n)]
    started = time.perf_counter()
    for line in lines:
        read(line)
    return sum(map(len, lines)) / 1e6 / (time.perf_counter() - started)


async def _spawns(folder: Path) -> tuple[float, float]:
    """Seconds for `true`: (plainly, in a sandbox), medians."""
    bwrap = probe(os.environ)
    if not isinstance(bwrap, Bwrap):
        raise SystemExit(f"{bwrap.why}; {bwrap.remedy}")
    project = ProjectSettings.model_validate({"name": "api", "path": folder / "api"})
    workspace = await Workspaces(folder / "state").prepare(project, claimed(1))
    env = {"PATH": os.environ["PATH"], "HOME": str(folder / "home")}
    sandbox = make_sandbox(
        bwrap, state_dir=folder / "state", project_id=1, workspace=workspace, paths=SandboxSettings()
    )
    times: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(SPAWNS):
        for own, within in ((False, None), (True, sandbox)):
            times[own].append(await _spawn(workspace.path, env, within))
    sandbox.close()
    workspace.close()
    return statistics.median(times[False]), statistics.median(times[True])


async def _spawn(place: Path, env: dict[str, str], sandbox: Sandbox | None) -> float:
    started = time.perf_counter()
    async with running(["true"], cwd=str(place), env=env, marker="bench", sandbox=sandbox) as process:
        async for _ in process.lines():
            pass
        if await process.wait():
            raise SystemExit("true is not true")
    return time.perf_counter() - started


def _repository(place: Path) -> None:
    identity = ("-c", "user.name=bench", "-c", "user.email=bench@localhost")
    place.mkdir()
    (place / "README.md").write_text("# A page\n")
    for args in (("init", "-q", "-b", "main"), ("add", "-A"), (*identity, "commit", "-qm", "first")):
        subprocess.run(["git", "-C", str(place), *args], check=True)


def run() -> list[Figure]:
    """One figure for each reader, and one for the sandbox."""
    readers = {
        "claude-code": (_claude, ClaudeRecord().read),
        "codex": (_codex, CodexRecord().read),
        "opencode": (_opencode, _read_opencode()),
        "acp": (_acp, _read_acp()),
    }
    figures = [
        Figure(f"events read: {name}", _speed(events, read), "MB/s", 50, more=True)
        for name, (events, read) in readers.items()
    ]
    with tempfile.TemporaryDirectory(prefix="pilot-bench-") as folder:
        _repository(Path(folder) / "api")
        plain, fenced = asyncio.run(_spawns(Path(folder)))
    note = f"{plain * 1000:.1f} ms plainly, {fenced * 1000:.1f} ms in it"
    figures.append(Figure("added by the sandbox to a start", (fenced - plain) * 1000, "ms", 50, note=note))
    return figures


if __name__ == "__main__":
    from benchmarks.figures import table

    print(table(run()))
