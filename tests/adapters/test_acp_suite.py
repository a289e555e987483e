"""What every backend promises, of acp: with a program that opens a session as agents do, and then plays a script."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pilot.backends.acp import AFTER_ANSWER, Acp
from pilot.config.executor import AcpSettings
from pilot.domain.agent import Backend
from pilot.domain.outcome import Usage
from pilot.testing import SECRET, BackendSuite, Script

SESSION = "ses_suite"
OPENER = """#!{python} -ISu
import json, os, sys
LOST = {lost!r}
def say(number, **answer):
    os.write(1, json.dumps({{"jsonrpc": "2.0", "id": number, **answer}}).encode() + b"\\n")
while True:
    line = b""
    while not line.endswith(b"\\n"):  # not one byte more: the rest is the player's
        line += os.read(0, 1) or sys.exit(0)
    asked = json.loads(line)
    if asked["method"] == "initialize":
        say(asked["id"], result={{
            "protocolVersion": 1,
            "agentCapabilities": {{"sessionCapabilities": {{"resume": {{}}}}}},
            "agentInfo": {{"name": "player", "version": "1"}},
        }})
    elif LOST:
        say(asked["id"], error={{"code": -32603, "message": "no such session"}})
    else:
        say(asked["id"], result={{"sessionId": {session!r}}})
        os.execv({player!r}, [{player!r}, *sys.argv[1:]])
"""


def line(**message: object) -> bytes:
    return json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n"


def update(kind: str, **more: object) -> bytes:
    params = {"sessionId": SESSION, "update": {"sessionUpdate": kind, **more}}
    return line(method="session/update", params=params)


class TestAcp(BackendSuite):
    one_line = True
    tools = True
    stays = AFTER_ANSWER
    called = 0

    def backend(self, program: Path) -> Backend:
        settings = AcpSettings(argv=(str(program), "goose"))
        return Acp(settings, environ={"PATH": "/usr/bin:/bin", "OPENAI_API_KEY": SECRET})

    def program(self, script: Script) -> Path:
        lost = ("lost", None) in script.steps
        script.steps = [step for step in script.steps if step[0] != "lost"]
        player = script.program(self.folder)
        path = player.with_name(f"{player.name}-acp")
        text = OPENER.format(python=sys.executable, lost=lost, session=SESSION, player=str(player))
        path.write_text(text)
        path.chmod(0o755)
        return path

    def says(self, text: bytes) -> bytes:
        return update("agent_message_chunk", content={"type": "text", "text": text.decode()})

    def calls(self, tool: bytes) -> bytes:
        self.called += 1
        return update("tool_call", toolCallId=f"t{self.called}", title=tool.decode(), status="in_progress")

    def answered(self, result: bytes) -> bytes:
        content = [{"type": "content", "content": {"type": "text", "text": result.decode()}}]
        return update("tool_call_update", toolCallId=f"t{self.called}", status="completed", content=content)

    def ends(self, text: bytes) -> bytes:
        said = update("agent_message_chunk", messageId="last", content={"type": "text", "text": text.decode()})
        return said + line(id=3, result={"stopReason": "end_turn"})

    def spends(self) -> tuple[bytes, Usage]:
        usage = {"inputTokens": 600, "cachedReadTokens": 100, "outputTokens": 30, "totalTokens": 730}
        cost = update("usage_update", used=1, size=2, cost={"amount": 0.25, "currency": "USD"})
        end = line(id=3, result={"stopReason": "end_turn", "usage": usage})
        return self.says(b"Done.") + cost + end, Usage(700, 30, 0.25)

    def has_lost(self, session: str) -> Script:
        script = Script()
        script.steps.append(("lost", None))
        return script

    def prompt_in(self, received: bytes) -> str:
        params: dict[str, Any] = json.loads(received)["params"]
        return str(params["prompt"][-1]["text"])

    def strange(self, environment: Mapping[str, str]) -> set[str]:
        return super().strange(environment) - {"OPENAI_API_KEY"}
