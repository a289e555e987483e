"""What every backend promises, of claude-code: with a programme that speaks as the CLI does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from pilot.backends.claude_code import ClaudeCode
from pilot.config.executor import ClaudeCodeSettings
from pilot.domain.agent import Backend
from pilot.testing.backend_suite import BackendSuite


def line(**event: object) -> bytes:
    return json.dumps(event).encode() + b"\n"


class TestClaudeCode(BackendSuite):
    one_line = True

    def backend(self, program: Path) -> Backend:
        settings = ClaudeCodeSettings(command=str(program))
        return ClaudeCode(settings, environ={"PATH": "/usr/bin:/bin", "ANTHROPIC_API_KEY": "none"}, root=False)

    def says(self, text: bytes) -> bytes:
        content = [{"type": "text", "text": text.decode()}]
        return line(type="assistant", message={"role": "assistant", "content": content})

    def ends(self, text: bytes) -> bytes:
        return line(type="result", subtype="success", is_error=False, num_turns=1, result=text.decode())

    def prompt_in(self, received: bytes) -> str:
        prompt = json.loads(received)["message"]["content"]
        assert isinstance(prompt, str)
        return prompt

    def strange(self, environment: Mapping[str, str]) -> set[str]:
        ours = ("CLAUDE_CODE_", "DISABLE_", "ANTHROPIC_API_KEY")
        return {name for name in super().strange(environment) if not name.startswith(ours)}
