"""What every backend promises, of claude-code: with a programme that speaks as the CLI does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from pilot.backends.claude_code import AFTER_RESULT, ClaudeCode
from pilot.config.executor import ClaudeCodeSettings
from pilot.domain.agent import Backend
from pilot.domain.outcome import Usage
from pilot.testing import SECRET, BackendSuite, Script


def line(**event: object) -> bytes:
    return json.dumps(event).encode() + b"\n"


class TestClaudeCode(BackendSuite):
    one_line = True
    tools = True
    stays = AFTER_RESULT

    def backend(self, program: Path) -> Backend:
        settings = ClaudeCodeSettings(command=str(program))
        return ClaudeCode(settings, environ={"PATH": "/usr/bin:/bin", "ANTHROPIC_API_KEY": SECRET}, root=False)

    def says(self, text: bytes) -> bytes:
        content = [{"type": "text", "text": text.decode()}]
        return line(type="assistant", message={"role": "assistant", "content": content})

    def calls(self, tool: bytes) -> bytes:
        block = {"type": "tool_use", "id": "t1", "name": "Bash", "input": {"command": tool.decode()}}
        return line(type="assistant", message={"role": "assistant", "content": [block]})

    def answered(self, result: bytes) -> bytes:
        block = {"type": "tool_result", "tool_use_id": "t1", "content": result.decode()}
        return line(type="user", message={"role": "user", "content": [block]})

    def ends(self, text: bytes) -> bytes:
        return line(type="result", subtype="success", is_error=False, num_turns=1, result=text.decode())

    def spends(self) -> tuple[bytes, Usage]:
        result = json.loads(self.ends(b"Done."))
        usage = {"input_tokens": 700, "output_tokens": 30}
        return line(**result, usage=usage, total_cost_usd=0.25), Usage(700, 30, 0.25)

    def opens(self, session: str) -> bytes:
        return line(type="system", subtype="init", session_id=session, model="m")

    def has_lost(self, session: str) -> Script:
        return Script().err(f"No conversation found with session ID: {session}\n".encode()).exit(1)

    def prompt_in(self, received: bytes) -> str:
        prompt = json.loads(received)["message"]["content"]
        assert isinstance(prompt, str)
        return prompt

    def strange(self, environment: Mapping[str, str]) -> set[str]:
        ours = ("CLAUDE_CODE_", "DISABLE_", "ANTHROPIC_API_KEY")
        return {name for name in super().strange(environment) if not name.startswith(ours)}
