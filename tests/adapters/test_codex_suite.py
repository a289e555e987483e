"""What every backend promises, of codex: with a programme that speaks as the CLI does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from pilot.backends.codex import AFTER_END, Codex
from pilot.config.executor import CodexSettings
from pilot.domain.agent import Backend
from pilot.domain.outcome import Usage
from pilot.testing import SECRET, BackendSuite, Script
from pilot.testing.given import Given


def line(type: str, **event: object) -> bytes:
    return json.dumps({"type": type, **event}).encode() + b"\n"


def item(what: str, type: str, **more: object) -> bytes:
    return line(f"item.{what}", item={"id": "item_1", "type": type, **more})


class TestCodex(BackendSuite):
    tools = True
    stays = AFTER_END

    def backend(self, program: Path) -> Backend:
        settings = CodexSettings(command=str(program))
        return Codex(settings, environ={"PATH": "/usr/bin:/bin", "CODEX_API_KEY": SECRET})

    def says(self, text: bytes) -> bytes:
        return item("completed", "agent_message", text=text.decode())

    def calls(self, tool: bytes) -> bytes:
        command = f"/bin/bash -lc '{tool.decode()}'"
        return item("started", "command_execution", command=command, aggregated_output="", status="in_progress")

    def answered(self, result: bytes) -> bytes:
        return item("completed", "command_execution", aggregated_output=result.decode(), exit_code=0)

    def ends(self, text: bytes) -> bytes:
        return (self.says(text) if text else b"") + line("turn.completed")

    def spends(self) -> tuple[bytes, Usage]:
        usage = {"input_tokens": 700, "cached_input_tokens": 500, "output_tokens": 30, "reasoning_output_tokens": 9}
        return self.says(b"Done.") + line("turn.completed", usage=usage), Usage(700, 30)

    def opens(self, session: str) -> bytes:
        return line("thread.started", thread_id=session) + line("turn.started")

    def has_lost(self, session: str) -> Script:
        complaint = f"Error: thread/resume: thread/resume failed: no rollout found for thread id {session}\n"
        return Script().err(complaint.encode()).exit(1)

    def strange(self, environment: Mapping[str, str]) -> set[str]:
        return super().strange(environment) - {"CODEX_API_KEY"}


class TestReadOnly(Given):
    """What is given to one that only its own sandbox can keep to what it may."""

    ends = TestCodex.ends

    def strange(self, environment: Mapping[str, str]) -> set[str]:
        return super().strange(environment) - {"CODEX_API_KEY"}

    def says(self, text: bytes) -> bytes:
        return item("completed", "agent_message", text=text.decode())

    def backend(self, program: Path) -> Backend:
        settings = CodexSettings(command=str(program), sandbox="read-only")
        return Codex(settings, environ={"PATH": "/usr/bin:/bin", "CODEX_API_KEY": SECRET})
