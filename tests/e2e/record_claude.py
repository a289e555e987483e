"""Records tests/adapters/transcripts/claude/*.jsonl from the pinned CLI: `python -m tests.e2e.record_claude`.

Each file is what the CLI printed, one event a line, and a last line `{"exit": …, "stderr": …}`. Paths, ids and long
lists that no one reads are replaced, so that a new recording shows in a diff what a new version says differently.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pilot.backends.claude_cli import arguments, child_environment, message
from pilot.config.executor import ClaudeCodeSettings
from pilot.domain.agent import AgentRequest
from tests.e2e.claude import claude_binary, claude_environment
from tests.e2e.model_server import ModelServer, Turn, status, text, tool

TRANSCRIPTS = Path(__file__).parent.parent / "adapters/transcripts/claude"
SESSION = "11111111-2222-4333-8444-555555555555"
SUBSCRIPTION = {"ANTHROPIC_API_KEY": "", "CLAUDE_CODE_OAUTH_TOKEN": "sk-ant-oat01-dummy"}
USED_UP = {
    "anthropic-ratelimit-unified-status": "rejected",
    "anthropic-ratelimit-unified-reset": "1893456000",
    "anthropic-ratelimit-unified-representative-claim": "five_hour",
    "retry-after": "3600",
}
BACKGROUND = {"tools": [{"name": "Bash", "input": {"command": "sleep 1", "run_in_background": True}}]}
VARYING = {
    r"127\.0\.0\.1:\d+": "127.0.0.1:1",
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}": SESSION,
    r"/tmp/claude-[^ \"]*/tasks/": "/tasks/",
    r'"end_time": \d+': '"end_time": 0',
    r"\bb[0-9a-z]{8}\b(?=[\".])": "b00000000",
    r"\ba[0-9a-f]{16}\b": "a0000000000000000",
}
SUBAGENT = tool("Task", description="look", prompt="Look.", subagent_type="general-purpose", run_in_background=True)
LONG = "prompt is too long: 300000 tokens > 200000 maximum"
CREDIT = "Your credit balance is too low to access the Anthropic API."


@dataclass(frozen=True)
class Case:
    """One run: what the model answers, and what differs in arguments and environment."""

    turns: Sequence[Turn]
    args: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    mode: str = "bypassPermissions"
    resume: bool = False


CASES = {
    "success": Case(
        [{"text": "I write it.", **tool("Write", file_path="${cwd}/a.txt", content="hi")}, text("All done.")]
    ),
    "background": Case([BACKGROUND, text("Started."), text("It has ended.")]),
    "subagent": Case(
        [SUBAGENT, text("Sent.", when="Write a.txt."), text("Seen.", when="Look.", delay=1), text("It has seen.")]
    ),
    "denied": Case([tool("Write", file_path="${cwd}/a.txt", content="hi"), text("I could not.")], mode="default"),
    "unauthorized": Case([status(401, "invalid x-api-key", times=9)]),
    "forbidden": Case([status(403, "no access", times=9)]),
    "not-logged-in": Case([], env={"ANTHROPIC_API_KEY": ""}),
    "bad-request": Case([status(400, "something about the request")]),
    "too-long": Case([status(400, LONG, times=9)]),
    "too-large": Case([status(413, "too large", times=9)]),
    "credit": Case([status(400, CREDIT, times=9)]),
    "no-model": Case([status(404, "model: claude-x", times=9)], args=["--model=claude-x"]),
    "rate-limit": Case([status(429, "slow down", headers={"retry-after": "3600"})]),
    "too-fast": Case([status(429, "slow down", headers={"retry-after": "3600"})], env=SUBSCRIPTION),
    "allowance": Case([status(429, "limit", headers=USED_UP, times=9)], env=SUBSCRIPTION),
    "server-error": Case([status(500, times=9)]),
    "overloaded": Case([status(529, times=9)]),
    "unreachable": Case([], env={"ANTHROPIC_BASE_URL": "http://127.0.0.1:1"}),
    "refusal": Case([{"refusal": True}]),
    "max-turns": Case([tool("Bash", command="echo hi")], args=["--max-turns", "1"]),
    "max-budget": Case([tool("Bash", command="echo hi")], args=["--max-budget-usd", "0.0001"]),
    "max-tokens": Case([text("half", stop_reason="max_tokens", times=9)]),
    "no-session": Case([], resume=True),
    "bad-option": Case([], args=["--nope"]),
    "root": Case([], env={"IS_SANDBOX": ""}),
}


def record(case: Case) -> str:
    """Run the CLI once; its transcript."""
    settings = ClaudeCodeSettings.model_validate(
        {"command": claude_binary(), "permission_mode": case.mode, "extra_args": list(case.args)}
    )
    with tempfile.TemporaryDirectory() as folder, ModelServer(case.turns) as server:
        cwd = Path(folder, "workspace")
        cwd.mkdir()
        given = claude_environment(Path(folder, "home"), server.url, **case.env)
        request = AgentRequest(
            prompt="Write a.txt.", workspace=str(cwd), execution=1, attempt=1, project="p", task_id="T-1",
            environment={}, marker="",
        )  # fmt: skip
        with subprocess.Popen(
            arguments(settings, request, SESSION, resume=case.resume),
            cwd=cwd,
            env=child_environment(settings, {}, given, root=True) | given,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            stdout, stderr = process.communicate(message(request.prompt))
    lines = [json.dumps(_tidy(json.loads(line)), ensure_ascii=False) for line in stdout.splitlines()]
    lines.append(json.dumps({"exit": process.returncode, "stderr": stderr.decode()}))
    said = "\n".join(lines).replace(str(cwd), "/workspace").replace(folder, "/home")
    for pattern, constant in VARYING.items():
        said = re.sub(pattern, constant, said)
    return said + "\n"


def _tidy(event: dict[str, Any]) -> dict[str, Any]:
    unread = ("tools", "slash_commands", "agents", "skills", "plugins", "memory_paths", "uuid", "timestamp")
    kept = {key: value for key, value in event.items() if key not in unread}
    return {key: 0 if key.endswith("_ms") else value for key, value in kept.items()}


def main() -> None:
    """Record all cases anew."""
    TRANSCRIPTS.mkdir(parents=True, exist_ok=True)
    for name, case in CASES.items():
        (TRANSCRIPTS / f"{name}.jsonl").write_text(record(case))
        print(name)


if __name__ == "__main__":
    main()
